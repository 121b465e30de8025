"""Bootstrap of a fit by run: exits of one run share its data and its luck."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import time
from typing import Any

import numpy as np

from familial import errors
from familial.laws import fit as fits
from familial.laws import solver
from familial.laws import table as tables

RESAMPLES = 1000
LEVEL = 0.95
_MANY_FAILED = 0.05
_LOOK = 16  # iterations from another basin, before it is known to be near
_PROMISING = 0.999  # of the objective from the optimum: goes on
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
  """Percentile intervals of a fit's constants and of what derives from them.

  `samples` holds the constants of every resample that did not fail, by name.
  """

  intervals: dict[str, Interval]
  derived: dict[str, Interval]
  samples: dict[str, np.ndarray]
  level: float
  unit: str
  resamples: int
  failed: int
  flags: tuple[str, ...]
  seconds: float


def bootstrap(
  fit: fits.Fit,
  table: tables.Table,
  *,
  resamples: int = RESAMPLES,
  level: float = LEVEL,
  seed: int = 0,
  advance: Callable[[int], Any] = lambda done: None,
) -> Bootstrap:
  """Refits resamples of whole runs, drawn with replacement.

  Each resample starts from the optimum, and from the best points of other
  basins that the fit found where those come near it on the resampled rows; it
  keeps the lowest objective. What the fit held fixed stays fixed. One fails if
  it does not converge, or if its rows cannot tell the parameters apart.

  Args:
    fit: of this table.
    table: the rows.
    resamples: how many.
    level: of the percentile intervals.
    seed: of the draws.
    advance: called with the number of refits that have just ended.
  """
  if resamples < 2 or not 0 < level < 1:
    raise errors.UserError(
      f'resamples={resamples}, level={level}: at least 2, and within (0, 1)'
    )
  tick = time.monotonic()
  weights = _weights(table, resamples, seed)
  theta, converged = _refit(fit, table, weights, advance)
  good = converged & _determined(fit, table, weights)
  samples = fit.form.values(theta[good])
  failed = int(resamples - good.sum())
  flags = []
  if failed > _MANY_FAILED * resamples:
    flags.append(f'{failed} of {resamples} resamples failed')
  derived = {
    name: np.asarray(function(samples))
    for name, function in fit.form.derived.items()
  }
  return Bootstrap(
    intervals=_intervals(samples, level),
    derived=_intervals(derived, level),
    samples=samples,
    level=level,
    unit=table.unit,
    resamples=resamples,
    failed=failed,
    flags=tuple(flags),
    seconds=time.monotonic() - tick,
  )


def _refit(
  fit: fits.Fit,
  table: tables.Table,
  weights: np.ndarray,
  advance: Callable[[int], Any],
) -> tuple[np.ndarray, np.ndarray]:
  """Coordinates [resamples, parameters] and whether each has converged."""
  target = np.log(table.columns['loss'])
  n = len(weights)

  def refit(
    theta: np.ndarray, resample: np.ndarray, **options: Any
  ) -> solver.Solution:
    return solver.solve(
      fit.form, table.columns, theta, target[None], weights,
      delta=fit.delta, first_delta=_FIRST_DELTA * fit.scale,
      weight_of=resample, free=fit.free, damping=1e-3, **options,
    )  # fmt: skip

  ends = refit(np.tile(fit.theta, (n, 1)), np.arange(n), advance=advance)
  theta, objective = ends.theta.copy(), ends.objective.copy()
  converged = ends.converged.copy()
  points = (fit.theta, *fit.others)
  prediction = np.concatenate(
    [
      solver.evaluate(fit.form, table.columns, point[None])[0]
      for point in points
    ]
  )
  before = weights @ solver.huber(prediction - target, fit.delta).T
  resample, other = np.nonzero(before[:, 1:] <= before[:, :1] * _NEAR)
  if len(resample):
    # A look from the other basins first: few of them win.
    looks = refit(fit.others[other], resample, iterations=_LOOK)
    wins = looks.objective < objective[resample] * _PROMISING
    resample = resample[wins]
    ends = refit(looks.theta[wins], resample)
    for i, lane in enumerate(resample):
      if ends.objective[i] < objective[lane]:
        theta[lane], objective[lane] = ends.theta[i], ends.objective[i]
        converged[lane] = ends.converged[i]
  return theta, converged


def _weights(table: tables.Table, resamples: int, seed: int) -> np.ndarray:
  """How often each row is in each resample, [resamples, rows]."""
  clusters = table.clusters
  runs = int(clusters.max()) + 1
  rng = np.random.default_rng(seed)
  counts = rng.multinomial(runs, np.full(runs, 1 / runs), size=resamples)
  return counts[:, clusters].astype(np.float64)


def _determined(
  fit: fits.Fit, table: tables.Table, weights: np.ndarray
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


def _intervals(
  samples: Mapping[str, np.ndarray], level: float
) -> dict[str, Interval]:
  tail = (1 - level) / 2
  intervals = {}
  for name, values in samples.items():
    if len(values) < 2:
      intervals[name] = Interval(np.nan, np.nan, np.nan)
      continue
    lo, hi = np.quantile(values, [tail, 1 - tail])
    intervals[name] = Interval(float(np.std(values, ddof=1)), lo, hi)
  return intervals
