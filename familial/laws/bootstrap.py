"""Cluster bootstrap of a fit: whole runs are resampled.

Pairs bootstrap (Efron 1979) by cluster (Cameron, Gelbach & Miller 2008, section
III): rows of one run share its data and its noise.
"""

from collections.abc import Callable
import dataclasses
import time
from typing import Any

import numpy as np

from familial.core import errors
from familial.core import estimate
from familial.core import text
from familial.laws import estimation
from familial.laws import fit_record
from familial.laws import levenberg_marquardt
from familial.laws import multistart as starts_lib
from familial.laws import parametric
from familial.laws import screening
from familial.laws import table as tables

RESAMPLES = 1000
_MANY_FAILED = 0.05
_FEW_RUNS = 10  # fewer do not show how runs differ
_WEIGHTS = 2**25  # of rows in resamples, in memory at once
_FIRST_DELTA = 0.3  # of the robust scale
_NEAR = 1.1  # objective of another basin over the optimum's, before refitting


@text.brief
@dataclasses.dataclass(frozen=True)
class Bootstrap:
  """Percentile intervals of a fit's constants.

  `samples` holds the constants of every resample that did not fail, by name.
  """

  intervals: dict[str, fit_record.Resampled]
  samples: dict[str, np.ndarray]
  level: float
  unit: str
  resamples: int
  failed: int
  flags: tuple[str, ...]
  seconds: float

  @property
  def representative(self) -> bool:
    """Whether enough resamples converged for intervals."""
    return fit_record.representative(self.resamples, self.failed)

  def spans(self, fit: estimation.Fit, *names: str) -> bool:
    """Whether quantities that depend on these columns anywhere have intervals."""
    return self.representative and not fit.span.lacks(*names)

  def determined(self, fit: estimation.Fit) -> dict[str, np.ndarray]:
    """The samples, NaN for constants that they do not determine."""
    return {
      name: values
      if self.representative and name not in fit.span.confounded
      else np.full_like(values, np.nan)
      for name, values in self.samples.items()
    }

  def theta(self, form: parametric.Form) -> np.ndarray:
    """The samples as coordinates, [resamples, parameters]."""
    return form.coordinates_of(self.samples)


def bootstrap(
  fit: estimation.Fit,
  table: tables.Table,
  *,
  resamples: int = RESAMPLES,
  starts: int = 0,
  level: float = estimate.LEVEL,
  seed: int = 0,
  advance: Callable[[int], Any] = lambda done: None,
) -> Bootstrap:
  """Refits resamples of whole runs, drawn with replacement.

  Each resample is solved from the optimum and from the best points of other
  basins whose objective on the resampled rows is near the optimum's; the lowest
  objective counts. Fixed parameters stay fixed. A resample fails if it does not
  converge, or if its rows do not identify the parameters.

  Args:
    fit: of this table.
    table: the rows.
    resamples: number of resamples.
    starts: number of further initialisations for each resample, thinned; 0 for
      the warm start only.
    level: of the percentile intervals.
    seed: of the draws.
    advance: called with the number of refits that have just ended.
  """
  check(resamples, starts, level)
  runs = int(table.clusters.max()) + 1
  if runs < 2 and resamples:
    raise errors.UserError(
      f'the {table.rows} rows are all of one run, which leaves nothing to'
      ' resample; cluster=row takes each row by itself'
    )
  tick = time.monotonic()
  rng = np.random.default_rng(seed)
  points = estimation.starting_points(fit, table.columns)
  block = max(1, _WEIGHTS // table.rows)
  refits = []
  for first in range(0, resamples, block):
    weights = cluster_weights(table, min(block, resamples - first), rng)
    problem = fit.problem(table, weights)
    if starts:
      drawn = starts_lib.draw(fit.form, starts, seed)
      drawn = starts_lib.holding(drawn, fit.form, fit.fixed)
      ends = screening.search_groups(problem, drawn, points, advance=advance)
    else:
      ends = refit(fit, problem, advance)
    refits.append(ends.theta[ends.converged & _determined(fit, table, weights)])
  theta = np.concatenate([np.zeros((0, len(fit.theta))), *refits])
  samples = fit.form.values(theta)
  failed = resamples - len(theta)
  flags = []
  if failed > _MANY_FAILED * resamples:
    flags.append(f'{failed} of {resamples} resamples failed')
  if not resamples:
    flags.append('no intervals by resampling: 0 resamples')
  elif runs < _FEW_RUNS:
    flags.append(f'the intervals are too narrow: only {runs} runs to resample')
  if resamples and (resamples - failed) * (1 - level) / 2 < 1:
    flags.append(
      f'{resamples - failed} resamples are too few for {level:.0%} intervals'
    )
  result = Bootstrap(
    intervals={},
    samples=samples,
    level=level,
    unit=table.unit,
    resamples=resamples,
    failed=failed,
    flags=tuple(flags),
    seconds=time.monotonic() - tick,
  )
  intervals = {
    name: interval(fit.params[name], values, level)
    for name, values in result.determined(fit).items()
  }
  return dataclasses.replace(result, intervals=intervals)


def check(resamples: int, starts: int, level: float) -> None:
  """Checks the settings of a bootstrap before anything is fitted.

  Raises:
    UserError: if one is out of bounds.
  """
  if resamples < 0 or resamples == 1 or starts < 0 or not 0 < level < 1:
    raise errors.UserError(
      f'resamples={resamples}, starts={starts}, level={level}: 0 or at least 2,'
      ' at least 0, and within (0, 1)'
    )


def refit(
  fit: estimation.Fit,
  problem: levenberg_marquardt.Problem,
  advance: Callable[[int], Any],
) -> levenberg_marquardt.Solution:
  """Solves each resample from the optimum, its edges and the basins near it."""
  n, form = len(problem.weights), fit.form
  points = estimation.starting_points(fit, problem.columns)
  basins = 1 + len(fit.others)
  first_delta = _FIRST_DELTA * fit.scale
  before = problem.weights @ problem.losses(points).T
  near = before <= before[:, :1] * _NEAR
  near[:, 0] = near[:, basins:] = True
  group, point = np.nonzero(near)
  theta = screening.warm(problem, points[point], group, first_delta)
  theta = np.where(form.at_bounds(points[point]), points[point], theta)
  # Other basins are solved only where they are no worse after the warm rounds.
  reached = problem.objective(theta, group)
  best = np.full(n, np.inf)
  np.minimum.at(best, group, reached)
  solved = (point == 0) | (point >= basins) | (reached <= best[group])
  return screening.settle(
    problem, theta[solved], group[solved], advance, first_delta=first_delta,
    damping=1e-6,
  )  # fmt: skip


def cluster_weights(
  table: tables.Table, resamples: int, seed: int | np.random.Generator
) -> np.ndarray:
  """The multiplicity of each row in each resample, [resamples, rows]."""
  clusters = table.clusters
  runs = int(clusters.max()) + 1
  rng = np.random.default_rng(seed)
  counts = rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples)
  return counts[:, clusters].astype(np.float64)


def _determined(
  fit: estimation.Fit, table: tables.Table, weights: np.ndarray
) -> np.ndarray:
  """Whether each resample identifies the parameters, bool [resamples].

  It needs more distinct rows than parameters, and columns that vary where they
  vary in the table.
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


def interval(
  value: float, values: np.ndarray, level: float
) -> fit_record.Resampled:
  """A value with the percentile interval of its resamples [n].

  No interval if one of them is not finite (Efron & Tibshirani 1993, section 13.3).
  """
  if len(values) < 2 or not np.isfinite(values).all():
    return fit_record.Resampled(value)
  tail = (1 - level) / 2
  lo, hi = np.quantile(values, [tail, 1 - tail])
  return fit_record.Resampled(
    value, float(lo), float(hi), float(np.std(values, ddof=1))
  )
