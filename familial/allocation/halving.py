"""Successive Halving: the best candidates of each round train on.

Jamieson and Talwalkar (2016), with surrogates as in arXiv 2605.17234: in round r
each of the |M_r| survivors gets C_r = B / (|M_r| R) more FLOPs, R the number of
rounds; the |M_r| // eta of lowest score survive.

Dimensions: S allocations in lockstep, M survivors of each.
"""

from collections.abc import Callable
from collections.abc import Sequence
import fractions
import math
from typing import NamedTuple

import numpy as np

from familial.allocation import curves as curves_lib
from familial.allocation import rounds
from familial.core import errors


class Survey(NamedTuple):
  """Score by which survivors are ranked after a round.

  Attributes:
    sources: of each allocation.
    alive_SxM: numbers of the survivors.
    curves: of each survivor so far, [S][M].
    end_SxM: FLOPs spent on each if it survives to the last round.
    round: number of the round, from 0.
  """

  sources: Sequence[rounds.Source]
  alive_SxM: np.ndarray
  curves: Sequence[Sequence[curves_lib.Curve]]
  end_SxM: np.ndarray
  round: int

  @property
  def seen_SxM(self) -> np.ndarray:
    """The lowest loss so far; inf before the first."""
    return np.array([[curve.best for curve in row] for row in self.curves])


class Prediction(NamedTuple):
  """Loss in nats and its predictive interval, each [S, M]; NaN for none."""

  mean: np.ndarray
  lo: np.ndarray
  hi: np.ndarray


class Ranking(NamedTuple):
  """Scores [S, M], the lowest of which survive, and their predictions."""

  score_SxM: np.ndarray
  prediction: Prediction | None = None


Rank = Callable[[Survey, int], Ranking]  # of a survey and a seed


def survivors(candidates: int, eta: int) -> tuple[int, ...]:
  """Returns how many train in each of max(1, ceil(log_eta candidates)) rounds.

  By integers: the floating logarithm gives 4 rounds for 125 and 5.
  """
  counts = [candidates]
  power = eta
  while power < candidates:
    power *= eta
    counts.append(counts[-1] // eta)
  return tuple(counts)


def check(candidates: int, budget: float, eta: int) -> None:
  """Refuses an allocation that has no round."""
  errors.require(candidates >= 2, 'candidates', candidates, 'at least 2')
  errors.require(eta >= 2, 'eta', eta, 'at least 2')
  errors.require(0 < budget < math.inf, 'budget', budget, 'FLOPs above 0')


def run(
  sources: Sequence[rounds.Source],
  budgets: Sequence[float],
  settings: rounds.Settings,
  rank: Rank,
) -> list[rounds.Allocation]:
  """Allocates each source's budget among its candidates.

  Equal scores rank in the order of the candidates; one that diverged has the
  worst score.

  Args:
    sources: S of them, with equally many candidates; independent.
    budgets: FLOPs of each.
    settings: of the allocations.
    rank: scores the survivors of a round.

  Raises:
    UserError: if candidates, eta or a budget are too small for a round.
  """
  candidates = len(sources[0].names)
  for budget in budgets:
    check(candidates, budget, settings.eta)
  counts = survivors(candidates, settings.eta)
  ledgers = list(map(rounds.Ledger, sources, budgets))
  alive_SxM = np.tile(np.arange(candidates), (len(sources), 1))
  for number in range(len(counts)):
    alive = alive_SxM.tolist()
    end_SxM = np.array(
      [
        _train(*each, counts, number)
        for each in zip(ledgers, alive, strict=True)
      ]
    )
    if number < len(settings.decided):
      closed = settings.decided[number]
      ledgers[0].rounds.append(closed)
      alive_SxM = np.array([closed.kept])
      continue
    ranking, kept_SxK = None, alive_SxM
    if number + 1 < len(counts):
      known = [
        [ledger.known[i] for i in row]
        for ledger, row in zip(ledgers, alive, strict=True)
      ]
      survey = Survey(sources, alive_SxM, known, end_SxM, number)
      ranking = _ranking(survey, rank, settings.seed)
      best = ranking.score_SxM.argsort(axis=1, kind='stable')
      best = np.sort(best[:, : counts[number + 1]], axis=1)
      kept_SxK = np.take_along_axis(alive_SxM, best, axis=1)
    for s, ledger in enumerate(ledgers):
      ledger.close_round(
        alive[s],
        ledger.budget / (counts[number] * len(counts)),
        end_SxM[s],
        kept_SxK[s].tolist(),
        *_of_allocation(ranking, s),
      )
    settings.on_round([ledger.rounds[-1] for ledger in ledgers])
    alive_SxM = kept_SxK
  return [ledger.allocation() for ledger in ledgers]


def _train(
  ledger: rounds.Ledger,
  alive: Sequence[int],
  counts: Sequence[int],
  number: int,
) -> list[float]:
  """Trains survivors by a share; returns their FLOPs if they survive to the end."""
  share, *later = (
    fractions.Fraction(ledger.budget) / (n * len(counts))
    for n in counts[number:]
  )
  more = float(sum(later))
  limits = {i: ledger.source.limit(i) for i in alive}
  targets = {i: ledger.target(i, share) for i in alive}
  ledger.advance({i: min(targets[i], limits[i]) for i in alive})
  return [min(targets[i] + more, limits[i]) for i in alive]


def _ranking(survey: Survey, rank: Rank, seed: int) -> Ranking:
  """The ranking with the worst score for what diverged or has none."""
  ranking = rank(survey, seed)
  diverged = [[curve.diverged for curve in row] for row in survey.curves]
  worst = np.isnan(ranking.score_SxM) | diverged
  return ranking._replace(score_SxM=np.where(worst, np.inf, ranking.score_SxM))


def _of_allocation(
  ranking: Ranking | None, s: int
) -> tuple[list[float] | None, list[list[float]] | None]:
  """Scores and predictions of one allocation."""
  if ranking is None:
    return None, None
  score = ranking.score_SxM[s].tolist()
  if ranking.prediction is None:
    return score, None
  return score, np.stack(ranking.prediction, axis=2)[s].tolist()
