"""Allocation for the law: what to train so that it extrapolates well.

Not the lowest loss is looked for but the smallest variance of the loss that the
fitted law predicts beyond the grid (c-optimal design, sequentially: Chaloner and
Verdinelli 1995). With J the Jacobian of log loss in the law's coordinates, the
information of a run is J' S^-1 J, S holding the noise of points and an effect
that all points of a run share. Each round plans the whole of what is left,
greedily by variance removed a FLOP, does the cheapest part of the plan, fits the
law anew, and plans again.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import numpy as np

from familial.allocation import compared
from familial.allocation import config as config_lib
from familial.allocation import curves as curves_lib
from familial.allocation import halving
from familial.allocation import ledger as ledger_lib
from familial.core import errors
from familial.laws import estimation
from familial.laws import forms
from familial.laws import frontier
from familial.laws import levenberg_marquardt
from familial.laws import parametric
from familial.laws import table as tables

ROUNDS = 6
_LEVELS = (
  12  # of compute that a candidate may be trained to, each twice the last
)
# Before any fit: the constants of Hoffmann et al. (2022) as refitted by Besiroglu
# et al. (2024), and how far coordinates may be from there.
_START = {
  'E': 1.8172,
  'A': 482.01,
  'B': 2085.43,
  'alpha': 0.3478,
  'beta': 0.3658,
  'gamma': 0.0,
}
_SPREAD = {
  'E': 1.0,
  'A': 3.0,
  'B': 3.0,
  'alpha': 0.2,
  'beta': 0.2,
  'gamma': 0.1,
}
# Deviations of log loss: of a point, of its run. A law errs more the further down
# it is asked: a point's grows as the root of the compute that it lacks.
_POINT, _RUN, _MISFIT = 0.005, 0.01, 0.5


class _Options(NamedTuple):
  """What candidates can still tell, in one allocation.

  Attributes:
    flops_MxK: levels of compute.
    information_MxKxPxP: of a run as far as each level.
  """

  flops_MxK: np.ndarray
  information_MxKxPxP: np.ndarray


def run(
  sources: Sequence[halving.Source],
  budgets: Sequence[float],
  law: config_lib.Law,
  decided: Sequence[halving.Round] = (),
  on_round: Callable[[list[halving.Round]], Any] = lambda rounds: None,
) -> list[halving.Allocation]:
  """Allocates each source's budget among its candidates; see `halving.run`.

  A round's `alive` are those that it trains on, and nobody is pruned.

  Args:
    sources: S of them.
    budgets: FLOPs of each.
    law: to be known: its constants are E, A, B, alpha, beta and maybe gamma.
    decided: first rounds of an allocation that was interrupted.
    on_round: called after each round that was not decided before.
  """
  form = check(law)
  count = len(sources[0].names)
  for budget in budgets:
    halving.check(count, budget, 2)
  ledgers = [ledger_lib.Ledger(budget, count) for budget in budgets]
  known: list[dict[int, curves_lib.Curve]] = [{} for _ in sources]
  rounds: list[list[halving.Round]] = [[] for _ in sources]
  for number in range(ROUNDS):
    if number < len(decided):
      plans = [
        dict(zip(decided[number].alive, decided[number].end, strict=True))
      ]
    else:
      thetas = _fits(form, law, known)
      plans = [
        _plan(source, ledger, curves, form, law, theta, number)
        for source, ledger, curves, theta in zip(
          sources, ledgers, known, thetas, strict=True
        )
      ]
    for s, (source, plan) in enumerate(zip(sources, plans, strict=True)):
      reached = source.advance(plan)
      ledgers[s].charge({i: curve.end for i, curve in reached.items()})
      known[s].update(reached)
      rounds[s].append(_round(plan, known[s], ledgers[s]))
    if number >= len(decided):
      on_round([each[-1] for each in rounds])
  nothing = np.zeros(0)
  return [
    halving.Allocation(
      budget=ledger.budget,
      spent=tuple(map(float, ledger.spent)),
      rounds=tuple(each),
      curves=tuple(
        curves.get(i, curves_lib.Curve(source.names[i], nothing, nothing))
        for i in range(count)
      ),
    )
    for ledger, each, curves, source in zip(
      ledgers, rounds, known, sources, strict=True
    )
  ]


def knows(law: config_lib.Law) -> bool:
  """Whether a law is one whose constants are known to expect anything of."""
  return bool(law.form) and set(forms.get(law.form).names) <= set(_START)


def check(law: config_lib.Law) -> parametric.Form:
  """Returns the form of a law that can be looked for; refuses others."""
  if not knows(law):
    raise errors.UserError(
      f'law.form: {law.form!r} is not allowed for policy law, which needs a form'
      f' of the constants {", ".join(_START)} alone, such as chinchilla'
    )
  return forms.get(law.form)


def _fits(
  form: parametric.Form,
  law: config_lib.Law,
  known: Sequence[Mapping[int, curves_lib.Curve]],
) -> np.ndarray:
  """The law of each allocation so far; before it has one, what is expected."""
  start = form.theta({name: _START[name] for name in form.names})
  spread = np.array([_SPREAD[name] for name in form.names])
  thetas = np.tile(start, (len(known), 1))
  for theta, curves in zip(thetas, known, strict=True):
    if not any(len(curve.flops) for curve in curves.values()):
      continue
    table, weights = compared.rows([list(curves.values())], law.where)
    if not table.rows:
      continue
    [found], [determined] = estimation.fit_groups(form, table, weights)
    # A fit of few rows may be anywhere: then what is expected stands.
    if determined and (np.abs(found - start) <= 3 * spread).all():
      theta[:] = found
  return thetas


def _plan(
  source: halving.Source,
  ledger: ledger_lib.Ledger,
  known: Mapping[int, curves_lib.Curve],
  form: parametric.Form,
  law: config_lib.Law,
  theta: np.ndarray,
  number: int,
) -> dict[int, float]:
  """What each candidate is to have spent after this round; those it trains."""
  count = len(source.names)
  if not any(_able(source, form)):
    return {}
  options = _options(source, count, form, law, theta)
  directions = _directions(source, count, form, law, theta)
  left = ledger.budget - ledger.total
  spread = np.array([_SPREAD[name] for name in form.names])
  at = np.array(
    [
      np.searchsorted(levels, spent * (1 + 1e-9), side='right') - 1
      for levels, spent in zip(options.flops_MxK, ledger.spent, strict=True)
    ]
  )
  information = np.diag(spread**-2.0)
  for i, level in enumerate(at):
    if level >= 0:
      information = information + options.information_MxKxPxP[i, level]
  spent = ledger.spent.copy()
  for i, curve in known.items():
    if curve.diverged:  # No compute takes it further.
      options.flops_MxK[i] = np.inf
  while True:
    best = _best_move(options, information, directions, spent, at, left)
    if best is None:
      break
    i, level = best
    before = options.information_MxKxPxP[i, at[i]] if at[i] >= 0 else 0.0
    information = information + options.information_MxKxPxP[i, level] - before
    flops = float(options.flops_MxK[i, level])
    left -= flops - spent[i]
    spent[i], at[i] = flops, level
  wanted = [
    (float(spent[i]), i) for i in range(count) if spent[i] > ledger.spent[i]
  ]
  # The cheapest ends of the plan first; the last round does all of it.
  share = (ledger.budget - ledger.total) / (ROUNDS - number)
  plan: dict[int, float] = {}
  for flops, i in sorted(wanted):
    cost = flops - float(ledger.spent[i])
    if number < ROUNDS - 1 and plan and cost > share:
      break
    share -= cost
    plan[i] = flops
  return plan


def _best_move(
  options: _Options,
  information: np.ndarray,
  directions: np.ndarray,
  spent: np.ndarray,
  at: np.ndarray,
  left: float,
) -> tuple[int, int] | None:
  """The candidate and level that remove most variance a FLOP; None if none can."""
  cost = options.flops_MxK - spent[:, None]
  later = np.arange(cost.shape[1]) > at[:, None]
  allowed = later & (cost > 0) & (cost <= left)
  if not allowed.any():
    return None
  here = np.maximum(at, 0)
  known = np.take_along_axis(
    options.information_MxKxPxP, here[:, None, None, None], axis=1
  )
  known = np.where((at >= 0)[:, None, None, None], known, 0.0)
  i, level = np.nonzero(allowed)
  changed = information + (options.information_MxKxPxP - known)[i, level]
  removed = _variance(information[None], directions) - _variance(
    changed, directions
  )
  best = int(np.argmax(removed / cost[i, level]))
  if removed[best] <= 0:
    return None
  return int(i[best]), int(level[best])


def _variance(information: np.ndarray, directions: np.ndarray) -> np.ndarray:
  """Mean over directions [g, P] of c' M^-1 c, for each M of [n, P, P]."""
  # Scaled, for coordinates differ by orders of magnitude.
  scale = np.sqrt(np.diagonal(information, axis1=1, axis2=2))
  scaled = information / scale[:, :, None] / scale[:, None, :]
  c = np.moveaxis(directions[:, None] / scale, 0, -1)
  return np.asarray((c * np.linalg.solve(scaled, c)).sum(axis=1).mean(axis=-1))


def _options(
  source: halving.Source,
  count: int,
  form: parametric.Form,
  law: config_lib.Law,
  theta: np.ndarray,
) -> _Options:
  """What each candidate would tell at each level, under a law."""
  limits = np.array([source.limit(i) for i in range(count)])
  flops = limits[:, None] * 2.0 ** np.arange(1 - _LEVELS, 1)
  steps = np.array([[source.step(i)] for i in range(count)])
  whole = np.maximum(flops // np.where(steps > 0, steps, 1.0), 1.0) * steps
  flops = np.where(steps > 0, whole, flops)
  points = [
    [source.point(i, c) for c in row] for i, row in enumerate(flops.tolist())
  ]
  # Of a candidate without a point nothing is known, and nothing is to be had.
  able = np.array(_able(source, form))
  columns = {
    name: np.array([[p.get(name, 1.0) for p in row] for row in points]).ravel()
    for name in form.columns
  }
  table = _table({**columns, 'C': flops.ravel()})
  counted = compared.meets(table, law.where)
  jacobian = _jacobian(form, theta, columns).reshape(*flops.shape, -1)
  jacobian = jacobian * counted.reshape(*flops.shape, 1)
  # S = diag(s^2) + r^2 1 1', inverted by Sherman and Morrison.
  precision = (limits.max() / flops) ** -(2 * _MISFIT) / _POINT**2
  # Short runs have fewer steps than levels: a step is one point.
  again = np.diff(flops, axis=1, prepend=-1.0) <= 0
  precision = precision * (counted.reshape(flops.shape) & ~again)
  weighted = precision[..., None] * jacobian
  squares = np.cumsum(weighted[..., :, None] * jacobian[..., None, :], axis=1)
  sums = np.cumsum(weighted, axis=1)
  share = 1 / (_RUN**-2 + np.cumsum(precision, axis=1))
  both = sums[..., :, None] * sums[..., None, :]
  flops = np.where(able[:, None], flops, np.inf)
  return _Options(flops, squares - share[..., None, None] * both)


def _directions(
  source: halving.Source,
  count: int,
  form: parametric.Form,
  law: config_lib.Law,
  theta: np.ndarray,
) -> np.ndarray:
  """Gradients of the extrapolated log loss in the coordinates, one a G."""
  limits = [source.limit(i) for i in range(count)]
  points = [
    {'C': flops, **source.point(i, flops)}
    for i, (flops, able) in enumerate(
      zip(limits, _able(source, form), strict=True)
    )
    if able
  ]
  table = _table(
    {name: np.array([p[name] for p in points]) for name in points[0]}
  )
  far = law.beyond * max(limits)
  columns = []
  for _, _, others, rows in frontier.granularities(form, table):
    best = frontier.optimum(
      form, theta[None], [far], frontier.cost_of(table, rows), others
    )
    size = best.params[0, 0]
    if not math.isfinite(size):  # It has no minimum: then at the largest size.
      size = table.columns['N'].max()
    columns.append(
      {'N': size, 'D': far / frontier.cost_of(table, rows)(size), **others}
    )
  return _jacobian(
    form,
    theta,
    {name: np.array([c[name] for c in columns]) for name in form.columns},
  )


def _able(source: halving.Source, form: parametric.Form) -> list[bool]:
  """Whether what a law needs is known of each candidate."""
  return [
    set(form.columns) <= set(source.point(i, source.limit(i)))
    for i in range(len(source.names))
  ]


def _table(columns: Mapping[str, np.ndarray]) -> tables.Table:
  """Points that were not trained yet: their losses mean nothing."""
  ones = np.ones(len(columns['C']))
  return tables.Table({**columns, 'loss': ones}, ones.astype(str))


def _jacobian(
  form: parametric.Form, theta: np.ndarray, columns: Mapping[str, np.ndarray]
) -> np.ndarray:
  """Of log loss in the coordinates, [rows, P]."""
  return levenberg_marquardt.evaluate(form, columns, theta[None])[1][0]


def _round(
  plan: Mapping[int, float],
  known: Mapping[int, curves_lib.Curve],
  ledger: ledger_lib.Ledger,
) -> halving.Round:
  alive = tuple(sorted(plan))
  seen = [known[i].best for i in alive]
  return halving.Round(
    alive=alive,
    share=ledger.budget / ROUNDS,
    spent=tuple(float(ledger.spent[i]) for i in alive),
    seen=tuple(loss if math.isfinite(loss) else None for loss in seen),
    score=(None,) * len(alive),
    end=tuple(plan[i] for i in alive),
    predicted=None,
    kept=alive,
  )
