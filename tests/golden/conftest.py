"""Values that were recorded, and how they are compared."""

from collections.abc import Callable
import json
import math
import os
from typing import Any

import pytest

from tests.golden import numbers_access

# Set, values are recorded instead of compared: RECORD=1 pytest tests/golden.
_RECORD = os.environ.get('RECORD') == '1'
_DIGITS = 10


@pytest.fixture
def golden() -> Callable[..., None]:
  """Compares a value with the one recorded under a name."""

  def check(file: str, name: str, found: Any, rel: float = 1e-6) -> None:
    path = numbers_access.GOLDEN / f'{file}.json'
    known = numbers_access.read_json(path) if path.exists() else {}
    if _RECORD:
      known[name] = _rounded(found)
      lines = (
        f'{json.dumps(key)}: {json.dumps(known[key], separators=(",", ":"))}'
        for key in sorted(known)
      )
      path.write_text('{\n' + ',\n'.join(lines) + '\n}\n', 'utf-8')
      return
    wrong = list(_differences(known[name], found, rel, name))
    assert not wrong, '; '.join(wrong[:5])

  return check


def _rounded(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _rounded(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_rounded(item) for item in value]
  if isinstance(value, float):
    return float(f'{value:.{_DIGITS}g}') if math.isfinite(value) else None
  return value


def _differences(known: Any, found: Any, rel: float, where: str):
  """Yields what differs: floats by more than `rel`, everything else at all."""
  if isinstance(known, dict) and isinstance(found, dict):
    if known.keys() != found.keys():
      yield f'{where}: {sorted(known.keys() ^ found.keys())} in one alone'
    for key in known.keys() & found.keys():
      yield from _differences(known[key], found[key], rel, f'{where}.{key}')
  elif isinstance(known, list) and isinstance(found, (list, tuple)):
    if len(known) != len(found):
      yield f'{where}: {len(found)} values, not {len(known)}'
    for i, (one, other) in enumerate(zip(known, found, strict=False)):
      yield from _differences(one, other, rel, f'{where}[{i}]')
  elif isinstance(known, float) and isinstance(found, (int, float)):
    if not math.isclose(known, found, rel_tol=rel, abs_tol=1e-9):
      yield f'{where}: {found!r}, not {known!r}'
  elif known is None and isinstance(found, float) and not math.isfinite(found):
    pass
  elif known != found:
    yield f'{where}: {found!r}, not {known!r}'
