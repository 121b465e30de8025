"""Efficiency Leverage: the compute of separate dense models over a family's.

For a family trained with C FLOPs: the FLOPs that dense models of its exits'
sizes need, in total, to reach the same losses, over C. Above 1 the family costs
less. The dense law L = E + A/N^alpha + B/D^beta, solved for D, times the exact
FLOPs a token of such a model, gives what one model needs: infinitely many where
no D reaches the loss at that N. `measured` uses no law: it interpolates between
dense runs of the exits' exact shapes.
"""

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import numpy as np

from familial.core import errors
from familial.core import estimate
from familial.laws import definitions
from familial.laws import fit_record
from familial.laws import table as tables

_LAW = ('E', 'A', 'B', 'alpha', 'beta')
_EQUAL = 1.01  # whole steps make runs of one budget differ by less
_NEEDED = ('N', 'C', 'G', 'loss', 'flops_per_token')


@dataclasses.dataclass(frozen=True)
class Leverage:
  """Efficiency Leverage of one run by the dense law.

  Attributes:
    run: name of the run.
    budget: FLOPs planned.
    exits: number of exits.
    flops: FLOPs spent, C.
    leverage: with its interval over the law's resamples, if there are any; inf
      where an exit is unreachable.
    unreachable: number of exits whose loss no dense model of their size reaches.
  """

  run: str
  budget: float
  exits: int
  flops: float
  leverage: estimate.Estimate
  unreachable: int

  def to_json(self) -> dict[str, Any]:
    """For a JSON file: infinite numbers are null, `infinite` says which."""
    ends = dataclasses.asdict(self.leverage)
    values = {**dataclasses.asdict(self), 'leverage': ends.pop('value'), **ends}
    return {
      **fit_record.plain(values),
      'infinite': math.isinf(self.leverage.value),
      'hi_infinite': self.leverage.hi == math.inf,
    }


@dataclasses.dataclass(frozen=True)
class MeasuredShare:
  """FLOPs of a dense model that reaches an exit's loss, over the family's.

  `bound`: whether `share` is only an upper bound.
  """

  run: str
  budget: float
  exits: int
  exit: int
  share: float
  bound: bool


def of_rows(
  law: fit_record.Law, rows: Iterable[Mapping[str, Any]]
) -> list[Leverage]:
  """The leverage of each finished run of the grid.

  Args:
    law: the dense law; its bootstrap's samples, if any, give the interval, but
      not if its rows do not tell N from D.
    rows: the rows that training writes.
  """
  table = tables.from_rows(rows, 'exit', arms=definitions.GRID)
  samples = law.samples if law.record.spans('N', 'D') else None
  return efficiency_leverage(law.params, table, samples, law.record.level)


def measured(rows: Iterable[Mapping[str, Any]]) -> list[MeasuredShare]:
  """The share of the family's FLOPs in which dense runs reach an exit's loss.

  Between the budgets of dense runs of the exit's exact shape, log loss is linear
  in log C; seeds count as their mean log loss. The result is an upper bound where
  the dense run of the lowest budget reaches the exit's loss at no more than the
  family's FLOPs. Exits whose loss no run reaches are left out.

  Args:
    rows: the rows that training writes.
  """
  dense: dict[Any, dict[float, list[float]]] = defaultdict(dict)
  families = []
  for row in rows:
    if row['status'] != 'finished':
      continue
    if row['exits'] > 1 and row['arm'] == 'grid':
      families.append(row)
    elif row['exits'] == 1 and row['arm'] in definitions.arms_of('exit'):
      logs = dense[definitions.shape(row)].setdefault(row['flops'], [])
      logs.append(math.log(row['loss']))
  shares = []
  for row in families:
    runs = sorted(dense.get(definitions.shape(row), {}).items())
    flops = np.array([flops for flops, _ in runs])
    better = [bool(np.mean(x) <= math.log(row['loss'])) for _, x in runs]
    if not any(better):
      continue
    first = better.index(True)
    needed = flops[first]
    if first:
      here, below = (np.mean(runs[i][1]) for i in (first, first - 1))
      part = (below - math.log(row['loss'])) / (below - here)
      needed = flops[first - 1] * (needed / flops[first - 1]) ** part
    keys = {key: row[key] for key in ('run', 'budget', 'exits', 'exit')}
    share = float(needed / row['flops'])
    if first or share < _EQUAL:
      shares.append(MeasuredShare(**keys, share=share, bound=not first))
  return shares


def efficiency_leverage(
  dense: Mapping[str, float],
  table: tables.Table,
  samples: Mapping[str, np.ndarray] | None = None,
  level: float = estimate.LEVEL,
) -> list[Leverage]:
  """The leverage of each run with more than one exit.

  Args:
    dense: constants E, A, B, alpha, beta of the dense law.
    table: the per-exit rows of one evaluation a run; columns N (the exit's own
      params), loss, G, C (the run's FLOPs), flops_per_token (training FLOPs a
      token of a dense model of the exit's shape), and budget if known.
    samples: the constants of the law's bootstrap resamples, each [resamples],
      for an interval.
    level: of that interval.
  """
  missing = [name for name in _NEEDED if name not in table.columns]
  if missing:
    raise errors.UserError(
      f'leverage needs columns {", ".join(missing)}; the table has'
      f' {", ".join(table.columns)}'
    )
  columns = table.columns
  point = _needed({name: np.array([dense[name]]) for name in _LAW}, columns)
  spread = (
    _needed({n: np.asarray(samples[n]) for n in _LAW}, columns)
    if samples is not None and len(samples['E'])
    else None
  )
  tail = (1 - level) / 2
  leverages = []
  for run in np.unique(table.run):
    rows = np.flatnonzero(table.run == run)
    exits, flops = int(columns['G'][rows[0]]), float(columns['C'][rows[0]])
    if exits == 1:
      continue
    if len(rows) != exits:
      raise errors.UserError(
        f'run {run} has {len(rows)} rows and {exits} exits: leverage needs one'
        ' row an exit (the exit loss, last rows)'
      )
    lo = hi = None
    if spread is not None:
      ratio = spread[:, rows].sum(1) / flops
      # Not interpolated: a number and infinity have no mean.
      lo = float(np.quantile(ratio, tail, method='lower'))
      hi = float(np.quantile(ratio, 1 - tail, method='higher'))
    leverages.append(
      Leverage(
        run=str(run),
        budget=float(columns.get('budget', columns['C'])[rows[0]]),
        exits=exits,
        flops=flops,
        leverage=estimate.Estimate(float(point[0, rows].sum() / flops), lo, hi),
        unreachable=int(np.isinf(point[0, rows]).sum()),
      )
    )
  return leverages


def _needed(
  law: Mapping[str, np.ndarray], columns: Mapping[str, np.ndarray]
) -> np.ndarray:
  """FLOPs to reach each row's loss under each law, [laws, rows]."""
  e, a, b, alpha, beta = (law[name][:, None] for name in _LAW)
  with np.errstate(over='ignore', divide='ignore', invalid='ignore'):
    gap = columns['loss'] - e - a / columns['N'] ** alpha
    tokens = (b / gap) ** (1 / beta)
    reachable = (gap > 0) & (beta > 0)
    return np.where(reachable, tokens * columns['flops_per_token'], np.inf)
