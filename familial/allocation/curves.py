"""Learning curves: what a candidate's loss is after so much compute.

A curve counts as the lowest loss seen so far. Between its points it is linear in
(ln C, L); before its first point nothing is known, and after its last it stays.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from familial.core import errors
from familial.laws import files
from familial.laws import table as tables

_LAW = ('N', 'D', 'G')


@dataclasses.dataclass(frozen=True)
class Curve:
  """A candidate's losses.

  Attributes:
    name: of the candidate.
    flops: of training so far, increasing, [points].
    loss: in nats at those, finite, [points].
    columns: what a law needs besides, N, D and G as known, each [points].
    features: numbers that describe the candidate, by name.
    diverged_at: FLOPs after which a loss was not finite, where it ended; None.
    unseen: FLOPs that it was trained to without another point; 0 for none.
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
    """Whether it cannot go on."""
    return self.diverged_at is not None

  @property
  def end(self) -> float:
    """FLOPs that were spent on it."""
    last = float(self.flops[-1]) if len(self.flops) else 0.0
    return max(self.unseen, self.diverged_at or 0.0, last)

  @property
  def best(self) -> float:
    """Its lowest loss; inf where it has no point."""
    return float(self.loss.min(initial=math.inf))

  def at(self, flops: Any) -> np.ndarray:
    """Its loss after so many FLOPs, of any shape; inf before its first point."""
    wanted = np.asarray(flops, np.float64)
    if not len(self.flops):
      return np.full(wanted.shape, np.inf)
    loss = self.at_log(np.log(wanted))
    return np.where(wanted < self.flops[0], np.inf, loss)

  def at_log(self, log_flops: Any) -> np.ndarray:
    """Its loss at ln FLOPs within its points; at its ends beyond them."""
    lowest = np.minimum.accumulate(self.loss)
    return np.asarray(np.interp(log_flops, np.log(self.flops), lowest))

  def cut(self, flops: float) -> 'Curve':
    """What is known of it after so many FLOPs; its last point is there, if any.

    Unlike `at`, a loss above an earlier one stays what it is.
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
    if known.unseen or self.flops[keep - 1] == flops:
      return known
    return dataclasses.replace(
      known,
      flops=np.append(known.flops, flops),
      loss=np.append(known.loss, self.at(flops)),
      columns={
        # In proportion to the compute: N stays, D grows with C.
        name: np.append(
          known.columns[name], np.interp(flops, self.flops, values)
        )
        for name, values in self.columns.items()
      },
    )


@dataclasses.dataclass(frozen=True)
class Curves:
  """The curves of a table, and what to know of it before it is believed."""

  curves: tuple[Curve, ...]
  source: str = ''
  sha256: str = ''
  flags: tuple[str, ...] = ()
  law: Mapping[str, float] | None = None  # that they obey, where it is known

  @property
  def cost(self) -> float:
    """FLOPs to train all of them to their ends."""
    return sum(curve.end for curve in self.curves)


def read(
  path: str | pathlib.Path,
  columns: Mapping[str, str] | None = None,
  curve: Sequence[str] = (),
  loss: str = 'final',
) -> Curves:
  """The curves of a CSV, JSONL or Parquet file, or of this project's runs.

  Rows out of order are sorted, of two at one compute the later one counts, and
  curves of fewer than two points are left out; each is a flag. An empty loss was
  not measured; one that is not finite ends its curve, unless others follow.

  Args:
    path: the file, or a folder with metrics.jsonl files anywhere below it.
    columns: our name -> the file's, as `laws.read` takes them; flops, or params
      and tokens, and loss are needed.
    curve: the file's columns whose values tell curves apart; by default `run`.
      Those that are numbers are the candidates' features.
    loss: of this project's runs: mean or final.

  Raises:
    UserError: on a missing column, a compute that is no number above 0, or
      fewer than two curves.
  """
  path = pathlib.Path(path)
  records, sha256 = files.read(path)
  if not columns and tables.is_ours(records):
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
    table = tables.from_rows(rows, loss, 'all', source=str(path), sha256=sha256)
    names, labels = [str(run) for run in table.run], {}
    finite = np.ones(table.rows, bool)
  else:
    name = (columns or {}).get('loss', 'loss')
    records = [r for r in records if r.get(name, 0) not in (None, '')]
    if not records:
      raise errors.UserError(f'{path}: no row has a loss')
    finite = np.array([_finite(record.get(name)) for record in records])
    table = tables.from_records(
      _with_losses(records, finite, columns or {}),
      columns or {},
      str(path),
      sha256,
    )
    keys = [_known(name, record, path) for record in records for name in curve]
    keys = list(dict.fromkeys(keys))
    if not keys and 'run' not in table.mapping:
      raise errors.UserError(
        f'--curve: {path} has no column run; name those that tell its curves'
        f' apart; it has {", ".join(records[0])}'
      )
    keys = keys or [table.mapping['run']]
    names = [
      ', '.join(f'{key} {record[key]}' for key in keys) for record in records
    ]
    ended = {}
    labels = {key: [record[key] for record in records] for key in keys}
  if table.cost is None:
    raise errors.UserError(
      f'{path} has no column flops, nor params and tokens, of which compute'
      ' follows: map them by --columns'
    )
  return _curves(table, table.cost, finite, names, labels, ended)


def of_run(
  name: str,
  rows: Sequence[Mapping[str, Any]],
  loss: str,
  features: Mapping[str, float],
  last: float = math.inf,
) -> Curve:
  """The curve of one run of this project, whatever it holds so far.

  Args:
    name: of the candidate.
    rows: of its run; there may be none yet.
    loss: mean or final.
    features: of the candidate.
    last: step whose losses count as the last: what follows is spent, not seen.
  """
  spent = max((float(row['flops']) for row in rows), default=0.0)
  ends = [row['flops'] for row in rows if row['status'] == 'diverged']
  rows = [
    row for row in rows if row['status'] != 'diverged' and row['step'] <= last
  ]
  diverged_at = float(ends[0]) if ends else None
  if not rows:
    nothing = np.zeros(0)
    return Curve(name, nothing, nothing, {}, features, diverged_at, spent)
  # A study's own arms are no concern of a curve.
  rows = [{**row, 'arm': None} for row in rows]
  columns = tables.from_rows(rows, loss, 'all').columns
  taken = {key: columns[key] for key in _LAW if key in columns}
  unseen = spent if spent > columns['C'][-1] else 0.0
  return Curve(
    name,
    columns['C'],
    columns['loss'],
    taken,
    features,
    diverged_at,
    unseen,
  )


def _curves(
  table: tables.Table,
  flops: np.ndarray,
  finite: np.ndarray,
  names: Sequence[str],
  labels: Mapping[str, Sequence[Any]],
  ended: dict[str, float],
) -> Curves:
  """Curves in the order in which the table first names them."""
  found, unsorted, twice, short, gaps = [], 0, 0, 0, 0
  numbers = {key: _floats(values) for key, values in labels.items()}
  rows_of: dict[str, list[int]] = {}
  for row, name in enumerate(names):
    rows_of.setdefault(name, []).append(row)
  for name, rows in rows_of.items():
    order = np.array(rows)[np.argsort(flops[rows], kind='stable')]
    unsorted += bool((np.diff(flops[rows]) < 0).any())
    last = np.append(np.diff(flops[order]) > 0, True)
    twice += not last.all()
    order = order[last]
    if not finite[order[-1]]:  # Of those at its end, the first.
      known = np.flatnonzero(finite[order])
      first = order[known[-1] + 1 if len(known) else 0]
      ended = {**ended, name: float(flops[first])}
      order = order[: known[-1] + 1] if len(known) else order[:0]
    gaps += not finite[order].all()
    order = order[finite[order]]
    if len(order) < 2:
      short += 1
      continue
    taken = {
      name: table.columns[name][order] for name in _LAW if name in table.columns
    }
    features = {
      key: float(values[order[0]])
      for key, values in numbers.items()
      if values is not None
    }
    if 'N' in taken:
      features['params'] = float(taken['N'][-1])
    if 'G' in taken:
      features['exits'] = float(taken['G'][-1])
    losses, at = table.columns['loss'][order], ended.get(name)
    found.append(Curve(name, flops[order], losses, taken, features, at))
  flags = [
    f'{count} of {len(rows_of)} curves {what}'
    for count, what in (
      (unsorted, 'were not in order of compute, and were sorted'),
      (twice, 'had several rows at one compute; the last of them counts'),
      (short, 'had fewer than two points, and were left out'),
      (gaps, 'had losses between others that are not finite, left out'),
      (len(ended), 'end where a loss was not finite'),
    )
    if count
  ]
  if len(found) < 2:
    raise errors.UserError(
      f'{table.source} has {len(found)} curves of two points or more; at least'
      ' two are needed (--curve names the columns that tell them apart)'
    )
  return Curves(tuple(found), table.source, table.sha256, tuple(flags))


def _finite(value: Any) -> bool:
  """Whether a cell holds a loss; what is not a number is refused elsewhere."""
  try:
    return math.isfinite(float(value))
  except (TypeError, ValueError):
    return True


def _with_losses(
  records: Sequence[dict[str, Any]],
  finite: np.ndarray,
  columns: Mapping[str, str],
) -> list[dict[str, Any]]:
  """The records with some number for each loss that is none."""
  name = columns.get('loss', 'loss')
  return [
    record if known else {**record, name: 1.0}
    for record, known in zip(records, finite, strict=True)
  ]


def _floats(values: Sequence[Any]) -> np.ndarray | None:
  """Values as numbers, or None where one is none."""
  try:
    return np.array([float(value) for value in values])
  except (TypeError, ValueError):
    return None


def _known(name: str, header: Mapping[str, Any], path: pathlib.Path) -> str:
  if name not in header:
    raise errors.UserError(
      f'--curve: {path} has no column {name!r}{errors.nearest(name, header)}; it'
      f' has {", ".join(header)}'
    )
  return name
