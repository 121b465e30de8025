"""Losses of families beside one another, and what they are worth in compute.

Losses are compared as logarithms, by pairs of the same seed, budget and size.
Intervals are Student's at 95 %: the scatter between seeds is pooled over all
pairs of the study, for it is about the same in each and there are few seeds. Its
degrees of freedom count the runs that pairs share once.
"""

from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
import statistics
from typing import Any

import numpy as np

from familial.core import estimate
from familial.core import storage
from familial.studies import families_cells
from familial.studies import families_config

Row = storage.Row
# The members with a result of each family, the smallest first.
Found = dict[families_cells.Place, list[Row]]
# Values by what they are of, and then by the runs that they are from.
Pairs = dict[tuple[Any, ...], dict[Any, float]]


def losses(found: Found) -> Iterator[Row]:
  """Yields the mean loss of each size in each way, with its interval."""
  logs: Pairs = defaultdict(dict)
  for place, members in found.items():
    for row in members:
      key = (place.way, place.budget, row['size'])
      logs[key][_member(row)] = math.log(row['loss'])
  half = _half_widths(logs)
  for (way, budget, size), by_run in logs.items():
    values = list(by_run.values())
    named = {'way': way, 'budget': budget, 'size': size, 'seeds': len(values)}
    yield {**named, **_exponential(float(np.mean(values)), half(len(values)))}


def compared(
  study: families_config.FamiliesConfig, found: Found
) -> Iterator[Row]:
  """Yields the log of each size's loss over that of the way it is compared
  with.

  Where both are one run, as a chain's first stage may be, there is nothing to
  compare.
  """
  logs: Pairs = defaultdict(dict)
  for place, members in found.items():
    for against in study.ways[place.way].against:
      others = {
        row['size']: row for row in found.get(place._replace(way=against), ())
      }
      for row in members:
        other = others.get(row['size'])
        if other is None or _member(row) == _member(other):
          continue
        key = (place.way, against, place.budget, row['size'])
        pair = (_member(row), _member(other))
        logs[key][pair] = math.log(row['loss'] / other['loss'])
  # Ways share the runs that they are compared with.
  shared = {key[1:]: len(by_pair) - 1 for key, by_pair in logs.items()}
  half = _half_widths(logs, sum(shared.values()))
  for (way, against, budget, size), by_pair in logs.items():
    values = list(by_pair.values())
    value, width = float(np.mean(values)), half(len(values))
    yield {
      'way': way,
      'against': against,
      'budget': budget,
      'size': size,
      'seeds': len(values),
      'value': value,
      'lo': None if width is None else value - width,
      'hi': None if width is None else value + width,
    }


def overall(
  study: families_config.FamiliesConfig, compared: Sequence[Row]
) -> Iterator[Row]:
  """Yields the mean of those logs over a way's sizes and budgets."""
  for way, against in (
    (name, other) for name, of in study.ways.items() for other in of.against
  ):
    rows = [
      row for row in compared if (row['way'], row['against']) == (way, against)
    ]
    if not rows:
      continue
    value = float(np.mean([row['value'] for row in rows]))
    halves = [row['hi'] - row['value'] for row in rows if row['hi'] is not None]
    # Seeds are shared by the sizes of a family: their scatters are taken as one,
    # not as independent, and only budgets average it.
    half = None
    if len(halves) == len(rows):
      half = float(np.mean(halves)) / math.sqrt(
        len({row['budget'] for row in rows})
      )
    yield {
      'way': way,
      'against': against,
      'value': value,
      'lo': None if half is None else value - half,
      'hi': None if half is None else value + half,
    }


def equal_loss(
  study: families_config.FamiliesConfig,
  found: Found,
  compared: Sequence[Row],
) -> Iterator[Row]:
  """Yields the compute that a way needs for the other's loss, as a multiple of
  what that one had: exp(log ratio / s), s of the way's own losses over C."""
  slopes = _slopes(found)
  for row in compared:
    slope = slopes.get((row['way'], row['size']), 0.0)
    first = study.ways[row['way']].against[0]
    if slope <= 0 or row['against'] != first:
      continue
    yield {
      **{k: row[k] for k in ('way', 'against', 'budget', 'size')},
      'slope': slope,
      **{
        key: None if row[key] is None else math.exp(row[key] / slope)
        for key in ('value', 'lo', 'hi')
      },
    }


def saving(
  study: families_config.FamiliesConfig,
  found: Found,
  compared: Sequence[Row],
) -> Iterator[Row]:
  """Yields what a chain saves: as its ledger has it, and for its losses.

  The sizes trained alone would reach the chain's losses with
  sum_i C_i exp(-d_i / s_i), d_i the log of the chain's loss over theirs and s_i
  of theirs over C.
  """
  slopes = _slopes(found)
  for way, budget in itertools.product(study.ways, study.budgets):
    against = (*study.ways[way].against, '')[0]
    rows = [
      row
      for row in compared
      if (row['way'], row['against'], row['budget']) == (way, against, budget)
    ]
    chain = next(
      (m for p, m in found.items() if (p.way, p.budget) == (way, budget)), []
    )
    alone = next(
      (m for p, m in found.items() if (p.way, p.budget) == (against, budget)),
      [],
    )
    whole = len(chain) == len(alone) == len(study.sizes)
    if study.ways[way].kind != 'chain' or not rows or not whole:
      continue
    if any(slopes.get((against, row['size']), 0.0) <= 0 for row in rows):
      continue
    by_size = {row['size']: row for row in rows}
    spent, needed, half = max(row['flops'] for row in chain), 0.0, 0.0
    for other in alone:
      row, slope = by_size.get(other['size']), slopes[against, other['size']]
      term = other['flops'] * math.exp(-(row['value'] if row else 0) / slope)
      needed += term
      if row and row['hi'] is not None:
        half += term / slope * (row['hi'] - row['value'])
    yield {
      'way': way,
      'against': against,
      'budget': budget,
      'ledger': 1 - spent / sum(row['flops'] for row in alone),
      'value': 1 - spent / needed,
      'lo': 1 - spent / (needed - half) if 0 < half < needed else None,
      'hi': 1 - spent / (needed + half) if half else None,
    }


def _slopes(found: Found) -> dict[tuple[str, int], float]:
  """Returns s of loss ~ C^-s for each way and size, over the budgets."""
  points: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
  for place, members in found.items():
    for row in members:
      points[place.way, row['size']].append(
        (math.log(place.budget), math.log(row['loss']))
      )
  return {
    key: -statistics.linear_regression(*zip(*values, strict=True)).slope
    for key, values in points.items()
    if len({x for x, _ in values}) > 1
  }


def _member(row: Row) -> tuple[str, int]:
  """Returns the run and the exit that a member is."""
  return row['run'], row['exit']


def _half_widths(
  groups: Pairs, degrees: int | None = None
) -> Callable[[int], float | None]:
  """Returns the half width of a mean of n values.

  Args:
    groups: values that scatter about their means alike, by the runs that they
      are of; two groups of the same runs count once.
    degrees: of freedom, where groups share runs; by default all of theirs.

  Returns:
    A function of n; None where no group has two values.
  """
  distinct = [
    np.array(list(values.values()))
    for values in {tuple(group): group for group in groups.values()}.values()
  ]
  own = sum(len(values) - 1 for values in distinct)
  if own < 1:
    return lambda count: None
  square = sum(float(np.sum((v - v.mean()) ** 2)) for v in distinct)
  quantile = estimate.quantile(min(own, degrees or own))
  return lambda count: quantile * math.sqrt(square / own / count)


def _exponential(value: float, half: float | None) -> Mapping[str, Any]:
  return {
    'value': math.exp(value),
    'lo': None if half is None else math.exp(value - half),
    'hi': None if half is None else math.exp(value + half),
  }
