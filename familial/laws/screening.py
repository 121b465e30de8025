"""Screening of a multi-start: rounds of few iterations choose the starts to solve.

Early rounds are a few Gauss-Newton iterations in float32 (`row_kernel.program`), at
a tenth of the cost of `levenberg_marquardt.solve`'s. The best starts of a round go
on; a random sample of all starts is solved beside them, so that the share that
reaches the optimum is an unbiased estimate.

Several fits to one table, such as the resamples of a bootstrap, are searched
together: a *group* is the starts of one of them.
"""

from collections.abc import Callable
import dataclasses
import math
import time
from typing import Any

import jax
import numpy as np

from familial.core import cores
from familial.laws import levenberg_marquardt
from familial.laws import multistart as starts_lib
from familial.laws import row_kernel

FOLLOWED = 64  # the best starts, which are solved
AUDITED = 64  # starts chosen at random, which are solved as well
_SHARE = 8  # 1/_SHARE of the starts of a round goes on
_MOST = 2**17  # starts after the first round
_SCREENED = 256  # starts a group after the screening of their objectives
_LONG = 24  # rough rounds before `solve`: they are cheap
_PATIENCE = 96  # iterations of points that may tend to a bound
_TIE = 1e-6  # relative disadvantage of an end that did not converge
_LAST = 4  # starts a group that are solved

Advance = Callable[[int], Any]
Problem = levenberg_marquardt.Problem


@dataclasses.dataclass(frozen=True)
class Points(levenberg_marquardt.Lanes):
  """Points between rounds."""

  theta: np.ndarray  # [n, parameters]
  damping: np.ndarray  # [n]
  objective: np.ndarray  # [n]
  group: np.ndarray  # [n]


def prepare(problem: Problem) -> float:
  """Compiles the programs of a search; returns the seconds that took."""
  tick = time.monotonic()
  rows = row_kernel.padded(len(problem.target))
  with jax.enable_x64(True):
    for rough in (True, False):
      row_kernel.program(problem.form.vector, rows, rough=rough)
  return time.monotonic() - tick


def search(
  problem: Problem,
  starts: starts_lib.Starts,
  seed: int,
  *,
  thin: bool = True,
  advance: Advance = lambda done: None,
) -> tuple[levenberg_marquardt.Solution, np.ndarray]:
  """Solves one group from the best of many starts and from a random sample.

  Args:
    problem: with one group.
    starts: the starts.
    seed: of the audited sample.
    thin: whether to solve from the best and the sample only.
    advance: called with the number of starts that have just been processed.

  Returns:
    The solutions, and which of them are the random sample, bool.
  """
  n = starts.count
  few = not thin or n <= FOLLOWED + AUDITED
  rng = np.random.default_rng(seed)
  sample = np.sort(rng.choice(n, n if few else AUDITED, replace=False))
  theta = starts.at(sample)
  if not few:
    theta = np.concatenate([theta, _thinned(problem, starts, advance).theta])
  theta = _rough(problem, _lanes(theta), _LONG * row_kernel.ROUGH_ROUND).theta
  ends = levenberg_marquardt.solve(
    problem, theta, damping=1e-2, least=1e-9, stall=1e-10, iterations=160,
    advance=advance if few else lambda done: None,
  )  # fmt: skip
  return ends, np.arange(len(theta)) < len(sample)


def search_groups(
  problem: Problem,
  starts: starts_lib.Starts,
  extra: np.ndarray,
  *,
  thin: bool = True,
  advance: Advance = lambda done: None,
) -> levenberg_marquardt.Solution:
  """The best end of a multi-start in each group, [groups, ...].

  Args:
    problem: with its groups.
    starts: the same for every group; screened by their objective, then thinned.
    extra: points [m, parameters] from which every group is solved as well.
    thin: whether to thin the starts; otherwise all are solved.
    advance: called with the number of groups that have just ended.
  """
  width = _SCREENED if thin else starts.count
  at_once = max(1, starts_lib.BLOCK * 4 // width)
  best = []
  for first in range(0, len(problem.weights), at_once):
    weights = problem.weights[first : first + at_once]
    part = dataclasses.replace(problem, weights=weights)
    lanes = screened(part, starts, width)
    if thin:
      for keep in (_SCREENED // _SHARE, _LAST):
        lanes = _rough(part, lanes, row_kernel.ROUGH_ROUND)
        lanes = lanes.take(_best(lanes, keep))
    lanes = _rough(part, lanes, 2 * row_kernel.ROUGH_ROUND)
    group = np.concatenate(
      [lanes.group, np.repeat(np.arange(len(weights)), len(extra))]
    )
    ends = levenberg_marquardt.solve(
      part,
      np.concatenate([lanes.theta, np.tile(extra, (len(weights), 1))]),
      group,
      damping=1e-3, least=1e-7, stall=1e-10, iterations=120,
    )  # fmt: skip
    objective = _preferred(part, ends, extra)
    best.append(ends.take(winners(objective, group, len(weights))))
    advance(len(weights))
  return levenberg_marquardt.Solution.join(best)


def warm(
  problem: Problem, theta: np.ndarray, group: np.ndarray, first_delta: float
) -> np.ndarray:
  """Moves points near their group's optimum by rounds of shrinking threshold."""
  lanes = _lanes(theta, group, damping=1e-3)
  for delta in (first_delta, math.sqrt(first_delta * problem.delta)):
    wide = dataclasses.replace(problem, delta=max(delta, problem.delta))
    lanes = _rough(wide, lanes, row_kernel.ROUGH_ROUND)
  return _rough(problem, lanes, row_kernel.ROUGH_ROUND).theta


def settle(
  problem: Problem,
  theta: np.ndarray,
  group: np.ndarray,
  advance: Advance = lambda done: None,
  **options: Any,
) -> levenberg_marquardt.Solution:
  """The best end of each group, [groups, ...].

  A constant that tends to a bound never converges, but the bound itself does:
  where points are at bounds, the others get few iterations, and more only while
  they are below every end of their group that converged.

  Args:
    problem: with its groups.
    theta: points [n, parameters].
    group: of each point, [n]; none lacks a point.
    advance: called with the number of groups that have just ended, about.
    **options: of `levenberg_marquardt.solve`.
  """
  groups = len(problem.weights)
  bounded = _bounded(problem, theta)
  done = 0

  def count(lanes: int) -> None:
    nonlocal done
    before, done = done * groups // len(theta), done + lanes
    advance(done * groups // len(theta) - before)

  if bounded:
    options['iterations'] = _PATIENCE
  ends = levenberg_marquardt.solve(
    problem, theta, group, advance=count, **options
  )
  if bounded:
    lowest = np.full(groups, np.inf)
    settled = ends.converged
    np.minimum.at(lowest, group[settled], ends.objective[settled])
    slow = ~settled & (ends.objective < lowest[group])
    more = levenberg_marquardt.solve(
      problem, ends.theta[slow], group[slow], damping=1e-6
    )
    ends = levenberg_marquardt.Solution.join([ends.take(~slow), more])
    group = np.concatenate([group[~slow], group[slow]])
  objective = _preferred(problem, ends, theta)
  return ends.take(winners(objective, group, groups))


def _bounded(problem: Problem, points: np.ndarray) -> bool:
  """Whether any of points [n, parameters] has a free constant at a bound."""
  return bool((problem.form.at_bounds(points) & problem.free).any())


def _preferred(
  problem: Problem, ends: levenberg_marquardt.Solution, points: np.ndarray
) -> np.ndarray:
  """The objectives by which ends are chosen, [n].

  An end at a bound that is as good is preferred to one that only tends to it.
  """
  if not _bounded(problem, points):
    return ends.objective
  return ends.objective * np.where(ends.converged, 1.0, 1.0 + _TIE)


def winners(
  objective: np.ndarray, group: np.ndarray, groups: int
) -> np.ndarray:
  """Index of the lowest objective of each group, [groups]."""
  order = np.lexsort((objective, group))
  return order[np.searchsorted(group[order], np.arange(groups))]


def _lanes(
  theta: np.ndarray, group: np.ndarray | None = None, damping: float = 1.0
) -> Points:
  n = len(theta)
  return Points(
    theta=theta,
    damping=np.full(n, damping),
    objective=np.full(n, np.inf),
    group=np.zeros(n, int) if group is None else group,
  )


def screened(problem: Problem, starts: starts_lib.Starts, keep: int) -> Points:
  """The starts of each group with the lowest objectives, at most `keep`."""
  groups = np.arange(len(problem.weights))
  block = max(
    1, min(starts_lib.BLOCK, levenberg_marquardt.NUMBERS // len(problem.target))
  )
  pool = _lanes(np.zeros((0, len(problem.free))))
  for first in range(0, starts.count, block):
    theta = starts.block(first, min(first + block, starts.count))
    losses = problem.losses(theta)
    losses = np.where(np.isfinite(losses), losses, 1e30)
    objective = problem.weights @ losses.T
    order = np.argsort(objective, axis=1, kind='stable')[:, :keep]
    lanes = dataclasses.replace(
      _lanes(theta[order.ravel()], np.repeat(groups, order.shape[1])),
      objective=np.take_along_axis(objective, order, axis=1).ravel(),
    )
    pool = Points.join([pool, lanes])
    pool = pool.take(_best(pool, keep))
  return pool


def _thinned(
  problem: Problem, starts: starts_lib.Starts, advance: Advance
) -> Points:
  """The best starts of one group after rounds of more and more iterations."""
  keep = min(max(starts.count // _SHARE, FOLLOWED), _MOST)
  pool = _lanes(np.zeros((0, len(problem.free))))
  for first in range(0, starts.count, starts_lib.BLOCK):
    last = min(first + starts_lib.BLOCK, starts.count)
    lanes = _lanes(starts.block(first, last))
    lanes = _rough(problem, lanes, row_kernel.ROUGH_ROUND)
    pool = Points.join([pool, lanes])
    pool = pool.take(_best(pool, keep))
    advance(last - first)
  rounds = 2
  while len(pool.theta) > FOLLOWED:
    keep = max(keep // _SHARE, FOLLOWED)
    pool = _rough(problem, pool, rounds * row_kernel.ROUGH_ROUND)
    pool = pool.take(_best(pool, keep))
    rounds += 1
  return pool


def _best(lanes: Points, keep: int) -> np.ndarray:
  """Indices of the lowest objectives of each group, at most `keep` of each.

  Ties go to the lowest coordinates: neither order nor blocks decide.
  """
  order = np.lexsort((*lanes.theta.T, lanes.objective, lanes.group))
  group = lanes.group[order]
  rank = np.arange(len(group)) - np.searchsorted(group, group)
  return order[rank < keep]


def _rough(problem: Problem, lanes: Points, iterations: int) -> Points:
  """Rounds of the rough program; objectives that are not finite are inf."""
  form, n = problem.form.vector, len(lanes.theta)
  columns, target, weights, free = problem.padded(np.float32)
  settings = np.array([problem.delta, problem.asymmetry], np.float32)
  width = row_kernel.lanes(form, len(target), rough=True)
  with jax.enable_x64(True):
    program = row_kernel.program(form, len(target), rough=True)

  def work(first: int) -> list[np.ndarray]:
    index = np.minimum(np.arange(first, first + width), n - 1)
    picked = weights[lanes.group[index]]
    state = [
      values[index].astype(np.float32)
      for values in (lanes.theta, lanes.damping)
    ]
    with jax.enable_x64(True):  # of this thread
      for _ in range(iterations // row_kernel.ROUGH_ROUND):
        *state, objective = program(
          columns, target, picked, *state, free, settings
        )
      return [np.asarray(part) for part in (*state, objective)]

  theta, damping, objective = (
    np.concatenate(parts)[:n].astype(float)
    for parts in zip(*cores.in_threads(work, range(0, n, width)), strict=True)
  )
  # Coordinates that are held keep all their digits.
  theta = np.where(problem.free, theta, lanes.theta)
  return Points(
    theta=np.where(np.isfinite(theta), theta, lanes.theta),
    damping=damping,
    objective=np.where(np.isfinite(objective), objective, np.inf),
    group=lanes.group,
  )
