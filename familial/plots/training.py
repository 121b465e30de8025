"""Training curves of one or many runs, from their progress and their rows."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

import altair as alt
import numpy as np

from familial.core import run_folder
from familial.core import storage
from familial.plots import theme

# Keys of `progress.jsonl` and their axes.
_QUANTITIES = {
  'loss': 'training loss, nats per token (lower is better)',
  'rate': 'learning rate',
  'gradient_norm': 'gradient norm',
  'tokens_per_second': 'tokens per second',
}
_POINTS = 5000  # in one figure
_LEAST = 12  # of a run


def curves(folders: Sequence[pathlib.Path]) -> theme.Chart | None:
  """Draws loss, rate, gradient norm and speed against tokens, a line for each run.

  Returns None where no run has written progress.

  Args:
    folders: of the runs.
  """
  most = max(_LEAST, _POINTS // max(1, len(folders)))
  rows: list[dict[str, Any]] = []
  for folder in folders:
    progress = storage.read_rows(folder / run_folder.PROGRESS)
    picks = np.linspace(0, len(progress) - 1, min(len(progress), most))
    for row in (progress[round(pick)] for pick in picks):
      if row.get('tokens'):
        rows.append(
          {'run': folder.name, 'tokens': row['tokens']}
          | {key: row[key] for key in _QUANTITIES if key in row}
        )
  if not rows:
    return None
  names = sorted({row['run'] for row in rows})
  legend = alt.Legend(columns=4, symbolLimit=40, labelLimit=220)
  colour = alt.Color(
    'run:N',
    title=None,
    legend=legend,
    scale=alt.Scale(scheme='category20', domain=names),
  )
  pick = theme.legend_filter('run')
  charts: list[alt.Chart] = []
  for key, title in _QUANTITIES.items():
    known = [row[key] for row in rows if row.get(key)]
    if not known:
      continue
    y = alt.Y(f'{key}:Q', title=title, scale=alt.Scale(zero=False))
    chart = (
      alt.Chart()
      .mark_line(strokeWidth=1.2)
      .encode(
        x=alt.X(
          'tokens:Q',
          title='tokens',
          **theme.log_axis(r['tokens'] for r in rows),
        ),
        y=y,
        color=colour,
        opacity=theme.shown(pick),
        tooltip=['run:N', alt.Tooltip('tokens:Q', format='.3s'), f'{key}:Q'],
      )
      .properties(width=theme.PANEL[0], height=theme.PANEL[1])
    )
    charts.append(chart if charts else chart.add_params(pick))
  return alt.concat(
    *charts, columns=2, data=theme.data(rows), title='Training curves'
  )


def losses(rows: Iterable[Mapping[str, Any]]) -> theme.Chart:
  """Draws held-out loss by exit against tokens, of one run's rows."""
  shown: list[dict[str, Any]] = [
    {
      'tokens': row['tokens'],
      'loss': row['loss'],
      'exit': f'exit {row["exit"]}',
    }
    for row in rows
    if row['loss'] is not None and row['tokens']
  ]
  colour, shape = theme.category('exit', [row['exit'] for row in shown])
  pick = theme.legend_filter('exit')
  base = alt.Chart().encode(
    x=alt.X('tokens:Q', title='tokens', **theme.log_axis(r['tokens'] for r in shown)),
    y=alt.Y(
      'loss:Q',
      title='held-out loss, nats per token (lower is better)',
      scale=alt.Scale(zero=False),
    ),
    color=colour,
    opacity=theme.shown(pick),
  )  # fmt: skip
  point = base.mark_point().encode(
    shape=shape, tooltip=['exit:N', 'tokens:Q', 'loss:Q']
  )
  return theme.single(
    [base.mark_line(), point.add_params(pick)], shown, title='Held-out loss'
  )
