"""Tables of other programs, damaged at random: the numbers of the file, or a line.

Each seed is a table in some format, spoiled in up to three places, beside what an
independent reader of a few lines makes of it.
"""

import csv
import dataclasses
import gzip
import io
import json
import math
import random
import re
import subprocess
import sys
import time
from typing import Any

import numpy as np
import polars as pl
import pytest

from familial.core import errors
from familial.laws import table as tables
from tests.laws import points

NAMES = {
  'params': ['params', 'N', 'Model Size', 'größe'],
  'tokens': ['tokens', 'D', 'train/tokens', ' Tokens, seen'],
  'flops': ['flops', 'C', 'Training FLOP'],
  'loss': ['loss', 'eval/loss', 'Loss (nats)'],
  'weight': ['weight', 'w'],
  'run': ['run', 'Name'],
}
SYMBOLS = {'params': 'N', 'tokens': 'D', 'flops': 'C'}
JUNK = [
  '', ' ', '-', '--', 'NaN', 'nan', 'null', 'None', 'n/a', 'inf', '-inf',
  'Infinity', '0', '-3', '1e400', '1e31', '1e-31', 'x', '3.1x', '3..1', '1e',
  '12%', '$5', '=A1', "'3", '1/2', '3 4', '1,2,3', '0x10', 'True', '+', 'e5',
]  # fmt: skip
OTHER = [
  None, True, False, [], [1.0], {}, {'value': 1.0}, math.nan, math.inf, -1, 0,
  10**400, '', 'x', '70M', '1e9', ' 3.5 ', [[1], {'a': None}],
]  # fmt: skip
TEXTS = ('csv', 'tsv', 'semicolons')
# What is no reason to refuse a table that has good rows.
HARMLESS = {'cells', 'spaces', 'bom', 'crlf', 'blank lines', 'header again'}


@dataclasses.dataclass
class Case:
  """A file, and the rows that are in it, or None where it cannot be read."""

  name: str
  content: bytes
  columns: dict[str, str]  # flags
  header: dict[str, str]  # the file's name of each quantity
  needs: list[str]
  rows: list[dict[str, Any]] | None
  damages: set[str]
  comma: bool  # decimal


def number(cell, comma):
  """A cell as a number, NaN for none: what people write, not what Python reads."""
  if isinstance(cell, bool) or not isinstance(cell, (int, float, str)):
    return math.nan
  if not isinstance(cell, str):
    return float(cell) if abs(cell) < 1e300 else math.nan
  group, point = '.,' if comma else ',.'
  match = re.fullmatch(
    rf'([+-]?(?:\d+|\d{{1,3}}(?:\{group}\d{{3}})+)?(?:\{point}\d*)?'
    r'(?:e[+-]?\d+)?)([kmbgt]?)',
    cell.strip().lower(),
  )
  if not match or not any(map(str.isdigit, match[1])):
    return math.nan
  try:
    value = float(match[1].replace(group, '').replace(point, '.'))
  except ValueError:
    return math.nan
  factors = {'': 1, 'k': 1e3, 'm': 1e6, 'b': 1e9, 'g': 1e9, 't': 1e12}
  return value * factors[match[2]]


def written(rng, value, comma, places):
  """A number as one of many programs and people writes it."""
  style = rng.randrange(5) if value >= 100 else rng.randrange(2)
  text = f'{value:.{places}f}' if places else repr(value)
  if style == 1 and not places:
    text = f'{value:.6e}'
  elif style == 2 and value >= 1e6:
    text = f'{value / 1e6:.3f}M'
  elif style == 3 and value >= 1e4:
    text = f'{value:,.0f}' if value < 1e15 else text
  elif style == 4 and value == int(value):
    text = str(int(value))
  return text.translate(str.maketrans(',.', '.,')) if comma else text


def rows_of(rng, quantities, as_text):
  """Runs of the dense law, as lists of cells in the order of the quantities."""
  rows, least = [], rng.choice([2, 5])
  for i in range(rng.choice([1, 2, 12, 30])):
    n, d = 10 ** rng.uniform(least, 10), 10 ** rng.uniform(least, 12)
    own = {
      'params': round(n), 'tokens': round(d) + 0.5, 'flops': 6 * n * d,
      'loss': 1.7 + 400 / n**0.33 + 900 / d**0.36, 'weight': rng.uniform(0.5, 2),
      'run': f'run {i // 3}' if as_text else i // 3, 'note': rng.choice('abc'),
    }  # fmt: skip
    rows.append([own[q] for q in quantities])
  return rows


def spoil_cells(rng, rows, junk):
  for _ in range(rng.choice([1, 1, 2, 6])):
    row = rng.choice(rows)
    row[rng.randrange(len(row))] = rng.choice(junk)


def case(seed):
  rng = random.Random(seed)
  kind = rng.choice(
    ['csv', 'csv', 'tsv', 'semicolons', 'jsonl', 'json', 'parquet']
  )
  comma = kind == 'semicolons' and rng.random() < 0.7
  optional = [
    q for q in ('tokens', 'flops', 'weight', 'run') if rng.random() < 0.7
  ]
  quantities = ['params', *optional, 'loss', 'note']
  rng.shuffle(quantities)
  header = {q: rng.choice(NAMES.get(q, [q])) for q in quantities}
  columns = {
    q: name.strip()
    for q, name in header.items()
    if q in NAMES and (name not in (q, SYMBOLS.get(q)) or rng.random() < 0.2)
  }
  needs = rng.choice(
    [
      [],
      ['N'],
      [SYMBOLS[q] for q in quantities if q in SYMBOLS],
      ['N', 'D'],
      ['C'],
    ]
  )
  damages = set(rng.sample(
    ['cells', 'cells', 'rows', 'text', 'columns', 'bytes', 'crlf', 'none', 'none'], 2
  ))  # fmt: skip
  rows = rows_of(rng, quantities, kind in TEXTS or rng.random() < 0.5)
  names = [header[q] for q in quantities]
  one = Case('', b'', columns, header, needs, None, damages - {'none'}, comma)
  if kind in ('jsonl', 'json', 'parquet'):
    return records_case(rng, kind, one, names, rows)
  return text_case(rng, kind, one, names, rows)


def text_case(rng, kind, one, names, rows):
  separator = {'csv': ',', 'tsv': '\t', 'semicolons': ';'}[kind]
  comma, places = one.comma, rng.choice([0, 0, 2, 3])
  cells = [
    [c if isinstance(c, str) else written(rng, c, comma, places) for c in row]
    for row in rows
  ]
  if 'cells' in one.damages:
    spoil_cells(rng, cells, JUNK)
  cells.insert(0, list(names))
  if 'columns' in one.damages:
    damage_columns(rng, one, cells)
  if 'rows' in one.damages:
    damage_rows(rng, one, cells)
  sink = io.StringIO()
  end = '\r\n' if 'crlf' in one.damages else '\n'
  quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
  csv.writer(
    sink, delimiter=separator, lineterminator=end, quoting=quoting
  ).writerows(cells)
  text = sink.getvalue()
  if 'text' in one.damages:
    text = damage_text(rng, one, text)
  content = text.encode()
  if 'bytes' in one.damages:
    content = damage_bytes(rng, content)
  name = f'a.{"tsv" if kind == "tsv" else "csv"}'
  if not compressed(rng, one, content, name):
    return one
  try:
    lines = content.decode('utf-8-sig')
    read = list(
      csv.reader(
        io.StringIO(lines, newline=''), delimiter=separator, strict=True
      )
    )
  except (UnicodeDecodeError, csv.Error):
    return one
  read = [row for row in read if row]
  if read and all(len(row) == len(read[0]) for row in read):
    head = [' '.join(name.split()) for name in read[0]]
    if len(set(head)) == len(head):
      one.rows = [dict(zip(head, row, strict=True)) for row in read[1:]]
  return one


def damage_columns(rng, one, cells):
  place = rng.randrange(len(cells[0]))
  match rng.choice(['drop', 'twice', 'unnamed', 'spaces']):
    case 'drop':
      for row in cells:
        del row[place]
    case 'twice':
      for row in cells:
        row.append(row[place])
    case 'unnamed':
      for row in cells:
        row.append('')
    case _:
      one.damages -= {'columns'}
      one.damages |= {'spaces'}
      for row in cells:
        row[place] = f' {row[place]}  '


def damage_rows(rng, one, cells):
  place = rng.randrange(len(cells))
  match rng.choice(['short', 'long', 'header', 'empty', 'only header', 'none']):
    case 'short':
      cells[place] = cells[place][:-1]
    case 'long':
      cells[place] = [*cells[place], '1']
    case 'header':
      one.damages -= {'rows'}
      one.damages |= {'header again'}
      cells.insert(place + 1, list(cells[0]))
    case 'empty':
      one.damages -= {'rows'}
      one.damages |= {'blank lines'}
      cells.insert(place + 1, [])
    case 'only header':
      del cells[1:]
    case _:
      cells.clear()


def damage_text(rng, one, text):
  place = rng.randrange(len(text) + 1)
  match rng.choice(
    ['quote', 'cut', 'bom', 'huge', 'nul', 'cr', 'other', 'line']
  ):
    case 'quote':
      for _ in range(rng.choice([1, 2])):
        place = rng.randrange(len(text) + 1)
        text = f'{text[:place]}"{text[place:]}'
      return text
    case 'cut':
      return text[:place]
    case 'bom':
      one.damages -= {'text'}
      one.damages |= {'bom'}
      return f'\ufeff{text}'
    case 'huge':
      return (
        f'{text[:place]}{"9" * rng.choice([400, 5000, 200_000])}{text[place:]}'
      )
    case 'nul':
      return f'{text[:place]}\0{text[place:]}'
    case 'cr':
      return f'{text[:place]}\r{text[place:]}'
    case 'line':
      return f'{text[:place]}\n{text[place:]}'
    case _:
      other = rng.choice(';|,\t.\u2212\u00a0 _٣')
      return f'{text[:place]}{other}{text[place:]}'


def damage_bytes(rng, content):
  place = rng.randrange(len(content) + 1)
  return content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :]


def compressed(rng, one, content, name):
  """Stores the content as it is, or in an archive, which may be cut off.

  Returns whether it is whole.
  """
  one.content, one.name = content, name
  match rng.randrange(15):
    case 0:
      one.content, one.name = gzip.compress(content), f'{name}.gz'
    case 1:
      one.content, one.name = zstd(content), f'{name}.zst'
    case 2:
      one.damages.add('binary')
      one.content = damage_bytes(rng, gzip.compress(content))
      one.name = f'{name}.gz'
      return False
    case 3:
      one.damages.add('binary')
      one.content = damage_bytes(rng, zstd(content))
      one.name = f'{name}.zst'
      return False
    case 4:
      one.damages.add('archive')
      pack, suffix = rng.choice([(gzip.compress, 'gz'), (zstd, 'zst')])
      one.content = pack(content)[: -rng.randrange(1, 20)]
      one.name = f'{name}.{suffix}'
      return False
  return True


def zstd(content):
  """One frame of raw blocks: RFC 8878, section 3.1."""
  blocks = [
    content[i : i + 100_000] for i in range(0, len(content), 100_000)
  ] or [b'']
  frame = b'\x28\xb5\x2f\xfd\x80\x58' + len(content).to_bytes(4, 'little')
  for i, block in enumerate(blocks):
    frame += (len(block) << 3 | (i == len(blocks) - 1)).to_bytes(
      3, 'little'
    ) + block
  return frame


def records_case(rng, kind, one, names, rows):
  if 'cells' in one.damages:
    spoil_cells(rng, rows, OTHER)
  records = [dict(zip(names, row, strict=True)) for row in rows]
  if 'columns' in one.damages:
    name = rng.choice(names)
    for record in records if rng.random() < 0.5 else records[:1]:
      del record[name]
  if 'rows' in one.damages:
    match rng.randrange(4):
      case 0:
        records.clear()
      case 1:
        records.insert(rng.randrange(len(records) + 1), {})
      case 2:
        records[rng.randrange(len(records))] = rng.choice([3, None, [1], 'x'])
      case _:
        records[0] = {**records[0], 'x' * rng.choice([1, 10**5]): '\n' * 9}
  if kind == 'parquet':
    return parquet_case(rng, one, names, records)
  if kind == 'json':
    text = json.dumps(
      records, indent=rng.choice([None, 1]), ensure_ascii=rng.random() < 0.5
    )
  else:
    text = ''.join(
      json.dumps(r, ensure_ascii=rng.random() < 0.5) + '\n' for r in records
    )
  if 'text' in one.damages:
    text = damage_text(rng, one, text)
  content = text.encode()
  if 'bytes' in one.damages:
    content = damage_bytes(rng, content)
  if not compressed(rng, one, content, f'a.{kind}'):
    return one
  try:
    text = content.decode('utf-8-sig')
    found = (
      json.loads(text)
      if kind == 'json'
      else [json.loads(line) for line in text.split('\n') if line.strip()]
    )
  except ValueError:
    return one
  if isinstance(found, list) and all(isinstance(r, dict) for r in found):
    one.rows = [{' '.join(k.split()): v for k, v in r.items()} for r in found]
  return one


def parquet_case(rng, one, names, records):
  records = [r for r in records if isinstance(r, dict)]
  sink = io.BytesIO()
  try:
    frame = pl.DataFrame(
      records, infer_schema_length=None, strict=rng.random() < 0.5
    )
    frame.write_parquet(sink)
  except (pl.exceptions.PolarsError, TypeError, OverflowError, ValueError):
    pl.DataFrame({'loss': [1.0]}).write_parquet(sink)
    frame = pl.DataFrame({'loss': [1.0]})
  one.content, one.name = sink.getvalue(), 'a.parquet'
  one.rows = [
    {' '.join(k.split()): v for k, v in r.items()} for r in frame.to_dicts()
  ]
  if one.damages & {'text', 'bytes'}:
    one.damages.add('binary')
    one.rows = None
    one.content = damage_bytes(rng, one.content)
    if rng.random() < 0.3:
      one.content = one.content[: rng.randrange(len(one.content))]
  return one


def expected(one):
  """The rows that a fit can use, by number, and its columns; by the reader alone."""
  header = {k for row in one.rows for k in row}
  place = {}
  for q, own in SYMBOLS.items():
    place[q] = one.columns.get(q) or next(
      (n for n in (q, own) if n in header), None
    )
  for q in ('loss', 'weight'):
    place[q] = one.columns.get(q) or (q if q in header else None)
  found = {
    q: np.array([number(row.get(name), one.comma) for row in one.rows], float)
    for q, name in place.items()
    if name in header
  }
  good = {q: (v >= 1e-30) & (v <= 1e30) for q, v in found.items()}
  wanted = {q for q, own in SYMBOLS.items() if own in one.needs}
  if 'tokens' not in found and (not one.needs or 'tokens' in wanted):
    wanted |= {'flops', 'params'}
  needed = [
    q for q, usable in good.items()
    if q in {'loss', 'weight', *one.columns}
    or (q in wanted if one.needs else 2 * usable.sum() > len(usable))
  ]  # fmt: skip
  keep = (
    np.all([good[q] for q in needed], axis=0) if needed else np.zeros(0, bool)
  )
  return place, found, good, needed, keep


def check(one, folder):
  """Returns whether the table was read."""
  path = folder / one.name
  path.write_bytes(one.content)
  start = time.monotonic()
  try:
    table = tables.read(path, one.columns, needs=one.needs)
  except errors.UserError as error:
    line = str(error)
    assert '\n' not in line and '\r' not in line and len(line) < 2000
    if one.rows and one.damages <= HARMLESS:
      place, found, good, needed, keep = expected(one)
      asked = {q for q, own in SYMBOLS.items() if own in one.needs}
      derived = {'flops', 'params'} <= set(found)
      assert not (
        keep.any() and {'loss', *one.columns} - {'run'} <= set(found)
        and asked <= {*found, *(['tokens'] if derived else [])}
      ), line  # fmt: skip
    return False
  assert time.monotonic() - start < 10
  if 'binary' in one.damages:
    return True
  if one.rows is None:  # A JSON line that was cut off at the end of the file.
    assert any('cut off' in flag for flag in table.flags), one.damages
    return True
  place, found, good, needed, keep = expected(one)
  assert table.rows == keep.sum() and table.dropped == (~keep).sum()
  for q in needed:
    np.testing.assert_allclose(
      table.columns[SYMBOLS.get(q, q)], found[q][keep], rtol=1e-15, err_msg=q
    )
  for q in set(found) - set(needed):
    symbol = SYMBOLS.get(q, q)
    if symbol in table.columns and 'tokens' not in table.filters:
      assert good[q].all()
      np.testing.assert_allclose(
        table.columns[symbol], found[q][keep], rtol=1e-15
      )
  lost = {
    place[q]: (np.flatnonzero(~good[q]) + 1).tolist()
    for q in needed
    if not good[q].all()
  }
  assert table.filters.get('left_out', {}) == lost
  name = one.columns.get('run') or ('run' if 'run' in one.rows[0] else None)
  if name and any(name in row for row in one.rows):
    labels = [one.rows[i].get(name) for i in np.flatnonzero(keep)]
    blank = [c is None or c != c or not str(c).strip() for c in labels]
    if any(blank):
      assert any(f'{sum(blank)} of' in flag for flag in table.flags)
    named = {i for i, no in enumerate(blank) if not no}
    assert {table.run[i] for i in named} == {
      str(labels[i]).strip().strip('\0') for i in named
    }
    assert len(set(table.run)) == len({table.run[i] for i in named}) + sum(
      blank
    )
  return True


@pytest.mark.parametrize(
  'seeds', [range(60), pytest.param(range(60, 2060), marks=pytest.mark.slow)]
)
def test_any_table_is_read_as_it_is_or_refused_in_a_line(tmp_path, seeds):
  read = 0
  for seed in seeds:
    one = case(seed)
    try:
      read += check(one, tmp_path)
    except Exception as error:
      raise AssertionError(f'seed {seed}: {one.damages}') from error
  assert read > len(seeds) / 4


def aborting_parquet(columns):
  """A page that claims to have an exabyte, of which Rust aborts a process."""
  content = bytearray(points.parquet_bytes(columns))
  content[14] = 1
  return bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['csv', 'jsonl', 'parquet', 'csv.gz'])
def test_the_command_refuses_a_damaged_table_in_a_line(tmp_path, suffix):
  columns = points.columns(12)
  text = points.text(columns).encode()
  content = {
    'csv': text.replace(b'params', b'par\nams'),
    'jsonl': json.dumps({'loss': 1.0, 'par\nams': 1}).encode() + b'\n\xff\n',
    'parquet': aborting_parquet(columns),
    'csv.gz': gzip.compress(text)[:-20],
  }[suffix]
  path = tmp_path / f'a.{suffix}'
  path.write_bytes(content)
  done = subprocess.run(
    [
      sys.executable, '-m', 'familial', 'fit', f'--table={path}',
      f'--out={tmp_path / "out"}', '--form=chinchilla', '--nodraw',
    ],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.startswith('familial: ') and done.stderr.count('\n') == 1
  assert not (tmp_path / 'out').exists()
