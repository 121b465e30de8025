"""Settings that all trained runs of a study share, and runs made from shapes."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import ml_collections

from familial.core import errors
from familial.data import config as data_config
from familial.expansion import config as growth_config
from familial.model import config as model_config
from familial.model import flops as flops_lib
from familial.training import config as train_config

# Width, depth and query heads.
Shape = tuple[int, int, int]
# Schedules whose rate decays at the very end of a run, or never.
STEADY = ('constant', 'wsd')
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedConfig:
  """The keys that all studies with trained runs have.

  Attributes:
    title: title of the report.
    data: corpus.
    model: settings of ModelConfig that all runs share; also `mlp_ratio` and
      `kv_ratio`, F / D and K / H.
    train: settings of TrainConfig that all runs share.
    layout: layout of all runs on their devices.
  """

  title: str
  data: data_config.DataConfig
  model: dict[str, Any]
  train: dict[str, Any]
  layout: train_config.LayoutConfig = dataclasses.field(
    default_factory=train_config.LayoutConfig
  )

  def tokens_per_step(self) -> int:
    """Returns the tokens of a step; refuses `train` without a batch size."""
    size = self.train.get('batch_size')
    if not isinstance(size, int) or size < 1:
      raise errors.not_allowed(
        'train.batch_size', size, 'an integer of at least 1'
      )
    return size * self.data.seq_len

  def check_schedule(self) -> None:
    """Refuses a schedule by which a run cut short is no valid short run."""
    schedule = self.train.get('schedule')
    errors.require(
      schedule in STEADY,
      'train.schedule',
      schedule,
      f'one of {", ".join(STEADY)}: the rate must not decay to the end of a '
      'run whose earlier evaluations count',
    )


def model(
  study: TrainedConfig,
  shape: Shape,
  exits: tuple[int, ...],
  **changes: Any,
) -> model_config.ModelConfig:
  """Returns the model of a shape in a study.

  Args:
    study: the config.
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


def run(
  study: TrainedConfig,
  run_keys: tuple[str, ...],
  *,
  cell: str,
  arm: str,
  budget: float,
  model: model_config.ModelConfig,
  growth: growth_config.GrowthConfig = growth_config.NONE,
  **train: Any,
) -> train_config.RunConfig:
  """Returns a run of a study.

  Args:
    study: the config.
    run_keys: keys of TrainConfig that the runs decide, which `study.train` must
      not set.
    cell: name of the run.
    arm: part of the study that the run belongs to.
    budget: planned FLOPs.
    model: of the run.
    growth: growth from the run that it starts from.
    **train: keys of its TrainConfig; they take precedence over `study.train`.
  """
  _check_keys('train', study.train, train_config.TrainConfig, run_keys)
  return train_config.RunConfig(
    cell=cell,
    arm=arm,
    budget=budget,
    model=model,
    data=study.data,
    train=train_config.TrainConfig(**{**study.train, **train}),
    layout=study.layout,
    growth=growth,
  )


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


def tokens(run: train_config.RunConfig) -> int:
  """Returns the training tokens of a run."""
  return run.train.steps * run.train.batch_size * run.data.seq_len


def cost(run: train_config.RunConfig) -> float:
  """Returns the training FLOPs of a run, without those of its parent."""
  return tokens(run) * flops_lib.train(
    run.model, run.data.seq_len, run.train.trained
  )


def short(budget: float) -> str:
  """Returns a budget as names of runs hold it: 3.2e12 for 3.2e12."""
  mantissa, exponent = f'{budget:.3e}'.split('e')
  return f'{float(mantissa):g}e{int(exponent)}'


def on_gpu(config: ml_collections.ConfigDict) -> None:
  """Sets what the variants of the experiments for one GPU share."""
  config.data.update(corpus='python_packages', seq_len=256)
  config.model.update(dtype='bfloat16', attention='fused', unroll=False)
  config.train.eval_tokens = 262_144


def at_scale(config: ml_collections.ConfigDict) -> None:
  """Sets what the largest variants of the experiments share.

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
  config.train.update(
    eval_tokens=8_388_608, eval_batch_size=256, checkpoint_seconds=900.0, keep=2
  )
