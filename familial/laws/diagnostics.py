"""Diagnostics that flag unreliable fits: suspect rows, collinear columns."""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math

import numpy as np

from familial.laws import fit_record
from familial.laws import parametric
from familial.laws import table as tables

_OUTLIER = math.log(2)  # log residual
_JUMP = 1e4  # ratio of neighbouring values of a column, as of a wrong unit
_SINGULAR = 1e-12


def of_rows(
  form: parametric.Form, table: tables.Table, residual: np.ndarray
) -> list[str]:
  """Flags of duplicate rows, mixed units and outliers."""
  flags = []
  names = [*form.columns, 'loss']
  columns = [table.columns[name] for name in names]
  each = np.stack([*columns, table.clusters], axis=1)
  copies = len(np.unique(each, axis=0)) - len(np.unique(each[:, :-1], axis=0))
  if copies:
    flags.append(f'rows that are copies of rows of other runs: {copies}')
  for name, values in zip(names, columns, strict=True):
    sizes = np.unique(values[values > 0])
    for i in np.flatnonzero(sizes[1:] > _JUMP * sizes[:-1]):
      flags.append(
        f'column {name} jumps from {sizes[i]:.3g} to {sizes[i + 1]:.3g}'
      )
  outliers = int((np.abs(residual) > _OUTLIER).sum())
  if outliers:
    flags.append(f'rows off the law by more than a factor of 2: {outliers}')
  return flags


def of_law(
  form: parametric.Form,
  params: Mapping[str, float],
  identified: Mapping[str, bool],
  table: tables.Table,
) -> list[str]:
  """Flags of constants that the rows do not identify, and of their columns."""
  flags = [
    f'{name} not identified' for name in form.names if not identified[name]
  ]
  flags += [
    f'{p.name} is not positive'
    for p in form.parameters
    if p.is_decay and params[p.name] <= 0
  ]
  logs = {}
  if np.ptp(table.columns['loss']) == 0:
    flags.append('the loss takes one value')
  for name in form.columns:
    values = table.columns[name]
    if np.ptp(values) == 0:
      flags.append(f'column {name} takes one value')
    elif (values > 0).all():
      logs[name] = np.log(values)
  for first, second in itertools.combinations(logs, 2):
    if abs(np.corrcoef(logs[first], logs[second])[0, 1]) > 1 - 1e-6:
      flags.append(f'columns {first} and {second} are collinear')
  return flags


def design(table: tables.Table, columns: Sequence[str]) -> fit_record.Design:
  """Correlations of the logs of positive columns over runs' last rows.

  The closer a correlation is to 1 or -1, the less the runs tell the effects of
  the two columns apart. The condition number leaves out constant columns.
  """
  rows = last_rows(table)
  logs = {
    name: np.log(table.columns[name][rows])
    for name in columns
    if (table.columns[name][rows] > 0).all()
  }
  varied = [name for name, values in logs.items() if np.ptp(values) > 0]
  matrix = np.atleast_2d(
    np.corrcoef([logs[name] for name in varied]) if varied else np.nan
  )
  value = {
    pair: float(matrix[varied.index(pair[0]), varied.index(pair[1])])
    for pair in itertools.combinations(varied, 2)
  }
  condition = math.nan
  if varied:
    eigenvalues = np.linalg.eigvalsh(matrix)
    condition = (
      float(eigenvalues[-1] / eigenvalues[0])
      if eigenvalues[0] > _SINGULAR
      else math.inf
    )
  return fit_record.Design(
    runs=len(rows),
    correlations=tuple(
      fit_record.Correlation(
        tuple(parametric.LONG_NAMES.get(name, name) for name in pair),
        value.get(pair, math.nan),
      )
      for pair in itertools.combinations(logs, 2)
    ),
    condition_number=condition,
  )


def last_rows(table: tables.Table) -> np.ndarray:
  """The index of each run's last row, in their order, [runs]."""
  _, from_the_end = np.unique(table.run[::-1], return_index=True)
  return np.sort(table.rows - 1 - from_the_end)
