"""Definitions of a run's loss: the mean over exits, the last exit's, or each.

Turns the rows that training writes, one an exit and evaluation, into the records
that a law is fitted to.
"""

from collections.abc import Iterable
from collections.abc import Iterator
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
  For the other losses they would be shapes that exist at G = 1 only, and gamma
  would absorb their misfit.
  """
  errors.require_one_of('loss', loss, LOSSES)
  return (*GRID, 'twin') if loss == 'exit' else GRID


def shape(row: Mapping[str, Any]) -> tuple[Any, ...]:
  """The shape of an exit, equal to that of its dense twin."""
  keys = ('width', 'heads', 'params', 'params_embedding')
  return tuple(_field(row, key) for key in keys)


def records(
  rows: Iterable[Mapping[str, Any]],
  loss: str,
  rows_used: str,
  arms: Sequence[str],
  mix_corpora: bool,
) -> tuple[list[dict[str, Any]], int]:
  """The records of one definition, and the number of rows not used.

  See table.from_rows for the arguments and the errors.
  """
  errors.require_one_of('loss', loss, LOSSES)
  errors.require_one_of('rows', rows_used, ROWS)
  every = list(rows)
  evaluations = _evaluations(
    [r for r in every if r.get('arm') is None or r['arm'] in arms], rows_used
  )
  corpora = sorted({str(exits[-1].get('corpus')) for exits in evaluations})
  if len(corpora) > 1 and not mix_corpora:
    raise errors.UserError(
      f'the rows mix {len(corpora)} corpora ({", ".join(corpora)}), whose'
      ' losses do not compare; fit one at a time, or set mix_corpora'
    )
  used = sum(len(exits) for exits in evaluations)
  return [
    record for exits in evaluations for record in _records(exits, loss)
  ], len(every) - used


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
  evaluations = []
  for run, steps in runs.items():
    if run in diverged:
      continue
    for step in [max(steps)] if rows_used == 'last' else sorted(steps):
      exits = [steps[step][e] for e in sorted(steps[step])]
      complete = len(exits) == _field(exits[-1], 'exits')
      finished = exits[-1].get('status', 'finished') == 'finished'
      if complete and (finished or rows_used == 'all'):
        evaluations.append(exits)
  return evaluations


def _records(
  exits: Sequence[Mapping[str, Any]], loss: str
) -> Iterator[dict[str, Any]]:
  """The records of one evaluation: one, or one an exit."""
  for row in exits if loss == 'exit' else exits[-1:]:
    record = {
      'run': _field(row, 'run'),
      'C': _field(row, 'flops'),
      'G': _field(row, 'exits'),
      **{name: row[name] for name in _EXTRA if name in row},
    }
    if loss != 'exit':
      losses = exits if loss == 'mean' else exits[-1:]
      yield {
        **record,
        'N': _field(row, 'params_full'),
        'D': _field(row, 'tokens'),
        'loss': np.mean([_field(each, 'loss') for each in losses]),
      }
      continue
    tokens = _field(row, 'tokens_dense')
    yield {
      **record,
      'N': _field(row, 'params'),
      'D': tokens,
      'loss': _field(row, 'loss'),
      'upstream': row['exit'] - 1,
      'downstream': _field(row, 'exits') - row['exit'],
      'flops_per_token': _field(row, 'flops') / tokens,
    }


def _field(row: Mapping[str, Any], name: str) -> Any:
  if row.get(name) is None:
    raise errors.UserError(
      f'a row of run {row.get("run")!r} has no {name!r}'
      f'{errors.nearest(name, row)}'
    )
  return row[name]
