"""Compute-optimal sizes by the three approaches of Hoffmann et al. (2022), section 3.

1. Envelope: the size of the run with the lowest loss at each compute.
2. IsoFLOP: the size at the minimum of each budget's curve of loss against size.
3. Parametric: the minimum of the fitted law at each compute (`frontier.optimum`).

The second takes the shape of a curve from the fitted law: at one budget, log loss
is that of the law plus a level and a tilt in log N of the budget's own. The law
says how the curve bends, the budget's runs say where its minimum is. The parabola
in log N of Hoffmann et al. is biased where the two sides of a curve differ
(arXiv:2603.22339), so it is given beside with the bias that the law predicts. Where
the curves bend otherwise than the law (F-test), each has a curvature of its own too.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

import numpy as np
from scipy import stats

from familial.core import estimate
from familial.laws import bootstrap as bootstraps
from familial.laws import diagnostics
from familial.laws import estimation
from familial.laws import fit_record
from familial.laws import frontier
from familial.laws import levenberg_marquardt
from familial.laws import parametric
from familial.laws import prediction
from familial.laws import table as tables

APPROACHES = ('envelope', 'isoflop', 'parametric')
_NEAR = 1.25  # largest over smallest C of rows of one budget
_LEAST_SIZES = (
  4  # of a budget; with a column budget, whose groups are certain, 3
)
_HIGHEST = 5  # degree of the polynomials that tell the noise
_GRID = 400  # sizes at which a curve is evaluated
_BEYOND = 4.0  # how far past the sampled sizes a minimum is searched
_SIGNIFICANT = 0.01
_ACCURATE = 1e-3  # exponents that differ by less agree, also without noise
_COSTS = 300  # at which the envelope is evaluated
_CURVES = 3  # runs with several rows, at least, of an envelope


@dataclasses.dataclass(frozen=True)
class Granularity:
  """The runs of one G that a form's optimum is computed for.

  Attributes:
    label: `G = 2`.
    exits: G.
    others: values of the form's other columns.
    rows: indices of the table's rows.
    cost: training FLOPs per token by N.
  """

  label: str
  exits: float
  others: dict[str, float]
  rows: np.ndarray
  cost: frontier.TokenCost

  def columns(self, params: np.ndarray, flops: float) -> dict[str, np.ndarray]:
    """Returns the columns of models of N parameters that cost C."""
    others = {k: np.full_like(params, v) for k, v in self.others.items()}
    return {'N': params, 'D': flops / self.cost(params), **others}


@dataclasses.dataclass(frozen=True)
class Budget:
  """Rows of about one C.

  Attributes:
    name: mean C over all granularities.
    flops: mean C of these rows.
    rows: indices of the table's rows.
  """

  name: float
  flops: float
  rows: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Curve:
  """One budget's curve: log loss = law + polynomial in log N.

  Attributes:
    of: its budget.
    rows: indices of the table's rows in the window.
    sizes: log N of these rows, [rows].
    offset: log loss - law of these rows, [rows].
    degree: of the polynomial.
  """

  of: Budget
  rows: np.ndarray
  sizes: np.ndarray
  offset: np.ndarray
  degree: int = 1

  def basis(self, sizes: np.ndarray, degree: int) -> np.ndarray:
    """Powers of log N less its mean in the window, [sizes, degree + 1]."""
    return np.vander(sizes - self.sizes.mean(), degree + 1, increasing=True)

  def solve(self, degree: int) -> np.ndarray:
    """Coefficients of the polynomial by offsets, [degree + 1, rows]."""
    return np.linalg.pinv(self.basis(self.sizes, degree))

  def residual(self, degree: int) -> np.ndarray:
    """What a polynomial of a degree leaves of the offset, [rows]."""
    fitted = self.basis(self.sizes, degree) @ (self.solve(degree) @ self.offset)
    return self.offset - fitted

  def nearer(self, loss: np.ndarray) -> np.ndarray:
    """Rows but the farthest in log N from that of the lowest loss [rows]."""
    away = np.abs(self.sizes - self.sizes[np.argmin(loss)])
    return self.rows[away < away.max()]


def granularities(
  form: parametric.Form, table: tables.Table
) -> list[Granularity]:
  """Returns the granularities whose optimum a law has; [] without N, D and FLOPs."""
  if table.cost is None or not {'N', 'D'} <= set(form.columns):
    return []
  return [
    Granularity(label, exits, others, rows, frontier.cost_of(table, rows))
    for label, exits, others, rows in frontier.granularities(form, table)
  ]


def budgets(table: tables.Table, granularity: Granularity) -> list[Budget]:
  """Returns the budgets at which a granularity has enough sizes, lowest C first.

  By the column budget; else the fullest windows of C that do not overlap.
  """
  cost, sizes = table.cost, table.columns['N']
  assert cost is not None
  least = 3 if 'budget' in table.columns else _LEAST_SIZES
  several = []
  for group in _groups(table):
    rows = granularity.rows[group[granularity.rows]]
    if len(np.unique(sizes[rows])) >= least:
      name, flops = (
        float(np.exp(np.log(cost[of]).mean())) for of in (group, rows)
      )
      several.append(Budget(name, flops, rows))
  return several


def _groups(table: tables.Table) -> list[np.ndarray]:
  """Returns rows of about one C, bool [rows] each, lowest C first."""
  if 'budget' in table.columns:
    budget = table.columns['budget']
    return [budget == value for value in np.unique(budget)]
  assert table.cost is not None
  log_c = np.log(table.cost)
  left = np.ones(table.rows, bool)
  groups: list[np.ndarray] = []
  while left.sum() >= _LEAST_SIZES:
    costs = np.sort(log_c[left])
    stop = np.searchsorted(costs, costs + np.log(_NEAR) + 1e-9, 'right')
    start = int(np.argmax(stop - np.arange(len(costs))))
    if stop[start] - start < _LEAST_SIZES:
      break
    low, high = costs[start], costs[stop[start] - 1]
    groups.append(left & (log_c >= low) & (log_c <= high))
    left &= ~groups[-1]
  return sorted(groups, key=lambda group: log_c[group].mean())


def compare(
  fit: estimation.Fit,
  bootstrap: bootstraps.Bootstrap,
  table: tables.Table,
  compute: Sequence[float],
  wanted: Sequence[str] = APPROACHES,
  seed: int = 0,
) -> fit_record.Approaches | None:
  """Computes optimal sizes by every approach that the table allows.

  Args:
    fit: of a form with columns N and D.
    bootstrap: of the fit.
    table: its rows.
    compute: FLOPs at which optima are computed.
    wanted: approaches to take, of `APPROACHES`.
    seed: of the draws of approaches 1 and 2.

  Returns:
    None for forms and tables without N, D and FLOPs.
  """
  every = granularities(fit.form, table)
  if not every or not compute:
    return None
  minima: list[fit_record.IsoFlopMinimum] = []
  optima: list[fit_record.ComputeOptimum] = []
  missing: dict[str, str] = {}
  flags: list[str] = []
  for one in every:
    line = functools.partial(
      _by_power_law, label=one.label, cost=one.cost, compute=compute,
      level=bootstrap.level, degrees=fit.degrees,
    )  # fmt: skip
    own: list[fit_record.ComputeOptimum] = []
    if 'envelope' in wanted:
      points = _envelope(table, one, bootstrap.resamples, seed)
      if isinstance(points, str):
        missing[f'envelope, {one.label}'] = points
      else:
        own += line('envelope', *points)
    if 'isoflop' in wanted:
      curves, draws = _isoflop(fit, bootstrap, table, one, seed)
      inner = [i for i, curve in enumerate(curves) if not curve.flag]
      if len(inner) > 1:
        costs = np.log([curves[i].flops for i in inner])
        sizes = np.log([[curves[i].params.value for i in inner]])
        sizes = np.concatenate([sizes, draws[:, inner]])
        own += line('isoflop', costs, sizes, _spread(draws[:, inner]))
      else:
        missing[f'isoflop, {one.label}'] = (
          f'{len(inner)} of {len(curves)} IsoFLOP curves have a minimum within'
          ' their sizes; an exponent needs two'
        )
      minima += curves
      flags += _misfits(fit, table, one)
    if 'parametric' in wanted:
      of_law = _parametric(fit, bootstrap, table, one, compute)
      own += of_law
      if len(of_law) < len(compute):
        missing[f'parametric, {one.label}'] = 'the law has no minimum over N'
    optima += own
    flags += _disagreements(own)
  return fit_record.Approaches(
    {
      one.label: (float(one.cost.linear), float(one.cost.root)) for one in every
    },
    tuple(minima),
    tuple(optima),
    missing,
    tuple(dict.fromkeys(flags)),
  )


def _parametric(
  fit: estimation.Fit,
  bootstrap: bootstraps.Bootstrap,
  table: tables.Table,
  one: Granularity,
  compute: Sequence[float],
) -> list[fit_record.ComputeOptimum]:
  """The third approach: the law's own optimum, its exponents at each C."""
  theta = fit.theta[None]
  if bootstrap.spans(fit, 'N', 'D'):
    theta = np.concatenate([theta, bootstrap.theta(fit.form)])
  best = frontier.optimum(
    fit.form, theta, compute, one.cost, one.others, frontier.least_of(table)
  )
  values = (best.params, best.tokens, best.exponent, best.token_exponent)
  optima = []
  for j, flops in enumerate(compute):
    if not best.interior[0, j]:
      continue
    spreads = [
      bootstraps.interval(float(v[0, j]), v[1:, j], bootstrap.level)
      for v in values
    ]
    ends = [estimate.Estimate(e.value, e.lo, e.hi) for e in spreads]
    optima.append(
      fit_record.ComputeOptimum('parametric', one.label, float(flops), *ends)
    )
  return optima


def _by_power_law(
  approach: str,
  log_c: np.ndarray,
  log_n: np.ndarray,
  spread: np.ndarray | None = None,
  *,
  label: str,
  cost: frontier.TokenCost,
  compute: Sequence[float],
  level: float,
  degrees: int,
) -> list[fit_record.ComputeOptimum]:
  """N = k C^a by weighted least squares, with intervals over draws.

  Args:
    approach: its name.
    log_c: of the points, [points].
    log_n: of the estimate and of the draws, [1 + draws, points].
    spread: standard deviation of each point's log N, [points]; points that are
      farther off the line than it says widen the intervals (Birge 1932).
    label: of the granularity.
    cost: FLOPs a token.
    compute: FLOPs at which N and D are computed.
    level: of the intervals.
    degrees: of Student's law in the intervals.
  """
  root = 1 / (np.ones_like(log_c) if spread is None else spread)
  centre = (root**2 * log_c).sum() / (root**2).sum()
  basis = np.stack([np.ones_like(log_c), log_c - centre], 1)
  solve = np.linalg.pinv(root[:, None] * basis) * root
  line = solve @ log_n.T
  if spread is not None and len(log_c) > 2:
    left = root * (log_n[0] - basis @ line[:, 0])
    scatter = np.sqrt((left**2).sum() / (len(log_c) - 2))
    line = line[:, :1] + (line - line[:, :1]) * max(scatter, 1.0)
  height, slope = line
  laws = []
  for flops in compute:
    params = height + slope * (np.log(flops) - centre)
    step = height + slope * (np.log(flops) + 1e-3 - centre)
    tokens = np.log(flops) - np.log(cost(np.exp(params)))
    after = np.log(flops) + 1e-3 - np.log(cost(np.exp(step)))
    quantities = (params, tokens, slope, (after - tokens) / 1e-3)
    sizes, counts, a, b = (
      _student(values, level, degrees) for values in quantities
    )
    laws.append(
      fit_record.ComputeOptimum(
        approach,
        label,
        float(flops),
        sizes.map(np.exp),
        counts.map(np.exp),
        a,
        b,
      )
    )
  return laws


def _spread(draws: np.ndarray) -> np.ndarray:
  """Standard deviation of draws of points, [points]; 1 without draws."""
  if len(draws) < 2:
    return np.ones(draws.shape[1])
  return np.maximum(np.std(draws, axis=0, ddof=1), diagnostics.EXACT)


def _student(
  values: np.ndarray, level: float, degrees: int
) -> estimate.Estimate:
  """The first value, with the interval of the others as draws.

  Quantiles at the ends of Student's interval (Hesterberg 2015, section 5.3).
  """
  if len(values) < 3 or not np.isfinite(values).all():
    return estimate.Estimate(float(values[0]))
  tail = prediction.tail(degrees, level)
  lo, hi = np.quantile(values[1:], [tail, 1 - tail])
  return estimate.Estimate(float(values[0]), float(lo), float(hi))


def _isoflop(
  fit: estimation.Fit,
  bootstrap: bootstraps.Bootstrap,
  table: tables.Table,
  one: Granularity,
  seed: int,
) -> tuple[list[fit_record.IsoFlopMinimum], np.ndarray]:
  """The minimum of each budget's curve, and its log N in each draw [draws, curves].

  A draw takes the curves' residuals at random, and the law's shape from a
  resample. Residuals of several rows of one run keep together and change sign
  (the wild cluster bootstrap of Cameron, Gelbach & Miller 2008).
  """
  curves = _curves(fit, table, one)
  theta = bootstrap.theta(fit.form)
  if not bootstrap.representative:
    theta = theta[:0]
  if not curves:
    return [], np.zeros((len(theta), 0))
  rows = np.concatenate([curve.rows for curve in curves])
  # Each curve has a polynomial; the shape has what the law has beyond it.
  own = curves[0].degree + 1
  shape = max(int(fit.free.sum()) - own, 0)
  degrees = max(len(rows) - own * len(curves) - shape, 1)
  noise = np.sqrt(1 + shape / degrees) * _noise(
    curves, table, len(theta), np.random.default_rng(seed)
  )
  every = np.concatenate([fit.theta[None], theta])
  columns = {name: table.columns[name][rows] for name in fit.form.columns}
  law = levenberg_marquardt.predict(fit.form, columns, every)
  minima, logs, first = [], [], 0
  for curve in curves:
    part = slice(first, first + len(curve.rows))
    first = part.stop
    smooth = curve.offset - curve.residual(curve.degree)
    # What a draw observes, less what its law says of the same rows.
    offset = law[0, part] - law[:, part] + smooth
    offset[0] = curve.offset
    offset[1:] += noise[:, part]
    coefficients = offset @ curve.solve(curve.degree).T
    sizes = np.linspace(
      curve.sizes.min() - np.log(_BEYOND),
      curve.sizes.max() + np.log(_BEYOND),
      _GRID,
    )
    at = one.columns(np.exp(sizes), curve.of.flops)
    heights = levenberg_marquardt.predict(fit.form, at, every)
    heights += coefficients @ curve.basis(sizes, curve.degree).T
    best, loss = _lowest(sizes, heights)
    logs.append(best[1:])
    minima.append(
      _minimum(fit, table, one, curve, best, loss, bootstrap.level, degrees)
    )
  return minima, np.stack(logs, 1)


def _lowest(
  x: np.ndarray, heights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Where each row of heights [n, x] is lowest, and how low, each [n].

  By the parabola through the lowest point and its neighbours.
  """
  each = np.arange(len(heights))
  i = np.clip(heights.argmin(1), 1, len(x) - 2)
  before, here, after = (heights[each, i + k] for k in (-1, 0, 1))
  bend = before - 2 * here + after
  with np.errstate(divide='ignore', invalid='ignore'):
    move = np.where(bend > 0, (before - after) / (2 * bend), 0.0)
  move = np.clip(move, -1.0, 1.0)
  return x[i] + move * (x[1] - x[0]), here - bend * move**2 / 2


def _minimum(
  fit: estimation.Fit,
  table: tables.Table,
  one: Granularity,
  curve: _Curve,
  best: np.ndarray,
  loss: np.ndarray,
  level: float,
  degrees: int,
) -> fit_record.IsoFlopMinimum:
  """The record of a curve's minimum; `best` and `loss` are logs, [1 + draws]."""
  inside = curve.sizes.min() < best[0] < curve.sizes.max()
  params = _student(best, level, degrees).map(np.exp)
  of_law = fit.predict(one.columns(np.exp(curve.sizes), curve.of.flops))
  sizes = np.exp(curve.sizes)
  parabola = frontier.minimum(
    sizes.tolist(), table.columns['loss'][curve.rows].tolist()
  )
  exact = frontier.minimum(sizes.tolist(), of_law.tolist())
  own = frontier.optimum(
    fit.form, fit.theta[None], [curve.of.flops], one.cost, one.others,
    frontier.least_of(table),
  ).params[0, 0]  # fmt: skip
  if not inside:
    params = estimate.Estimate(params.value)
  tokens = params.map(lambda n: curve.of.flops / float(one.cost(n)))
  return fit_record.IsoFlopMinimum(
    label=one.label,
    flops=curve.of.flops,
    params=params,
    tokens=tokens,
    loss=float(np.exp(loss[0])),
    rows=len(curve.rows),
    left_out=len(curve.of.rows) - len(curve.rows),
    parabola=parabola.n_opt if parabola.interior else None,
    parabola_loss=parabola.loss if parabola.interior else None,
    parabola_bias=float(np.log(exact.n_opt / own))
    if exact.interior and np.isfinite(own)
    else None,
    flag='' if inside else frontier.AT_EDGE,
  )


def _curves(
  fit: estimation.Fit, table: tables.Table, one: Granularity
) -> list[_Curve]:
  """The curves of a granularity, each within the window that its runs choose.

  The degree of all polynomials is 1, or 2 where the curves bend otherwise than the
  law. While a curve deviates from its polynomial by more than the noise, the row
  farthest from the lowest is left out.
  """
  every = _whole_curves(fit, table, one)
  degree = 2 if _p_value(every, 2) < _SIGNIFICANT else 1
  noise, degrees = _deviation(every, degree + 1)
  limit = noise * estimate.quantile(degrees, 1 - _SIGNIFICANT)
  chosen = []
  for curve in every:
    while len(curve.rows) > degree + 4:
      solve = curve.solve(degree + 1)[-1]
      if abs(solve @ curve.offset) <= limit * np.linalg.norm(solve):
        break
      nearer = curve.nearer(table.columns['loss'][curve.rows])
      if len(np.unique(table.columns['N'][nearer])) < degree + 3:
        break
      curve = _curve(fit, table, curve.of, nearer)
    chosen.append(dataclasses.replace(curve, degree=degree))
  return chosen


def _whole_curves(
  fit: estimation.Fit, table: tables.Table, one: Granularity
) -> list[_Curve]:
  return [_curve(fit, table, of, of.rows) for of in budgets(table, one)]


def _curve(
  fit: estimation.Fit, table: tables.Table, of: Budget, rows: np.ndarray
) -> _Curve:
  columns = {name: values[rows] for name, values in table.columns.items()}
  offset = np.log(columns['loss'] / fit.predict(columns))
  return _Curve(of, rows, np.log(columns['N']), offset)


def _squares(curves: Sequence[_Curve], degree: int) -> tuple[float, int]:
  """Sum of squares that polynomials of a degree leave, and its degrees of freedom."""
  some = [c for c in curves if len(np.unique(c.sizes)) > degree + 1]
  squares = sum(float((curve.residual(degree) ** 2).sum()) for curve in some)
  return squares, sum(len(curve.rows) - degree - 1 for curve in some)


def _deviation(curves: Sequence[_Curve], degree: int) -> tuple[float, int]:
  """The noise's deviation and its degrees of freedom.

  The lowest estimate by polynomials of this degree and higher ones: of lower ones
  it holds what the curves deviate from them.
  """
  best = math.inf, 1
  for k in range(degree, _HIGHEST + 1):
    squares, degrees = _squares(curves, k)
    if degrees:
      best = min(best, (math.sqrt(squares / degrees), degrees))
  return max(best[0], diagnostics.EXACT), best[1]


def _p_value(curves: Sequence[_Curve], degree: int) -> float:
  """F-test of the curves' terms of a degree; 1 where there are too few rows."""
  some = [c for c in curves if len(np.unique(c.sizes)) > degree + 1]
  squares, degrees = _squares(some, degree)
  if not degrees:
    return 1.0
  explained = (_squares(some, degree - 1)[0] - squares) / len(some)
  noise = max(squares / degrees, diagnostics.EXACT**2)
  return float(stats.f.sf(explained / noise, len(some), degrees))


def _noise(
  curves: Sequence[_Curve],
  table: tables.Table,
  draws: int,
  rng: np.random.Generator,
) -> np.ndarray:
  """Draws of the noise of the curves' rows, [draws, rows of all curves].

  Residuals are scaled by their leverage: their variance is then the noise's.
  """
  residuals = []
  for curve in curves:
    basis, solve = (
      curve.basis(curve.sizes, curve.degree),
      curve.solve(curve.degree),
    )
    free = 1 - np.einsum('ij,ji->i', basis, solve)
    left = curve.residual(curve.degree)
    residuals.append(left / np.sqrt(np.maximum(free, 0.1)))
  residual = np.concatenate(residuals)
  clusters = table.clusters[np.concatenate([curve.rows for curve in curves])]
  names, cluster = np.unique(clusters, return_inverse=True)
  if len(names) == len(cluster):
    return rng.choice(residual - residual.mean(), (draws, len(residual)))
  signs = rng.choice([-1.0, 1.0], (draws, len(names)))
  return residual * signs[:, cluster]


def _misfits(
  fit: estimation.Fit, table: tables.Table, one: Granularity
) -> Iterator[str]:
  """Flags of a law that does not fit the IsoFLOP curves, by F-tests.

  Not of curves that share runs, whose residuals are not independent.
  """
  curves = _whole_curves(fit, table, one)
  clusters = [table.clusters[curve.rows] for curve in curves]
  several = np.concatenate([*clusters, np.zeros(0, int)])
  if len(np.unique(several)) < len(several):
    return
  name = fit.form.name
  for degree, what in (
    (1, f'have minima off those of {name}'),
    (2, f'bend otherwise than those of {name}'),
  ):
    p_value = _p_value(curves, degree)
    if p_value < _SIGNIFICANT:
      yield f'{one.label}: the IsoFLOP curves {what} (F-test, p = {p_value:.2g})'


def _envelope(
  table: tables.Table, one: Granularity, draws: int, seed: int
) -> tuple[np.ndarray, np.ndarray] | str:
  """Log C [points] and log N of the best run there, [1 + draws, points].

  Between the rows of a run, log loss is linear in log C. Where the smallest or
  the largest size is the best, a size that nobody trained may be better: such
  costs do not count. A draw takes runs with replacement.

  Returns:
    The points, or why there are none.
  """
  cost = table.cost
  assert cost is not None
  runs = table.run[one.rows]
  log_c, log_loss = (
    np.log(cost[one.rows]),
    np.log(table.columns['loss'][one.rows]),
  )
  curves = []
  for run in np.unique(runs):
    rows = np.flatnonzero(runs == run)
    rows = rows[np.argsort(log_c[rows])]
    if len(rows) > 1 and np.ptp(log_c[rows]) > 0:
      size = np.log(table.columns['N'][one.rows[rows]]).mean()
      curves.append((log_c[rows], log_loss[rows], size))
  if len({size for *_, size in curves}) < _CURVES:
    return (
      f'an envelope needs runs of {_CURVES} sizes with several rows each'
      ' (--rows=all, --cluster)'
    )
  grid = np.linspace(
    min(c[0] for c, *_ in curves), max(c[-1] for c, *_ in curves), _COSTS
  )
  heights = np.stack(
    [
      np.interp(grid, c, loss, left=np.inf, right=np.inf)
      for c, loss, _ in curves
    ]
  )
  sizes = np.array([size for *_, size in curves])
  alive = np.isfinite(heights)
  best = sizes[heights.argmin(0)]
  least = np.where(alive, sizes[:, None], np.inf).min(0)
  most = np.where(alive, sizes[:, None], -np.inf).max(0)
  inner = (least < best) & (best < most)
  if len(np.unique(best[inner])) < 2:
    return (
      'the best run is of the smallest or of the largest size at every compute'
    )
  heights = heights[:, inner]
  rng = np.random.default_rng(seed)
  drawn = [best[inner]]
  for _ in range(draws):
    some = np.unique(rng.integers(0, len(sizes), len(sizes)))
    there = np.isfinite(heights[some].min(0))
    again = sizes[some][heights[some].argmin(0)]
    drawn.append(np.where(there, again, np.nan))
  return grid[inner], np.stack(drawn)


def _disagreements(laws: Sequence[fit_record.ComputeOptimum]) -> Iterator[str]:
  """Flags of approaches whose intervals of the exponent exclude each other."""
  first = {law.approach: law for law in reversed(laws)}
  names = [name for name in APPROACHES if name in first]
  for i, one in enumerate(names):
    for other in names[i + 1 :]:
      a, b = first[one].exponent, first[other].exponent
      if _apart(a, b):
        yield (
          f'{first[one].label}: the exponents of N by {one} ({a}) and {other}'
          f' ({b}) differ by more than their intervals'
        )


def _apart(a: Any, b: Any) -> bool:
  if abs(a.value - b.value) < _ACCURATE:
    return False
  return bool(a.bounded and b.bounded and (a.lo > b.hi or b.lo > a.hi))
