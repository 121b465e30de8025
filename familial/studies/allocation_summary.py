"""What a live allocation found: the law it gave, and what the whole grid says."""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import math
import pathlib
from typing import Any

from familial.allocation import curves as curves_lib
from familial.allocation import optimal_design
from familial.allocation import policies
from familial.allocation import replay
from familial.allocation import rounds as rounds_lib
from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.laws import fit_record
from familial.laws import inference
from familial.studies import allocation_config
from familial.studies import summary as summaries
from familial.studies import sweep
from familial.training import config as train_config

ROUNDS = 'rounds.jsonl'
ALLOCATED, FULL = 'allocated', 'full'


def write(
  study: allocation_config.AllocationConfig,
  workdir: pathlib.Path,
  failed: Sequence[str],
) -> str:
  """Fits the laws, writes `fits/` and `summary.json`; returns one line.

  Args:
    study: what was asked.
    workdir: of the study.
    failed: candidates of the whole grid that have no result.
  """
  whole = list(_curves(study, workdir))
  rounds = decided(workdir)
  spent = _spent(rounds, len(whole))
  grid = math.fsum(
    row['flops'] for row in storage.read_own(workdir / 'plan.json')['cells']
  )
  allocated = [
    curve.cut(flops) for curve, flops in zip(whole, spent, strict=True)
  ]
  complete = study.full and not failed
  # One compute for both laws: so many times what the grid's largest run takes.
  far = study.law.beyond * study.horizon
  known = {ALLOCATED: allocated, **({FULL: whole} if complete else {})}
  laws = {
    name: _law(study, workdir, name, curves, far)
    for name, curves in known.items()
    if study.law.form
  }
  found: dict[str, Any] = {
    'schema': storage.SCHEMA,
    'machine': summaries.machine(),
    'cost': {
      'flops': math.fsum(curve.end for curve in whole),
      'seconds': summaries.seconds(workdir),
      'missing': len(failed),
    },
    'policy': study.policy,
    'budget': study.budget,
    'spent': math.fsum(spent),
    'grid': grid,
    'saving': 1 - math.fsum(spent) / grid,
    'candidates': list(_candidates(allocated, spent, rounds)),
    'extrapolated_to': far,
    'laws': laws,
    'apart': _apart(laws[ALLOCATED], laws[FULL]) if FULL in laws else None,
    'replays': _replays(study, whole) if complete else None,
  }
  found['summary_line'] = _line(found)
  fit_record.write_json(workdir / 'summary.json', found)
  return str(found['summary_line'])


def decided(workdir: pathlib.Path) -> list[rounds_lib.Round]:
  """Returns the rounds that were decided on in a study's folder."""
  return rounds_lib.from_rows(storage.read_rows(workdir / ROUNDS))


def _curves(
  study: allocation_config.AllocationConfig, workdir: pathlib.Path
) -> Iterator[curves_lib.Curve]:
  """Yields what is known of each candidate, however it came to be trained."""
  for row in storage.read_own(workdir / 'plan.json')['cells']:
    folder = sweep.folder(workdir, row['cell'])
    rows = storage.read_rows(folder / run_folder.ROWS)
    features = {
      'params': float(row['params_full']),
      **{key: float(row[key]) for key in ('width', 'depth', 'exits')},
    }
    last = study.steady * row['steps']
    yield curves_lib.of_run(row['cell'], rows, study.loss, features, last)


def _spent(rounds: Sequence[rounds_lib.Round], count: int) -> list[float]:
  """Returns the FLOPs that the allocation spent on each candidate."""
  spent = [0.0] * count
  for made in rounds:
    for candidate, flops in zip(made.alive, made.spent, strict=True):
      spent[candidate] = flops
  return spent


def _candidates(
  curves: Sequence[curves_lib.Curve],
  spent: Sequence[float],
  rounds: Sequence[rounds_lib.Round],
) -> Iterator[dict[str, Any]]:
  """Yields each candidate's end; `pruned` is the round after which it left."""
  for i, curve in enumerate(curves):
    left = [n for n, made in enumerate(rounds, 1) if i not in made.kept]
    yield {
      'cell': curve.name,
      'params': int(curve.features['params']),
      'exits': int(curve.features['exits']),
      'flops': spent[i],
      'loss': curve.best if math.isfinite(curve.best) else None,
      'diverged': curve.diverged,
      'pruned': left[0] if left else None,
    }


def _law(
  study: allocation_config.AllocationConfig,
  workdir: pathlib.Path,
  name: str,
  curves: Sequence[curves_lib.Curve],
  far: float,
) -> dict[str, Any]:
  """Fits the law to curves and writes it, or says why there is none."""
  rows = 0
  try:
    table, _ = curves_lib.rows([curves], study.law.where)
    rows = table.rows
    found = inference.fit(
      study.law.form,
      table,
      inference.Options(compute=(far,), profile_all=False),
      loss_definition=study.loss,
    )
  except errors.UserError as error:
    return {'rows': rows, 'error': str(error)}
  found.save(workdir / 'fits' / name / 'fit.json')
  return {
    'rows': table.rows,
    'params': {
      key: dataclasses.asdict(found.interval(key)) for key in found.fit.params
    },
    'extrapolated': {
      key: {'value': derived.value, 'lo': derived.lo, 'hi': derived.hi}
      for key, derived in found.derived.items()
      if key.startswith('L_opt')
    },
    'identified': found.identified,
    'flags': list(found.flags),
  }


def _apart(
  allocated: dict[str, Any], full: dict[str, Any]
) -> dict[str, Any] | None:
  """How far the allocation's law is from the whole grid's.

  Constants as differences, extrapolated losses as relative ones.
  """
  if 'error' in allocated or 'error' in full:
    return None
  losses = {
    key: (allocated['extrapolated'][key]['value'], row['value'])
    for key, row in full['extrapolated'].items()
    if key in allocated['extrapolated']
  }
  return {
    'params': {
      key: allocated['params'][key]['value'] - row['value']
      for key, row in full['params'].items()
    },
    'extrapolated': {
      key: mine / theirs - 1
      for key, (mine, theirs) in losses.items()
      if math.isfinite(mine) and math.isfinite(theirs)
    },
    # Of which the allocation trained nothing that counts.
    'unknown': [key for key in full['extrapolated'] if key not in losses],
  }


def _replays(
  study: allocation_config.AllocationConfig,
  whole: Sequence[curves_lib.Curve],
) -> dict[str, Any]:
  """What every policy would have made of the same budget on these curves.

  Each in one allocation of all candidates: nothing here has an interval.
  """
  seed = study.train.get('seed', train_config.TrainConfig.seed)
  settings = rounds_lib.Settings(study.eta, study.law, seed)
  allocations = {
    name: policies.get(name).allocate(
      [replay.KnownCurves(whole)], [study.budget], settings
    )
    for name in dict.fromkeys((policies.BASE, *policies.POLICIES))
    if name != policies.LAW or optimal_design.has_prior(study.law)
  }
  outcomes = replay.outcomes(allocations, [whole], study.budget, study.law)
  return {
    name: dataclasses.asdict(outcome) for name, [outcome] in outcomes.items()
  }


def _line(found: dict[str, Any]) -> str:
  """The study in one line."""
  text = (
    f'{found["policy"]} spent {found["spent"]:.3g} of {found["budget"]:.3g} FLOPs'
    f' and saved {found["saving"]:.1%} of the whole grid'
  )
  apart = found['apart']
  if apart and apart['extrapolated']:
    worst = max(map(abs, apart['extrapolated'].values()))
    ends = [
      end / row['value'] - 1
      for key, row in found['laws'][FULL]['extrapolated'].items()
      if key in apart['extrapolated']
      for end in (row['lo'], row['hi'])
    ]
    text += (
      f'; its law is off by at most {worst:.2%} at {found["extrapolated_to"]:.3g}'
      " FLOPs, beside the whole grid's"
    )
    if all(map(math.isfinite, ends)):
      text += f', which is itself known to {max(map(abs, ends)):.1%}'
    if apart['unknown']:
      text += f'; it says nothing of {", ".join(apart["unknown"])}'
  return text
