"""The figure of a plan for a pod: what a step needs."""

from collections.abc import Mapping
from typing import Any

import altair as alt

from familial.plots import theme

_GIB = 2**30


def limits(plan: Mapping[str, Any]) -> theme.Chart:
  """Draws the three times of each compiled run's step, and its memory."""
  runs = [row for row in plan['cells'] if row['compiled'] == row['cell']]
  names = [row['cell'] for row in runs]
  times = [
    {'run': row['cell'], 'part': part, 'seconds': seconds}
    for row in runs
    for part, seconds in row['times'].items()
    if seconds
  ]
  series = theme.category('part', ['compute', 'memory', 'links'])
  y = alt.Y('run:N', sort=names, title=None, axis=alt.Axis(labelLimit=240))
  size = (330, max(60, 20 * len(names)))
  axis = theme.log_axis(row['seconds'] for row in times)
  points = alt.Chart().mark_point(size=50).encode(
    x=theme.x('seconds', 'seconds per step, at full speed', **axis),
    y=y,
    color=series.colour,
    shape=series.shape,
    tooltip=theme.tips('run', 'part', 'seconds'),
  )  # fmt: skip
  memory = [
    {'run': row['cell'], 'memory': row['memory'] / _GIB, 'fits': row['fits']}
    for row in runs
  ]
  bars = alt.Chart().mark_bar().encode(
    x=theme.x('memory', 'GiB per device (dashed: all there is)'),
    y=y,
    color=alt.condition(
      'datum.fits', alt.value(theme.CYCLE[2]), alt.value(theme.CYCLE[1])
    ),
    tooltip=theme.tips('run', 'memory', 'fits'),
  )  # fmt: skip
  capacity = theme.reference(plan['chip']['memory'] / _GIB, 'x', dashed=True)
  charts = [
    theme.panel([points], times, size=size),
    theme.panel([bars, capacity], memory, size=size),
  ]
  return theme.concat(charts, 'What a step needs', columns=2)
