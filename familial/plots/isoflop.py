"""Figures of an IsoFLOP study: exits beside dense models, the law, the controls."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import altair as alt
import numpy as np

from familial.core import text
from familial.core.estimate import Estimate
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
_NATS = 'loss, nats per token (lower is better)'
_FLOPS = 'training compute C, FLOPs'
_MOST_SHAPES = 3  # panels of the exits' figure


def paired(tables: isoflop.Tables) -> theme.Chart:
  """Draws families' loss over that of dense models of the same shape, by budget."""
  granularities = sorted({row.exits for row in tables.paired_ratios})
  shift = {
    g: 1.13 ** (place - (len(granularities) - 1) / 2)
    for place, g in enumerate(granularities)
  }

  def place(row: Any) -> float:
    return row.budget * shift[row.exits]

  means = [row for row in tables.paired_ratios if row.budget is not None]
  if not means:  # One budget: the mean over all is that of the budget.
    budget = tables.paired_blocks[0].budget
    means = [
      comparison.Ratio(r.loss, r.exits, budget, r.log_ratio, r.blocks)
      for r in tables.paired_ratios
    ]
  rows = theme.percentages(
    means,
    kind='mean of the shapes',
    x=place,
    panel=lambda r: LOSS_TITLES[r.loss],
  )
  rows += theme.flat(
    tables.paired_blocks,
    kind='one shape',
    x=lambda r: place(r) * 1.04,
    over=lambda r: theme.percent(r.log_ratio),
    panel=lambda r: LOSS_TITLES[r.loss],
  )
  colour, shape = theme.granularity(granularities)
  pick = theme.legend_filter('exits')
  base = alt.Chart().encode(
    x=alt.X('x:Q', title=_FLOPS, **theme.log_axis(r['x'] for r in rows)),
    y=alt.Y('over:Q', title="loss over the dense model's, %"),
    color=colour,
    opacity=theme.shown(pick),
  )
  mean = base.transform_filter("datum.kind != 'one shape'")
  tooltip = [
    'kind:N',
    'budget:Q',
    'exits:O',
    alt.Tooltip('over:Q', format='.2f'),
  ]
  layers = [
    theme.reference(0),
    base.transform_filter("datum.kind == 'one shape'")
    .mark_point(size=16)
    .encode(
      tooltip=[*tooltip, 'width:Q', 'depth:Q'], opacity=theme.shown(pick, 0.45)
    ),
    mean.mark_line(),
    mean.mark_rule().encode(y='over_lo:Q', y2='over_hi:Q'),
    mean.mark_point().encode(shape=shape, tooltip=tooltip).add_params(pick),
  ]
  return theme.panels(
    layers,
    rows,
    by='panel',
    title='Families beside dense models of the same shape, at equal FLOPs',
    size=(340, 230),
  )


def heat(tables: isoflop.Tables) -> theme.Chart:
  """Draws the price of sharing as a heat map of G by budget."""
  rows = theme.percentages(
    [r for r in tables.paired_ratios if r.loss == 'final'],
    at=lambda r: 'all' if r.budget is None else text.scientific(r.budget),
  )
  base = alt.Chart().encode(
    x=alt.X('at:N', title=_FLOPS, sort=None, axis=alt.Axis(labelAngle=0)),
    y=alt.Y('exits:O', title='exits G'),
    tooltip=['said:N', 'sign:N', 'blocks:Q'],
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
    tables.twin_depths,
    kind='mean of the shapes',
    x=lambda r: r.layer / r.depth,
  )
  colour, shape = theme.granularity(row.exits for row in tables.twins)
  pick = theme.legend_filter('exits')
  base = alt.Chart().encode(
    x=alt.X(
      'x:Q',
      title='layer of the exit over depth',
      scale=alt.Scale(domain=[0, 1.02]),
    ),
    y=alt.Y('over:Q', title="loss over the twin's, %"),
    color=colour,
    opacity=theme.shown(pick),
  )
  mean = base.transform_filter("datum.kind != 'one exit'")
  tooltip = ['exits:O', 'layer:Q', alt.Tooltip('over:Q', format='.2f')]
  return theme.single(
    [
      theme.reference(0),
      base.transform_filter("datum.kind == 'one exit'")
      .mark_point(size=18)
      .encode(
        opacity=theme.shown(pick, 0.5),
        tooltip=[*tooltip, 'width:Q', 'loss_exit:Q', 'loss_twin:Q', 'seeds:Q'],
      ),
      mean.mark_line(),
      mean.mark_rule().encode(y='over_lo:Q', y2='over_hi:Q'),
      mean.mark_point().encode(shape=shape, tooltip=tooltip).add_params(pick),
    ],
    rows,
    title='Each exit beside a dense model of its exact shape, at equal FLOPs',
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
  rows: list[dict[str, Any]] = []
  grid = sorted(
    (run for run in runs if run.arm in definitions.GRID),
    key=lambda run: run.budget,
  )
  for run in grid:
    rows.append(
      {
        **_identity(run),
        'kind': 'run' if run.arm == 'grid' else 'other seed',
        'loss': run.loss(loss),
        'panel': _budget(run.budget),
      }
    )
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
      rows += [
        {**at, 'kind': 'parabola', 'N': float(n), 'loss': float(value)}
        for n, value in zip(along, low.curve(along), strict=True)
      ]
  colour, shape = theme.granularity(run.exits for run in grid)
  pick = theme.legend_filter('exits')
  base = alt.Chart().encode(
    x=alt.X(
      'N:Q', title='parameters N', **theme.log_axis(r['N'] for r in rows)
    ),
    y=alt.Y('loss:Q', title=_NATS, scale=alt.Scale(zero=False, padding=12)),
    color=colour,
    opacity=theme.shown(pick),
  )

  def of(kind: str) -> alt.Chart:
    return base.transform_filter(f"datum.kind == '{kind}'")

  tooltip = _TOOLTIP
  layers = [
    of('parabola').mark_line(strokeWidth=1.4),
    of('other seed').mark_point(filled=False, size=26).encode(tooltip=tooltip),
    of('run')
    .mark_point(size=45)
    .encode(shape=shape, tooltip=tooltip, href='folder:N'),
    of('lowest run').mark_point(filled=False, size=180, shape='circle'),
    of('minimum')
    .mark_point(size=150, shape=theme.STAR)
    .encode(tooltip=['exits:O', 'N:Q', 'loss:Q'])
    .add_params(pick),
  ]
  return theme.panels(
    layers,
    rows,
    by='panel',
    title=f'IsoFLOP curves, {LOSS_TITLES[loss].lower()} (star: fitted minimum;'
    ' circle: lowest run, no minimum inside)',
    independent=('y',),
  )


_TOOLTIP = [
  'cell:N',
  alt.Tooltip('N:Q', format='.4s'),
  alt.Tooltip('D:Q', format='.4s'),
  alt.Tooltip('exits:O', title='G'),
  alt.Tooltip('loss:Q', format='.4f'),
]


def _identity(run: study.Run) -> dict[str, Any]:
  """Returns the fields of a run's tooltip, and the link to its folder."""
  return {
    'cell': run.cell,
    'folder': f'../cells/{run.cell}',
    'N': run.params_full,
    'D': run.tokens,
    'C': run.flops,
    'exits': run.exits,
  }


def _budget(budget: float) -> str:
  return f'C = {text.scientific(budget)} FLOPs'


def exits(runs: Runs, twins_: Sequence[comparison.Twin]) -> theme.Chart:
  """Draws the loss at every exit against its layer, for up to three shapes.

  Budgets with dense twins come first. Of a budget's shapes, one with twins is
  shown, else one with most values of G, else that of the lowest loss.
  """
  with_twin = {(r.budget, r.width, r.depth) for r in twins_}
  chosen = []
  grid = [run for run in runs if run.arm == 'grid']
  for budget in sorted({run.budget for run in grid}):
    by_shape: dict[tuple[int, int], list[study.Run]] = {}
    for run in grid:
      if run.budget == budget:
        by_shape.setdefault((run.width, run.depth), []).append(run)
    shape, group = min(
      by_shape.items(),
      key=lambda item: (
        (budget, *item[0]) not in with_twin,
        -len({run.exits for run in item[1]}),
        min(run.loss('final') for run in item[1]),
      ),
    )
    chosen.append(((budget, *shape), group))
  first = _spread([c for c in chosen if c[0] in with_twin], _MOST_SHAPES)
  others = [c for c in chosen if c[0] not in with_twin]
  shown = first + _spread(others, _MOST_SHAPES - len(first))
  rows = []
  for (budget, width, depth), group in sorted(shown, key=lambda c: c[0]):
    panel = f'{_budget(budget)}, {width} wide'
    for run in group:
      rows += [
        {**_identity(run), 'layer': row['layer'], 'loss': row['loss'],
         'panel': panel, 'kind': 'exit'}
        for row in run.rows
      ]  # fmt: skip
    rows += [
      {'layer': r.layer, 'loss': r.loss_twin, 'panel': panel, 'kind': 'twin'}
      for r in {
        r.layer: r
        for r in twins_
        if (r.budget, r.width, r.depth) == (budget, width, depth)
      }.values()
    ]
  colour, shape_by = theme.granularity(r['exits'] for r in rows if 'exits' in r)
  pick = theme.legend_filter('exits')
  base = alt.Chart().encode(
    x=alt.X('layer:Q', title='layer of the exit', axis=alt.Axis(tickMinStep=1)),
    y=alt.Y('loss:Q', title=_NATS, scale=alt.Scale(zero=False, padding=12)),
  )
  of_exits = base.transform_filter("datum.kind == 'exit'").encode(
    color=colour, opacity=theme.shown(pick)
  )
  layers = [
    of_exits.mark_line(),
    of_exits.mark_point()
    .encode(shape=shape_by, tooltip=_TOOLTIP)
    .add_params(pick),
    base.transform_filter("datum.kind == 'twin'")
    .mark_point(shape='diamond', size=70, filled=False, color=theme.RULE)
    .encode(tooltip=['layer:Q', alt.Tooltip('loss:Q', format='.4f')]),
  ]
  title = 'Loss at every exit'
  if with_twin:
    title += ' (hollow diamond: dense twin of the same shape and budget)'
  return theme.panels(layers, rows, by='panel', title=title, independent=('y',))


def _spread(items: list[Any], most: int) -> list[Any]:
  """Returns at most so many items, from the first to the last."""
  picks = np.linspace(0, len(items) - 1, min(len(items), most))
  return [items[round(pick)] for pick in picks]


def gamma(tables: isoflop.Tables) -> theme.Chart:
  """Draws every estimate of gamma with its interval, measured ones first."""
  rows: list[dict[str, Any]] = []
  equal = {'flops': 'equal FLOPs', 'tokens': 'equal N and D'}
  for row in tables.paired_gamma:
    if row.budget is None:
      name = f'{LOSS_TITLES[row.loss]}: same shape, {equal[row.equal]}'
      rows.append(_estimate(name, row.gamma, LOSS_TITLES[row.loss], False))
  for twin in tables.twin_gamma[:1]:
    rows.append(
      _estimate('Each exit: dense twins', twin.gamma, 'Each exit', False)
    )
  for fit in tables.gamma:
    rows.append(
      {
        **_estimate(
          f'{LOSS_TITLES[fit.loss]}: {form_name(fit.form)} form',
          fit.gamma,
          LOSS_TITLES[fit.loss],
          bool(fit.flags),
        ),
        'profile_lo': fit.profile_lo,
        'profile_hi': fit.profile_hi,
        'flags': '; '.join(fit.flags),
      }
    )
  return theme.forest(
    rows,
    title='Exponent of G under every definition of the loss and every form',
    axis='gamma (line: 95 % interval; band: by profile; hollow: flagged;'
    f' dashed: published {PUBLISHED_GAMMA})',
    dashed=PUBLISHED_GAMMA,
  )


def _estimate(
  name: str, value: Any, group: str, flagged: bool
) -> dict[str, Any]:
  return {
    'name': name,
    'value': value.value,
    'lo': value.lo,
    'hi': value.hi,
    'said': f'{value}',
    'group': group,
    'flagged': flagged,
  }


def form_name(form: str) -> str:
  """Returns how figures and pages name a form."""
  names = {'dense_null': 'null (gamma = 0)'}
  return names.get(form, form.removeprefix('familial_').replace('_', ' '))


@dataclasses.dataclass(frozen=True)
class Constant:
  """A constant of a fitted law."""

  name: str
  value: Estimate
  identified: bool


@dataclasses.dataclass(frozen=True)
class Fitted:
  """The law of one loss in the form of lowest AIC, and the rows it was fitted to.

  Attributes:
    law: as read from `fit.json`.
    table: rows of the fit.
    constants: of the law.
    spread: standard deviation of its residuals in log loss.
    noise: standard deviation of log loss between seeds; None if unknown.
  """

  law: fit_record.Law
  table: tables_lib.Table
  constants: tuple[Constant, ...]
  spread: float
  noise: float | None


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
    left = np.log(table.columns['loss'] / law_.predict(table.columns))
    found[loss] = Fitted(
      law_,
      table,
      tuple(
        Constant(
          name,
          isoflop.constant(law_, name),
          law_.record.identified.get(name, True),
        )
        for name in law_.params
      ),
      float(left.std()),
      getattr(tables.noise[0], loss) if tables.noise else None,
    )
  return found


def profile(fits: Mapping[str, Fitted]) -> theme.Chart:
  """Draws the deviance of the refitted law against the value gamma is held at.

  Args:
    fits: by loss.
  """
  rows, cutoff = [], 0.0
  for loss, fit in fits.items():
    name = f'{LOSS_TITLES[loss]}, {form_name(fit.law.form.name)}'
    found = fit.law.record.profile['gamma']
    cutoff = max(cutoff, found.cutoff)
    rows += [
      {'name': name, 'gamma': value, 'deviance': deviance}
      for value, deviance in zip(found.values, found.deviance, strict=True)
      if np.isfinite(deviance)
    ]
  top = 4 * cutoff
  colour, _ = theme.category('name', [row['name'] for row in rows])
  base = alt.Chart().encode(
    x=alt.X('gamma:Q', title='gamma, held; all other constants refitted'),
    color=colour,
  )
  layers = [
    theme.reference(cutoff, dashed=True),
    theme.reference(0, 'x'),
    base.transform_filter(f'datum.deviance <= {top}')
    .mark_line()
    .encode(y=alt.Y('deviance:Q', title='deviance (dashed: 95 % cut-off)')),
  ]
  return theme.single(layers, rows, title='Profile of gamma')


def law(
  law_: fit_record.Law, table: tables_lib.Table, title: str
) -> theme.Chart:
  """Draws loss against N, D and G with a law through it.

  Each point is moved along the law to the panel's values of the other two
  columns, so that its distance from the line is its own residual.

  Args:
    law_: of N, D and G.
    table: rows that it was fitted to.
    title: of the figure.
  """
  columns = table.columns
  middle = {
    'N': float(np.exp(np.mean(np.log(columns['N'])))),
    'D': float(np.exp(np.mean(np.log(columns['D'])))),
    'G': float(columns['G'].min()),
  }
  ratio = columns['loss'] / law_.predict(columns)
  interval = law_.record.bootstrap.get('gamma')
  names = {'N': 'parameters N', 'D': 'tokens D', 'G': 'exits G'}
  colour, shape = theme.granularity(columns['G'])
  pick = theme.legend_filter('exits')
  charts: list[Any] = []
  for name, label in names.items():
    x, others = columns[name], [key for key in names if key != name]
    held = {
      key: x if key == name else np.full_like(x, middle[key]) for key in names
    }
    moved = ratio * law_.predict(held)
    along = np.geomspace(x.min(), x.max(), 40)
    line = {
      key: along if key == name else np.full_like(along, middle[key])
      for key in names
    }
    spread = np.ones_like(x)
    if name == 'G':  # Side by side, so that no point hides another.
      spread = np.exp(np.linspace(-0.12, 0.12, len(x)))
    rows: list[dict[str, Any]] = [
      {'x': float(a), 'loss': float(b), 'exits': int(g), 'run': str(run),
       'kind': 'run'}
      for a, b, g, run in zip(
        x * spread, moved, columns['G'], table.run, strict=True
      )
    ]  # fmt: skip
    rows += [
      {'x': float(a), 'loss': float(b), 'kind': 'law'}
      for a, b in zip(along, law_.predict(line), strict=True)
    ]
    if name == 'G' and interval is not None and interval.bounded:
      ends = [
        law_.form.predict({**law_.params, 'gamma': end}, line)
        for end in (interval.lo, interval.hi)
        if end is not None
      ]
      rows += [
        {'x': float(a), 'low': float(lo), 'high': float(hi), 'kind': 'band'}
        for a, lo, hi in zip(along, *ends, strict=True)
      ]
    axis = theme.log_axis(row['x'] for row in rows)
    if name == 'G':
      ticks = sorted({int(g) for g in columns['G']})
      axis['axis'] = alt.Axis(values=ticks, format='d')
    base = alt.Chart().encode(x=alt.X('x:Q', title=label, **axis))
    y = alt.Y('loss:Q', title=_NATS, scale=alt.Scale(zero=False, padding=8))
    layers = [
      base.transform_filter("datum.kind == 'band'")
      .mark_area(opacity=0.2, color=theme.RULE)
      .encode(y=alt.Y('low:Q', title=_NATS), y2='high:Q'),
      base.transform_filter("datum.kind == 'run'")
      .mark_point(size=28)
      .encode(
        y=y,
        color=colour,
        shape=shape,
        opacity=theme.shown(pick),
        tooltip=['run:N', 'exits:O', alt.Tooltip('loss:Q', format='.4f')],
      ),
      base.transform_filter("datum.kind == 'law'")
      .mark_line(color=theme.RULE)
      .encode(y=y),
    ]
    at = ', '.join(f'{key} = {text.amount(middle[key])}' for key in others)
    if not charts:
      layers[1] = layers[1].add_params(pick)
    charts.append(
      alt.layer(*layers, data=theme.data(rows)).properties(
        width=theme.PANEL[0], height=theme.PANEL[1], title=f'at {at}'
      )
    )
  return alt.concat(*charts, columns=3, title=title)


def residuals(
  law_: fit_record.Law,
  table: tables_lib.Table,
  noise: float | None,
  title: str,
) -> theme.Chart:
  """Draws residuals of log loss against N, D, G and layer, coloured by budget.

  Args:
    law_: the law.
    table: rows that it was fitted to.
    noise: standard deviation of log loss between seeds, drawn as a band; None
      if it was not measured.
    title: of the figure.
  """
  columns = table.columns
  left = 100 * np.log(columns['loss'] / law_.predict(columns))
  labels = {'N': 'parameters N', 'D': 'tokens D', 'G': 'exits G'}
  if len(np.unique(columns['layer'])) > 1:
    labels['layer'] = 'layer of the exit (depth if dense)'
  budgets = sorted({float(b) for b in columns['budget']})
  names = [text.scientific(budget) for budget in budgets]
  colour = alt.Color(
    'budget:N',
    title=_FLOPS,
    sort=names,
    scale=alt.Scale(domain=names, scheme='viridis'),
  )
  pick = theme.legend_filter('budget')
  charts: list[Any] = []
  for name, label in labels.items():
    x = columns[name]
    if name in ('G', 'layer'):
      x = x * np.exp(np.linspace(-0.12, 0.12, len(x)))
    rows: list[dict[str, Any]] = [
      {'x': float(a), 'residual': float(b), 'budget': text.scientific(c),
       'exits': int(g), 'dense': bool(g == 1), 'run': str(run)}
      for a, b, c, g, run in zip(
        x, left, columns['budget'], columns['G'], table.run, strict=True
      )
    ]  # fmt: skip
    base = alt.Chart().encode(
      x=alt.X('x:Q', title=label, **theme.log_axis(x)),
      y=alt.Y('residual:Q', title='residual of log loss, %'),
      color=colour,
      opacity=theme.shown(pick),
      tooltip=['run:N', 'exits:O', alt.Tooltip('residual:Q', format='.2f')],
    )
    layers = [
      theme.reference(0),
      base.transform_filter('!datum.dense').mark_point(size=26),
      base.transform_filter('datum.dense').mark_point(size=30, filled=False),
    ]
    if not charts:
      layers[1] = layers[1].add_params(pick)
    if noise is not None:
      layers.insert(0, theme.band(-100 * noise, 100 * noise))
    charts.append(
      alt.layer(*layers, data=theme.data(rows)).properties(
        width=theme.PANEL[0], height=theme.PANEL[1]
      )
    )
  shown = f'{title} (hollow: dense'
  shown += '' if noise is None else '; band: noise between seeds'
  return alt.concat(*charts, columns=3, title=f'{shown})')


def leverage(tables: isoflop.Tables) -> theme.Chart:
  """Draws Efficiency Leverage by budget and G; arrows stand for infinity."""
  rows_ = tables.leverage
  finite = [r.leverage for r in rows_ if r.leverage is not None] or [1.0]
  top = 2.0 * max(*finite, 1.0)
  order = sorted({row.exits for row in rows_})
  shift = {g: 1.13 ** (i - (len(order) - 1) / 2) for i, g in enumerate(order)}
  rows = theme.flat(
    rows_,
    x=lambda r: r.budget * shift[r.exits],
    shown=lambda r: top if r.infinite else r.leverage,
    hi_shown=lambda r: top if r.hi is None else min(r.hi, top),
    clipped=lambda r: r.lo is not None and (r.hi is None or r.hi > top),
  )
  colour, shape = theme.granularity(order)
  pick = theme.legend_filter('exits')
  values = [*finite, top, *(r.lo for r in rows_ if r.lo), 0.8]
  base = alt.Chart().encode(
    x=alt.X('x:Q', title=_FLOPS, **theme.log_axis(r['x'] for r in rows)),
    color=colour,
    opacity=theme.shown(pick),
  )
  y = alt.Y(
    'shown:Q',
    title='Efficiency Leverage (above 1, sharing pays)',
    **theme.log_axis(values),
  )
  tooltip = ['run:N', 'exits:O', 'leverage:Q', 'lo:Q', 'hi:Q', 'unreachable:Q']
  return theme.single(
    [
      theme.reference(1),
      base.mark_rule(strokeWidth=1).encode(
        y='lo:Q', y2='hi_shown:Q',
        opacity=theme.shown(pick, 0.35),
      ),
      base.transform_filter('datum.clipped')
      .mark_point(shape='triangle-up', size=22)
      .encode(y='hi_shown:Q', opacity=theme.shown(pick, 0.35)),
      base.transform_filter('!datum.infinite')
      .mark_point()
      .encode(y=y, shape=shape, tooltip=tooltip)
      .add_params(pick),
      base.transform_filter('datum.infinite')
      .mark_point(shape='arrow', size=160)
      .encode(y=y, tooltip=tooltip),
    ],
    rows,
    title='Efficiency Leverage (arrow: infinite; small triangle: the interval goes on)',
  )  # fmt: skip


def weighting(tables: isoflop.Tables) -> theme.Chart:
  """Draws each exit's loss by layer under each weighting, a panel for each G."""
  rows = theme.flat(
    tables.weighting,
    panel=lambda r: f'{_budget(r.budget)}, G = {r.exits}',
    weighting=lambda r: r.weighting.replace('_', ' '),
  )
  return _by_layer(
    rows,
    'weighting',
    "Weights of the exits' losses",
    sorted({r['weighting'] for r in rows}),
  )


def frozen(tables: isoflop.Tables) -> theme.Chart:
  """Draws exits on a frozen dense trunk beside exits trained jointly."""
  rows = theme.flat(
    tables.frozen,
    trained='on a frozen trunk',
    panel=lambda r: f'{r.exit_kind}, {_budget(r.flops)}',
  )
  rows += theme.flat(
    [r for r in tables.frozen if r.loss_joint is not None],
    trained='jointly',
    loss=lambda r: r.loss_joint,
    panel=lambda r: f'{r.exit_kind}, {_budget(r.flops)}',
  )
  return _by_layer(
    rows, 'trained', 'Exits on a frozen dense trunk, and trained jointly',
    ['jointly', 'on a frozen trunk'],
  )  # fmt: skip


def _by_layer(
  rows: Sequence[Mapping[str, Any]], field: str, title: str, names: list[str]
) -> theme.Chart:
  colour, shape = theme.category(field, names)
  pick = theme.legend_filter(field)
  base = alt.Chart().encode(
    x=alt.X('layer:Q', title='layer of the exit', axis=alt.Axis(tickMinStep=1)),
    y=alt.Y('loss:Q', title=_NATS, scale=alt.Scale(zero=False, padding=12)),
    color=colour,
    opacity=theme.shown(pick),
  )
  layers = [
    base.mark_line(),
    base.mark_point()
    .encode(
      shape=shape,
      tooltip=[f'{field}:N', 'layer:Q', alt.Tooltip('loss:Q', format='.4f')],
    )
    .add_params(pick),
  ]
  return theme.panels(layers, rows, by='panel', title=title)


def gradients(tables: isoflop.Tables) -> theme.Chart:
  """Draws the cosine of exits' gradients over training, mean of shared layers."""
  groups: dict[tuple[int, int, int], list[float]] = {}
  for row in tables.gradients:
    key = (row.step, row.exit_a, row.exit_b)
    groups.setdefault(key, []).append(row.cosine)
  rows: list[dict[str, Any]] = [
    {
      'step': step,
      'pair': f'exits {a} and {b}',
      'cosine': float(np.mean(values)),
    }
    for (step, a, b), values in groups.items()
  ]
  colour, shape = theme.category('pair', sorted({r['pair'] for r in rows}))
  pick = theme.legend_filter('pair')
  base = alt.Chart().encode(
    x=alt.X('step:Q', title='training step'),
    y=alt.Y('cosine:Q', title='cosine'),
    color=colour,
    opacity=theme.shown(pick),
  )
  return theme.single(
    [
      theme.reference(0),
      base.mark_line(),
      base.mark_point(size=24)
      .encode(shape=shape, tooltip=['pair:N', 'step:Q', 'cosine:Q'])
      .add_params(pick),
    ],
    rows,
    title="Cosine between the exits' gradients in the layers they share",
  )
