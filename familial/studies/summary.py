"""What a study found: the fits, and `summary.json` with all that they rest on."""

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Sequence
import math
import os
import pathlib
import platform
from typing import Any

import numpy as np

from familial import errors
from familial import records
from familial.laws import definitions
from familial.laws import leverage
from familial.laws import result as laws
from familial.laws import table as tables
from familial.studies import config as study_config

Row = records.Row
LOSSES = ('final', 'mean', 'exit')
FORMS = ('familial_total', 'familial_reducible', 'dense_null')
_RESAMPLES = 2000


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
  rows = list(records.rows_of(workdir / 'cells'))
  last = _last(rows)
  if not last:
    raise errors.UserError(f'{workdir}: no run has finished; nothing to fit')
  notes = _fit(study, workdir, rows)
  gamma = list(_gammas(workdir))
  twins = _twins(last)
  found: dict[str, Any] = {
    'machine': _machine(),
    'cost': {
      'flops': sum(row['flops'] for row in _final_exits(last)),
      'seconds': _seconds(workdir),
      'finished': len(last),
      'diverged': sum(
        records.status(run) == 'diverged' for run in _folders(workdir)
      ),
      'missing': len(failed),
    },
    'noise': noise(last),
    'gamma': gamma,
    'twins': twins,
    'weighting': _weighting(last),
    'frozen': _frozen(last),
    'leverage': _leverage(workdir, rows),
    'gradients': _gradients(workdir),
    'notes': notes,
  }
  found['summary_line'] = _line(found)
  records.write_json(workdir / 'summary.json', found)
  return str(found['summary_line'])


def noise(last: dict[str, list[Row]]) -> dict[str, Any] | None:
  """Returns the spread of log loss between runs that differ by seed alone.

  Args:
    last: the last rows of each finished run, one per exit.

  Returns:
    `sd_log_loss` of the last exit, pooled over the cells that have several
    seeds, their number `cells` and the largest number of `seeds`; None where
    no cell has two.
  """
  groups: dict[Any, list[float]] = defaultdict(list)
  for row in _final_exits(last):
    if row['arm'] in ('grid', 'seed'):
      groups[_place(row)].append(math.log(row['loss']))
  repeated = [np.array(values) for values in groups.values() if len(values) > 1]
  if not repeated:
    return None
  squares = sum(float(np.sum((v - v.mean()) ** 2)) for v in repeated)
  degrees = sum(len(v) - 1 for v in repeated)
  return {
    'sd_log_loss': math.sqrt(squares / degrees),
    'cells': len(repeated),
    'seeds': max(map(len, repeated)),
    'degrees': degrees,
  }


def _fit(
  study: study_config.StudyConfig, workdir: pathlib.Path, rows: list[Row]
) -> list[str]:
  """Fits every form to every loss; returns what could not be fitted."""
  options: dict[str, Any] = {
    'delta': study.fit.delta,
    'starts': study.fit.starts,
    'resamples': study.fit.resamples,
  }
  arms = definitions.ARMS
  jobs: list[tuple[str, tuple[str, ...], tuple[str, ...], str]] = [
    (loss, FORMS, arms, loss) for loss in LOSSES
  ]
  jobs.append(('exit', ('branch',), (*arms, 'branch'), 'exit/branch'))
  notes = []
  if len({row['exits'] for row in rows if row['arm'] in arms}) < 2:
    jobs = []
    notes.append('one granularity only: gamma is not fitted')
  for loss, forms, used, folder in jobs:
    try:
      table = tables.from_rows(rows, loss=loss, arms=used, source='cells')
      laws.run(
        table, forms, workdir / 'fits' / folder, loss_definition=loss, **options
      )
    except errors.UserError as error:
      notes.append(f'{folder}: {error}')
  try:
    dense = [row for row in rows if row['exits'] == 1]
    laws.run(
      tables.from_rows(dense, source='cells'),
      ('chinchilla',),
      workdir / 'fits' / 'dense' / 'chinchilla',
      **options,
    )
  except errors.UserError as error:
    notes.append(f'dense: {error}')
  return notes


def _gammas(workdir: pathlib.Path) -> Iterable[dict[str, Any]]:
  for loss in LOSSES:
    for form in FORMS[:2]:
      path = workdir / 'fits' / loss / form / 'fit.json'
      if not path.exists():
        continue
      fit = records.read_json(path)
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


def _twins(last: dict[str, list[Row]]) -> dict[str, Any]:
  """Compares each exit with the dense model of its shape at equal FLOPs.

  gamma is the least-squares slope through 0 of log(loss / twin's loss) on
  log G; its interval resamples families, which share twins, so it says nothing
  of the twins' own noise.
  """
  dense = {
    _shape(row): row['loss']
    for row in _final_exits(last)
    if row['exits'] == 1 and row['arm'] in ('grid', 'twin')
  }
  rows = []
  for exits in last.values():
    for row in exits:
      key = _shape(row)
      if row['arm'] != 'grid' or row['exits'] == 1 or key not in dense:
        continue
      rows.append(
        {
          **{k: row[k] for k in ('budget', 'width', 'depth', 'exits')},
          'exit': row['exit'],
          'layer': row['layer'],
          'run': row['run'],
          'loss_exit': row['loss'],
          'loss_twin': dense[key],
          'log_ratio': math.log(row['loss'] / dense[key]),
        }
      )
  # Families whose shallow exits have twins; elsewhere only the last has one.
  full = {row['run'] for row in rows if row['exit'] < row['exits']}
  rows = [row for row in rows if row['run'] in full]
  if not rows:
    return {}
  runs = sorted(full)
  log_g = np.array([math.log(row['exits']) for row in rows])
  ratio = np.array([row['log_ratio'] for row in rows])
  run = np.array([runs.index(row['run']) for row in rows])
  over = np.bincount(run, ratio * log_g)
  under = np.bincount(run, log_g**2)
  drawn = np.random.default_rng(0).integers(
    0, len(runs), (_RESAMPLES, len(runs))
  )
  slopes = over[drawn].sum(1) / under[drawn].sum(1)
  lo, hi = np.percentile(slopes, [2.5, 97.5])
  return {
    'rows': rows,
    'gamma': float(over.sum() / under.sum()),
    'lo': float(lo),
    'hi': float(hi),
    'families': len(runs),
  }


def _weighting(last: dict[str, list[Row]]) -> list[dict[str, Any]]:
  """Exits' losses by weighting, the uniform ones of the grid beside them."""
  compared = {
    _place(row)
    for exits in last.values()
    for row in exits
    if row['arm'] == 'weighting'
  }
  keys = ('weighting', 'exits', 'exit', 'layer', 'loss', 'width', 'depth')
  return [
    {'budget': row['budget'], **{key: row[key] for key in keys}}
    for exits in last.values()
    for row in exits
    if row['arm'] in ('grid', 'weighting') and _place(row) in compared
  ]


def _frozen(last: dict[str, list[Row]]) -> list[dict[str, Any]]:
  """Exits on a frozen trunk beside those of the same kind trained jointly."""
  joint = {}
  for exits in last.values():
    for row in exits:
      if row['arm'] in ('grid', 'kind'):
        kind = exits[0]['exit_kind']
        place = (row['width'], row['depth'], row['exits'], row['exit'])
        joint[(*place, kind, row['budget'])] = row['loss']
  found = []
  for exits in last.values():
    for row in exits[:-1]:
      if row['arm'] == 'frozen':
        place = (row['width'], row['depth'], row['exits'], row['exit'])
        budgets = [
          b
          for *p, kind, b in joint
          if tuple(p) == place and kind == row['exit_kind']
        ]
        nearest = min(
          budgets, key=lambda b: abs(b - row['flops']), default=None
        )
        found.append(
          {
            'exit_kind': row['exit_kind'],
            'budget': row['flops'],
            **{
              k: row[k]
              for k in ('exits', 'exit', 'layer', 'loss', 'width', 'depth')
            },
            'loss_joint': joint.get((*place, row['exit_kind'], nearest)),
          }
        )
  return found


def _leverage(workdir: pathlib.Path, rows: list[Row]) -> list[dict[str, Any]]:
  """Leverage of the grid's families, from the law of the dense runs."""
  path = workdir / 'fits' / 'dense' / 'chinchilla' / 'fit.json'
  if not path.exists():
    return []
  table = tables.from_rows(rows, loss='exit', arms=('grid',))
  sizes = {row['run']: row['params_full'] for row in rows}
  return [
    {**found.to_json(), 'params_full': sizes[found.run]}
    for found in leverage.efficiency_leverage(laws.load(path).params, table)
  ]


def _gradients(workdir: pathlib.Path) -> list[dict[str, Any]]:
  return [
    row
    for run in _folders(workdir)
    for row in records.read(run / records.GRADIENTS)
  ]


def _last(rows: Iterable[Row]) -> dict[str, list[Row]]:
  """Returns the last rows of each finished run, one per exit, by run."""
  last: dict[str, list[Row]] = defaultdict(list)
  for row in rows:
    if row['status'] == 'finished':
      last[row['run']].append(row)
  return {
    run: sorted(exits, key=lambda row: row['exit'])
    for run, exits in sorted(last.items())
  }


def _final_exits(last: dict[str, list[Row]]) -> list[Row]:
  return [exits[-1] for exits in last.values()]


def _place(row: Row) -> tuple[Any, ...]:
  """Returns what two runs share that differ by seed or weighting alone."""
  return (
    row['budget'],
    row['width'],
    row['depth'],
    row['heads'],
    tuple(row['exit_layers']),
  )


def _shape(row: Row) -> tuple[Any, ...]:
  """Returns what an exit and the dense model of its exact shape share."""
  keys = ('budget', 'width', 'heads', 'params', 'params_embedding')
  return tuple(row[key] for key in keys)


def _folders(workdir: pathlib.Path) -> list[pathlib.Path]:
  return sorted(path for path in (workdir / 'cells').iterdir() if path.is_dir())


def _seconds(workdir: pathlib.Path) -> float:
  """Returns the seconds that all runs' training steps took, summed."""
  total = 0.0
  for run in _folders(workdir):
    progress = records.read(run / records.PROGRESS)
    rows = records.read(run / records.ROWS)
    if rows and progress and progress[-1]['tokens_per_second']:
      total += rows[-1]['tokens'] / progress[-1]['tokens_per_second']
  return total


def _machine() -> dict[str, str]:
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
  """Returns gamma under each loss, never without its interval."""
  parts = []
  for gamma in found['gamma']:
    if gamma['form'] == FORMS[0]:
      lo = -math.inf if gamma['lo'] is None else gamma['lo']
      hi = math.inf if gamma['hi'] is None else gamma['hi']
      flags = f' ({"; ".join(gamma["flags"])})' if gamma['flags'] else ''
      parts.append(
        f'{gamma["loss"]} loss {gamma["gamma"]:.4f} [{lo:.4f}, {hi:.4f}]{flags}'
      )
  cost = found['cost']
  runs = (
    f'{cost["finished"]} runs, {cost["diverged"]} diverged, '
    f'{cost["missing"]} missing, {cost["flops"]:.3g} FLOPs'
  )
  if not parts:
    return f'gamma was not fitted; {runs}'
  return f'gamma ({FORMS[0]}, 95 % by run): {"; ".join(parts)}; {runs}'
