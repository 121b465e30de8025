"""Learning curves: a candidate's loss after so much compute.

The loss at a compute is the lowest loss seen so far. Between its points a curve is
linear in (ln C, L); before the first it is unknown, and after the last constant.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from familial.core import errors
from familial.core import text
from familial.laws import files
from familial.laws import table as tables
from familial.laws import wide as wide_lib

_LAW = ('N', 'D', 'G')
_MANY_POINTS = 64  # of a curve
_ACCURACY = (
  'losses within [0, 1] that rise with compute look like accuracies: the lowest is'
  ' kept as the best; --maximize keeps the highest'
)
_OCTAVES, _PARTS = 5, 6.4  # of compute, and their parts: 32 in all


@text.brief
@dataclasses.dataclass(frozen=True)
class Curve:
  """A candidate's losses.

  Attributes:
    name: of the candidate.
    flops: of training so far, increasing, [points].
    loss: in nats, finite, [points].
    columns: a law's other columns (N, D, G) as known, each [points].
    features: numbers that describe the candidate, by name.
    diverged_at: FLOPs at which a loss was not finite and training ended, or None.
    unseen: FLOPs spent in all if there is no point there; 0 for none.
  """

  name: str
  flops: np.ndarray
  loss: np.ndarray
  columns: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  features: Mapping[str, float] = dataclasses.field(default_factory=dict)
  diverged_at: float | None = None
  unseen: float = 0.0

  @property
  def diverged(self) -> bool:
    """Whether training ended by divergence."""
    return self.diverged_at is not None

  @property
  def end(self) -> float:
    """FLOPs spent on it."""
    last = float(self.flops[-1]) if len(self.flops) else 0.0
    return max(self.unseen, self.diverged_at or 0.0, last)

  @property
  def best(self) -> float:
    """Its lowest loss; inf if it has no point."""
    return float(self.loss.min(initial=math.inf))

  def at(self, flops: Any) -> np.ndarray:
    """Returns the loss at FLOPs of any shape; inf before the first point."""
    wanted = np.asarray(flops, np.float64)
    if not len(self.flops):
      return np.full(wanted.shape, np.inf)
    loss = self.at_log(np.log(wanted))
    return np.where(wanted < self.flops[0], np.inf, loss)

  def at_log(self, log_flops: Any) -> np.ndarray:
    """Returns the loss at ln FLOPs; that of the nearest end beyond the points."""
    lowest = np.minimum.accumulate(self.loss)
    return np.asarray(np.interp(log_flops, np.log(self.flops), lowest))

  def thinned(self) -> 'Curve':
    """Returns the curve with at most 32 points, of its last factor of 32.

    The last of each of equal parts of log compute, which are the same for every
    curve: how densely a curve was logged does not decide what its first steps
    weigh.
    """
    part = np.floor(np.log2(self.flops) * _PARTS)
    last = np.append(np.diff(part) > 0, True)
    keep = last & (part > part[-1] - _OCTAVES * _PARTS)
    return self._take(keep)

  def at_points_of(self, thinned: 'Curve') -> 'Curve':
    """Returns the points that a thinned curve has too, and the last one."""
    keep = np.isin(self.flops, thinned.flops)
    keep[-1:] = True
    return self._take(keep)

  def _take(self, keep: np.ndarray) -> 'Curve':
    columns = {name: values[keep] for name, values in self.columns.items()}
    return dataclasses.replace(
      self, flops=self.flops[keep], loss=self.loss[keep], columns=columns
    )

  def cut(self, flops: float) -> 'Curve':
    """Returns the curve up to a number of FLOPs, with a last point there.

    Losses of points stay, unlike those of `at`, also above an earlier one. A cut
    beyond the last point has no point there.
    """
    if flops >= self.end:
      return self
    keep = int(np.searchsorted(self.flops, flops, side='right'))
    known = dataclasses.replace(
      self,
      flops=self.flops[:keep],
      loss=self.loss[:keep],
      columns={name: values[:keep] for name, values in self.columns.items()},
      diverged_at=None,
      unseen=flops if keep in (0, len(self.flops)) else 0.0,
    )
    if not keep or known.unseen or self.flops[keep - 1] == flops:
      return known
    return dataclasses.replace(
      known,
      flops=np.append(known.flops, flops),
      loss=np.append(known.loss, self.at(flops)),
      columns={
        # Linear in compute: N is constant, D is proportional to C.
        name: np.append(
          known.columns[name], np.interp(flops, self.flops, values)
        )
        for name, values in self.columns.items()
      },
    )


@text.brief
@dataclasses.dataclass(frozen=True)
class Curves:
  """The curves of a table.

  Attributes:
    curves: at least two.
    source: path of the table, or what generated it.
    sha256: of the file; '' for none.
    flags: what was corrected or left out.
    law: constants of the law that the curves obey, or None if it is unknown.
  """

  curves: tuple[Curve, ...]
  source: str = ''
  sha256: str = ''
  flags: tuple[str, ...] = ()
  law: Mapping[str, float] | None = None


def read(
  path: str | pathlib.Path,
  columns: Mapping[str, str] | None = None,
  curve: Sequence[str] = (),
  loss: str = 'final',
  wide: Mapping[str, str] | None = None,
  *,
  maximize: bool = False,
) -> Curves:
  """Reads the curves of a CSV, JSONL or Parquet file, or of this project's runs.

  Rows are sorted by compute, the last of several rows at one compute counts, and
  curves of fewer than two points are left out; each is a flag. An empty loss was
  not measured. A loss that is not finite ends its curve, unless finite ones follow.

  Args:
    path: file, or folder with metrics.jsonl files at any depth.
    columns: our name -> the file's, as in `laws.read`; loss and flops, or loss,
      params and tokens, are needed.
    curve: the file's columns that identify a curve, by default `run`. Numeric
      ones are features of the candidates.
    loss: of this project's runs: mean or final.
    wide: as in `laws.read`, for a table with a column for each run.
    maximize: whether the loss is an accuracy, as a share or in percent: the
      curves are of the error, 1 - accuracy.

  Raises:
    UserError: for a missing column, a compute that is not a number above 0, or
      fewer than two curves.
  """
  path = pathlib.Path(path)
  file, understood = files.read(path), ''
  if wide:
    file, understood = wide_lib.lengthen(file, wide, str(path))
  records, sha256, _, flags = file
  flags += (understood,) if understood else ()
  ended: dict[str, float] = {}
  keys: list[str] = []
  if not (columns or wide) and tables.is_ours(records):
    if curve:
      raise errors.UserError(
        f"--curve: {', '.join(curve)} is not allowed; curves of this project's"
        f' runs, as those of {path}, are told apart by run'
      )
    ended = {
      str(r['run']): float(r['flops'])
      for r in records
      if r.get('status') == 'diverged'
    }
    rows = [r for r in records if r.get('status') != 'diverged']
    if maximize:
      raise errors.UserError(
        f"--maximize: the losses of {path} are of this project's runs; it is for a"
        ' table of accuracies'
      )
    table = tables.from_rows(rows, loss, 'all', source=str(path), sha256=sha256)
    table = dataclasses.replace(table, flags=flags)
    names = [str(run) for run in table.run]
    finite = np.ones(table.rows, bool)
  else:
    columns = columns or {}
    name = files.column_name(columns.get('loss', 'loss'))
    records = [r for r in records if r.get(name, 0) not in (None, '')]
    if not records:
      raise errors.UserError(f'{path}: no row has a loss')
    table = tables.from_records(
      # A loss that is not finite stands as the largest number of a table.
      [
        r if _finite(r.get(name)) else {**r, name: tables.MOST} for r in records
      ],
      columns,
      str(path),
      sha256,
    )
    finite = table.columns['loss'] < tables.MOST
    if maximize:
      table, finite = _errors(table, finite)
    elif table.cost is not None and tables.looks_like_accuracy(
      table.columns['loss'][finite], table.cost[finite]
    ):
      flags += (_ACCURACY,)
    keys = list(dict.fromkeys(curve)) or [table.mapping.get('run', '')]
    if keys == ['']:
      raise errors.UserError(
        f'--curve: {path} has no column run; name those that tell its curves'
        f' apart; it has {", ".join(table.labels)}'
      )
    for key in keys:
      if key not in table.labels:
        raise errors.UserError(
          f'--curve: {path} has no column {key!r}'
          f'{errors.nearest(key, table.labels)}; it has {", ".join(table.labels)}'
        )
    named = [tables.run_names(table.labels[k], k, table.source) for k in keys]
    names = [
      ', '.join(f'{key} {cell}' for key, cell in zip(keys, row, strict=True))
      for row in zip(*(cells for cells, _ in named), strict=True)
    ]
    flags += tuple(f for _, own in named for f in own if f not in table.flags)
    table = dataclasses.replace(table, flags=(*flags, *table.flags))
  if table.cost is None:
    raise errors.UserError(
      f'{path} has no column flops, nor params and tokens, of which compute'
      ' follows: map them by --columns'
    )
  labels = {key: _floats(list(table.labels[key])) for key in keys}
  return _curves(
    table,
    table.cost,
    finite,
    names,
    {key: values for key, values in labels.items() if values is not None},
    ended,
  )


def of_run(
  name: str,
  rows: Sequence[Mapping[str, Any]],
  loss: str,
  features: Mapping[str, float],
  last: float = math.inf,
) -> Curve:
  """Returns the curve of one run of this project so far.

  Args:
    name: of the candidate.
    rows: of its run; may be empty.
    loss: mean or final.
    features: of the candidate.
    last: step of the last loss that counts; later steps are spent, not seen.
  """
  spent = max((float(row['flops']) for row in rows), default=0.0)
  diverged = [row['flops'] for row in rows if row['status'] == 'diverged']
  # The arm is a study's own; a run's curve does not depend on it.
  rows = [
    {**row, 'arm': None}
    for row in rows
    if row['status'] != 'diverged' and row['step'] <= last
  ]
  columns = tables.from_rows(rows, loss, 'all').columns if rows else {}
  nothing = np.zeros(0)
  flops = columns.get('C', nothing)
  return Curve(
    name,
    flops,
    columns.get('loss', nothing),
    {key: columns[key] for key in _LAW if key in columns},
    features,
    float(diverged[0]) if diverged else None,
    spent if not len(flops) or spent > flops[-1] else 0.0,
  )


def of_points(
  name: str, points: Sequence[tuple[float, float]], spent: float
) -> Curve:
  """Returns the curve through (FLOPs, loss), on which `spent` FLOPs were spent."""
  flops, loss = np.array(points, np.float64).reshape(-1, 2).T
  return Curve(name, flops, loss, unseen=spent)


def thin(curves: Sequence[Curve]) -> list[Curve]:
  """Returns the curves that a law is fitted to: thinned, if one is long."""
  if all(len(curve.flops) <= _MANY_POINTS for curve in curves):
    return list(curves)
  return [curve.thinned() for curve in curves]


def rows(
  selections: Sequence[Sequence[Curve]], where: Sequence[str] = ()
) -> tuple[tables.Table, np.ndarray]:
  """Returns the points of selections of curves as one table.

  Args:
    selections: of curves as far as they are known; curves of one name are one
      run.
    where: conditions on the rows that count.

  Returns:
    Every such point once, and weights [selections, rows], 1 if a selection has the
    point.

  Raises:
    UserError: if no curve has a point, or no point meets the conditions.
  """
  numbers: dict[tuple[str, float], int] = {}
  points: list[dict[str, float]] = []
  members: list[list[int]] = []
  for curves in selections:
    members.append([])
    for curve in curves:
      for i, flops in enumerate(curve.flops):
        key = curve.name, float(flops)
        if key not in numbers:
          numbers[key] = len(points)
          columns = {name: part[i] for name, part in curve.columns.items()}
          points.append({'loss': curve.loss[i], 'C': flops, **columns})
        members[-1].append(numbers[key])
  if not points:
    raise errors.UserError('no curve has a loss; a law needs some')
  table = tables.Table(
    {name: np.array([p[name] for p in points], float) for name in points[0]},
    np.array([name for name, _ in numbers]),
  )
  weights = np.zeros((len(selections), table.rows))
  for number, chosen in enumerate(members):
    weights[number, chosen] = 1.0
  keep = meets(table, where)
  return table.take(keep, where=list(where)), weights[:, keep]


def meets(table: tables.Table, where: Sequence[str]) -> np.ndarray:
  """Returns which rows of a table meet all conditions, bool [rows]."""
  keep = np.ones(table.rows, bool)
  for condition in where:
    keep &= table.where(condition)
  return keep


def _curves(
  table: tables.Table,
  flops: np.ndarray,
  finite: np.ndarray,
  names: Sequence[str],
  labels: Mapping[str, np.ndarray],
  ended: dict[str, float],
) -> Curves:
  """Returns the curves in the order in which the table first names them."""
  curves, unsorted, repeated, short, gaps = [], 0, 0, 0, 0
  rows_of: dict[str, list[int]] = {}
  for row, name in enumerate(names):
    rows_of.setdefault(name, []).append(row)
  for name, own in rows_of.items():
    order = np.array(own)[np.argsort(flops[own], kind='stable')]
    unsorted += bool((np.diff(flops[own]) < 0).any())
    last = np.append(np.diff(flops[order]) > 0, True)
    repeated += not last.all()
    order = order[last]
    if not finite[order[-1]]:  # It ends at the first of the last such rows.
      known = np.flatnonzero(finite[order])
      count = known[-1] + 1 if len(known) else 0
      ended = {**ended, name: float(flops[order[count]])}
      order = order[:count]
    gaps += not finite[order].all()
    order = order[finite[order]]
    if len(order) < 2:
      short += 1
      continue
    columns = {
      key: table.columns[key][order] for key in _LAW if key in table.columns
    }
    features = {key: float(values[order[0]]) for key, values in labels.items()}
    for key, feature in (('N', 'params'), ('G', 'exits')):
      if key in columns:
        features[feature] = float(columns[key][-1])
    loss = table.columns['loss'][order]
    curves.append(
      Curve(name, flops[order], loss, columns, features, ended.get(name))
    )
  flags = [
    *table.flags,
    *(
      f'{len(numbers)} rows left out without a number in {name}'
      for name, numbers in table.filters.get('left_out', {}).items()
    ),
    *(
      f'{count} of {len(rows_of)} curves {what}'
      for count, what in (
        (unsorted, 'were not in order of compute, and were sorted'),
        (repeated, 'had several rows at one compute; the last of them counts'),
        (short, 'had fewer than two points, and were left out'),
        (gaps, 'had losses between others that are not finite, left out'),
        (len(ended), 'end where a loss was not finite'),
      )
      if count
    ),
  ]
  if len(curves) < 2:
    raise errors.UserError(
      f'{table.source} has {len(curves)} curves of two points or more; at least'
      ' two are needed (--curve names the columns that tell them apart)'
    )
  return Curves(tuple(curves), table.source, table.sha256, tuple(flags))


def _errors(
  table: tables.Table, finite: np.ndarray
) -> tuple[tables.Table, np.ndarray]:
  """Returns a table of accuracies as one of errors, and its finite rows."""
  accuracy, cost = table.columns['loss'][finite], table.cost
  most = float(accuracy.max(initial=0.0))
  if most > 100:
    raise errors.UserError(
      f'--maximize: {table.source} has an accuracy of {most:g}; shares up to 1 or'
      ' percentages up to 100 are needed'
    )
  perfect = 100.0 if most > 1 else 1.0
  loss = np.where(finite, 1 - table.columns['loss'] / perfect, tables.MOST)
  flags = ['losses are errors, 1 - accuracy']
  if most > 1:
    flags = ['losses are errors, 1 - accuracy / 100: read as percentages']
  perfect_rows = loss <= 0
  if perfect_rows.any():
    least = float(loss[~perfect_rows].min(initial=1.0)) / 2
    loss = np.where(perfect_rows, least, loss)
    flags.append(
      f'rows of a perfect accuracy: {int(perfect_rows.sum())}, counted as an error'
      f' of {least:.3g}, half of the lowest other'
    )
  if cost is not None and tables.rises(-accuracy, cost[finite]):
    flags.append(
      'values given as accuracies fall with compute: are they losses?'
    )
  columns = {**table.columns, 'loss': loss}
  flagged = (*table.flags, *flags)
  return dataclasses.replace(table, columns=columns, flags=flagged), finite


def _finite(value: Any) -> bool:
  """Whether a cell holds a finite loss; text is left to the table to refuse."""
  try:
    return math.isfinite(float(value))
  except (TypeError, ValueError):
    return True


def _floats(values: Sequence[Any]) -> np.ndarray | None:
  """Values as numbers, or None if one is not a number."""
  try:
    return np.array([float(value) for value in values])
  except (TypeError, ValueError):
    return None
