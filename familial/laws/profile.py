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
import itertools
import math

import numpy as np
from scipy import special

from familial.core import estimate as estimate_lib
from familial.laws import estimation
from familial.laws import fit_record
from familial.laws import levenberg_marquardt
from familial.laws import parametric
from familial.laws import screening
from familial.laws import table as tables

_HALF = 12  # grid points each side
_WIDENINGS = 4
_REFINEMENTS = (
  2  # where the deviance passes the cut-off by this factor at once:
)
_STEEP, _BETWEEN = 1.5, 6


def profile(
  form: parametric.Form,
  table: tables.Table,
  fit: estimation.Fit,
  name: str,
  *,
  level: float = estimate_lib.LEVEL,
) -> tuple[fit_record.Profile, np.ndarray]:
  """Refits the form with the parameter held at each point of a grid.

  The grid widens until the deviance passes the cut-off on both sides; a side on
  which it never does is flat, and that end of the interval is None, or the
  parameter's bound where the deviance is below the cut-off there, as at E = 0.

  Returns:
    The profile, and the coordinates of the refit of lowest objective.
  """
  j = form.index(name)
  parameter = form.parameters[j]
  cutoff = estimate_lib.quantile(fit.degrees, level) ** 2
  # A parameter that is not identified is profiled over the span of its grid.
  start = 1.6 * math.sqrt(cutoff) * fit.sd[name]
  start = min(start, float(np.ptp(parameter.grid)) or 1.0) or 1e-9
  if fit.objective <= levenberg_marquardt.ROUNDING * fit.rows:
    start = max(start, 1e-6)  # nearer, rounding hides the rise
  centre = fit.theta[j]
  at_bound = {int(math.copysign(1, x)): x for x in fit.bounds(j, cutoff)}
  if centre in at_bound.values():
    centre = estimation.entry(fit, table.columns, fit.theta, j)
  trace = _Trace(table, fit, j)
  wanted = np.array(
    [] if parameter.null is None
    else [parameter.transform.to_coordinate(parameter.null)]
  )  # fmt: skip
  reach = {-1: start, 1: start}
  open_sides: tuple[int, ...] = (-1, 1)
  span = float(np.ptp(parameter.grid))
  for widening in itertools.count(1):
    new = [
      centre + side * reach[side] * np.arange(1, _HALF + 1) / _HALF
      for side in open_sides
    ]
    trace.add(np.concatenate([[centre], wanted, *new]))
    open_sides = tuple(
      side
      for side in open_sides
      if side not in at_bound
      and trace.crossed(side, centre, cutoff) is None
      and (widening <= _WIDENINGS or reach[side] < span)
    )
    if not open_sides:
      break
    for side in open_sides:
      reach[side] *= 2
  for _ in range(_REFINEMENTS):
    # Where the deviance jumps, as beside E = 0, it is no parabola.
    crossed = [trace.crossed(side, centre, cutoff) for side in (-1, 1)]
    steep = [
      np.linspace(inner, outer, _BETWEEN + 2)[1:-1]
      for inner, outer in filter(None, crossed)
      if trace.at(outer) > _STEEP * cutoff and trace.at(outer) < np.inf
    ]
    if steep:
      trace.add(np.concatenate(steep))
  x, deviance = trace.x, trace.deviance
  flags = []
  if deviance.min() < -1e-3:
    flags.append(f'the profile of {name} found a better optimum')
  sides = [
    at_bound.get(side, trace.crossing(side, centre, cutoff)) for side in (-1, 1)
  ]
  if None in sides:
    flags.append(f'the profile of {name} is flat')
  lo, hi = (
    None if end is None else float(parameter.transform.to_value(end))
    for end in sides
  )
  p_value = None
  if parameter.null is not None:
    at_null = max(float(deviance[x == wanted[0]][0]), 0.0)
    p_value = float(2 * special.stdtr(fit.degrees, -math.sqrt(at_null)))
  record = fit_record.Profile(
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
  return record, trace.theta[int(np.argmin(deviance))]


class _Trace:
  """The deviance with one coordinate held, at ascending values of it.

  Attributes:
    x: the coordinate, [points].
    deviance: of the best refit there, [points].
    theta: coordinates of these refits, [points, parameters].
  """

  def __init__(self, table: tables.Table, fit: estimation.Fit, j: int):
    self._table, self._fit, self._j = table, fit, j
    self.x, self.deviance = np.zeros(0), np.zeros(0)
    self.theta = np.zeros((0, len(fit.theta)))

  def add(self, x: np.ndarray) -> None:
    """Refits with the coordinate held at each of x that is new."""
    x = np.setdiff1d(x, self.x)
    ends = _refits(self._table, self._fit, self._j, x)
    deviance = _deviance(self._fit, self._j, x, ends.objective)
    self.x = np.append(self.x, x)
    order = np.argsort(self.x)
    self.x = self.x[order]
    self.deviance = np.append(self.deviance, deviance)[order]
    self.theta = np.concatenate([self.theta, ends.theta])[order]

  def at(self, x: float) -> float:
    """The deviance at one of the points."""
    return float(self.deviance[self.x == x][0])

  def crossed(
    self, side: int, centre: float, cutoff: float
  ) -> tuple[float, float] | None:
    """The points on a side between which the deviance first passes the cut-off."""
    on_side = np.flatnonzero(side * (self.x - centre) >= 0)[::side]
    above = np.flatnonzero(self.deviance[on_side] > cutoff)
    if not len(above) or not above[0]:
      return None
    inner, outer = self.x[on_side[above[0] - 1 : above[0] + 1]]
    return float(inner), float(outer)

  def crossing(self, side: int, centre: float, cutoff: float) -> float | None:
    """Where that is, interpolated.

    Linear in the square root of the deviance, which is straight for a parabola.
    """
    found = self.crossed(side, centre, cutoff)
    if found is None:
      return None
    inner, outer = found
    low, high = (math.sqrt(max(self.at(x), 0.0)) for x in found)
    share = (math.sqrt(cutoff) - low) / (high - low) if high < np.inf else 0.0
    return inner + share * (outer - inner)


def _refits(
  table: tables.Table, fit: estimation.Fit, j: int, x: np.ndarray
) -> levenberg_marquardt.Solution:
  """The optimum with coordinate j held at each of x, from several starts each."""
  _, jacobian = levenberg_marquardt.evaluate(
    fit.form, table.columns, fit.theta[None]
  )
  along = _direction(jacobian[0], j, fit.free)
  starts = np.stack(
    [
      fit.theta + np.outer(x - fit.theta[j], along),
      *(
        np.tile(point, (len(x), 1))
        for point in estimation.starting_points(fit, table.columns)
      ),
    ]
  )
  starts[:, :, j] = x
  free = fit.free.copy()
  free[j] = False
  weights = np.ones((len(x), fit.rows))
  return screening.settle(
    dataclasses.replace(fit.problem(table, weights), free=free),
    starts.reshape(-1, len(fit.theta)),
    np.tile(np.arange(len(x)), len(starts)),
    first_delta=0.3 * fit.scale,
    damping=1e-2,
  )


def _deviance(
  fit: estimation.Fit, j: int, x: np.ndarray, objective: np.ndarray
) -> np.ndarray:
  """Deviance of objectives with coordinate j held at each of x; 0 at the optimum."""
  if 0 < fit.inflation[j] < np.inf:
    deviance = 2 * (objective - fit.objective) / fit.inflation[j]
  else:
    # Without residuals any rise is beyond doubt; without effect there is none.
    rises = objective > fit.objective * (1 + 1e-9) + 1e-20
    deviance = np.where(rises, np.inf, 0.0)
  return np.where(x == fit.theta[j], 0.0, deviance)


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
