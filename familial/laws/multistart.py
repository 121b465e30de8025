"""Initial points of a fit: a form's grid, or Latin hypercubes (McKay et al. 1979)."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import math

import numpy as np
from scipy.stats import qmc

from familial.core import errors
from familial.laws import parametric

BLOCK = 2**13  # starts in memory at once, and the size of a Latin hypercube


@dataclasses.dataclass(frozen=True)
class Starts:
  """Initial points, computed block by block: there may be millions.

  Attributes:
    count: number of points.
    block: function of (first, last) that returns their coordinates
      [last - first, parameters].
  """

  count: int
  block: Callable[[int, int], np.ndarray]

  def at(self, index: np.ndarray) -> np.ndarray:
    """The points at ascending indices."""
    places = np.split(index, np.flatnonzero(np.diff(index // BLOCK)) + 1)
    return np.concatenate(
      [self.block(p[0], p[-1] + 1)[p - p[0]] for p in places]
    )


def draw(
  form: parametric.Form, count: int, seed: int, sampling: str = 'grid'
) -> Starts:
  """Starts of a form.

  Args:
    form: whose parameters have a grid.
    count: how many.
    seed: of the choice.
    sampling: grid, points of the form's grid without repeats, all of them if it
      has fewer; latin, Latin hypercubes over the range of the grid.

  Raises:
    UserError: if the count is below 1 or the sampling unknown.
  """
  if count < 1:
    raise errors.UserError(f'starts={count}: at least 1 is needed')
  errors.require_one_of('sampling', sampling, ('grid', 'latin'))
  if sampling == 'grid':
    return _grid(form, count, seed)
  low = np.array([min(p.grid) for p in form.parameters])
  high = np.array([max(p.grid) for p in form.parameters])

  def block(first: int, last: int) -> np.ndarray:
    cubes = []
    for number in range(first // BLOCK, (last - 1) // BLOCK + 1):
      size = min(BLOCK, count - number * BLOCK)
      cube = qmc.LatinHypercube(
        len(low), rng=np.random.default_rng([seed, number])
      )
      cubes.append(low + (high - low) * cube.random(size))
    offset = first // BLOCK * BLOCK
    return np.concatenate(cubes)[first - offset : last - offset]

  return Starts(count, block)


def of_array(theta: np.ndarray) -> Starts:
  """Starts at given coordinates [n, parameters], in an order of their own."""
  theta = np.array(theta, np.float64)
  theta = theta[np.lexsort(theta.T)]
  return Starts(len(theta), lambda first, last: theta[first:last])


def holding(
  starts: Starts, form: parametric.Form, fixed: Mapping[str, float]
) -> Starts:
  """The same starts with some parameters at given values."""
  held = {
    i: parameter.coordinate_of(fixed[parameter.name])
    for i, parameter in enumerate(form.parameters)
    if parameter.name in fixed
  }

  def block(first: int, last: int) -> np.ndarray:
    theta = np.array(starts.block(first, last))
    for i, coordinate in held.items():
      theta[:, i] = coordinate
    return theta

  return Starts(starts.count, block) if held else starts


def _grid(form: parametric.Form, count: int, seed: int) -> Starts:
  sizes = [len(p.grid) for p in form.parameters]
  total = math.prod(sizes)
  index = (
    np.arange(total)
    if count >= total
    else np.sort(
      np.random.default_rng(seed).choice(total, count, replace=False)
    )
  )

  def block(first: int, last: int) -> np.ndarray:
    places = np.unravel_index(index[first:last], sizes)
    return np.stack(
      [
        np.array(p.grid)[place]
        for p, place in zip(form.parameters, places, strict=True)
      ],
      axis=1,
    )

  return Starts(len(index), block)
