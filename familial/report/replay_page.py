"""The page of a replay: which policy finds the lowest loss, and the best law."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import math
import pathlib
import shlex
import sys
from typing import Any

from familial.allocation import comparison
from familial.allocation import curves as curves_lib
from familial.allocation import rounds as rounds_lib
from familial.allocation import surrogate
from familial.core import text
from familial.core.estimate import Estimate
from familial.plots import allocation
from familial.plots import theme
from familial.report import render

# The first draw of a cell: its curves, and what each policy made of them.
Example = tuple[Sequence[curves_lib.Curve], Mapping[str, rounds_lib.Allocation]]
_FEW_DRAWS = 20
_UNDERCOVERED = 0.05  # below the nominal coverage, from which it is a flag


def write(
  result: comparison.ReplaySummary,
  examples: Sequence[Example],
  out: pathlib.Path,
  label: str = '',
  unit: str = '',
) -> pathlib.Path:
  """Writes OUT/index.html and OUT/figures; returns the page's path.

  Args:
    result: of the replay.
    examples: of its cells; () for a page without them.
    out: folder of the page.
    label: what the loss is, as of `theme.loss_as`.
    unit: of the loss.
  """
  with theme.loss_as(label, unit):
    return _write(result, examples, out)


def _write(
  result: comparison.ReplaySummary,
  examples: Sequence[Example],
  out: pathlib.Path,
) -> pathlib.Path:
  tables: dict[str, list[comparison.CellSummary]] = {}
  for cell in result.cells:
    tables.setdefault(cell.table, []).append(cell)
  return render.write(
    out,
    'replay',
    title=result.title or 'Replayed allocation',
    result=result,
    tables=tables,
    outcomes=list(_outcomes(result)),
    standings=list(_standings(result)),
    calibration=list(_calibration(result)),
    bound=_range(result, comparison.BOUND),
    draws=[
      _draw(cell, *example, result.config.law.beyond)
      for cell, example in zip(result.cells, examples, strict=False)
    ],
    flags=list(_flags(result)),
    config=json.dumps(dataclasses.asdict(result.config), indent=1),
    command=shlex.join(sys.argv),
    plots=allocation,
    links=sorted(path.name for path in out.glob('*.json*')),
  )


def _outcomes(result: comparison.ReplaySummary) -> Iterator[dict[str, Any]]:
  """Yields a row for each cell and policy; what is NaN is None."""
  for cell in result.cells:
    for name, policy in cell.policies.items():
      yield {
        **_place(cell),
        'policy': name,
        'seconds': cell.seconds.get(name),
        'rounds': cell.rounds,
        **{
          key: None
          if isinstance(value, Estimate) and math.isnan(value.value)
          else value
          for key, value in vars(policy).items()
        },
      }


def _place(cell: comparison.CellSummary) -> dict[str, Any]:
  return {
    'table': cell.table,
    'candidates': cell.candidates,
    'budget': cell.budget,
    'draws': cell.draws,
  }


def _standings(result: comparison.ReplaySummary) -> Iterator[dict[str, Any]]:
  """Yields in how many cells each policy's gain excludes 0, best first."""
  rows: list[dict[str, Any]] = []
  for name in dict.fromkeys(n for c in result.cells for n in c.policies):
    if name != comparison.BASE:
      of = [c.policies[name] for c in result.cells if name in c.policies]
      signs = [policy.gain.sign for policy in of]
      rows.append(
        {
          'policy': name,
          'higher': signs.count('higher'),
          'unclear': signs.count('n.s.'),
          'lower': signs.count('lower'),
          'gain': _range(result, name),
        }
      )
  yield from sorted(
    rows,
    key=lambda row: (
      row['policy'] == comparison.BOUND,
      row['lower'] - row['higher'],
      -sum(row['gain'] or ()),
    ),
  )


def _range(
  result: comparison.ReplaySummary, policy: str
) -> tuple[float, float] | None:
  """Returns the lowest and the highest gain of a policy over the cells."""
  gains = [
    c.policies[policy].gain.value for c in result.cells if policy in c.policies
  ]
  known = [gain for gain in gains if not math.isnan(gain)]
  return (min(known), max(known)) if known else None


def _calibration(result: comparison.ReplaySummary) -> Iterator[dict[str, Any]]:
  for cell in result.cells:
    for name, rows in cell.calibration.items():
      for row in rows:
        yield {**_place(cell), 'policy': name, **vars(row)}


def _draw(
  cell: comparison.CellSummary,
  grid: Sequence[curves_lib.Curve],
  allocations: Mapping[str, rounds_lib.Allocation],
  beyond: float,
) -> dict[str, Any]:
  """Returns the first draw: courses of `sh` and of the best surrogate."""
  gains = {name: cell.policies[name].gain.value for name in cell.calibration}
  known = {name: gain for name, gain in gains.items() if not math.isnan(gain)}
  names = [comparison.BASE]
  if known:
    names.append(max(known, key=known.__getitem__))
  return {
    'label': f'{cell.table}: {allocation.label(cell)}',
    'grid': grid,
    'far': beyond * max(curve.end for curve in grid),
    'trained': {name: each.curves for name, each in allocations.items()},
    'courses': [
      allocation.Course(
        name,
        grid,
        allocations[name].curves,
        list(rounds_lib.ranking(allocations[name].rounds, grid)),
      )
      for name in names
    ],
  }


def _flags(result: comparison.ReplaySummary) -> Iterator[str]:
  """Yields what may make the comparison unreliable."""
  cells = result.cells
  yield from dict.fromkeys(
    f'{cell.table}: {flag}' for cell in cells for flag in cell.flags
  )
  names = {id(c): f'{c.table}, {allocation.label(c)}' for c in cells}
  beaten = [
    names[id(c)]
    for c in cells
    if 'uniform' in c.policies and c.policies['uniform'].gain.sign == 'higher'
  ]
  if beaten:
    yield (
      'uniform did better than sh, so that pruning saves nothing: '
      f'{text.some(beaten)}'
    )
  rich = [
    names[id(c)] for c in cells if c.policies[comparison.BASE].saving.value < 0
  ]
  if rich:
    yield (
      'the budget exceeds the cost of training all candidates to their ends: '
      f'{text.some(rich)}'
    )
  for name in dict.fromkeys(n for c in cells for n in c.calibration):
    rows = [row for c in cells for row in c.calibration.get(name, ())]
    count = sum(row.predictions for row in rows)
    held = sum(row.coverage.value * row.predictions for row in rows)
    if count and held / count < surrogate.LEVEL - _UNDERCOVERED:
      yield (
        f'{name}: intervals of {surrogate.LEVEL:.0%} hold {held / count:.0%} of '
        f'{count} predictions'
      )
  unfitted = dict.fromkeys(
    name
    for c in cells
    for name, policy in c.policies.items()
    if result.config.law.form and policy.law_fits < c.draws
  )
  if unfitted:
    yield (
      'in some draws no law, or none with a minimum, could be fitted; its error '
      f'counts as infinite in the median: {", ".join(unfitted)}'
    )
  draws = min(cell.draws for cell in cells)
  if draws < _FEW_DRAWS:
    yield f'{text.count(draws, "draw")}: the intervals themselves are uncertain'
