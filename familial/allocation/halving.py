"""Successive Halving: rounds in which survivors train on and the worse leave.

Jamieson and Talwalkar (2016), with surrogates as in arXiv 2605.17234: in round r
each of the |M_r| survivors gets C_r = B / (|M_r| R) more FLOPs, R the number of
rounds; then the |M_r| // eta of lowest score stay.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import fractions
import math
from typing import Any
from typing import NamedTuple
from typing import Protocol

import numpy as np

from familial.allocation import curves as curves_lib
from familial.allocation import ledger as ledger_lib
from familial.allocation import surrogate
from familial.core import errors


class Source(Protocol):
  """Candidates that can be trained, or whose training is replayed."""

  names: Sequence[str]  # of the candidates
  features: Sequence[Mapping[str, float]]  # of each

  def limit(self, candidate: int) -> float:
    """Returns the FLOPs after which a candidate takes no more."""

  def step(self, candidate: int) -> float:
    """Returns the least FLOPs by which a candidate goes on; 0 for any."""

  def point(self, candidate: int, flops: float) -> Mapping[str, float]:
    """Returns what a law needs of a candidate after so many FLOPs: N, D, G."""

  def advance(
    self, targets: Mapping[int, float]
  ) -> Mapping[int, curves_lib.Curve]:
    """Trains candidates on, each to at most so many FLOPs in all.

    Returns:
      What is then known of each; its `end` is what it has spent.
    """


class Survey(NamedTuple):
  """What survivors are ranked by: S allocations in one round, M survivors each.

  Attributes:
    sources: of each allocation.
    alive_SxM: numbers of the survivors among its candidates.
    curves: what is known of each, [S][M].
    target_SxM: FLOPs that the round allowed each in all; one that has less has
      ended.
    end_SxM: FLOPs that each takes in all if it survives to the end.
    round: from 0.
  """

  sources: Sequence[Source]
  alive_SxM: np.ndarray
  curves: Sequence[Sequence[curves_lib.Curve]]
  target_SxM: np.ndarray
  end_SxM: np.ndarray
  round: int

  @property
  def seen_SxM(self) -> np.ndarray:
    """The lowest loss so far; inf where none was seen."""
    return np.array([[curve.best for curve in row] for row in self.curves])


class Ranking(NamedTuple):
  """Scores [S, M], of which the lowest survive, and what they rest on."""

  score_SxM: np.ndarray
  prediction: surrogate.Prediction | None = None


Rank = Callable[[Survey], Ranking]


@dataclasses.dataclass(frozen=True)
class Round:
  """One round of one allocation; lists go by survivor, in their order.

  Attributes:
    alive: numbers of the survivors it began with.
    share: FLOPs that each was offered; of policy `law` all together.
    spent: FLOPs of each in all, after the round.
    seen: lowest loss of each so far; None where none was seen.
    score: what they were ranked by; None where nothing is known, or after a
      last round, which ranks no more.
    end: FLOPs that each takes in all if it survives to the last round.
    predicted: mean, lo and hi of the loss there, where a surrogate was asked;
      None for those of which it sees too little, or which have ended.
    kept: numbers of those that survive it.
  """

  alive: tuple[int, ...]
  share: float
  spent: tuple[float, ...]
  seen: tuple[float | None, ...]
  score: tuple[float | None, ...]
  end: tuple[float, ...]
  predicted: tuple[tuple[float, float, float] | None, ...] | None
  kept: tuple[int, ...]


def from_rows(rows: Sequence[Mapping[str, Any]]) -> list[Round]:
  """Rounds from what JSON makes of them."""
  fields = [field.name for field in dataclasses.fields(Round)]
  return [Round(**{key: _tuples(row[key]) for key in fields}) for row in rows]


@dataclasses.dataclass(frozen=True)
class Allocation:
  """How a budget was spent, and what is known of every candidate after it.

  Attributes:
    budget: FLOPs allowed.
    spent: FLOPs of each candidate.
    rounds: in order.
    curves: of each candidate, as far as it was trained.
  """

  budget: float
  spent: tuple[float, ...]
  rounds: tuple[Round, ...]
  curves: tuple[curves_lib.Curve, ...]

  @property
  def total(self) -> float:
    """FLOPs spent in all."""
    return math.fsum(self.spent)

  @property
  def best(self) -> float:
    """The lowest loss that was seen."""
    return min(curve.best for curve in self.curves)


def survivors(candidates: int, eta: int) -> tuple[int, ...]:
  """How many train in each round: max(1, ceil(log_eta candidates)) of them.

  In whole numbers: floating logarithms give 4 rounds for 125 and 5.
  """
  counts = [candidates]
  power = eta
  while power < candidates:
    power *= eta
    counts.append(counts[-1] // eta)
  return tuple(counts)


def run(
  sources: Sequence[Source],
  budget: float,
  eta: int,
  rank: Rank,
  decided: Sequence[Round] = (),
  on_round: Callable[[list[Round]], Any] = lambda rounds: None,
) -> list[Allocation]:
  """Allocates a budget among each source's candidates, in lockstep.

  Survivors of one score stay in the order of the candidates. One that diverged
  has the worst score, whatever it was before.

  Args:
    sources: S of them, with equally many candidates; they do not know of one
      another.
    budget: FLOPs of each allocation.
    eta: of the survivors of a round one in so many stays.
    rank: by what.
    decided: first rounds of an allocation that was interrupted (S = 1), whose
      decisions stand.
    on_round: called after each round that was not decided before, with that of
      every allocation.

  Raises:
    UserError: if candidates, eta or the budget are too small for a round.
  """
  count = len(sources[0].names)
  check(count, budget, eta)
  counts = survivors(count, eta)
  shares = [
    fractions.Fraction(budget) / (alive * len(counts)) for alive in counts
  ]
  ledgers = [ledger_lib.Ledger(budget, count) for _ in sources]
  alive_SxM = np.tile(np.arange(count), (len(sources), 1))
  known: list[dict[int, curves_lib.Curve]] = [{} for _ in sources]
  rounds: list[list[Round]] = [[] for _ in sources]
  for number, share in enumerate(shares):
    target_SxM = np.zeros(alive_SxM.shape)
    for s, source in enumerate(sources):
      targets = {int(i): ledgers[s].target(int(i), share) for i in alive_SxM[s]}
      target_SxM[s] = list(targets.values())
      reached = source.advance(
        {i: min(flops, source.limit(i)) for i, flops in targets.items()}
      )
      ledgers[s].charge({i: curve.end for i, curve in reached.items()})
      known[s].update(reached)
    later = float(sum(shares[number + 1 :]))
    survey = Survey(
      sources=sources,
      alive_SxM=alive_SxM,
      curves=[
        [known[s][int(i)] for i in row] for s, row in enumerate(alive_SxM)
      ],
      target_SxM=target_SxM,
      end_SxM=np.array(
        [
          [
            min(target + later, source.limit(int(i)))
            for i, target in zip(alive, targets, strict=True)
          ]
          for source, alive, targets in zip(
            sources, alive_SxM, target_SxM, strict=True
          )
        ]
      ),
      round=number,
    )
    last = number == len(shares) - 1
    ranking, kept_SxK = _decide(
      survey, rank, None if last else counts[number + 1], decided
    )
    for s, ledger in enumerate(ledgers):
      made = _round(survey, ranking, s, float(share), ledger, kept_SxK[s])
      rounds[s].append(decided[number] if number < len(decided) else made)
    if number >= len(decided):
      on_round([each[-1] for each in rounds])
    alive_SxM = kept_SxK
  return [
    Allocation(
      budget=budget,
      spent=tuple(map(float, ledger.spent)),
      rounds=tuple(each),
      curves=tuple(curves[i] for i in range(count)),
    )
    for ledger, each, curves in zip(ledgers, rounds, known, strict=True)
  ]


def check(candidates: int, budget: float, eta: int) -> None:
  """Refuses what cannot be allocated."""
  if candidates < 2:
    raise errors.UserError(f'candidates: {candidates}; at least 2 are needed')
  if eta < 2:
    raise errors.UserError(f'eta: {eta} is not allowed; it must be at least 2')
  if not 0 < budget < math.inf:
    raise errors.UserError(
      f'budget: {budget} is not allowed; it must be FLOPs above 0'
    )


def _decide(
  survey: Survey, rank: Rank, count: int | None, decided: Sequence[Round]
) -> tuple[Ranking | None, np.ndarray]:
  """The ranking and the survivors [S, count]; the last round ranks no more."""
  if survey.round < len(decided):
    return None, np.array([decided[survey.round].kept])
  if count is None:
    return None, survey.alive_SxM
  ranking = rank(survey)
  diverged = [[curve.diverged for curve in row] for row in survey.curves]
  score = np.where(diverged, np.inf, ranking.score_SxM)
  score = np.where(np.isnan(score), np.inf, score)
  order = np.argsort(score, axis=1, kind='stable')[:, :count]
  kept = np.take_along_axis(survey.alive_SxM, np.sort(order, axis=1), axis=1)
  return ranking._replace(score_SxM=score), kept


def _round(
  survey: Survey,
  ranking: Ranking | None,
  s: int,
  share: float,
  ledger: ledger_lib.Ledger,
  kept: np.ndarray,
) -> Round:
  """What is to be remembered of a round of one allocation."""
  alive = survey.alive_SxM[s]
  predicted = None
  if ranking is not None and ranking.prediction is not None:
    columns = [part[s].tolist() for part in ranking.prediction]
    predicted = tuple(
      each if all(map(math.isfinite, each)) else None
      for each in zip(*columns, strict=True)
    )
  score = [None] * len(alive) if ranking is None else ranking.score_SxM[s]
  return Round(
    alive=tuple(map(int, alive)),
    share=share,
    spent=tuple(float(ledger.spent[i]) for i in alive),
    seen=tuple(map(_finite, survey.seen_SxM[s])),
    score=tuple(map(_finite, score)),
    end=tuple(map(float, survey.end_SxM[s])),
    predicted=predicted,
    kept=tuple(map(int, kept)),
  )


def _finite(value: float | None) -> float | None:
  known = value is not None and math.isfinite(value)
  return float(value) if known else None  # type: ignore[arg-type]


def _tuples(value: Any) -> Any:
  return tuple(map(_tuples, value)) if isinstance(value, list) else value
