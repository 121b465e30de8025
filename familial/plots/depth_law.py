"""Figures of laws of width and depth: their curves, alternatives and cut-offs."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import Protocol

import altair as alt
import numpy as np

from familial.core import text
from familial.laws import diagnostics
from familial.laws import selection
from familial.laws import sensitivity
from familial.laws import table as tables_lib
from familial.plots import theme
from familial.studies import depth_law

_TICKS = 8  # values of a column, beyond which its axis has round numbers
_AXES = {'depth': 'depth, layers', 'width': 'width'}


class Law(Protocol):
  """A fitted law: a result, or one that was read back."""

  def predict(self, columns: Mapping[str, Any]) -> np.ndarray:
    """Returns the loss at these columns [rows]."""


def grid(
  tables: depth_law.Tables, rows: Sequence[Mapping[str, Any]]
) -> theme.Chart | None:
  """Draws the last evaluations of a study with its law; None without either.

  Args:
    tables: of the study.
    rows: all evaluations of its runs.
  """
  law = tables.law()
  if law is None or not rows:
    return None
  table = tables_lib.from_rows(rows, depth_law.LOSS, mix_corpora=True)
  return shapes(law, table, 'Loss over width and depth')


def shapes(law: Law, table: tables_lib.Table, title: str) -> theme.Chart:
  """Draws loss by depth at each width and by width at each depth, with the law.

  Each run's last row is drawn; lines join the law's values at the runs.

  Args:
    law: of any form.
    table: rows with width and depth.
    title: of the figure.
  """
  ends = table.take(diagnostics.last_rows(table))
  columns = ends.columns
  rows = theme.rows(
    run=ends.run,
    width=columns['width'].astype(int),
    depth=columns['depth'].astype(int),
    loss=columns['loss'],
    law=law.predict(columns),
  )
  charts = []
  for along, each in (('depth', 'width'), ('width', 'depth')):
    series = theme.graded(
      each,
      sorted({row[each] for row in rows}),
      each,
      'O',
      scheme=alt.SchemeParams(name='viridis', extent=[0.2, 0.9]),
    )
    ticks = sorted({row[along] for row in rows})
    axis = theme.log_axis(ticks)
    if len(ticks) <= _TICKS:
      axis['axis'] = alt.Axis(values=ticks, format='d')
    base = series.chart(x=theme.x(along, _AXES[along], **axis)).encode(
      color=series.colour.legend(alt.Legend(columns=6))
    )
    loss = theme.y('loss', scale=theme.near(10))
    line = theme.y('law', theme.axis_title('loss'), scale=theme.near(10))
    point = base.mark_point().encode(
      y=loss,
      shape=series.shape,
      tooltip=theme.tips('run', 'width', 'depth', 'loss', 'law'),
    )
    charts.append(
      theme.panel(
        [base.mark_line().encode(y=line), point],
        title=f'a line for each {each}',
        size=(theme.PANEL[0], 220),
        series=series,
      )
    )
  return theme.concat(charts, title, columns=2, rows=rows).resolve_scale(
    color='independent', shape='independent'
  )


def forms(candidates: Sequence[selection.Candidate]) -> theme.Chart:
  """Draws each form's AIC above the lowest, and its error on held-out models."""
  order = [candidate.form for candidate in candidates]
  y = alt.Y('form:N', sort=order, title=None, axis=alt.Axis(labelLimit=200))
  size = (200, 44 * len(order))
  behind = [
    {'form': c.form, 'behind': c.aic_behind, 'said': text.number(c.aic_behind)}
    for c in candidates
  ]
  most = alt.Scale(domain=[0, 1.2 * max(c.aic_behind for c in candidates) or 1])
  bars = alt.Chart().encode(
    x=theme.x('behind', 'AIC above the lowest', scale=most), y=y
  )
  said = bars.mark_text(align='left', dx=4, color=theme.RULE)
  layers = [
    bars.mark_bar(color=theme.CYCLE[0], height=16),
    said.encode(text='said:N'),
  ]
  charts = [theme.panel(layers, behind, size=size)]
  errors: theme.Rows = []
  for candidate in candidates:
    if held := candidate.by_model:
      here = {'form': candidate.form}
      mean = held.error.map(lambda x: 100 * x)
      errors += theme.rows(
        **here, kind='model', error=100 * np.array(held.errors)
      )
      errors += theme.flat(
        [here | {'kind': 'mean', 'error': mean, 'said': f'{mean}'}]
      )
  if errors:
    x = theme.x('error', 'relative error on held-out models, %')
    base = alt.Chart().encode(x=x, y=y)
    mean_ = theme.only(base, 'mean')
    layers = [
      theme.only(base, 'model').mark_tick(color=theme.MUTED, size=16),
      theme.interval(mean_, x, color=theme.CYCLE[1], strokeWidth=3),
      mean_.mark_point(color=theme.CYCLE[1], size=80, opacity=1).encode(
        tooltip=theme.tips('form', 'said')
      ),
    ]
    charts.append(theme.panel(layers, errors, size=size))
  title = 'Which form the data prefer (lower is better)'
  return theme.concat(charts, title, columns=2)


def cutoffs(form: str, rows: Sequence[sensitivity.Cutoff]) -> theme.Chart:
  """Draws exponents against the number of points of highest loss left out.

  Args:
    form: name of the law.
    rows: its fits, the one to all points first.
  """
  names = [name for name in rows[0].params if name.startswith('a_')]
  names = names or list(rows[0].params)
  fits = theme.flat(
    [
      {'constant': name, 'dropped': row.dropped, 'fit': row.params[name],
       'said': f'{row.params[name]}', 'flags': row.flags}
      for name in names
      for row in rows
    ],
    first=lambda row: rows[0].params[row['constant']].value,
  )  # fmt: skip
  base = alt.Chart().encode(
    x=theme.x('dropped', 'points left out', axis=alt.Axis(tickMinStep=1))
  )
  y = theme.y('fit', 'value', scale=theme.near(8))
  band, line = theme.curve(base, y, color=theme.CYCLE[0])
  layers = [
    band,
    base.mark_line(color=theme.RULE, strokeDash=[5, 3], strokeWidth=1.2).encode(
      y=theme.y('first', 'value', scale=theme.near(8))
    ),
    line,
    base.mark_point(color=theme.CYCLE[0], opacity=1).encode(
      y=y, tooltip=theme.tips('constant', 'dropped', 'said', 'flags')
    ),
  ]
  return theme.panels(
    layers,
    fits,
    by='constant',
    order=names,
    own_y=True,
    title=f'Constants of {form} without the points of highest loss',
  )
