"""Efficiency Leverage: one family against separate dense models, in compute.

For a family trained with C FLOPs: the FLOPs that dense models of its exits'
sizes need, in total, to reach the same losses, over C. Above 1 the family is
the cheaper way to the set. What a dense model of an exit's size needs follows
from the dense law L = E + A/N^alpha + B/D^beta, solved for D, times the exact
FLOPs a token of such a model. A loss that the law lets no model of that size
reach, with any amount of data, counts as infinite. `measured` needs no law: it
reads the FLOPs off dense runs of the exits' exact shapes.
"""

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import numpy as np

from familial.core import errors
from familial.laws import definitions
from familial.laws import record
from familial.laws import table as tables

_LAW = ('E', 'A', 'B', 'alpha', 'beta')
_EQUAL = 1.01  # whole steps make runs of one budget differ by less
_NEEDED = ('N', 'C', 'G', 'loss', 'flops_per_token')


@dataclasses.dataclass(frozen=True)
class Leverage:
  """Of one run; `lo` and `hi` are None without samples of the law.

  `unreachable` counts the exits whose loss no dense model of their size
  reaches; `leverage` is inf where there is any.
  """

  run: str
  budget: float
  exits: int
  flops: float
  leverage: float
  unreachable: int
  lo: float | None
  hi: float | None

  def to_json(self) -> dict[str, Any]:
    """For a JSON file: infinite numbers are null, `infinite` says which."""
    record = dataclasses.asdict(self)
    for name in ('leverage', 'lo', 'hi'):
      value = record[name]
      if value is not None and not math.isfinite(value):
        record[name] = None
    return {
      **record,
      'infinite': math.isinf(self.leverage),
      'hi_infinite': self.hi is not None and math.isinf(self.hi),
    }


def of_rows(
  law: record.Law, rows: Iterable[Mapping[str, Any]]
) -> list[dict[str, Any]]:
  """The leverage of each finished run of the grid, for a JSON file.

  Args:
    law: the dense law, as `record.load` gives it; its bootstrap's samples, if
      they lie beside it, give the interval.
    rows: the rows that training writes.
  """
  table = tables.from_rows(rows, 'exit', arms=definitions.GRID)
  found = efficiency_leverage(
    law.params, table, law.samples, law.record.get('level', 0.95)
  )
  return [leverage.to_json() for leverage in found]


def measured(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """What dense runs of an exit's exact shape say of the FLOPs to its loss.

  Between the budgets of such runs their log loss is linear in log C. Where the
  run of the lowest budget is already as good as the exit and cost no more than
  the family, that is only an upper bound; where the run of the highest is not,
  nothing is known.

  Args:
    rows: the rows that training writes; seeds count as their mean log loss.

  Returns:
    A record for each exit of the grid's families of which something is known:
    run, budget, exits, exit, `share` = FLOPs over the family's, and `bound`,
    whether that is an upper bound.
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
  found = []
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
    found.append(
      {
        **{key: row[key] for key in ('run', 'budget', 'exits', 'exit')},
        'share': float(needed / row['flops']),
        'bound': not first,
      }
    )
  return [row for row in found if not row['bound'] or row['share'] < _EQUAL]


def efficiency_leverage(
  dense: Mapping[str, float],
  table: tables.Table,
  samples: Mapping[str, np.ndarray] | None = None,
  level: float = 0.95,
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
  found = []
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
      # Not interpolated: between a number and infinity there is nothing.
      lo = float(np.quantile(ratio, tail, method='lower'))
      hi = float(np.quantile(ratio, 1 - tail, method='higher'))
    found.append(
      Leverage(
        run=str(run),
        budget=float(columns.get('budget', columns['C'])[rows[0]]),
        exits=exits,
        flops=flops,
        leverage=float(point[0, rows].sum() / flops),
        unreachable=int(np.isinf(point[0, rows]).sum()),
        lo=lo,
        hi=hi,
      )
    )
  return found


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
