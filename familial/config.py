"""From a config file's ConfigDict to the rooms' frozen dataclasses.

Done once, at the edge: behind it no code sees a ConfigDict. An unknown key, a
missing one and a value of the wrong type are refused in one line.
"""

from collections.abc import Mapping
import dataclasses
import typing
from typing import Any

import ml_collections

from familial import errors
from familial.allocation import config as allocation_config
from familial.allocation import synthetic
from familial.data import config as data_config
from familial.expansion import config as growth_config
from familial.model import config as model_config
from familial.studies import allocation_config as live_config
from familial.studies import cells
from familial.studies import config as study_config
from familial.studies import depth_config
from familial.studies import depth_regimes_config
from familial.studies import depth_toys_config
from familial.studies import families_cells
from familial.studies import families_config
from familial.training import config as train_config


def study_template() -> ml_collections.ConfigDict:
  """Returns an IsoFLOP study's config with every default filled in.

  An experiment sets what it wants on it; what has no default and is not set is
  refused as missing. What the cells decide for themselves is not in it.
  """

  return ml_collections.ConfigDict(
    {
      **_of_runs(cells.BUDGET_KEYS),
      'rules': _defaults(study_config.Rules),
      'grid': _defaults(study_config.Grid),
      'arms': {},
      'fit': _defaults(study_config.Fit),
      'assumed': _defaults(study_config.AssumedLaw),
    }
  )


def families_template() -> ml_collections.ConfigDict:
  """Returns a study of families' config with every default filled in.

  A way is a dict of `kind` and whatever of `Way` it sets, its `growth` too.
  """
  return ml_collections.ConfigDict(
    {
      **_of_runs(families_cells.RUN_KEYS),
      **_defaults(families_config.FamiliesConfig),
      'ways': {},
    }
  )


def allocation_template() -> ml_collections.ConfigDict:
  """Returns a live allocation's config with every default filled in."""
  return ml_collections.ConfigDict(
    {
      **_of_runs(live_config.RUN_KEYS, schedule='constant'),
      **_defaults(live_config.AllocationConfig),
      'law': dataclasses.asdict(live_config.AllocationConfig.law),
    }
  )


def depth_template() -> ml_collections.ConfigDict:
  """Returns a study of width and depth's config with every default filled in."""
  return ml_collections.ConfigDict(
    {
      **_of_runs(depth_config.RUN_KEYS, schedule='constant'),
      **_defaults(depth_config.DepthConfig),
      'fit': _defaults(study_config.Fit),
    }
  )


def regimes_template() -> ml_collections.ConfigDict:
  """Returns a study of layers and exits' config with every default filled in."""
  return ml_collections.ConfigDict(
    {
      **_of_runs(depth_config.RUN_KEYS),
      **_defaults(depth_regimes_config.RegimesConfig),
    }
  )


def depth_toys_template() -> ml_collections.ConfigDict:
  """Returns the toys' config with every default filled in.

  A study is a dict of whatever it sets of `depth_toys_config.Study`.
  """
  return ml_collections.ConfigDict(
    {'title': '', **_defaults(depth_toys_config.ToysConfig), 'studies': {}}
  )


def replay_template() -> ml_collections.ConfigDict:
  """Returns a replay's config with every default filled in."""
  return ml_collections.ConfigDict(
    {
      'title': '',
      **_defaults(allocation_config.ReplayConfig),
      'columns': {},
      'constants': dict(synthetic.LAW),
      'law': _defaults(allocation_config.Law),
    }
  )


def run_template() -> ml_collections.ConfigDict:
  """Returns a single run's config with every default filled in."""
  return ml_collections.ConfigDict(
    {
      'data': _defaults(data_config.DataConfig),
      'model': _defaults(model_config.ModelConfig),
      'train': _defaults(train_config.TrainConfig),
      'layout': _defaults(train_config.LayoutConfig),
      'growth': _defaults(growth_config.GrowthConfig),
    }
  )


def at_scale(config: ml_collections.ConfigDict) -> None:
  """Sets the data and the model of the experiments' largest variants.

  C4 by an own tokenizer, and a model of billions of parameters in bfloat16 whose
  layers are compiled once and computed again in the backward pass.
  """
  config.data.update(
    corpus='c4/en', tokenizer='bpe', vocab_size=32_768, seq_len=2048
  )
  config.model.update(
    dtype='bfloat16',
    attention='fused',
    unroll=False,
    remat=True,
    loss_chunk=256,
    tied=False,
    base_width=1024,
  )


def study(config: Mapping[str, Any]) -> study_config.StudyConfig:
  """Returns an IsoFLOP study's config."""
  values = plain(config)
  arms = {
    name: section(study_config.Arm, arm, f'arms.{name}')
    for name, arm in values.pop('arms', {}).items()
  }
  return _built(
    study_config.StudyConfig,
    {**values, 'arms': arms},
    data=data_config.DataConfig,
    rules=study_config.Rules,
    grid=study_config.Grid,
    fit=study_config.Fit,
    assumed=study_config.AssumedLaw,
    layout=train_config.LayoutConfig,
  )


def families(config: Mapping[str, Any]) -> families_config.FamiliesConfig:
  """Returns the config of a study of families."""
  values = plain(config)
  ways = {}
  for name, way in values.pop('ways', {}).items():
    growth = section(
      growth_config.GrowthConfig, way.get('growth', {}), f'ways.{name}.growth'
    )
    ways[name] = section(
      families_config.Way, {**way, 'growth': growth}, f'ways.{name}'
    )
  return _built(
    families_config.FamiliesConfig,
    {**values, 'ways': ways},
    data=data_config.DataConfig,
    layout=train_config.LayoutConfig,
  )


def allocation(config: Mapping[str, Any]) -> live_config.AllocationConfig:
  """Returns the config of a live allocation."""
  return _built(
    live_config.AllocationConfig,
    config,
    data=data_config.DataConfig,
    layout=train_config.LayoutConfig,
    law=allocation_config.Law,
  )


def depth(config: Mapping[str, Any]) -> depth_config.DepthConfig:
  """Returns the config of a study of width and depth."""
  return _built(
    depth_config.DepthConfig,
    config,
    data=data_config.DataConfig,
    fit=study_config.Fit,
    layout=train_config.LayoutConfig,
  )


def regimes(
  config: Mapping[str, Any],
) -> depth_regimes_config.RegimesConfig:
  """Returns the config of a study of layers and exits."""
  return _built(
    depth_regimes_config.RegimesConfig,
    config,
    data=data_config.DataConfig,
    layout=train_config.LayoutConfig,
  )


def depth_toys(config: Mapping[str, Any]) -> depth_toys_config.ToysConfig:
  """Returns the config of the depth law's toys."""
  values = plain(config)
  studies = {
    name: section(depth_toys_config.Study, study, f'studies.{name}')
    for name, study in values.pop('studies', {}).items()
  }
  return section(
    depth_toys_config.ToysConfig, {**values, 'studies': studies}, ''
  )


def replay(config: Mapping[str, Any]) -> allocation_config.ReplayConfig:
  """Returns the config of a replay."""
  return _built(
    allocation_config.ReplayConfig, config, law=allocation_config.Law
  )


def run(config: Mapping[str, Any]) -> train_config.RunConfig:
  """Returns the config of a single run."""
  return _built(
    train_config.RunConfig,
    {'cell': 'run', 'arm': 'single', 'budget': 0.0, **plain(config)},
    data=data_config.DataConfig,
    model=model_config.ModelConfig,
    train=train_config.TrainConfig,
    layout=train_config.LayoutConfig,
    growth=growth_config.GrowthConfig,
  )


def _built(cls: Any, config: Mapping[str, Any], **sections: Any) -> Any:
  """Returns a config of a class, with sections of classes of their own."""
  values = plain(config)
  for name, of in sections.items():
    values[name] = section(of, values.get(name, {}), name)
  return section(cls, values, '')


def section(cls: Any, values: Mapping[str, Any], name: str) -> Any:
  """Returns a dataclass built from a section of a config.

  Args:
    cls: the dataclass; its annotations are checked.
    values: of its fields; those with a default may be missing.
    name: of the section, for the errors.
  """
  fields = {field.name: field for field in dataclasses.fields(cls)}
  hints = typing.get_type_hints(cls)
  prefix = f'{name}.' if name else ''
  checked = {}
  for key, value in values.items():
    if key not in fields:
      raise errors.UserError(
        f'{prefix}{key}: unknown key{errors.nearest(key, fields)}'
      )
    checked[key] = _check(value, hints[key], prefix + key)
  for key, field in fields.items():
    if (
      key not in checked
      and field.default is dataclasses.MISSING
      and field.default_factory is dataclasses.MISSING
    ):
      raise errors.UserError(f'{prefix}{key}: is missing')
  return cls(**checked)


def plain(value: Any) -> Any:
  """Returns dicts and tuples for ConfigDicts and lists, all the way down."""
  if hasattr(value, 'items'):
    return {key: plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(plain(item) for item in value)
  return value


def _of_runs(keys: Any, **train: Any) -> dict[str, Any]:
  """Returns what the templates of all studies that train have in common.

  Args:
    keys: of TrainConfig that runs decide for themselves.
    **train: defaults of others.
  """
  return {
    'title': '',
    'data': _defaults(data_config.DataConfig),
    'model': {
      **_defaults(model_config.ModelConfig, cells.SHAPE_KEYS),
      **cells.RATIOS,
    },
    'train': {**_defaults(train_config.TrainConfig, keys), **train},
    'layout': _defaults(train_config.LayoutConfig),
  }


def _defaults(cls: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
  return {
    field.name: field.default
    for field in dataclasses.fields(cls)
    if field.name not in without and field.default is not dataclasses.MISSING
  }


def _check(value: Any, hint: Any, key: str) -> Any:
  """Returns a value as its annotation has it; ints serve as floats."""
  origin = typing.get_origin(hint)
  if origin is tuple:
    if not isinstance(value, tuple):
      raise errors.UserError(f'{key}: {value!r} is not a tuple')
    item = typing.get_args(hint)[0]
    return tuple(_check(v, item, f'{key}[{i}]') for i, v in enumerate(value))
  kind = origin or hint
  if kind is Any or not isinstance(kind, type):
    return value
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if kind is int and isinstance(value, float) and value.is_integer():
    return int(value)
  if not isinstance(value, kind) or (
    isinstance(value, bool) and kind is not bool
  ):
    raise errors.UserError(f'{key}: {value!r} is not of type {kind.__name__}')
  return value
