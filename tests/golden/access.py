"""Where the package keeps what the golden tests look at.

The only file of `tests/golden` that names internal modules: when these move,
this file follows, and the tests and their data stay.
"""

import contextlib
import dataclasses
import importlib.util
import io
import pathlib
import sys
from typing import Any
from unittest import mock

from absl import flags as absl_flags

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

ROOT = pathlib.Path(__file__).parents[2]


def run(*arguments: str) -> tuple[int, str, str]:
  """Returns the status of a command, and what it prints and warns of."""
  out, err = io.StringIO(), io.StringIO()
  for name in ('config', 'to'):  # A process loads one config of each name.
    sys.modules.pop(f'{name}_config', None)
  with (
    mock.patch.object(sys, 'argv', ['familial', *arguments]),
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
  ):
    try:
      main.main()
    except SystemExit as end:
      return int(end.code or 0), out.getvalue(), err.getvalue()
  raise AssertionError('a command ends by SystemExit')


def flags() -> dict[str, absl_flags.FlagValues]:
  """Returns the flags that each command declares."""
  found = {}
  for name in main.COMMANDS:
    found[name] = absl_flags.FlagValues()
    main.load(name).define(found[name])
  return found


def runs(experiment: str, variant: str) -> list[dict[str, Any]]:
  """Returns the runs of an experiment's variant.

  Of an experiment that trains no runs of its own, its one config.
  """
  path = ROOT / 'experiments' / f'{experiment}.py'
  spec = importlib.util.spec_from_file_location(experiment, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
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


def templates() -> dict[str, dict[str, Any]]:
  """Returns what a config of each kind holds before an experiment fills it.

  `kind`, which templates of schema 1 lacked, is left out.
  """
  names = {
    'study': isoflop.ISOFLOP,
    'families': families.FAMILIES,
    'allocation': live_allocation.LIVE,
    'depth': depth_law.DEPTH,
    'regimes': depth_regimes.REGIMES,
    'depth_toys': depth_toys.TOYS,
  }
  found = {name: study.template().to_dict() for name, study in names.items()}
  for values in found.values():
    del values['kind']
  found['replay'] = replay_config.template().to_dict()
  found['run'] = train_config.template().to_dict()
  return found


def sections() -> dict[str, type]:
  """Returns the dataclass of each section of a config."""
  return {
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
