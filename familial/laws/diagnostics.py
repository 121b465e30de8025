"""What to know of a law and its rows before the numbers are believed."""

from collections.abc import Mapping
import itertools
import math

import numpy as np

from familial.laws import parametric
from familial.laws import table as tables

_OFF = math.log(2)  # log residual that no run of a law's own has
_JUMP = 1e4  # ratio of neighbouring values of a column, as of a wrong unit


def of_rows(
  form: parametric.Form, table: tables.Table, residual: np.ndarray
) -> list[str]:
  """What rows say that are copies, or of another unit than the others."""
  flags = []
  names = [*form.columns, 'loss']
  columns = [table.columns[name] for name in names]
  each = np.stack([*columns, table.clusters], axis=1)
  runs_apart = len(np.unique(each, axis=0))
  copies = runs_apart - len(np.unique(each[:, :-1], axis=0))
  if copies:
    flags.append(f'rows that are copies of rows of other runs: {copies}')
  for name, values in zip(names, columns, strict=True):
    sizes = np.unique(values[values > 0])
    for i in np.flatnonzero(sizes[1:] > _JUMP * sizes[:-1]):
      flags.append(
        f'column {name} jumps from {sizes[i]:.3g} to {sizes[i + 1]:.3g}'
      )
  off = int((np.abs(residual) > _OFF).sum())
  if off:
    flags.append(f'rows off the law by more than a factor of 2: {off}')
  return flags


def of_law(
  form: parametric.Form,
  params: Mapping[str, float],
  identified: Mapping[str, bool],
  table: tables.Table,
) -> list[str]:
  """Constants that the rows cannot tell, and columns that are why."""
  flags = [
    f'{n} not identified' for n, known in identified.items() if not known
  ]
  for parameter in form.parameters:
    if parameter.is_decay and params[parameter.name] <= 0:
      flags.append(f'{parameter.name} is not positive')
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
