"""Figures of toy networks: loss by depth, exponents and what moves them."""

from typing import Any

import altair as alt
import numpy as np

from familial.plots import theme
from familial.studies import depth_toys

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
  rows: theme.Rows = []
  for curve in tables.curves:
    here = {'panel': _panel(curve), 'temperature': _temperature(curve)}
    points = [
      row
      for row in tables.losses
      if _of(row) == _of(curve) and row.error is not None and row.loss
    ]
    rows += [
      here
      | {
        'kind': 'student',
        'depth': r.depth,
        'loss': r.loss,
        'teacher': r.number,
      }
      for r in points
    ]
    logs = np.array(
      [
        [np.log(r.loss) for r in points if r.number == number and r.loss]
        for number in sorted({row.number for row in points})
      ]
    )
    if not len(points) or logs.shape[-1] != len(curve.depths):
      continue
    slope, level = np.polyfit(np.log(curve.depths), logs.mean(axis=0), 1)
    rows += theme.rows(
      **here,
      kind='bent' if curve.bent else 'line',
      depth=curve.depths,
      loss=np.exp(level) * np.array(curve.depths, float) ** slope,
      said=f'{curve.exponent}',
    )
  series = theme.category('temperature', [r['temperature'] for r in rows])
  scale = alt.Scale(type='log', nice=False, padding=8)
  depths = sorted({row['depth'] for row in rows})
  base = series.chart(
    x=theme.x(
      'depth',
      'layers l of the students',
      scale=scale,
      axis=alt.Axis(values=depths, format='d'),
    ),
    y=theme.y(
      'loss',
      'test loss (lower is better)',
      scale=scale,
      axis=alt.Axis(format='.1e', tickCount=4),
    ),
  )
  line = base.encode(tooltip=theme.tips('panel', 'temperature', 'said'))
  layers = [
    theme.only(line, 'line').mark_line(),
    theme.only(line, 'bent').mark_line(strokeDash=[5, 3]),
    theme.only(base, 'student')
    .mark_point(size=30)
    .encode(
      shape=series.shape,
      tooltip=[
        *theme.tips('teacher', 'depth'),
        alt.Tooltip('loss:Q', format='.3e'),
      ],
    ),
  ]
  return theme.panels(
    layers,
    rows,
    title='Test loss by depth (a point: one teacher and its student; dashed: not'
    ' a power law)',
    own_y=True,
    size=_SIZE,
    series=series,
  )


def exponents(tables: depth_toys.Tables) -> theme.Chart:
  """Draws the exponent of depth of every group with its interval."""
  rows = [
    {
      'name': f'{_panel(curve)}, {_temperature(curve)}',
      'value': curve.exponent,
      'group': f'{curve.teacher} layers of the teacher',
      'flags': 'not a power law' if curve.bent else '',
    }
    for curve in tables.curves
    if curve.exponent is not None
  ]
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
  title = 'Exponent of depth by temperature'
  return _exponent(rows, 'temperature', 'temperature T', 'teacher', title)


def evolution(tables: depth_toys.Tables) -> theme.Chart:
  """Draws the exponent of depth along training.

  Rates fall to the end of a training: an earlier point is not a shorter training.
  """
  rows = theme.flat(
    [row for row in tables.evolution if row.exponent is not None],
    panel=_panel,
    temperature=_temperature,
  )
  title = 'Exponent of depth along training'
  return _exponent(rows, 'steps', 'training steps', 'temperature', title)


def _exponent(
  rows: theme.Rows, along: str, label: str, field: str, title: str
) -> theme.Chart:
  series = theme.category(field, [row[field] for row in rows])
  base = series.chart(
    x=theme.x(along, label, **theme.log_axis(row[along] for row in rows))
  )
  y = theme.y('exponent')
  layers = [
    *(theme.reference(value, dashed=True) for value in _EXPECTED.values()),
    *theme.means(base, y, series.shape, along, field, 'exponent'),
  ]
  return theme.panels(
    layers,
    rows,
    title=f'{title} (dashed: 1, averaging, and 3, smooth dynamics)',
    size=_SIZE,
    series=series,
  )
