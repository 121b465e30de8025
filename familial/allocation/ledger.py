"""What an allocation may spend, and what it has spent."""

from collections.abc import Mapping
import fractions
import math

import numpy as np


class Ledger:
  """FLOPs of each candidate: never above the budget in all, never given back.

  Attributes:
    budget: FLOPs of the whole allocation.
    spent: on each candidate so far, [candidates].
  """

  def __init__(self, budget: float, candidates: int):
    """Opens it with nothing spent."""
    self.budget = budget
    self.spent = np.zeros(candidates)

  @property
  def total(self) -> float:
    """Spent in all."""
    return math.fsum(self.spent)

  def target(self, candidate: int, share: fractions.Fraction) -> float:
    """What a candidate may have spent in all once it has used up a share.

    Rounded down, so that shares that add up to the budget never exceed it.
    """
    exact = fractions.Fraction(float(self.spent[candidate])) + share
    nearest = float(exact)
    return nearest if nearest <= exact else math.nextafter(nearest, 0.0)

  def charge(self, reached: Mapping[int, float]) -> None:
    """Writes down what candidates have spent in all.

    Raises:
      ValueError: if one had spent more before, or the budget is exceeded; then
        nothing is written.
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
