"""What users rely on: runs, flags, config keys and refusals stay as they were."""

from collections.abc import Iterator
import dataclasses
import importlib
import json
import pathlib
import re
from typing import Any

from absl import flags as absl_flags
import pytest

from familial.allocation import config as replay_config
from familial.cli import main
from familial.data import config as data_config
from familial.expansion import config as growth_config
from familial.model import config as model_config
from familial.studies import depth_law
from familial.studies import depth_regimes
from familial.studies import depth_toys
from familial.studies import execution
from familial.studies import families
from familial.studies import isoflop
from familial.studies import live_allocation
from familial.studies import registry
from familial.training import config as train_config
from tests.golden import keys
from tests.golden import record
from tests.golden import refusals

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
# The dataclass of each section of a config.
SECTIONS = {
  'data': data_config.DataConfig,
  'model': model_config.ModelConfig,
  'train': train_config.TrainConfig,
  'layout': train_config.LayoutConfig,
  'growth': growth_config.GrowthConfig,
  'run': train_config.RunConfig,
  'isoflop': isoflop.Config,
  'isoflop.rules': isoflop.Rules,
  'isoflop.grid': isoflop.Grid,
  'isoflop.arms.*': isoflop.Arm,
  'isoflop.fit': isoflop.Fit,
  'isoflop.assumed': isoflop.AssumedLaw,
  'families': families.Config,
  'families.ways.*': families.Way,
  'allocation': live_allocation.Config,
  'allocation.law': replay_config.Law,
  'replay': replay_config.ReplayConfig,
  'depth': depth_law.Config,
  'regimes': depth_regimes.Config,
  'toys': depth_toys.Config,
  'toys.studies.*': depth_toys.Group,
}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
  monkeypatch.chdir(record.ROOT)  # Where default configs are looked for.


def test_no_experiment_is_left_out():
  names = {path.stem for path in record.EXPERIMENTS.glob('*.py')}
  assert names == {*EXPERIMENTS, 'train_on', 'grow'}


@pytest.mark.parametrize('name', EXPERIMENTS)
def test_the_runs_of_each_variant(name):
  record.check(
    f'runs/{name}',
    {arg: _pack(_runs(name, arg)) for arg in EXPERIMENTS[name]},
    levels=3,
    unpack=_unpack,
  )


def test_the_flags_of_each_command():
  flags = {}
  for name in main.COMMANDS:
    values = absl_flags.FlagValues()
    main.load(name).define(values)
    flags[name] = {flag: _flag(values, flag) for flag in values}
  record.check('flags', flags, levels=2)


def test_the_templates_that_experiments_fill():
  # Templates of schema 1 have no `kind`.
  names = {'study': 'isoflop', 'regimes': 'depth_regimes'}
  studies = ('families', 'allocation', 'depth', 'regimes', 'depth_toys')
  templates = {
    name: registry.STUDIES[names.get(name, name)].template().to_dict()
    for name in ('study', *studies)
  }
  for values in templates.values():
    del values['kind']
  templates['replay'] = replay_config.template().to_dict()
  templates['run'] = train_config.template().to_dict()
  record.check('templates', templates, levels=3)


def test_the_keys_of_each_config():
  defaults = {
    name: {field.name: _default(field) for field in dataclasses.fields(section)}
    for name, section in SECTIONS.items()
  }
  record.check('config_keys', defaults, levels=2)


def test_the_keys_of_the_stored_files():
  if record.RECORDING:
    record.write(keys.NAME, keys.observed(), levels=2)
  problems = [
    f'{path}: {line}'
    for kind in keys.KINDS
    for path, values, is_current in keys.stored(kind)
    for line in keys.differences(kind, values, whole=is_current)
  ]
  assert not problems, '\n'.join(problems[:20])


@pytest.mark.parametrize(
  ('changes', 'parts'),
  [
    ({'loss_per_byte': ...}, 'loss_per_byte: is missing'),
    ({'nats': 1.0}, 'nats: is number, was not there'),
    ({'step': '3'}, 'step: is string, was number'),
    ({'exit_layers': [1, 'two']}, 'exit_layers[]: is string, was number'),
  ],
)
def test_a_row_with_other_keys_is_noticed(changes, parts):
  row = next(rows[0] for _, rows, _ in keys.stored('metrics.jsonl'))
  assert not list(keys.differences('metrics.jsonl', [row]))
  changed = {k: v for k, v in (row | changes).items() if v is not ...}
  [line] = keys.differences('metrics.jsonl', [row, changed])
  assert line.startswith(parts)


@pytest.fixture(scope='module')
def damaged(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A folder of files that are refused."""
  folder = tmp_path_factory.mktemp('damaged')
  for name, text in refusals.DAMAGED.items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
  return folder


def _refused() -> Iterator[tuple[str, tuple[str, ...]]]:
  """Yields each command that is refused, and what its line contains."""
  out = {'plan': '--topology=none --out', 'run': '--workdir'}
  for command, overrides in refusals.OVERRIDES.items():
    folder = out.get(command.split()[0], '--out')
    for override, *parts in overrides:
      yield (
        f'{command} {folder}={{new}} --config.{override}',
        tuple(parts or override.split('=', 1)),
      )
  for command, *parts in refusals.COMMANDS:
    yield command, tuple(parts)


@pytest.mark.parametrize(('command', 'parts'), list(_refused()))
def test_what_is_refused_is_one_line(
  familial, tmp_path, damaged, command, parts
):
  def filled(text: str) -> str:
    return text.format(new=tmp_path / 'new', bad=damaged)

  status, out, err = familial(*filled(command).split())
  assert (status, out) == (2, '')
  assert err.startswith('familial: ') and err.count('\n') == 1
  for part in map(filled, parts):
    # As a word: 0 is neither in 10 nor in 1.0, but in 0.0.
    word = rf'(?<!\w)(?<!\d\.){re.escape(part)}(?!\w|\.[1-9])'
    assert re.search(word, err), (part, err)


def _runs(experiment: str, variant: str) -> list[dict[str, Any]]:
  """Returns the runs of a variant; its one config where it trains none."""
  module = importlib.import_module(f'experiments.{experiment}')
  config = module.get_config(*[variant] if variant else [])
  if 'noises' in config:
    return [dataclasses.asdict(replay_config.read(config))]
  study = registry.of_config(config)
  if study is None:
    return [dataclasses.asdict(train_config.read(config))]
  read = study.read_config(config)
  if not isinstance(study, execution.TrainedStudy):
    return [dataclasses.asdict(read)]
  return [dataclasses.asdict(run) for run in study.runs(read)]


def _flag(values: absl_flags.FlagValues, name: str) -> dict[str, Any]:
  """Returns a flag's type and default, and what it allows."""
  flag = values[name]
  entry = {'type': flag.flag_type(), 'default': flag.default}
  for key, value in (
    ('values', getattr(flag.parser, 'enum_values', None)),
    ('least', getattr(flag.parser, 'lower_bound', None)),
    ('most', getattr(flag.parser, 'upper_bound', None)),
  ):
    if value is not None:
      entry[key] = value
  try:
    for validator in flag.validators:
      validator.verify(values)
  except absl_flags.ValidationError:
    entry['required'] = True
  return entry


def _default(field: dataclasses.Field[Any]) -> Any:
  if field.default_factory is not dataclasses.MISSING:
    value = field.default_factory()
  elif field.default is not dataclasses.MISSING:
    value = field.default
  else:
    return '<required>'
  return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value


def _pack(runs: list[dict[str, Any]]) -> dict[str, Any]:
  """Returns what all runs share, and a row of the rest for each."""
  flat = [_flat(run) for run in runs]
  assert all(run.keys() == flat[0].keys() for run in flat)
  common = {
    key: value
    for key, value in flat[0].items()
    if len({json.dumps(run[key]) for run in flat}) == 1  # 1 is not 1.0.
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
