"""Figures of allocations: which candidates were trained how far, and to what end."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
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
_SIZE = (400, 270)  # of a panel of curves
_LEAST = 0.3  # % to either side that an axis of gains shows


def look(names: Iterable[str]) -> theme.Series:
  """Returns the series of policies."""
  return theme.series(
    'policy', {name: _LOOKS.get(name, _OTHER) for name in names}
  )


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
    _fate(n + 1): '#{:02x}{:02x}{:02x}'.format(*shades[n]) for n in range(last)
  } | {_fate(None): _KEPT}
  series = theme.series(
    'fate', {fate: (colour, 'circle') for fate, colour in fates.items()}
  )
  charts = [_course(course, series) for course in shown]
  if shown[-1].predictions:
    charts.append(_predictions(shown[-1], series.colour))
  return theme.concat(
    charts, 'Training of the candidates', columns=len(charts), series=series
  )


def _fate(pruned: int | None) -> str:
  return 'not pruned' if pruned is None else f'pruned after round {pruned}'


def _course(course: Course, series: theme.Series) -> alt.LayerChart:
  """Draws the curves of one allocation, above the lowest losses cut off."""
  pruned = course.pruned
  rows: theme.Rows = []
  for whole, known in zip(course.whole, course.known, strict=True):
    at = {'cell': whole.name, 'fate': _fate(pruned.get(whole.name))}
    begun = len(known.flops) > 0
    rest = whole.flops >= (known.flops[-1] if begun else 0.0)
    rows += theme.rows(
      **at, kind='rest', flops=whole.flops[rest], loss=whole.loss[rest]
    )
    if begun:
      done = known.flops <= known.end
      end = {'flops': known.end, 'loss': float(known.loss[-1])}
      rows += theme.rows(
        **at, kind='trained', flops=known.flops[done], loss=known.loss[done]
      )
      if whole.name in pruned or known.diverged:
        rows.append({**at, 'kind': 'end', **end})
  trained = [curve for curve in course.known if len(curve.flops)] or [
    curve for curve in course.whole if len(curve.flops)
  ]
  top = _TALL * max(curve.best for curve in trained)
  first = min(
    float(curve.flops[np.argmax(curve.loss <= top)]) for curve in trained
  )
  lowest = min(curve.best for curve in course.whole if len(curve.flops))
  longest = theme.log_axis([first, max(row['flops'] for row in rows)])
  x = theme.x('flops', 'training FLOPs of a candidate', **longest)
  y = theme.y('loss', **theme.log_axis([lowest, top]))
  base = series.chart(x=x, y=y, detail='cell:N')
  of = functools.partial(theme.only, base)
  layers = [
    theme.only(alt.Chart(), 'rest')
    .mark_line(strokeWidth=0.8, color=theme.MUTED, clip=True)
    .encode(x=x, y=y, detail='cell:N'),
    of('trained').mark_line(strokeWidth=1.6, clip=True),
    of('trained')
    .mark_point(size=14, clip=True)
    .encode(tooltip=theme.tips('cell', 'fate', 'flops', 'loss')),
    of('end').mark_point(
      shape=_CROSS, filled=False, size=50, strokeWidth=2, clip=True
    ),
  ]
  return theme.panel(layers, rows, title=course.title, size=_SIZE)


def _predictions(course: Course, colour: alt.Color) -> alt.LayerChart:
  """Draws the last prediction of each candidate beside what it reached."""
  pruned = course.pruned
  rows = theme.flat(
    course.predictions, fate=lambda r: _fate(pruned.get(r.cell))
  )
  base = alt.Chart().encode(
    x=alt.X('cell:N', title=None, sort=[row['cell'] for row in rows]),
    tooltip=theme.tips(
      'cell', 'round', 'end', 'predicted', 'predicted_lo', 'predicted_hi',
      'seen', 'reached',
    ),
  )  # fmt: skip
  marks = {
    'predicted': 'square',
    'lowest so far': 'triangle-down',
    'reached': 'circle',
  }
  shape = alt.Shape(
    'what:N',
    title=None,
    scale=alt.Scale(domain=list(marks), range=list(marks.values())),
    legend=alt.Legend(
      symbolFillColor=theme.MUTED, symbolStrokeColor=theme.MUTED
    ),
  )

  def channel(field: str) -> alt.Y:
    label = theme.axis_title('loss')
    return theme.y(field, label, scale=alt.Scale(zero=False))

  def point(field: str, what: str, **mark: Any) -> alt.Chart:
    chart = base.transform_calculate(what=f"'{what}'").mark_point(**mark)
    return chart.encode(y=channel(field), shape=shape)

  hollow = {'color': theme.RULE, 'filled': False, 'size': 60}
  layers = [
    theme.interval(base, channel('predicted')).encode(color=colour),
    point('predicted', 'predicted').encode(color=colour),
    point('seen', 'lowest so far', color=theme.MUTED, size=30),
    point('reached', 'reached', strokeWidth=1.5, **hollow),
  ]
  title = f'Last predictions, intervals of {surrogate.LEVEL:.0%}'
  return theme.panel(layers, rows, title=title, size=_SIZE)


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
  rows: theme.Rows = []
  for policy, curves in {name: whole, **trained}.items():
    if not any(len(curve.flops) for curve in curves):
      continue
    begin, end = envelope.span(curves)
    flops, ahead = (
      np.geomspace(max(begin, least), last, envelope.POINTS)
      for last in (end, far)
    )
    for kind, at, loss in (
      ('frontier', flops, envelope.frontier(curves, flops)),
      ('line', ahead, envelope.line(curves, begin, end)(ahead)),
    ):
      over = 100 * (loss / full(at) - 1)
      rows += theme.rows(
        policy=policy, kind=kind, flops=at, loss=loss, over=over
      )
  series = look(row['policy'] for row in rows)
  x = theme.x('flops', **theme.log_axis([*(r['flops'] for r in rows), far]))
  losses = [row['loss'] for row in rows if math.isfinite(row['loss'])]
  thick = alt.condition(f"datum.policy == '{name}'", alt.value(4), alt.value(2))
  charts = []
  for y in (
    theme.y('loss', **theme.log_axis(losses)),
    theme.y('over', f'loss over the line of {name}, %'),
  ):
    base = series.chart(
      x=x, y=y, tooltip=theme.tips('policy', 'flops', 'loss', 'over')
    ).transform_filter('isValid(datum.loss)')
    line, known = theme.only(base, 'line'), theme.only(base, 'frontier')
    layers = [
      theme.reference(high, 'x'),
      line.mark_line(strokeWidth=1, strokeDash=[5, 3]),
      known.mark_line().encode(strokeWidth=thick),
    ]
    charts.append(theme.panel(layers, size=_SIZE))
  return theme.concat(
    charts,
    'Compute frontiers (dashed: line through the last factor of '
    f"{envelope.WIDTH:g}, extrapolated; vertical: the grid's largest compute)",
    columns=2,
    rows=rows,
    series=series,
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


def heat(cells: Cells) -> theme.Chart:
  """Draws the loss over Successive Halving's by policy and cell, by table."""
  rows = []
  for cell in cells:
    at = f'{cell.candidates} at {text.scientific(cell.budget)}'
    for name, policy in cell.policies.items():
      if name != comparison.BASE and not math.isnan(policy.gain.value):
        over = policy.gain.map(lambda value: -100 * value)
        said = f'{over}'.replace(' [', '\n[')
        rows.append(
          {'policy': name, 'table': cell.table, 'cell': at, 'over': over,
           'sign': over.sign, 'said': said}
        )  # fmt: skip
  names, drawn = _compared(cells), theme.flat(rows)
  flat = alt.Axis(labelAngle=0)
  base = alt.Chart().encode(
    x=alt.X(
      'cell:N', title='candidates at a budget in FLOPs', sort=None, axis=flat
    ),
    y=alt.Y('policy:N', title=None, sort=names, axis=alt.Axis(labelLimit=220)),
    tooltip=theme.tips('policy', 'cell', 'said', 'sign'),
  )
  return theme.panels(
    theme.heat(base, drawn, "loss over sh's, %"),
    drawn,
    by='table',
    title="Lowest loss over Successive Halving's, %",
    columns=2,
    size=(100 * len({row['cell'] for row in rows}), 36 * len(names)),
  )


def gains(cells: Cells) -> theme.Chart:
  """Draws each policy's gain over `sh`, a panel for each cell of one table.

  The band is the oracle's gain. A value far to the left is drawn at the edge.
  """
  names = _compared(cells)
  series = look(names)
  y = alt.Y('policy:N', title=None, sort=names, axis=alt.Axis(labelLimit=180))
  base = alt.Chart().encode(y=y, color=series.colour.legend(None))
  charts = []
  for cell in cells:
    of = {
      name: cell.policies[name].gain.map(lambda value: 100 * value)
      for name in names
      if not math.isnan(cell.policies[name].gain.value)
    }
    ends = {name: (g.lo, g.hi, g.value) for name, g in of.items()}
    every = [x for three in ends.values() for x in three if x is not None]
    right = 1.12 * max([_LEAST, *every])
    left = max(1.15 * min([-_LEAST, *every]), -2 * right)
    rows = [
      {'policy': name, 'value': value, 'gain': max(value, left),
       'gain_lo': lo if lo is None else max(lo, left),
       'gain_hi': hi if hi is None else max(hi, left),
       'off': value < left, 'cut': lo is not None and lo < left,
       'said': f'{text.number(value)} %'}
      for name, (lo, hi, value) in ends.items()
    ]  # fmt: skip
    x = theme.x('gain', scale=alt.Scale(domain=[left, right], nice=False))
    inside = base.transform_filter('!datum.off')
    arrow = base.transform_filter('datum.off').encode(x=x)
    layers = [
      theme.reference(0, 'x'),
      theme.interval(inside, x),
      inside.transform_filter('datum.cut')
      .mark_point(shape='triangle-left', size=22)
      .encode(x='gain_lo:Q'),
      inside.mark_point(size=80).encode(
        x=x,
        shape=series.shape.legend(None),
        tooltip=theme.tips('policy', 'gain', 'gain_lo', 'gain_hi'),
      ),
      arrow.mark_point(shape='triangle-left', size=70).encode(
        tooltip=theme.tips('policy', 'said')
      ),
      arrow.mark_text(align='left', dx=9, fontSize=11).encode(
        text='said:N', color=alt.value(theme.RULE)
      ),
    ]
    if comparison.BOUND in of and of[comparison.BOUND].value > 0:
      layers.insert(0, theme.band(0, of[comparison.BOUND].value, 'x'))
    charts.append(
      theme.panel(layers, rows, title=label(cell), size=(300, 26 * len(names)))
    )
  return theme.concat(
    charts,
    f"Gain over Successive Halving: {cells[0].table} (band: the oracle's; "
    'arrow: beyond the panel)',
    columns=2,
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
  series = look(names)
  shift = theme.beside(
    range(len(names)), math.exp(0.08 / max(len(names) - 1, 1))
  )
  charts = []
  for field, title in (
    ('law_error', 'Law'),
    ('line_error', 'Line through the frontier'),
  ):
    rows = []
    for place, name in enumerate(names):
      for cell in cells:
        policy = cell.policies[name]
        error = getattr(policy, field)
        if error.value > 0:  # False for NaN; 0 has no place on a log axis.
          share = (1 - policy.saving.value) * policy.spent.value / cell.budget
          rows.append(
            {
              'policy': name,
              'spent': 100 * share * shift[place],
              'error': error.map(lambda value: 100 * value),
            }
          )
    if not rows:
      continue
    drawn = theme.flat(rows)
    ends = [
      row[key] for row in drawn for key in ('error', 'error_lo', 'error_hi')
    ]
    y = theme.y(
      'error', **theme.log_axis(x for x in ends if x and math.isfinite(x))
    )
    base = series.chart(
      x=theme.x('spent', **theme.log_axis(row['spent'] for row in drawn))
    )
    bounded = 'datum.error_lo > 0 && isValid(datum.error_hi)'
    tooltip = theme.tips('policy', 'spent', 'error', 'error_lo', 'error_hi')
    layers = [
      base.mark_line(strokeWidth=1.2).encode(y=y),
      theme.interval(base.transform_filter(bounded), y, strokeWidth=1),
      base.mark_point(size=80).encode(y=y, shape=series.shape, tooltip=tooltip),
    ]
    charts.append(theme.panel(layers, drawn, title=title, size=(340, 250)))
  return theme.concat(
    charts,
    f'Error of the loss at {beyond:g} times the largest compute, '
    f'{cells[0].candidates} candidates: {cells[0].table}',
    columns=2,
    series=series,
  )


def coverage(cells: Cells) -> theme.Chart:
  """Draws the share of losses within their predicted intervals, by round."""
  rows, series = _calibration(cells)
  scale = alt.Scale(domain=[0, 100])
  base = _by_round(series).encode(
    y=theme.y('share', 'losses within the interval, %', scale=scale)
  )
  layers = [
    theme.reference(100 * surrogate.LEVEL, dashed=True),
    base.mark_line(),
    base.mark_point().encode(
      shape=series.shape,
      tooltip=theme.tips('policy', 'round', 'share', 'predictions'),
    ),
  ]
  return theme.panels(
    layers,
    rows,
    title=f'Coverage of predicted intervals: {cells[0].table} (dashed: nominal)',
    columns=2,
    size=(300, 190),
    series=series,
  )


def prediction_errors(cells: Cells) -> theme.Chart:
  """Draws median errors of predictions beside those of the last loss."""
  rows, series = _calibration(cells)
  axis = theme.log_axis(row[key] for row in rows for key in ('error', 'held'))
  layers = []
  for field, dash in (('held', [2, 3]), ('error', [1, 0])):
    y = theme.y(field, theme.axis_title('error'), **axis)
    base = _by_round(series).encode(y=y).transform_filter(f'datum.{field} > 0')
    layers += [
      base.mark_line(strokeDash=dash),
      base.mark_point(filled=field == 'error').encode(
        shape=series.shape,
        tooltip=theme.tips('policy', 'round', 'error', 'held'),
      ),
    ]
  return theme.panels(
    layers,
    rows,
    title=f'Error of predicted losses: {cells[0].table} (dotted: of assuming the '
    'last loss)',
    columns=2,
    size=(300, 190),
    series=series,
  )


def _calibration(cells: Cells) -> tuple[theme.Rows, theme.Series]:
  rows: theme.Rows = [
    {
      'policy': name,
      'panel': label(cell),
      'round': row.round,
      'share': 100 * row.coverage.value,
      'predictions': row.predictions,
      'error': 100 * row.error,
      'held': 100 * row.held_error,
    }
    for cell in cells
    for name, by_round in cell.calibration.items()
    for row in by_round
  ]
  return rows, look(row['policy'] for row in rows)


def _by_round(series: theme.Series) -> alt.Chart:
  flat = alt.Axis(labelAngle=0)
  return series.chart(x=alt.X('round:O', title='round', axis=flat))
