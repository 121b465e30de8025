"""Configuration of a training run."""

from collections.abc import Mapping
import dataclasses
from typing import Annotated
from typing import Any

import ml_collections
import numpy as np

from familial.core import errors
from familial.core import schema
from familial.data import config as data_config
from familial.expansion import config as growth_config
from familial.model import config as model_config

WEIGHTINGS = ('uniform', 'final_one', 'linear')
SCHEDULES = ('constant', 'cosine', 'wsd')
# Keys that may change when a run or a study is resumed, because no result depends
# on them: where the text lies (its fingerprint identifies it), how the model is
# computed up to rounding, and what is stored when.
FREE = (
  'layout',
  'data.corpus',
  'data.path',
  'data.cache_dir',
  'data.tokenizer',
  'data.allow_left_out',
  'model.attention',
  'model.unroll',
  'model.remat',
  'model.loss_chunk',
  'train.keep',
  'train.checkpoint_seconds',
)
# Keys that may change when a run is resumed if every step that it has taken stays
# the same.
LATER = (
  'train.steps',
  'train.schedule',
  'train.warmup_steps',
  'train.decay_fraction',
  'train.final_lr',
  'train.evaluations',
  'train.first_evaluation',
)


def _float32(bound: schema.Bound) -> schema.Bound:
  """Returns a bound on the float32 that the step uses: 1e-60 is 0 there."""
  return schema.Bound(
    lambda x: bound.holds(np.float32(x)), f'{bound.allowed} in float32'
  )


_Rate = Annotated[float, _float32(schema.above(0)), schema.FINITE]
_Decay = Annotated[float, schema.at_least(0), _float32(schema.below(1))]
_Share = Annotated[float, _float32(schema.above(0)), schema.at_most(1)]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """All that determines a run's trajectory besides its model and data.

  Attributes:
    steps: number of optimizer steps of the whole run.
    batch_size: sequences per step, over all processes.
    base_lr: maximum learning rate of embeddings and gains; that of matrices is
      this times base_width / width (see `optimizer`).
    rate_width: width in that rule; 0 for the model's own, a number to give
      matrices of models of several widths one rate.
    schedule: learning rate after the warm-up: `constant`, `cosine` (down to
      `final_lr`) or `wsd` (constant, then linear down to `final_lr` over
      `decay_fraction`).
    warmup_steps: steps of the linear warm-up, which starts at
      1 / (warmup_steps + 1) of the schedule.
    decay_fraction: last share of the steps in which `wsd` decays.
    final_lr: last learning rate, as a share of the maximum.
    beta1: decay rate of AdamW's mean of gradients.
    beta2: decay rate of AdamW's mean of squared gradients.
    eps: constant added to the denominator of AdamW's update.
    weight_decay: decoupled weight decay; a matrix shrinks by
      base_lr x schedule x weight_decay a step, whatever its own rate.
    clip: maximum global norm of the gradient; 0 for no clipping.
    weighting: weights of the exits' losses: `uniform` (1/G each), `final_one`
      (1 for the last exit, `other_weight` for the others) or `linear`
      (proportional to the layer).
    weighting_end: weighting reached at the end of the run by linear
      interpolation in steps; '' for a fixed weighting.
    other_weight: weight of all exits but the last with `final_one`.
    trained: trained parameters: `all`, or `exits` for all exits but the last on
      the frozen trunk of `init_from`.
    init_from: folder of a finished run, an export or an import, relative to
      this run's, whose parameters are the initial ones; '' for random ones. A
      parent with one exit gives the trunk and the last exit; one with this
      run's exits gives all. The parent's shape, up to what `growth` changes,
      and tokenizer must be this run's.
    seed: seed of initialisation and of the order of the data.
    evaluations: number of evaluations, evenly spaced in steps, the last at the
      end of the run.
    first_evaluation: step of the first evaluation, with the others evenly
      spaced in the logarithm of the step; 0 for even spacing in steps.
    eval_tokens: held-out tokens of each evaluation, always the same ones.
    eval_batch_size: sequences in a held-out batch; equal in all runs of a study,
      so that they share a program.
    gradients: whether each evaluation records the cosines between the exits'
      gradients on the first held-out batch.
    checkpoint_seconds: least time between two checkpoints, in seconds.
    keep: number of latest checkpoints that are kept, besides the best.

  Raises:
    UserError: at construction, if a value is not allowed.
  """

  steps: schema.Count
  batch_size: schema.Count
  base_lr: _Rate
  rate_width: schema.Index = 0
  schedule: Annotated[str, schema.one_of(*SCHEDULES)] = 'cosine'
  warmup_steps: schema.Index = 0
  decay_fraction: _Share = 0.2
  final_lr: schema.Fraction = 0.0
  beta1: _Decay = 0.9
  beta2: _Decay = 0.95
  eps: _Rate = 1e-10
  weight_decay: schema.NonNegative = 0.1
  clip: schema.NonNegative = 1.0
  weighting: Annotated[str, schema.one_of(*WEIGHTINGS)] = 'uniform'
  weighting_end: Annotated[str, schema.one_of(*WEIGHTINGS, '')] = ''
  other_weight: schema.NonNegative = 0.3
  trained: Annotated[str, schema.one_of('all', 'exits')] = 'all'
  init_from: str = ''
  seed: schema.Index = 0
  evaluations: schema.Count = 1
  first_evaluation: schema.Index = 0
  eval_tokens: schema.Count = 65_536
  eval_batch_size: schema.Count = 32
  gradients: bool = False
  checkpoint_seconds: schema.NonNegative = 60.0
  keep: schema.Count = 2

  def __post_init__(self) -> None:
    schema.check(self, 'train')
    for key in ('warmup_steps', 'first_evaluation'):
      value = getattr(self, key)
      errors.require(
        value <= self.steps,
        f'train.{key}',
        value,
        f'at most train.steps, {self.steps}',
      )
    errors.require(
      bool(self.init_from) or self.trained == 'all',
      'train.init_from',
      self.init_from,
      "the run that holds the trunk, for train.trained 'exits'",
    )

  @property
  def evaluated(self) -> frozenset[int]:
    """The steps after which the run is evaluated."""
    if self.first_evaluation:
      at = np.geomspace(self.first_evaluation, self.steps, self.evaluations)
    else:
      at = self.steps * np.arange(1, self.evaluations + 1) / self.evaluations
    return frozenset({*map(round, at.tolist()), self.steps})

  def exit_weights(
    self, exits: tuple[int, ...], end: bool = False
  ) -> tuple[float, ...]:
    """Returns the weight of each exit's loss at the start or end of the run.

    Args:
      exits: the layer of each exit.
      end: the weights moved to, instead of those started from.
    """
    weighting = (end and self.weighting_end) or self.weighting
    count = len(exits)
    if self.trained == 'exits':
      return (1.0,) * (count - 1) + (0.0,)
    if weighting == 'uniform':
      return (1.0 / count,) * count
    if weighting == 'final_one':
      return (self.other_weight,) * (count - 1) + (1.0,)
    return tuple(layer / sum(exits) for layer in exits)

  def exit_weights_at(
    self, step: int, exits: tuple[int, ...]
  ) -> tuple[float, ...]:
    """Returns the weight of each exit's loss at a step."""
    moved = step / self.steps
    ends = zip(
      self.exit_weights(exits), self.exit_weights(exits, end=True), strict=True
    )
    return tuple(a + moved * (b - a) for a, b in ends)


@dataclasses.dataclass(frozen=True)
class LayoutConfig:
  """Placement of a run on its devices; it may change when the run is resumed.

  Attributes:
    data: devices over which rows are split besides `fsdp`, each group with a
      whole copy of the parameters; 0 for as many as there are.
    fsdp: devices over which rows and parameters are split.
    tensor: devices over which heads, MLP and vocabulary are split.
    microbatches: parts of a batch whose gradients are accumulated one after
      another to save memory.

  Raises:
    UserError: at construction, if a value is not allowed.
  """

  data: schema.Index = 0
  fsdp: schema.Count = 1
  tensor: schema.Count = 1
  microbatches: schema.Count = 1

  def __post_init__(self) -> None:
    schema.check(self, 'layout')


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """A training run and its place in a study.

  Attributes:
    cell: name of the run within the study.
    arm: role of the run: `grid`, `seed`, `twin`, `weighting`, `frozen`, `kind`,
      `branch`, `rate` or `gradients` in an IsoFLOP study, the name of its method
      in a study of families, `single` outside a study; `export`, `import` or
      `expand` for a model that was not trained here.
    budget: compute in FLOPs that the study planned for the run.
    model: shape of the model.
    data: corpus and sequences.
    train: optimizer, schedule, losses, evaluations and checkpoints.
    layout: placement on devices.
    growth: growth from a smaller `init_from`, whose data order is continued.

  Raises:
    UserError: at construction, if sections do not fit together.
  """

  cell: str
  arm: str
  budget: float
  model: model_config.ModelConfig
  data: data_config.DataConfig
  train: TrainConfig
  layout: LayoutConfig = LayoutConfig()
  growth: growth_config.GrowthConfig = growth_config.NONE

  def __post_init__(self) -> None:
    model, data, train = self.model, self.data, self.train
    grows = self.growth != growth_config.NONE
    chunk = model.loss_chunk or data.seq_len
    errors.require(
      model.vocab_size == data.vocab_size,
      'model.vocab_size',
      model.vocab_size,
      f'data.vocab_size, {data.vocab_size}',
    )
    errors.require(
      train.trained == 'all' or model.granularity > 1,
      'model.exits',
      model.exits,
      "more than one exit for train.trained 'exits'",
    )
    errors.require(
      not grows or bool(train.init_from),
      'train.init_from',
      train.init_from,
      'the run that grows, where growth is set',
    )
    errors.require(
      not grows or train.trained == 'all',
      'train.trained',
      train.trained,
      "'all' where growth is set",
    )
    errors.require(
      data.seq_len % chunk == 0,
      'model.loss_chunk',
      chunk,
      f'a divisor of data.seq_len {data.seq_len}',
    )


def template() -> ml_collections.ConfigDict:
  """Returns a single run's config with every default filled in."""
  return ml_collections.ConfigDict(schema.defaults(RunConfig))


def read(config: Mapping[str, Any]) -> RunConfig:
  """Returns the config of a single run."""
  return schema.read(
    RunConfig, {'cell': 'run', 'arm': 'single', 'budget': 0.0, **config}
  )
