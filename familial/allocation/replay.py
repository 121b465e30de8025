"""Replays: policies on random draws of known curves, one record per draw."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import math
import pathlib
import time
from typing import NamedTuple

import numpy as np

from familial.allocation import config as config_lib
from familial.allocation import curves as curves_lib
from familial.allocation import envelope
from familial.allocation import halving
from familial.allocation import policies
from familial.allocation import rounds
from familial.allocation import synthetic
from familial.core import errors
from familial.core import progress_bar
from familial.core import text
from familial.laws import estimation
from familial.laws import forms
from familial.laws import frontier
from familial.laws import parametric
from familial.laws import table as tables


class KnownCurves:
  """A `rounds.Source` of curves whose ends are known.

  The loss at a cut between two points is interpolated towards the later point
  (linear in ln C), which live training would not know.

  Attributes:
    names: of the candidates.
    features: of each candidate.
  """

  def __init__(self, curves: Sequence[curves_lib.Curve]):
    """Takes whole curves; a candidate's training ends with its curve."""
    self.names: Sequence[str] = [curve.name for curve in curves]
    self.features: Sequence[Mapping[str, float]] = [
      curve.features for curve in curves
    ]
    self._curves = curves

  def limit(self, candidate: int) -> float:
    """Returns the FLOPs at a curve's end.

    A divergence is not known in advance: such a curve has the longest's limit.
    """
    curve = self._curves[candidate]
    if curve.diverged:
      return max(curve.end for curve in self._curves)
    # FLOPs after the last loss have no outcome to replay.
    return float(curve.flops[-1]) if len(curve.flops) else curve.end

  def step(self, candidate: int) -> float:
    """Returns 0: a curve can be cut anywhere."""
    del candidate
    return 0.0

  def point(self, candidate: int, flops: float) -> Mapping[str, float]:
    """Returns N, D and G as known; D is proportional to the FLOPs."""
    curve = self._curves[candidate]
    last = {name: float(values[-1]) for name, values in curve.columns.items()}
    if 'D' in last:
      last['D'] *= flops / float(curve.flops[-1])
    return last

  def advance(
    self, targets: Mapping[int, float]
  ) -> Mapping[int, curves_lib.Curve]:
    """Returns the curves cut at the targets."""
    return {i: self._curves[i].cut(flops) for i, flops in targets.items()}

  def future(self, candidate: int, flops: float) -> float:
    """Returns a candidate's lowest loss within FLOPs, known or not yet."""
    return float(self._curves[candidate].at(flops))


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Result of one allocation; NaN if unknown.

  Attributes:
    best: lowest loss seen, in nats.
    spent: FLOPs.
    gain: (L_sh - L) / L_sh on the same draw.
    regret: L over the lowest loss of a single candidate trained with the whole
      budget, less 1.
    saving: 1 - budget / cost of training all candidates to their ends.
    slope: of the line through the frontier of what was trained.
    area: between that line and the whole grid's, from the start of the latter
      to `law.beyond` times its end.
    line: relative error of that line at `law.beyond` times the grid's largest
      compute, compared with the line of the whole grid.
    law: relative error of the fitted law's compute-optimal loss there, compared
      with the law that the curves obey, or else the law of the whole grid.
  """

  best: float
  spent: float
  gain: float
  regret: float
  saving: float
  slope: float
  area: float
  line: float
  law: float


class Checked(NamedTuple):
  """A surrogate's prediction beside the truth, in nats.

  Attributes:
    round: from 1.
    true: loss at the compute that the prediction is of.
    mean: predicted,
    lo: with its interval,
    hi: of surrogate.LEVEL.
    seen: lowest loss when predicted.
  """

  round: int
  true: float
  mean: float
  lo: float
  hi: float
  seen: float


@text.brief
@dataclasses.dataclass(frozen=True)
class Draw:
  """One policy on one draw.

  Attributes:
    table: name of the curves.
    candidates: number of curves drawn.
    budget: FLOPs.
    draw: number of the draw.
    policy: name.
    chosen: names of the candidates.
    kept: numbers of the survivors of each round.
    outcome: of the allocation.
    predictions: that were made in it.
  """

  table: str
  candidates: int
  budget: float
  draw: int
  policy: str
  chosen: tuple[str, ...]
  kept: tuple[tuple[int, ...], ...]
  outcome: Outcome
  predictions: tuple[Checked, ...]


class Cell(NamedTuple):
  """A replayed comparison: a number of candidates and a budget on one table.

  Attributes:
    table: name of the curves.
    pool: the curves.
    candidates: number drawn.
    budget: FLOPs.
    draws: all policies on all draws, by policy.
    seconds: that each policy took.
    grid: whole curves of the first draw.
    allocations: of the first draw by each policy.
  """

  table: str
  pool: curves_lib.Curves
  candidates: int
  budget: float
  draws: tuple[Draw, ...]
  seconds: Mapping[str, float]
  grid: Sequence[curves_lib.Curve]
  allocations: Mapping[str, rounds.Allocation]


def run(
  config: config_lib.ReplayConfig,
  report: Callable[[Sequence[Draw]], None] = lambda draws: None,
) -> Iterator[Cell]:
  """Yields the cells of a replay.

  Args:
    config: of the replay.
    report: called with each draw of all policies, when it has ended.

  Raises:
    UserError: before the first cell, if a policy, a table or a cell cannot be
      used.
  """
  for name in config.policies:
    policies.get(name).check(config.law)
  pools = dict(tables_of(config))
  for pool in pools.values():
    check_law(pool, config.law)
    for candidates, budget in config.cells:
      check(pool, candidates, budget, config.eta)
  for name, pool in pools.items():
    for candidates, budget in config.cells:
      yield _cell(config, name, pool, candidates, budget, report)


def tables_of(
  config: config_lib.ReplayConfig,
) -> Iterator[tuple[str, curves_lib.Curves]]:
  """Yields the curves that are replayed, by name."""
  if config.table:
    yield (
      pathlib.Path(config.table).stem,
      curves_lib.read(
        config.table,
        config.columns,
        config.curve,
        config.loss,
        config.wide,
        maximize=config.maximize,
      ),
    )
    return
  for noise in config.noises:
    yield (
      noise,
      synthetic.curves(config.curves, noise, config.seed, config.constants),
    )


def check(
  pool: curves_lib.Curves, candidates: int, budget: float, eta: int
) -> None:
  """Refuses a cell that needs more or longer curves."""
  if candidates > len(pool.curves):
    raise errors.UserError(
      f'candidates: {candidates}; {pool.source} has {len(pool.curves)} curves'
    )
  halving.check(candidates, budget, eta)
  count = len(halving.survivors(candidates, eta))
  share = budget / (candidates * count)
  first = min(curve.flops[0] for curve in pool.curves)
  if share < first:
    raise errors.UserError(
      f'budget: {budget:g} FLOPs give each of {candidates} candidates'
      f' {share:.3g} in the first of {count} rounds, and no curve of'
      f' {pool.source} has a loss before {first:.3g}'
    )


def check_law(pool: curves_lib.Curves, law: config_lib.Law) -> None:
  """Refuses a law for which curves lack columns or rows."""
  if not law.form:
    return
  form = forms.get(law.form)
  if not {'N', 'D'} <= set(form.columns):
    raise errors.UserError(
      f'--form: {law.form!r} is not allowed; a law that is asked for the best'
      ' loss of a compute has N and D; --form=none fits no law'
    )
  table, _ = curves_lib.rows([curves_lib.thin(pool.curves)], law.where)
  for column in form.columns:
    if column not in table.columns:
      raise errors.UserError(
        f'--form: {law.form!r} needs column {column}; {pool.source} has'
        f' {", ".join(table.columns)}; --form=none fits no law'
      )


def _cell(
  config: config_lib.ReplayConfig,
  name: str,
  pool: curves_lib.Curves,
  candidates: int,
  budget: float,
  report: Callable[[Sequence[Draw]], None],
) -> Cell:
  rng = np.random.default_rng(config.seed)
  # There is one way to draw all curves.
  count = 1 if candidates == len(pool.curves) else config.draws
  chosen = [
    rng.choice(len(pool.curves), candidates, replace=False)
    for _ in range(count)
  ]
  grids = [[pool.curves[i] for i in each] for each in chosen]
  settings = rounds.Settings(config.eta, config.law, config.seed)
  allocations: dict[str, list[rounds.Allocation]] = {}
  seconds: dict[str, float] = {}
  label = f'{name}: {candidates} candidates, {budget:g} FLOPs'
  names = dict.fromkeys((policies.BASE, policies.BOUND, *config.policies))
  for policy in progress_bar.start(
    names, desc=label, unit='policy', leave=False
  ):
    start = time.monotonic()
    budgets = (
      [budget] * count
      if policies.get(policy).bracketed
      else [base.total for base in allocations[policies.BASE]]
    )
    allocations[policy] = policies.get(policy).allocate(
      [KnownCurves(grid) for grid in grids], budgets, settings
    )
    seconds[policy] = time.monotonic() - start
  draws = []
  each = outcomes(allocations, grids, budget, config.law, pool.law)
  for draw, outcome in enumerate(
    progress_bar.start(each, total=count, desc=label, unit='draw', leave=False)
  ):
    draws.append(
      [
        Draw(
          table=name,
          candidates=candidates,
          budget=budget,
          draw=draw,
          policy=policy,
          chosen=tuple(curve.name for curve in grids[draw]),
          kept=tuple(
            closed.kept for closed in allocations[policy][draw].rounds
          ),
          outcome=found,
          predictions=tuple(checked(allocations[policy][draw], grids[draw])),
        )
        for policy, found in outcome.items()
      ]
    )
    report(draws[-1])
  by_policy = tuple(itertools.chain(*zip(*draws, strict=True)))
  first = {policy: of_it[0] for policy, of_it in allocations.items()}
  return Cell(
    name, pool, candidates, budget, by_policy, seconds, grids[0], first
  )


def checked(
  allocation: rounds.Allocation, grid: Sequence[curves_lib.Curve]
) -> Iterator[Checked]:
  """Yields an allocation's predictions beside the truth of the whole curves."""
  for number, closed in enumerate(allocation.rounds, 1):
    for i, end, seen, predicted in zip(
      closed.alive,
      closed.end,
      closed.seen,
      closed.predicted or (),
      strict=False,
    ):
      if predicted is not None and seen is not None:
        yield Checked(number, float(grid[i].at(end)), *predicted, seen)


def outcomes(
  allocations: Mapping[str, Sequence[rounds.Allocation]],
  grids: Sequence[Sequence[curves_lib.Curve]],
  budget: float,
  law: config_lib.Law,
  truth: Mapping[str, float] | None = None,
) -> Iterator[dict[str, Outcome]]:
  """Yields the outcomes of every policy, for one draw after the other.

  Args:
    allocations: of each policy on each draw; policies.BASE is among them.
    grids: whole curves of each draw's candidates.
    budget: FLOPs of an allocation.
    law: fitted to what was trained.
    truth: constants of the law that the curves obey, if known.
  """
  for draw, grid in enumerate(grids):
    low, high = envelope.span(grid)
    far = law.beyond * high
    whole = envelope.line(grid, low, high)
    ideal = min(float(curve.at(budget)) for curve in grid)
    cost = math.fsum(curve.end for curve in grid)
    own = {name: each[draw] for name, each in allocations.items()}
    base = own[policies.BASE].best
    trained = [allocation.curves for allocation in own.values()]
    errors_of = _law_errors(trained, grid, law, truth)
    found = {}
    for (name, allocation), error in zip(own.items(), errors_of, strict=True):
      line = envelope.line(allocation.curves, *envelope.span(allocation.curves))
      found[name] = Outcome(
        best=allocation.best,
        spent=allocation.total,
        gain=(base - allocation.best) / base,
        regret=allocation.best / ideal - 1,
        saving=1 - budget / cost,
        slope=line.slope,
        area=envelope.area(line, whole, low, far),
        line=float(line(far) / whole(far)) - 1,
        law=float(error),
      )
    yield found


def _law_errors(
  trained: Sequence[Sequence[curves_lib.Curve]],
  grid: Sequence[curves_lib.Curve],
  law: config_lib.Law,
  truth: Mapping[str, float] | None,
) -> np.ndarray:
  """Relative errors of the laws' extrapolated losses; NaN without a fit."""
  unknown = np.full(len(trained), np.nan)
  if not law.form:
    return unknown
  form = forms.get(law.form)
  # Points count by where they are on the whole curve: what was trained for a
  # hundredth of it follows no law, however densely it was logged.
  whole = curves_lib.thin(grid)
  known = [
    [
      curve if part is full else curve.at_points_of(part)
      for curve, part, full in zip(curves, whole, grid, strict=True)
    ]
    for curves in trained
  ]
  try:
    table, weights = curves_lib.rows([whole, *known], law.where)
  except errors.UserError:  # No point of the draw counts.
    return unknown
  theta, determined = estimation.fit_groups(form, table, weights)
  far = law.beyond * envelope.span(grid)[1]
  best = best_loss(form, table, theta, [far])[:, 0]
  full, *losses = np.where(determined, best, np.nan)
  if truth is not None and set(truth) == set(form.names):
    [[full]] = best_loss(form, table, form.theta(truth)[None], [far])
  return np.array(losses) / full - 1


def best_loss(
  form: parametric.Form,
  table: tables.Table,
  theta: np.ndarray,
  budgets: Sequence[float],
) -> np.ndarray:
  """Returns laws' lowest loss at each budget; its geometric mean over G.

  Args:
    form: of the laws.
    table: of the values of G and of the cost per token.
    theta: coordinates [laws, parameters].
    budgets: FLOPs.

  Returns:
    [laws, budgets]; NaN if a law has no minimum there.
  """
  losses = [
    frontier.optimum(
      form, theta, budgets, frontier.cost_of(table, which), others
    ).loss
    for _, _, others, which in frontier.granularities(form, table)
  ]
  return np.asarray(np.exp(np.mean(np.log(losses), axis=0)))
