"""Multi-start estimation of a law, with diagnostics of the optimum.

The objective is the *sum* over rows of Huber(log prediction - log loss; delta),
in float64: the third approach of Hoffmann et al. (2022), equation 3. A fit holds
what tells whether to trust it: the share of starts that reach the optimum, the
gradient, the conditioning, and the constants that the data do not identify.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import math
import time
from typing import Any

import numpy as np

from familial.core import errors
from familial.core import estimate
from familial.core import text
from familial.laws import asymptotics
from familial.laws import diagnostics
from familial.laws import fit_record
from familial.laws import levenberg_marquardt
from familial.laws import multistart as starts_lib
from familial.laws import parametric
from familial.laws import screening
from familial.laws import table as tables

STARTS = 256
DELTA = 1e-3
SAME_BASIN = 1e-4  # relative difference of objectives
_LOW_HIT_RATE = 0.05
_ILL_CONDITIONED = 1e10
IDENTIFIED_SD = 1.0  # of a coordinate: a factor e, or 1 in an exponent
_OTHER_BASINS = 2
_TIE = (
  1e-9  # relative difference of objectives below which a bound is the optimum
)
_FIRST_DELTA = (
  0.1  # log residual: far from the optimum with a constant at a bound
)
_BETTER = 1e-6  # relative difference of objectives that makes a better optimum
_POLISHED = 8  # points that are solved in search of one
_MOST_LEVERAGE = 0.95
_MATTERS = 0.3  # of the scale of residuals
_SCANNED = (
  160  # quarters of a coordinate, from the end of the starts to a bound
)
_REACHED = (
  4.0  # deviance, over the cut-off of intervals, that resamples may reach
)
_DISTINCT = 1.05  # ratio of two basins' objectives
_DELTAS = (1e-12, 1e6)


@text.brief
@dataclasses.dataclass(frozen=True)
class Fit:
  """A fitted law.

  Attributes:
    form: the law.
    params: its constants by name.
    theta: its coordinates, [parameters].
    free: which of them were fitted, bool [parameters].
    objective: sum of Huber's function of the log residuals.
    delta: Huber's threshold; inf for least squares.
    asymmetry: weight of a row that the law overpredicts.
    starts: number of initialisations.
    basin_hit_rate: share of starts that end within 1e-4 relative of the best
      objective (or where the residuals are rounding), converged or not; an
      unbiased estimate from a random sample where not all were solved.
    followed: number of starts that were solved.
    converged: whether the gradient, as a cosine
      (levenberg_marquardt.Solution.gradient), is at most 1e-6.
    condition_number: of the Gauss-Newton matrix J'J at the optimum, scaled to
      a unit diagonal, over the coordinates (log A, log B, log E, exponents).
    identified: False where the asymptotic standard deviation of a coordinate
      exceeds 1 (a factor e), where the prediction does not depend on it, or where
      other constants can stand in for it (`span`).
    flags: reasons to doubt the fit.
    rows: number of rows fitted.
    scale: robust standard deviation of the log residuals (scaled MAD).
    covariance: asymptotic, of the coordinates, clustered by run; 0 for those
      that were not fitted. See asymptotics.covariance.
    inflation: factor of each coordinate's variance over the inverse curvature
      of the objective: what turns a rise of the objective into a deviance.
    degrees: runs less fitted parameters, at least 1.
    aic: 2 k - 2 l, l the likelihood of the density exp(-Huber/tau)/Z(tau) at
      its best tau, which k counts. Rows count as independent.
    bic: k log(rows) - 2 l.
    others: coordinates of the next best basins, [.., parameters].
    edges: coordinates of the optima with one more constant at a bound, such as
      E at 0, that resamples of the rows may have; [edges, parameters].
    edge_rise: their objectives above the optimum's, [edges].
    span: what the rows' columns span, outside of which the law is not known.
    seed: of the choice of starts.
    seconds: compile, starts.
  """

  form: parametric.Form
  params: dict[str, float]
  theta: np.ndarray
  free: np.ndarray
  objective: float
  delta: float
  asymmetry: float
  starts: int
  basin_hit_rate: float
  followed: int
  converged: bool
  condition_number: float
  identified: dict[str, bool]
  flags: tuple[str, ...]
  rows: int
  scale: float
  covariance: np.ndarray
  inflation: np.ndarray
  degrees: int
  aic: float
  bic: float
  others: np.ndarray
  edges: np.ndarray
  edge_rise: np.ndarray
  span: fit_record.Span
  seed: int
  seconds: dict[str, float]

  def problem(
    self, table: tables.Table, weights: np.ndarray
  ) -> levenberg_marquardt.Problem:
    """The problem with each row of weights [groups, rows], times the table's."""
    return levenberg_marquardt.Problem(
      self.form, table.columns, np.log(table.columns['loss']),
      weights * table.weight, self.delta, self.asymmetry, self.free,
    )  # fmt: skip

  @property
  def fixed(self) -> dict[str, float]:
    """The parameters that were not fitted."""
    return {
      name: self.params[name]
      for name, free in zip(self.form.names, self.free, strict=True)
      if not free
    }

  def bounds(self, j: int, cutoff: float) -> tuple[float, ...]:
    """The bounds of coordinate j at which the deviance is below a cut-off."""
    limit = cutoff * self.inflation[j] / 2
    points = [self.theta, *self.edges[self.edge_rise <= limit]]
    found = (point[j] for point in points if self.free[j])
    return tuple(
      x for x in found if x in self.form.parameters[j].transform.bounds
    )

  @property
  def sd(self) -> dict[str, float]:
    """Asymptotic standard deviation of each coordinate."""
    sd = np.sqrt(np.diag(self.covariance))
    return dict(zip(self.form.names, sd.tolist(), strict=True))

  def residuals(self, table: tables.Table) -> np.ndarray:
    """Log loss - log prediction of runs like a table's, to which this is fitted.

    Residuals are smaller than the noise of runs: each is divided by the square
    root of 1 - its leverage (Davison & Hinkley 1997, section 6.2.3), and their
    mean is removed.
    """
    moving = self.free & ~self.form.at_bounds(self.theta)
    value, jacobian = levenberg_marquardt.evaluate(
      self.form, table.columns, self.theta[None]
    )
    lengths = np.linalg.norm(jacobian[0][:, moving], axis=0)
    unit = jacobian[0][:, moving] / np.where(lengths > 0, lengths, 1.0)
    basis, _, _ = np.linalg.svd(unit, full_matrices=False)
    leverage = np.minimum((basis**2).sum(1), _MOST_LEVERAGE)
    residual = np.log(table.columns['loss']) - value[0]
    residual /= np.sqrt(1 - leverage)
    return residual - residual.mean()

  def predict(self, columns: Mapping[str, Any]) -> np.ndarray:
    """The loss at these columns, one a row."""
    return self.form.predict(self.params, columns)


def fit(
  form: parametric.Form,
  table: tables.Table,
  *,
  delta: float = DELTA,
  asymmetry: float = 1.0,
  starts: int | np.ndarray = STARTS,
  sampling: str = 'grid',
  thin: bool = True,
  seed: int = 0,
  fixed: Mapping[str, float] | None = None,
  advance: Callable[[int], Any] = lambda done: None,
) -> Fit:
  """Fits a law from many starts; the best is solved to rounding.

  Args:
    form: the law.
    table: the rows.
    delta: Huber's threshold on the log residual; inf for least squares.
    asymmetry: weight of a row that the law overpredicts, over that of one that
      it underpredicts.
    starts: number of initialisations, or their coordinates [n, parameters].
    sampling: of the starts, grid or latin.
    thin: whether to solve from the best starts and a sample only; see screening.
    seed: of the choice of starts.
    fixed: parameters that keep a given value.
    advance: called with the number of starts that have just ended.

  Raises:
    UserError: on a missing column, too few rows, or a form without any finite
      prediction.
  """
  fixed = dict(fixed or {})
  free = np.ones(len(form.names), bool)
  free[[form.index(name) for name in fixed]] = False
  if not free.any():
    raise errors.UserError(
      f'form {form.name!r}: every constant has a given value'
    )
  _check(form, table, int(free.sum()), delta, asymmetry)
  drawn = (
    starts_lib.of_array(starts)
    if isinstance(starts, np.ndarray)
    else starts_lib.draw(form, starts, seed, sampling)
  )
  points = starts_lib.holding(drawn, form, fixed)
  problem = levenberg_marquardt.Problem(
    form, table.columns, np.log(table.columns['loss']), table.weight[None],
    delta, asymmetry, free,
  )  # fmt: skip
  tick = time.monotonic()
  compiling = screening.prepare(problem)
  ends, audited = screening.search(
    problem, points, seed, thin=thin, advance=advance
  )
  best = int(np.argmin(ends.objective))
  if not np.isfinite(ends.objective[best]):
    raise errors.UserError(
      f'form {form.name!r} gave no finite prediction from any of'
      f' {points.count} starts'
    )
  polished = levenberg_marquardt.solve(
    problem, ends.theta[best : best + 1], damping=1e-6, tolerance=1e-13,
    floor=0.0, least=1e-15,
  )  # fmt: skip
  limit = (
    polished.objective[0] * (1 + SAME_BASIN)
    + levenberg_marquardt.ROUNDING * table.rows
  )
  hit = ends.objective <= limit
  others = _others(ends, hit)
  polished, edges = _at_bounds(problem, polished, others)
  seconds = {
    'compile': compiling,
    'starts': time.monotonic() - tick - compiling,
  }
  return _describe(
    problem,
    table,
    polished,
    starts=points.count,
    basin_hit_rate=float(hit[audited].mean()),
    followed=len(hit),
    others=others,
    edges=edges,
    seed=seed,
    seconds=seconds,
  )


def fit_groups(
  form: parametric.Form,
  table: tables.Table,
  weights: np.ndarray,
  *,
  delta: float = DELTA,
  starts: int = STARTS,
  seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
  """Fits a law to many selections of a table's rows at once.

  Args:
    form: the law.
    table: all rows.
    weights: of each row in each group, [groups, rows]; 0 leaves a row out.
    delta: Huber's threshold.
    starts: number of initialisations in each group.
    seed: of the starts.

  Returns:
    Coordinates [groups, parameters], and whether the rows of each group have
    more distinct points than the form has parameters, bool [groups].
  """
  # Rows of weight 0 pad the table to few sizes: each size is compiled.
  more = 2 ** max(6, math.ceil(math.log2(table.rows))) - table.rows
  padded = np.append(np.arange(table.rows), np.zeros(more, int))
  columns = {name: values[padded] for name, values in table.columns.items()}
  problem = levenberg_marquardt.Problem(
    form, columns, np.log(columns['loss']),
    np.pad(weights * table.weight, ((0, 0), (0, more))), delta, 1.0,
    np.ones(len(form.names), bool),
  )  # fmt: skip
  ends = screening.search_groups(
    problem, starts_lib.draw(form, starts, seed), np.zeros((0, len(form.names)))
  )
  points = np.stack([table.columns[name] for name in form.columns], axis=1)
  _, which = np.unique(points, axis=0, return_inverse=True)
  distinct = np.array([len(np.unique(which[row > 0])) for row in weights])
  return ends.theta, distinct > len(form.names)


def _check(
  form: parametric.Form,
  table: tables.Table,
  parameters: int,
  delta: float,
  asymmetry: float,
) -> None:
  if not form.columns or not form.parameters or 'loss' in form.columns:
    raise errors.UserError(
      f'form {form.name!r} must have constants, and columns other than the loss'
    )
  for name in form.columns:
    if name not in table.columns:
      near = errors.nearest(name, table.columns)
      raise errors.UserError(
        f'form {form.name!r} needs column {name!r}{near}; the table has'
        f' {", ".join(table.columns)}'
      )
  if table.rows <= parameters:
    raise errors.UserError(
      f'form {form.name!r} has {parameters} parameters and needs more rows than'
      f' that; the table has {table.rows}'
    )
  points = np.stack([table.columns[name] for name in form.columns], axis=1)
  distinct = len(np.unique(points, axis=0))
  if distinct < parameters:
    raise errors.UserError(
      f'form {form.name!r} has {parameters} parameters and needs as many'
      f' different points; the {table.rows} rows are at {distinct}'
    )
  if not (_DELTAS[0] <= delta <= _DELTAS[1] or delta == math.inf):
    raise errors.UserError(
      f'delta={delta}: a number above 0, from {_DELTAS[0]:g} to'
      f' {_DELTAS[1]:g}, or inf is needed'
    )
  if not 1e-6 <= asymmetry <= 1e6:
    raise errors.UserError(
      f'asymmetry={asymmetry}: a number above 0, from 1e-6 to 1e6, is needed'
    )


def _others(ends: levenberg_marquardt.Solution, hit: np.ndarray) -> np.ndarray:
  """The best points of other basins, from which resamples are solved too."""
  order = np.argsort(ends.objective, kind='stable')
  order = order[~hit[order] & np.isfinite(ends.objective[order])]
  chosen: list[int] = []
  for i in order:
    last = ends.objective[chosen[-1]] if chosen else ends.objective.min()
    if ends.objective[i] > last * _DISTINCT:
      chosen.append(int(i))
    if len(chosen) == _OTHER_BASINS:
      break
  return ends.theta[chosen]


def improved(fit: Fit, table: tables.Table, points: np.ndarray) -> Fit:
  """The fit, or a better one where some of points [n, parameters] leads to it.

  No start of the better one's search reached it, which its hit rate says.
  """
  problem = fit.problem(table, np.ones((1, table.rows)))
  objective = problem.objective(points, np.zeros(len(points), int))
  chosen = points[np.argsort(objective, kind='stable')[:_POLISHED]]
  ends = levenberg_marquardt.solve(
    problem, chosen, damping=1e-6, tolerance=1e-13, floor=0.0, least=1e-15
  )
  best = ends.take(np.argsort(ends.objective, kind='stable')[:1])
  if not len(chosen) or not best.objective[0] < (
    fit.objective * (1 - _BETTER) - levenberg_marquardt.ROUNDING * table.rows
  ):
    return fit
  others = np.concatenate([fit.theta[None], fit.others])[:_OTHER_BASINS]
  best, edges = _at_bounds(problem, best, others)
  return _describe(
    problem, table, best, starts=fit.starts, basin_hit_rate=0.0,
    followed=fit.followed, others=others, edges=edges, seed=fit.seed,
    seconds=fit.seconds,
  )  # fmt: skip


def _at_bounds(
  problem: levenberg_marquardt.Problem,
  optimum: levenberg_marquardt.Solution,
  others: np.ndarray,
) -> tuple[levenberg_marquardt.Solution, levenberg_marquardt.Solution]:
  """The optimum where constants may be at bounds, and those with one more there.

  As E tends to 0, its logarithm has no end, and the solver none to converge to.
  So each constant that has a bound is held there and the others are solved; a
  bound that is as good as any other value becomes the optimum.
  """
  form = problem.form
  while True:
    points = np.concatenate([optimum.theta, others])
    # Those at bounds stay there, or two might take turns for ever.
    points = np.where(form.at_bounds(optimum.theta), optimum.theta, points)
    held = []
    for j, parameter in enumerate(form.parameters):
      for bound in parameter.transform.bounds:
        if problem.free[j] and optimum.theta[0, j] not in (
          parameter.transform.bounds
        ):
          starts = points.copy()
          starts[:, j] = bound
          ends = levenberg_marquardt.solve(
            problem, starts, first_delta=_FIRST_DELTA, damping=1e-2,
            tolerance=1e-13, floor=0.0, least=1e-15,
          )  # fmt: skip
          held.append(ends.take(np.argsort(ends.objective, kind='stable')[:1]))
    edges = levenberg_marquardt.Solution.join(
      [optimum.take(np.zeros(0, int)), *held]
    )
    best = edges.take(np.argsort(edges.objective, kind='stable')[:1])
    if not len(held) or not best.objective[0] <= (
      optimum.objective[0] * (1 + _TIE)
    ):
      return optimum, edges
    optimum = best


def starting_points(fit: Fit, columns: Mapping[str, np.ndarray]) -> np.ndarray:
  """Points [n, parameters] to solve a problem like a fit's from.

  The optimum, the best of other basins, and the edges. No solver moves a constant
  away from a bound, so points with one there come again with that constant where
  it begins to matter.
  """
  points = [fit.theta, *fit.others, *fit.edges]
  for point in [fit.theta, *fit.edges]:
    for j in np.flatnonzero(fit.free & fit.form.at_bounds(point)):
      points.append(point.copy())
      points[-1][j] = entry(fit, columns, point, int(j))
  return np.stack(points)


def entry(
  fit: Fit, columns: Mapping[str, np.ndarray], point: np.ndarray, j: int
) -> float:
  """The coordinate at which constant j, at a bound in a point, begins to matter.

  There the prediction of some row changes by a part of the residuals' scale.
  """
  parameter = fit.form.parameters[j]
  ends = min(parameter.grid), max(parameter.grid)
  away = 1.0 if point[j] < 0 else -1.0
  x = (ends[1] if away > 0 else ends[0]) - away * np.arange(
    _SCANNED, -1, -1
  ) / 4
  theta = np.tile(point, (len(x) + 1, 1))
  theta[1:, j] = x
  log_loss = levenberg_marquardt.predict(fit.form, columns, theta)
  change = np.abs(log_loss[1:] - log_loss[0]).max(1)
  matters = np.flatnonzero(change > max(_MATTERS * fit.scale, 1e-6))
  return float(x[matters[0] if len(matters) else -1])


def _describe(
  problem: levenberg_marquardt.Problem,
  table: tables.Table,
  polished: levenberg_marquardt.Solution,
  *,
  basin_hit_rate: float,
  edges: levenberg_marquardt.Solution,
  **search: Any,
) -> Fit:
  """The fit at an optimum: conditioning, covariance, criteria and flags."""
  form, delta = problem.form, problem.delta
  theta = polished.theta[0]
  free = problem.free & ~form.at_bounds(theta)
  objective = float(polished.objective[0])
  converged = bool(polished.converged[0])
  value, jacobian = levenberg_marquardt.evaluate(
    form, table.columns, polished.theta
  )
  residual = value[0] - problem.target
  jacobian = jacobian[0][:, free]
  weight = table.weight * np.where(residual > 0, problem.asymmetry, 1.0)
  covariance = np.zeros((len(theta), len(theta)))
  inflation = np.zeros(len(theta))
  covariance[np.ix_(free, free)], inflation[free] = asymptotics.covariance(
    jacobian, residual, table.clusters, delta, weight
  )
  # A constant at a bound: no number of deviations leads away from it.
  bound = problem.free & ~free
  covariance[bound, bound] = np.inf
  inflation[bound] = np.median(inflation[free]) if free.any() else np.inf
  condition, _ = asymptotics.conditioning(jacobian)
  known = np.sqrt(np.diag(covariance)) <= IDENTIFIED_SD
  known &= np.ptp(table.columns['loss']) > 0
  span = diagnostics.span(form, table, theta, problem.free)
  known &= ~np.isin(form.names, span.confounded)
  identified = dict(zip(form.names, known.tolist(), strict=True))
  params = {n: float(v) for n, v in form.values(theta).items()}
  parameters = int(problem.free.sum())
  rise, typical = edges.objective - objective, np.median(inflation[free])
  aic, bic = asymptotics.criteria(
    objective, table.weight, parameters, delta, problem.asymmetry
  )
  flags = [
    *diagnostics.of_rows(form, table, residual),
    *diagnostics.of_runs(table, residual),
  ]
  if not converged:
    flags.append('not converged')
  if basin_hit_rate < _LOW_HIT_RATE:
    flags.append(f'basin hit rate {basin_hit_rate:.1%}')
  if not condition < _ILL_CONDITIONED:
    flags.append(f'condition number {condition:.1e}')
  degrees = max(len(np.unique(table.run)) - parameters, 1)
  cutoff = estimate.quantile(degrees) ** 2
  kept = 2 * rise <= _REACHED * cutoff * typical
  result = Fit(
    form=form,
    params=params,
    theta=theta,
    free=problem.free,
    edges=edges.theta[kept],
    edge_rise=rise[kept],
    objective=objective,
    delta=delta,
    asymmetry=problem.asymmetry,
    basin_hit_rate=basin_hit_rate,
    converged=converged,
    condition_number=condition,
    identified=identified,
    flags=tuple(flags),
    rows=table.rows,
    scale=asymptotics.robust_scale(residual, parameters),
    covariance=covariance,
    inflation=inflation,
    degrees=degrees,
    span=span,
    aic=float(aic),
    bic=float(bic),
    **search,
  )
  bounds = {
    name: tuple(
      float(form.parameters[j].transform.to_value(x))
      for x in result.bounds(j, cutoff)
    )
    for j, name in enumerate(form.names)
  }
  law = diagnostics.of_law(form, params, identified, bounds, table)
  return dataclasses.replace(result, flags=(*law, *flags))
