"""How the columns of a law go together over runs: what a table can tell apart."""

from collections.abc import Sequence
import itertools
import math
from typing import Any

import numpy as np

from familial.laws import parametric
from familial.laws import table as tables

_SINGULAR = 1e-12


def of_runs(table: tables.Table, columns: Sequence[str]) -> dict[str, Any]:
  """Correlations of the logs of columns over runs, each by its last row.

  Where wide models are deep models, a law has to guess which of the two it was:
  the closer a correlation is to 1 or -1, the more it guesses.

  Args:
    table: the rows.
    columns: of a form, by the literature's symbols.

  Returns:
    `runs`; `correlations`, of every two `columns` (NaN where one takes one
    value); and the `condition_number` of their matrix: 1 where no two go
    together, (1 + |r|) / (1 - |r|) for two columns, infinite where one follows
    from the others. Columns that are not above 0, or do not vary, are left out
    of it.
  """
  rows = last_rows(table)
  logs = {
    name: np.log(table.columns[name][rows])
    for name in columns
    if (table.columns[name][rows] > 0).all()
  }
  varied = [name for name, values in logs.items() if np.ptp(values) > 0]
  matrix = (
    np.atleast_2d(np.corrcoef([logs[name] for name in varied]))
    if varied
    else np.ones((0, 0))
  )
  place = {name: number for number, name in enumerate(varied)}
  long_names = {symbol: name for name, symbol in parametric.SYMBOLS.items()}
  return {
    'runs': len(rows),
    'correlations': [
      {
        'columns': [long_names.get(name, name) for name in pair],
        'value': float(matrix[place[pair[0]], place[pair[1]]])
        if {*pair} <= {*varied}
        else math.nan,
      }
      for pair in itertools.combinations(logs, 2)
    ],
    'condition_number': _condition(matrix) if varied else math.nan,
  }


def last_rows(table: tables.Table) -> np.ndarray:
  """The index of each run's last row, in their order, [runs]."""
  _, from_the_end = np.unique(table.run[::-1], return_index=True)
  return np.sort(table.rows - 1 - from_the_end)


def _condition(matrix: np.ndarray) -> float:
  """The largest eigenvalue over the least."""
  values = np.linalg.eigvalsh(matrix)
  if values[0] <= _SINGULAR:
    return math.inf
  return float(values[-1] / values[0])
