"""Figures of a fitted law: what it says of loss, size and compute, how surely."""

import collections
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import altair as alt
import numpy as np

from familial.core import estimate
from familial.core import text
from familial.laws import approaches
from familial.laws import fit_record
from familial.laws import frontier
from familial.laws import inference
from familial.plots import theme

_BUDGETS = 8  # of a figure
_RESAMPLES = 500  # of the bands
_POINTS = 1500  # rows of a scatter plot
_PAIRS = 150  # resamples in a panel of the pair plot
_CENTRE = 0.99  # share of the resamples that an axis of the pair plot holds
_SPAN = 1e6  # an axis of a profile reaches from the estimate, over and times
_RANGE = 3.0  # how far past the sampled sizes an optimum is still drawn
_BINS = 8  # of the medians along residuals
_LABELS = {
  'N': 'parameters N',
  'D': 'tokens D',
  'G': 'exits G',
  'C': 'training compute C, FLOPs',
}


def figures(result: inference.Result) -> dict[str, theme.Chart]:
  """Returns the figures of a fit by name.

  IsoFLOP curves, frontier and optimum for forms of N and D, predicted against
  observed loss for others; residuals, profiles and pairs for all. Where the table
  or the form has nothing to show, a figure is left out.
  """
  every = families(result)
  found = {'residuals': residuals(result)}
  if several := [family for family in every if len(family.budgets) > 1]:
    found['isoflop'] = isoflop(result, several)
  if known := [family for family in every if family.known]:
    found['frontier'] = loss_frontier(result, known)
    found['optimum'] = optimum(result, known)
  if not every:
    found['predicted'] = predicted(result)
  free = [
    n for n, f in zip(result.fit.form.names, result.fit.free, strict=True) if f
  ]
  if profiles := [
    result.profiles[name] for name in free if name in result.profiles
  ]:
    found['profiles'] = profile_curves(result, profiles)
  if len(free) > 1 and len(_cloud(result)) > 1:
    found['pairs'] = pairs(result, free)
  return found


def _title(result: inference.Result, what: str) -> str:
  form = pathlib.PurePath(result.fit.form.name).name
  source = pathlib.PurePath(result.table.source).name
  on = f' on {source}' if source else ''
  return f'{what}: {form}{on}, {result.fit.rows:,} rows'


def residuals(result: inference.Result) -> theme.Chart:
  """Draws log residuals against each column of the form and the predicted loss."""
  columns = result.table.columns
  prediction = result.predict(columns)
  left = 100 * np.log(columns['loss'] / prediction)
  against = {
    _LABELS.get(name, name): columns[name]
    for name in result.fit.form.columns
    if np.ptp(columns[name]) > 0
  }
  against[theme.axis_title('predicted')] = prediction
  some = _some(result.table.rows)
  scale = 100 * result.fit.scale
  charts = []
  for label, x in against.items():
    rows = theme.rows(
      x=x[some], residual=left[some], run=result.table.run[some], kind='row'
    )
    middle = np.array(_medians(x, left)).T
    rows += theme.rows(x=middle[0], residual=middle[1], kind='median')
    axis = theme.log_axis(x) if (x > 0).all() else {}
    base = alt.Chart().encode(
      x=theme.x('x', label, **axis), y=theme.y('residual')
    )
    points = theme.only(base, 'row').mark_point(size=16, color=theme.CYCLE[0])
    layers = [
      theme.band(-scale, scale),
      theme.reference(0),
      points.encode(tooltip=theme.tips('run', 'x', 'residual')),
      theme.only(base, 'median').mark_line(
        color=theme.CYCLE[1], point=alt.OverlayMarkDef(color=theme.CYCLE[1])
      ),
    ]
    charts.append(theme.panel(layers, rows))
  title = _title(result, 'Residuals')
  return theme.concat(
    charts, f'{title} (band: robust scale; line: median of neighbours)'
  )


def predicted(result: inference.Result) -> theme.Chart:
  """Draws the law's loss against the observed one."""
  loss, law = result.table.columns['loss'], result.predict(result.table.columns)
  some = _some(result.table.rows)
  rows = theme.rows(
    observed=loss[some],
    predicted=law[some],
    run=result.table.run[some],
    kind='run',
  )
  both = np.append(loss, law)
  ends = np.array([both.min(), both.max()])
  rows += theme.rows(observed=ends, predicted=ends, kind='equal')
  axis = theme.log_axis(both)
  base = alt.Chart().encode(
    x=theme.x('observed', **axis),
    y=theme.y('predicted', **axis),
  )
  layers = [
    theme.only(base, 'equal').mark_line(color=theme.RULE),
    theme.only(base, 'run')
    .mark_point(size=22)
    .encode(tooltip=theme.tips('run', 'observed', 'predicted')),
  ]
  title = _title(result, 'Predicted and observed loss')
  return theme.single(layers, rows, title=title, size=(420, 380))


def profile_curves(
  result: inference.Result, profiles: Sequence[fit_record.Profile]
) -> theme.Chart:
  """Draws the deviance of each parameter with its intervals.

  Deviance: how much worse the best fit is with the parameter held there, in
  squared standard errors.
  """
  charts = []
  for profile in profiles:
    spread = result.interval(profile.name)
    best = result.fit.params[profile.name]
    shown = profile.deviance <= 4 * profile.cutoff
    values = profile.values[shown]
    wide = values[0] > 0 and values[-1] > 1e3 * values[0]
    if wide:  # A profile without an end may span hundreds of decades.
      shown &= profile.values >= best / _SPAN
      shown &= profile.values <= best * _SPAN
      values = profile.values[shown]
    rows = theme.rows(
      value=values, deviance=profile.deviance[shown], kind='profile'
    )
    if spread.lo is not None and spread.hi is not None:
      ends = np.array([spread.lo, spread.hi])
      low, high = ends.clip(values[0], values[-1]) if wide else ends
      rows += theme.rows(
        value_lo=low, value_hi=high, deviance=0.0, kind='bootstrap'
      )
    axis = theme.log_axis(values) if wide else {'scale': alt.Scale(zero=False)}
    x = theme.x('value', profile.name, **axis)
    base = alt.Chart().encode(y=theme.y('deviance'))
    bar = theme.interval(base, x, strokeWidth=6, color=theme.CYCLE[1])
    line = base.mark_line(color=theme.CYCLE[0]).encode(
      x=x, tooltip=theme.tips('value', 'deviance')
    )
    layers = [
      theme.reference(profile.cutoff, dashed=True),
      theme.only(bar, 'bootstrap'),
      theme.only(line, 'profile'),
    ]
    title = f'{profile.name}: {text.interval(profile.lo, profile.hi)}'
    charts.append(theme.panel(layers, rows, title=title))
  title = _title(result, 'Profiles')
  return theme.concat(
    charts,
    f'{title} (dashed: cut-off of the interval; bar: by bootstrap; axes end at'
    ' most a million times off the estimate)',
  )


def pairs(result: inference.Result, names: Sequence[str]) -> theme.Chart:
  """Draws every pair of fitted coordinates over the resamples, and the optimum.

  Axes hold the central 99 % of the resamples.
  """
  cloud = _cloud(result)
  form = result.fit.form
  free = np.flatnonzero(result.fit.free)
  optimum_ = result.fit.theta[free].copy()
  labels = [
    f'{form.parameters[i].transform.prefix.replace("_", " ")}{form.names[i]}'
    for i in free
  ]
  for column, i in enumerate(free.tolist()):
    transform = form.parameters[i].transform
    # The logarithm of a constant that is 0 in some resamples has no axis.
    if np.isin([*cloud[:, column], optimum_[column]], transform.bounds).any():
      cloud[:, column] = transform.to_value(cloud[:, column])
      optimum_[column] = transform.to_value(optimum_[column])
      labels[column] = form.names[i]
  ends = np.quantile(cloud, [(1 - _CENTRE) / 2, (1 + _CENTRE) / 2], axis=0)
  low = np.minimum(ends[0], optimum_)
  high = np.maximum(ends[1], optimum_)
  some = np.linspace(0, len(cloud) - 1, min(len(cloud), _PAIRS)).astype(int)
  inside = (low <= cloud[some]) & (cloud[some] <= high)
  ranks = np.argsort(np.argsort(cloud, axis=0), axis=0)
  scale = alt.Scale(zero=False, nice=False)
  charts = []
  for i in range(1, len(names)):
    for j in range(i):
      shown = cloud[some[inside[:, i] & inside[:, j]]]
      rows = theme.rows(x=shown[:, j], y=shown[:, i], kind='resample')
      rows += theme.rows(x=optimum_[j], y=optimum_[i], kind='optimum')
      base = alt.Chart().encode(
        x=theme.x('x', labels[j], scale=scale),
        y=theme.y('y', labels[i], scale=scale),
      )
      layers = [
        theme.only(base, 'resample').mark_point(size=12, color=theme.CYCLE[0]),
        theme.only(base, 'optimum').mark_point(
          size=110, color=theme.CYCLE[1], shape='cross'
        ),
      ]
      r = np.corrcoef(ranks[:, i], ranks[:, j])[0, 1]
      title = f'rank correlation {r:.2f}'
      charts.append(theme.panel(layers, rows, title=title, size=(190, 150)))
  title = _title(result, 'Resampled parameters, pair by pair')
  return theme.concat(
    charts, f'{title} (cross: optimum; log: natural logarithm)', columns=4
  )


@dataclasses.dataclass(frozen=True)
class Family:
  """One granularity: its rows, and what the law says at its budgets.

  Attributes:
    of: the granularity.
    budgets: of the IsoFLOP curves that are drawn.
    minima: of all IsoFLOP curves, by C; {} where they were not computed.
    grid: C of the frontier, up to ten times the largest run's.
    optimum: of the law and its resamples [1 + s, c], at the costs of the budgets
      and then at those of the grid.
  """

  of: approaches.Granularity
  budgets: tuple[approaches.Budget, ...]
  minima: dict[float, fit_record.IsoFlopMinimum]
  grid: np.ndarray
  optimum: frontier.Optimum

  @property
  def known(self) -> bool:
    """Whether the law has an optimum at any C of the grid."""
    return bool(self.optimum.interior[0, len(self.budgets) :].any())

  def along(self, values: np.ndarray, level: float) -> theme.Rows:
    """Returns values [1 + s, c] of `optimum` along the grid as rows."""
    values = values[:, len(self.budgets) :]
    low, high = _ends(values[1:], level)
    return theme.rows(
      C=self.grid,
      value=values[0],
      value_lo=low,
      value_hi=high,
      family=self.of.label,
      kind='law',
    )


def families(result: inference.Result) -> list[Family]:
  """Returns the granularities whose optimum the law knows; [] without N and D."""
  every = approaches.granularities(result.fit.form, result.table)
  cost = result.table.cost
  if not every or cost is None:
    return []
  theta = result.fit.theta[None]
  if result.spans('N', 'D'):
    theta = np.concatenate([theta, _theta(result)])
  inside = np.geomspace(cost.min(), cost.max(), 16)
  beyond = np.geomspace(cost.max(), 10 * cost.max(), 8)
  grid = np.unique([*inside, *beyond])
  minima: dict[str, dict[float, fit_record.IsoFlopMinimum]]
  minima = collections.defaultdict(dict)
  for minimum in result.approaches.minima if result.approaches else ():
    minima[minimum.label][minimum.flops] = minimum
  drawn = []
  for one in every:
    budgets = approaches.budgets(result.table, one)
    picked = np.linspace(0, len(budgets) - 1, min(len(budgets), _BUDGETS))
    budgets = [budgets[i] for i in picked.round().astype(int)]
    compute = np.append([budget.flops for budget in budgets], grid)
    best = frontier.optimum(
      result.fit.form, theta, compute.tolist(), one.cost, one.others,
      frontier.least_of(result.table),
    )  # fmt: skip
    drawn.append(Family(one, tuple(budgets), minima[one.label], grid, best))
  return drawn


def isoflop(result: inference.Result, drawn: Sequence[Family]) -> theme.Chart:
  """Draws loss against N, a colour for each budget, a panel for each G.

  A parabola's minimum is biased (arXiv:2603.22339); it is shown where it lies
  inside the runs.
  """
  columns, level = result.table.columns, result.bootstrap.level
  rows: theme.Rows = []
  for family in drawn:
    for i, budget in enumerate(family.budgets):
      here = {
        'panel': family.of.label,
        'budget': text.scientific(budget.name, 2),
      }
      sizes = columns['N'][budget.rows]
      best = family.optimum.params[:, i]
      low, high = sizes.min(), sizes.max()
      inside = low / _RANGE < best[0] < high * _RANGE  # False for NaN
      if inside:
        low, high = min(low, best[0] / 1.2), max(high, best[0] * 1.2)
      along = np.geomspace(low, high, 30)
      models = family.of.columns(along, budget.flops)
      lo, hi = result.predict_interval(models)
      rows += theme.rows(
        **here,
        kind='law',
        N=along,
        loss=result.predict(models),
        loss_lo=lo,
        loss_hi=hi,
      )
      some = budget.rows[_some(len(budget.rows))]
      rows += theme.rows(
        **here,
        kind='run',
        N=columns['N'][some],
        loss=columns['loss'][some],
        run=result.table.run[some],
      )
      if inside:
        lo, hi = _ends(best[1:], level)
        rows += theme.rows(
          **here,
          kind='optimum',
          N=best[0],
          N_lo=lo,
          N_hi=hi,
          loss=family.optimum.loss[0, i],
        )
      minimum = family.minima.get(budget.flops)
      if minimum is not None and not minimum.flag:
        rows += theme.rows(
          **here,
          kind='minimum',
          **_with_ends('N', minimum.params),
          loss=minimum.loss,
        )
      if minimum is not None and minimum.parabola is not None:
        point = {'N': minimum.parabola, 'loss': minimum.parabola_loss}
        rows.append({**here, 'kind': 'parabola', **point})
  budgets = {
    text.scientific(b.name, 2): b.name for f in drawn for b in f.budgets
  }
  series = theme.graded(
    'budget',
    sorted(budgets, key=budgets.__getitem__),
    theme.axis_title('C'),
    scheme='viridis',
  )
  x = theme.x('N', **theme.log_axis(r['N'] for r in rows))
  y = theme.y('loss', scale=theme.near(8))
  base = series.chart(x=x, y=y)
  law, optimum_, minimum_ = (
    theme.only(base, kind) for kind in ('law', 'optimum', 'minimum')
  )
  layers = [
    theme.interval(law, y, 'area').encode(opacity=series.shown(0.2)),
    law.mark_line(strokeWidth=1.4),
    theme.only(base, 'run')
    .mark_point(size=20)
    .encode(tooltip=theme.tips('run', 'N', 'loss', 'budget')),
    theme.interval(optimum_, x, strokeWidth=2.4),
    theme.interval(minimum_, x, strokeWidth=1.2),
    theme.only(base, 'parabola').mark_point(
      size=50, shape='diamond', filled=False, fill='white'
    ),
    minimum_.mark_point(size=60, shape='diamond').encode(
      tooltip=theme.tips('budget', 'N', 'loss')
    ),
    optimum_.mark_point(size=130, shape=theme.STAR),
  ]
  title = alt.TitleParams(
    _title(result, 'IsoFLOP curves'),
    subtitle="star: the law's optimum; diamond: the curve's minimum; hollow: a"
    " parabola's",
  )
  return theme.panels(
    layers,
    rows,
    title=title,
    size=theme.SINGLE if len(drawn) == 1 else theme.PANEL,
    series=series,
  )


def loss_frontier(
  result: inference.Result, drawn: Sequence[Family]
) -> theme.Chart:
  """Draws the runs' loss against compute, and the law's best at each C."""
  columns, cost = result.table.columns, result.table.cost
  assert cost is not None
  rows: theme.Rows = []
  for family in drawn:
    some = family.of.rows[_some(len(family.of.rows))]
    rows += theme.rows(
      C=cost[some],
      value=columns['loss'][some],
      kind='run',
      family=family.of.label,
      run=result.table.run[some],
      N=columns['N'][some],
    )
    rows += family.along(family.optimum.loss, result.bootstrap.level)
  title = _title(result, 'Loss against compute')
  label = theme.axis_title('loss')
  return _along_compute(rows, drawn, cost.max(), label, title, theme.SINGLE)


def optimum(result: inference.Result, drawn: Sequence[Family]) -> theme.Chart:
  """Draws compute-optimal N, D and D / N against C, and the curves' minima."""
  cost, level = result.table.cost, result.bootstrap.level
  assert cost is not None
  quantities: dict[str, Callable[[Any, Any], Any]] = {
    'optimal parameters N': lambda n, d: n,
    'optimal tokens D': lambda n, d: d,
    'tokens per parameter D / N': lambda n, d: d / n,
  }
  charts = []
  for label, of in quantities.items():
    rows: theme.Rows = []
    for family in drawn:
      best = family.optimum
      rows += family.along(of(best.params, best.tokens), level)
      for minimum in family.minima.values():
        rows += _at_minimum(family, minimum, of)
    charts.append(_along_compute(rows, drawn, cost.max(), label))
  exponents = []
  for family in drawn:
    last = np.searchsorted(family.grid, cost.max() * (1 - 1e-9))
    row = family.along(family.optimum.exponent, level)[last]
    ends = (row[key] for key in ('value', 'value_lo', 'value_hi'))
    exponents.append(f'{family.of.label}: {text.estimate(*map(_finite, ends))}')
  title = alt.TitleParams(
    _title(result, 'Compute-optimal N and D'),
    subtitle=f'exponent of N in C at the largest run: {"; ".join(exponents)}'
    " (diamond: an IsoFLOP curve's minimum; hollow: a parabola's; dashed: beyond"
    ' the runs)',
  )
  return theme.concat(charts, title)


def _at_minimum(
  family: Family,
  minimum: fit_record.IsoFlopMinimum,
  of: Callable[[Any, Any], Any],
) -> theme.Rows:
  """Returns a quantity of N and D at a curve's minimum and at its parabola's."""

  def at(params: float) -> float:
    return float(of(params, minimum.flops / float(family.of.cost(params))))

  here = {'family': family.of.label, 'C': minimum.flops}
  rows: theme.Rows = []
  if not minimum.flag:
    ends = _with_ends('value', minimum.params.map(at))
    rows += theme.rows(**here, kind='minimum', **ends)
  if minimum.parabola is not None:
    rows += theme.rows(**here, kind='parabola', value=at(minimum.parabola))
  return rows


def _along_compute(
  rows: theme.Rows,
  drawn: Sequence[Family],
  last: float,
  label: str,
  title: str = '',
  size: tuple[int, int] = theme.PANEL,
) -> alt.LayerChart:
  """Draws quantities against C: points, the law's line and band, dashed beyond."""
  series = theme.category('family', [family.of.label for family in drawn])
  known = [row['value'] for row in rows if np.isfinite(row['value'])]
  low, high = min(known) / 3, max(known) * 3
  for row in rows:  # A band that spans all numbers must not flatten the axis.
    for end in ('value_lo', 'value_hi'):
      if end in row:
        row[end] = float(np.clip(row[end], low, high))
  values = [row[key] for row in rows for key in row if key.startswith('value')]
  y = theme.y('value', label, **theme.log_axis(filter(np.isfinite, values)))
  base = alt.Chart().encode(
    x=theme.x('C', **theme.log_axis(row['C'] for row in rows)),
    y=y,
    color=series.colour,
  )
  band, line = theme.curve(theme.only(base, 'law'), y, 0.18)
  layers = [
    band,
    line.transform_filter(f'datum.C <= {last * (1 + 1e-9)}'),
    line.mark_line(strokeDash=[5, 3]).transform_filter(
      f'datum.C >= {last * (1 - 1e-9)}'
    ),
    theme.only(base, 'run')
    .mark_point(size=18)
    .encode(shape=series.shape, tooltip=theme.tips('run', 'C', 'N', 'value')),
    theme.only(base, 'parabola').mark_point(
      size=50, shape='diamond', filled=False, fill='white'
    ),
    theme.interval(theme.only(base, 'minimum'), y),
    theme.only(base, 'minimum').mark_point(size=50, shape='diamond'),
  ]
  return theme.panel(layers, rows, title=title, size=size)


def _with_ends(name: str, value: estimate.Estimate) -> dict[str, float]:
  """Returns an estimate as the fields of a row; NaN for no interval."""
  lo, hi = (np.nan if end is None else end for end in (value.lo, value.hi))
  return {name: value.value, f'{name}_lo': lo, f'{name}_hi': hi}


def _theta(result: inference.Result) -> np.ndarray:
  """Returns coordinates of some resamples, evenly picked."""
  every = result.bootstrap.theta(result.fit.form)
  picked = np.linspace(0, len(every) - 1, min(len(every), _RESAMPLES))
  return every[picked.astype(int)]


def _cloud(result: inference.Result) -> np.ndarray:
  """Returns the fitted coordinates of the finite resamples, [s, fitted]."""
  theta = result.bootstrap.theta(result.fit.form)[:, result.fit.free]
  return theta[np.isfinite(theta).all(1)]


def _ends(values: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns both ends of the central share of values [n, ...]; NaN if unknown."""
  if len(values) < 2:
    unknown = np.full(values.shape[1:], np.nan)
    return unknown, unknown
  with np.errstate(invalid='ignore'):  # of infinite values
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
  return low, high


def _some(count: int) -> np.ndarray:
  """Returns indices of at most _POINTS of `count` rows, always the same ones."""
  if count <= _POINTS:
    return np.arange(count)
  chosen = np.random.default_rng(0).choice(count, _POINTS, replace=False)
  return np.sort(chosen)


def _medians(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
  """Returns medians of y along x: at each of few values, else in equal bins."""
  values = np.unique(x)
  if len(values) <= _BINS:
    bins = [np.flatnonzero(x == value) for value in values]
  else:
    bins = np.array_split(np.argsort(x, kind='stable'), min(_BINS, len(x)))
  return [(float(np.median(x[b])), float(np.median(y[b]))) for b in bins]


def _finite(value: Any) -> float | None:
  return float(value) if np.isfinite(value) else None


def constants(result: inference.Result) -> list[Mapping[str, Any]]:
  """Returns the table of a law's constants."""
  known = result.identified
  return [
    {
      'name': name,
      'value': result.interval(name),
      'profile': text.interval(
        result.profiles[name].lo, result.profiles[name].hi
      )
      if name in result.profiles
      else None,
      'identified': known[name],
    }
    for name in result.fit.form.names
  ]
