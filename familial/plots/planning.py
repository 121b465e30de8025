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
  colour, shape = theme.category('part', ['compute', 'memory', 'links'])
  y = alt.Y('run:N', sort=names, title=None, axis=alt.Axis(labelLimit=240))
  size = (330, max(60, 20 * len(names)))
  points = alt.Chart().mark_point(size=50).encode(
    x=alt.X(
      'seconds:Q',
      title='seconds per step, at full speed',
      **theme.log_axis(row['seconds'] for row in times),
    ),
    y=y,
    color=colour,
    shape=shape,
    tooltip=['run:N', 'part:N', 'seconds:Q'],
  )  # fmt: skip
  memory = [
    {'run': row['cell'], 'memory': row['memory'] / _GIB, 'fits': row['fits']}
    for row in runs
  ]
  bars = alt.Chart().mark_bar().encode(
    x=alt.X('memory:Q', title='GiB per device (dashed: all there is)'),
    y=y,
    color=alt.condition(
      'datum.fits', alt.value(theme.CYCLE[2]), alt.value(theme.CYCLE[1])
    ),
    tooltip=['run:N', 'memory:Q', 'fits:N'],
  )  # fmt: skip
  capacity = plan['chip']['memory'] / _GIB
  return alt.concat(
    theme.panel([points], times, size=size),
    theme.panel(
      [bars, theme.reference(capacity, 'x', dashed=True)], memory, size=size
    ),
    columns=2,
    title='What a step needs',
  )
