"""Figures of allocations: which candidates were trained how far, and to what end."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import altair as alt
import numpy as np

from familial.allocation import comparison
from familial.allocation import curves as curves_lib
from familial.allocation import envelope
from familial.allocation import rounds as rounds_lib
from familial.allocation import surrogate
from familial.core import text
from familial.core.estimate import Estimate
from familial.plots import theme
from familial.studies import live_allocation

Cells = Sequence[comparison.CellSummary]
WHOLE = 'whole grid'
# Colour and marker of a policy, the same in every figure.
_LOOKS = {
  WHOLE: (theme.RULE, 'circle'),
  'sh': ('#a6761d', 'circle'),
  'oracle': ('#7570B3', theme.STAR),
  'uniform': ('#56B4E9', 'square'),
  'sh_lmc': ('#0072B2', 'diamond'),
  'sh_ensemble_power_law': ('#D55E00', 'triangle-up'),
  'sh_ensemble_exponential': ('#E69F00', 'triangle-down'),
  'sh_ensemble_mmf': ('#CC79A7', 'cross'),
  'law': ('#009E73', 'triangle-right'),
}
_OTHER = ('#888888', 'triangle-left')
_KEPT, _EARLY, _LATE = '#D55E00', (166, 206, 235), (33, 105, 180)
_CROSS = 'M-1,-1L1,1M1,-1L-1,1'
_TALL = 1.1  # upper end of a panel of curves over the highest of lowest losses
_LEAST = 0.3  # % to either side that an axis of gains shows
_NATS = 'loss, nats per token (lower is better)'


def look(
  names: Iterable[str], field: str = 'policy'
) -> tuple[alt.Color, alt.Shape]:
  """Returns the colour and marker encodings of policies."""
  domain = list(dict.fromkeys(names))
  colours, shapes = zip(
    *(_LOOKS.get(name, _OTHER) for name in domain), strict=True
  )
  return (
    alt.Color(f'{field}:N', title=None, scale=alt.Scale(domain=domain, range=list(colours))),
    alt.Shape(f'{field}:N', title=None, scale=alt.Scale(domain=domain, range=list(shapes))),
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Course:
  """How one allocation went.

  Attributes:
    title: of its panel.
    whole: all that is known of each candidate, trained by the allocation or not.
    known: what the allocation trained of it.
    ranking: the candidates of each round.
  """

  title: str
  whole: Sequence[curves_lib.Curve]
  known: Sequence[curves_lib.Curve]
  ranking: Sequence[rounds_lib.Ranked]

  @property
  def pruned(self) -> dict[str, int]:
    """The round after which each candidate was pruned, by name."""
    return {row.cell: row.round for row in self.ranking if not row.kept}

  @property
  def predictions(self) -> list[rounds_lib.Ranked]:
    """The last prediction of each candidate that has one, lowest first."""
    last = {row.cell: row for row in self.ranking if row.predicted is not None}
    return sorted(
      last.values(), key=lambda row: row.predicted.value if row.predicted else 0
    )


def live(tables: live_allocation.Tables) -> theme.Chart:
  """Draws the curves of a live allocation's candidates, and its predictions."""
  [spending] = tables.spending
  course = Course(
    spending.policy, tables.curves(False), tables.curves(True), tables.ranking
  )
  return courses([course])


def courses(shown: Sequence[Course]) -> theme.Chart:
  """Draws curves of one or two allocations, and the predictions of the last.

  Args:
    shown: allocations, one of whose candidates has a loss at least.
  """
  last = max((n for course in shown for n in course.pruned.values()), default=0)
  shades = np.linspace(_EARLY, _LATE, max(last, 1)).round().astype(int)
  fates = {
    **{_fate(n + 1): '#{:02x}{:02x}{:02x}'.format(*shades[n]) for n in range(last)},
    _fate(None): _KEPT,
  }  # fmt: skip
  colour = alt.Color(
    'fate:N',
    title=None,
    scale=alt.Scale(domain=list(fates), range=list(fates.values())),
  )
  pick = theme.legend_filter('fate')
  charts = [_course(course, colour, pick) for course in shown]
  charts[0] = charts[0].add_params(pick)
  if shown[-1].predictions:
    charts.append(_predictions(shown[-1], colour))
  return alt.concat(
    *charts, columns=len(charts), title='Training of the candidates'
  )


def _fate(pruned: int | None) -> str:
  return 'not pruned' if pruned is None else f'pruned after round {pruned}'


def _course(course: Course, colour: alt.Color, pick: alt.Parameter) -> Any:
  """Draws the curves of one allocation, above the lowest losses cut off."""
  pruned = course.pruned
  rows: list[dict[str, Any]] = []
  for whole, known in zip(course.whole, course.known, strict=True):
    at = {'cell': whole.name, 'fate': _fate(pruned.get(whole.name))}
    stop = known.end if len(known.flops) else 0.0
    parts = {
      'trained': known.flops <= stop,
      'rest': whole.flops >= (known.flops[-1] if len(known.flops) else 0.0),
    }
    for part, curve in (('trained', known), ('rest', whole)):
      rows += [
        {**at, 'part': part, 'flops': float(flops), 'loss': float(loss)}
        for flops, loss in zip(
          curve.flops[parts[part]], curve.loss[parts[part]], strict=True
        )
      ]
    if len(known.flops) and (whole.name in pruned or known.diverged):
      rows.append({**at, 'part': 'end', 'flops': stop, 'loss': float(known.loss[-1])})  # fmt: skip
  trained = [curve for curve in course.known if len(curve.flops)] or [
    curve for curve in course.whole if len(curve.flops)
  ]
  top = _TALL * max(curve.best for curve in trained)
  first = min(
    float(curve.flops[np.argmax(curve.loss <= top)]) for curve in trained
  )
  lowest = min(curve.best for curve in course.whole if len(curve.flops))
  x = theme.log_axis([first, max(row['flops'] for row in rows)])
  y = theme.log_axis([lowest, top])
  base = alt.Chart().encode(
    x=alt.X('flops:Q', title='training FLOPs of a candidate', **x),
    y=alt.Y('loss:Q', title=_NATS, **y),
    detail='cell:N',
  )

  def of(part: str) -> alt.Chart:
    return base.transform_filter(f"datum.part == '{part}'")

  tooltip = ['cell:N', 'fate:N', alt.Tooltip('flops:Q', format='.3s'),
             alt.Tooltip('loss:Q', format='.4f')]  # fmt: skip
  layers = [
    of('rest').mark_line(strokeWidth=0.8, color=theme.MUTED, clip=True),
    of('trained')
    .mark_line(strokeWidth=1.6, clip=True)
    .encode(color=colour, opacity=theme.shown(pick)),
    of('trained')
    .mark_point(size=14, clip=True)
    .encode(color=colour, opacity=theme.shown(pick), tooltip=tooltip),
    of('end')
    .mark_point(shape=_CROSS, filled=False, size=50, strokeWidth=2, clip=True)
    .encode(color=colour, opacity=theme.shown(pick)),
  ]
  return theme.panel(layers, rows, title=course.title, size=(400, 270))


def _predictions(course: Course, colour: alt.Color) -> Any:
  """Draws the last prediction of each candidate beside what it reached."""
  pruned = course.pruned
  marks = {
    'predicted': 'square',
    'lowest so far': 'triangle-down',
    'reached': 'circle',
  }
  rows = theme.flat(
    course.predictions, fate=lambda r: _fate(pruned.get(r.cell))
  )
  base = alt.Chart().encode(
    x=alt.X('cell:N', title=None, sort=[row['cell'] for row in rows]),
    tooltip=['cell:N', 'round:O', alt.Tooltip('end:Q', format='.3s'), 'predicted:Q',
             'predicted_lo:Q', 'predicted_hi:Q', 'seen:Q', 'reached:Q'],
  )  # fmt: skip
  shape = alt.Shape(
    'what:N',
    title=None,
    scale=alt.Scale(domain=list(marks), range=list(marks.values())),
    legend=alt.Legend(
      symbolFillColor=theme.MUTED, symbolStrokeColor=theme.MUTED
    ),
  )

  def point(field: str, what: str, **mark: Any) -> alt.Chart:
    value = alt.Y(f'{field}:Q', title=_NATS, scale=alt.Scale(zero=False))
    return (
      base.transform_calculate(what=f"'{what}'")
      .mark_point(**mark)
      .encode(y=value, shape=shape)
    )

  layers = [
    base.mark_rule().encode(
      y=alt.Y('predicted_lo:Q', title=_NATS), y2='predicted_hi:Q', color=colour
    ),
    point('predicted', 'predicted').encode(color=colour),
    point('seen', 'lowest so far', color=theme.MUTED, size=30),
    point(
      'reached',
      'reached',
      color=theme.RULE,
      filled=False,
      size=60,
      strokeWidth=1.5,
    ),
  ]
  return theme.panel(
    layers,
    rows,
    title=f'Last predictions, intervals of {surrogate.LEVEL:.0%}',
    size=(400, 270),
  )


def live_frontiers(tables: live_allocation.Tables) -> theme.Chart:
  """Draws the frontier of a live allocation beside the whole grid's."""
  [spending] = tables.spending
  known = tables.curves(True)
  whole = tables.curves(False)
  if not tables.replays:  # The whole grid was not trained.
    return frontiers(known, {}, spending.extrapolated_to, spending.policy)
  return frontiers(whole, {spending.policy: known}, spending.extrapolated_to)


def frontiers(
  whole: Sequence[curves_lib.Curve],
  trained: Mapping[str, Sequence[curves_lib.Curve]],
  far: float,
  name: str = WHOLE,
) -> theme.Chart:
  """Draws compute frontiers with their lines, and their distance from the grid's.

  Args:
    whole: curves of the whole grid.
    trained: what each policy trained of them.
    far: FLOPs to which lines are drawn.
    name: of `whole`.
  """
  low, high = envelope.span(whole)
  full = envelope.line(whole, low, high)
  least = low / envelope.WIDTH  # Below it curves are all in one transient.
  rows: list[dict[str, Any]] = []
  for policy, curves in {name: whole, **trained}.items():
    if not any(len(curve.flops) for curve in curves):
      continue
    begin, end = envelope.span(curves)
    flops = np.geomspace(max(begin, least), end, envelope.POINTS)
    line = envelope.line(curves, begin, end)
    ahead = np.geomspace(max(begin, least), far, envelope.POINTS)
    for kind, x, loss in (
      ('frontier', flops, envelope.frontier(curves, flops)),
      ('line', ahead, line(ahead)),
    ):
      over = 100 * (loss / full(x) - 1)
      rows += [
        {'policy': policy, 'kind': kind, 'flops': float(c), 'loss': float(value),
         'over': float(off)}
        for c, value, off in zip(x, loss, over, strict=True)
        if math.isfinite(value)
      ]  # fmt: skip
  colour, _ = look(row['policy'] for row in rows)
  pick = theme.legend_filter('policy')
  compute = theme.log_axis([*(row['flops'] for row in rows), far])
  charts: list[Any] = []
  for field, title, axis in (
    ('loss', _NATS, theme.log_axis(row['loss'] for row in rows)),
    ('over', f'loss over the line of {name}, %', {}),
  ):
    base = alt.Chart().encode(
      x=alt.X('flops:Q', title='training compute C, FLOPs', **compute),
      y=alt.Y(f'{field}:Q', title=title, **axis),
      color=colour,
      opacity=theme.shown(pick),
      tooltip=['policy:N', 'flops:Q', f'{field}:Q'],
    )
    layers = [
      theme.reference(high, 'x'),
      base.transform_filter("datum.kind == 'line'").mark_line(
        strokeWidth=1, strokeDash=[5, 3]
      ),
      base.transform_filter("datum.kind == 'frontier'")
      .mark_line()
      .encode(
        strokeWidth=alt.condition(
          f"datum.policy == '{name}'", alt.value(4), alt.value(2)
        )
      ),
    ]
    if not charts:
      layers[-1] = layers[-1].add_params(pick)
    charts.append(theme.panel(layers, rows, size=(400, 270)))
  return alt.concat(
    *charts,
    columns=2,
    title='Compute frontiers (dashed: line through the last factor of '
    f"{envelope.WIDTH:g}, extrapolated; vertical: the grid's largest compute)",
  )


def label(cell: comparison.CellSummary) -> str:
  """Returns the label of a cell: its candidates and its budget."""
  return f'{cell.candidates} candidates, {text.scientific(cell.budget)} FLOPs'


def _policies(cells: Cells) -> list[str]:
  return list(dict.fromkeys(name for cell in cells for name in cell.policies))


def _compared(cells: Cells) -> list[str]:
  """Returns the policies that are compared with `sh`, the bound last."""
  names = [name for name in _policies(cells) if name != comparison.BASE]
  return sorted(names, key=lambda name: name == comparison.BOUND)


def _over(gain: Estimate) -> Estimate:
  """Returns the loss over that of `sh`, in per cent."""
  return gain.map(lambda value: -100 * value)


def heat(cells: Cells) -> theme.Chart:
  """Draws the loss over Successive Halving's by policy and cell, by table."""
  rows = []
  for cell in cells:
    for name, policy in cell.policies.items():
      if name != comparison.BASE and not math.isnan(policy.gain.value):
        over = _over(policy.gain)
        rows.append(
          {'policy': name, 'table': cell.table,
           'cell': f'{cell.candidates} at {text.scientific(cell.budget)}',
           'over': over.value, 'over_lo': over.lo, 'over_hi': over.hi,
           'sign': over.sign, 'said': f'{over}'.replace(' [', '\n[')}
        )  # fmt: skip
  names = _compared(cells)
  base = alt.Chart().encode(
    x=alt.X('cell:N', title='candidates at a budget in FLOPs', sort=None,
            axis=alt.Axis(labelAngle=0)),
    y=alt.Y('policy:N', title=None, sort=names, axis=alt.Axis(labelLimit=220)),
    tooltip=['policy:N', 'cell:N', 'said:N', 'sign:N'],
  )  # fmt: skip
  columns = len({row['cell'] for row in rows})
  return theme.panels(
    theme.heat(base, rows, "loss over sh's, %"),
    rows,
    by='table',
    title="Lowest loss over Successive Halving's, %",
    columns=2,
    size=(100 * columns, 36 * len(names)),
  )


def gains(cells: Cells) -> theme.Chart:
  """Draws each policy's gain over `sh`, a panel for each cell of one table.

  The band is the oracle's gain. A value far to the left is drawn at the edge.
  """
  names = _compared(cells)
  colour, shape = look(names)
  charts = []
  for cell in cells:
    of = {
      name: cell.policies[name].gain.map(lambda value: 100 * value)
      for name in names
      if not math.isnan(cell.policies[name].gain.value)
    }
    right = 1.12 * max([_LEAST, *(g.hi or g.value for g in of.values())])
    least = min([-_LEAST, *(g.value if g.lo is None else g.lo for g in of.values())])  # fmt: skip
    left = max(1.15 * least, -2 * right)
    rows = [
      {'policy': name, 'gain': max(gain.value, left), 'value': gain.value,
       'lo': max(gain.lo, left) if gain.lo is not None else None,
       'hi': max(gain.hi, left) if gain.hi is not None else None,
       'off': gain.value < left, 'cut': gain.lo is not None and gain.lo < left,
       'said': f'{text.number(gain.value)} %'}
      for name, gain in of.items()
    ]  # fmt: skip
    title = 'gain over sh, % (higher is better)'
    x = alt.X(
      'gain:Q',
      title=title,
      scale=alt.Scale(domain=[left, right], nice=False),
    )
    base = alt.Chart().encode(
      y=alt.Y(
        'policy:N', title=None, sort=names, axis=alt.Axis(labelLimit=180)
      ),
      color=colour.legend(None),
    )
    arrow = base.transform_filter('datum.off')
    layers = [
      theme.reference(0, 'x'),
      base.transform_filter('!datum.off')
      .mark_rule()
      .encode(x=alt.X('lo:Q', title=title), x2='hi:Q'),
      base.transform_filter('!datum.off && datum.cut')
      .mark_point(shape='triangle-left', size=22)
      .encode(x='lo:Q'),
      base.transform_filter('!datum.off')
      .mark_point(size=80)
      .encode(
        x=x,
        shape=shape.legend(None),
        tooltip=['policy:N', 'value:Q', 'lo:Q', 'hi:Q'],
      ),
      arrow.mark_point(shape='triangle-left', size=70).encode(
        x=x, tooltip=['policy:N', 'value:Q']
      ),
      arrow.mark_text(align='left', dx=9, fontSize=11).encode(
        x=x, text='said:N', color=alt.value(theme.RULE)
      ),
    ]
    if comparison.BOUND in of and of[comparison.BOUND].value > 0:
      layers.insert(0, theme.band(0, of[comparison.BOUND].value, 'x'))
    charts.append(
      theme.panel(layers, rows, title=label(cell), size=(300, 26 * len(names)))
    )
  return alt.concat(
    *charts,
    columns=2,
    title=f"Gain over Successive Halving: {cells[0].table} (band: the oracle's; "
    'arrow: beyond the panel)',
  )


def families(cells: Cells) -> list[list[comparison.CellSummary]]:
  """Returns the cells of one table and number of candidates at several budgets."""
  found: dict[Any, dict[float, comparison.CellSummary]] = {}
  for cell in cells:
    key = cell.table, cell.candidates
    found.setdefault(key, {})[cell.budget] = cell
  return [
    [by_budget[budget] for budget in sorted(by_budget)]
    for by_budget in found.values()
    if len(by_budget) > 1
  ]


def law_errors(cells: Cells, beyond: float) -> theme.Chart:
  """Draws errors of extrapolated laws and lines against the spent compute.

  Args:
    cells: of one table and number of candidates, by budget.
    beyond: compute of the comparison, as a multiple of the grid's largest.
  """
  names = _policies(cells)
  colour, shape = look(names)
  pick = theme.legend_filter('policy')
  charts: list[Any] = []
  for field, title in (
    ('law_error', 'Law'),
    ('line_error', 'Line through the frontier'),
  ):
    rows = []
    for place, name in enumerate(names):
      # Side by side, so that no interval hides another.
      shift = math.exp(0.08 * (place / max(len(names) - 1, 1) - 0.5))
      for cell in cells:
        policy = cell.policies[name]
        error = getattr(policy, field)
        if error.value > 0:  # False for NaN; 0 has no place on a log axis.
          share = (1 - policy.saving.value) * policy.spent.value / cell.budget
          rows.append(
            {'policy': name, 'spent': 100 * share * shift, 'error': 100 * error.value,
             'lo': 100 * error.lo if error.lo else None,
             'hi': 100 * error.hi if error.hi and error.hi < math.inf else None}
          )  # fmt: skip
    if not rows:
      continue
    values = [row[key] for row in rows for key in ('error', 'lo', 'hi')]
    base = alt.Chart().encode(
      x=alt.X(
        'spent:Q',
        title='spent, % of training all to their ends',
        **theme.log_axis(row['spent'] for row in rows),
      ),
      color=colour,
      opacity=theme.shown(pick),
    )
    axis = theme.log_axis(value for value in values if value is not None)
    label_y = 'median error, % (lower is better)'
    y = alt.Y('error:Q', title=label_y, **axis)
    layers = [
      base.mark_line(strokeWidth=1.2).encode(y=y),
      base.transform_filter('isValid(datum.lo) && isValid(datum.hi)')
      .mark_rule(strokeWidth=1)
      .encode(y=alt.Y('lo:Q', title=label_y, **axis), y2='hi:Q'),
      base.mark_point(size=80).encode(
        y=y,
        shape=shape,
        tooltip=['policy:N', 'spent:Q', 'error:Q', 'lo:Q', 'hi:Q'],
      ),
    ]
    if not charts:
      layers[-1] = layers[-1].add_params(pick)
    charts.append(theme.panel(layers, rows, title=title, size=(340, 250)))
  return alt.concat(
    *charts,
    columns=2,
    title=f'Error of the loss at {beyond:g} times the largest compute, '
    f'{cells[0].candidates} candidates: {cells[0].table}',
  )


def coverage(cells: Cells) -> theme.Chart:
  """Draws the share of losses within their predicted intervals, by round."""
  rows, colour, shape = _calibration(cells)
  pick = theme.legend_filter('policy')
  y = alt.Y('share:Q', title='losses within the interval, %',
            scale=alt.Scale(domain=[0, 100]))  # fmt: skip
  base = _by_round(colour, pick).encode(y=y)
  layers = [
    theme.reference(100 * surrogate.LEVEL, dashed=True),
    base.mark_line(),
    base.mark_point()
    .encode(
      shape=shape,
      tooltip=['policy:N', 'round:O', 'share:Q', 'predictions:Q'],
    )
    .add_params(pick),
  ]
  return theme.panels(
    layers,
    rows,
    by='panel',
    title=f'Coverage of predicted intervals: {cells[0].table} (dashed: nominal)',
    columns=2,
    size=(300, 190),
  )


def prediction_errors(cells: Cells) -> theme.Chart:
  """Draws median errors of predictions beside those of the last loss."""
  rows, colour, shape = _calibration(cells)
  pick = theme.legend_filter('policy')
  axis = theme.log_axis(row[key] for row in rows for key in ('mean', 'held'))
  title = 'median error, % (lower is better)'
  layers: list[Any] = []
  for field, dash in (('held', [2, 3]), ('mean', [1, 0])):
    base = (
      _by_round(colour, pick)
      .transform_filter(f'datum.{field} > 0')
      .encode(y=alt.Y(f'{field}:Q', title=title, **axis))
    )
    layers += [
      base.mark_line(strokeDash=dash),
      base.mark_point(filled=field == 'mean').encode(
        shape=shape, tooltip=['policy:N', 'round:O', 'mean:Q', 'held:Q']
      ),
    ]
  layers[-1] = layers[-1].add_params(pick)
  return theme.panels(
    layers,
    rows,
    by='panel',
    title=f'Error of predicted losses: {cells[0].table} (dotted: of assuming the '
    'last loss)',
    columns=2,
    size=(300, 190),
  )


def _calibration(
  cells: Cells,
) -> tuple[list[dict[str, Any]], alt.Color, alt.Shape]:
  rows: list[dict[str, Any]] = [
    {'policy': name, 'panel': label(cell), 'round': row.round,
     'share': 100 * row.coverage.value, 'predictions': row.predictions,
     'mean': 100 * row.error, 'held': 100 * row.held_error}
    for cell in cells
    for name, by_round in cell.calibration.items()
    for row in by_round
  ]  # fmt: skip
  return rows, *look(row['policy'] for row in rows)


def _by_round(colour: alt.Color, pick: alt.Parameter) -> alt.Chart:
  return alt.Chart().encode(
    x=alt.X('round:O', title='round', axis=alt.Axis(labelAngle=0)),
    color=colour,
    opacity=theme.shown(pick),
  )
