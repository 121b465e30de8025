"""The one look of all figures: size, colours, markers, axes, panels and files.

Figures are Altair charts made from typed records. A page embeds the chart's
Vega-Lite specification, which answers to the mouse; PNG and SVG files of the same
chart stand beside it.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import contextvars
import dataclasses
import json
import math
import pathlib
from typing import Any

import altair as alt
import numpy as np

from familial.core import storage
from familial.core.estimate import Estimate

Chart = alt.TopLevelMixin
Rows = list[dict[str, Any]]
PANEL = (250, 190)  # width and height of a panel in pixels
SINGLE = (560, 260)  # of a chart with one panel
# Okabe and Ito's colours, which colour-blind readers tell apart.
CYCLE = (
  '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#7570B3',
)  # fmt: skip
SHAPES = (
  'circle',
  'square',
  'triangle-up',
  'diamond',
  'cross',
  'triangle-down',
)
STAR = (
  'M0,-1L0.23,-0.31L0.95,-0.31L0.36,0.12L0.59,0.81L0,0.38L-0.59,0.81L-0.36,0.12'
  'L-0.95,-0.31L-0.23,-0.31Z'
)
MUTED = '#8a8a8a'
RULE = '#777777'  # reference lines: visible on a light and on a dark page
# Colour and marker of a granularity, the same in every figure.
_BY_G = {
  1: ('#7f7f7f', 'circle'),
  2: ('#0072B2', 'square'),
  3: ('#56B4E9', 'cross'),
  4: ('#D55E00', 'triangle-up'),
  6: ('#E69F00', 'triangle-left'),
  8: ('#009E73', 'diamond'),
  16: ('#CC79A7', 'triangle-down'),
}
_OTHER_G = ('#7570B3', 'wedge')
# Name, unit and format of a field, for axes and tooltips; a field with a format
# is a number, others are shown as they are.
_NATS = 'nats per token (lower is better)'
# What the loss is, and its unit, if it is not that.
_LOSS: contextvars.ContextVar[tuple[str, str] | None] = contextvars.ContextVar(
  'loss', default=None
)
FIELDS = {
  'C': ('training compute C', 'FLOPs', '.3s'),
  'D': ('tokens D', '', '.4s'),
  'G': ('exits G', '', ''),
  'N': ('parameters N', '', '.4s'),
  'budget': ('training compute C', 'FLOPs', ''),
  'accuracy': ('accuracy', '', '.3f'),
  'bytes': ('bytes per token, both ways', '', '.0f'),
  'confidence': ('largest probability', '', '.3f'),
  'cosine': ('cosine', '', '.3f'),
  'deviance': ('deviance', '', '.3g'),
  'early': ('tokens that stopped early', '', '.2%'),
  'end': ('FLOPs', '', '.3s'),
  'error': ('median error', '% (lower is better)', '.3g'),
  'exits': ('exits G', '', ''),
  'exponent': ('exponent of depth', '', '.3g'),
  'flops': ('training compute C', 'FLOPs', '.3s'),
  'gain': ('gain over sh', '% (higher is better)', '.3g'),
  'gradient_norm': ('gradient norm', '', '.3g'),
  'hi': ('upper end', '', '.3g'),
  'held': ('median error of the last loss', '%', '.3g'),
  'js': ('Jensen-Shannon divergence', 'nats', '.4f'),
  'kl': ('KL(smaller ‖ larger)', 'nats', '.4f'),
  'kl_back': ('KL(larger ‖ smaller)', 'nats', '.4f'),
  'law': ('loss by the law', _NATS, '.4f'),
  'layers': ('layers per token', '', '.3g'),
  'leverage': ('Efficiency Leverage', '', '.3g'),
  'lo': ('lower end', '', '.3g'),
  'loss': ('loss', _NATS, '.4f'),
  'loss_exit': ('loss of the exit', _NATS, '.4f'),
  'loss_twin': ('loss of the twin', _NATS, '.4f'),
  'memory': ('memory', 'GiB', '.3g'),
  'mean': ('mean', '', '.4g'),
  'observed': ('observed loss', 'nats per token', '.4f'),
  'over': ('over', '%', '.2f'),
  'params': ('parameters N', '', '.4s'),
  'predicted': ('predicted loss', 'nats per token', '.4f'),
  'rate': ('learning rate', '', '.3g'),
  'reached': ('loss reached', _NATS, '.4f'),
  'residual': ('residual of log loss', '%', '.2f'),
  'said': ('estimate', '', ''),
  'seconds': ('seconds', '', '.3g'),
  'seen': ('lowest loss so far', _NATS, '.4f'),
  'settled': ('tokens that have settled', '', '.2%'),
  'share': ('share', '', '.3g'),
  'spent': ('spent', '% of training all to their ends', '.3g'),
  'threshold': ('threshold', '', '.3f'),
  'tokens': ('tokens', '', '.3s'),
  'tokens_per_second': ('tokens per second', '', ',.0f'),
  'top1': ('same top-1 token', 'share', '.4f'),
  'turn': ('turn', 'rad', '.3g'),
  'value': ('value', '', '.4g'),
}
_SUPERSCRIPTS = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')
_CONFIG: dict[str, Any] = {
  'font': 'DejaVu Sans, system-ui, sans-serif',
  'background': 'white',
  'view': {'stroke': '#8884'},
  'title': {'anchor': 'start', 'fontSize': 14, 'subtitleFontSize': 12},
  'axis': {
    'labelFontSize': 11,
    'titleFontSize': 12,
    'titleFontWeight': 'normal',
    'gridColor': '#8884',
    'domainColor': '#888',
    'tickColor': '#888',
    'labelOverlap': 'greedy',
  },
  'legend': {
    'orient': 'bottom',
    'labelFontSize': 11,
    'titleFontSize': 12,
    'titleFontWeight': 'normal',
    'labelLimit': 360,
    'symbolOpacity': 1,
    'columns': 5,
  },
  'header': {'labelFontSize': 12, 'labelFontWeight': 'bold', 'labelAnchor': 'start'},
  'point': {'filled': True, 'size': 55},
  'line': {'strokeWidth': 1.8},
  'rule': {'strokeWidth': 1.8},
}  # fmt: skip


def flat(rows: Iterable[Any], **more: Any) -> Rows:
  """Returns records as flat rows of a chart.

  An `Estimate` in field `x` becomes `x`, `x_lo` and `x_hi`; tuples become text.

  Args:
    rows: dataclasses or mappings.
    **more: fields to add: values, or functions of a record.
  """
  made = []
  for row in rows:
    if isinstance(row, Mapping):
      values = dict(row)
    else:
      values = {f.name: getattr(row, f.name) for f in dataclasses.fields(row)}
    for name, value in more.items():
      values[name] = value(row) if callable(value) else value
    cells: dict[str, Any] = {}
    for name, value in values.items():
      if isinstance(value, Estimate):
        ends = (value.value, value.lo, value.hi)
        cells |= dict(
          zip((name, f'{name}_lo', f'{name}_hi'), ends, strict=True)
        )
      elif isinstance(value, tuple):
        cells[name] = ', '.join(map(str, value))
      else:
        cells[name] = value
    made.append(cells)
  return made


def rows(**columns: Any) -> Rows:
  """Returns rows from columns; a single value stands in every row."""
  arrays = np.broadcast_arrays(*map(np.atleast_1d, columns.values()))
  lists = [array.tolist() for array in arrays]
  return [
    dict(zip(columns, values, strict=True))
    for values in zip(*lists, strict=True)
  ]


def data(rows: Sequence[Mapping[str, Any]]) -> alt.Data:
  """Returns rows as a chart's data; numbers that are not finite become null."""
  return alt.Data(
    values=[
      {
        key: None
        if isinstance(value, float) and not math.isfinite(value)
        else value
        for key, value in row.items()
      }
      for row in rows
    ]
  )


@dataclasses.dataclass(frozen=True)
class Series:
  """How the values of a field look, and a filter that a click on the legend sets.

  Attributes:
    field: of the rows.
    colour: encoding; shares its legend with `shape`.
    shape: encoding of the markers.
  """

  field: str
  colour: alt.Color
  shape: alt.Shape

  @property
  def filter(self) -> alt.Parameter:
    """The selection that a click on the legend sets; `concat` etc. add it."""
    return alt.selection_point(
      name=f'of_{self.field}', fields=[self.field], bind='legend', toggle='true'
    )

  def shown(self, opacity: float = 1.0) -> Any:
    """Returns an opacity that fades what the legend's filter leaves out."""
    return alt.condition(self.filter, alt.value(opacity), alt.value(0.08))

  def chart(self, **channels: Any) -> alt.Chart:
    """Returns a chart in the series' colours, without data and mark."""
    return alt.Chart().encode(
      color=self.colour, opacity=self.shown(), **channels
    )

  def listening(self, layers: Sequence[alt.Chart]) -> list[alt.Chart]:
    """Returns layers, the last in the series' colours with the filter."""
    made = list(layers)
    for place in reversed(range(len(made))):
      if isinstance(made[place].encoding.color, alt.Color):
        made[place] = made[place].add_params(self.filter)
        break
    return made


def series(
  field: str,
  looks: Mapping[Any, tuple[str, str]],
  title: str | None = None,
  kind: str = 'N',
) -> Series:
  """Returns the series of a field.

  Args:
    field: of the rows.
    looks: colour and marker by value, in the order of the legend.
    title: of the legend.
    kind: `N` for names, `O` for numbers in order.
  """
  colours, shapes = zip(*looks.values(), strict=True) if looks else ((), ())
  name, domain = f'{field}:{kind}', list(looks)
  return Series(
    field,
    alt.Color(
      name, title=title, scale=alt.Scale(domain=domain, range=list(colours))
    ),
    alt.Shape(
      name, title=title, scale=alt.Scale(domain=domain, range=list(shapes))
    ),
  )


def granularity(values: Iterable[int]) -> Series:
  """Returns the series of G, whose field is `exits`."""
  domain = sorted({int(value) for value in values})
  looks = {g: _BY_G.get(g, _OTHER_G) for g in domain}
  return series('exits', looks, 'exits G (1 is dense)', 'O')


def category(
  field: str, names: Iterable[Any], title: str | None = None, kind: str = 'N'
) -> Series:
  """Returns the series of names in the order in which they come."""
  looks = {
    name: (CYCLE[i % len(CYCLE)], SHAPES[i % len(SHAPES)])
    for i, name in enumerate(dict.fromkeys(names))
  }
  return series(field, looks, title, kind)


def graded(
  field: str,
  names: Sequence[Any],
  title: str | None = None,
  kind: str = 'N',
  **scale: Any,
) -> Series:
  """Returns the series of names that have an order, in the colours of a scheme."""
  colour = alt.Color(
    f'{field}:{kind}',
    title=title,
    sort=list(names),
    scale=alt.Scale(domain=list(names), **scale),
  )
  made = category(field, names, title, kind)
  return dataclasses.replace(made, colour=colour)


def beside(values: Iterable[Any], factor: float = 1.13) -> dict[Any, float]:
  """Returns factors that set values side by side on a logarithmic axis."""
  order = sorted(set(values))
  return {
    value: factor ** (place - (len(order) - 1) / 2)
    for place, value in enumerate(order)
  }


def x(field: str, title: str | None = None, **properties: Any) -> alt.X:
  """Returns the horizontal channel of a number; its title is that of FIELDS."""
  return alt.X(f'{field}:Q', title=title or axis_title(field), **properties)


def y(field: str, title: str | None = None, **properties: Any) -> alt.Y:
  """Returns the vertical channel of a number; its title is that of FIELDS."""
  return alt.Y(f'{field}:Q', title=title or axis_title(field), **properties)


def axis_title(field: str) -> str:
  """Returns the title of a field's axis, with its unit."""
  name, unit, _ = _described(field)
  return f'{name}, {unit}' if unit else name


@contextlib.contextmanager
def loss_as(label: str, unit: str) -> Iterator[None]:
  """Names the loss and its unit on what is drawn within: it may be an accuracy.

  Args:
    label: what it is; '' or loss for the loss in nats per token.
    unit: of it; '' for nats per token, or for none of a loss of another label.
  """
  usual = label in ('', 'loss') and not unit
  token = _LOSS.set(None if usual else (label or 'loss', unit))
  try:
    yield
  finally:
    _LOSS.reset(token)


def _described(field: str) -> tuple[str, str, str]:
  """Returns name, unit and format of a field, or of an end of its interval."""
  stem, _, end = field.rpartition('_')
  if end in ('lo', 'hi') and stem in FIELDS:
    name, unit, form = _described(stem)
    return f'{name}: {"lower" if end == "lo" else "upper"} end', unit, form
  name, unit, form = FIELDS.get(field, (field.replace('_', ' '), '', ''))
  if (loss := _LOSS.get()) is not None:
    label, own = loss
    name = name.replace('loss', label)
    unit = own if unit.startswith('nats per token') else unit
  return name, unit, form


def near(padding: int = 12) -> alt.Scale:
  """Returns the scale of values that need not be near 0."""
  return alt.Scale(zero=False, padding=padding)


def tips(*fields: str) -> list[alt.Tooltip]:
  """Returns the tooltip of fields, with the titles and formats of FIELDS."""
  found = []
  for field in fields:
    name, _, form = _described(field)
    kind = 'Q' if form else 'N'
    tip = alt.Tooltip(f'{field}:{kind}', title=name)
    found.append(tip.format(form) if form else tip)
  return found


def only(chart: alt.Chart, kind: str, field: str = 'kind') -> alt.Chart:
  """Returns a chart of the rows whose field has this value."""
  return chart.transform_filter(f"datum.{field} == '{kind}'")


def interval(
  base: alt.Chart, channel: alt.X | alt.Y, mark: str = 'rule', **properties: Any
) -> alt.Chart:
  """Returns the intervals of a channel's field: from `x_lo` to `x_hi` of `x`.

  Args:
    base: what is drawn.
    channel: of the field; the intervals share its axis.
    mark: `rule`, `area` or `bar`.
    **properties: of the mark.
  """
  field = channel.shorthand.partition(':')[0]
  low: Any = channel.copy()
  low.shorthand = f'{field}_lo:Q'
  drawn: alt.Chart = getattr(base, f'mark_{mark}')(**properties)
  if isinstance(channel, alt.X):
    return drawn.encode(x=low, x2=f'{field}_hi:Q')
  return drawn.encode(y=low, y2=f'{field}_hi:Q')


def means(
  base: alt.Chart, channel: alt.Y, shape: alt.Shape, *tooltip: str
) -> list[alt.Chart]:
  """Returns the layers of means: a line, intervals, and points in front."""
  base = base.encode(y=channel)
  return [
    base.mark_line(),
    interval(base, channel),
    base.mark_point().encode(shape=shape, tooltip=tips(*tooltip)),
  ]


def curve(
  base: alt.Chart, channel: alt.Y, opacity: float = 0.2, **properties: Any
) -> list[alt.Chart]:
  """Returns the layers of a curve: its band of intervals, and the line."""
  return [
    interval(base, channel, 'area', opacity=opacity, **properties),
    base.mark_line(**properties).encode(y=channel),
  ]


def log_axis(values: Iterable[float]) -> dict[str, Any]:
  """Returns scale and axis of a logarithmic channel for these values.

  Powers of ten are labelled where there are two of them, otherwise a few round
  numbers, with SI prefixes from 1 on.
  """
  known = [value for value in values if value and value > 0]
  low, high = (min(known), max(known)) if known else (1.0, 10.0)
  pad = 1.02 * 10 ** (0.04 * (math.log10(high) - math.log10(low)))
  low, high = low / pad, high * pad
  scale = alt.Scale(type='log', domain=[low, high], nice=False)
  powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
  if len(powers) >= 2:
    step = math.ceil(len(powers) / 6)
    shown = powers[::step]
    labels = [f'10{str(power).translate(_SUPERSCRIPTS)}' for power in shown]
    place = f'round((log(datum.value) / LN10 - {shown[0]}) / {step})'
    axis = alt.Axis(
      labelExpr=f'{json.dumps(labels, ensure_ascii=False)}[{place}]',
      values=[10.0**power for power in shown],
    )
  else:
    form = '~s' if low >= 1 else '~g'
    axis = alt.Axis(format=form, values=_round_numbers(low, high))
  return {'scale': scale, 'axis': axis}


def layer_axis(depth: int) -> alt.X:
  """Returns the horizontal channel of the layers of a model, from 0 to its depth."""
  return alt.X(
    'layer:Q',
    title='layer',
    scale=alt.Scale(domain=[0, depth], padding=6, nice=False),
    axis=alt.Axis(tickMinStep=1, format='d'),
  )


def symlog_axis(values: Iterable[float], linear: float) -> dict[str, Any]:
  """Returns scale and axis that are logarithmic but for a linear part around 0.

  0 is always in view; ticks are 0 and powers of ten from the linear part's end.

  Args:
    values: on the axis.
    linear: half width of the linear part, a power of ten.
  """
  known = [0.0, 10 * linear, *values]
  low, high = 1.3 * min(known) - 0.1 * linear, 1.3 * max(known)
  powers = [linear * 10.0**k for k in range(12)]
  ticks = [float(f'{x:.3g}') for x in (*(-x for x in powers), 0, *powers)]
  return {
    'scale': alt.Scale(
      type='symlog', constant=linear, domain=[low, high], nice=False
    ),
    'axis': alt.Axis(
      format='~g', values=sorted(x for x in ticks if low <= x <= high)
    ),
  }


def _round_numbers(low: float, high: float) -> list[float]:
  """Returns three to eight round numbers in [low, high]."""
  for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
    found = [
      step * 10.0**power
      for power in range(
        math.floor(math.log10(low)), math.ceil(math.log10(high))
      )
      for step in steps
      if low <= step * 10.0**power <= high
    ]
    if len(found) >= 3:
      return found
  unit = 10.0 ** math.floor(math.log10((high - low) / 2))
  step = next(s * unit for s in (1, 2, 5) if (high - low) / (s * unit) < 8)
  first, last = math.ceil(low / step), math.floor(high / step)
  return [float(f'{step * i:.6g}') for i in range(first, last + 1)]


def reference(
  value: float, along: str = 'y', dashed: bool = False
) -> alt.Chart:
  """Returns a reference line at a value of one axis."""
  dash = [5, 3] if dashed else [1, 0]
  mark = _once().mark_rule(color=RULE, strokeWidth=1.2, strokeDash=dash)
  if along == 'y':
    return mark.encode(y=alt.YDatum(value))
  return mark.encode(x=alt.XDatum(value))


def band(low: float, high: float, along: str = 'y') -> alt.Chart:
  """Returns a shaded band between two values of one axis."""
  mark = _once().mark_rect(color=MUTED, opacity=0.25)
  if along == 'y':
    return mark.encode(y=alt.YDatum(low), y2=alt.Y2Datum(high))
  return mark.encode(x=alt.XDatum(low), x2=alt.X2Datum(high))


def _once() -> alt.Chart:
  """Returns a chart whose mark is drawn once, not once a row."""
  return alt.Chart(alt.Data(values=[{}]))


def heat(
  base: alt.Chart, rows: Sequence[Mapping[str, Any]], title: str
) -> list[alt.Chart]:
  """Returns the layers of a heat map of `percentages`: blue is lower, red higher.

  Cells whose interval contains 0 are grey.

  Args:
    base: encodes x, y and the tooltip.
    rows: of `percentages`.
    title: of the colours.
  """
  top = max((abs(row['over']) for row in rows), default=0.0) or 1.0
  unclear = "datum.sign == 'n.s.' && isValid(datum.over_lo)"
  scale = alt.Scale(scheme='redblue', domain=[-top, top], reverse=True)
  return [
    base.mark_rect(stroke='white').encode(
      color=alt.when(unclear)
      .then(alt.value('#e3e3e3'))
      .otherwise(alt.Color('over:Q', title=title, scale=scale))
    ),
    base.mark_text(fontSize=11, lineBreak='\n', dy=-6).encode(
      text='said:N',
      color=alt.when(unclear)
      .then(alt.value('#666666'))
      .when(f'abs(datum.over) > {0.6 * top}')
      .then(alt.value('white'))
      .otherwise(alt.value('#1d2126')),
    ),
  ]


def percent(log_ratio: float) -> float:
  """Returns a log ratio as a percentage above 1."""
  return 100 * math.expm1(log_ratio)


def percentages(rows: Iterable[Any], **more: Any) -> Rows:
  """Returns records with a `log_ratio` as flat rows of a chart.

  The rows' `over`, `over_lo` and `over_hi` are percentages above 1, `said` is
  their text in two lines and `sign` says whether the interval excludes 0.

  Args:
    rows: records whose `log_ratio` is an Estimate.
    **more: further fields, as those of `flat`.
  """
  return flat(
    rows,
    over=lambda r: r.log_ratio.map(percent),
    said=lambda r: f'{r.log_ratio.map(percent)}'.replace(' ', '\n', 1),
    sign=lambda r: r.log_ratio.sign,
    **more,
  )


def panels(
  layers: Sequence[alt.Chart],
  rows: Sequence[Mapping[str, Any]],
  *,
  by: str = 'panel',
  order: Sequence[str] | None = None,
  title: str | alt.TitleParams = '',
  columns: int = 3,
  own_y: bool = False,
  size: tuple[int, int] = PANEL,
  series: Series | None = None,
) -> Chart:
  """Returns layers repeated in a panel for each value of a field.

  Args:
    layers: drawn over one another; none has data of its own.
    rows: data of all layers.
    by: field that separates the panels; its values are their titles.
    order: of the panels; as they come in `rows` if None.
    title: of the figure.
    columns: panels side by side; a page sets it by its width.
    own_y: whether each panel has a vertical scale of its own.
    size: width and height of a panel in pixels.
    series: whose legend filters what is shown.
  """
  order = order or list(dict.fromkeys(row[by] for row in rows))
  layers = series.listening(layers) if series else layers
  chart = alt.layer(*layers).properties(width=size[0], height=size[1])
  facet = chart.facet(
    facet=alt.Facet(f'{by}:N', title=None, sort=list(order)),
    columns=min(columns, len(order)),
    data=data(rows),
  )
  if title:
    facet = facet.properties(title=title)
  return facet.resolve_scale(y='independent') if own_y else facet


def panel(
  layers: Sequence[alt.Chart],
  rows: Sequence[Mapping[str, Any]] | None = None,
  *,
  title: str = '',
  size: tuple[int, int] = PANEL,
  series: Series | None = None,
) -> alt.LayerChart:
  """Returns layers in a panel; without rows it shows those of its figure."""
  layers = series.listening(layers) if series else layers
  shared = {} if rows is None else {'data': data(rows)}
  chart: Any = alt.layer(*layers, **shared)
  made: alt.LayerChart = chart.properties(
    width=size[0], height=size[1], title=title
  )
  return made


def single(
  layers: Sequence[alt.Chart],
  rows: Sequence[Mapping[str, Any]],
  *,
  title: str = '',
  size: tuple[int, int] = SINGLE,
  series: Series | None = None,
) -> Chart:
  """Returns layers in one panel, which a page stretches to its width."""
  return panel(layers, rows, title=title, size=size, series=series)


def concat(
  charts: Sequence[alt.LayerChart],
  title: Any,
  *,
  columns: int = 3,
  rows: Sequence[Mapping[str, Any]] | None = None,
  series: Series | None = None,
) -> alt.ConcatChart:
  """Returns panels side by side.

  Args:
    charts: the panels.
    title: of the figure.
    columns: panels in a row at most; a page sets it by its width.
    rows: data of panels that have none of their own.
    series: of all panels; the legend's filter is one for all.
  """
  first: Any = charts[0]
  if series:
    first = first.copy(deep=False)
    first.layer = series.listening(first.layer)
  shared = {} if rows is None else {'data': data(rows)}
  return alt.concat(first, *charts[1:], columns=columns, title=title, **shared)


def forest(
  rows: Sequence[Mapping[str, Any]],
  *,
  title: str,
  axis: str,
  dashed: float | None = None,
) -> Chart:
  """Draws estimates below one another.

  Args:
    rows: `name`, `value` (an Estimate), `group` (colour), `flags` (text; what
      has any is hollow), and perhaps `profile_lo`, `profile_hi`.
    title: of the figure.
    axis: title of the axis.
    dashed: value of a dashed reference line.
  """
  drawn = flat(rows, said=lambda row: f'  {row["value"]}')
  names = [row['name'] for row in rows]
  groups = category('group', [row['group'] for row in rows])
  wide = alt.Axis(labelLimit=330, grid=False)
  base = groups.chart(y=alt.Y('name:N', sort=names, title=None, axis=wide))
  value = x('value', axis)
  point = base.encode(x=value, tooltip=tips('name', 'said', 'flags'))
  layers = [
    reference(0, 'x'),
    interval(base, x('profile', axis), 'bar', height=9).encode(
      opacity=groups.shown(0.25)
    ),
    interval(base, value, strokeWidth=2),
    point.transform_filter('datum.flags').mark_point(
      size=70, filled=False, fill='white', strokeWidth=2
    ),
    point.transform_filter('!datum.flags').mark_point(size=70),
    alt.Chart()
    .mark_text(align='left', fontSize=11, color=RULE)
    .encode(y=alt.Y('name:N', sort=names), x=alt.value('width'), text='said:N'),
  ]
  if dashed is not None:
    layers.insert(0, reference(dashed, 'x', dashed=True))
  size = 430, 26 * len(rows)
  return single(layers, drawn, title=title, size=size, series=groups)


def specification(chart: Chart) -> dict[str, Any]:
  """Returns the Vega-Lite specification of a chart in the shared look."""
  with alt.data_transformers.enable('default', max_rows=None):
    made = chart.to_dict()
  made['config'] = _CONFIG  # Instead of Altair's own.
  return made


def save(chart: Chart, path: pathlib.Path) -> dict[str, Any]:
  """Writes a chart as PATH.png and PATH.svg; returns its specification."""
  import vl_convert

  made = specification(chart)
  svg = vl_convert.vegalite_to_svg(json.dumps(made))
  png = vl_convert.svg_to_png(svg, scale=2)
  storage.write_bytes(path.with_suffix('.png'), png)
  storage.write_text(path.with_suffix('.svg'), svg)
  return made
