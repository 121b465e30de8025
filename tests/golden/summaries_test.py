"""No number of a study's summary is lost, whatever form the summary takes.

`tests/data/golden/summaries.json` holds the numbers of each summary, by section, as
they were recorded; each must be among those of the summary that is computed now,
as often as it was. Keys that only say which row it is (`_NAMES`) may be repeated
more or less often, and sections may be called and cut otherwise.

Two kinds of folders: published results, whose rows, fits and plans are kept, and
tiny studies of `tests/data/schema_1`, which keep all but models and samples.
"""

from collections.abc import Iterator
import dataclasses
import importlib
import json
import math
import os
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from familial.core import run_folder
from familial.core import storage
from familial.laws import selection
from familial.studies import depth_toys
from familial.studies import families
from familial.studies import registry
from familial.studies import study as study_lib
from tests.golden import record

# The experiment and the variant of each folder of published results.
PUBLISHED = {
  'familial_law_cpu': ('familial_law', 'cpu'),
  'three_families_cpu': ('three_families', 'cpu'),
  'expansion_cpu': ('expansion', 'cpu'),
  'expansion_operators': ('expansion', 'operators'),
  'depth_law_cpu': ('depth_law', 'cpu'),
  'depth_toys_cpu': ('depth_toys', 'cpu'),
  'allocation_live_cpu': ('allocation_live', 'cpu'),
}

# What is not computed again, by study and section, and why.
EXCEPTIONS = {
  '*': {
    'schema': 'a version, no number',
    'machine': 'words, and another machine',
    'cost.seconds': 'a clock, which results keep no rows of',
    'seconds': 'a clock',
    'level': 'the level of every interval, core.estimate.LEVEL',
  },
  'isoflop': {
    'leverage': 'no intervals where over half of the resamples fail, as here'
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
  _compare(name, _of_results(name, tmp_path / 'study'))


@pytest.mark.parametrize('name', marked(TINY))
def test_of_tiny_studies(name, tmp_path, monkeypatch):
  copy = tmp_path / 'schema_1'
  shutil.copytree(record.SCHEMA_1, copy)
  monkeypatch.chdir(copy)
  _compare(name, _of_study(copy / name))


def test_a_number_that_is_lost_or_changed_is_missed():
  known = {'numbers': [1.0, 1.0, 2.5], 'names': [3]}
  assert not list(_missing(known, {'numbers': [0.5, 1, 1, 2.5], 'names': [3]}))
  assert not list(_missing(known, {'numbers': [1, 1, 2.5, 3], 'names': []}))
  for other in ([1.0, 2.5], [1.0, 1.0, 2.5001], [1.0, 1.0, -2.5]):
    assert list(_missing(known, {'numbers': other, 'names': [3]}))
  assert list(_missing(known, {'numbers': [1, 1, 2.5], 'names': [4]}))


def _compare(name: str, summary: dict[str, Any]) -> None:
  everything = _numbers(summary)
  if record.RECORDING:
    recorded = record.read('summaries')
    recorded[name] = {
      section: _numbers(value) for section, value in summary.items()
    }
    record.write('summaries', recorded, levels=2)
  for section, known in record.read('summaries')[name].items():
    if section in {**EXCEPTIONS['*'], **EXCEPTIONS.get(name, {})}:
      continue
    missing = list(_missing(known, everything))
    assert not missing, (
      f'{name}: {section}: {len(missing)} of {len(known["numbers"])} numbers'
      f' are missing: {missing[:5]}'
    )


def _numbers(value: Any) -> dict[str, list[float]]:
  found: dict[str, list[float]] = {'numbers': [], 'names': []}
  for key, number in _leaves(value, ''):
    # `exit` and others also are keys of statistics.
    named = key in _NAMES and (number.is_integer() or key == 'temperature')
    found['names' if named else 'numbers'].append(number)
  return {
    'numbers': sorted(found['numbers']),
    'names': sorted({*found['names']}),
  }


def _leaves(value: Any, key: str) -> Iterator[tuple[str, float]]:
  """Yields each number with the key that it stands under."""
  if isinstance(value, dict):
    for name, item in value.items():
      yield from _leaves(item, name)
  elif isinstance(value, list):
    for item in value:
      yield from _leaves(item, key)
  elif isinstance(value, float | int) and not isinstance(value, bool):
    if math.isfinite(value):
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


def _of_results(name: str, workdir: pathlib.Path) -> dict[str, Any]:
  """Computes the summary of `experiments/results/NAME` once more.

  Laws that lie beside the rows are read, the others are fitted.

  Args:
    name: of the results.
    workdir: gets a study's folder as far as the results give it.
  """
  results = record.RESULTS / name
  experiment, variant = PUBLISHED[name]
  module = importlib.import_module(f'experiments.{experiment}')
  config = module.get_config(variant)
  study = registry.of_config(config)
  if name == 'depth_toys_cpu':
    summary = storage.read_json(results / 'summary.json')
    return _toys(study.read_config(config), summary['tables']['losses'])
  if name == 'allocation_live_cpu':
    # Its laws and replays need whole curves.
    config.full, config.law.form = False, ''
  workdir.mkdir()
  for kept in ('plan.json', 'rounds.jsonl', 'fits'):
    if (results / kept).exists():
      os.symlink(results / kept, workdir / kept)
  rows = storage.read_rows(results / 'rows.jsonl')
  for row in rows:
    run = workdir / 'cells' / row['run']
    run.mkdir(parents=True, exist_ok=True)
    storage.append(run / run_folder.ROWS, [row])
  read = study.read_config(config)
  for run, lineage in _lineages(study, read, rows):
    storage.write_json(workdir / 'cells' / run / 'lineage.json', lineage)
  return _summarised(study, read, workdir)


def _of_study(workdir: pathlib.Path) -> dict[str, Any]:
  """Computes the summary of a study's folder once more.

  Laws that lie in it are read; where there are none they are fitted.
  """
  study = registry.of_plan(storage.read_json(workdir / 'plan.json'))
  config = storage.read_json(workdir / 'config.json')
  config.pop('schema')
  return _summarised(study, study.read_config(config), workdir)


def _summarised(
  study: study_lib.Study[Any, Any], config: Any, workdir: pathlib.Path
) -> dict[str, Any]:
  results = study_lib.read(workdir)
  with pytest.MonkeyPatch.context() as patch:
    # What needs models or the toys' students, which are not kept.
    patch.setattr(families, '_agreement', lambda *_: ())
    patch.setattr(depth_toys, 'trained', lambda *_: iter(()))
    if (workdir / 'fits').exists():
      patch.setattr(selection, 'compare', lambda *_, **__: None)
    if hasattr(study, 'fit'):
      list(study.fit(config, results))
    summary = study.summarise(config, study_lib.read(workdir))
  return json.loads(json.dumps(dataclasses.asdict(summary)))


def _lineages(
  study: study_lib.Study[Any, Any], config: Any, rows: list[storage.Row]
) -> Iterator[tuple[str, storage.Row]]:
  """Yields each run and its lineage: what the runs before it had spent."""
  ends = {row['run']: row for row in rows}
  if study.kind == 'families':
    parents = {
      run.cell: run.train.init_from.removeprefix('../')
      for run in families.FAMILIES.runs(config)
    }
  else:
    # A frozen trunk is that of the grid's dense run of the same shape.
    parents = {
      run: run.partition('_frozen_')[0].rpartition('_g')[0] + '_g1'
      for run, row in ends.items()
      if row['arm'] == 'frozen'
    }

  def windows(run: str) -> int:
    parent = parents.get(run)
    if not parent:
      return 0
    return windows(parent) + ends[parent]['tokens'] // config.data.seq_len

  for run in ends:
    parent = parents.get(run)
    yield (
      run,
      {
        'inherited_flops': ends[parent]['flops'] if parent else 0.0,
        'inherited_windows': windows(run),
      },
    )


def _toys(config: depth_toys.Config, losses: list[storage.Row]) -> Any:
  """Returns the toys' tables from their losses in the recorded summary.

  The students' files, which hold the same losses, are not kept.
  """
  found = depth_toys._Found()
  for name, group in config.studies.items():
    members = depth_toys.members(config, name)
    rows = [row for row in losses if row['study'] == name]
    steps = sorted({row['steps'] for row in rows})
    curves = np.full((2, len(steps), len(group.depths), len(members)), np.nan)
    for row in rows:
      member = depth_toys.Member(
        row['teacher'], row['number'], row['temperature']
      )
      at = steps.index(row['steps']), group.depths.index(row['depth'])
      curves[:, *at, members.index(member)] = row['loss'], row['error']
    result = {
      'loss': curves[0].tolist(),
      'error': curves[1].tolist(),
      'steps': steps,
      'members': [member._asdict() for member in members],
    }
    found.add(name, group, result)
  return json.loads(json.dumps(dataclasses.asdict(found.tables())))
