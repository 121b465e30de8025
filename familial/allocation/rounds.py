"""Candidates, policies, rounds and the ledger of FLOPs of an allocation."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import fractions
import math
from typing import Any
from typing import NamedTuple
from typing import Protocol

import numpy as np

from familial.allocation import config
from familial.allocation import curves as curves_lib
from familial.core import estimate
from familial.core import schema
from familial.core import text


class Source(Protocol):
  """Candidates that can be trained, or whose training is replayed.

  Attributes:
    names: one a candidate.
    features: numbers that describe each candidate, by name.
  """

  names: Sequence[str]
  features: Sequence[Mapping[str, float]]

  def limit(self, candidate: int) -> float:
    """Returns the FLOPs beyond which a candidate cannot be trained."""

  def step(self, candidate: int) -> float:
    """Returns the FLOPs of a candidate's training step; 0 if divisible."""

  def point(self, candidate: int, flops: float) -> Mapping[str, float]:
    """Returns a law's columns (N, D, G) of a candidate at so many FLOPs."""

  def advance(
    self, targets: Mapping[int, float]
  ) -> Mapping[int, curves_lib.Curve]:
    """Trains candidates on, each to at most a total of FLOPs.

    Returns:
      What is then known of each; its `end` is what was spent on it.
    """


@dataclasses.dataclass(frozen=True)
class Round:
  """One round of one allocation; sequences are parallel to `alive`.

  Attributes:
    alive: numbers of the candidates that trained.
    share: FLOPs offered to each; of policy `law` to all together.
    spent: FLOPs spent on each since the first round.
    seen: lowest loss of each so far; None before a first loss.
    score: the ranking, lowest first; None where unknown, and after the last
      round, which does not rank.
    end: FLOPs spent on each if it survives to the last round.
    predicted: mean, lo and hi of the loss at `end` if a surrogate was asked;
      None for a candidate without a prediction.
    kept: numbers of the candidates that survive the round.
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
  """Returns rounds from their rows in a JSON-lines file."""
  fields = [field.name for field in dataclasses.fields(Round)]
  return [schema.read(Round, {key: row[key] for key in fields}) for row in rows]


def spent(rounds: Sequence[Round], candidates: int) -> list[float]:
  """Returns the FLOPs spent on each candidate in some rounds."""
  total = [0.0] * candidates
  for closed in rounds:
    for i, flops in zip(closed.alive, closed.spent, strict=True):
      total[i] = flops
  return total


@dataclasses.dataclass(frozen=True)
class Ranked:
  """A candidate in a round: one element of `Round`, whose fields it has.

  Attributes:
    round: from 1.
    cell: name of the candidate.
    spent: FLOPs spent on it since the first round.
    seen: lowest loss so far.
    score: the ranking, lowest first.
    end: FLOPs spent on it if it survives to the last round.
    predicted: loss at `end`; the interval is of surrogate.LEVEL.
    reached: true loss at `end`; None if it was not trained so far.
    kept: whether it survives the round.
  """

  round: int
  cell: str
  spent: float
  seen: float | None
  score: float | None
  end: float
  predicted: estimate.Estimate | None
  reached: float | None
  kept: bool


def ranking(
  rounds: Sequence[Round], curves: Sequence[curves_lib.Curve]
) -> Iterator[Ranked]:
  """Yields the candidates of each round.

  Args:
    rounds: of one allocation.
    curves: of all candidates, as far as they are known today.
  """
  for number, closed in enumerate(rounds, 1):
    predicted = closed.predicted or (None,) * len(closed.alive)
    for k, i in enumerate(closed.alive):
      curve, end, prediction = curves[i], closed.end[k], predicted[k]
      reached = float(curve.at(end)) if curve.end >= end else math.inf
      yield Ranked(
        round=number,
        cell=curve.name,
        spent=closed.spent[k],
        seen=closed.seen[k],
        score=closed.score[k],
        end=end,
        predicted=estimate.Estimate(*prediction) if prediction else None,
        reached=_known(reached),
        kept=i in closed.kept,
      )


@text.brief
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
    """FLOPs spent on all candidates."""
    return math.fsum(self.spent)

  @property
  def best(self) -> float:
    """Lowest loss of all curves."""
    return min(curve.best for curve in self.curves)


class Settings(NamedTuple):
  """Settings of a policy besides sources and budgets.

  Attributes:
    eta: Successive Halving factor: 1/eta of the candidates survive a round.
    law: that will be fitted.
    seed: of surrogates.
    decided: rounds of an interrupted allocation of one source, not decided
      again.
    on_round: called after each newly decided round, with that of every source.
  """

  eta: int = 2
  law: config.Law = config.Law()
  seed: int = 0
  decided: Sequence[Round] = ()
  on_round: Callable[[list[Round]], Any] = lambda closed: None


class Policy(Protocol):
  """Divides a budget among candidates."""

  @property
  def live(self) -> bool:
    """Whether it can allocate real training; False if it knows the future."""

  @property
  def bracketed(self) -> bool:
    """Whether it trains by Successive Halving's rounds.

    In a replay another policy gets the FLOPs that `sh` could spend, since
    candidates that end leave a bracket's budget unspent.
    """

  def check(self, law: config.Law) -> None:
    """Refuses a law that the policy cannot work for."""

  def survivors(self, candidates: int, eta: int) -> tuple[int, ...]:
    """Returns how many train in each round; () if the policy prunes none."""

  def allocate(
    self,
    sources: Sequence[Source],
    budgets: Sequence[float],
    settings: Settings,
  ) -> list[Allocation]:
    """Allocates the budget of each source, independently of the others."""


class Ledger:
  """An allocation under way. FLOPs never exceed the budget or are refunded.

  Attributes:
    source: of the candidates.
    budget: FLOPs of the whole allocation.
    spent: FLOPs of each candidate so far, [candidates].
    known: curves of the candidates trained so far.
    rounds: closed so far.
  """

  def __init__(self, source: Source, budget: float):
    """Opens the ledger with nothing spent."""
    self.source = source
    self.budget = budget
    self.spent = np.zeros(len(source.names))
    self.known: dict[int, curves_lib.Curve] = {}
    self.rounds: list[Round] = []

  @property
  def total(self) -> float:
    """FLOPs spent on all candidates."""
    return math.fsum(self.spent)

  def target(self, candidate: int, share: fractions.Fraction) -> float:
    """Returns the FLOPs of a candidate once it has used up a share.

    Rounded down, so that shares that add up to the budget never exceed it.
    """
    exact = fractions.Fraction(float(self.spent[candidate])) + share
    nearest = float(exact)
    return nearest if nearest <= exact else math.nextafter(nearest, 0.0)

  def advance(self, targets: Mapping[int, float]) -> None:
    """Trains candidates on to at most `targets` FLOPs and charges them."""
    reached = self.source.advance(targets)
    self.charge({i: curve.end for i, curve in reached.items()})
    self.known.update(reached)

  def charge(self, reached: Mapping[int, float]) -> None:
    """Sets the FLOPs spent on candidates since the first round.

    Raises:
      ValueError: if one had spent more before, or the budget is exceeded; then
        the ledger is unchanged.
    """
    spent = self.spent.copy()
    for candidate, flops in reached.items():
      if flops < spent[candidate]:
        raise ValueError(
          f'candidate {candidate}: {flops:.6g} FLOPs, after {spent[candidate]:.6g}'
        )
      spent[candidate] = flops
    if math.fsum(spent) > self.budget:
      raise ValueError(
        f'{math.fsum(spent):.17g} FLOPs exceed the budget of {self.budget:.17g}'
      )
    self.spent = spent

  def close_round(
    self,
    alive: Sequence[int],
    share: float,
    end: Sequence[float],
    kept: Sequence[int],
    score: Sequence[float] | None = None,
    predicted: Sequence[Sequence[float]] | None = None,
  ) -> None:
    """Appends a round; arguments are `Round`'s, not finite for unknown."""
    self.rounds.append(
      Round(
        alive=tuple(alive),
        share=share,
        spent=tuple(float(self.spent[i]) for i in alive),
        seen=tuple(_known(self.known[i].best) for i in alive),
        score=tuple(map(_known, score or [math.nan] * len(alive))),
        end=tuple(map(float, end)),
        predicted=None
        if predicted is None
        else tuple(
          (mean, lo, hi) if all(map(math.isfinite, (mean, lo, hi))) else None
          for mean, lo, hi in predicted
        ),
        kept=tuple(kept),
      )
    )

  def allocation(self) -> Allocation:
    """Returns the allocation after its last round."""
    nothing = np.zeros(0)
    return Allocation(
      budget=self.budget,
      spent=tuple(map(float, self.spent)),
      rounds=tuple(self.rounds),
      curves=tuple(
        self.known.get(i, curves_lib.Curve(name, nothing, nothing))
        for i, name in enumerate(self.source.names)
      ),
    )


def _known(value: float) -> float | None:
  return float(value) if math.isfinite(value) else None
