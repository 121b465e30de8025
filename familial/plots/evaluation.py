"""Figures of an evaluation: what thresholds cost, calibration, decoding speed."""

import altair as alt

from familial.plots import theme
from familial.serving import benchmark
from familial.serving import evaluate

_NAMES = {
  'max_prob': 'largest probability',
  'gap': 'gap of the two largest',
  'entropy': '1 − entropy / log V',
}


def reliability(evaluation: evaluate.Evaluation) -> theme.Chart:
  """Draws how often each exit is right against its confidence, a panel each."""
  rows: theme.Rows = []
  order = []
  for score in evaluation.exits:
    panel = (
      f'exit {score.exit}, layer {score.layer}: '
      f'error {100 * score.calibration_error:.2g} %'
    )
    order.append(panel)
    rows += [
      {'panel': panel, 'low': each.low, 'high': each.high,
       'share': each.tokens / evaluation.tokens,
       'confidence': each.confidence, 'accuracy': each.accuracy}
      for each in score.bins
    ]  # fmt: skip
  unit = alt.Scale(domain=[0, 1])
  both = alt.Data(values=[{'at': 0}, {'at': 1}])
  confidence = theme.x('confidence', 'largest probability', scale=unit)
  share = theme.y('share', 'share', scale=unit)
  accuracy = theme.y('accuracy', 'share', scale=unit)
  layers = [
    alt.Chart()
    .mark_rect(color=theme.MUTED, opacity=0.35)
    .encode(
      x=theme.x('low', 'largest probability', scale=unit),
      x2='high:Q',
      y=share,
      y2=alt.Y2Datum(0),
      tooltip=theme.tips('low', 'high', 'share'),
    ),
    alt.Chart(both)
    .mark_line(color=theme.RULE, strokeDash=[5, 3])
    .encode(x=alt.X('at:Q', scale=unit), y=alt.Y('at:Q', scale=unit)),
    alt.Chart()
    .transform_filter('isValid(datum.accuracy)')
    .mark_line(
      color=theme.CYCLE[0], point=alt.OverlayMarkDef(color=theme.CYCLE[0])
    )
    .encode(
      x=confidence, y=accuracy, tooltip=theme.tips('confidence', 'accuracy')
    ),
  ]
  return theme.panels(
    layers,
    rows,
    order=order,
    title='Calibration (line: accuracy; bars: share of tokens; dashed:'
    ' calibrated)',
  )


def thresholds(evaluation: evaluate.Evaluation) -> theme.Chart:
  """Draws loss, share of tokens by exit and layers against the threshold."""
  charts = []
  exits = [score.exit for score in evaluation.exits]
  counted = ['up to the exit', 'with deferred']
  unit, colours = alt.Scale(domain=[0, 1]), alt.Scale(scheme='viridis')
  for kind, outcomes in evaluation.curves.items():
    chosen = evaluation.chosen[kind].threshold
    mark = [] if chosen is None else [theme.reference(chosen, 'x', dashed=True)]
    rows = [
      {'threshold': o.threshold, 'increase': 100 * o.increase,
       'increase_lo': o.increase_low and 100 * o.increase_low,
       'increase_hi': o.increase_high and 100 * o.increase_high}
      for o in outcomes
    ]  # fmt: skip
    base = alt.Chart().encode(x=theme.x('threshold', scale=unit))
    y = theme.y('increase', 'loss increase, %')
    curve = theme.curve(base, y, color=theme.CYCLE[0])
    charts.append(theme.panel([*mark, *curve], rows, title=_NAMES[kind]))
    shares = [
      {'threshold': o.threshold, 'exit': number, 'share': share}
      for o in outcomes
      for number, share in zip(exits, o.shares, strict=True)
    ]
    stacked = base.mark_area().encode(
      y=theme.y('share', 'share of tokens', stack='zero', scale=unit),
      color=alt.Color('exit:O', title='exit', scale=colours),
      order=alt.Order('exit:O'),
      tooltip=theme.tips('exit', 'threshold', 'share'),
    )
    title = f'{_NAMES[kind]}: exits'
    charts.append(theme.panel([stacked, *mark], shares, title=title))
    layers = [
      {'threshold': o.threshold, 'counted': name, 'layers': value}
      for o in outcomes
      for name, value in zip(
        counted, (o.layers, o.layers_deferred), strict=True
      )
    ]
    line = base.mark_line().encode(
      y=theme.y('layers'), color=theme.category('counted', counted).colour
    )
    title = f'{_NAMES[kind]}: layers'
    charts.append(theme.panel([*mark, line], layers, title=title))
  title = (
    'Each token leaves at the first confident exit (dashed: at most'
    f' {100 * evaluate.LOSS_INCREASE:g} % worse)'
  )
  return theme.concat(charts, title).resolve_scale(color='independent')


def decoding(measured: benchmark.Decoding) -> theme.Chart:
  """Draws tokens per second by mode, and bytes per token of a relay by hop."""
  charts = []
  for count in dict.fromkeys(speed.rows for speed in measured.speeds):
    rows = [
      {'mode': speed.mode, 'detail': f'{speed.mode}: {speed.detail}',
       'rate': speed.tokens / speed.seconds}
      for speed in measured.speeds
      if speed.rows == count
    ]  # fmt: skip
    y = alt.Y('detail:N', sort=None, title=None, axis=alt.Axis(labelLimit=260))
    base = alt.Chart().encode(x=theme.x('rate', 'tokens per second'), y=y)
    colour = theme.category('mode', [row['mode'] for row in rows]).colour
    said = base.mark_text(align='left', dx=3, color=theme.RULE)
    layers = [
      base.mark_bar().encode(color=colour),
      said.encode(text=alt.Text('rate:Q', format=',.0f')),
    ]
    title = f'{count} text{"s" * (count > 1)} at once'
    size = 280, 24 * len(rows)
    charts.append(theme.panel(layers, rows, title=title, size=size))
  if measured.hops:
    hops = [
      {'to': f'exit {hop.to}', 'dtype': hop.dtype, 'bytes': hop.bytes}
      for hop in measured.hops
    ]
    bars = alt.Chart().mark_bar().encode(
      x=alt.X('to:N', title='tier of', sort=None),
      xOffset='dtype:N',
      y=theme.y('bytes'),
      color=theme.category('dtype', [row['dtype'] for row in hops]).colour,
      tooltip=theme.tips('dtype', 'bytes'),
    )  # fmt: skip
    charts.append(theme.panel([bars], hops, title='relay', size=(220, 180)))
  title = f'Greedy decoding after {measured.prompt_tokens} tokens'
  return theme.concat(charts, title, columns=2).resolve_scale(
    color='independent'
  )
