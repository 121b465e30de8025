"""Values that must not change, kept as JSON below tests/data/golden.

With FAMILIAL_RECORD_GOLDEN=1 in the environment the tests write what they find
instead of comparing it; `git diff tests/data/golden` then shows what changed.
"""

from collections.abc import Callable
from collections.abc import Iterator
import json
import math
import os
import pathlib
import textwrap
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENTS = ROOT / 'experiments'
RESULTS = EXPERIMENTS / 'results'
# Folders as schema 1 has them.
SCHEMA_1 = ROOT / 'tests' / 'data' / 'schema_1'
FOLDER = ROOT / 'tests' / 'data' / 'golden'
RECORDING = os.environ.get('FAMILIAL_RECORD_GOLDEN') == '1'
# Powers and logarithms differ by some 1e-16 between mathematical libraries.
TOLERANCE = 1e-12


def check(
  name: str,
  value: Any,
  levels: int,
  unpack: Callable[[Any], Any] = lambda value: value,
) -> None:
  """Compares a value with the record of this name, or records it.

  Args:
    name: of the file below tests/data/golden, without .json.
    value: of JSON's types; tuples are lists.
    levels: of nesting that the file spreads over lines.
    unpack: from what the file holds to what is compared.
  """
  value = json.loads(json.dumps(value))
  write(name, value, levels)
  changes = list(differences(unpack(read(name)), unpack(value)))
  assert not changes, '\n'.join([f'{path(name)}:', *changes[:20]])


def check_entry(name: str, key: str, value: Any, rel: float = 1e-6) -> None:
  """Compares or records one entry of a record, to a relative tolerance."""
  value = json.loads(json.dumps(value))
  if RECORDING:
    known = read(name) if path(name).exists() else {}
    write(name, {**known, key: value}, levels=1)
  changes = list(differences(read(name)[key], value, key, rel))
  assert not changes, '\n'.join([f'{path(name)}:', *changes[:20]])


def write(name: str, value: Any, levels: int) -> None:
  """Records a value, if this is asked for."""
  if RECORDING:
    path(name).parent.mkdir(parents=True, exist_ok=True)
    path(name).write_text(_text(value, levels) + '\n', encoding='utf-8')


def read(name: str) -> Any:
  """Returns a record."""
  return json.loads(path(name).read_text(encoding='utf-8'))


def path(name: str) -> pathlib.Path:
  """Returns the file of a record."""
  return FOLDER / f'{name}.json'


def differences(
  was: Any, now: Any, where: str = '', rel: float = TOLERANCE
) -> Iterator[str]:
  """Yields a line for each place where two values of JSON differ."""
  if isinstance(was, dict) and isinstance(now, dict):
    for key in [*was, *(key for key in now if key not in was)]:
      place = f'{where}.{key}' if where else key
      if key not in now:
        yield f'{place}: was {was[key]!r}, and is missing'
      elif key not in was:
        yield f'{place}: is new, {now[key]!r}'
      else:
        yield from differences(was[key], now[key], place, rel)
  elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
    for index, pair in enumerate(zip(was, now, strict=True)):
      yield from differences(*pair, f'{where}[{index}]', rel)
  elif isinstance(was, float) and isinstance(now, float):
    if not math.isclose(was, now, rel_tol=rel, abs_tol=1e-3 * rel):
      yield f'{where}: was {was!r}, is {now!r}'
  elif type(was) is not type(now) or was != now:
    yield f'{where}: was {was!r}, is {now!r}'


def _text(value: Any, levels: int) -> str:
  if not levels or not value or not isinstance(value, (dict, list)):
    return json.dumps(value)
  if isinstance(value, list):
    brackets, items = '[]', [_text(item, levels - 1) for item in value]
  else:
    brackets, items = '{}', [
      f'{json.dumps(key)}: {_text(item, levels - 1)}'
      for key, item in value.items()
    ]  # fmt: skip
  lines = textwrap.indent(',\n'.join(items), ' ')
  return f'{brackets[0]}\n{lines}\n{brackets[1]}'
