"""Allocation for the law: trains what makes its extrapolation most certain.

The policy minimises the variance of the log loss that the fitted law predicts
beyond the grid, by a sequential c-optimal design (Chaloner and Verdinelli 1995).
With J the Jacobian of the log loss in the law's coordinates, a run's information
is J' S^-1 J, where S holds the noise of the points and an effect that all points
of a run share. Each round plans the whole of the budget left, greedily by variance
removed per FLOP, trains the cheapest part of the plan, and refits the law.

Dimensions: M candidates, K levels of compute, P coordinates, H directions.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import NamedTuple

import numpy as np

from familial.allocation import config
from familial.allocation import curves as curves_lib
from familial.allocation import halving
from familial.allocation import rounds
from familial.core import errors
from familial.laws import estimation
from familial.laws import forms
from familial.laws import frontier
from familial.laws import levenberg_marquardt
from familial.laws import parametric
from familial.laws import table as tables

ROUNDS = 6
_LEVELS = 12  # of a candidate's compute, each twice the last
# Prior mean and deviation of the coordinates before the first fit: constants of
# Hoffmann et al. (2022) as refitted by Besiroglu et al. (2024).
_PRIOR = {
  'E': (1.8172, 1.0),
  'A': (482.01, 3.0),
  'B': (2085.43, 3.0),
  'alpha': (0.3478, 0.2),
  'beta': (0.3658, 0.2),
  'gamma': (0.0, 0.1),
}
# Deviations of the log loss of a point and of its run. A law errs more for small
# compute: a point's deviation grows as (largest compute / compute)^_MISFIT.
_POINT, _RUN, _MISFIT = 0.005, 0.01, 0.5


class OptimalDesign:
  """The policy `law`; see `rounds.Policy`."""

  live = True
  bracketed = False

  def check(self, law: config.Law) -> None:
    """Refuses a law without a prior."""
    if not has_prior(law):
      raise errors.UserError(
        f'law.form: {law.form!r} is not allowed for policy law, which needs a'
        f' form of the constants {", ".join(_PRIOR)} alone, such as chinchilla'
      )

  def survivors(self, candidates: int, eta: int) -> tuple[int, ...]:
    """Returns (): the policy prunes no candidate."""
    del candidates, eta
    return ()

  def allocate(
    self,
    sources: Sequence[rounds.Source],
    budgets: Sequence[float],
    settings: rounds.Settings,
  ) -> list[rounds.Allocation]:
    """Allocates the budget of each source; a round's `alive` are trained in it."""
    law, decided = settings.law, settings.decided
    self.check(law)
    for source, budget in zip(sources, budgets, strict=True):
      halving.check(len(source.names), budget, 2)
    ledgers = list(map(rounds.Ledger, sources, budgets))
    for number in range(ROUNDS):
      if number < len(decided):
        closed = decided[number]
        plans = [dict(zip(closed.alive, closed.end, strict=True))]
      else:
        plans = [
          plan(ledger, law, _fit(law, ledger.known), ROUNDS - number)
          for ledger in ledgers
        ]
      for ledger, targets in zip(ledgers, plans, strict=True):
        ledger.advance(targets)
        alive = sorted(targets)
        end = [targets[i] for i in alive]
        ledger.close_round(alive, ledger.budget / ROUNDS, end, alive)
      if number >= len(decided):
        settings.on_round([ledger.rounds[-1] for ledger in ledgers])
    return [ledger.allocation() for ledger in ledgers]


def has_prior(law: config.Law) -> bool:
  """Whether a prior is known of all of a law's constants."""
  return bool(law.form) and set(forms.get(law.form).names) <= set(_PRIOR)


def _prior(form: parametric.Form) -> tuple[np.ndarray, np.ndarray]:
  """Mean and deviation of the coordinates, each [P]."""
  mean = form.theta({name: _PRIOR[name][0] for name in form.names})
  return mean, np.array([_PRIOR[name][1] for name in form.names])


def _fit(law: config.Law, known: Mapping[int, curves_lib.Curve]) -> np.ndarray:
  """The law's coordinates [P]; the prior's mean without a plausible fit."""
  form = forms.get(law.form)
  mean, deviation = _prior(form)
  try:
    table, weights = curves_lib.rows(
      [curves_lib.thin(list(known.values()))], law.where
    )
  except errors.UserError:  # No point counts yet.
    return mean
  [theta], [determined] = estimation.fit_groups(form, table, weights)
  plausible = (np.abs(theta - mean) <= 3 * deviation).all()
  return theta if determined and plausible else mean


def plan(
  ledger: rounds.Ledger, law: config.Law, theta_P: np.ndarray, rounds_left: int
) -> dict[int, float]:
  """Returns the FLOPs of each candidate to train in the next round.

  Args:
    ledger: of the allocation so far.
    law: to be known.
    theta_P: its coordinates so far.
    rounds_left: number of rounds left, of which the last one does all of its
      plan.
  """
  if not _usable(ledger.source, law).any():
    return {}
  levels = information(ledger.source, law, theta_P)
  directions_HxP = _directions(ledger.source, law, theta_P)
  spent_M = ledger.spent.copy()
  at_M = np.array(
    [
      np.searchsorted(flops[1:], spent * (1 + 1e-9), side='right')
      for flops, spent in zip(levels.flops_MxK, spent_M, strict=True)
    ]
  )
  known_PxP = np.diag(_prior(forms.get(law.form))[1] ** -2.0)
  for i, level in enumerate(at_M):
    known_PxP = known_PxP + levels.information_MxKxPxP[i, level]
  for i, curve in ledger.known.items():
    if curve.diverged:
      levels.flops_MxK[i] = np.inf
  left = ledger.budget - ledger.total
  while move := best_move(
    levels, known_PxP, directions_HxP, spent_M, at_M, left
  ):
    i, level = move
    own = levels.information_MxKxPxP[i]
    known_PxP = known_PxP + own[level] - own[at_M[i]]
    flops = float(levels.flops_MxK[i, level])
    left -= flops - spent_M[i]
    spent_M[i], at_M[i] = flops, level
  # The smallest targets first, as far as the round's share of the budget goes.
  share = (ledger.budget - ledger.total) / rounds_left
  targets: dict[int, float] = {}
  for flops, i in sorted((x, i) for i, x in enumerate(spent_M.tolist())):
    cost = flops - float(ledger.spent[i])
    if cost <= 0:
      continue
    if rounds_left > 1 and targets and cost > share:
      break
    share -= cost
    targets[i] = flops
  return targets


class Levels(NamedTuple):
  """Information of each candidate's run at levels of compute, the first 0."""

  flops_MxK: np.ndarray
  information_MxKxPxP: np.ndarray


def best_move(
  levels: Levels,
  known_PxP: np.ndarray,
  directions_HxP: np.ndarray,
  spent_M: np.ndarray,
  at_M: np.ndarray,
  left: float,
) -> tuple[int, int] | None:
  """Returns the candidate and level that remove most variance per FLOP.

  Args:
    levels: of the candidates.
    known_PxP: information so far.
    directions_HxP: in which the variance counts.
    spent_M: FLOPs of each candidate.
    at_M: level of each candidate.
    left: FLOPs that may be spent.

  Returns:
    None if no move that can be paid removes any.
  """
  cost = levels.flops_MxK - spent_M[:, None]
  later = np.arange(cost.shape[1]) > at_M[:, None]
  i, level = np.nonzero(later & (cost > 0) & (cost <= left))
  if not len(i):
    return None
  own = levels.information_MxKxPxP
  after = known_PxP + (own[i, level] - own[i, at_M[i]])
  removed = variance(known_PxP[None], directions_HxP) - variance(
    after, directions_HxP
  )
  best = int(np.argmax(removed / cost[i, level]))
  if removed[best] <= 0:
    return None
  return int(i[best]), int(level[best])


def variance(
  information_NxPxP: np.ndarray, directions_HxP: np.ndarray
) -> np.ndarray:
  """Returns the mean over directions c of c' M^-1 c of each matrix M, [N]."""
  # Scaled, since coordinates differ by orders of magnitude.
  scale = np.sqrt(np.diagonal(information_NxPxP, axis1=1, axis2=2))
  scaled = information_NxPxP / scale[:, :, None] / scale[:, None, :]
  c = np.moveaxis(directions_HxP[:, None] / scale, 0, -1)
  return np.asarray((c * np.linalg.solve(scaled, c)).sum(axis=1).mean(axis=-1))


def information(
  source: rounds.Source, law: config.Law, theta_P: np.ndarray
) -> Levels:
  """Returns the information of each candidate at each level, under a law."""
  form, candidates = forms.get(law.form), range(len(source.names))
  limits = np.array([source.limit(i) for i in candidates])
  flops = limits[:, None] * 2.0 ** np.arange(1 - _LEVELS, 1)
  steps = np.array([[source.step(i)] for i in candidates])
  whole = np.maximum(flops // np.where(steps > 0, steps, 1.0), 1.0) * steps
  flops = np.where(steps > 0, whole, flops)
  points = [source.point(i, c) for i in candidates for c in flops[i].tolist()]
  columns = {
    name: np.array([p.get(name, 1.0) for p in points]) for name in form.columns
  }
  table = _table({**columns, 'C': flops.ravel()})
  counted = curves_lib.meets(table, law.where).reshape(flops.shape)
  jacobian = _jacobian(form, theta_P, columns).reshape(*flops.shape, -1)
  jacobian = jacobian * counted[..., None]
  precision = (limits.max() / flops) ** -(2 * _MISFIT) / _POINT**2
  # Levels of less than one step are one point.
  repeated = np.diff(flops, axis=1, prepend=-1.0) <= 0
  precision = precision * (counted & ~repeated)
  # S = diag(1 / precision) + _RUN^2 1 1', inverted by Sherman and Morrison.
  weighted = precision[..., None] * jacobian
  squares = np.cumsum(weighted[..., :, None] * jacobian[..., None, :], axis=1)
  sums = np.cumsum(weighted, axis=1)
  share = 1 / (_RUN**-2 + np.cumsum(precision, axis=1))
  outer = sums[..., :, None] * sums[..., None, :]
  flops = np.where(_usable(source, law)[:, None], flops, np.inf)
  return Levels(
    np.pad(flops, ((0, 0), (1, 0))),
    np.pad(
      squares - share[..., None, None] * outer,
      ((0, 0), (1, 0), (0, 0), (0, 0)),
    ),
  )


def _directions(
  source: rounds.Source, law: config.Law, theta_P: np.ndarray
) -> np.ndarray:
  """Gradients [H, P] of the extrapolated log loss in the coordinates, per G."""
  form = forms.get(law.form)
  limits = [source.limit(i) for i in range(len(source.names))]
  points = [
    {'C': limits[i], **source.point(i, limits[i])}
    for i in np.flatnonzero(_usable(source, law)).tolist()
  ]
  table = _table(
    {name: np.array([p[name] for p in points]) for name in points[0]}
  )
  far = law.beyond * max(limits)
  optima = []
  for _, _, others, rows in frontier.granularities(form, table):
    cost = frontier.cost_of(table, rows)
    best = frontier.optimum(form, theta_P[None], [far], cost, others)
    size = best.params[0, 0]
    if not math.isfinite(size):  # Without a minimum, the largest size.
      size = table.columns['N'].max()
    optima.append({'N': size, 'D': far / cost(size), **others})
  columns = {
    name: np.array([optimum[name] for optimum in optima])
    for name in form.columns
  }
  return _jacobian(form, theta_P, columns)


def _usable(source: rounds.Source, law: config.Law) -> np.ndarray:
  """Whether the law's columns are known of each candidate, bool [M]."""
  columns = set(forms.get(law.form).columns)
  return np.array(
    [
      columns <= set(source.point(i, source.limit(i)))
      for i in range(len(source.names))
    ]
  )


def _table(columns: Mapping[str, np.ndarray]) -> tables.Table:
  """A table of points that are not trained yet; its losses mean nothing."""
  ones = np.ones(len(columns['C']))
  return tables.Table({**columns, 'loss': ones}, ones.astype(str))


def _jacobian(
  form: parametric.Form,
  theta_P: np.ndarray,
  columns: Mapping[str, np.ndarray],
) -> np.ndarray:
  """Derivatives of the log loss in the coordinates, [rows, P]."""
  return levenberg_marquardt.evaluate(form, columns, theta_P[None])[1][0]
