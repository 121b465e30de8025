"""Figures of an IsoFLOP study: exits beside dense models, the law, the controls."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import altair as alt
import numpy as np

from familial.core import text
from familial.laws import definitions
from familial.laws import fit_record
from familial.laws import table as tables_lib
from familial.plots import theme
from familial.studies import comparison
from familial.studies import isoflop
from familial.studies import study

Runs = Sequence[study.Run]
LOSS_TITLES = {
  'final': 'Last exit',
  'mean': 'Mean over exits',
  'exit': 'Each exit',
}
PUBLISHED_GAMMA = 0.033  # of one summary of the paper, for the mean over exits
_MOST_SHAPES = 3  # panels of the exits' figure
_AXES = {
  'N': 'parameters N',
  'D': 'tokens D',
  'G': 'exits G',
  'layer': 'layer of the exit (depth if dense)',
}


def paired(tables: isoflop.Tables) -> theme.Chart:
  """Draws families' loss over that of dense models of the same shape, by budget."""
  series = theme.granularity(row.exits for row in tables.paired_ratios)
  shift = theme.beside(row.exits for row in tables.paired_ratios)
  means = [row for row in tables.paired_ratios if row.budget is not None]
  if not means:  # One budget: the mean over all is that of the budget.
    budget = tables.paired_blocks[0].budget
    means = [
      dataclasses.replace(row, budget=budget) for row in tables.paired_ratios
    ]
  rows = theme.percentages(
    means,
    kind='mean of the shapes',
    x=lambda r: r.budget * shift[r.exits],
    panel=lambda r: LOSS_TITLES[r.loss],
  )
  rows += theme.flat(
    tables.paired_blocks,
    kind='one shape',
    x=lambda r: r.budget * shift[r.exits] * 1.04,
    over=lambda r: theme.percent(r.log_ratio),
    panel=lambda r: LOSS_TITLES[r.loss],
  )
  x = theme.x(
    'x', theme.axis_title('C'), **theme.log_axis(r['x'] for r in rows)
  )
  y = theme.y('over', "loss over the dense model's, %")
  return theme.panels(
    [theme.reference(0), *_means_over_points(series, x, y, 'one shape')],
    rows,
    title='Families beside dense models of the same shape, at equal FLOPs',
    size=(340, 230),
    series=series,
  )


def _means_over_points(
  series: theme.Series, x: alt.X, y: alt.Y, kind: str
) -> list[alt.Chart]:
  """Returns layers of faint points of one kind, and of means of the other."""
  base = series.chart(x=x)
  return [
    theme.only(base, kind)
    .mark_point(size=16)
    .encode(
      y=y,
      opacity=series.shown(0.45),
      tooltip=theme.tips('exits', 'over', 'budget', 'width', 'depth', 'layer'),
    ),
    *theme.means(
      base.transform_filter(f"datum.kind != '{kind}'"),
      y,
      series.shape,
      'kind', 'exits', 'over', 'budget', 'layer',
    ),
  ]  # fmt: skip


def heat(tables: isoflop.Tables) -> theme.Chart:
  """Draws the price of sharing as a heat map of G by budget."""
  rows = theme.percentages(
    [r for r in tables.paired_ratios if r.loss == 'final'],
    at=lambda r: 'all' if r.budget is None else text.scientific(r.budget),
  )
  flat = alt.Axis(labelAngle=0)
  base = alt.Chart().encode(
    x=alt.X('at:N', title=theme.axis_title('C'), sort=None, axis=flat),
    y=alt.Y('exits:O', title='exits G'),
    tooltip=theme.tips('said', 'sign', 'blocks'),
  )
  return theme.single(
    theme.heat(base, rows, 'last exit over dense, %'),
    rows,
    title="Last exit's loss over the dense model's of the same shape",
    size=(640, 40 * len({r['exits'] for r in rows})),
  )


def twins(tables: isoflop.Tables) -> theme.Chart:
  """Draws each exit's loss over its dense twin's along the relative depth."""
  rows = theme.flat(
    tables.twins,
    kind='one exit',
    x=lambda r: r.layer / r.depth,
    over=lambda r: theme.percent(r.log_ratio),
  )
  rows += theme.percentages(
    tables.twin_depths, kind='mean of the shapes', x=lambda r: r.layer / r.depth
  )
  series = theme.granularity(row.exits for row in tables.twins)
  scale = alt.Scale(domain=[0, 1.02])
  x = theme.x('x', 'layer of the exit over depth', scale=scale)
  y = theme.y('over', "loss over the twin's, %")
  return theme.single(
    [theme.reference(0), *_means_over_points(series, x, y, 'one exit')],
    rows,
    title='Each exit beside a dense model of its exact shape, at equal FLOPs',
    series=series,
  )


def curves(
  runs: Runs, minima: Iterable[comparison.Minimum], loss: str
) -> theme.Chart:
  """Draws IsoFLOP curves: loss against N by G, a panel for each budget.

  Args:
    runs: finished runs.
    minima: of all losses; a fitted parabola is drawn where its minimum lies
      inside the sampled sizes.
    loss: `final` or `mean`.
  """
  grid = [run for run in runs if run.arm in definitions.GRID]
  grid.sort(key=lambda run: run.budget)
  rows: theme.Rows = [
    _identity(run)
    | {
      'kind': 'run' if run.arm == 'grid' else 'other seed',
      'loss': run.loss(loss),
      'panel': _budget(run.budget),
    }
    for run in grid
  ]
  for low in minima:
    if low.loss != loss:
      continue
    at = {'exits': low.exits, 'panel': _budget(low.budget)}
    kind = 'minimum' if low.interior else 'lowest run'
    rows.append({**at, 'kind': kind, 'N': low.n_opt, 'loss': low.minimum})
    if low.interior:
      sizes = [
        run.params_full
        for run in grid
        if (run.budget, run.exits) == (low.budget, low.exits)
      ]
      along = np.geomspace(min(sizes), max(sizes), 40)
      rows += theme.rows(**at, kind='parabola', N=along, loss=low.curve(along))
  series = theme.granularity(run.exits for run in grid)
  base = series.chart(
    x=theme.x('N', **theme.log_axis(r['N'] for r in rows)),
    y=theme.y('loss', scale=theme.near()),
  )
  minimum = theme.only(base, 'minimum')
  layers = [
    theme.only(base, 'parabola').mark_line(strokeWidth=1.4),
    theme.only(base, 'other seed')
    .mark_point(filled=False, size=26)
    .encode(tooltip=_TOOLTIP),
    theme.only(base, 'run')
    .mark_point(size=45)
    .encode(shape=series.shape, tooltip=_TOOLTIP, href='folder:N'),
    theme.only(base, 'lowest run').mark_point(
      filled=False, size=180, shape='circle'
    ),
    minimum.mark_point(size=150, shape=theme.STAR).encode(
      tooltip=theme.tips('exits', 'N', 'loss')
    ),
  ]
  return theme.panels(
    layers,
    rows,
    title=f'IsoFLOP curves, {LOSS_TITLES[loss].lower()} (star: fitted minimum;'
    ' circle: lowest run, no minimum inside)',
    own_y=True,
    series=series,
  )


_TOOLTIP = theme.tips('cell', 'N', 'D', 'exits', 'loss')


def _identity(run: study.Run) -> dict[str, Any]:
  """Returns the fields of a run's tooltip, and the link to its folder."""
  return {
    'cell': run.cell,
    'folder': f'../cells/{run.cell}',
    'N': run.params_full,
    'D': run.tokens,
    'exits': run.exits,
  }


def _budget(budget: float) -> str:
  return f'C = {text.scientific(budget)} FLOPs'


def exits(runs: Runs, twins_: Sequence[comparison.Twin]) -> theme.Chart:
  """Draws the loss at every exit against its layer, for up to three shapes.

  Budgets with dense twins come first. Of a budget's shapes, one with twins is
  shown, else one with most values of G, else that of the lowest loss.
  """
  twin_losses: dict[tuple[float, int, int], dict[int, float]] = {}
  for row in twins_:
    key = row.budget, row.width, row.depth
    twin_losses.setdefault(key, {})[row.layer] = row.loss_twin
  by_shape: dict[tuple[float, int, int], list[study.Run]] = {}
  for run in runs:
    if run.arm == 'grid':
      key = run.budget, run.width, run.depth
      by_shape.setdefault(key, []).append(run)
  chosen = [
    min(
      (shape for shape in by_shape if shape[0] == budget),
      key=lambda shape: (
        shape not in twin_losses,
        -len({run.exits for run in by_shape[shape]}),
        min(run.loss('final') for run in by_shape[shape]),
      ),
    )
    for budget in sorted({budget for budget, _, _ in by_shape})
  ]
  first = _spread([c for c in chosen if c in twin_losses], _MOST_SHAPES)
  others = [c for c in chosen if c not in twin_losses]
  shown = sorted(first + _spread(others, _MOST_SHAPES - len(first)))
  rows: theme.Rows = []
  for shape in shown:
    panel = f'{_budget(shape[0])}, {shape[1]} wide'
    for run in by_shape[shape]:
      layers, losses = zip(
        *((r['layer'], r['loss']) for r in run.rows), strict=True
      )
      rows += theme.rows(
        **_identity(run), layer=layers, loss=losses, panel=panel, kind='exit'
      )
    if measured := twin_losses.get(shape):
      rows += theme.rows(
        layer=list(measured),
        loss=list(measured.values()),
        panel=panel,
        kind='twin',
      )
  series = theme.granularity(r['exits'] for r in rows if 'exits' in r)
  twin = theme.only(alt.Chart(), 'twin').encode(x=_LAYER, y=_LOSS)
  title = 'Loss at every exit'
  if twin_losses:
    title += ' (hollow diamond: dense twin of the same shape and budget)'
  return theme.panels(
    [
      *_by_layer(theme.only(series.chart(), 'exit'), series, 'cell', 'exits'),
      twin.mark_point(
        shape='diamond', size=70, filled=False, color=theme.RULE
      ).encode(tooltip=theme.tips('layer', 'loss')),
    ],
    rows,
    title=title,
    own_y=True,
    series=series,
  )


_LAYER = theme.x('layer', 'layer of the exit', axis=alt.Axis(tickMinStep=1))
_LOSS = theme.y('loss', scale=theme.near())


def _by_layer(
  base: alt.Chart, series: theme.Series, *tooltip: str
) -> list[alt.Chart]:
  """Returns layers of losses by layer: lines and their points."""
  base = base.encode(x=_LAYER, y=_LOSS)
  point = base.mark_point().encode(
    shape=series.shape, tooltip=theme.tips(*tooltip, 'layer', 'loss')
  )
  return [base.mark_line(), point]


def _spread(items: list[Any], most: int) -> list[Any]:
  """Returns at most so many items, from the first to the last."""
  picks = np.linspace(0, len(items) - 1, min(len(items), most))
  return [items[round(pick)] for pick in picks]


def gamma(tables: isoflop.Tables) -> theme.Chart:
  """Draws every estimate of gamma with its interval, measured ones first."""
  equal = {'flops': 'equal FLOPs', 'tokens': 'equal N and D'}
  estimates: list[tuple[str, str, Any]] = [
    (row.loss, f'same shape, {equal[row.equal]}', row)
    for row in tables.paired_gamma
    if row.budget is None
  ]
  estimates += [('exit', 'dense twins', row) for row in tables.twin_gamma[:1]]
  estimates += [
    (row.loss, f'{form_name(row.form)} form', row) for row in tables.gamma
  ]
  return theme.forest(
    [
      {
        'name': f'{LOSS_TITLES[loss]}: {of}',
        'value': row.gamma,
        'group': LOSS_TITLES[loss],
        'flags': '; '.join(getattr(row, 'flags', ())),
        'profile_lo': getattr(row, 'profile_lo', None),
        'profile_hi': getattr(row, 'profile_hi', None),
      }
      for loss, of, row in estimates
    ],
    title='Exponent of G under every definition of the loss and every form',
    axis='gamma (line: 95 % interval; band: by profile; hollow: flagged;'
    f' dashed: published {PUBLISHED_GAMMA})',
    dashed=PUBLISHED_GAMMA,
  )


def form_name(form: str) -> str:
  """Returns how figures and pages name a form."""
  names = {'dense_null': 'null (gamma = 0)'}
  return names.get(form, form.removeprefix('familial_').replace('_', ' '))


@dataclasses.dataclass(frozen=True)
class Fitted:
  """The law of one loss in the form of lowest AIC, and the rows it was fitted to.

  Attributes:
    law: as read from `fit.json`.
    table: rows of the fit.
    noise: standard deviation of log loss between seeds; None if unknown.
  """

  law: fit_record.Law
  table: tables_lib.Table
  noise: float | None

  @property
  def residuals(self) -> np.ndarray:
    """Residuals of log loss [rows]."""
    columns = self.table.columns
    return np.log(columns['loss'] / self.law.predict(columns))

  @property
  def constants(self) -> theme.Rows:
    """Rows of the law's constants."""
    known = self.law.record.identified
    return [
      {
        'name': name,
        'value': isoflop.constant(self.law, name),
        'identified': known.get(name, True),
      }
      for name in self.law.params
    ]


def laws(results: study.Results, tables: isoflop.Tables) -> dict[str, Fitted]:
  """Returns the law of each loss that was fitted with an exponent of G."""
  found = {}
  rows = [row for run in results.finished for row in run.rows]
  for loss in isoflop.LOSSES:
    fits = [row for row in tables.gamma if row.loss == loss]
    best = min(fits, key=lambda row: row.aic_behind or 0.0, default=None)
    if best is None:
      continue
    path = results.folder / 'fits' / loss / best.form / 'fit.json'
    law_ = fit_record.load(path)
    source = law_.record.table
    arms = source.filters.get('arms') if source else None
    table = tables_lib.from_rows(rows, loss, arms=arms, mix_corpora=True)
    noise = getattr(tables.noise[0], loss) if tables.noise else None
    found[loss] = Fitted(law_, table, noise)
  return found


def profile(fits: Mapping[str, Fitted]) -> theme.Chart:
  """Draws the deviance of the refitted law against the value gamma is held at.

  Args:
    fits: by loss.
  """
  rows: theme.Rows = []
  for loss, fit in fits.items():
    found = fit.law.record.profile['gamma']
    rows += theme.rows(
      name=f'{LOSS_TITLES[loss]}, {form_name(fit.law.form.name)}',
      gamma=found.values,
      deviance=found.deviance,
    )
  cutoff = max(f.law.record.profile['gamma'].cutoff for f in fits.values())
  series = theme.category('name', [row['name'] for row in rows])
  base = series.chart(
    x=theme.x('gamma', 'gamma, held; all other constants refitted'),
    y=theme.y('deviance', 'deviance (dashed: 95 % cut-off)'),
  ).transform_filter(
    f'isValid(datum.deviance) && datum.deviance <= {4 * cutoff}'
  )
  return theme.single(
    [
      theme.reference(cutoff, dashed=True),
      theme.reference(0, 'x'),
      base.mark_line(),
    ],
    rows,
    title='Profile of gamma',
    series=series,
  )


def law(fit: Fitted, title: str) -> theme.Chart:
  """Draws loss against N, D and G with a law through it.

  Each point is moved along the law to the panel's values of the other two
  columns, so that its distance from the line is its own residual.

  Args:
    fit: law of N, D and G.
    title: of the figure.
  """
  law_, columns = fit.law, fit.table.columns
  middle = {
    'N': float(np.exp(np.mean(np.log(columns['N'])))),
    'D': float(np.exp(np.mean(np.log(columns['D'])))),
    'G': float(columns['G'].min()),
  }
  interval = law_.record.bootstrap.get('gamma')
  series = theme.granularity(columns['G'])
  charts = []
  for name in middle:
    axis = theme.log_axis(columns[name])

    def at(values: np.ndarray, name: str = name) -> dict[str, np.ndarray]:
      held = {key: np.full_like(values, value) for key, value in middle.items()}
      return {**held, name: values}

    along = np.geomspace(columns[name].min(), columns[name].max(), 40)
    curve: dict[str, Any] = {
      'x': along,
      'loss': law_.predict(at(along)),
      'kind': 'law',
    }
    x = columns[name]
    if name == 'G':
      x = _beside(x)
      ticks = sorted({int(g) for g in columns['G']})
      axis = theme.log_axis(x) | {'axis': alt.Axis(values=ticks, format='d')}
      if interval is not None and interval.bounded:
        curve['loss_lo'], curve['loss_hi'] = (
          law_.form.predict({**law_.params, 'gamma': end}, at(along))
          for end in (interval.lo, interval.hi)
          if end is not None
        )
    rows = theme.rows(**curve) + theme.rows(
      x=x,
      loss=np.exp(fit.residuals) * law_.predict(at(columns[name])),
      exits=columns['G'].astype(int),
      run=fit.table.run,
      kind='run',
    )
    y = theme.y('loss', scale=theme.near(8))
    horizontal = theme.x('x', _AXES[name], **axis)
    line = theme.only(alt.Chart().encode(x=horizontal), 'law')
    point = theme.only(series.chart(x=horizontal, y=y), 'run')
    layers = [
      point.mark_point(size=28).encode(
        shape=series.shape, tooltip=theme.tips('run', 'exits', 'loss')
      ),
      line.mark_line(color=theme.RULE).encode(y=y),
    ]
    if 'loss_lo' in curve:
      band = theme.interval(line, y, 'area', opacity=0.2, color=theme.RULE)
      layers.insert(0, band)
    others = ', '.join(
      f'{key} = {text.amount(value)}'
      for key, value in middle.items()
      if key != name
    )
    charts.append(theme.panel(layers, rows, title=f'at {others}'))
  return theme.concat(charts, title, series=series)


def _beside(values: np.ndarray) -> np.ndarray:
  """Returns values set side by side, so that no point hides another."""
  return values * np.exp(np.linspace(-0.12, 0.12, len(values)))


def residuals(fit: Fitted, title: str) -> theme.Chart:
  """Draws residuals of log loss against N, D, G and layer, coloured by budget.

  The band is the noise between seeds, where it was measured.
  """
  columns, noise = fit.table.columns, fit.noise
  budgets = [text.scientific(b) for b in np.unique(columns['budget'])]
  series = theme.graded(
    'budget', budgets, theme.axis_title('C'), scheme='viridis'
  )
  behind = [theme.reference(0)]
  if noise is not None:
    title += ' (hollow: dense; band: noise between seeds)'
    behind.insert(0, theme.band(-100 * noise, 100 * noise))
  else:
    title += ' (hollow: dense)'
  charts = []
  for name, label in _AXES.items():
    x = columns[name]
    if name == 'layer' and len(np.unique(x)) == 1:
      continue
    if name in ('G', 'layer'):
      x = _beside(x)
    rows = theme.rows(
      x=x,
      residual=100 * fit.residuals,
      budget=[text.scientific(b) for b in columns['budget']],
      exits=columns['G'].astype(int),
      dense=columns['G'] == 1,
      run=fit.table.run,
    )
    base = series.chart(
      x=theme.x('x', label, **theme.log_axis(x)),
      y=theme.y('residual'),
      tooltip=theme.tips('run', 'exits', 'residual'),
    )
    layers = [
      *behind,
      base.transform_filter('datum.dense').mark_point(size=30, filled=False),
      base.transform_filter('!datum.dense').mark_point(size=26),
    ]
    charts.append(theme.panel(layers, rows))
  return theme.concat(charts, title, series=series)


def leverage(tables: isoflop.Tables) -> theme.Chart:
  """Draws Efficiency Leverage by budget and G; arrows stand for infinity."""
  finite = [r.leverage for r in tables.leverage if r.leverage is not None]
  top = 2.0 * max(*finite, 1.0)
  series = theme.granularity(row.exits for row in tables.leverage)
  shift = theme.beside(row.exits for row in tables.leverage)
  rows = theme.flat(
    tables.leverage,
    x=lambda r: r.budget * shift[r.exits],
    shown=lambda r: top if r.infinite else r.leverage,
    shown_lo=lambda r: r.lo,
    shown_hi=lambda r: top if r.hi is None else min(r.hi, top),
    clipped=lambda r: r.lo is not None and (r.hi is None or r.hi > top),
  )
  ends = [*finite, top, 0.8, *(r.lo for r in tables.leverage if r.lo)]
  title = 'Efficiency Leverage (above 1, sharing pays)'
  y = theme.y('shown', title, **theme.log_axis(ends))
  base = series.chart(
    x=theme.x(
      'x', theme.axis_title('C'), **theme.log_axis(r['x'] for r in rows)
    )
  )
  faint = base.encode(opacity=series.shown(0.35))
  point = base.encode(
    y=y,
    tooltip=theme.tips('run', 'exits', 'leverage', 'lo', 'hi', 'unreachable'),
  )
  layers = [
    theme.reference(1),
    theme.interval(faint, y, strokeWidth=1),
    faint.transform_filter('datum.clipped')
    .mark_point(shape='triangle-up', size=22)
    .encode(y='shown_hi:Q'),
    point.transform_filter('datum.infinite').mark_point(
      shape='arrow', size=160
    ),
    point.transform_filter('!datum.infinite')
    .mark_point()
    .encode(shape=series.shape),
  ]
  return theme.single(
    layers,
    rows,
    title='Efficiency Leverage (arrow: infinite; small triangle: the interval'
    ' goes on)',
    series=series,
  )


def weighting(tables: isoflop.Tables) -> theme.Chart:
  """Draws each exit's loss by layer under each weighting, a panel for each G."""
  rows = theme.flat(
    tables.weighting,
    panel=lambda r: f'{_budget(r.budget)}, G = {r.exits}',
    weighting=lambda r: r.weighting.replace('_', ' '),
  )
  names = sorted({row['weighting'] for row in rows})
  series = theme.category('weighting', names)
  layers = _by_layer(series.chart(), series, 'weighting')
  title = "Weights of the exits' losses"
  return theme.panels(layers, rows, title=title, series=series)


def frozen(tables: isoflop.Tables) -> theme.Chart:
  """Draws exits on a frozen dense trunk beside exits trained jointly."""
  names = ['jointly', 'on a frozen trunk']
  rows = [
    {
      'trained': trained,
      'layer': row.layer,
      'loss': loss,
      'panel': f'{row.exit_kind}, {_budget(row.flops)}',
    }
    for row in tables.frozen
    for trained, loss in zip(names, (row.loss_joint, row.loss), strict=True)
    if loss is not None
  ]
  series = theme.category('trained', names)
  layers = _by_layer(series.chart(), series, 'trained')
  title = 'Exits on a frozen dense trunk, and trained jointly'
  return theme.panels(layers, rows, title=title, series=series)


def gradients(tables: isoflop.Tables) -> theme.Chart:
  """Draws the cosine of exits' gradients over training, mean of shared layers."""
  groups: dict[tuple[int, str], list[float]] = {}
  for row in tables.gradients:
    key = row.step, f'exits {row.exit_a} and {row.exit_b}'
    groups.setdefault(key, []).append(row.cosine)
  rows = [
    {'step': step, 'pair': pair, 'cosine': float(np.mean(values))}
    for (step, pair), values in groups.items()
  ]
  series = theme.category('pair', sorted({pair for _, pair in groups}))
  base = series.chart(x=theme.x('step', 'training step'), y=theme.y('cosine'))
  point = base.mark_point(size=24).encode(
    shape=series.shape, tooltip=theme.tips('pair', 'step', 'cosine')
  )
  return theme.single(
    [theme.reference(0), base.mark_line(), point],
    rows,
    title="Cosine between the exits' gradients in the layers they share",
    series=series,
  )
