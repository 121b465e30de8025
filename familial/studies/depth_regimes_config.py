"""What a study of the layers of models with and without exits asks for."""

import dataclasses
from typing import Any

from familial.analysis import middle
from familial.core import errors
from familial.data import config as data_config
from familial.training import config as train_config


@dataclasses.dataclass(frozen=True)
class RegimesConfig:
  """Models that differ in their exits alone, and what their layers do.

  Attributes:
    title: heads the report.
    data: the corpus.
    model: keyword arguments of ModelConfig that all share, and `mlp_ratio`,
      `kv_ratio`: F / D and K / H.
    train: keyword arguments of TrainConfig that all share.
    width: of all models.
    depths: of the models.
    granularities: G, the exits of the models of each depth; 1 among them, for
      the others are held against models without exits.
    seeds: of each; models of one seed and depth are pairs.
    tokens: of every run.
    probe_tokens: held-out tokens that a probe reads.
    head_width: of every head.
    warmup: share of a run's steps.
    layout: of all runs on their devices.
  """

  title: str
  data: data_config.DataConfig
  model: dict[str, Any]
  train: dict[str, Any]
  width: int
  depths: tuple[int, ...]
  tokens: int
  granularities: tuple[int, ...] = (1, 4)
  seeds: tuple[int, ...] = (0, 1, 2, 3)
  probe_tokens: int = 32_768
  head_width: int = 8
  warmup: float = 0.05
  layout: train_config.LayoutConfig = dataclasses.field(
    default_factory=train_config.LayoutConfig
  )

  def __post_init__(self) -> None:
    for key in ('depths', 'granularities', 'seeds'):
      values = getattr(self, key)
      errors.require(
        len({*values}) == len(values) > 0,
        key,
        values,
        'at least one, and no two alike',
      )
    least = middle.LEAST_DEPTH
    errors.require(
      min(self.depths) >= least, 'depths', self.depths, f'at least {least}'
    )
    errors.require(
      1 in self.granularities,
      'granularities',
      self.granularities,
      'with 1, a model without exits, among them',
    )
    errors.require(
      self.width >= 1 and self.width % self.head_width == 0,
      'width',
      self.width,
      f'a multiple of head_width, {self.head_width}',
    )
    for key in ('tokens', 'probe_tokens', 'head_width'):
      errors.require(
        getattr(self, key) >= 1, key, getattr(self, key), 'at least 1'
      )
    errors.require(
      0 <= self.warmup <= 1, 'warmup', self.warmup, 'within 0 to 1'
    )
