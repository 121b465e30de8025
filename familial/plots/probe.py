"""Figures of a probe: by layer, and of several models by depth."""

from collections.abc import Sequence
import math
from typing import Any

import altair as alt
import numpy as np

from familial.analysis import probe as probe_lib
from familial.analysis import trajectories
from familial.core.estimate import Estimate
from familial.plots import theme

_ANGLES = {
  'turn': 'turn of the state, rad',
  'bend': 'turn of the update, rad',
  'to_last': 'angle to the last state, rad',
}
_LENGTHS = {'norm': 'length of the state', 'update': 'length of the update'}
_STATISTICS = {
  'alignment': 'alignment of neighbouring updates',
  'early': 'share of tokens that stop early',
}
_LINEAR = 1e-2  # nats around 0 where the axis of a cost is linear
_SIZE = (230, 170)
_BLUE, _RED = theme.CYCLE[:2]


def name(probe: probe_lib.Probe) -> str:
  """Returns the model's run, depth and exits."""
  model = probe.model
  exits = f', {len(model.exits)} exits' if len(model.exits) > 1 else ''
  return f'{model.run}, {model.depth} layers{exits}'


def trajectory(probe: probe_lib.Probe) -> theme.Chart:
  """Draws how the states move by layer: the mean, and 90 % of the tokens.

  Reference lines: the right angle of random vectors; the layer by which a token
  must settle to have stopped early.
  """
  x = theme.layer_axis(probe.model.depth)
  charts = []
  for quantity, title in (*_ANGLES.items(), *_LENGTHS.items()):
    rows = [
      {
        'layer': row.layer,
        'mean': row.mean,
        'low': row.quantiles[0],
        'high': row.quantiles[-1],
      }
      for row in probe.quantities[quantity]
      if row.mean is not None and row.quantiles is not None
    ]
    axis: dict[str, Any] = {}
    references: list[alt.Chart] = []
    if quantity in _LENGTHS:
      axis = theme.log_axis(
        value for row in rows for value in (row['low'], row['high']) if value
      )
    else:
      references.append(theme.reference(math.pi / 2, dashed=True))
    if quantity == 'bend':
      spread = 1.96 * probe.model.width**-0.5  # of random pairs
      references.append(theme.band(math.pi / 2 - spread, math.pi / 2 + spread))
    y = alt.Y('mean:Q', title=title, **axis)
    base = alt.Chart().encode(x=x, y=y)
    charts.append(
      theme.panel(
        [
          *references,
          alt.Chart()
          .mark_area(color=_BLUE, opacity=0.2)
          .encode(x=x, y=alt.Y('low:Q', title=title, **axis), y2='high:Q'),
          base.mark_line(color=_BLUE),
          base.mark_point(color=_BLUE, size=30, opacity=1).encode(
            tooltip=['layer:Q', 'mean:Q', 'low:Q', 'high:Q']
          ),
        ],
        rows,
        size=_SIZE,
      )
    )
  charts.append(_settled(probe))
  return alt.concat(
    *charts, columns=3, title=f'{name(probe)}: how its states move'
  )


def _settled(probe: probe_lib.Probe) -> Any:
  rows: list[dict[str, Any]] = [
    {'layer': layer, 'settled': share}
    for layer, share in enumerate(probe.settled)
  ]
  line = (
    alt.Chart()
    .mark_line(
      color=_RED,
      interpolate='step-after',
      point=alt.OverlayMarkDef(color=_RED),
    )
    .encode(
      x=theme.layer_axis(probe.model.depth),
      y=alt.Y(
        'settled:Q',
        title='tokens that have settled',
        axis=alt.Axis(format='%'),
        scale=alt.Scale(domain=[0, 1]),
      ),
      tooltip=['layer:Q', alt.Tooltip('settled:Q', format='.2%')],
    )
  )
  by = theme.reference(trajectories.EARLY * probe.model.depth, 'x', dashed=True)
  return theme.panel([by, line], rows, size=_SIZE)


def layers(probe: probe_lib.Probe) -> theme.Chart:
  """Draws the loss by layer, the cost of changes, and early stops by position."""
  charts = [_loss(probe), _changes(probe), _by_position(probe)]
  return alt.concat(
    *charts, columns=3, title=f'{name(probe)}: what its layers are worth'
  ).resolve_scale(color='independent', shape='independent')


def _loss(probe: probe_lib.Probe) -> Any:
  rows: list[dict[str, Any]] = [
    {'layer': row.layer, 'value': row.mean, 'head': head}
    for quantity, head in (
      ('loss', 'last head'),
      ('exit_loss', "exit's own head"),
    )
    for row in probe.quantities[quantity]
  ]
  y = alt.Y(
    'value:Q',
    title='loss, nats (lower is better)',
    scale=alt.Scale(zero=False, padding=8),
  )
  colour, shape = theme.category('head', [row['head'] for row in rows])
  base = alt.Chart().encode(
    x=theme.layer_axis(probe.model.depth), y=y, color=colour
  )
  return theme.panel(
    [
      base.mark_line().transform_filter("datum.head == 'last head'"),
      base.mark_point(opacity=1).encode(
        shape=shape,
        tooltip=['head:N', 'layer:Q', alt.Tooltip('value:Q', format='.4f')],
      ),
    ],
    rows,
    size=_SIZE,
  )


def _changes(probe: probe_lib.Probe) -> Any:
  rows = theme.flat(
    {
      # Between the two layers that are exchanged.
      'layer': row.layer + shift,
      'change': change,
      'cost': Estimate.around(row.mean, 1.96 * (row.error or 0)),
    }
    for quantity, change, shift in (
      ('skip', 'layer skipped', 0),
      ('swap', 'exchanged with the next', 0.5),
    )
    for row in probe.quantities[quantity]
    if row.mean is not None
  )
  title = 'added loss, nats'
  axis = theme.symlog_axis(
    (row[end] for row in rows for end in ('cost_lo', 'cost_hi')), _LINEAR
  )
  colour, shape = theme.category('change', [row['change'] for row in rows])
  base = alt.Chart().encode(x=theme.layer_axis(probe.model.depth), color=colour)
  y = alt.Y('cost:Q', title=title, **axis)
  return theme.panel(
    [
      theme.reference(0),
      base.mark_rule().encode(
        y=alt.Y('cost_lo:Q', title=title, **axis), y2='cost_hi:Q'
      ),
      base.mark_line().encode(y=y),
      base.mark_point(opacity=1).encode(
        y=y,
        shape=shape,
        tooltip=['change:N', 'layer:Q', alt.Tooltip('cost:Q', format='.4f')],
      ),
    ],
    rows,
    size=_SIZE,
  )


def _by_position(probe: probe_lib.Probe) -> Any:
  rows: list[dict[str, Any]] = [
    {
      'position': 1 + row.first,
      'early': row.early,
      'tokens': row.tokens,
      'place': place,
    }
    for place, positions in (
      ('in the window', probe.by_position),
      ('since a separator', probe.by_place),
    )
    for row in positions
  ]
  colour, shape = theme.category('place', [row['place'] for row in rows])
  base = alt.Chart().encode(
    x=alt.X(
      'position:Q',
      title='position from 1, by powers of two',
      scale=alt.Scale(type='log', base=2, nice=False, padding=8),
      axis=alt.Axis(format='d'),
    ),
    y=alt.Y(
      'early:Q',
      title='tokens that stopped early',
      axis=alt.Axis(format='%'),
      scale=alt.Scale(zero=True),
    ),
    color=colour,
  )
  return theme.panel(
    [
      base.mark_line(),
      base.mark_point(opacity=1).encode(
        shape=shape,
        tooltip=['place:N', 'position:Q', 'tokens:Q', 'early:Q'],
      ),
    ],
    rows,
    size=_SIZE,
  )


def depths(scaling: probe_lib.DepthScaling) -> theme.Chart:
  """Draws what the layers of several models do, by their depth."""
  charts = [_turns(scaling.probes), _power(scaling), _regimes(scaling.probes)]
  return alt.concat(
    *charts, columns=3, title='Layers by depth of the model'
  ).resolve_scale(color='independent', shape='independent')


def _turns(probes: Sequence[probe_lib.Probe]) -> Any:
  rows: list[dict[str, Any]] = [
    {
      'run': probe.model.run,
      'depth': probe.model.depth,
      'place': (row.layer - 0.5) / probe.model.depth,
      'turn': probe.model.depth * row.mean,
    }
    for probe in probes
    for row in probe.quantities['turn']
    if row.mean
  ]
  base = alt.Chart().encode(
    x=alt.X('place:Q', title='layer / depth'),
    y=alt.Y(
      'turn:Q',
      title='turn × depth, rad',
      **theme.log_axis(row['turn'] for row in rows),
    ),
    color=alt.Color('depth:O', title='layers'),
    detail='run:N',
  )
  point = base.mark_point(size=25, opacity=1).encode(
    tooltip=['run:N', 'depth:Q', 'turn:Q']
  )
  return theme.panel([base.mark_line(), point], rows, size=_SIZE)


def _power(scaling: probe_lib.DepthScaling) -> Any:
  rows: list[dict[str, Any]] = [
    {
      'run': probe.model.run,
      'depth': probe.model.depth,
      'turn': turn,
      'kind': 'model',
    }
    for probe, turn in zip(scaling.probes, scaling.turns, strict=True)
    if turn
  ]
  exponent = scaling.angle_exponent
  if exponent is not None:
    x, y = np.log([[row['depth'], row['turn']] for row in rows]).T
    rows += [
      {
        'depth': depth,
        'turn': math.exp(
          y.mean() + exponent.value * (math.log(depth) - x.mean())
        ),
        'kind': f'depth^{exponent}',
      }
      for depth in sorted({row['depth'] for row in rows})
    ]
  colour, shape = theme.category('kind', [row['kind'] for row in rows])
  base = alt.Chart().encode(
    x=_depth_axis(scaling.probes),
    y=alt.Y(
      'turn:Q',
      title='turn of a middle layer, rad',
      **theme.log_axis(row['turn'] for row in rows),
    ),
    color=colour,
  )
  return theme.panel(
    [
      base.mark_line().transform_filter("datum.kind != 'model'"),
      base.mark_point(opacity=1)
      .encode(shape=shape, tooltip=['run:N', 'depth:Q', 'turn:Q'])
      .transform_filter("datum.kind == 'model'"),
    ],
    rows,
    size=_SIZE,
  )


def _regimes(probes: Sequence[probe_lib.Probe]) -> Any:
  rows = theme.flat(
    {
      'run': probe.model.run,
      'depth': probe.model.depth,
      'statistic': _STATISTICS[item.name],
      'value': item.value,
    }
    for probe in probes
    if probe.regime is not None
    for item in probe.regime.evidence
    if item.name in _STATISTICS
  )
  colour, shape = theme.category('statistic', _STATISTICS.values())
  base = alt.Chart().encode(x=_depth_axis(probes), color=colour)
  title = 'statistic of the regimes'
  return theme.panel(
    [
      base.mark_rule().encode(
        y=alt.Y('value_lo:Q', title=title), y2='value_hi:Q'
      ),
      base.mark_point(opacity=1).encode(
        y=alt.Y('value:Q', title=title),
        shape=shape,
        tooltip=['run:N', 'depth:Q', 'statistic:N', 'value:Q'],
      ),
    ],
    rows,
    size=_SIZE,
  )


def _depth_axis(probes: Sequence[probe_lib.Probe]) -> alt.X:
  depths_ = sorted({probe.model.depth for probe in probes})
  return alt.X(
    'depth:Q',
    title='layers of the model',
    scale=alt.Scale(type='log', nice=False, padding=10),
    axis=alt.Axis(values=depths_, format='d'),
  )
