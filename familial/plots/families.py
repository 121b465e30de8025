"""Figures of a study of families: relative losses, and how members agree."""

from typing import Any

import altair as alt

from familial.core import text
from familial.plots import theme
from familial.studies import families

_LOG_FROM = 10.0  # ratio of the largest to the smallest value of a log axis
_MEASURES = ('kl', 'kl_back', 'js', 'top1')


def _budget(row: Any) -> str:
  return f'C = {text.scientific(row.budget)} FLOPs'


def _comparison(row: Any) -> str:
  return f'{row.way} over {row.against}'


def heat(tables: families.Tables) -> theme.Chart:
  """Draws relative loss by way and size, a panel for each budget."""
  rows = theme.percentages(tables.compared, panel=_budget, ways=_comparison)
  ways = [_comparison(row) for row in tables.overall]
  sizes = len({row['size'] for row in rows})
  two_lines = "split(replace(datum.label, ' over ', '\\nover '), '\\n')"
  axis = alt.Axis(labelExpr=two_lines, labelOffset=-6)
  base = alt.Chart().encode(
    x=alt.X('size:O', title='size', axis=alt.Axis(labelAngle=0)),
    y=alt.Y('ways:N', title=None, sort=ways, axis=axis),
    tooltip=theme.tips('ways', 'size', 'params', 'said', 'sign', 'seeds'),
  )
  return theme.panels(
    theme.heat(base, rows, 'relative loss, %'),
    rows,
    title='Loss over that of the way it is compared with, by size',
    columns=2,
    size=(90 * sizes, 36 * len(ways)),
  )


def compared(tables: families.Tables) -> theme.Chart:
  """Draws relative loss against parameters, a panel for each comparison."""
  budgets = sorted({row.budget for row in tables.compared})
  # Side by side, so that no interval hides another.
  rows = theme.percentages(
    tables.compared,
    panel=_comparison,
    at=_budget,
    x=lambda r: r.params * 1.08 ** budgets.index(r.budget),
  )
  names = [r['at'] for r in sorted(rows, key=lambda row: row['budget'])]
  series = theme.category('at', names)
  base = series.chart(
    x=theme.x(
      'x', theme.axis_title('N'), **theme.log_axis(r['x'] for r in rows)
    )
  )
  tooltip = 'at', 'size', 'params', 'said', 'sign'
  y = theme.y('over', 'relative loss, %')
  return theme.panels(
    [theme.reference(0), *theme.means(base, y, series.shape, *tooltip)],
    rows,
    order=[_comparison(row) for row in tables.overall],
    title='Loss over that of the way it is compared with (below 0 is better)',
    series=series,
  )


def agreement(tables: families.Tables) -> theme.Chart:
  """Draws how adjacent sizes agree at the largest budget, a panel a measure.

  A band spans the pairs of two seeds of one size.
  """
  budget = max(row.budget for row in tables.agreement)
  pairs = [row for row in tables.agreement if row.budget == budget]
  rows = [
    {
      'kind': row.kind,
      'way': row.way,
      'sizes': f'{row.size} and {row.other_size}',
      'seed': row.seed,
      **{key: getattr(row.agreement, key).value for key in _MEASURES},
    }
    for row in pairs
  ]
  adjacent = [row for row in rows if row['kind'] == 'adjacent']
  seeds = [row for row in rows if row['kind'] == 'seeds']
  ways = list(dict.fromkeys(row['way'] for row in adjacent))
  names = sorted({row['sizes'] for row in adjacent})
  series = theme.category('sizes', names, 'sizes')
  size = theme.PANEL[0], max(90, 11 * len(names) * len(ways))
  charts = []
  for key in _MEASURES:
    values = [row[key] for row in rows]
    axis: dict[str, Any] = {
      'scale': theme.near(8),
      'axis': alt.Axis(tickCount=5, labelFlush=False),
    }
    if key != 'top1' and max(values) > _LOG_FROM * min(values) > 0:
      axis = theme.log_axis(values)
    base = series.chart(
      x=theme.x(key, **axis),
      y=alt.Y('way:N', title=None, sort=ways, axis=alt.Axis(grid=True)),
      yOffset=alt.YOffset('sizes:N', sort=names),
      tooltip=theme.tips('way', 'sizes', 'seed', key),
    )
    layers = [base.mark_point(size=34).encode(shape=series.shape)]
    if seeds:
      ends = [row[key] for row in seeds]
      layers.insert(0, theme.band(min(ends), max(ends), 'x'))
    charts.append(theme.panel(layers, size=size))
  title = f'Adjacent sizes of a family, C = {text.scientific(budget)} FLOPs'
  return theme.concat(charts, title, columns=2, rows=adjacent, series=series)
