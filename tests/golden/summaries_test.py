"""No number of a study's summary is lost, whatever form the summary takes.

`tests/data/golden/summaries.json` holds the numbers of each summary, by section, as
they were recorded; each must be among those of the summary that is computed now,
as often as it was. Keys that only say which row it is (`_NAMES`) may be repeated
more or less often, and sections may be called and cut otherwise.

Two kinds of folders: published results, whose rows, fits and plans are kept, and
tiny studies of `tests/data/schema_1`, which keep all but models and samples.
"""

from collections.abc import Iterator
import json
import math
import os
import shutil
from typing import Any

import pytest

from tests.golden import numbers_access as access

# What is not computed again, by study and section, and why.
EXCEPTIONS = {
  '*': {
    'schema': 'a version, no number',
    'machine': 'words, and another machine',
    'cost.seconds': 'a clock, which results keep no rows of',
    'seconds': 'a clock',
    'level': 'the level of every interval, core.estimate.LEVEL',
  },
  'familial_law_cpu': {'gradients': 'their rows are not kept'},
  'three_families_cpu': {'agreement': 'its models are not kept'},
  'expansion_cpu': {'agreement': 'its models are not kept'},
  'expansion_operators': {'agreement': 'its models are not kept'},
  'depth_toys_cpu': {
    'teachers': 'a setting: as many as there are numbers in `by_teacher`',
    'regimes': 'its students are not kept',
    'curves.loss': 'what the others are computed from',
    'curves.error': 'what the others are computed from',
  },
  'allocation_live_cpu': {
    section: 'only the ends of its curves are kept'
    for section in ('candidates', 'laws', 'apart', 'replays')
  },
  'families': {'agreement': 'its models are not kept'},
  'depth_toys': {
    'teachers': 'a setting: as many as there are numbers in `by_teacher`',
    'regimes': 'its students are not kept',
    'curves.loss': 'what the others are computed from',
    'curves.error': 'what the others are computed from',
  },
}  # fmt: skip
# Integers and budgets that name a row: not counted.
_NAMES = frozenset({
  'budget', 'seed', 'size', 'exit', 'exits', 'exit_a', 'exit_b', 'layer',
  'width', 'depth', 'heads', 'teacher_depth', 'stages', 'steps', 'step',
  'depths', 'temperature', 'other_seed', 'other_size', 'fitted_on', 'seeds',
})  # fmt: skip
SLOW = ('depth_law_cpu', 'depth_law', 'allocation_live')
PUBLISHED = tuple(access.RESULTS_OF)
TINY = (
  'isoflop', 'families', 'depth_regimes', 'depth_toys', 'depth_law',
  'allocation_live',
)  # fmt: skip


def marked(names):
  return [
    pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
    for name in names
  ]


@pytest.mark.parametrize('name', marked(PUBLISHED))
def test_of_published_results(name, tmp_path):
  _compare(name, access.summary_of_results(name, tmp_path / 'study'))


@pytest.mark.parametrize('name', marked(TINY))
def test_of_tiny_studies(name, tmp_path, monkeypatch):
  copy = tmp_path / 'schema_1'
  shutil.copytree(access.SCHEMA_1, copy)
  monkeypatch.chdir(copy)
  _compare(name, access.summary_of_study(copy / name))


def test_a_number_that_is_lost_or_changed_is_missed():
  known = {'numbers': [1.0, 1.0, 2.5], 'names': [3]}
  assert not list(_missing(known, {'numbers': [0.5, 1, 1, 2.5], 'names': [3]}))
  assert not list(_missing(known, {'numbers': [1, 1, 2.5, 3], 'names': []}))
  for other in ([1.0, 2.5], [1.0, 1.0, 2.5001], [1.0, 1.0, -2.5]):
    assert list(_missing(known, {'numbers': other, 'names': [3]}))
  assert list(_missing(known, {'numbers': [1, 1, 2.5], 'names': [4]}))


def _compare(name: str, summary: dict[str, Any]) -> None:
  path = access.GOLDEN / 'summaries.json'
  recorded = access.read_json(path) if path.exists() else {}
  if os.environ.get('RECORD') == '1':
    recorded[name] = _recorded(name)
    path.write_text(_text(recorded), 'utf-8')
  everything = _numbers(summary, {})
  for section, known in recorded[name].items():
    if section in {**EXCEPTIONS['*'], **EXCEPTIONS.get(name, {})}:
      continue
    missing = list(_missing(known, everything))
    assert not missing, (
      f'{name}: {section}: {len(missing)} of {len(known["numbers"])} numbers'
      f' are missing: {missing[:5]}'
    )


def _recorded(name: str) -> dict[str, dict[str, list[float]]]:
  """Returns the numbers of the summary that lies in a folder, by section."""
  folder = access.SCHEMA_1 if name in TINY else access.RESULTS
  skipped = {**EXCEPTIONS['*'], **EXCEPTIONS.get(name, {})}
  sections = {
    section: _numbers({section: value}, skipped)
    for section, value in access.read_json(
      folder / name / 'summary.json'
    ).items()
  }
  return {
    section: _rounded(numbers)
    for section, numbers in sections.items()
    if any(numbers.values())
  }


def _numbers(value: Any, skipped: Any) -> dict[str, list[float]]:
  found: dict[str, list[float]] = {'numbers': [], 'names': []}
  for key, number in _leaves(value, skipped, '', ''):
    # `exit` and others also are keys of statistics.
    named = key in _NAMES and (number.is_integer() or key == 'temperature')
    found['names' if named else 'numbers'].append(number)
  found['names'] = sorted(set(found['names']))
  found['numbers'].sort()
  return found


def _leaves(
  value: Any, skipped: Any, where: str, key: str
) -> Iterator[tuple[str, float]]:
  """Yields each number with the key that it stands under."""
  if where in skipped or isinstance(value, bool):
    return
  if isinstance(value, dict):
    for name, item in value.items():
      inside = f'{where}.{name}' if where else name
      yield from _leaves(item, skipped, inside, name)
  elif isinstance(value, list):
    for item in value:
      yield from _leaves(item, skipped, where, key)
  elif isinstance(value, (int, float)) and math.isfinite(value):
    yield key, float(value)


def _missing(
  known: dict[str, list[float]], found: dict[str, list[float]]
) -> Iterator[float]:
  """Yields the known numbers that are not found as often, to 1e-6 relative."""
  yield from _not_among(known['numbers'], found['numbers'])
  yield from _not_among(
    known['names'], [*found['names'], *set(found['numbers'])]
  )


def _not_among(known: list[float], found: list[float]) -> Iterator[float]:
  rest = iter(sorted(found))
  other = next(rest, math.inf)
  for number in sorted(known):
    reach = 1e-6 * abs(number) + 1e-12
    while other < number - reach:
      other = next(rest, math.inf)
    if other > number + reach:
      yield number
    else:
      other = next(rest, math.inf)


def _rounded(numbers: dict[str, list[float]]) -> dict[str, list[float]]:
  return {
    key: [float(f'{number:.9g}') for number in values]
    for key, values in numbers.items()
  }


def _text(recorded: dict[str, Any]) -> str:
  """One line a section."""
  studies = []
  for name in sorted(recorded):
    sections = ',\n'.join(
      f' {json.dumps(key)}: {json.dumps(value, separators=(",", ":"))}'
      for key, value in recorded[name].items()
    )
    studies.append(f'{json.dumps(name)}: {{\n{sections}\n}}')
  return '{\n' + ',\n'.join(studies) + '\n}\n'
