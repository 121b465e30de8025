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
  charts = []
  for quantity, title in (*_ANGLES.items(), *_LENGTHS.items()):
    rows = [
      {
        'layer': row.layer,
        'mean': row.mean,
        'mean_lo': row.quantiles[0],
        'mean_hi': row.quantiles[-1],
      }
      for row in probe.quantities[quantity]
      if row.mean is not None and row.quantiles is not None
    ]
    axis: dict[str, Any] = {}
    references = [theme.reference(math.pi / 2, dashed=True)]
    if quantity in _LENGTHS:
      axis = theme.log_axis(
        v for row in rows for v in (row['mean_lo'], row['mean_hi']) if v
      )
      references = []
    elif quantity == 'bend':
      spread = 1.96 * probe.model.width**-0.5  # of random pairs
      references.append(theme.band(math.pi / 2 - spread, math.pi / 2 + spread))
    y = theme.y('mean', title, **axis)
    base = alt.Chart().encode(x=theme.layer_axis(probe.model.depth))
    point = base.mark_point(color=_BLUE, size=30, opacity=1).encode(
      y=y, tooltip=theme.tips('layer', 'mean', 'mean_lo', 'mean_hi')
    )
    curve = theme.curve(base, y, color=_BLUE)
    charts.append(theme.panel([*references, *curve, point], rows, size=_SIZE))
  charts.append(_settled(probe))
  return theme.concat(charts, f'{name(probe)}: how its states move')


def _settled(probe: probe_lib.Probe) -> alt.LayerChart:
  rows = theme.rows(layer=range(len(probe.settled)), settled=probe.settled)
  line = alt.Chart().mark_line(
    color=_RED, interpolate='step-after', point=alt.OverlayMarkDef(color=_RED)
  )
  percent, unit = alt.Axis(format='%'), alt.Scale(domain=[0, 1])
  line = line.encode(
    x=theme.layer_axis(probe.model.depth),
    y=theme.y('settled', axis=percent, scale=unit),
    tooltip=theme.tips('layer', 'settled'),
  )
  by = theme.reference(trajectories.EARLY * probe.model.depth, 'x', dashed=True)
  return theme.panel([by, line], rows, size=_SIZE)


def layers(probe: probe_lib.Probe) -> theme.Chart:
  """Draws the loss by layer, the cost of changes, and early stops by position."""
  charts = [_loss(probe), _changes(probe), _by_position(probe)]
  return theme.concat(
    charts, f'{name(probe)}: what its layers are worth'
  ).resolve_scale(color='independent', shape='independent')


def _loss(probe: probe_lib.Probe) -> alt.LayerChart:
  return _by_kind(
    [
      {'layer': row.layer, 'value': row.mean, 'kind': kind}
      for name, kind in (('loss', 'last head'), ('exit_loss', 'own head'))
      for row in probe.quantities[name]
    ],
    theme.layer_axis(probe.model.depth),
    title='loss, nats (lower is better)',
    scale=alt.Scale(zero=False, padding=8),
  )


def _changes(probe: probe_lib.Probe) -> alt.LayerChart:
  rows = theme.flat(
    {
      # Between the two layers that are exchanged.
      'layer': row.layer + shift,
      'value': Estimate.around(row.mean, 1.96 * (row.error or 0)),
      'kind': kind,
    }
    for name, kind, shift in (
      ('skip', 'layer skipped', 0),
      ('swap', 'exchanged with the next', 0.5),
    )
    for row in probe.quantities[name]
    if row.mean is not None
  )
  ends = [row[end] for row in rows for end in ('value_lo', 'value_hi')]
  return _by_kind(
    rows,
    theme.layer_axis(probe.model.depth),
    title='added loss, nats',
    **theme.symlog_axis(ends, _LINEAR),
  )


def _by_position(probe: probe_lib.Probe) -> alt.LayerChart:
  return _by_kind(
    [
      {
        'position': 1 + row.first,
        'value': row.early,
        'kind': kind,
        'tokens': row.tokens,
      }
      for kind, positions in (
        ('in the window', probe.by_position),
        ('since a separator', probe.by_place),
      )
      for row in positions
    ],
    alt.X(
      'position:Q',
      title='position from 1, by powers of two',
      scale=alt.Scale(type='log', base=2, nice=False, padding=8),
      axis=alt.Axis(format='d'),
    ),
    title='tokens that stopped early',
    axis=alt.Axis(format='%'),
    scale=alt.Scale(zero=True),
  )


def depths(scaling: probe_lib.DepthScaling) -> theme.Chart:
  """Draws what the layers of several models do, by their depth."""
  charts = [_turns(scaling.probes), _power(scaling), _regimes(scaling.probes)]
  return theme.concat(charts, 'Layers by depth of the model').resolve_scale(
    color='independent', shape='independent'
  )


def _turns(probes: Sequence[probe_lib.Probe]) -> alt.LayerChart:
  rows: theme.Rows = [
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
  axis = theme.log_axis(row['turn'] for row in rows)
  base = alt.Chart().encode(
    x=theme.x('place', 'layer / depth'),
    y=theme.y('turn', 'turn × depth, rad', **axis),
    color=alt.Color('depth:O', title='layers'),
    detail='run:N',
    tooltip=theme.tips('run', 'depth', 'turn'),
  )
  layers = [base.mark_line(), base.mark_point(size=25, opacity=1)]
  return theme.panel(layers, rows, size=_SIZE)


def _power(scaling: probe_lib.DepthScaling) -> alt.LayerChart:
  points = [
    (probe.model.depth, turn)
    for probe, turn in zip(scaling.probes, scaling.turns, strict=True)
    if turn
  ]
  rows: theme.Rows = []
  exponent = scaling.angle_exponent
  if exponent is not None:
    x, y = np.log(points).T
    at = np.array([x.min(), x.max()])
    rows = theme.rows(
      depth=np.exp(at),
      value=np.exp(y.mean() + exponent.value * (at - x.mean())),
      kind=f'depth^{exponent}',
    )
  rows += [
    {'depth': depth, 'value': turn, 'kind': 'model', 'line': False}
    for depth, turn in points
  ]
  return _by_kind(
    rows,
    _depth_axis(scaling.probes),
    title='turn of a middle layer, rad',
    **theme.log_axis(turn for _, turn in points),
  )


def _regimes(probes: Sequence[probe_lib.Probe]) -> alt.LayerChart:
  rows = theme.flat(
    {
      'run': probe.model.run,
      'depth': probe.model.depth,
      'value': item.value,
      'kind': _STATISTICS[item.name],
      'line': False,
    }
    for probe in probes
    if probe.regime is not None
    for item in probe.regime.evidence
    if item.name in _STATISTICS
  )
  return _by_kind(rows, _depth_axis(probes), title='statistic of the regimes')


def _by_kind(
  rows: Sequence[dict[str, Any]], x: alt.X, **y: Any
) -> alt.LayerChart:
  """Returns a panel of points by kind, with lines and intervals.

  Args:
    rows: `value` and `kind`, perhaps `value_lo` and `value_hi`; with `line` False
      points are not connected.
    x: the horizontal channel.
    **y: title, scale and axis of the vertical channel.
  """
  series = theme.category('kind', [row['kind'] for row in rows])
  base = alt.Chart().encode(x=x, color=series.colour)
  channel = alt.Y('value:Q', **y)
  value = base.encode(y=channel)
  fields = dict.fromkeys(key for row in rows for key in row if key != 'line')
  layers = [
    theme.interval(base, channel),
    value.mark_line().transform_filter('datum.line !== false'),
    value.mark_point(opacity=1).encode(
      shape=series.shape, tooltip=theme.tips(*fields)
    ),
  ]
  return theme.panel(layers, rows, size=_SIZE)


def _depth_axis(probes: Sequence[probe_lib.Probe]) -> alt.X:
  return alt.X(
    'depth:Q',
    title='layers of the model',
    scale=alt.Scale(type='log', nice=False, padding=10),
    axis=alt.Axis(
      values=sorted({probe.model.depth for probe in probes}), format='d'
    ),
  )
