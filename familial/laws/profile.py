"""Profile likelihood of one parameter (Venzon & Moolgavkar 1988).

The deviance is 2 (S(x) - S_min) / inflation, S(x) the best objective with the
parameter held at x. The inflation (`estimation.Fit.inflation`) is the parameter's
variance, clustered by run, times the curvature of the objective: Huber's sum is
not a log likelihood, and rows of one run are not independent. For a parabolic
objective the interval is x +- t sd. The cut-off is the square of Student's t for
the level with `degrees` = runs - parameters, which tends to chi-squared's 3.84
for many runs.
"""

import dataclasses
import math

import numpy as np
from scipy import special

from familial.core import estimate as estimate_lib
from familial.laws import estimation
from familial.laws import fit_record
from familial.laws import levenberg_marquardt
from familial.laws import parametric
from familial.laws import table as tables

_HALF = 12  # grid points each side
_WIDENINGS = 4


def profile(
  form: parametric.Form,
  table: tables.Table,
  fit: estimation.Fit,
  name: str,
  *,
  level: float = estimate_lib.LEVEL,
) -> fit_record.Profile:
  """Refits the form with the parameter held at each point of a grid.

  The grid widens until the deviance passes the cut-off on both sides; a side on
  which it never does is flat, and that end of the interval is None.
  """
  j = form.index(name)
  parameter = form.parameters[j]
  cutoff = estimate_lib.quantile(fit.degrees, level) ** 2
  # A parameter that is not identified is profiled over the span of its grid.
  start = 1.6 * math.sqrt(cutoff) * fit.sd[name]
  start = min(start, float(np.ptp(parameter.grid)) or 1.0) or 1e-9
  if fit.objective <= estimation.ROUNDING * fit.rows:
    start = max(start, 1e-6)  # nearer, rounding hides the rise
  x = np.array([fit.theta[j]])
  deviance = np.zeros(1)
  wanted = np.array(
    [] if parameter.null is None
    else [parameter.transform.to_coordinate(parameter.null)]
  )  # fmt: skip
  reach = {-1: start, 1: start}
  open_sides: tuple[int, ...] = (-1, 1)
  for _ in range(1 + _WIDENINGS):
    new = [
      fit.theta[j] + side * reach[side] * np.arange(1, _HALF + 1) / _HALF
      for side in open_sides
    ]
    added = np.setdiff1d(np.concatenate([wanted, *new]), x)
    x = np.append(x, added)
    deviance = np.append(deviance, _deviance(table, fit, j, added))
    order = np.argsort(x)
    x, deviance = x[order], deviance[order]
    open_sides = tuple(
      side
      for side in open_sides
      if not (deviance[side * (x - fit.theta[j]) > 0] > cutoff).any()
    )
    if not open_sides:
      break
    for side in open_sides:
      reach[side] *= 2
  flags = []
  if deviance.min() < -1e-3:
    flags.append(f'the profile of {name} found a better optimum')
  ends = {
    side: _crossing(side, x, deviance, fit.theta[j], cutoff) for side in (-1, 1)
  }
  if None in ends.values():
    flags.append(f'the profile of {name} is flat')
  lo, hi = (
    None if end is None else float(parameter.transform.to_value(end))
    for end in (ends[-1], ends[1])
  )
  p_value = None
  if parameter.null is not None:
    at_null = max(float(deviance[x == wanted[0]][0]), 0.0)
    p_value = float(2 * special.stdtr(fit.degrees, -math.sqrt(at_null)))
  return fit_record.Profile(
    name=name,
    values=np.asarray(parameter.transform.to_value(x)),
    deviance=np.maximum(deviance, 0.0),
    cutoff=cutoff,
    lo=lo,
    hi=hi,
    level=level,
    null=parameter.null,
    p_value=p_value,
    flags=tuple(flags),
  )


def _deviance(
  table: tables.Table,
  fit: estimation.Fit,
  j: int,
  x: np.ndarray,
) -> np.ndarray:
  """Deviance with coordinate j held at each of x, from several starts each."""
  if not len(x):
    return np.zeros(0)
  _, jacobian = levenberg_marquardt.evaluate(
    fit.form, table.columns, fit.theta[None]
  )
  along = _direction(jacobian[0], j, fit.free)
  starts = np.stack(
    [
      fit.theta + np.outer(x - fit.theta[j], along),
      *(np.tile(point, (len(x), 1)) for point in (fit.theta, *fit.others)),
    ]
  )
  starts[:, :, j] = x
  free = fit.free.copy()
  free[j] = False
  ends = levenberg_marquardt.solve(
    dataclasses.replace(fit.problem(table, np.ones((1, fit.rows))), free=free),
    starts.reshape(-1, len(fit.theta)),
    first_delta=0.3 * fit.scale,
    damping=1e-2,
  )
  best = ends.objective.reshape(len(starts), -1).min(0)
  if not 0 < fit.inflation[j] < np.inf:
    # Without residuals any rise is beyond doubt; without effect there is none.
    return np.where(best > fit.objective * (1 + 1e-9) + 1e-20, np.inf, 0.0)
  return 2 * (best - fit.objective) / fit.inflation[j]


def _direction(jacobian: np.ndarray, j: int, free: np.ndarray) -> np.ndarray:
  """How the free coordinates follow coordinate j, which moves by 1."""
  rest = free.copy()
  rest[j] = False
  along = np.zeros(len(free))
  along[j] = 1.0
  along[rest] = -np.linalg.lstsq(jacobian[:, rest], jacobian[:, j], rcond=None)[
    0
  ]
  return along


def _crossing(
  side: int, x: np.ndarray, deviance: np.ndarray, centre: float, cutoff: float
) -> float | None:
  """Where the deviance first passes the cut-off on a side, interpolated.

  Linear in the square root of the deviance, which is straight for a parabola.
  """
  on_side = side * (x - centre) >= 0
  distance = np.abs(x[on_side] - centre)
  order = np.argsort(distance)
  distance = distance[order]
  root = np.sqrt(np.maximum(deviance[on_side][order], 0.0))
  above = np.flatnonzero(root > math.sqrt(cutoff))
  if not len(above):
    return None
  i = int(above[0])
  low, high = root[i - 1], root[i]
  share = (math.sqrt(cutoff) - low) / (high - low) if high < np.inf else 0.0
  return centre + side * float(
    distance[i - 1] + share * (distance[i] - distance[i - 1])
  )
