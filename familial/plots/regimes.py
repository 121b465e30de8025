"""Figures of a study of layers and exits: the regimes, and what each layer does."""

from typing import Any

import altair as alt

from familial.core.estimate import Estimate
from familial.plots import theme
from familial.studies import depth_regimes

STATISTICS = {
  'alignment': 'alignment of updates',
  'departure': 'departure of updates',
  'middle_turn': 'turn of a middle layer, rad',
  'step_spread': 'spread of steps',
  'early': 'share of tokens that stop early',
  'stop_spread': 'spread of stops',
}
LAYERS = {
  'turn': 'turn of the state, rad',
  'cosine': 'cosine of neighbouring updates',
  'loss': 'loss of the last head, nats',
  'skip': 'cost of skipping a layer, nats',
}
_LINEAR = 1e-3  # nats around 0 where the axis of a cost is linear
_SIZE = (230, 170)


def depths(tables: depth_regimes.Tables) -> list[int]:
  """Returns the depths of a study: each has its own figures."""
  return list(dict.fromkeys(row.depth for row in tables.groups))


def statistics(tables: depth_regimes.Tables, depth: int) -> theme.Chart:
  """Draws the statistics of the regimes by G: each seed, and the mean."""
  seeds = [row for row in tables.seeds if row.depth == depth]
  rows: theme.Rows = []
  for name, title in STATISTICS.items():
    for exits in sorted({row.exits for row in seeds}):
      values = {r.seed: getattr(r, name) for r in seeds if r.exits == exits}
      mean = Estimate.of(values.values())
      if name == 'early':
        mean = mean.within(0, 1)
      here = {'statistic': title, 'exits': exits}
      rows += [here | {'seed': s, 'value': v} for s, v in values.items()]
      rows += theme.flat([here | {'mean': mean, 'said': f'{mean}'}])
  series = theme.granularity(row.exits for row in seeds)
  base = alt.Chart().encode(
    x=alt.X('exits:O', title='exits G', axis=alt.Axis(labelAngle=0)),
    color=series.colour,
  )
  mean_y = alt.Y('mean:Q', title=None, scale=theme.near(8))
  layers = [
    theme.interval(base, mean_y),
    base.mark_point(
      size=18, filled=False, strokeWidth=1, xOffset=9, opacity=1
    ).encode(
      y=alt.Y('value:Q', title=None, scale=theme.near(8)),
      tooltip=theme.tips('exits', 'seed', 'value'),
    ),
    base.mark_point(size=70, opacity=1).encode(
      y=mean_y, shape=series.shape, tooltip=theme.tips('exits', 'said')
    ),
  ]
  return theme.panels(
    layers,
    rows,
    by='statistic',
    title=f'Statistics of the middle layers, {depth} layers',
    own_y=True,
    size=_SIZE,
  )


def layers(tables: depth_regimes.Tables, depth: int) -> theme.Chart:
  """Draws what each layer does by G, means over seeds."""
  rows = [row for row in tables.layers if row.depth == depth]
  series = theme.granularity(row.exits for row in rows)
  charts = []
  for name, title in LAYERS.items():
    here = [row for row in rows if row.name == name]
    axis: dict[str, Any] = {'scale': theme.near(8)}
    if name == 'skip':
      axis = theme.symlog_axis((row.mean for row in here), _LINEAR)
    base = series.chart(
      x=theme.layer_axis(depth), y=theme.y('mean', title, **axis)
    )
    point = base.mark_point().encode(
      shape=series.shape, tooltip=theme.tips('exits', 'layer', 'mean')
    )
    charts.append(theme.panel([base.mark_line(), point], theme.flat(here)))
  title = f'Layer by layer, {depth} layers'
  return theme.concat(charts, title, columns=2, series=series)
