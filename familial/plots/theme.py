"""The one look of all figures: size, colours, markers, axes, panels and files.

Figures are Altair charts made from typed records. A page embeds the chart's
Vega-Lite specification, which answers to the mouse; PNG and SVG files of the same
chart stand beside it.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import math
import pathlib
from typing import Any

import altair as alt

from familial.core import storage
from familial.core.estimate import Estimate

Chart = alt.TopLevelMixin
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


def flat(rows: Iterable[Any], **more: Any) -> list[dict[str, Any]]:
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


def granularity(
  values: Iterable[int], field: str = 'exits'
) -> tuple[alt.Color, alt.Shape]:
  """Returns the colour and marker encodings of G; both share one legend."""
  domain = sorted({int(value) for value in values})
  looks = [_BY_G.get(g, _OTHER_G) for g in domain]
  title = 'exits G (1 is dense)'
  return (
    alt.Color(
      f'{field}:O',
      title=title,
      scale=alt.Scale(domain=domain, range=[colour for colour, _ in looks]),
    ),
    alt.Shape(
      f'{field}:O',
      title=title,
      scale=alt.Scale(domain=domain, range=[shape for _, shape in looks]),
    ),
  )


def category(
  field: str, domain: Iterable[str], title: str | None = None
) -> tuple[alt.Color, alt.Shape]:
  """Returns the colour and marker encodings of names; both share one legend."""
  names = list(dict.fromkeys(domain))
  colours = [CYCLE[i % len(CYCLE)] for i in range(len(names))]
  markers = [SHAPES[i % len(SHAPES)] for i in range(len(names))]
  return (
    alt.Color(
      f'{field}:N', title=title, scale=alt.Scale(domain=names, range=colours)
    ),
    alt.Shape(
      f'{field}:N', title=title, scale=alt.Scale(domain=names, range=markers)
    ),
  )


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


def percentages(rows: Iterable[Any], **more: Any) -> list[dict[str, Any]]:
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


def legend_filter(field: str) -> alt.Parameter:
  """Returns a selection that a click on the legend sets."""
  return alt.selection_point(
    name=f'of_{field}', fields=[field], bind='legend', toggle='true'
  )


def shown(selection: alt.Parameter, opacity: float = 1.0) -> Any:
  """Returns an opacity that fades what the legend's selection leaves out."""
  return alt.condition(selection, alt.value(opacity), alt.value(0.08))


def panels(
  layers: Sequence[alt.Chart],
  rows: Sequence[Mapping[str, Any]],
  *,
  by: str,
  order: Sequence[str] | None = None,
  title: str = '',
  columns: int = 3,
  independent: Sequence[str] = (),
  size: tuple[int, int] = PANEL,
) -> Chart:
  """Returns layers repeated in a panel for each value of a field.

  Args:
    layers: drawn over one another; none has data of its own.
    rows: data of all layers.
    by: field that separates the panels; its values are their titles.
    order: of the panels; as they come in `rows` if None.
    title: of the figure.
    columns: panels side by side; a page sets it by its width.
    independent: channels (`x`, `y`) with a scale of their own in each panel.
    size: width and height of a panel in pixels.
  """
  order = order or list(dict.fromkeys(row[by] for row in rows))
  chart = alt.layer(*layers).properties(width=size[0], height=size[1])
  facet = chart.facet(
    facet=alt.Facet(f'{by}:N', title=None, sort=list(order)),
    columns=min(columns, len(order)),
    data=data(rows),
  )
  if title:
    facet = facet.properties(title=title)
  if independent:
    facet = facet.resolve_scale(
      **{channel: 'independent' for channel in independent}  # type: ignore[arg-type]
    )
  return facet


def single(
  layers: Sequence[alt.Chart],
  rows: Sequence[Mapping[str, Any]],
  *,
  title: str = '',
  size: tuple[int, int] = SINGLE,
) -> Chart:
  """Returns layers in one panel, which a page stretches to its width."""
  chart = alt.layer(*layers, data=data(rows))
  return chart.properties(width=size[0], height=size[1], title=title)


def forest(
  rows: Sequence[Mapping[str, Any]],
  *,
  title: str,
  axis: str,
  dashed: float | None = None,
) -> Chart:
  """Draws estimates below one another.

  Args:
    rows: `name`, `value`, `lo`, `hi`, `said` (the estimate as text), `group`
      (colour), `flagged` (hollow), and perhaps `profile_lo`, `profile_hi`.
    title: of the figure.
    axis: title of the axis.
    dashed: value of a dashed reference line.
  """
  colour, _ = category('group', [row['group'] for row in rows])
  names = [row['name'] for row in rows]
  base = alt.Chart().encode(
    y=alt.Y(
      'name:N',
      sort=names,
      title=None,
      axis=alt.Axis(labelLimit=330, grid=False),
    ),
    color=colour,
  )
  x = alt.X('value:Q', title=axis)
  pick = legend_filter('group')
  point = base.encode(
    x=x, opacity=shown(pick), tooltip=['name:N', 'said:N', 'flags:N']
  )
  layers = [
    reference(0, 'x'),
    base.mark_bar(height=9, opacity=0.25).encode(
      x=alt.X('profile_lo:Q', title=axis), x2='profile_hi:Q'
    ),
    base.mark_rule(strokeWidth=2).encode(
      x=alt.X('lo:Q', title=axis), x2='hi:Q', opacity=shown(pick)
    ),
    point.transform_filter('!datum.flagged')
    .mark_point(size=70)
    .add_params(pick),
    point.transform_filter('datum.flagged').mark_point(
      size=70, filled=False, fill='white', strokeWidth=2
    ),
    alt.Chart()
    .mark_text(align='left', fontSize=11, color=RULE)
    .encode(y=alt.Y('name:N', sort=names), x=alt.value('width'), text='said:N'),
  ]
  layers[-1] = layers[-1].transform_calculate(said="'  ' + datum.said")
  if dashed is not None:
    layers.insert(0, reference(dashed, 'x', dashed=True))
  return single(layers, rows, title=title, size=(430, 26 * len(rows)))


def panel(
  layers: Sequence[alt.Chart],
  rows: Sequence[Mapping[str, Any]],
  *,
  title: str = '',
  size: tuple[int, int] = PANEL,
) -> Any:
  """Returns layers in a panel of a concatenation, with data of its own."""
  chart = alt.layer(*layers, data=data(rows))
  return chart.properties(width=size[0], height=size[1], title=title)


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
  text = json.dumps(made)
  png = vl_convert.vegalite_to_png(text, scale=2)
  storage.write_bytes(path.with_suffix('.png'), png)
  storage.write_text(path.with_suffix('.svg'), vl_convert.vegalite_to_svg(text))
  return made
