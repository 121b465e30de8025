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
_NATS = 'loss, nats per token (lower is better)'
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
  rows: list[dict[str, Any]] = [
    {'run': str(run), 'width': int(w), 'depth': int(d), 'loss': float(loss),
     'law': float(predicted)}
    for run, w, d, loss, predicted in zip(
      ends.run, columns['width'], columns['depth'], columns['loss'],
      law.predict(columns), strict=True,
    )
  ]  # fmt: skip
  charts: list[Any] = []
  for along, each in (('depth', 'width'), ('width', 'depth')):
    values = sorted({row[each] for row in rows})
    pick = theme.legend_filter(each)
    axis = theme.log_axis(row[along] for row in rows)
    ticks = sorted({row[along] for row in rows})
    if len(ticks) <= _TICKS:
      axis['axis'] = alt.Axis(values=ticks, format='d')
    base = alt.Chart().encode(
      x=alt.X(f'{along}:Q', title=_AXES[along], **axis),
      color=alt.Color(
        f'{each}:O',
        title=each,
        legend=alt.Legend(columns=6),
        scale=alt.Scale(
          domain=values,
          scheme=alt.SchemeParams(name='viridis', extent=[0.2, 0.9]),
        ),
      ),
      opacity=theme.shown(pick),
    )
    y = alt.Scale(zero=False, padding=10)
    point = base.mark_point().encode(
      y=alt.Y('loss:Q', title=_NATS, scale=y),
      shape=alt.Shape(
        f'{each}:O',
        title=each,
        scale=alt.Scale(
          domain=values,
          range=[
            theme.SHAPES[i % len(theme.SHAPES)] for i in range(len(values))
          ],
        ),
      ),
      tooltip=[
        'run:N',
        'width:Q',
        'depth:Q',
        *(alt.Tooltip(f'{name}:Q', format='.4f') for name in ('loss', 'law')),
      ],
    )
    line = base.mark_line().encode(y=alt.Y('law:Q', title=_NATS, scale=y))
    charts.append(
      alt.layer(line, point.add_params(pick)).properties(
        width=theme.PANEL[0], height=220, title=f'a line for each {each}'
      )
    )
  return alt.concat(
    *charts, columns=2, data=theme.data(rows), title=title
  ).resolve_scale(color='independent', shape='independent')


def forms(candidates: Sequence[selection.Candidate]) -> theme.Chart:
  """Draws each form's AIC above the lowest, and its error on held-out models."""
  order = [candidate.form for candidate in candidates]
  y = alt.Y('form:N', sort=order, title=None, axis=alt.Axis(labelLimit=200))
  size = {'width': 200, 'height': 44 * len(order)}
  behind = theme.flat(
    [{'form': c.form, 'behind': c.aic_behind} for c in candidates],
    said=lambda row: text.number(row['behind']),
  )
  bars = alt.Chart(theme.data(behind)).encode(
    x=alt.X(
      'behind:Q',
      title='AIC above the lowest',
      scale=alt.Scale(
        domain=[0, 1.2 * max(c.aic_behind for c in candidates) or 1]
      ),
    ),
    y=y,
  )
  charts: list[Any] = [
    alt.layer(
      bars.mark_bar(color=theme.CYCLE[0], height=16),
      bars.mark_text(align='left', dx=4, color=theme.RULE).encode(
        text='said:N'
      ),
    ).properties(**size)
  ]
  errors: list[dict[str, Any]] = []
  for candidate in candidates:
    if candidate.by_model:
      mean = candidate.by_model.error.map(lambda x: 100 * x)
      errors += [
        {'form': candidate.form, 'kind': 'model', 'error': 100 * error}
        for error in candidate.by_model.errors
      ]
      errors += theme.flat(
        [{'form': candidate.form, 'kind': 'mean', 'error': mean}],
        said=f'{mean}',
      )
  if errors:
    base = alt.Chart(theme.data(errors)).encode(
      x=alt.X('error:Q', title='relative error on held-out models, %'),
      y=y,
    )
    means = base.transform_filter("datum.kind == 'mean'")
    charts.append(
      alt.layer(
        base.transform_filter("datum.kind == 'model'").mark_tick(
          color=theme.MUTED, size=16
        ),
        means.mark_rule(color=theme.CYCLE[1], strokeWidth=3).encode(
          x='error_lo:Q', x2='error_hi:Q'
        ),
        means.mark_point(color=theme.CYCLE[1], size=80, opacity=1).encode(
          tooltip=['form:N', 'said:N']
        ),
      ).properties(**size)
    )
  return alt.concat(
    *charts, columns=2, title='Which form the data prefer (lower is better)'
  )


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
    x=alt.X('dropped:Q', title='points left out', axis=alt.Axis(tickMinStep=1))
  )
  y = alt.Scale(zero=False, padding=8)
  layers = [
    base.mark_area(opacity=0.2, color=theme.CYCLE[0]).encode(
      y=alt.Y('fit_lo:Q', title='value', scale=y), y2='fit_hi:Q'
    ),
    base.mark_line(color=theme.RULE, strokeDash=[5, 3], strokeWidth=1.2).encode(
      y=alt.Y('first:Q', scale=y)
    ),
    base.mark_line(color=theme.CYCLE[0]).encode(y=alt.Y('fit:Q', scale=y)),
    base.mark_point(color=theme.CYCLE[0], opacity=1).encode(
      y=alt.Y('fit:Q', scale=y),
      tooltip=['constant:N', 'dropped:Q', 'said:N', 'flags:N'],
    ),
  ]
  return theme.panels(
    layers,
    fits,
    by='constant',
    order=names,
    independent=('y',),
    title=f'Constants of {form} without the points of highest loss',
  )
