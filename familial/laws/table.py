"""Tables of runs: what a law is fitted to.

Columns are float64 under the literature's symbols: N parameters, D tokens, G
exits, C FLOPs, loss in nats per token; the rest keep their names. Rows that
share a `run` are not independent, and are resampled together.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import pathlib
import re
from typing import Any

import numpy as np

from familial.core import errors
from familial.core import storage
from familial.laws import definitions
from familial.laws import files
from familial.laws import parametric

_COMPARISONS = {
  '<=': np.less_equal,
  '>=': np.greater_equal,
  '<': np.less,
  '>': np.greater,
  '==': np.equal,
  '!=': np.not_equal,
}
_POSITIVE = (
  'N',
  'D',
  'G',
  'C',
  'loss',
  'budget',
  'flops_per_token',
  'width',
  'depth',
  'weight',
)
# Allowed magnitudes: within the range of single precision.
_LEAST, _MOST = 1e-30, 1e30
_KNOWN = (
  *parametric.SYMBOLS,
  'loss',
  'weight',
  'run',
  'budget',
  'width',
  'depth',
  'layer',
  'upstream',
  'downstream',
  'flops_per_token',
)


@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of runs. `filters` says how they were chosen, for fit.json."""

  columns: dict[str, np.ndarray]  # each [rows], float64
  run: np.ndarray  # [rows] str: which rows belong together
  source: str = ''
  sha256: str = ''
  mapping: dict[str, str] = dataclasses.field(default_factory=dict)
  filters: dict[str, Any] = dataclasses.field(default_factory=dict)
  dropped: int = 0

  def __post_init__(self) -> None:
    if 'loss' not in self.columns:
      raise errors.UserError(
        f'a table needs a column loss; it has {", ".join(self.columns)}'
      )
    for name, values in self.columns.items():
      theirs = self.mapping.get(parametric.LONG_NAMES.get(name, name), name)
      _check_column(name, values, self.source, theirs)
    if not self.rows:
      raise errors.UserError(
        f'no row is left to fit in {self.source or "the table"}'
        f' ({self.dropped} dropped)'
      )

  @property
  def rows(self) -> int:
    """Number of rows."""
    return len(self.run)

  @property
  def weight(self) -> np.ndarray:
    """Weight of each row in the objective, [rows]: the column weight, or 1."""
    return self.columns.get('weight', np.ones(self.rows))

  @property
  def cost(self) -> np.ndarray | None:
    """FLOPs of each row [rows]: C, or 6 N D; None where neither is known."""
    if 'C' in self.columns:
      return self.columns['C']
    if {'N', 'D'} <= set(self.columns):
      return 6 * self.columns['N'] * self.columns['D']
    return None

  @property
  def unit(self) -> str:
    """The bootstrap's unit: run, or row where every run has one."""
    return 'run' if len(np.unique(self.run)) < self.rows else 'row'

  @property
  def clusters(self) -> np.ndarray:
    """The number of each row's run, 0 .. runs - 1, [rows]."""
    return np.unique(self.run, return_inverse=True)[1]

  def take(self, keep: np.ndarray, **filters: Any) -> 'Table':
    """The rows at `keep` (bool or indices); `filters` records the reason."""
    run = self.run[keep]
    return dataclasses.replace(
      self,
      columns={name: values[keep] for name, values in self.columns.items()},
      run=run,
      filters={**self.filters, **filters},
      dropped=self.dropped + max(0, self.rows - len(run)),
    )

  def where(self, condition: str) -> np.ndarray:
    """Which rows meet a condition such as `tokens>=1e9`, bool [rows]."""
    match = re.fullmatch(r'\s*(\w+)\s*(<=|>=|<|>|==|!=)\s*(\S+)\s*', condition)
    name = parametric.SYMBOLS.get(match[1], match[1]) if match else ''
    if not match or name not in self.columns:
      known = [
        *self.columns,
        *(n for n, s in parametric.SYMBOLS.items() if s in self.columns),
      ]
      raise errors.UserError(
        f'{condition!r}: a condition is COLUMN<=VALUE, or with >=, <, >, ==, '
        f'!=; columns are {", ".join(known)}{errors.nearest(name, known)}'
      )
    try:
      value = float(match[3])
    except ValueError:
      value = math.nan
    if math.isnan(value):
      raise errors.UserError(f'{condition!r}: {match[3]!r} is no number')
    return np.asarray(_COMPARISONS[match[2]](self.columns[name], value))

  def drop_highest(self, count: int) -> 'Table':
    """Without the rows whose loss is not below the count-th highest."""
    if not 0 <= count < self.rows:
      raise errors.UserError(
        f'drop_highest={count}: allowed is 0 to {self.rows - 1}'
      )
    if not count:
      return self
    loss = self.columns['loss']
    return self.take(loss < np.sort(loss)[-count], drop_highest=count)


def from_rows(
  rows: Iterable[Mapping[str, Any]],
  loss: str = 'final',
  rows_used: str = 'last',
  arms: Sequence[str] | None = None,
  mix_corpora: bool = False,
  source: str = '',
  sha256: str = '',
) -> Table:
  """The table of one loss definition, from the rows that training writes.

  mean: a run's loss is the mean over its exits, N the whole backbone's params;
  final: the last exit's loss, N likewise; exit: one row an exit, N the exit's
  own params and D = tokens_dense, what a dense model of the exit's shape would
  get for the run's FLOPs. N is without embeddings throughout.

  Args:
    rows: evaluation rows, one an exit.
    loss: mean, final or exit.
    rows_used: last, the last evaluation of each finished run; all, every one.
    arms: the arms of a study that count, None for those of the loss; rows
      without an arm always count.
    mix_corpora: whether one table may hold rows of several corpora.
    source: file or folder, for errors and fit.json.
    sha256: hash of its content.

  Raises:
    UserError: on an unknown option, a missing field, rows of another version,
      corpora that mix, or nothing left.
  """
  rows = list(rows)
  for row in rows:
    storage.check_schema(f'{source or "table"}: run {row.get("run")}', row)
  arms = definitions.arms_of(loss) if arms is None else arms
  records, dropped = definitions.records(
    rows, loss, rows_used, arms, mix_corpora
  )
  names = [
    name
    for name in (records[0] if records else ('loss',))
    if name != 'run' and all(r.get(name) is not None for r in records)
  ]
  filters: dict[str, Any] = {'rows': rows_used, 'arms': list(arms)}
  return Table(
    {n: np.array([r[n] for r in records], np.float64) for n in names},
    np.array([str(r['run']) for r in records]),
    source=source,
    sha256=sha256,
    filters=filters,
    dropped=dropped,
  )


def read(
  path: str | pathlib.Path,
  columns: Mapping[str, str] | None = None,
  *,
  loss: str = 'final',
  rows_used: str = 'last',
  mix_corpora: bool = False,
  cluster: str = 'run',
  needs: Sequence[str] = (),
) -> Table:
  """A table from a CSV, JSONL or Parquet file, or from this project's runs.

  Args:
    path: the file, or a folder with metrics.jsonl files anywhere below it.
    columns: for a file, our name -> the file's; ours are params (or N), tokens
      (D), exits (G), flops (C), loss, weight, run, budget, width, depth, layer,
      upstream, downstream, flops_per_token. Other columns are found by
      these names. Where there are FLOPs and no tokens, D = C / (6 N).
    loss: as in from_rows; for runs of this project only.
    rows_used: as in from_rows.
    mix_corpora: as in from_rows.
    cluster: the column, ours or the file's, whose equal values make rows belong
      together; run, where there is none, is row: each by itself.
    needs: further columns of the file, of a form.
  """
  path = pathlib.Path(path)
  records, sha256 = files.read(path)
  if not columns and is_ours(records):
    table = from_rows(
      records, loss, rows_used, None, mix_corpora, str(path), sha256
    )
    # Several records may make one row: their fields cannot label it.
    return _clustered(table, {}, cluster)
  # Spaces around a name are seldom meant, and a flag cannot say them.
  records = [{k.strip(): v for k, v in r.items()} for r in records]
  table = from_records(records, columns or {}, str(path), sha256, needs)
  labels = {name: [r.get(name) for r in records] for name in records[0]}
  return _clustered(table, labels, cluster)


def is_ours(records: Sequence[Mapping[str, Any]]) -> bool:
  """Whether these are rows that training writes."""
  return {'run', 'exit', 'params_full'} <= set(records[0])


def from_records(
  records: Sequence[Mapping[str, Any]],
  columns: Mapping[str, str],
  source: str,
  sha256: str,
  needs: Sequence[str] = (),
) -> Table:
  """The table of a file's records, whose columns may have other names.

  `columns` and `needs` are as in `read`.
  """
  header = list(records[0])
  mapping = _mapping(columns, header, source, (*_KNOWN, *needs))
  arrays = {
    parametric.SYMBOLS.get(ours, ours): _numbers(records, theirs, source)
    for ours, theirs in mapping.items()
    if ours != 'run'
  }
  filters: dict[str, Any] = {}
  if 'D' not in arrays and {'N', 'C'} <= set(arrays):
    with np.errstate(all='ignore'):  # The table refuses such N and C.
      arrays['D'] = arrays['C'] / (6 * arrays['N'])
    filters['tokens'] = 'flops / (6 params)'
  for name in needs:
    if name not in arrays:
      ours = parametric.LONG_NAMES.get(name, name)
      raise errors.UserError(
        f'{source} has no column for {ours}{errors.nearest(ours, header)}; it'
        f' has {", ".join(header)}: map one by {ours}=...'
      )
  run = [
    str(record.get(mapping['run']) if 'run' in mapping else i)
    for i, record in enumerate(records)
  ]
  return Table(arrays, np.array(run), source, sha256, mapping, filters)


def _clustered(
  table: Table, labels_of: Mapping[str, Sequence[Any]], cluster: str
) -> Table:
  """The table with rows that share a value of a column belonging together."""
  symbol = parametric.SYMBOLS.get(cluster, cluster)
  if cluster == 'run':
    return table
  if cluster == 'row':
    labels = np.arange(table.rows)
  elif symbol in table.columns:
    labels = table.columns[symbol]
  elif cluster in labels_of:
    labels = np.array(labels_of[cluster])
  else:
    allowed = {'run', 'row', *table.columns, *labels_of}
    raise errors.UserError(
      f'cluster={cluster!r}: {table.source} has no such column'
      f'{errors.nearest(cluster, allowed)}'
    )
  return dataclasses.replace(
    table,
    run=labels.astype(str),
    filters={**table.filters, 'cluster': cluster},
  )


def _check_column(
  name: str, values: np.ndarray, source: str, theirs: str
) -> None:
  bad = ~(np.abs(values) <= _MOST)
  wanted = f'a number of at most {_MOST:g}'
  if name in _POSITIVE:
    bad |= values < _LEAST
    wanted = f'a number above 0, from {_LEAST:g} to {_MOST:g},'
  if bad.any():
    row = int(np.flatnonzero(bad)[0])
    raise errors.UserError(
      f'column {theirs!r} of {source or "the table"} is {values[row]} in row'
      f' {row + 1}; {wanted} is needed'
    )


def _mapping(
  columns: Mapping[str, str],
  header: Sequence[str],
  source: str,
  known: Sequence[str],
) -> dict[str, str]:
  """Our name -> the file's: the mapped columns, then those of our names."""
  mapping = {}
  for ours, theirs in columns.items():
    name = parametric.LONG_NAMES.get(ours, ours)
    if name not in known:
      raise errors.UserError(
        f'column {ours!r} is unknown{errors.nearest(ours, known)}; allowed'
        f' are {", ".join(known)}'
      )
    if theirs not in header:
      raise errors.UserError(
        f'{source} has no column {theirs!r} for {ours}'
        f'{errors.nearest(theirs, header)}; it has {", ".join(header)}'
      )
    if name in mapping:
      raise errors.UserError(f'column {name!r} is mapped twice')
    mapping[name] = theirs
  for name in (parametric.LONG_NAMES.get(name, name) for name in known):
    for theirs in (name, parametric.SYMBOLS.get(name, name)):
      if name not in mapping and theirs in header:
        mapping[name] = theirs
  if 'loss' not in mapping:
    raise errors.UserError(
      f'{source} has no column loss{errors.nearest("loss", header)}; map one of'
      f' {", ".join(header)}'
    )
  return mapping


def _numbers(
  records: Sequence[Mapping[str, Any]], name: str, source: str
) -> np.ndarray:
  values = np.empty(len(records))
  for i, record in enumerate(records):
    try:
      if isinstance(record[name], (bool, np.bool_)):
        raise TypeError
      values[i] = float(record[name])
    except (KeyError, TypeError, ValueError, OverflowError):
      raise errors.UserError(
        f'column {name!r} of {source} is {record.get(name)!r} in row {i + 1};'
        ' a number is needed'
      ) from None
  return values
