"""From a config file's ConfigDict to the rooms' frozen dataclasses.

Done once, at the edge: behind it no code sees a ConfigDict. An unknown key, a
missing one and a value of the wrong type are refused in one line.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import ml_collections

from familial.core import schema
from familial.data import config as data_config
from familial.model import config as model_config
from familial.studies import allocation_config as live_config
from familial.studies import cells
from familial.studies import config as study_config
from familial.studies import depth_toys_config
from familial.training import config as train_config


def study_template() -> ml_collections.ConfigDict:
  """Returns an IsoFLOP study's config with every default filled in.

  An experiment sets what it wants on it; what has no default and is not set is
  refused as missing. What the cells decide for themselves is not in it.
  """

  return ml_collections.ConfigDict(
    {
      **_of_runs(cells.BUDGET_KEYS),
      'rules': schema.defaults(study_config.Rules),
      'grid': schema.defaults(study_config.Grid),
      'arms': {},
      'fit': schema.defaults(study_config.Fit),
      'assumed': schema.defaults(study_config.AssumedLaw),
    }
  )


def allocation_template() -> ml_collections.ConfigDict:
  """Returns a live allocation's config with every default filled in."""
  return ml_collections.ConfigDict(
    {
      **_of_runs(live_config.RUN_KEYS, schedule='constant'),
      **schema.defaults(live_config.AllocationConfig),
      'law': dataclasses.asdict(live_config.AllocationConfig.law),
    }
  )


def depth_toys_template() -> ml_collections.ConfigDict:
  """Returns the toys' config with every default filled in.

  A study is a dict of whatever it sets of `depth_toys_config.Study`.
  """
  return ml_collections.ConfigDict(
    {
      'title': '',
      **schema.defaults(depth_toys_config.ToysConfig),
      'studies': {},
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
  return schema.read(study_config.StudyConfig, {'arms': {}, **config})


def allocation(config: Mapping[str, Any]) -> live_config.AllocationConfig:
  """Returns the config of a live allocation."""
  return schema.read(live_config.AllocationConfig, config)


def depth_toys(config: Mapping[str, Any]) -> depth_toys_config.ToysConfig:
  """Returns the config of the depth law's toys."""
  return schema.read(depth_toys_config.ToysConfig, config)


def _of_runs(keys: Any, **train: Any) -> dict[str, Any]:
  """Returns what the templates of all studies that train have in common.

  Args:
    keys: of TrainConfig that runs decide for themselves.
    **train: defaults of others.
  """
  return {
    'title': '',
    'data': schema.defaults(data_config.DataConfig),
    'model': {
      **schema.defaults(model_config.ModelConfig, cells.SHAPE_KEYS),
      **cells.RATIOS,
    },
    'train': {**schema.defaults(train_config.TrainConfig, keys), **train},
    'layout': schema.defaults(train_config.LayoutConfig),
  }
