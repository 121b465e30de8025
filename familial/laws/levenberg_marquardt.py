"""Levenberg-Marquardt for many small robust fits at once, in float64.

Damped Gauss-Newton (Levenberg 1944; Marquardt 1963) with Huber's weights by
iteratively reweighted least squares (Huber 1981, section 7.8), under vmap. Every
fit (a start, a bootstrap resample, a point of a profile, a simulation) is one
*lane* of one compiled program, with its own weights and target; a mask says which
parameters may move. A lane that has converged is replaced by the next fit, so no
lane waits for the slowest, and memory does not grow with the number of fits.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import threading
from typing import Any
from typing import Self

import jax
import numpy as np

from familial.core import cores
from familial.laws import parametric
from familial.laws import row_kernel

GRADIENT_TOLERANCE = 1e-6  # of a lane that counts as converged
ROUNDING = 1e-20  # objective a row below which the fit is exact
NUMBERS = 2**24  # predictions in memory at once


@dataclasses.dataclass(frozen=True)
class Lanes:
  """Arrays with one row a lane, [n, ...] each."""

  def take(self, index: np.ndarray) -> Self:
    """Some of the lanes, by index or bool [n]."""
    return type(self)(*(values[index] for values in vars(self).values()))

  @classmethod
  def join(cls, parts: Sequence[Self]) -> Self:
    """Concatenates the lanes of several parts."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return cls(*map(np.concatenate, columns))


@dataclasses.dataclass(frozen=True)
class Solution(Lanes):
  """The end of each of n lanes.

  `gradient` is the largest cosine between a free coordinate's column of the
  Jacobian and the clipped residuals: 0 at an optimum, and free of units.
  """

  theta: np.ndarray  # [n, parameters]
  objective: np.ndarray  # [n], inf where the form gave no number
  gradient: np.ndarray  # [n]
  converged: np.ndarray  # [n] bool


@dataclasses.dataclass(frozen=True)
class Problem:
  """The objective of each group of lanes, as a function of theta.

  sum_i w_i s_i Huber(log L(theta)_i - target_i; delta), where s_i is
  `asymmetry` where the law is above the data, else 1.

  Attributes:
    form: the law.
    columns: its columns, each [rows].
    target: log losses [rows], or [groups, rows].
    weights: of rows, [groups, rows].
    delta: Huber's threshold on the log residual; inf for least squares.
    asymmetry: s_i where the law is above the data.
    free: bool [parameters]; a coordinate that is not free keeps its start.
  """

  form: parametric.Form
  columns: Mapping[str, np.ndarray]
  target: np.ndarray
  weights: np.ndarray
  delta: float
  asymmetry: float
  free: np.ndarray

  def padded(self, dtype: Any) -> tuple[Any, ...]:
    """Columns, target, weights and `free` as a compiled round takes them."""
    return (
      row_kernel.inputs(self.form.columns, self.columns, dtype),
      row_kernel.pad(self.target).astype(dtype),
      row_kernel.pad(self.weights, 'constant').astype(dtype),
      self.free.astype(dtype),
    )

  def objective(self, theta: np.ndarray, group: np.ndarray) -> np.ndarray:
    """At points [n, parameters] of groups [n]; inf where it is not finite."""
    values = np.empty(len(theta))
    block = max(1, NUMBERS // self.target.shape[-1])
    for first in range(0, len(theta), block):
      part = slice(first, first + block)
      losses = self.losses(theta[part])
      values[part] = (self.weights[group[part]] * losses).sum(1)
    return np.where(np.isfinite(values), values, np.inf)

  def losses(self, theta: np.ndarray) -> np.ndarray:
    """Returns each row's value at points [n, parameters], without weights: [n, rows]."""
    residual = predict(self.form, self.columns, theta) - self.target
    return penalty(residual, self.delta, self.asymmetry)


def solve(
  problem: Problem,
  theta: np.ndarray,
  group: np.ndarray | None = None,
  *,
  first_delta: float = 0.0,
  damping: float = 1.0,
  least: float = 1e-9,
  tolerance: float = 1e-8,
  floor: float = 1e-24,
  stall: float = 0.0,
  iterations: int = 400,
  advance: Callable[[int], Any] = lambda done: None,
) -> Solution:
  """Minimises the objective from each of n points.

  Args:
    problem: the objective of each group.
    theta: coordinates to start from, [n, parameters].
    group: of each point, [n]; 0 if None.
    first_delta: a larger first threshold, which shrinks to delta in stages: with
      a small one alone, Newton steps are short.
    damping: first damping: 1 far from the optimum, less near it.
    least: lowest damping; after a vanishing one a lane rejects many steps.
    tolerance: a lane is done when `Solution.gradient` is at most this,
    floor: or its objective at most floor x the sum of its weights.
    stall: a lane also ends after two rounds that lower its objective by less
      than this share, as where a term of the law has vanished.
    iterations: maximum a lane, rounded up to whole rounds.
    advance: called with the number of lanes that have just ended.
  """
  form, delta, n = problem.form.vector, problem.delta, len(theta)
  columns, target, weights, free = problem.padded(np.float64)
  targets = np.broadcast_to(target, weights.shape)
  rows = weights.shape[1]
  width = row_kernel.lanes(form, rows)
  group = np.zeros(n, int) if group is None else group

  out_theta = np.array(theta, np.float64)
  objective = np.full(n, np.inf)
  gradient = np.full(n, np.inf)
  settings = np.array([delta, tolerance, least, problem.asymmetry])
  queue, lock = iter(range(n)), threading.Lock()

  def work(_: int) -> None:
    """Fills lanes from the queue until it is empty and all have ended."""
    lane = np.full(width, -1)  # which fit each lane works on
    current = np.tile(theta[:1], (width, 1)).astype(np.float64)
    damp = np.full(width, damping)
    threshold = np.full(width, delta)
    age = np.zeros(width, int)
    last = np.full(width, np.inf)
    slow = np.zeros(width, int)  # rounds in a row without progress
    while True:
      with lock:
        empty = np.flatnonzero(lane < 0)
        new = np.array(list(itertools.islice(queue, len(empty))), int)
      empty = empty[: len(new)]
      lane[empty], current[empty] = new, theta[new]
      damp[empty], threshold[empty] = damping, max(first_delta, delta)
      age[empty], last[empty], slow[empty] = 0, np.inf, 0
      if not (lane >= 0).any():
        return
      which = group[np.maximum(lane, 0)]
      w = weights[which]
      with jax.enable_x64(True):  # of this thread
        result = program(
          columns, targets[which], w, current, damp, free, settings,
          floor * w.sum(1), threshold,
        )  # fmt: skip
        current, damp, threshold, value, slope, done = map(np.array, result)
      age += row_kernel.ROUND
      crawls = (value >= last * (1 - stall)) & (threshold <= delta)
      slow = np.where(crawls, slow + 1, 0)
      last = value
      leave = done | (age >= iterations) | ((slow >= 2) & (stall > 0))
      left = np.flatnonzero((lane >= 0) & leave)
      fits = lane[left]
      out_theta[fits] = current[left]
      objective[fits] = np.where(np.isfinite(value[left]), value[left], np.inf)
      gradient[fits] = slope[left]
      lane[left] = -1
      if len(left):
        with lock:
          advance(len(left))

  with jax.enable_x64(True):
    program = row_kernel.program(form, rows)
  cores.in_threads(work, range(min(cores.feeding_threads(), -(-n // width))))
  bottom = ROUNDING * weights.sum(1)[group]
  converged = (gradient <= GRADIENT_TOLERANCE) | (objective <= bottom)
  converged &= np.isfinite(objective)
  return Solution(out_theta, objective, gradient, converged)


def predict(
  form: parametric.Form, columns: Mapping[str, np.ndarray], theta: np.ndarray
) -> np.ndarray:
  """Log loss [n, rows] at theta [n, parameters]."""
  rows = len(np.asarray(columns[form.columns[0]]))
  each = row_kernel.padded(rows) * row_kernel.inner(form.vector)
  block = max(1, NUMBERS // each)
  parts = [np.zeros((0, rows))]
  for first in range(0, len(theta), block):
    points = theta[first : first + block]
    [value] = _on_rows(
      row_kernel.predict, form, columns, row_kernel.pad_points(points)
    )
    parts.append(value[: len(points)])
  return np.concatenate(parts)


def evaluate(
  form: parametric.Form, columns: Mapping[str, np.ndarray], theta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Log loss [n, rows] and its Jacobian [n, rows, parameters] at theta [n, p]."""
  value, jacobian = _on_rows(row_kernel.evaluate, form, columns, theta)
  return value, jacobian


def _on_rows(
  kernel: Callable[..., Any],
  form: parametric.Form,
  columns: Mapping[str, np.ndarray],
  theta: np.ndarray,
) -> list[np.ndarray]:
  rows = len(np.asarray(columns[form.columns[0]]))
  inputs = row_kernel.inputs(form.columns, columns)
  with jax.enable_x64(True):
    arrays = kernel(form.vector, inputs, np.asarray(theta, np.float64))
    return [np.asarray(array)[:, :rows] for array in jax.tree.leaves(arrays)]


def penalty(
  residual: np.ndarray, delta: float, asymmetry: float = 1.0
) -> np.ndarray:
  """Huber's function of each residual, times asymmetry where it is above 0."""
  size = np.abs(residual)
  with np.errstate(invalid='ignore'):  # delta = inf has no tail
    huber = np.where(
      size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta)
    )
  return np.where(residual > 0, asymmetry, 1.0) * huber
