"""What a live allocation asks for: candidates, and what may be spent on them."""

import dataclasses
import math
from typing import Any

from familial.allocation import config as allocation_config
from familial.allocation import halving
from familial.allocation import policies
from familial.core import errors
from familial.data import config as data_config
from familial.laws import forms
from familial.training import config as train_config

SCHEDULES = ('constant', 'wsd')
LAW = allocation_config.Law('familial_total')
RUN_KEYS = ('steps', 'warmup_steps')  # What a candidate decides for itself.


@dataclasses.dataclass(frozen=True)
class AllocationConfig:
  """Candidates that are trained as a policy decides, round by round.

  Attributes:
    title: heads the report.
    data: the corpus.
    model: keyword arguments of ModelConfig that all share, and `mlp_ratio`,
      `kv_ratio`: F / D and K / H.
    train: keyword arguments of TrainConfig that all share. A run that is cut
      short must be an honest short run, so its rate is `constant` or `wsd`,
      which decays in the last `decay_fraction` before `horizon` alone.
    shapes: (width, depth, heads) of the candidates.
    granularities: G; each shape with each is a candidate.
    horizon: FLOPs after which a candidate takes no more.
    budget: FLOPs for all candidates together.
    policy: by what survivors are ranked.
    eta: one in so many survives a round.
    loss: that counts, `final` or `mean` over exits.
    full: then train all candidates to the horizon, to see what the allocation
      missed.
    warmup: share of the horizon's steps.
    law: fitted to what was trained.
    layout: of all runs on their devices.
  """

  title: str
  data: data_config.DataConfig
  model: dict[str, Any]
  train: dict[str, Any]
  shapes: tuple[tuple[int, int, int], ...]
  horizon: float
  budget: float
  granularities: tuple[int, ...] = (1,)
  policy: str = 'sh_ensemble_power_law'
  eta: int = 2
  loss: str = 'final'
  full: bool = False
  warmup: float = 0.02
  law: allocation_config.Law = LAW
  layout: train_config.LayoutConfig = dataclasses.field(
    default_factory=train_config.LayoutConfig
  )

  def __post_init__(self) -> None:
    for key in ('shapes', 'granularities'):
      if not getattr(self, key):
        raise errors.UserError(f'{key}: is empty; it needs at least one')
    halving.check(
      len(self.shapes) * len(self.granularities), self.budget, self.eta
    )
    policy = policies.get(self.policy)
    if not policy.live:
      raise errors.UserError(
        f'policy: {self.policy!r} knows the future, which replays alone have'
      )
    if self.law.form:
      forms.get(self.law.form)
    policy.check(self.law)
    schedule = self.train.get('schedule')
    if schedule not in SCHEDULES:
      raise errors.UserError(
        f'train.schedule: {schedule!r} is not one of {", ".join(SCHEDULES)}: a run'
        ' whose rate falls to its own end is no shorter run when it is cut'
      )
    if self.loss not in allocation_config.LOSSES:
      raise errors.UserError(
        f'loss: {self.loss!r} is not one of {", ".join(allocation_config.LOSSES)}'
      )
    if not 0 < self.horizon < math.inf:
      raise errors.UserError(f'horizon: {self.horizon} must be positive FLOPs')
    if not 0 <= self.warmup <= 1:
      raise errors.UserError(
        f'warmup: {self.warmup} is not allowed; it must be within 0 to 1'
      )

  @property
  def steady(self) -> float:
    """Share of a run's steps before its rate decays.

    Losses of the decay are those of another rate, and tell candidates apart by how
    far they are from their ends: candidates compete without it.
    """
    if self.train['schedule'] != 'wsd':
      return 1.0
    default = train_config.TrainConfig.decay_fraction
    return float(1 - self.train.get('decay_fraction', default))
