"""What allocations gave, policy by policy, with intervals over draws."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import numpy as np

from familial.allocation import config as config_lib
from familial.allocation import curves as curves_lib
from familial.allocation import frontier
from familial.allocation import halving
from familial.core import errors
from familial.laws import estimation
from familial.laws import forms
from familial.laws import frontier as optima
from familial.laws import parametric
from familial.laws import table as tables

LEVEL = 0.95  # of intervals over draws
_RESAMPLES = 2000
BASE = 'sh'  # which the others are compared with
BOUND = 'oracle'

Allocations = Mapping[
  str, Sequence[halving.Allocation]
]  # by policy, a draw each


class Draws(NamedTuple):
  """One policy's outcomes, one a draw; NaN where there is none.

  Attributes:
    best: the lowest loss seen, in nats.
    spent: FLOPs.
    gain: (L_base - L) / L_base.
    regret: L over the lowest that the whole budget could buy, less 1: given to
      the one candidate that would make most of it.
    saving: 1 - budget / cost of training all candidates to their ends.
    slope: of the line through the frontier of what was trained.
    area: between that line and the whole grid's, from the start of the latter
      to `beyond` times its end.
    line: relative error of that line at `beyond` times the largest compute of
      the grid, against the line of the whole grid.
    law: the same of the compute-optimal loss of the fitted law, against the law
      that curves obey if that is known, else the one fitted to the whole grid.
  """

  best: np.ndarray
  spent: np.ndarray
  gain: np.ndarray
  regret: np.ndarray
  saving: np.ndarray
  slope: np.ndarray
  area: np.ndarray
  line: np.ndarray
  law: np.ndarray


def outcomes(
  allocations: Allocations,
  grids: Sequence[Sequence[curves_lib.Curve]],
  budget: float,
  law: config_lib.Law,
  truth: Mapping[str, float] | None = None,
) -> dict[str, Draws]:
  """The outcomes of every policy.

  Args:
    allocations: of each policy, in each draw.
    grids: the whole curves of each draw's candidates.
    budget: FLOPs of an allocation.
    law: to fit.
    truth: constants of the law that curves obey, where it is known.
  """
  ideal = np.array(
    [min(float(curve.at(budget)) for curve in grid) for grid in grids]
  )
  cost = np.array([math.fsum(curve.end for curve in grid) for grid in grids])
  whole = [_line(grid) for grid in grids]
  reach = [law.beyond * frontier.span(grid)[1] for grid in grids]
  laws = _laws(allocations, grids, law, truth) if law.form else {}
  found = {}
  base = np.array([a.best for a in allocations[BASE]])
  for name, mine in allocations.items():
    best = np.array([a.best for a in mine])
    lines = [_line(a.curves) for a in mine]
    found[name] = Draws(
      best=best,
      spent=np.array([a.total for a in mine]),
      gain=(base - best) / base,
      regret=best / ideal - 1,
      saving=1 - budget / cost,
      slope=np.array([line.slope for line in lines]),
      area=np.array(
        [
          frontier.area(line, full, frontier.span(grid)[0], far)
          for line, full, grid, far in zip(
            lines, whole, grids, reach, strict=True
          )
        ]
      ),
      line=np.array(
        [
          float(line(far) / full(far)) - 1
          for line, full, far in zip(lines, whole, reach, strict=True)
        ]
      ),
      law=laws.get(name, np.full(len(mine), np.nan)),
    )
  return found


def summary(found: Mapping[str, Draws]) -> dict[str, dict[str, Any]]:
  """Each policy's means and intervals over draws, for a JSON file.

  `share_of_bound` is the mean gain over the oracle's, which bounds those that halve
  alone. Of errors there are the median size, which counts draws without a fit as
  infinite; how much less it is than that of `sh`, the mean over draws where both
  have one; and how often it is within 1 %. Draws share candidates, so intervals say
  how sure the mean over draws is, not how other curves would do.
  """
  rows: dict[str, dict[str, Any]] = {}
  for name, draws in found.items():
    row: dict[str, Any] = {
      key: interval(getattr(draws, key), np.mean)
      for key in ('best', 'spent', 'gain', 'regret', 'saving', 'slope', 'area')
    }
    for key in ('line', 'law'):
      error, base = _error(draws, key), _error(found[BASE], key)
      row[f'{key}_error'] = interval(error, np.median)
      both = np.isfinite(error) & np.isfinite(base)
      less = np.where(both, base, 0.0) - np.where(both, error, 0.0)
      row[f'{key}_error_less'] = interval(less[both], np.mean)
      row[f'{key}_within_1_percent'] = interval(error <= 0.01, np.mean)
      row[f'{key}_fits'] = int(np.isfinite(error).sum())
    if BOUND in found:
      both = np.stack([draws.gain, found[BOUND].gain], axis=1)
      row['share_of_bound'] = interval(both, _ratio)
    rows[name] = row
  return rows


def interval(
  values: np.ndarray, statistic: Callable[..., Any]
) -> dict[str, float | None]:
  """A statistic over draws [n, ...] and its percentile interval by bootstrap.

  Draws of which one is not known count for none.
  """
  known = ~np.isnan(values if values.ndim == 1 else values.sum(axis=1))
  values = values[known]
  if len(values) < 2:
    one = float(statistic(values, axis=0)) if len(values) else None
    return {'value': one, 'lo': None, 'hi': None}
  rng = np.random.default_rng(0)
  drawn = rng.integers(len(values), size=(_RESAMPLES, len(values)))
  with np.errstate(invalid='ignore'):  # Of draws without an end.
    spread = statistic(values[drawn], axis=1)
    point = float(statistic(values, axis=0))
  spread = spread[~np.isnan(spread)]
  if not len(spread) or not math.isfinite(point):
    return {'value': None, 'lo': None, 'hi': None}
  tail = (1 - LEVEL) / 2
  # Between a number and infinity there is nothing.
  lo, hi = np.quantile(spread, [tail, 1 - tail], method='inverted_cdf')
  return {'value': point, 'lo': float(lo), 'hi': float(hi)}


def calibration(
  mine: Sequence[halving.Allocation],
  grids: Sequence[Sequence[curves_lib.Curve]],
) -> list[dict[str, Any]]:
  """How a surrogate's predictions did, round by round.

  Held against the true loss at the compute that each survivor would have at the
  end; those that were not predicted count for nothing.

  Args:
    mine: its allocations.
    grids: the whole curves of each draw's candidates.

  Returns:
    A record for each round that ranked: how many predictions, the share within
    their intervals (`coverage`, nominally surrogate.LEVEL, with an interval over
    draws, whose curves err together), and the median
    relative error of the mean (`error`), of the last loss held (`held_error`),
    signed of the mean (`bias`), and the median `width` of the interval over the
    true loss.
  """
  found = []
  for number in range(len(mine[0].rounds) - 1):
    rows = []
    for draw, (allocation, grid) in enumerate(zip(mine, grids, strict=True)):
      made = allocation.rounds[number]
      if made.predicted is None:
        continue
      for i, end, seen, predicted in zip(
        made.alive, made.end, made.seen, made.predicted, strict=True
      ):
        if predicted is not None:
          rows.append((draw, float(grid[i].at(end)), *predicted, seen))
    if not rows:
      continue
    draws, true, mean, lo, hi, seen = np.array(rows).T
    held = (lo <= true) & (true <= hi)
    of = [held[draws == draw] for draw in np.unique(draws)]
    shares = np.array([[part.sum(), len(part)] for part in of])
    found.append(
      {
        'round': number + 1,
        'predictions': len(rows),
        'coverage': interval(shares, _ratio),
        'error': float(np.median(np.abs(mean / true - 1))),
        'held_error': float(np.median(np.abs(seen / true - 1))),
        'bias': float(np.median(mean / true - 1)),
        'width': float(np.median((hi - lo) / true)),
      }
    )
  return found


def _error(draws: Draws, key: str) -> np.ndarray:
  """Sizes of a relative error; of draws without a fit, infinite."""
  error = np.abs(getattr(draws, key))
  return np.where(np.isnan(error), np.inf, error)


def _ratio(both: np.ndarray, axis: int) -> np.ndarray:
  mine, bound = np.moveaxis(both.mean(axis), -1, 0)
  there = (
    bound > 0
  )  # Where the oracle gains nothing, there is nothing to share.
  return np.where(there, mine / np.where(there, bound, 1.0), np.nan)


def _line(curves: Sequence[curves_lib.Curve]) -> frontier.Line:
  return frontier.line(curves, *frontier.span(curves))


def _laws(
  allocations: Allocations,
  grids: Sequence[Sequence[curves_lib.Curve]],
  law: config_lib.Law,
  truth: Mapping[str, float] | None,
) -> dict[str, np.ndarray]:
  """Relative errors of the extrapolated loss; NaN where a law had no fit."""
  form = forms.get(law.form)
  errors_of = np.empty((len(allocations), len(grids)))
  # Draw by draw: they have few curves of all, so that together most rows of a
  # table would be nobody's.
  for draw, grid in enumerate(grids):
    chosen = [grid, *(mine[draw].curves for mine in allocations.values())]
    table, weights = rows(chosen, law.where)
    if not table.rows:
      errors_of[:, draw] = np.nan
      continue
    theta, determined = estimation.fit_groups(form, table, weights)
    far = law.beyond * frontier.span(grid)[1]
    best = extrapolated(form, table, theta, [far])[:, 0]
    full, *mine = np.where(determined, best, np.nan)
    if truth is not None and set(truth) == set(form.names):
      [[full]] = extrapolated(form, table, form.theta(truth)[None], [far])
    errors_of[:, draw] = np.array(mine) / full - 1
  return dict(zip(allocations, errors_of, strict=True))


def extrapolated(
  form: parametric.Form,
  table: tables.Table,
  theta: np.ndarray,
  budgets: Sequence[float],
) -> np.ndarray:
  """The best loss at each budget, [laws, budgets]; its geometric mean over G.

  NaN where a law has no minimum there.

  Args:
    form: of the laws.
    table: whose G there are, and what a token costs.
    theta: coordinates [laws, parameters].
    budgets: FLOPs.
  """
  losses = [
    optima.optimum(
      form, theta, budgets, optima.cost_of(table, which), others
    ).loss
    for _, _, others, which in optima.granularities(form, table)
  ]
  return np.asarray(np.exp(np.mean(np.log(losses), axis=0)))


def rows(
  selections: Sequence[Sequence[curves_lib.Curve]], where: Sequence[str] = ()
) -> tuple[tables.Table, np.ndarray]:
  """All points of selections of curves as one table, and which has which.

  Args:
    selections: of curves as far as they are known; one of a name is one run.
    where: conditions of the rows that count.

  Returns:
    Every point once, and 1 where a selection has it, [selections, rows]; no
    row may meet the conditions.

  Raises:
    UserError: if no curve has a point.
  """
  numbers: dict[tuple[str, float], int] = {}
  points: list[dict[str, float]] = []
  runs: list[str] = []
  has: list[list[int]] = []
  for curves in selections:
    mine = []
    for curve in curves:
      for i, flops in enumerate(curve.flops):
        key = curve.name, float(flops)
        if key not in numbers:
          numbers[key] = len(points)
          runs.append(curve.name)
          columns = {name: part[i] for name, part in curve.columns.items()}
          points.append({'loss': curve.loss[i], 'C': flops, **columns})
        mine.append(numbers[key])
    has.append(mine)
  if not points:
    raise errors.UserError('no curve has a loss; a law needs some')
  table = tables.Table(
    {name: np.array([p[name] for p in points], float) for name in points[0]},
    np.array(runs),
  )
  keep = meets(table, where)
  weights = np.zeros((len(selections), table.rows))
  for number, mine in enumerate(has):
    weights[number, mine] = 1.0
  return table.take(keep, where=list(where)), weights[:, keep]


def meets(table: tables.Table, where: Sequence[str]) -> np.ndarray:
  """Which rows of a table meet all conditions, bool [rows]."""
  keep = np.ones(table.rows, bool)
  for condition in where:
    keep &= table.where(condition)
  return keep
