"""Figures of toy networks: loss by depth, exponents and what moves them."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from familial.plots import theme
from familial.studies import depth_toys

Curves = Sequence[depth_toys.Curve]
_EXPECTED = {'averaging': 1.0, 'smooth': 3.0}  # exponents of the two regimes
_SIZE = (230, 190)


def _panel(row: Any) -> str:
  return f'{row.study.replace("_", " ")}, {row.teacher}'


def _temperature(row: Any) -> str:
  return 'no head' if row.temperature is None else f'T = {row.temperature:g}'


def _of(row: Any) -> tuple[str, str, float | None]:
  return row.study, row.teacher, row.temperature


def loss(tables: depth_toys.Tables) -> theme.Chart:
  """Draws test loss against depth: every teacher, and the fitted line.

  A dashed line: the curve is not a power law of depth.
  """
  rows: list[dict[str, Any]] = []
  for curve in tables.curves:
    here = {'panel': _panel(curve), 'temperature': _temperature(curve)}
    points = [
      row
      for row in tables.losses
      if _of(row) == _of(curve) and row.error is not None and row.loss
    ]
    rows += [
      {**here, 'kind': 'student', 'depth': r.depth, 'loss': r.loss,
       'teacher': r.number}
      for r in points
    ]  # fmt: skip
    logs = np.array(
      [
        [np.log(r.loss) for r in points if r.number == number and r.loss]
        for number in sorted({row.number for row in points})
      ]
    )
    if not len(points) or logs.shape[-1] != len(curve.depths):
      continue
    slope, level = np.polyfit(np.log(curve.depths), logs.mean(axis=0), 1)
    rows += [
      {**here, 'kind': 'bent' if curve.bent else 'line', 'depth': depth,
       'loss': float(np.exp(level) * depth**slope),
       'exponent': f'{curve.exponent}'}
      for depth in curve.depths
    ]  # fmt: skip
  colour, shape = theme.category(
    'temperature', [row['temperature'] for row in rows]
  )
  pick = theme.legend_filter('temperature')
  depths = sorted({row['depth'] for row in rows})
  base = alt.Chart().encode(
    x=alt.X(
      'depth:Q',
      title='layers l of the students',
      scale=alt.Scale(type='log', nice=False, padding=8),
      axis=alt.Axis(values=depths, format='d'),
    ),
    y=alt.Y(
      'loss:Q',
      title='test loss (lower is better)',
      scale=alt.Scale(type='log', nice=False, padding=8),
      axis=alt.Axis(format='.1e', tickCount=4),
    ),
    color=colour,
    opacity=theme.shown(pick),
  )

  def of(kind: str) -> alt.Chart:
    return base.transform_filter(f"datum.kind == '{kind}'")

  tooltip = ['panel:N', 'temperature:N', 'exponent:N']
  layers = [
    of('line').mark_line().encode(tooltip=tooltip),
    of('bent').mark_line(strokeDash=[5, 3]).encode(tooltip=tooltip),
    of('student')
    .mark_point(size=30)
    .encode(
      shape=shape,
      tooltip=['teacher:Q', 'depth:Q', alt.Tooltip('loss:Q', format='.3e')],
    )
    .add_params(pick),
  ]
  return theme.panels(
    layers,
    rows,
    by='panel',
    title='Test loss by depth (a point: one teacher and its student; dashed: not'
    ' a power law)',
    independent=('y',),
    size=_SIZE,
  )


def exponents(tables: depth_toys.Tables) -> theme.Chart:
  """Draws the exponent of depth of every group with its interval."""
  rows = theme.flat(
    [curve for curve in tables.curves if curve.exponent is not None],
    name=lambda c: f'{_panel(c)}, {_temperature(c)}',
    value=lambda c: c.exponent.value,
    lo=lambda c: c.exponent.lo,
    hi=lambda c: c.exponent.hi,
    said=lambda c: f'{c.exponent}',
    group=lambda c: f'{c.teacher} layers of the teacher',
    flagged=lambda c: c.bent,
    flags=lambda c: 'not a power law' if c.bent else '',
  )
  return theme.forest(
    rows,
    title='Exponent of depth',
    axis='exponent (dashed: 1, averaging; hollow: not a power law)',
    dashed=_EXPECTED['averaging'],
  )


def temperatures(tables: depth_toys.Tables) -> theme.Chart:
  """Draws the exponent of depth against the temperature of the head."""
  rows = theme.flat(
    [c for c in tables.curves if c.temperature is not None and c.exponent],
    panel=lambda c: c.study.replace('_', ' '),
  )
  return _exponent(
    rows,
    'temperature',
    'temperature T',
    'teacher',
    'Exponent of depth by temperature',
  )


def evolution(tables: depth_toys.Tables) -> theme.Chart:
  """Draws the exponent of depth along training.

  Rates fall to the end of a training: an earlier point is not a shorter training.
  """
  rows = theme.flat(
    [row for row in tables.evolution if row.exponent is not None],
    panel=_panel,
    temperature=_temperature,
  )
  return _exponent(
    rows,
    'steps',
    'training steps',
    'temperature',
    'Exponent of depth along training',
  )


def _exponent(
  rows: list[dict[str, Any]], x: str, label: str, field: str, title: str
) -> theme.Chart:
  colour, shape = theme.category(field, [row[field] for row in rows])
  pick = theme.legend_filter(field)
  base = alt.Chart().encode(
    x=alt.X(f'{x}:Q', title=label, **theme.log_axis(row[x] for row in rows)),
    color=colour,
    opacity=theme.shown(pick),
  )
  y = alt.Y('exponent:Q', title='exponent of depth')
  layers = [
    *(theme.reference(value, dashed=True) for value in _EXPECTED.values()),
    base.mark_rule().encode(
      y=alt.Y('exponent_lo:Q', title='exponent of depth'), y2='exponent_hi:Q'
    ),
    base.mark_line().encode(y=y),
    base.mark_point()
    .encode(y=y, shape=shape, tooltip=[f'{x}:Q', f'{field}:N', 'exponent:Q'])
    .add_params(pick),
  ]
  return theme.panels(
    layers,
    rows,
    by='panel',
    title=f'{title} (dashed: 1, averaging, and 3, smooth dynamics)',
    size=_SIZE,
  )
