"""Diagnostics that flag unreliable fits: suspect rows, collinear columns."""

from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math

import numpy as np

from familial.laws import fit_record
from familial.laws import levenberg_marquardt
from familial.laws import parametric
from familial.laws import table as tables

EXACT = 1e-8  # deviation of log residuals that are of rounding
_OUTLIER = math.log(2)  # log residual
_JUMP = 1e4  # ratio of neighbouring values of a column, as of a wrong unit
_SINGULAR = 1e-12
# Variance along a direction, of standardised columns: with less, such as a D of
# 20 N to a few per cent, the terms of two columns are interchangeable in practice.
_COLLINEAR = 1e-4
_ACTS = 1e-6  # relative change of a derivative
_ROOM, _LEAST_ROOM = 2.0, 1e-3  # times the rows' own distance; at least
_SEVERAL = 3  # rows of one N that may be of one run
_ALIKE, _PERMUTATIONS = 0.01, 2000


def of_rows(
  form: parametric.Form, table: tables.Table, residual: np.ndarray
) -> list[str]:
  """Flags of accuracies taken for losses, copies, mixed units and outliers."""
  flags = []
  loss, falls = table.columns['loss'], any(p.is_decay for p in form.parameters)
  if (
    falls
    and table.cost is not None
    and tables.looks_like_accuracy(loss, table.cost)
  ):
    flags.append(
      f'column {table.mapping.get("loss", "loss")} looks like an accuracy (from'
      f' {loss.min():.3g} to {loss.max():.3g}, rising with compute), and'
      f' {form.name} is a law of losses: fit a form of accuracies'
      ' (--form=FILE.py:FUNCTION), or the error rate, 1 - accuracy'
    )
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


def of_runs(table: tables.Table, residual: np.ndarray) -> list[str]:
  """A flag where rows that count as independent may be evaluations of one run.

  Rows of one label that fixes N, or of one N, at several D: as different as
  rows of different groups, or correlated? By a permutation test of the sums of
  residuals of each group and of the products of neighbours in D.
  """
  if table.unit == 'run' or 'cluster' in table.filters:
    return []
  n, d = table.columns.get('N'), table.columns.get('D')
  if n is None or d is None:
    return []
  names = [
    name
    for name, cells in table.labels.items()
    if name not in table.mapping.values()
    and any(isinstance(cell, str) for cell in cells)
    and not any(map(_is_number, cells))
    and tables.fixes(cells, n)
  ]
  cells = table.labels[names[0]] if names else n
  column = names[0] if names else table.mapping.get('params', 'params')
  group = np.unique(list(map(str, cells)), return_inverse=True)[1]
  order = np.lexsort((d, group))
  group, residual, d = group[order], residual[order], d[order]
  counts = np.bincount(group)
  if counts.max() < _SEVERAL or len(counts) < 2 or residual.std() < EXACT:
    return []
  residual = (residual - residual.mean()) / residual.std()
  neighbours = group[1:] == group[:-1]

  def statistic(r: np.ndarray) -> np.ndarray:
    sums = np.stack(
      [r[..., group == g].sum(-1) for g in range(len(counts))], -1
    )
    products = (r[..., 1:] * r[..., :-1] * neighbours).sum(-1)
    return (sums**2 / counts).sum(-1) / len(counts) + products / np.sqrt(
      max(neighbours.sum(), 1)
    )

  rng = np.random.default_rng(0)
  shuffled = rng.permuted(np.tile(residual, (_PERMUTATIONS, 1)), axis=1)
  share = float(np.mean(statistic(shuffled) >= statistic(residual)))
  if share > _ALIKE:
    return []
  return [
    f'rows of one {column} have alike residuals: if they are evaluations of one'
    f' run, the intervals are too narrow without --cluster={column}'
  ]


def _is_number(cell: object) -> bool:
  try:
    float(str(cell))
  except ValueError:
    return False
  return True


def of_law(
  form: parametric.Form,
  params: Mapping[str, float],
  identified: Mapping[str, bool],
  bounds: Mapping[str, Sequence[float]],
  table: tables.Table,
) -> list[str]:
  """Flags of constants that the rows do not identify, and of their columns.

  Args:
    form: the law.
    params: its constants.
    identified: whether the rows identify each of them.
    bounds: values at the end of each constant's range that its interval includes.
    table: the rows.
  """
  flags = [
    f'{name} may be {" or ".join(f"{value:g}" for value in bounds[name])}'
    if bounds[name]
    else f'{name} not identified'
    for name in form.names
    if bounds[name] or not identified[name]
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
    if abs(np.corrcoef(logs[first], logs[second])[0, 1]) > 1 - _COLLINEAR:
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


def span(
  form: parametric.Form,
  table: tables.Table,
  theta: np.ndarray,
  free: np.ndarray,
) -> fit_record.Span:
  """Computes the span of a table's rows, and which constants it leaves open.

  Directions in which the rows do not vary are told apart by the columns that
  they involve. A constant of given value settles one direction of its columns if
  it sets them apart: if it acts through some but not all of them, or if there is
  one column.

  Args:
    form: the law.
    table: the rows.
    theta: its coordinates, [parameters].
    free: which of them were fitted, bool [parameters].
  """
  values = np.stack([table.columns[name] for name in form.columns])
  logs = np.array([(column > 0).all() for column in values])
  values[logs] = np.log(values[logs])
  centre, scale = values.mean(1), values.std(1)
  scale = np.where(np.ptp(values, 1) > 0, scale, 1.0)
  at = (values - centre[:, None]) / scale[:, None]
  missing, confounded = np.zeros((0, len(values))), np.zeros(len(theta), bool)
  collinear = _collinear(at)
  if collinear:
    acts = _acting(form, table, theta, logs)
  for directions in collinear:
    through = acts[:, np.linalg.norm(directions, axis=0) > fit_record.PART]
    apart = through.any(1) & ~through.all(1)
    settles = ~free & (apart if through.shape[1] > 1 else through.any(1))
    if len(np.unique(through[settles], axis=0)) < len(directions):
      missing = np.concatenate([missing, directions])
      confounded |= free & apart
  away = np.linalg.norm(missing @ at, axis=0)
  return fit_record.Span(
    columns=form.columns,
    logs=tuple(logs.tolist()),
    centre=centre,
    scale=scale,
    missing=missing,
    room=max(_ROOM * float(away.max()), _LEAST_ROOM),
    confounded=tuple(np.array(form.names)[confounded].tolist()),
  )


def _collinear(at: np.ndarray) -> list[np.ndarray]:
  """Directions of no variance of points [columns, n], [directions, columns] each.

  Those of columns that none of them joins stand apart.
  """
  variances, vectors = np.linalg.eigh(at @ at.T / at.shape[1])
  missing = vectors.T[variances < _COLLINEAR]
  projection = missing.T @ missing
  joined = np.abs(projection) > fit_record.PART**2
  for _ in joined:  # The columns that are joined by way of others.
    joined |= (joined.astype(int) @ joined) > 0
  groups = np.unique(joined[joined.diagonal()], axis=0)
  parts = []
  for columns in groups:
    variances, vectors = np.linalg.eigh(projection * np.outer(columns, columns))
    parts.append(vectors.T[variances > 0.5])
  return parts


def _acting(
  form: parametric.Form,
  table: tables.Table,
  theta: np.ndarray,
  logs: np.ndarray,
) -> np.ndarray:
  """Whether each constant acts through each column, bool [parameters, columns].

  It does where its derivative of the loss changes as that column alone does.
  """

  def derivative(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    value, jacobian = levenberg_marquardt.evaluate(form, columns, theta[None])
    return np.exp(value[0])[:, None] * jacobian[0]

  here = derivative(table.columns)
  size = np.abs(here).max(0)
  acts = np.zeros((len(theta), len(form.columns)), bool)
  for i, name in enumerate(form.columns):
    values = table.columns[name]
    moved = {**table.columns, name: values * 2 if logs[i] else values + 1}
    change = np.abs(derivative(moved) - here).max(0)
    acts[:, i] = change > _ACTS * size
  return acts


def last_rows(table: tables.Table) -> np.ndarray:
  """The index of each run's last row, in their order, [runs]."""
  _, from_the_end = np.unique(table.run[::-1], return_index=True)
  return np.sort(table.rows - 1 - from_the_end)
