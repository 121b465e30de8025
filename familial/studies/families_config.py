"""What a study of families asks for: the same sizes, come by in several ways."""

import dataclasses
import math
from typing import Any

from familial.core import errors
from familial.data import config as data_config
from familial.expansion import config as growth_config
from familial.training import config as train_config

KINDS = ('separate', 'chain', 'exits')
EQUAL = ('member', 'total')


@dataclasses.dataclass(frozen=True)
class Way:
  """A way to a family.

  Attributes:
    kind: `separate` (each size trained alone), `chain` (each grown from the one
      before, and trained on) or `exits` (one model with an exit for each).
    against: the ways that it is compared with, size by size; the first one is
      its counterpart, which compute and savings are measured by.
    sizes: (width, depth, heads) of each, the smallest first; () for the study's.
    keep_exits: in a chain, old last layers stay exits, so that its last model is
      all members at once.
    growth: of a chain, from size to size.
    rate_width: of training (see `TrainConfig`).
    alike: every size has the same budget, instead of its share by parameters.
  """

  kind: str
  against: tuple[str, ...] = ()
  sizes: tuple[tuple[int, int, int], ...] = ()
  keep_exits: bool = False
  growth: growth_config.GrowthConfig = growth_config.NONE
  rate_width: int = 0
  alike: bool = False


@dataclasses.dataclass(frozen=True)
class FamiliesConfig:
  """A study of families.

  Attributes:
    title: heads the report.
    data: the corpus.
    model: keyword arguments of ModelConfig that all share, and `mlp_ratio`,
      `kv_ratio`: F / D and K / H.
    train: keyword arguments of TrainConfig that all share.
    sizes: (width, depth, heads) of each member, the smallest first.
    budgets: C, in FLOPs.
    equal: what costs C in every way: `member`, the largest size, and the others
      in their shares of it; or `total`, all that is trained.
    seeds: each way is done with each.
    warmup: share of a run's steps.
    ways: to the family, by name.
    layout: of all runs on their devices.
  """

  title: str
  data: data_config.DataConfig
  model: dict[str, Any]
  train: dict[str, Any]
  sizes: tuple[tuple[int, int, int], ...]
  budgets: tuple[float, ...]
  ways: dict[str, Way]
  equal: str = 'member'
  seeds: tuple[int, ...] = (0,)
  warmup: float = 0.05
  layout: train_config.LayoutConfig = dataclasses.field(
    default_factory=train_config.LayoutConfig
  )

  def __post_init__(self) -> None:
    for key in ('sizes', 'budgets', 'seeds', 'ways'):
      if not getattr(self, key):
        raise errors.UserError(f'{key}: is empty; it needs at least one')
    if self.equal not in EQUAL:
      raise errors.UserError(
        f'equal: {self.equal!r} is not one of {", ".join(EQUAL)}'
      )
    if not 0 <= self.warmup <= 1:
      raise errors.UserError(
        f'warmup: {self.warmup} is not allowed; it must be within 0 to 1'
      )
    for budget in self.budgets:
      if not 0 < budget < math.inf:
        raise errors.UserError(f'budgets: {budget} must be positive FLOPs')
    for name, way in self.ways.items():
      sizes = way.sizes or self.sizes
      if way.kind not in KINDS:
        raise errors.UserError(
          f'ways.{name}.kind: {way.kind!r} is not one of {", ".join(KINDS)}'
          f'{errors.nearest(way.kind, KINDS)}'
        )
      for other in way.against:
        if other not in self.ways or other == name:
          raise errors.UserError(
            f'ways.{name}.against: {other!r} is not another one of '
            f'{", ".join(self.ways)}'
          )
      if way.alike and way.kind != 'separate':
        raise errors.UserError(
          f'ways.{name}.alike: only separate sizes have budgets of their own'
        )
      if len(sizes) != len(self.sizes) or any(len(s) != 3 for s in sizes):
        raise errors.UserError(
          f'ways.{name}.sizes: {sizes} are not {len(self.sizes)} of (width, '
          'depth, heads)'
        )
      if way.keep_exits and way.kind != 'chain':
        raise errors.UserError(
          f'ways.{name}.keep_exits: only a chain has exits to keep'
        )
      one_width = len({(width, heads) for width, _, heads in sizes}) == 1
      if (way.kind == 'exits' or way.keep_exits) and not one_width:
        raise errors.UserError(
          f'ways.{name}.sizes: {sizes} are of several widths, and exits share '
          'one'
        )
