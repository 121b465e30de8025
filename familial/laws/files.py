"""Files of rows, read as they are: CSV, JSON, Parquet, run folders.

What comes from outside is parsed and no more: nothing in it is executed.
"""

import codecs
import csv
import hashlib
import io
import json
import math
import pathlib
import re
import signal
import subprocess
import sys
from typing import Any
from typing import NamedTuple

import numpy as np

from familial.core import errors

SEPARATORS = {',': 'commas', ';': 'semicolons', '\t': 'tabs', '|': 'bars'}
_LONGEST = 200  # characters of a column's name
_COMPRESSED = ('.gz', '.zst')
_GROUPS = re.compile(r'[+-]?\d{1,3}(,\d{3})+(\.\d+)?[kmbgtKMBGT]?')
_FACTORS = {'k': 1e3, 'm': 1e6, 'b': 1e9, 'g': 1e9, 't': 1e12}
_END = r'(?:[eE][+-]?\d+)?[kmbgtKMBGT]?'  # of a number, as in 1e9 and 70M
# A point that is certainly a decimal one, and numbers whose comma or point may be
# a decimal one or stand before three digits of a thousand.
_DECIMAL_POINT = re.compile(
  rf'[+-]?(?:(?![1-9]\d{{0,2}}\.\d{{3}}{_END}$)\d*\.\d+'
  rf'|\d{{1,3}}(?:,\d{{3}})+\.\d+|\d{{1,3}}(?:,\d{{3}}){{2,}}){_END}'
)
_OPEN_COMMA = re.compile(rf'[+-]?[1-9]\d{{0,2}},\d{{3}}{_END}')
_OPEN_POINT = re.compile(rf'[+-]?[1-9]\d{{0,2}}\.\d{{3}}{_END}')
_WITH_COMMA = re.compile(
  rf'[+-]?(?:\d+,\d*|,\d+|\d{{1,3}}(?:\.\d{{3}})+(?:,\d*)?){_END}'
)
_READ_PARQUET = """
import sys
import polars
try:
  polars.read_parquet(sys.stdin.buffer.read()).to_dicts()
except BaseException as error:
  print(error)
  sys.exit(1)
"""
_SWAPPED = str.maketrans(',.', '.,')


class File(NamedTuple):
  """A file's rows.

  Attributes:
    records: the rows, by the file's own column names.
    sha256: hash of the file's bytes.
    dialect: how cells were read where that is not plain CSV; '' otherwise.
    flags: what of the file was not read.
  """

  records: list[dict[str, Any]]
  sha256: str
  dialect: str = ''
  flags: tuple[str, ...] = ()


def read(path: pathlib.Path) -> File:
  """The rows of a file, or of all runs below a folder, and their SHA-256.

  Files are .csv and .tsv (separated by a comma, semicolon, tab or bar; with
  decimal points or decimal commas), .jsonl and .json (objects by line, or one
  array of them), each also as .gz or .zst; and .parquet.

  Raises:
    UserError: where there are none, or the file is not what its name says.
  """
  if not path.exists():
    raise errors.UserError(f'table {str(path)!r} does not exist')
  files = sorted(path.rglob('metrics.jsonl')) if path.is_dir() else [path]
  if not files:
    raise errors.UserError(f'no metrics.jsonl lies below {str(path)!r}')
  contents = [file.read_bytes() for file in files]
  sha256 = hashlib.sha256(b''.join(contents)).hexdigest()
  records: list[dict[str, Any]]
  dialect, cut = '', False
  suffixes = [suffix.lower() for suffix in path.suffixes]
  if suffixes and suffixes[-1] in _COMPRESSED and not path.is_dir():
    suffixes.pop()
    contents = [_decompressed(contents[0], path)]
  suffix = suffixes[-1] if suffixes else ''
  if path.is_dir():
    # A run is named by its place: two studies may have cells of one name.
    records = [
      {**record, 'run': str(file.parent.relative_to(path))}
      for file, content in zip(files, contents, strict=True)
      # The last line of a run may be under way.
      for record in _json_lines(content, file)[0]
    ]
  elif suffix in ('.csv', '.tsv'):
    records, dialect = _csv(contents[0], path)
  elif suffix == '.parquet':
    records = _parquet(contents[0], path)
  elif suffix == '.json' and _without_mark(contents[0]).lstrip()[:1] == b'[':
    records = _json_array(contents[0], path)
  elif suffix in ('.jsonl', '.json'):
    records, cut = _json_lines(contents[0], path)
    if cut and not records:
      raise errors.UserError(f'{path} line 1 is not JSON')
  else:
    raise errors.UserError(
      f'table {str(path)!r}: allowed are .csv, .tsv, .jsonl, .json (each also as'
      ' .gz or .zst), .parquet and folders of runs'
    )
  if not records:
    raise errors.UserError(f'table {str(path)!r} has no rows')
  flags = ('the last line of the file is cut off, and left out',) if cut else ()
  return File(_named(records, path), sha256, dialect, flags)


def of_frame(frame: Any) -> File:
  """The rows of a data frame of polars or pandas."""
  polars = hasattr(frame, 'to_dicts')
  records = frame.to_dicts() if polars else frame.to_dict('records')
  if not records:
    raise errors.UserError('the data frame has no rows')
  records = [{str(k): v for k, v in row.items()} for row in records]
  return File(_named(records, 'the data frame'), '')


def column_name(name: str) -> str:
  """A column's name on one line, with single spaces."""
  return ' '.join(name.split())


def _named(records: list[dict[str, Any]], source: Any) -> list[dict[str, Any]]:
  """The rows by names of one line, which a flag can say, without outer spaces."""
  names: dict[str, str] = {}
  for name in dict.fromkeys(name for record in records for name in record):
    short = column_name(name)
    if len(short) > _LONGEST:
      raise errors.UserError(
        f'{source} has a column {short[:_LONGEST]!r}...; names have at most'
        f' {_LONGEST} characters'
      )
    if short and short in names.values():
      raise errors.UserError(f'{source} has several columns {short!r}')
    names[name] = short
  return [{names[k]: v for k, v in record.items()} for record in records]


def _without_mark(content: bytes) -> bytes:
  return content.removeprefix(codecs.BOM_UTF8)


def _decompressed(content: bytes, path: pathlib.Path) -> bytes:
  import polars as pl

  try:
    lines = pl.read_lines(content).to_series().to_list()
  except (pl.exceptions.PolarsError, OSError) as error:
    line = str(error).partition('\n')[0]
    raise errors.UserError(f'{path} is not a compressed text: {line}') from None
  return '\n'.join(lines).encode()


def _csv(
  content: bytes, path: pathlib.Path
) -> tuple[list[dict[str, Any]], str]:
  """Rows of cells, and the dialect where it is not commas and decimal points."""
  try:
    text = content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise errors.UserError(f'{path} is not UTF-8: {error.reason}') from None
  separator = _separator(text)
  try:
    rows = _cells(text, separator)
  except csv.Error as error:
    raise errors.UserError(f'{path} is not CSV: {error}') from None
  header = [column_name(name) for name in rows[0]] if rows else []
  twice = [name for name in header if name and header.count(name) > 1]
  if twice:
    raise errors.UserError(f'{path} has several columns {twice[0]!r}')
  for i, row in enumerate(rows):
    if len(row) != len(header):
      raise errors.UserError(
        f'{path} has {len(row)} cells in row {i}, and {len(header)} columns'
      )
  dialect = []
  if separator == ',':
    _check_commas(header, rows[1:], path)
  if separator != ',':
    dialect.append(f'cells separated by {SEPARATORS[separator]}')
    if _has_decimal_commas(header, rows[1:], separator, path):
      dialect.append('decimal commas')
      rows[1:] = [[_with_point(cell) for cell in row] for row in rows[1:]]
  records = [dict(zip(header, row, strict=True)) for row in rows[1:]]
  return records, ', '.join(dialect)


def _separator(text: str) -> str:
  """The separator that gives the header most cells; a comma where none does."""
  line = next((line for line in text.splitlines() if line.strip()), '')
  widths = {}
  for separator in SEPARATORS:
    try:
      widths[separator] = len(_cells(line, separator)[0]) if line else 1
    except csv.Error:  # A quoted name goes on in the next line.
      widths[separator] = line.count(separator) + 1
  return max(widths, key=widths.__getitem__)


def _cells(text: str, separator: str) -> list[list[str]]:
  lines = io.StringIO(text, newline='')
  rows = csv.reader(lines, delimiter=separator, strict=True)
  return [row for row in rows if row]


def _check_commas(
  header: list[str], rows: list[list[str]], path: pathlib.Path
) -> None:
  """Refuses a column of quoted numbers such as 3,125 if no number has a point.

  A loss of 3125 would be fitted in earnest, so that a flag is not enough.
  """
  cells = [cell.strip() for row in rows for cell in row]
  if any(
    _DECIMAL_POINT.fullmatch(c) or _OPEN_POINT.fullmatch(c) for c in cells
  ):
    return
  for place, name in enumerate(header):
    values = [row[place].strip() for row in rows if row[place].strip()]
    if values and all(map(_OPEN_COMMA.fullmatch, values)):
      raise errors.UserError(
        f'{path}: {values[0]} in column {name!r} may be thousands or a decimal;'
        ' write it without groups, or with a decimal point'
      )


def _has_decimal_commas(
  header: list[str],
  rows: list[list[str]],
  separator: str,
  path: pathlib.Path,
) -> bool:
  """Whether cells have decimal commas, and none a decimal point.

  Where both may be decimal, semicolons leave it open, because programs write
  them beside decimal commas; other separators go with decimal points.

  Raises:
    UserError: if one cell may have a decimal comma and another a decimal point.
  """
  cells = [cell.strip() for row in rows for cell in row]
  if any(map(_DECIMAL_POINT.fullmatch, cells)):
    return False
  if any(_DECIMAL_POINT.fullmatch(cell.translate(_SWAPPED)) for cell in cells):
    return True
  names = header * len(rows)
  by_column = list(zip(names, cells, strict=True))
  comma = next((c for c in by_column if _OPEN_COMMA.fullmatch(c[1])), None)
  point = next((c for c in by_column if _OPEN_POINT.fullmatch(c[1])), None)
  if comma and point:
    if separator != ';':
      return False
    raise errors.UserError(
      f'{path}: {comma[1]} in column {comma[0]!r} and {point[1]} in column'
      f' {point[0]!r} may each be thousands or a decimal; write one of them'
      ' without groups'
    )
  return comma is not None


def _with_point(cell: str) -> str:
  """A number with a decimal comma, and points between groups, as Python's."""
  plain = cell.strip()
  if _WITH_COMMA.fullmatch(plain):
    return plain.replace('.', '').replace(',', '.')
  return cell


def _parquet(content: bytes, path: pathlib.Path) -> list[dict[str, Any]]:
  """Rows of Parquet, read first by another process: damage may abort a process."""
  import polars as pl

  child = [sys.executable, '-P', '-c', _READ_PARQUET]
  tried = subprocess.run(child, input=content, capture_output=True, check=False)
  if tried.returncode == -signal.SIGKILL:
    raise errors.UserError(
      f'{path}: the process that reads it was killed; memory may be too small'
    )
  if tried.returncode:
    line = tried.stdout.decode(errors='replace').partition('\n')[0]
    raise errors.UserError(f'{path} is not Parquet: {line or "it is damaged"}')
  return pl.read_parquet(content).to_dicts()


def _json_array(content: bytes, path: pathlib.Path) -> list[dict[str, Any]]:
  try:
    records = json.loads(content)
  except (ValueError, RecursionError) as error:
    line = str(error).partition('\n')[0]
    raise errors.UserError(f'{path} is not JSON: {line}') from None
  for number, record in enumerate(records, start=1):
    if not isinstance(record, dict):
      raise errors.UserError(
        f'{path}: item {number} of the array is not a JSON object'
      )
  return list(records)


def _json_lines(
  content: bytes, file: pathlib.Path
) -> tuple[list[dict[str, Any]], bool]:
  """Parses JSON lines; also whether the last was cut off while written.

  Such a line is skipped.
  """
  lines = _without_mark(content).split(b'\n')
  records: list[dict[str, Any]] = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line.decode())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
      if number == len(lines):
        return records, True
      what = f'JSON: {getattr(error, "msg", "it is not UTF-8")}'
      raise errors.UserError(f'{file} line {number} is not {what}') from None
    except (ValueError, RecursionError):
      raise errors.UserError(
        f'{file} line {number} holds what is too long or nested too deep'
      ) from None
    if not isinstance(record, dict):
      raise errors.UserError(
        f'{file} line {number} is not a JSON object; one a line is needed'
      )
    records.append(record)
  return records, False


def number(cell: Any) -> float:
  """A cell as a number: '70M', '1.4B' and '22,500,000' too; NaN for none."""
  if isinstance(cell, (bool, np.bool_)):
    return math.nan
  factor = 1.0
  if isinstance(cell, str):
    cell = cell.strip().replace('_', 'x')  # Python reads 1_0 as 10.
    if _GROUPS.fullmatch(cell):
      cell = cell.replace(',', '')
    if cell[-1:].lower() in _FACTORS and cell[:-1][-1:].isdigit():
      cell, factor = cell[:-1], _FACTORS[cell[-1].lower()]
  try:
    return float(cell) * factor
  except (TypeError, ValueError, OverflowError):
    return math.nan
