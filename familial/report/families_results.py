"""What a study of families found, as its page tells it."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

from familial.core import text
from familial.report import answer
from familial.report import results as results_lib

Row = Mapping[str, Any]
_KINDS = ('separate', 'chain', 'exits')  # in the order in which they are told
_ENDS = ('value', 'lo', 'hi')


@dataclasses.dataclass(frozen=True)
class Families:
  """A study of families.

  Attributes:
    results: its folder.
    kinds: of the ways, in the order in which they are told.
    budgets: C in FLOPs, the smallest first.
    seeds: in order.
    sizes: how many members a family has.
  """

  results: results_lib.Results
  kinds: Mapping[str, str]
  budgets: tuple[float, ...]
  seeds: tuple[int, ...]
  sizes: int

  @property
  def ways(self) -> list[str]:
    """Names of the ways: those trained size by size, chains, then exits."""
    return list(self.kinds)

  @property
  def ledger(self) -> list[Row]:
    """The plan's ledger, by way and budget."""
    return self._ordered(self.results.plan.get('ledger') or [])

  def part(self, name: str, **where: Any) -> list[Row]:
    """Returns rows of a part of the summary, by way, budget and size.

    Args:
      name: of the part.
      where: values that the rows have.
    """
    rows = self.results.summary.get(name) or []
    return self._ordered(
      [r for r in rows if all(r[key] == value for key, value in where.items())]
    )

  def against(self, way: str) -> str:
    """Returns the way that is one's counterpart, '' for none."""
    names: list[str] = next(
      (r['against'] for r in self.part('ways', way=way)), []
    )
    return names[0] if names else ''

  def counterparts(self, name: str, **where: Any) -> list[Row]:
    """Returns those rows of a part that compare ways with their counterparts."""
    return [
      row
      for row in self.part(name, **where)
      if row['against'] == self.against(row['way'])
    ]

  def params(self, way: str) -> dict[int, float]:
    """Returns the parameters of each size that has a finished member."""
    return {row['size']: row['params'] for row in self.part('members', way=way)}

  def cost(self, way: str, budget: float) -> float | None:
    """Returns the FLOPs of all that a family trains, None if not planned."""
    return next(
      (
        row['flops']
        for row in self.ledger
        if (row['way'], row['budget']) == (way, budget)
      ),
      None,
    )

  def agreement(self, kind: str, budget: float) -> list[Row]:
    """Returns how members agree at a budget, means over seeds.

    Args:
      kind: `adjacent` sizes, or `seeds` of one size.
      budget: C.
    """
    pairs: dict[tuple[Any, ...], list[Row]] = {}
    for row in self.part('agreement', kind=kind, budget=budget):
      key = (row['way'], row['size'], row['other_size'])
      pairs.setdefault(key, []).append(row)
    return [
      {
        'way': way,
        'size': size,
        'other_size': other,
        'pairs': len(rows),
        **{key: _mean([row[key] for row in rows]) for key in rows[0]['errors']},
        # Not less for more seeds: all are measured on the same text.
        'errors': {
          key: _mean([row['errors'][key] for row in rows])
          for key in rows[0]['errors']
        },
      }
      for (way, size, other), rows in pairs.items()
    ]

  def missing(self) -> list[str]:
    """Returns the members without a result, in words."""
    found = {
      tuple(row[key] for key in ('way', 'budget', 'seed', 'size'))
      for row in self.part('members')
    }
    return [
      f'{way}, size {size}, C = {text.scientific(budget)}, seed {seed}'
      for way in self.ways
      for budget in self.budgets
      for seed in self.seeds
      for size in range(1, self.sizes + 1)
      if (way, budget, seed, size) not in found
    ]

  def _ordered(self, rows: Sequence[Row]) -> list[Row]:
    place = {way: number for number, way in enumerate(self.kinds)}
    return sorted(
      (row for row in rows if row['way'] in place),
      key=lambda row: (
        place[row['way']],
        row.get('budget', 0),
        row.get('size', 0),
        row.get('seed', 0),
      ),
    )


def read(results: results_lib.Results) -> Families:
  """Returns a study of families, given its folder."""
  ledger = results.plan.get('ledger') or []
  ways = [*ledger, *(results.summary.get('ways') or [])]
  kinds = {row['way']: row['kind'] for row in ways}
  return Families(
    results=results,
    kinds={
      way: kind
      for told in _KINDS
      for way, kind in kinds.items()
      if kind == told
    },
    budgets=tuple(sorted({row['budget'] for row in ledger})),
    seeds=tuple(
      sorted({cell['seed'] for cell in results.plan.get('cells') or []})
    ),
    sizes=max(
      (
        max(len(row['stages']), len(row['stages'][-1]['exits']))
        for row in ledger
      ),
      default=0,
    ),
  )


def over(row: Row) -> str:
  """Returns a log ratio of losses as a percentage above 1, and its interval."""
  if row['lo'] is None:
    return text.percent(math.expm1(row['value']))
  return answer.over(row)


def verdict(row: Row) -> str:
  """Returns whether a loss is lower or higher: what its interval says.

  It is '' where there is no interval.
  """
  if row['lo'] is None:
    return ''
  if row['lo'] <= 0 <= row['hi']:
    return 'cannot be told apart'
  return 'lower' if row['value'] < 0 else 'higher'


def share(row: Row) -> str:
  """Returns a share with its interval, in per cent."""
  ends = [None if row[k] is None else 100 * row[k] for k in _ENDS]
  if None in ends:
    return f'{text.number(100 * row["value"], 2)} %'
  return f'{text.estimate(*ends)} %'


def _mean(values: Sequence[float | None]) -> float | None:
  known = [value for value in values if value is not None]
  return sum(known) / len(known) if known else None
