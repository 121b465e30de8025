"""What "the loss" of a run is: the mean over exits, the last, or each exit's.

Turns the rows that training writes, one an exit and evaluation, into the records
that a law is fitted to.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from familial.core import errors

LOSSES = ('mean', 'final', 'exit')
ROWS = ('last', 'all')
GRID = ('grid', 'seed')  # the arms in which a shape is run at every G

_EXTRA = ('budget', 'width', 'depth', 'layer', 'exit')


def arms_of(loss: str) -> tuple[str, ...]:
  """The arms of a study that count for a loss where none are named.

  Twins count for the loss of each exit, as dense models of the exits' shapes.
  For the other losses they would be shapes that exist at G = 1 alone, and move
  the level there: gamma would take their misfit for a penalty.
  """
  _check_choice('loss', loss, LOSSES)
  return (*GRID, 'twin') if loss == 'exit' else GRID


def shape(row: Mapping[str, Any]) -> tuple[Any, ...]:
  """What a row of an exit and one of a dense model of its shape share."""
  keys = ('width', 'heads', 'params', 'params_embedding')
  return tuple(_field(row, key) for key in keys)


def records(
  rows: Iterable[Mapping[str, Any]],
  loss: str,
  rows_used: str,
  arms: Sequence[str],
  mix_corpora: bool,
) -> tuple[list[dict[str, Any]], int]:
  """The records of one definition, and how many rows went into none.

  See table.from_rows for the arguments and the errors.
  """
  _check_choice('loss', loss, LOSSES)
  _check_choice('rows', rows_used, ROWS)
  every = list(rows)
  chosen = [r for r in every if r.get('arm') is None or r['arm'] in arms]
  evaluations = _evaluations(chosen, rows_used)
  _check_corpora([e[-1] for e in evaluations], mix_corpora)
  make = {'mean': _mean, 'final': _final, 'exit': _each}[loss]
  used = sum(len(exits) for exits in evaluations)
  made = [record for exits in evaluations for record in make(exits)]
  return made, len(every) - used


def _evaluations(
  rows: Sequence[Mapping[str, Any]], rows_used: str
) -> list[list[Mapping[str, Any]]]:
  """Complete evaluations of runs that did not diverge, exits in order."""
  runs: dict[Any, dict[Any, dict[Any, Mapping[str, Any]]]] = {}
  diverged = set()
  for row in rows:
    run = _field(row, 'run')
    if row.get('status') == 'diverged':
      diverged.add(run)
    else:  # a resumed run may have written an evaluation twice: the later counts
      step = runs.setdefault(run, {}).setdefault(_field(row, 'step'), {})
      step[_field(row, 'exit')] = row
  kept = []
  for run, steps in runs.items():
    if run in diverged:
      continue
    for step in [max(steps)] if rows_used == 'last' else sorted(steps):
      exits = [steps[step][e] for e in sorted(steps[step])]
      complete = len(exits) == _field(exits[-1], 'exits')
      finished = exits[-1].get('status', 'finished') == 'finished'
      if complete and (finished or rows_used == 'all'):
        kept.append(exits)
  return kept


def _record(row: Mapping[str, Any], **own: Any) -> dict[str, Any]:
  return {
    'run': _field(row, 'run'),
    'C': _field(row, 'flops'),
    'G': _field(row, 'exits'),
    **{name: row[name] for name in _EXTRA if name in row},
    **own,
  }


def _mean(exits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  [record] = _final(exits)
  return [{**record, 'loss': np.mean([_field(row, 'loss') for row in exits])}]


def _final(exits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  last = exits[-1]
  n = _field(last, 'params_full')
  return [
    _record(last, N=n, D=_field(last, 'tokens'), loss=_field(last, 'loss'))
  ]


def _each(exits: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  made = []
  for row in exits:
    tokens = _field(row, 'tokens_dense')
    made.append(
      _record(
        row,
        N=_field(row, 'params'),
        D=tokens,
        loss=_field(row, 'loss'),
        upstream=row['exit'] - 1,
        downstream=_field(row, 'exits') - row['exit'],
        flops_per_token=_field(row, 'flops') / tokens,
      )
    )
  return made


def _field(row: Mapping[str, Any], name: str) -> Any:
  if row.get(name) is None:
    raise errors.UserError(
      f'a row of run {row.get("run")!r} has no {name!r}'
      f'{errors.nearest(name, row)}'
    )
  return row[name]


def _check_corpora(rows: Sequence[Mapping[str, Any]], mix: bool) -> None:
  corpora = sorted({str(row.get('corpus')) for row in rows})
  if len(corpora) > 1 and not mix:
    raise errors.UserError(
      f'the rows mix {len(corpora)} corpora ({", ".join(corpora)}), whose'
      ' losses do not compare; fit one at a time, or set mix_corpora'
    )


def _check_choice(key: str, value: str, allowed: Sequence[str]) -> None:
  if value not in allowed:
    raise errors.UserError(
      f'{key}={value!r}{errors.nearest(value, allowed)}; allowed are'
      f' {", ".join(allowed)}'
    )
