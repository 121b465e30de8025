"""What users rely on: runs, flags, config keys and refusals stay as they were."""

from typing import Any

import pytest

from tests.golden import access
from tests.golden import record

# Not here, for they need the folder of a trained model: train_on and grow.
EXPERIMENTS = {
  'quickstart': [''],
  'familial_law': ['test', 'cpu', 'gpu', 'paper', 'rates'],
  'expansion': ['test', 'cpu', 'operators', 'gpu', 'paper'],
  'three_families': ['test', 'cpu', 'gpu', 'paper'],
  'allocation_live': ['test', 'cpu', 'gpu', 'paper'],
  'depth_law': ['test', 'cpu', 'gpu', 'paper'],
  'depth_regimes': ['test', 'cpu', 'gpu'],
  'single': ['', '1b', '8b'],
  # Of these the config.
  'allocation': ['test', 'synthetic', 'other_law', 'nanogpt', 'savings'],
  'depth_toys': ['test', 'cpu', 'gpu'],
}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.chdir(access.ROOT)  # Where default configs are looked for.


def test_no_experiment_is_left_out():
  names = {path.stem for path in (access.ROOT / 'experiments').glob('*.py')}
  assert names == {*EXPERIMENTS, 'train_on', 'grow'}


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_the_runs_of_each_variant(name):
  record.check(
    f'runs/{name}',
    {arg: _pack(access.runs(name, arg)) for arg in EXPERIMENTS[name]},
    levels=3,
    unpack=_unpack,
  )


def test_the_flags_of_each_command():
  record.check('flags', access.flags(), levels=2)


def test_the_templates_that_experiments_fill():
  record.check('templates', access.templates(), levels=3)


def test_the_keys_of_each_config():
  record.check('config_keys', access.config_keys(), levels=2)


def _pack(runs: list[dict[str, Any]]) -> dict[str, Any]:
  """Returns what all runs share, and a row of the rest for each."""
  flat = [_flat(run) for run in runs]
  assert all(run.keys() == flat[0].keys() for run in flat)
  common = {
    key: value
    for key, value in flat[0].items()
    if all(run[key] == value for run in flat)
  }
  keys = [key for key in flat[0] if key not in common]
  return {
    'common': common,
    'keys': keys,
    'rows': [[run[key] for key in keys] for run in flat],
  }


def _unpack(variants: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
  """Returns the runs of each variant, each with all that it is."""
  return {
    arg: [
      packed['common'] | dict(zip(packed['keys'], row, strict=True))
      for row in packed['rows']
    ]
    for arg, packed in variants.items()
  }


def _flat(value: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns {'model.width': 8} for {'model': {'width': 8}}."""
  flat: dict[str, Any] = {}
  for key, item in value.items():
    if isinstance(item, dict) and item:
      flat |= _flat(item, f'{prefix}{key}.')
    else:
      flat[prefix + key] = item
  return flat
