"""Files of rows, read as they are: CSV, JSON lines, Parquet, run folders.

What comes from outside is parsed and no more: nothing in it is executed.
"""

import csv
import hashlib
import io
import json
import pathlib
from typing import Any

from familial.core import errors


def read(path: pathlib.Path) -> tuple[list[dict[str, Any]], str]:
  """The rows of a file, or of all runs below a folder, and their SHA-256.

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
  suffix = path.suffix.lower()
  if path.is_dir():
    # A run is named by its place: two studies may have cells of one name.
    records = [
      {**record, 'run': str(file.parent.relative_to(path))}
      for file, content in zip(files, contents, strict=True)
      for record in _json_lines(content, file)
    ]
  elif suffix == '.csv':
    records = _csv(contents[0], path)
  elif suffix == '.parquet':
    records = _parquet(contents[0], path)
  elif suffix in ('.jsonl', '.json'):
    records = _json_lines(contents[0], path)
  else:
    raise errors.UserError(
      f'table {str(path)!r}: allowed are .csv, .jsonl, .parquet and'
      ' folders of runs'
    )
  if not records:
    raise errors.UserError(f'table {str(path)!r} has no rows')
  return records, sha256


def _csv(content: bytes, path: pathlib.Path) -> list[dict[str, Any]]:
  try:
    text = content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise errors.UserError(f'{path} is not UTF-8: {error.reason}') from None
  try:
    rows = [
      row for row in csv.reader(io.StringIO(text, newline=''), strict=True)
      if row
    ]  # fmt: skip
  except csv.Error as error:
    raise errors.UserError(f'{path} is not CSV: {error}') from None
  header = [name.strip() for name in rows[0]] if rows else []
  twice = [name for name in header if name and header.count(name) > 1]
  if twice:
    raise errors.UserError(f'{path} has several columns {twice[0]!r}')
  for i, row in enumerate(rows):
    if len(row) != len(header):
      raise errors.UserError(
        f'{path} has {len(row)} cells in row {i}, and {len(header)} columns'
      )
  return [dict(zip(header, row, strict=True)) for row in rows[1:]]


def _parquet(content: bytes, path: pathlib.Path) -> list[dict[str, Any]]:
  try:
    from pyarrow import lib
    from pyarrow import parquet
  except ImportError:
    raise errors.UserError(
      f"{path}: needs the extra, pip install 'familial[parquet]'"
    ) from None
  try:
    rows = parquet.read_table(io.BytesIO(content)).to_pylist()
  except (lib.ArrowException, OSError, ValueError) as error:
    line = str(error).partition('\n')[0]
    raise errors.UserError(f'{path} is not Parquet: {line}') from None
  return [dict(row) for row in rows]


def _json_lines(content: bytes, file: pathlib.Path) -> list[dict[str, Any]]:
  """Parses JSON lines; a last line that was cut off while written is skipped."""
  lines = content.decode('utf-8', errors='replace').split('\n')
  records = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except json.JSONDecodeError as error:
      if number == len(lines):
        break
      raise errors.UserError(
        f'{file} line {number} is not JSON: {error.msg}'
      ) from error
    except (ValueError, RecursionError):
      raise errors.UserError(
        f'{file} line {number} holds what is too long or nested too deep'
      ) from None
    if not isinstance(record, dict):
      raise errors.UserError(
        f'{file} line {number} is not a JSON object; one a line is needed'
      )
    records.append(record)
  return records
