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
from familial.core import text
from familial.laws import asymptotics
from familial.laws import diagnostics
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
ROUNDING = 1e-20  # objective a row below which the fit is exact
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
      exceeds 1 (a factor e), or where the prediction does not depend on it.
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

  @property
  def sd(self) -> dict[str, float]:
    """Asymptotic standard deviation of each coordinate."""
    sd = np.sqrt(np.diag(self.covariance))
    return dict(zip(self.form.names, sd.tolist(), strict=True))

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
  limit = polished.objective[0] * (1 + SAME_BASIN) + ROUNDING * table.rows
  hit = ends.objective <= limit
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
    others=_others(ends, hit),
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


def _describe(
  problem: levenberg_marquardt.Problem,
  table: tables.Table,
  polished: levenberg_marquardt.Solution,
  *,
  basin_hit_rate: float,
  **search: Any,
) -> Fit:
  """The fit at an optimum: conditioning, covariance, criteria and flags."""
  form, free, delta = problem.form, problem.free, problem.delta
  theta = polished.theta[0]
  objective = float(polished.objective[0])
  converged = bool(polished.converged[0]) or objective <= ROUNDING * table.rows
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
  condition, _ = asymptotics.conditioning(jacobian)
  known = np.sqrt(np.diag(covariance)) <= IDENTIFIED_SD
  identified = dict(zip(form.names, known.tolist(), strict=True))
  params = {n: float(v) for n, v in form.values(theta).items()}
  parameters = int(free.sum())
  aic, bic = asymptotics.criteria(
    objective, table.weight, parameters, delta, problem.asymmetry
  )
  flags = [
    *diagnostics.of_law(form, params, identified, table),
    *diagnostics.of_rows(form, table, residual),
  ]
  if not converged:
    flags.append('not converged')
  if basin_hit_rate < _LOW_HIT_RATE:
    flags.append(f'basin hit rate {basin_hit_rate:.1%}')
  if not condition < _ILL_CONDITIONED:
    flags.append(f'condition number {condition:.1e}')
  return Fit(
    form=form,
    params=params,
    theta=theta,
    free=free,
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
    degrees=max(len(np.unique(table.run)) - parameters, 1),
    aic=float(aic),
    bic=float(bic),
    **search,
  )
