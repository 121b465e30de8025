"""Where the package keeps what the golden tests look at.

The only file of `tests/golden` that names internal modules: when these move,
this file follows, and the tests and their data stay.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import pathlib
import sys
from typing import Any
from unittest import mock

from absl import flags as absl_flags

from familial import config as config_lib
from familial import main
from familial.commands import training as training_commands

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
  for name, command in main.COMMANDS.items():
    found[name] = absl_flags.FlagValues()
    command.define(found[name])
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
    return [dataclasses.asdict(config_lib.replay(config))]
  kinds = training_commands._STUDIES
  kind = next((kinds[key] for key in kinds if key in config), None)
  if kind is None:
    return [dataclasses.asdict(config_lib.run(config))]
  study = getattr(config_lib, kind.config)(config)
  if not kind.cells:
    return [dataclasses.asdict(study)]
  room = importlib.import_module(f'familial.studies.{kind.cells}')
  return [dataclasses.asdict(cell) for cell in room.build(study)]


def templates() -> dict[str, dict[str, Any]]:
  """Returns what a config of each kind holds before an experiment fills it."""
  ending = '_template'
  return {
    name.removesuffix(ending): template().to_dict()
    for name, template in vars(config_lib).items()
    if name.endswith(ending)
  }


def sections() -> dict[str, type]:
  """Returns the dataclass of each section of a config."""
  c = config_lib
  return {
    'data': c.data_config.DataConfig,
    'model': c.model_config.ModelConfig,
    'train': c.train_config.TrainConfig,
    'layout': c.train_config.LayoutConfig,
    'growth': c.growth_config.GrowthConfig,
    'run': c.train_config.RunConfig,
    'isoflop': c.study_config.StudyConfig,
    'isoflop.rules': c.study_config.Rules,
    'isoflop.grid': c.study_config.Grid,
    'isoflop.arms.*': c.study_config.Arm,
    'isoflop.fit': c.study_config.Fit,
    'isoflop.assumed': c.study_config.AssumedLaw,
    'families': c.families_config.FamiliesConfig,
    'families.ways.*': c.families_config.Way,
    'allocation': c.live_config.AllocationConfig,
    'allocation.law': c.allocation_config.Law,
    'replay': c.allocation_config.ReplayConfig,
    'depth': c.depth_config.DepthConfig,
    'regimes': c.depth_regimes_config.RegimesConfig,
    'toys': c.depth_toys_config.ToysConfig,
    'toys.studies.*': c.depth_toys_config.Study,
  }
