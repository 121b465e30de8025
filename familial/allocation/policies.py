"""The policies of `familial allocate`; a new policy or surrogate is one line here.

A policy is a `rounds.Policy`. A surrogate is a `surrogate.Surrogate`, and becomes
a policy of Successive Halving by `surrogate.ranked_by`.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from familial.allocation import config
from familial.allocation import ensemble
from familial.allocation import halving
from familial.allocation import lmc
from familial.allocation import optimal_design
from familial.allocation import rounds
from familial.allocation import surrogate
from familial.core import errors


def by_loss(survey: halving.Survey, seed: int) -> halving.Ranking:
  """Ranks by the lowest loss seen so far."""
  del seed
  return halving.Ranking(survey.seen_SxM)


def by_future_loss(survey: halving.Survey, seed: int) -> halving.Ranking:
  """Ranks by the loss at the end of the last round, which a replay knows."""
  del seed
  score = [
    [
      float(source.future(i, flops))  # type: ignore[attr-defined]
      for i, flops in zip(alive, ends, strict=True)
    ]
    for source, alive, ends in zip(
      survey.sources, survey.alive_SxM, survey.end_SxM, strict=True
    )
  ]
  return halving.Ranking(np.array(score))


@dataclasses.dataclass(frozen=True)
class SuccessiveHalving:
  """Successive Halving by a ranking.

  Attributes:
    rank: scores the survivors.
    pruning: False for a single round, in which all candidates train.
    live: see `rounds.Policy`.
    bracketed: likewise.
  """

  rank: halving.Rank
  pruning: bool = True
  live: bool = True
  bracketed: bool = True

  def check(self, law: config.Law) -> None:
    """Accepts any law."""

  def survivors(self, candidates: int, eta: int) -> tuple[int, ...]:
    """Returns how many train in each round."""
    return halving.survivors(candidates, eta if self.pruning else candidates)

  def allocate(
    self,
    sources: Sequence[rounds.Source],
    budgets: Sequence[float],
    settings: rounds.Settings,
  ) -> list[rounds.Allocation]:
    """Allocates the budget of each source."""
    if not self.pruning:
      settings = settings._replace(eta=len(sources[0].names))
    return halving.run(sources, budgets, settings, self.rank)


LAW = 'law'
BASE = 'sh'  # which the others are compared with
BOUND = 'oracle'  # whose best loss no other bracketed policy can surpass
POLICIES: dict[str, rounds.Policy] = {
  'uniform': SuccessiveHalving(by_loss, pruning=False),
  BASE: SuccessiveHalving(by_loss),
  'sh_lmc': SuccessiveHalving(surrogate.ranked_by(lmc.predict)),
  **{
    f'sh_ensemble_{family}': SuccessiveHalving(
      surrogate.ranked_by(ensemble.predictor(family))
    )
    for family in ensemble.FAMILIES
  },
  LAW: optimal_design.OptimalDesign(),
  BOUND: SuccessiveHalving(by_future_loss, live=False),
}


def get(name: str) -> rounds.Policy:
  """Returns a policy by name.

  Raises:
    UserError: if there is no such policy.
  """
  errors.require_one_of('policy', name, POLICIES)
  return POLICIES[name]
