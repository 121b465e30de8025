"""Bootstrap of a fit by run: exits of one run share its data and its luck."""

from collections.abc import Callable
import dataclasses
import time
from typing import Any

import numpy as np

from familial.core import errors
from familial.laws import estimation
from familial.laws import levenberg_marquardt
from familial.laws import multistart as starts_lib
from familial.laws import parametric
from familial.laws import screening
from familial.laws import table as tables

RESAMPLES = 1000
LEVEL = 0.95
_MANY_FAILED = 0.05
_FEW_RUNS = 10  # fewer do not show how runs differ
_WEIGHTS = 2**25  # of rows in resamples, in memory at once
_FIRST_DELTA = 0.3  # of the robust scale
_NEAR = 1.1  # objective of another basin over the optimum's, before refitting


@dataclasses.dataclass(frozen=True)
class Interval:
  """Spread of one number over the resamples that did not fail."""

  sd: float
  lo: float
  hi: float


@dataclasses.dataclass(frozen=True)
class Bootstrap:
  """Percentile intervals of a fit's constants.

  `samples` holds the constants of every resample that did not fail, by name.
  """

  intervals: dict[str, Interval]
  samples: dict[str, np.ndarray]
  level: float
  unit: str
  resamples: int
  failed: int
  flags: tuple[str, ...]
  seconds: float

  def theta(self, form: parametric.Form) -> np.ndarray:
    """The samples as coordinates, [resamples, parameters]."""
    with np.errstate(divide='ignore'):  # E of 0
      return np.stack(
        [p.transform.to_coordinate(self.samples[p.name]) for p in form.parameters],
        axis=1,
      )  # fmt: skip


def bootstrap(
  fit: estimation.Fit,
  table: tables.Table,
  *,
  resamples: int = RESAMPLES,
  starts: int = 0,
  level: float = LEVEL,
  seed: int = 0,
  advance: Callable[[int], Any] = lambda done: None,
) -> Bootstrap:
  """Refits resamples of whole runs, drawn with replacement.

  Each resample starts from the optimum, and from the best points of other
  basins that the fit found where those come near it on the resampled rows; it
  keeps the lowest objective. What the fit held fixed stays fixed. One fails if
  it does not converge, or if its rows cannot tell the parameters apart.

  With `starts`, each resample is searched from these as well: what a warm start
  would miss where a resample has its optimum in a basin of its own.

  Args:
    fit: of this table.
    table: the rows.
    resamples: how many.
    starts: of a multi-start of its own for each resample, thinned as it goes;
      0 for the warm start alone.
    level: of the percentile intervals.
    seed: of the draws.
    advance: called with the number of refits that have just ended.
  """
  if resamples < 2 or starts < 0 or not 0 < level < 1:
    raise errors.UserError(
      f'resamples={resamples}, starts={starts}, level={level}: at least 2, at '
      'least 0, and within (0, 1)'
    )
  runs = int(table.clusters.max()) + 1
  if runs < 2:
    raise errors.UserError(
      f'the {table.rows} rows are all of one run, which leaves nothing to'
      ' resample; cluster=row takes each row by itself'
    )
  tick = time.monotonic()
  rng = np.random.default_rng(seed)
  points = np.concatenate([fit.theta[None], fit.others])
  block = max(1, _WEIGHTS // table.rows)
  found = []
  for first in range(0, resamples, block):
    weights = _weights(table, min(block, resamples - first), rng)
    problem = fit.problem(table, weights)
    if starts:
      drawn = starts_lib.draw(fit.form, starts, seed)
      drawn = starts_lib.holding(drawn, fit.form, fit.fixed)
      ends = screening.search_groups(problem, drawn, points, advance=advance)
    else:
      ends = _refit(fit, problem, advance)
    found.append(ends.theta[ends.converged & _determined(fit, table, weights)])
  theta = np.concatenate(found)
  samples = fit.form.values(theta)
  failed = resamples - len(theta)
  flags = []
  if failed > _MANY_FAILED * resamples:
    flags.append(f'{failed} of {resamples} resamples failed')
  if runs < _FEW_RUNS:
    flags.append(f'the intervals are too narrow: only {runs} runs to resample')
  if (resamples - failed) * (1 - level) / 2 < 1:
    flags.append(
      f'{resamples - failed} resamples are too few for {level:.0%} intervals'
    )
  return Bootstrap(
    intervals={n: interval(values, level) for n, values in samples.items()},
    samples=samples,
    level=level,
    unit=table.unit,
    resamples=resamples,
    failed=failed,
    flags=tuple(flags),
    seconds=time.monotonic() - tick,
  )


def _refit(
  fit: estimation.Fit,
  problem: screening.Problem,
  advance: Callable[[int], Any],
) -> levenberg_marquardt.Solution:
  """Each resample's best end, from the optimum and from other basins near it."""
  n = len(problem.weights)
  points = np.concatenate([fit.theta[None], fit.others])
  first_delta = _FIRST_DELTA * fit.scale
  prediction = levenberg_marquardt.predict(fit.form, problem.columns, points)
  before = (
    problem.weights
    @ levenberg_marquardt.penalty(
      prediction - problem.target, fit.delta, fit.asymmetry
    ).T
  )
  near = before <= before[:, :1] * _NEAR
  near[:, 0] = True
  group, point = np.nonzero(near)
  theta = screening.warm(problem, points[point], group, first_delta)
  # Of another basin, only what is still ahead is followed to the end.
  reached = problem.objective(theta, group)
  best = np.full(n, np.inf)
  np.minimum.at(best, group, reached)
  first, other = point == 0, (point > 0) & (reached <= best[group])
  options: dict[str, Any] = {'first_delta': first_delta, 'damping': 1e-6}
  ends = problem.solve(theta[first], group[first], advance=advance, **options)
  if other.any():
    also = problem.solve(theta[other], group[other], **options)
    ends = levenberg_marquardt.join([ends, also])
  owner = np.concatenate([group[first], group[other]])
  return ends.take(screening.winners(ends.objective, owner, n))


def _weights(
  table: tables.Table, resamples: int, seed: int | np.random.Generator
) -> np.ndarray:
  """How often each row is in each resample, [resamples, rows]."""
  clusters = table.clusters
  runs = int(clusters.max()) + 1
  rng = np.random.default_rng(seed)
  counts = rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples)
  return counts[:, clusters].astype(np.float64)


def _determined(
  fit: estimation.Fit, table: tables.Table, weights: np.ndarray
) -> np.ndarray:
  """Whether each resample could tell the parameters apart, bool [resamples].

  Needs more distinct rows than parameters, and columns that still vary where
  they vary in the table.
  """
  drawn = weights > 0
  enough = drawn.sum(1) > fit.free.sum()
  for name in fit.form.columns:
    values = table.columns[name]
    if np.ptp(values) > 0:
      high = np.where(drawn, values, -np.inf).max(1)
      low = np.where(drawn, values, np.inf).min(1)
      enough &= high > low
  return enough


def interval(values: np.ndarray, level: float) -> Interval:
  """The percentile interval of resamples [n]; NaN where any is not a number."""
  if len(values) < 2 or not np.isfinite(values).all():
    return Interval(np.nan, np.nan, np.nan)
  tail = (1 - level) / 2
  lo, hi = np.quantile(values, [tail, 1 - tail])
  return Interval(float(np.std(values, ddof=1)), float(lo), float(hi))
