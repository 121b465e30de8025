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
  'rate': None,
  'gradient_norm': None,
  'tokens_per_second': None,
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
  series = theme.graded('run', names, scheme='category20')
  # All runs: Vega would leave out those beyond a few, with their filters.
  legend = alt.Legend(columns=4, symbolLimit=len(names), labelLimit=220)
  axis = theme.log_axis(row['tokens'] for row in rows)
  charts = []
  for key, title in _QUANTITIES.items():
    known = [row for row in rows if row.get(key)]
    if known:
      line = series.chart(
        x=theme.x('tokens', **axis),
        # A constant rate would have an axis without a length.
        y=theme.y(key, title, scale=alt.Scale(zero=key == 'rate')),
        tooltip=theme.tips('run', 'tokens', key),
      ).mark_line(strokeWidth=1.2)
      line = line.encode(color=series.colour.legend(legend))
      charts.append(theme.panel([line]))
  title = 'Training curves'
  return theme.concat(charts, title, columns=2, rows=rows, series=series)


def losses(rows: Iterable[Mapping[str, Any]]) -> theme.Chart:
  """Draws held-out loss by exit against tokens, of one run's rows."""
  shown = [
    {'tokens': r['tokens'], 'loss': r['loss'], 'exit': f'exit {r["exit"]}'}
    for r in rows
    if r['loss'] is not None and r['tokens']
  ]
  series = theme.category('exit', [row['exit'] for row in shown])
  base = series.chart(
    x=theme.x('tokens', **theme.log_axis(r['tokens'] for r in shown)),
    y=theme.y(
      'loss',
      f'held-out {theme.axis_title("loss")}',
      scale=alt.Scale(zero=False),
    ),
  )
  point = base.mark_point().encode(
    shape=series.shape, tooltip=theme.tips('exit', 'tokens', 'loss')
  )
  return theme.single(
    [base.mark_line(), point], shown, title='Held-out loss', series=series
  )
