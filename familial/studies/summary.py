"""What a study found: the fits, and `summary.json` with all that they rest on."""

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import math
import os
import pathlib
import platform
from typing import Any

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.laws import definitions
from familial.laws import fit_record
from familial.laws import inference
from familial.laws import leverage
from familial.laws import selection
from familial.laws import table as tables
from familial.studies import config as study_config
from familial.studies import paired_comparison

Row = storage.Row
LOSSES = ('final', 'mean', 'exit')
FORMS = ('familial_total', 'familial_reducible', 'dense_null')
_EXIT = ('width', 'depth', 'exits', 'exit')


def write(
  study: study_config.StudyConfig,
  workdir: str | os.PathLike[str],
  failed: Sequence[str],
) -> str:
  """Fits the laws, writes `fits/` and `summary.json`; returns one line.

  Args:
    study: what was asked.
    workdir: of the study.
    failed: cells that have no result.
  """
  workdir = pathlib.Path(workdir)
  rows = list(run_folder.rows_of(workdir / 'cells'))
  last = last_of(rows)
  if not last:
    raise errors.UserError(f'{workdir}: no run has finished; nothing to fit')
  notes = _fit(study, workdir, rows)
  laws_ = {
    loss: storage.read_json(path)['params']
    for loss in paired_comparison.LOSSES
    if (path := _path(workdir, loss, FORMS[0])).exists()
  }
  spread = paired_comparison.noise(last)
  found: dict[str, Any] = {
    'schema': storage.SCHEMA,
    'machine': machine(),
    'cost': {
      'flops': sum(spent(workdir, exits[-1]) for exits in last.values()),
      'seconds': seconds(workdir),
      'finished': len(last),
      'diverged': sum(
        run_folder.status(run) == 'diverged' for run in _folders(workdir)
      ),
      'missing': len(failed),
    },
    'noise': spread,
    'paired': paired_comparison.paired(last, laws_),
    'twins': paired_comparison.twins(last, spread),
    'minima': paired_comparison.minima(last, spread),
    'gamma': list(_gammas(workdir)),
    'weighting': _weighting(last),
    'frozen': _frozen(last),
    'leverage': _leverage(workdir, rows),
    'leverage_measured': [
      dataclasses.asdict(row) for row in leverage.measured(rows)
    ],
    'gradients': _gradients(workdir),
    'notes': notes,
  }
  found['summary_line'] = _line(found)
  storage.write_json(workdir / 'summary.json', found)
  return str(found['summary_line'])


def _fit(
  study: study_config.StudyConfig, workdir: pathlib.Path, rows: list[Row]
) -> list[str]:
  """Fits every form to every loss; returns what could not be fitted."""
  options = inference.Options(
    delta=study.fit.delta,
    starts=study.fit.starts,
    resamples=study.fit.resamples,
    profile_all=False,
  )
  dense = [row for row in rows if row['exits'] == 1]
  with_branches = (*definitions.arms_of('exit'), 'branch')
  jobs: list[
    tuple[str, list[Row], str, tuple[str, ...] | None, tuple[str, ...]]
  ] = [
    *((loss, rows, loss, None, FORMS) for loss in LOSSES),
    ('exit/branch', rows, 'exit', with_branches, ('branch',)),
  ]
  notes = []
  if len({row['exits'] for row in rows if row['arm'] in definitions.GRID}) < 2:
    jobs = []
    notes.append('one granularity only: gamma is not fitted')
  # Of the exits' shapes too: the twins are in it.
  jobs.append(('dense/chinchilla', dense, 'exit', None, ('chinchilla',)))
  for folder, of, loss, arms, forms in jobs:
    try:
      table = tables.from_rows(of, loss=loss, arms=arms, source='cells')
      selection.compare(
        table, forms, workdir / 'fits' / folder, options, loss_definition=loss
      )
    except errors.UserError as error:
      notes.append(f'{folder}: {error}')
  return notes


def _gammas(workdir: pathlib.Path) -> Iterable[dict[str, Any]]:
  for loss in LOSSES:
    for form in FORMS[:2]:
      path = _path(workdir, loss, form)
      if not path.exists():
        continue
      fit = storage.read_json(path)
      spread = fit['bootstrap'].get('gamma') or {}
      profile = fit['profile'].get('gamma') or {}
      yield {
        'loss': loss,
        'form': form,
        'gamma': fit['params']['gamma'],
        'lo': spread.get('lo'),
        'hi': spread.get('hi'),
        'profile_lo': profile.get('lo'),
        'profile_hi': profile.get('hi'),
        'flags': fit['flags'],
      }


def _weighting(last: dict[str, list[Row]]) -> list[dict[str, Any]]:
  """Exits' losses by weighting, the uniform ones of the grid beside them."""
  compared = {
    paired_comparison.place(row)
    for exits in last.values()
    for row in exits
    if row['arm'] == 'weighting'
  }
  keys = ('weighting', 'exits', 'exit', 'layer', 'loss', 'width', 'depth')
  return [
    {'budget': row['budget'], **{key: row[key] for key in keys}}
    for exits in last.values()
    for row in exits
    if row['arm'] in ('grid', 'weighting')
    and paired_comparison.place(row) in compared
  ]


def _frozen(last: dict[str, list[Row]]) -> list[dict[str, Any]]:
  """Exits on a frozen trunk beside those of the same kind trained jointly.

  `flops` are the trunk's and the exits' own; the joint run is the one of the
  nearest budget, `budget_joint`.
  """
  joint: dict[tuple[Any, ...], dict[float, float]] = defaultdict(dict)
  for exits in last.values():
    for row in exits:
      if row['arm'] in ('grid', 'kind'):
        key = (*(row[k] for k in _EXIT), exits[0]['exit_kind'])
        joint[key][row['budget']] = row['loss']
  found = []
  for exits in last.values():
    for row in exits[:-1]:
      if row['arm'] == 'frozen':
        key = (*(row[k] for k in _EXIT), row['exit_kind'])
        near = min(
          joint[key], key=lambda b: abs(b - row['flops']), default=None
        )
        found.append(
          {
            **{k: row[k] for k in (*_EXIT, 'layer', 'exit_kind', 'flops')},
            'loss': row['loss'],
            'budget_joint': near,
            'loss_joint': None if near is None else joint[key][near],
          }
        )
  return found


def _leverage(workdir: pathlib.Path, rows: list[Row]) -> list[dict[str, Any]]:
  """Leverage of the grid's families, from the law of the dense runs."""
  path = _path(workdir, 'dense', 'chinchilla')
  if not path.exists():
    return []
  law = fit_record.load(path)
  return [row.to_json() for row in leverage.of_rows(law, rows)]


def _gradients(workdir: pathlib.Path) -> list[dict[str, Any]]:
  return [
    row
    for run in _folders(workdir)
    for row in storage.read_rows(run / run_folder.GRADIENTS)
  ]


def last_of(rows: Iterable[Row]) -> dict[str, list[Row]]:
  """Returns the last rows of each finished run, one per exit, by run."""
  last: dict[str, list[Row]] = defaultdict(list)
  for row in rows:
    if row['status'] == 'finished':
      last[row['run']].append(row)
  return {
    run: sorted(exits, key=lambda row: row['exit'])
    for run, exits in sorted(last.items())
  }


def _path(workdir: pathlib.Path, loss: str, form: str) -> pathlib.Path:
  return workdir / 'fits' / loss / form / 'fit.json'


def spent(workdir: pathlib.Path, row: Row) -> float:
  """Returns a run's own FLOPs: those of its parent are the parent's."""
  path = workdir / 'cells' / row['run'] / 'lineage.json'
  lineage = storage.read_json(path) if path.exists() else {}
  return float(row['flops'] - lineage.get('inherited_flops', 0.0))


def _folders(workdir: pathlib.Path) -> list[pathlib.Path]:
  return sorted(path for path in (workdir / 'cells').iterdir() if path.is_dir())


def seconds(workdir: pathlib.Path) -> float | None:
  """Returns the seconds that all runs' training steps took, summed; None where
  one has not measured its own part of the time that it shared."""
  total = 0.0
  for run in _folders(workdir):
    progress = storage.read_rows(run / run_folder.PROGRESS)
    rows = storage.read_rows(run / run_folder.ROWS)
    if rows and progress:
      if 'seconds_per_step' not in progress[-1]:
        return None
      total += rows[-1]['step'] * progress[-1]['seconds_per_step']
  return total


def machine() -> dict[str, str]:
  """Returns what a study ran on."""
  import jax

  devices = jax.devices()
  return {
    'devices': f'{len(devices)} x {devices[0].device_kind}',
    'cores': str(os.cpu_count()),
    'system': f'{platform.system()} {platform.machine()}',
    'python': platform.python_version(),
    'jax': jax.__version__,
  }


def _line(found: dict[str, Any]) -> str:
  """Returns what was measured, then gamma by the law, each with an interval."""
  measured = [
    f'{row["loss"]} loss {_estimate(row)}'
    for row in found['paired']['gamma']
    if row['equal'] == 'flops' and row['budget'] is None
  ]
  if found['twins']:
    measured.append(f'each exit against its twin {_estimate(found["twins"])}')
  by_law = []
  for row in found['gamma']:
    if row['form'] == FORMS[0]:
      flags = f' ({"; ".join(row["flags"])})' if row['flags'] else ''
      named = {**row, 'value': row['gamma']}
      by_law.append(f'{row["loss"]} loss {_estimate(named)}{flags}')
  parts = []
  if measured:
    parts.append(f'gamma measured at equal FLOPs: {", ".join(measured)}')
  if by_law:
    parts.append(
      f'by the law ({FORMS[0]}, 95 % bootstrap by run): {", ".join(by_law)}'
    )
  cost = found['cost']
  runs = (
    f'{cost["finished"]} runs, {cost["diverged"]} diverged, '
    f'{cost["missing"]} missing, {cost["flops"]:.3g} FLOPs'
  )
  return '; '.join([*(parts or ['gamma was not fitted']), runs])


def _estimate(row: dict[str, Any]) -> str:
  lo = -math.inf if row['lo'] is None else row['lo']
  hi = math.inf if row['hi'] is None else row['hi']
  return f'{row["value"]:.4f} [{lo:.4f}, {hi:.4f}]'
