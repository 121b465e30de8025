"""Figures of a study of families: relative losses, and how members agree."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from familial.core import text
from familial.plots import theme
from familial.studies import families

_LOG_FROM = 10.0  # ratio of the largest to the smallest value of a log axis
_MEASURES = {
  'kl': 'KL(smaller ‖ larger), nats',
  'kl_back': 'KL(larger ‖ smaller), nats',
  'js': 'Jensen-Shannon divergence, nats',
  'top1': 'same top-1 token, share',
}


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
  base = alt.Chart().encode(
    x=alt.X('size:O', title='size', axis=alt.Axis(labelAngle=0)),
    y=alt.Y(
      'ways:N',
      title=None,
      sort=ways,
      axis=alt.Axis(labelExpr=two_lines, labelOffset=-6),
    ),
    tooltip=['ways:N', 'size:O', 'params:Q', 'said:N', 'sign:N', 'seeds:Q'],
  )
  return theme.panels(
    theme.heat(base, rows, 'relative loss, %'),
    rows,
    by='panel',
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
  colour, shape = theme.category('at', names)
  pick = theme.legend_filter('at')
  base = alt.Chart().encode(
    x=alt.X(
      'x:Q', title='parameters N', **theme.log_axis(r['x'] for r in rows)
    ),
    y=alt.Y('over:Q', title='relative loss, %'),
    color=colour,
    opacity=theme.shown(pick),
  )
  point = base.mark_point().encode(
    shape=shape, tooltip=['at:N', 'size:O', 'params:Q', 'said:N', 'sign:N']
  )
  return theme.panels(
    [
      theme.reference(0),
      base.mark_line(),
      base.mark_rule().encode(y='over_lo:Q', y2='over_hi:Q'),
      point.add_params(pick),
    ],
    rows,
    by='panel',
    order=[_comparison(row) for row in tables.overall],
    title='Loss over that of the way it is compared with (below 0 is better)',
  )


def agreement(tables: families.Tables) -> theme.Chart:
  """Draws how adjacent sizes agree at the largest budget, a panel a measure.

  A band spans the pairs of two seeds of one size.
  """
  budget = max(row.budget for row in tables.agreement)
  pairs = [row for row in tables.agreement if row.budget == budget]
  rows: list[dict[str, Any]] = [
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
  scale = [row for row in rows if row['kind'] == 'seeds']
  ways = list(dict.fromkeys(row['way'] for row in adjacent))
  names = sorted({row['sizes'] for row in adjacent})
  colour, shape = theme.category('sizes', names, 'sizes')
  pick = theme.legend_filter('sizes')
  charts: list[Any] = []
  for key, title in _MEASURES.items():
    values = [row[key] for row in rows]
    base = alt.Chart(theme.data(adjacent)).encode(
      x=alt.X(f'{key}:Q', title=title, **_axis(key, values)),
      y=alt.Y('way:N', title=None, sort=ways, axis=alt.Axis(grid=True)),
      yOffset=alt.YOffset('sizes:N', sort=names),
      color=colour,
      opacity=theme.shown(pick),
    )
    point = base.mark_point(size=34).encode(
      shape=shape,
      tooltip=[
        'way:N',
        'sizes:N',
        'seed:Q',
        alt.Tooltip(f'{key}:Q', format='.4f'),
      ],
    )
    layers = [point if charts else point.add_params(pick)]
    if scale:
      seeds = [row[key] for row in scale]
      layers.insert(0, theme.band(min(seeds), max(seeds), 'x'))
    charts.append(
      alt.layer(*layers).properties(
        width=theme.PANEL[0], height=max(90, 11 * len(names) * len(ways))
      )
    )
  return alt.concat(
    *charts,
    columns=2,
    title=f'Adjacent sizes of a family, C = {text.scientific(budget)} FLOPs',
  )


def _axis(key: str, values: Sequence[float]) -> dict[str, Any]:
  if key != 'top1' and max(values) > _LOG_FROM * min(values) > 0:
    return theme.log_axis(values)
  return {
    'scale': alt.Scale(zero=False, padding=8),
    'axis': alt.Axis(tickCount=5, labelFlush=False),
  }
