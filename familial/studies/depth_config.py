"""What a study of width and depth asks for: every width at every depth."""

import dataclasses
import math
from typing import Any

from familial.core import errors
from familial.data import config as data_config
from familial.studies import allocation_config
from familial.studies import config as study_config
from familial.training import config as train_config

SCHEDULES = allocation_config.SCHEDULES
# What a run decides for itself.
RUN_KEYS = ('steps', 'warmup_steps', 'seed')


@dataclasses.dataclass(frozen=True)
class DepthConfig:
  """A study of width and depth.

  Attributes:
    title: heads the report.
    data: the corpus.
    model: keyword arguments of ModelConfig that all share, and `mlp_ratio`,
      `kv_ratio`: F / D and K / H.
    train: keyword arguments of TrainConfig that all share. Every evaluation is
      a point of the law, so the rate is `constant`, or `wsd`, which decays in
      the last `decay_fraction` alone.
    widths: of the grid.
    depths: of the grid; each width is trained at each of them.
    tokens: of every run, so that shape and data do not go together.
    head_width: of every head.
    seeds: the first is the grid's; the others are of its corners (the least and
      the largest width at the least and the largest depth): the noise.
    rates: further base rates, of the corners: does one serve all shapes?
    warmup: share of a run's steps.
    first_tokens: from which on an evaluation is a point of the law.
    cutoffs: shares of the points of highest loss without which the law is
      fitted too.
    fit: of the laws.
    layout: of all runs on their devices.
  """

  title: str
  data: data_config.DataConfig
  model: dict[str, Any]
  train: dict[str, Any]
  widths: tuple[int, ...]
  depths: tuple[int, ...]
  tokens: int
  head_width: int = 8
  seeds: tuple[int, ...] = (0,)
  rates: tuple[float, ...] = ()
  warmup: float = 0.02
  first_tokens: int = 0
  cutoffs: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4)
  fit: study_config.Fit = dataclasses.field(default_factory=study_config.Fit)
  layout: train_config.LayoutConfig = dataclasses.field(
    default_factory=train_config.LayoutConfig
  )

  def __post_init__(self) -> None:
    for key in ('widths', 'depths'):
      values = getattr(self, key)
      if len(set(values)) < 3 or len(set(values)) < len(values):
        raise errors.UserError(
          f'{key}: {values}; at least three different ones are needed, for a'
          ' power of them with a constant'
        )
    errors.require(self.tokens >= 1, 'tokens', self.tokens, 'at least 1')
    errors.require(
      self.head_width >= 1, 'head_width', self.head_width, 'at least 1'
    )
    errors.require(
      0 <= self.warmup <= 1, 'warmup', self.warmup, 'within 0 to 1'
    )
    errors.require(
      0 <= self.first_tokens <= self.tokens,
      'first_tokens',
      self.first_tokens,
      f'within 0 to tokens, {self.tokens}',
    )
    for width in self.widths:
      errors.require(
        width >= 1 and width % self.head_width == 0,
        'widths',
        width,
        f'a multiple of head_width, {self.head_width}',
      )
    errors.require(
      len({*self.seeds}) == len(self.seeds) > 0,
      'seeds',
      self.seeds,
      'at least one, and no two alike',
    )
    for rate in self.rates:
      errors.require(0 < rate < math.inf, 'rates', rate, 'above 0')
      errors.require(
        rate != self.train.get('base_lr'), 'rates', rate, 'another than base_lr'
      )
    for share in self.cutoffs:
      errors.require(0 <= share < 1, 'cutoffs', share, 'at least 0 and below 1')
    schedule = self.train.get('schedule')
    errors.require(
      schedule in SCHEDULES,
      'train.schedule',
      schedule,
      f'one of {", ".join(SCHEDULES)}: the law is fitted to points along a run',
    )
