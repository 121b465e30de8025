"""Wide tables, with a column for each run or each size, as rows of runs."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import math
import re
from typing import Any
from typing import NamedTuple

from familial.core import errors
from familial.core import text
from familial.laws import files

_PLACE = re.compile(r'\*|\{(\w+)\}')
_OF_WANDB = ('__MIN', '__MAX')  # ends of the columns beside each exported one


class _Columns(NamedTuple):
  """Columns that match a pattern: by the values of its places, their names."""

  places: tuple[str, ...]
  names: dict[tuple[str, ...], str]
  pattern: str


def lengthen(
  file: files.File, patterns: Mapping[str, str], source: str
) -> tuple[files.File, str]:
  """The rows of a wide table, one for each run and row, and what was understood.

  Columns that match a pattern become one column, of the quantity; what its `*`
  matches is the `run`, and what `{params}`, `{tokens}` or another name in braces
  matches, a number, is that column. A row without a value of each quantity is
  none: runs end at different steps, and log at different ones. Other columns stay.

  Args:
    file: the table.
    patterns: quantity -> pattern of columns, {'loss': '* - val_loss'}, or
      {'loss': '{flops} FLOPs'}.
    source: file or folder, for errors.

  Raises:
    UserError: for a pattern without a place, that no column matches, or that
      matches other runs than another pattern, and for a name that the table has.
  """
  header = list(dict.fromkeys(name for row in file.records for name in row))
  matching = {
    quantity: _matching(quantity, pattern, header, source)
    for quantity, pattern in patterns.items()
  }
  (first, columns), *others = matching.items()
  for other, its in others:
    if its.places != columns.places:
      raise errors.UserError(
        f'wide: {columns.pattern!r} and {its.pattern!r} must have the same places'
      )
    if apart := its.names.keys() ^ columns.names.keys():
      shown = text.some(sorted(', '.join(each) for each in apart))
      raise errors.UserError(
        f'wide: of {shown} {source} has columns of one of {first} and {other} only'
      )
  kept = _others(header, matching.values(), source)
  for name in (*columns.places, *matching):
    if name in kept:
      raise errors.UserError(
        f'wide: {source} has a column {name} beside those of {columns.pattern!r}'
      )
  records, blank = [], 0
  for key in columns.names:
    own = dict(zip(columns.places, key, strict=True))
    for row in file.records:
      cells = {q: row.get(its.names[key]) for q, its in matching.items()}
      if any(map(_is_blank, cells.values())):
        blank += 1
        continue
      records.append({**{name: row.get(name) for name in kept}, **own, **cells})
  if not records:
    raise errors.UserError(
      f'wide: no row of {source} has a value of {" and ".join(matching)}'
    )
  what = 'runs' if columns.places == ('run',) else ' and '.join(columns.places)
  note = ', '.join(
    f'{len(its.names)} {what} from {len(its.names)} columns {its.pattern!r}'
    for its in matching.values()
  )
  if blank:
    note += f' ({blank} blank cells)'
  return file._replace(records=records), note


def label(pattern: str) -> str:
  """What the columns of runs hold: accuracy of `* - accuracy`, else ''."""
  return re.sub(r'^\W+|\W+$', '', pattern) if '*' in pattern else ''


def _matching(
  quantity: str, pattern: str, header: Sequence[str], source: str
) -> _Columns:
  """The columns that match a pattern."""
  pattern = files.column_name(pattern)
  places = tuple(match[1] or 'run' for match in _PLACE.finditer(pattern))
  if not places or len(set(places)) < len(places):
    raise errors.UserError(
      f'wide: {quantity}={pattern!r} is not allowed; it must have one * in place'
      " of the run, as '* - val_loss', or a name in braces in place of a number,"
      " as '{flops} FLOPs'"
    )
  literals = map(re.escape, _PLACE.sub('\0', pattern).split('\0'))
  regex = re.compile('(.+)'.join(literals))
  matches = {m[0]: m.groups() for m in map(regex.fullmatch, header) if m}
  names = {
    values: name
    for name, values in matches.items()
    if not any(
      name.endswith(end) and name.removesuffix(end) in matches
      for end in _OF_WANDB
    )
    and all(
      place == 'run' or not math.isnan(files.number(value))
      for place, value in zip(places, values, strict=True)
    )
  }
  if not names:
    raise errors.UserError(
      f'wide: no column of {source} matches {quantity}={pattern!r}; it has'
      f' {text.some(header, 12)}'
    )
  return _Columns(places, names, pattern)


def _others(
  header: Sequence[str], matching: Iterable[_Columns], source: str
) -> list[str]:
  """Columns that stay: those of no run, of which `run1 - _step` is one too.

  Of several runs, a column of one is that of which each run has one. Beside one
  run all stay.

  Raises:
    UserError: for a column that is named after a run, where another has none.
  """
  matching = list(matching)
  matched = {name for columns in matching for name in columns.names.values()}
  others = [name for name in header if name not in matched]
  for columns in matching:
    after = re.match(r'\*(\W+)', columns.pattern)
    if not after or columns.places != ('run',) or len(columns.names) == 1:
      continue
    starts = [f'{run}{after[1]}' for (run,) in columns.names]
    of_runs = set()
    for name in others:
      ends = [name.removeprefix(s) for s in starts if name.startswith(s)]
      if any(all(f'{s}{end}' in header for s in starts) for end in ends):
        of_runs.add(name)
      elif ends:
        raise errors.UserError(
          f'wide: {name!r} of {source} begins as a run of {columns.pattern!r},'
          ' but not each run has such a column; rename it or leave it out'
        )
    others = [name for name in others if name not in of_runs]
  return others


def _is_blank(cell: Any) -> bool:
  return (
    cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())
  )
