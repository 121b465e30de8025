"""Figures of an evaluation: what thresholds cost, calibration, decoding speed."""

from typing import Any

import altair as alt

from familial.plots import theme
from familial.serving import benchmark
from familial.serving import evaluate

Rows = list[dict[str, Any]]
_NAMES = {
  'max_prob': 'largest probability',
  'gap': 'gap of the two largest',
  'entropy': '1 − entropy / log V',
}


def reliability(evaluation: evaluate.Evaluation) -> theme.Chart:
  """Draws how often each exit is right against its confidence, a panel each."""
  rows: Rows = []
  order = []
  for score in evaluation.exits:
    panel = (
      f'exit {score.exit}, layer {score.layer}: '
      f'error {100 * score.calibration_error:.2g} %'
    )
    order.append(panel)
    rows += [
      {'panel': panel, 'low': each.low, 'high': each.high,
       'share': each.tokens / evaluation.tokens, 'zero': 0.0,
       'confidence': each.confidence, 'accuracy': each.accuracy}
      for each in score.bins
    ]  # fmt: skip
  unit = alt.Scale(domain=[0, 1])
  line = alt.Data(values=[{'at': 0}, {'at': 1}])
  x = alt.X('confidence:Q', title='largest probability', scale=unit)
  y = alt.Y('accuracy:Q', title='share', scale=unit)
  layers = [
    alt.Chart()
    .mark_rect(color=theme.MUTED, opacity=0.35)
    .encode(
      x=alt.X('low:Q', title='largest probability', scale=unit),
      x2='high:Q',
      y=alt.Y('zero:Q', title='share', scale=unit),
      y2='share:Q',
      tooltip=['low:Q', 'high:Q', alt.Tooltip('share:Q', format='.3f')],
    ),
    alt.Chart(line)
    .mark_line(color=theme.RULE, strokeDash=[5, 3])
    .encode(x=alt.X('at:Q', scale=unit), y=alt.Y('at:Q', scale=unit)),
    alt.Chart()
    .transform_filter('isValid(datum.accuracy)')
    .mark_line(
      color=theme.CYCLE[0], point=alt.OverlayMarkDef(color=theme.CYCLE[0])
    )
    .encode(x=x, y=y, tooltip=['confidence:Q', 'accuracy:Q']),
  ]
  return theme.panels(
    layers,
    rows,
    by='panel',
    order=order,
    title='Calibration (line: accuracy; bars: share of tokens; dashed:'
    ' calibrated)',
  )


def thresholds(evaluation: evaluate.Evaluation) -> theme.Chart:
  """Draws loss, share of tokens by exit and layers against the threshold."""
  charts = []
  exits = [score.exit for score in evaluation.exits]
  for kind, outcomes in evaluation.curves.items():
    chosen = evaluation.chosen[kind].threshold
    mark = [] if chosen is None else [theme.reference(chosen, 'x', dashed=True)]
    rows: Rows = [
      {'threshold': o.threshold, 'increase': 100 * o.increase,
       'low': None if o.increase_low is None else 100 * o.increase_low,
       'high': None if o.increase_high is None else 100 * o.increase_high}
      for o in outcomes
    ]  # fmt: skip
    x = alt.X('threshold:Q', title='threshold', scale=alt.Scale(domain=[0, 1]))
    base = alt.Chart().encode(x=x)
    charts.append(
      theme.panel(
        [
          *mark,
          base.mark_area(opacity=0.2, color=theme.CYCLE[0]).encode(
            y=alt.Y('low:Q', title='loss increase, %'), y2='high:Q'
          ),
          base.mark_line(color=theme.CYCLE[0]).encode(
            y=alt.Y('increase:Q', title='loss increase, %')
          ),
        ],
        rows,
        title=_NAMES[kind],
      )
    )
    shares: Rows = [
      {'threshold': o.threshold, 'exit': number, 'share': share}
      for o in outcomes
      for number, share in zip(exits, o.shares, strict=True)
    ]
    charts.append(
      theme.panel(
        [
          base.mark_area().encode(
            y=alt.Y(
              'share:Q',
              title='share of tokens',
              stack='zero',
              scale=alt.Scale(domain=[0, 1]),
            ),
            color=alt.Color(
              'exit:O', title='exit', scale=alt.Scale(scheme='viridis')
            ),
            order=alt.Order('exit:O'),
            tooltip=['exit:O', 'threshold:Q', 'share:Q'],
          ),
          *mark,
        ],
        shares,
        title=f'{_NAMES[kind]}: exits',
      )
    )
    layers: Rows = [
      {'threshold': o.threshold, 'counted': name, 'layers': value}
      for o in outcomes
      for name, value in (
        ('up to the exit', o.layers), ('with deferred', o.layers_deferred)
      )
    ]  # fmt: skip
    colour, _ = theme.category('counted', ['up to the exit', 'with deferred'])
    charts.append(
      theme.panel(
        [
          *mark,
          base.mark_line().encode(
            y=alt.Y('layers:Q', title='layers per token'), color=colour
          ),
        ],
        layers,
        title=f'{_NAMES[kind]}: layers',
      )
    )
  return alt.concat(
    *charts,
    columns=3,
    title='Each token leaves at the first confident exit (dashed: at most'
    f' {100 * evaluate.LOSS_INCREASE:g} % worse)',
  ).resolve_scale(color='independent')


def decoding(measured: benchmark.Decoding) -> theme.Chart:
  """Draws tokens per second by mode, and bytes per token of a relay by hop."""
  charts = []
  for count in dict.fromkeys(speed.rows for speed in measured.speeds):
    rows: Rows = [
      {'mode': speed.mode, 'detail': f'{speed.mode}: {speed.detail}',
       'rate': speed.tokens / speed.seconds}
      for speed in measured.speeds
      if speed.rows == count
    ]  # fmt: skip
    colour, _ = theme.category('mode', [row['mode'] for row in rows])
    y = alt.Y('detail:N', sort=None, title=None, axis=alt.Axis(labelLimit=260))
    base = alt.Chart().encode(x=alt.X('rate:Q', title='tokens per second'), y=y)
    charts.append(
      theme.panel(
        [
          base.mark_bar().encode(color=colour),
          base.mark_text(align='left', dx=3, color=theme.RULE).encode(
            text=alt.Text('rate:Q', format=',.0f')
          ),
        ],
        rows,
        title=f'{count} text{"s" * (count > 1)} at once',
        size=(280, 24 * len(rows)),
      )
    )
  if measured.hops:
    hops: Rows = [
      {'to': f'exit {hop.to}', 'dtype': hop.dtype, 'bytes': hop.bytes}
      for hop in measured.hops
    ]
    colour, _ = theme.category('dtype', [row['dtype'] for row in hops])
    bars = alt.Chart().mark_bar().encode(
      x=alt.X('to:N', title='tier of', sort=None),
      xOffset='dtype:N',
      y=alt.Y('bytes:Q', title='bytes per token, both ways'),
      color=colour,
      tooltip=['dtype:N', 'bytes:Q'],
    )  # fmt: skip
    charts.append(theme.panel([bars], hops, title='relay', size=(220, 180)))
  title = f'Greedy decoding after {measured.prompt_tokens} tokens'
  return alt.concat(*charts, columns=2, title=title).resolve_scale(
    color='independent'
  )
