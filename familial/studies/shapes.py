"""Models and training configs of a study's runs, from shapes and shared settings."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import ml_collections

from familial.core import errors
from familial.model import config as model_config
from familial.model import flops as flops_lib
from familial.training import config as train_config

# Width, depth and query heads.
Shape = tuple[int, int, int]
# Keys of `model` beside ModelConfig's own, with their defaults: F / D and K / H.
RATIOS = {'mlp_ratio': 2.75, 'kv_ratio': 1.0}
# Keys of ModelConfig that follow from a run's shape.
SHAPE_KEYS = (
  'width',
  'depth',
  'heads',
  'exits',
  'vocab_size',
  'kv_heads',
  'mlp_width',
)


def model(
  study: Any, shape: Shape, exits: tuple[int, ...], **changes: Any
) -> model_config.ModelConfig:
  """Returns the model of a shape in a study.

  Args:
    study: a config that has `model` and `data`.
    shape: width, depth and heads.
    exits: layers after which exits lie.
    **changes: other keys of ModelConfig.
  """
  width, depth, heads = shape
  given = dict(study.model)
  ratios = {key: given.pop(key, default) for key, default in RATIOS.items()}
  for key, ratio in ratios.items():
    errors.require(0 < ratio < math.inf, f'model.{key}', ratio, 'above 0')
  _check_keys(
    'model', given, model_config.ModelConfig, SHAPE_KEYS, tuple(RATIOS)
  )
  return model_config.ModelConfig(
    **{
      **given,
      **changes,
      'vocab_size': study.data.vocab_size,
      'width': width,
      'depth': depth,
      'heads': heads,
      'kv_heads': max(1, round(heads * ratios['kv_ratio'])),
      'mlp_width': round(width * ratios['mlp_ratio']),
      'exits': exits,
    }
  )


def train(
  study: Any, run_keys: tuple[str, ...], **values: Any
) -> train_config.TrainConfig:
  """Returns a run's training config.

  Args:
    study: a config that has `train`, the settings that all runs share.
    run_keys: keys that the runs decide, which `study.train` must not set.
    **values: of this run; they take precedence over `study.train`.
  """
  _check_keys('train', study.train, train_config.TrainConfig, run_keys)
  return train_config.TrainConfig(**{**study.train, **values})


def _check_keys(
  section: str,
  given: Mapping[str, Any],
  cls: Any,
  reserved: tuple[str, ...],
  more: tuple[str, ...] = (),
) -> None:
  fields = {field.name for field in dataclasses.fields(cls)}
  for key in given:
    if key in reserved:
      raise errors.UserError(
        f'{section}.{key}: follows from the run; it cannot be set for all'
      )
    if key not in fields:
      near = errors.nearest(key, {*fields, *more} - {*reserved})
      raise errors.UserError(f'{section}.{key}: unknown key{near}')


def cost(run: train_config.RunConfig) -> float:
  """Returns the training FLOPs of a run, without those of its parent."""
  return (
    run.train.steps
    * run.train.batch_size
    * run.data.seq_len
    * flops_lib.train(run.model, run.data.seq_len, run.train.trained)
  )


def short(budget: float) -> str:
  """Returns a budget as names of runs hold it: 3.2e12 for 3.2e12."""
  mantissa, exponent = f'{budget:.3e}'.split('e')
  return f'{float(mantissa):g}e{int(exponent)}'


def at_scale(config: ml_collections.ConfigDict) -> None:
  """Sets data and model as the largest variants of the experiments have them.

  C4 with a byte-level BPE of its own, and models of up to billions of parameters
  in bfloat16 whose layers are compiled once and recomputed in the backward pass.
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
