"""Tables of runs: what a law is fitted to.

Columns are float64 under the literature's symbols: N parameters, D tokens, G
exits, C FLOPs, loss in nats per token; the rest keep their names. Rows that
share a `run` are not independent, and are resampled together.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import pathlib
import re
from typing import Any

import numpy as np
from scipy import stats

from familial.core import errors
from familial.core import storage
from familial.core import text
from familial.laws import definitions
from familial.laws import files
from familial.laws import parametric
from familial.laws import wide as wide_lib

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
# Names of columns that tell runs apart, in lower case, without spaces and dashes.
_RUN_NAMES = ('name', 'run_name', 'run_id', 'id', 'experiment')
_LONGEST = 1000  # characters of a run's name
_FEW = 1e5  # parameters or tokens: fewer are flagged as of another unit
_FAR = 100.0  # C / (6 N D) of another unit
_RISES, _SURELY = 0.3, 0.01  # rank correlation, p-value
# Allowed magnitudes: within the range of single precision.
_LEAST, MOST = 1e-30, 1e30
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


@text.brief
@dataclasses.dataclass(frozen=True)
class Table:
  """Rows of runs.

  Attributes:
    columns: by symbol, each [rows] in float64.
    run: names of the rows' runs [rows]: rows of one run belong together.
    source: file or folder.
    sha256: of its content.
    mapping: our names to the file's.
    filters: how the rows were chosen and read, for fit.json.
    dropped: number of rows that were not chosen.
    labels: the file's columns as they are, text included, each [rows].
    flags: what in the file may make a fit unreliable.
  """

  columns: dict[str, np.ndarray]
  run: np.ndarray
  source: str = ''
  sha256: str = ''
  mapping: dict[str, str] = dataclasses.field(default_factory=dict)
  filters: dict[str, Any] = dataclasses.field(default_factory=dict)
  dropped: int = 0
  labels: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  flags: tuple[str, ...] = ()

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
      labels={name: values[keep] for name, values in self.labels.items()},
      run=run,
      filters={**self.filters, **filters},
      dropped=self.dropped + max(0, self.rows - len(run)),
    )

  def where(self, condition: str) -> np.ndarray:
    """Which rows meet a condition such as `tokens>=1e9`, bool [rows].

    A column is one of ours or of the file's, of numbers or of text.
    """
    return meets(condition, {**self.labels, **self.columns}, self.mapping)

  def last(self) -> 'Table':
    """The last row of each run: that of most tokens, else of most FLOPs."""
    order = next(
      (self.columns[n] for n in ('D', 'C') if n in self.columns),
      np.arange(self.rows),
    )
    place = np.lexsort((np.arange(self.rows), order, self.clusters))
    ends = np.append(np.diff(self.clusters[place]) > 0, True)
    return self.take(np.sort(place[ends]), rows='last')

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
  path: Any,
  columns: Mapping[str, str] | None = None,
  *,
  loss: str = 'final',
  rows_used: str = 'last',
  mix_corpora: bool = False,
  cluster: str = 'run',
  needs: Sequence[str] = (),
  where: Sequence[str] = (),
  units: Mapping[str, float] | None = None,
  wide: Mapping[str, str] | None = None,
) -> Table:
  """A table from a file, from this project's runs, or from a data frame.

  Args:
    path: a file that `files.read` takes; a folder with metrics.jsonl files anywhere
      below it; or a data frame of polars or pandas, whose rows are the runs.
    columns: for a file, our name -> the file's; ours are params (or N), tokens
      (D), exits (G), flops (C), loss, weight, run, budget, width, depth, layer,
      upstream, downstream, flops_per_token. Other columns are found by
      these names. Where there are FLOPs and no tokens, D = C / (6 N).
    loss: as in from_rows; for runs of this project only.
    rows_used: as in from_rows.
    mix_corpora: as in from_rows.
    cluster: the column, ours or the file's, whose equal values make rows belong
      together; run, where there is none, is row: each by itself.
    needs: the columns of the form to fit, by symbol: a row without a number in
      one of them is left out. Other columns are used where all rows have one.
    where: conditions on the rows that are used, on any column of the file; see
      `meets`.
    units: our name -> what one in the file stands for, as 1e9 for parameters in
      billions.
    wide: for a table with a column for each run, quantity -> pattern of its
      columns, as `wide.lengthen` takes it: {'loss': '* - val_loss'}.
  """
  if hasattr(path, 'to_dicts') or hasattr(path, 'to_dict'):
    file, path = files.of_frame(path), 'data frame'
  else:
    file = files.read(pathlib.Path(path))
  read_as = {'dialect': file.dialect} if file.dialect else {}
  if wide:
    file, read_as['wide'] = wide_lib.lengthen(file, wide, str(path))
  elif not columns and is_ours(file.records):
    table = from_rows(
      file.records, loss, rows_used, None, mix_corpora, str(path), file.sha256
    )
    table = dataclasses.replace(table, flags=file.flags)
    for condition in where:
      table = table.take(table.where(condition), where=list(where))
    return _clustered(table, cluster)
  table = from_records(
    file.records, columns or {}, str(path), file.sha256, needs, where, units
  )
  table = dataclasses.replace(
    table,
    filters={**table.filters, **read_as},
    flags=(*file.flags, *table.flags),
  )
  return _clustered(table, cluster)


def is_ours(records: Sequence[Mapping[str, Any]]) -> bool:
  """Whether these are rows that training writes."""
  return {'run', 'exit', 'params_full'} <= set(records[0])


def from_records(
  records: Sequence[Mapping[str, Any]],
  columns: Mapping[str, str],
  source: str,
  sha256: str,
  needs: Sequence[str] = (),
  where: Sequence[str] = (),
  units: Mapping[str, float] | None = None,
) -> Table:
  """The table of a file's records, whose columns may have other names.

  Rows without a number in a column that is needed are left out and counted in
  `filters`; more than a tenth of the rows is a flag. Needed are the loss, the
  weight, the columns of `columns` and of `needs`; without `needs`, those of our
  names in which most rows have a number. Others are used if all rows have one.

  Args:
    records: the file's rows.
    columns: as in `read`; an empty name leaves a column unmapped.
    source: file or folder.
    sha256: of its content.
    needs: as in `read`.
    where: as in `read`.
    units: as in `read`.

  Raises:
    UserError: if a needed column is missing or no row has a number in it.
  """
  header = list(dict.fromkeys(name for record in records for name in record))
  mapping = _mapping(columns, header, source, (*_KNOWN, *needs))
  every = {
    name: _objects(record.get(name) for record in records) for name in header
  }
  number = np.arange(1, len(records) + 1)  # of each row in the file
  keep = np.ones(len(records), bool)
  for condition in where:
    keep &= meets(condition, every, mapping)
  if not keep.any():
    raise errors.UserError(f'{source}: no row is left by {", ".join(where)}')
  labels = {name: values[keep] for name, values in every.items()}
  number = number[keep]
  values = {
    ours: _numbers(labels[theirs])
    for ours, theirs in mapping.items()
    if ours != 'run'
  }
  filters: dict[str, Any] = {'where': list(where)} if where else {}
  for name, unit in (units or {}).items():
    ours = parametric.LONG_NAMES.get(name, name)
    if not unit > 0:
      raise errors.UserError(f'units={name}={unit:g}: it must be above 0')
    if ours not in values:
      raise errors.UserError(
        f'units={name!r}: {source} has no such column mapped'
        f'{errors.nearest(ours, values)}; there are {", ".join(values)}'
      )
    values[ours] = values[ours] * unit
    filters.setdefault('units', {})[ours] = unit
  symbols = {ours: parametric.SYMBOLS.get(ours, ours) for ours in values}
  asked = {parametric.LONG_NAMES.get(name, name) for name in columns}
  wanted = {parametric.LONG_NAMES.get(name, name) for name in needs}
  if 'tokens' not in values and (not needs or 'tokens' in wanted):
    wanted |= {'flops', 'params'}
  good = np.ones(len(number), bool)
  left_out, unused = {}, []
  for ours, column in values.items():
    usable = _usable(symbols[ours], column)
    needed = ours in {'loss', 'weight', *asked} or (
      ours in wanted if needs else 2 * usable.sum() > len(usable)
    )
    if needed and not usable.all():
      if not usable.any():
        _refuse(
          symbols[ours], labels[mapping[ours]], number, mapping[ours], source
        )
      left_out[mapping[ours]] = number[~usable].tolist()
      good &= usable
    elif not usable.all():
      unused.append(ours)
  if not good.any():
    raise errors.UserError(
      f'{source}: no row has a number in each of {", ".join(left_out)}'
    )
  if left_out:
    filters['left_out'] = left_out
  if unused:
    filters['unused'] = [mapping.pop(name) for name in unused]
  arrays = {
    symbols[ours]: column[good]
    for ours, column in values.items()
    if ours not in unused
  }
  if 'D' not in arrays and {'N', 'C'} <= set(arrays):
    arrays['D'] = arrays['C'] / (6 * arrays['N'])
    filters['tokens'] = 'flops / (6 params)'
  for name in needs:
    if name not in arrays:
      ours = parametric.LONG_NAMES.get(name, name)
      of_runs = (
        ', or add one that holds it for each run' if 'run' in header else ''
      )
      raise errors.UserError(
        f'{source} has no column for {ours}{errors.nearest(ours, header)}; it'
        f' has {", ".join(header)}: map one by {ours}=...{of_runs}'
      )
  labels = {name: column[good] for name, column in labels.items()}
  if not {'run'} & {*mapping, *columns}:
    mapping.update(zip(('run',), _run_columns(labels, arrays), strict=False))
  run: np.ndarray = (number[good] - 1).astype(str)
  nameless: tuple[str, ...] = ()
  if 'run' in mapping:
    run, nameless = run_names(labels[mapping['run']], mapping['run'], source)
  lost = int((~good).sum())
  return Table(
    arrays,
    run,
    source,
    sha256,
    mapping,
    filters,
    dropped=len(records) - int(good.sum()),
    labels=labels,
    flags=(
      *(
        [f'{lost} of {len(good)} rows left out, without a number']
        if 10 * lost > len(good)
        else []
      ),
      *nameless,
      *_units(arrays, 'tokens' in filters),
    ),
  )


def run_names(
  cells: np.ndarray, column: str, source: str
) -> tuple[np.ndarray, tuple[str, ...]]:
  """Names of the rows' runs, and a flag where some have none.

  A row without a name is a run by itself.

  Raises:
    UserError: for a name that is too long for a table.
  """
  names = [str(cell).strip() for cell in cells]
  nameless = 0
  for i, (cell, name) in enumerate(zip(cells, names, strict=True)):
    if cell is None or not name or cell != cell:
      names[i] = f'row {i + 1} without {column}'
      nameless += 1
    elif len(name) > _LONGEST:
      raise errors.UserError(
        f'column {column!r} of {source} has a name of {len(name)} characters,'
        f' {name[:80]!r}...; at most {_LONGEST} are allowed'
      )
  flag = f'{nameless} of {len(names)} rows without {column} count as a run each'
  return np.array(names), (flag,) if nameless else ()


def _run_columns(
  labels: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray]
) -> list[str]:
  """Columns that tell runs of several rows apart, by their names and values."""
  return [
    name
    for name in labels
    if re.sub(r'[\s-]+', '_', name.lower()) in _RUN_NAMES
    and fixes(labels[name], columns.get('N'))
  ]


def fixes(labels: np.ndarray, values: np.ndarray | None) -> bool:
  """Whether labels name groups of rows, each of one value; None is of one value."""
  names, group, counts = np.unique(
    list(map(str, labels)), return_inverse=True, return_counts=True
  )
  if not 1 < len(names) < len(labels) or counts.max() < 2:
    return False
  if values is None:
    return True
  first = values[np.unique(group, return_index=True)[1]]
  return bool((values == first[group]).all())


def _units(columns: Mapping[str, np.ndarray], derived: bool) -> Iterator[str]:
  """Yields flags of sizes that are hardly counts of parameters, tokens or FLOPs."""
  for name, symbol in (('params', 'N'), ('tokens', 'D')):
    if symbol in columns and not (name == 'tokens' and derived):
      typical = float(np.median(columns[symbol]))
      if typical < _FEW:
        yield (
          f'{name} are about {typical:.3g}: if in millions or billions,'
          f' --units={name}=1e6 or 1e9'
        )
  if {'N', 'D', 'C'} <= set(columns):
    ratio = columns['C'] / (6 * columns['N'] * columns['D'])
    factor = float(np.median(ratio))
    if not derived and not 1 / _FAR < factor < _FAR:
      yield (
        f'flops are {factor:.2g} x 6 params tokens: a wrong unit (--units) or a'
        ' wrong column (--columns)'
      )
    elif derived and float(np.median(columns['D'])) < 1:
      yield 'tokens = flops / (6 params) are below 1: a wrong unit (--units)'


def looks_like_accuracy(loss: np.ndarray, compute: np.ndarray) -> bool:
  """Whether values of a column loss lie in [0, 1] and rise with compute."""
  return loss.min() >= 0 and loss.max() <= 1 and rises(loss, compute)


def rises(values: np.ndarray, compute: np.ndarray) -> bool:
  """Whether Spearman's rank correlation is above 0.3, and above 0 at 1 %."""
  if not (np.ptp(values) and np.ptp(compute)):
    return False
  rank = stats.spearmanr(compute, values, alternative='greater')
  return bool(rank.statistic > _RISES and rank.pvalue < _SURELY)


def meets(
  condition: str,
  columns: Mapping[str, np.ndarray],
  mapping: Mapping[str, str],
) -> np.ndarray:
  """Which rows meet a condition, bool [rows].

  A condition is COLUMN, one of <=, >=, <, >, ==, !=, and a value: `tokens>=1e9`,
  `State==finished`. Numbers are compared as numbers, other cells as text, by ==
  and != only; a row without a number meets no order.

  Args:
    condition: the condition.
    columns: values by name, each [rows], numbers or cells of a file.
    mapping: our names to names of `columns`.

  Raises:
    UserError: for another condition, or a column that does not exist.
  """
  match = re.fullmatch(
    r'\s*([^<>=!]+?)\s*(<=|>=|==|!=|<|>)\s*(.*?)\s*', condition
  )
  name = match[1] if match else ''
  for other in (parametric.SYMBOLS.get(name, name), mapping.get(name, name)):
    if name not in columns and other in columns:
      name = other
  if not match or name not in columns:
    long = (n for n, s in parametric.SYMBOLS.items() if s in columns)
    known = list(dict.fromkeys([*columns, *long, *mapping]))
    raise errors.UserError(
      f'{condition!r}: a condition is COLUMN<=VALUE, or with >=, <, >, ==, '
      f'!=; columns are {", ".join(known)}{errors.nearest(name, known)}'
    )
  cells, compare = columns[name], _COMPARISONS[match[2]]
  [value] = _numbers(np.array([match[3]], object))
  if not np.isnan(value):
    numbers = _numbers(cells)
    known_ = ~np.isnan(numbers)
    return np.asarray(
      np.where(known_, compare(numbers, value), match[2] == '!=')
    )
  if match[2] in ('==', '!='):
    return np.asarray(
      compare(np.array([str(cell).strip() for cell in cells]), match[3])
    )
  raise errors.UserError(f'{condition!r}: {match[3]!r} is no number')


def _clustered(table: Table, cluster: str) -> Table:
  """The table with rows that share a value of a column belonging together."""
  symbol = parametric.SYMBOLS.get(cluster, cluster)
  nameless: tuple[str, ...] = ()
  if cluster == 'run':
    return table
  if cluster == 'row':
    labels = np.arange(table.rows)
  elif symbol in table.columns:
    labels = table.columns[symbol]
  elif cluster in table.labels:
    labels, nameless = run_names(table.labels[cluster], cluster, table.source)
  else:
    allowed = {'run', 'row', *table.columns, *table.labels}
    raise errors.UserError(
      f'cluster={cluster!r}: {table.source} has no such column'
      f'{errors.nearest(cluster, allowed)}'
    )
  return dataclasses.replace(
    table,
    run=np.array(list(map(str, labels))),
    filters={**table.filters, 'cluster': cluster},
    flags=(*table.flags, *nameless),
  )


def _usable(name: str, values: np.ndarray) -> np.ndarray:
  """Which values a fit can use, bool: finite, and above 0 where that is needed."""
  usable = np.abs(values) <= MOST
  return usable & (values >= _LEAST) if name in _POSITIVE else usable


def _check_column(
  name: str, values: np.ndarray, source: str, theirs: str
) -> None:
  if not _usable(name, values).all():
    _refuse(name, values, np.arange(1, len(values) + 1), theirs, source)


def _refuse(
  name: str, cells: np.ndarray, number: np.ndarray, theirs: str, source: str
) -> None:
  """Raises a UserError that names the first cell that a fit cannot use."""
  row = int(np.flatnonzero(~_usable(name, _numbers(cells)))[0])
  wanted = f'a number of at most {MOST:g}'
  if name in _POSITIVE:
    wanted = f'a number above 0, from {_LEAST:g} to {MOST:g},'
  raise errors.UserError(
    f'column {theirs!r} of {source or "the table"} is {_shown(cells[row])} in'
    f' row {number[row]}; {wanted} is needed'
  )


def _shown(cell: Any) -> str:
  """A cell of any kind in a line."""
  line = ' '.join(str(cell).split())
  return line if len(line) <= 80 else f'{line[:80]}...'


def _mapping(
  columns: Mapping[str, str],
  header: Sequence[str],
  source: str,
  known: Sequence[str],
) -> dict[str, str]:
  """Our name -> the file's: the mapped columns, then those of our names."""
  mapping: dict[str, str] = {}
  unmapped = set()
  for ours, theirs in columns.items():
    name = parametric.LONG_NAMES.get(ours, ours)
    if name not in known:
      raise errors.UserError(
        f'column {ours!r} is unknown{errors.nearest(ours, known)}; allowed'
        f' are {", ".join(known)}'
      )
    if name in mapping:
      raise errors.UserError(f'column {name!r} is mapped twice')
    theirs = files.column_name(theirs)
    if not theirs:
      unmapped.add(name)
      continue
    if theirs not in header:
      raise errors.UserError(
        f'{source} has no column {theirs!r} for {ours}'
        f'{errors.nearest(theirs, header)}; it has {", ".join(header)}'
      )
    mapping[name] = theirs
  for name in (parametric.LONG_NAMES.get(name, name) for name in known):
    for theirs in (name, parametric.SYMBOLS.get(name, name)):
      if name not in mapping and name not in unmapped and theirs in header:
        mapping[name] = theirs
  if 'loss' not in mapping:
    raise errors.UserError(
      f'{source} has no column loss{errors.nearest("loss", header)}; map one of'
      f' {", ".join(header)}'
    )
  return mapping


def _objects(cells: Iterable[Any]) -> np.ndarray:
  """Cells of any kind as an array of one axis."""
  cells = list(cells)
  array = np.empty(len(cells), object)
  array[:] = cells
  return array


def _numbers(cells: np.ndarray) -> np.ndarray:
  """Cells as numbers; NaN where a cell is none."""
  if cells.dtype != object:
    return cells
  return np.array([files.number(cell) for cell in cells], np.float64)
