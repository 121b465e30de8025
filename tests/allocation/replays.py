"""Allocations of known curves, shared by the tests."""

import numpy as np

from familial.allocation import policies
from familial.allocation import replay
from familial.allocation import rounds
from familial.allocation import synthetic


def allocate(name, grids, budget, **settings):
  """Allocations of each grid by the policy of a name, or by a policy itself."""
  policy = policies.get(name) if isinstance(name, str) else name
  return policy.allocate(
    [replay.KnownCurves(grid) for grid in grids],
    [budget] * len(grids),
    rounds.Settings(**settings),
  )


def draws(count=3, candidates=6):
  """Random choices of twelve clean synthetic curves."""
  pool = synthetic.curves(12).curves
  rng = np.random.default_rng(0)
  return [
    [pool[i] for i in rng.choice(12, candidates, replace=False)]
    for _ in range(count)
  ]
