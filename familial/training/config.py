"""How a run trains."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
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
TRAINED = ('all', 'exits')

_COUNT = (lambda x: x >= 1, 'at least 1')
_POSITIVE = (lambda x: x > 0, 'above 0')
_NOT_NEGATIVE = (lambda x: x >= 0, 'at least 0')
_DECAY = (lambda x: 0 <= x < 1, 'at least 0 and below 1')
# Of the numbers: whether one works, and which do. NaN is in no range.
_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
  'steps': _COUNT,
  'batch_size': _COUNT,
  'evaluations': _COUNT,
  'eval_tokens': _COUNT,
  'eval_batch_size': _COUNT,
  'keep': _COUNT,
  'base_lr': _POSITIVE,
  'eps': _POSITIVE,
  'beta1': _DECAY,
  'beta2': _DECAY,
  'weight_decay': _NOT_NEGATIVE,
  'clip': _NOT_NEGATIVE,
  'other_weight': _NOT_NEGATIVE,
  'seed': _NOT_NEGATIVE,
  'rate_width': _NOT_NEGATIVE,
  'checkpoint_seconds': _NOT_NEGATIVE,
  'final_lr': (lambda x: 0 <= x <= 1, 'within 0 to 1'),
  'decay_fraction': (lambda x: 0 < x <= 1, 'above 0 and at most 1'),
}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Everything that fixes a run's trajectory besides its model and data.

  Attributes:
    steps: optimizer steps of the whole run.
    batch_size: sequences per step, over all processes.
    base_lr: maximum rate of embeddings and gains; matrices take it times
      base_width / width (see `optimizer`).
    rate_width: the width in that rule; 0 for the model's own, one number for
      models of several widths whose matrices shall have one rate.
    schedule: after the warm-up `constant`, `cosine` down to `final_lr`, or
      `wsd`: constant, then linear down to `final_lr` over `decay_fraction`.
    warmup_steps: linear, from 1 / (warmup_steps + 1) of the schedule.
    decay_fraction: last share of the steps in which `wsd` decays.
    final_lr: last rate as a share of the maximum.
    beta1: of AdamW's mean of gradients.
    beta2: of AdamW's mean of squared gradients.
    eps: of AdamW.
    weight_decay: decoupled; a matrix shrinks by base_lr x schedule x this a
      step, whatever its own rate.
    clip: maximum global norm of the gradient; 0 for none.
    weighting: of the exits' losses: `uniform` (1/G each), `final_one` (last
      exit 1, others `other_weight`), `linear` (in proportion to the layer).
    weighting_end: weighting that the run moves to, linearly in steps; '' stays.
    other_weight: of the exits before the last in `final_one`.
    trained: `all`, or `exits`: all exits but the last, on the frozen trunk of
      `init_from`.
    init_from: folder of a finished run, an export or an import, relative to
      this run's, whose parameters are the initial ones; '' for fresh. With one
      exit, it gives the trunk and the last exit; with this run's exits, all.
      Its model's shape, but for what `growth` lets differ, and its data must be
      this run's; of an import's data, the tokenizer.
    seed: of initialisation and of the order of the data.
    evaluations: evaluations spaced evenly over the run, the last at its end;
    first_evaluation: or, unless 0, evenly in log steps from this step on.
    eval_tokens: held-out tokens of each, always the same ones.
    gradients: at each evaluation, write the cosines between the exits'
      gradients on the first held-out batch.
    eval_batch_size: rows of a held-out batch; one for all runs of a study, so
      that they share a program.
    checkpoint_seconds: least time between two checkpoints.
    keep: how many of the last checkpoints stay, besides the best.
  """

  steps: int
  batch_size: int
  base_lr: float
  rate_width: int = 0
  schedule: str = 'cosine'
  warmup_steps: int = 0
  decay_fraction: float = 0.2
  final_lr: float = 0.0
  beta1: float = 0.9
  beta2: float = 0.95
  eps: float = 1e-10
  weight_decay: float = 0.1
  clip: float = 1.0
  weighting: str = 'uniform'
  weighting_end: str = ''
  other_weight: float = 0.3
  trained: str = 'all'
  init_from: str = ''
  seed: int = 0
  evaluations: int = 1
  first_evaluation: int = 0
  eval_tokens: int = 65_536
  eval_batch_size: int = 32
  gradients: bool = False
  checkpoint_seconds: float = 60.0
  keep: int = 2

  def __post_init__(self) -> None:
    for key, (holds, range_) in _ALLOWED.items():
      number = getattr(self, key)
      # As the step takes it: what rounds to 0 or 1 is 0 or 1.
      if not holds(np.float32(number)):
        raise errors.UserError(
          f'train.{key}: {number} is not allowed; it must be {range_}'
        )
    for key, allowed in (
      ('schedule', SCHEDULES),
      ('weighting', WEIGHTINGS),
      ('weighting_end', WEIGHTINGS + ('',)),
      ('trained', TRAINED),
    ):
      value = getattr(self, key)
      if value not in allowed:
        raise errors.UserError(
          f'train.{key}: {value!r} is not one of {", ".join(allowed)}'
          f'{errors.nearest(str(value), allowed)}'
        )
    if not 0 <= self.warmup_steps <= self.steps:
      raise errors.UserError(
        f'train.warmup_steps: {self.warmup_steps} is not '
        f'in 0..{self.steps}, the steps of the run'
      )
    if not 0 <= self.first_evaluation <= self.steps:
      raise errors.UserError(
        f'train.first_evaluation: {self.first_evaluation} is not '
        f'in 0..{self.steps}, the steps of the run'
      )
    if self.trained == 'exits' and not self.init_from:
      raise errors.UserError(
        'train.init_from: needed where train.trained is '
        "'exits': the run that holds the trunk"
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
  """How a run lies on its devices; it may change when the run goes on.

  Attributes:
    data: devices over which rows are split beside `fsdp`, each with all of its
      parameters; 0 for as many as there are.
    fsdp: devices over which rows and parameters are split.
    tensor: devices over which heads, MLP and vocabulary are split.
    microbatches: parts of a batch whose gradients are summed one after another,
      where it does not fit at once.
  """

  data: int = 0
  fsdp: int = 1
  tensor: int = 1
  microbatches: int = 1

  def __post_init__(self) -> None:
    for key, least in (
      ('data', 0),
      ('fsdp', 1),
      ('tensor', 1),
      ('microbatches', 1),
    ):
      value = getattr(self, key)
      if value < least:
        raise errors.UserError(
          f'layout.{key}: {value} is not allowed; it must be at least {least}'
        )


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """One run: what it trains, on what, how, and its place in a study.

  Attributes:
    cell: name within the study.
    arm: why the study wants it: `grid`, `seed`, `twin`, `weighting`,
      `frozen`, `kind`, `branch`, `rate`, `gradients`, in a study of families the
      name of its way, or, alone, `single`; of a model that was not trained here,
      `export`, `import` or `expand`.
    budget: FLOPs that the study planned for it.
    model: the model.
    data: the corpus and its sequences.
    train: the rest.
    layout: on the devices.
    growth: from a smaller `init_from`; the data go on where that one stopped.
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
    if self.model.vocab_size != self.data.vocab_size:
      raise errors.UserError(
        f'model.vocab_size: {self.model.vocab_size} differs from '
        f'data.vocab_size {self.data.vocab_size}'
      )
    if self.train.trained == 'exits' and self.model.granularity == 1:
      raise errors.UserError(
        f'model.exits: {self.model.exits} holds no exit before the last, and '
        "train.trained is 'exits': there is nothing to train"
      )
    grows = self.growth != growth_config.NONE
    if grows and not self.train.init_from:
      raise errors.UserError(
        'train.init_from: needed where growth is set: the run that grows'
      )
    if grows and self.train.trained == 'exits':
      raise errors.UserError(
        "train.trained: 'exits' is not allowed where growth is set; it must be "
        "'all'"
      )
    chunk = self.model.loss_chunk
    if chunk and self.data.seq_len % chunk:
      raise errors.UserError(
        f'model.loss_chunk: {chunk} does not divide '
        f'data.seq_len {self.data.seq_len}'
      )


def template() -> ml_collections.ConfigDict:
  """Returns a single run's config with every default filled in."""
  return ml_collections.ConfigDict(schema.defaults(RunConfig))


def read(config: Mapping[str, Any]) -> RunConfig:
  """Returns the config of a single run."""
  return schema.read(
    RunConfig, {'cell': 'run', 'arm': 'single', 'budget': 0.0, **config}
  )
