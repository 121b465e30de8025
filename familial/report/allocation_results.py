"""What a live allocation found so far, as its page tells it."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import pathlib
from typing import Any

from familial.allocation import curves as curves_lib
from familial.allocation import rounds as rounds_lib
from familial.core import run_folder
from familial.core import storage
from familial.core import text as text_lib
from familial.plots import allocation
from familial.report import results as results_lib

Row = Mapping[str, Any]
ALLOCATED, FULL = 'allocated', 'full'


@dataclasses.dataclass(frozen=True)
class Live:
  """A live allocation.

  Attributes:
    results: its folder.
    config: what was asked; empty where it was not kept.
    rounds: that were decided on, in order.
    curves: of each candidate, in the plan's order, however it came to be
      trained.
  """

  results: results_lib.Results
  config: Row
  rounds: Sequence[rounds_lib.Round]
  curves: Sequence[curves_lib.Curve]

  @property
  def plan(self) -> Row:
    """What was planned."""
    return self.results.plan

  @property
  def summary(self) -> Row:
    """What was found; empty before the end."""
    return self.results.summary

  @property
  def policy(self) -> str:
    """By what survivors are ranked."""
    return str(self.plan['policy'])

  @property
  def names(self) -> list[str]:
    """Names of the candidates."""
    return [curve.name for curve in self.curves]

  @property
  def planned(self) -> int:
    """How many rounds there are to be."""
    return int(self.plan['rounds'])

  @property
  def over(self) -> bool:
    """Whether the last round was decided on."""
    return len(self.rounds) >= self.planned

  @property
  def spent(self) -> list[float]:
    """FLOPs that the allocation spent on each candidate so far."""
    spent = [0.0] * len(self.curves)
    for made in self.rounds:
      for candidate, flops in zip(made.alive, made.spent, strict=True):
        spent[candidate] = flops
    return spent

  @property
  def known(self) -> list[curves_lib.Curve]:
    """Curves as far as the allocation trained them, a round that is under way
    included."""
    if not self.over:
      return list(self.curves)
    return [
      curve.cut(flops)
      for curve, flops in zip(self.curves, self.spent, strict=True)
    ]

  @property
  def alive(self) -> tuple[int, ...]:
    """Those that may still train: of `law` all."""
    if not self.rounds or not self.plan['survivors']:
      return tuple(range(len(self.curves)))
    return self.rounds[-1].kept

  @property
  def pruned(self) -> dict[int, int]:
    """The round after which candidates left."""
    return allocation.pruned(self.rounds)

  def law(self, which: str) -> Row:
    """What the law of the allocation or of the whole grid says; {} for none."""
    found = (self.summary.get('laws') or {}).get(which) or {}
    return {} if 'error' in found else found

  def losses(self) -> list[str]:
    """Keys of the extrapolated losses that both laws have."""
    full = self.law(FULL).get('extrapolated') or {}
    mine = self.law(ALLOCATED).get('extrapolated') or {}
    return [key for key in mine if not full or key in full]

  def covered(self) -> tuple[int, int]:
    """How many last predictions held within their intervals, and of how many."""
    held = []
    for i, (end, _, lo, hi, _) in allocation.predictions(self.rounds).items():
      if self.curves[i].end >= end:
        held.append(lo <= float(self.curves[i].at(end)) <= hi)
    return sum(held), len(held)


def read(results: results_lib.Results, workdir: pathlib.Path) -> Live:
  """Reads what a study's folder holds besides."""
  path = workdir / 'config.json'
  config = storage.read_own(path) if path.exists() else {}
  rows: dict[str, list[storage.Row]] = {}
  for row in run_folder.rows_of(workdir / 'cells'):
    rows.setdefault(row['cell'], []).append(row)
  rounds = workdir / 'rounds.jsonl'
  return Live(
    results,
    config,
    rounds_lib.from_rows(storage.read_rows(rounds)) if rounds.exists() else [],
    [
      curves_lib.of_run(
        cell['cell'],
        rows.get(cell['cell'], []),
        config.get('loss', 'final'),
        {},
        results.plan.get('steady', 1.0) * cell['steps'],
      )
      for cell in results.plan['cells']
    ],
  )


def name_of(key: str) -> str:
  """How an extrapolated loss is named: `L_opt(G=2, C=1e+20)`."""
  inside = key.removeprefix('L_opt(').removesuffix(')')
  *others, compute = inside.split(', ')
  try:
    flops = text_lib.scientific(float(compute.removeprefix('C=')))
  except ValueError:
    return key
  text = f'best loss at {flops} FLOPs'
  return f'{text}, {", ".join(others)}' if others else text


def interval(row: Row) -> str:
  """A value with its interval, in so many digits as it deserves."""
  value = row['value']
  if value is None or not math.isfinite(value):
    return '–'
  if row['lo'] is None or row['hi'] is None:
    return f'{text_lib.number(value, 4)} (no interval)'
  if max(abs(row['lo']), abs(row['hi'])) > 100 * abs(value):
    return f'{text_lib.number(value)} {text_lib.interval(row["lo"], row["hi"])}'
  return text_lib.estimate(value, row['lo'], row['hi'])


def within(value: float | None, row: Row) -> bool | None:
  """Whether a value is within an interval; None where there is none."""
  if value is None or row['lo'] is None or row['hi'] is None:
    return None
  return bool(row['lo'] <= value <= row['hi'])
