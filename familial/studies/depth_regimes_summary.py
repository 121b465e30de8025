"""What the layers of models with exits do that those of dense ones do not."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np

from familial.analysis import differences
from familial.analysis import middle
from familial.analysis import probe
from familial.analysis import regimes
from familial.core import errors
from familial.core import estimate
from familial.core import run_folder
from familial.core import storage
from familial.laws import fit_record
from familial.studies import depth_regimes_config
from familial.studies import summary as summaries
from familial.studies import sweep

PROBES = 'probes'
# What composition predicts, and averaging does not: each is higher under it.
COMPOSITION = ('step_spread', 'early', 'stop_spread')


def write(
  study: depth_regimes_config.RegimesConfig,
  workdir: pathlib.Path,
  failed: Sequence[str],
) -> str:
  """Probes the models, writes `summary.json`; returns one line.

  A probe is `probes/CELL.json`, and is made once.

  Args:
    study: what was asked.
    workdir: of the study.
    failed: cells that have no result.
  """
  last = summaries.last_of(list(run_folder.rows_of(workdir / 'cells')))
  there = {exits[-1]['cell'] for exits in last.values()}
  finished = [
    row['cell']
    for row in storage.read_own(workdir / 'plan.json')['cells']
    if row['cell'] in there
  ]
  if not finished:
    raise errors.UserError(f'{workdir}: no run has finished; nothing to probe')
  probes = [_probe(study, workdir, cell) for cell in finished]
  groups = list(_groups(study, probes))
  found: dict[str, Any] = {
    'schema': storage.SCHEMA,
    'machine': summaries.machine(),
    'cost': {
      'flops': sum(exits[-1]['flops'] for exits in last.values()),
      'seconds': summaries.seconds(workdir),
      'finished': len(finished),
      'missing': len(failed),
    },
    'level': estimate.LEVEL,
    'definitions': middle.DEFINITIONS,
    'groups': groups,
    'differences': list(_differences(study, probes)),
  }
  found['summary_line'] = _line(found)
  fit_record.write_json(workdir / 'summary.json', found)
  return str(found['summary_line'])


def _probe(
  study: depth_regimes_config.RegimesConfig, workdir: pathlib.Path, cell: str
) -> storage.Row:
  path = workdir / PROBES / f'{cell}.json'
  if path.exists():
    return storage.read_own(path)
  made = probe.of_checkpoint(
    sweep.folder(workdir, cell), tokens=study.probe_tokens
  )
  storage.write_json(path, made)
  return made


def _of(
  probes: Sequence[storage.Row], depth: int, exits: int
) -> list[storage.Row]:
  return [
    each
    for each in probes
    if (each['model']['depth'], len(each['model']['exits'])) == (depth, exits)
  ]


def _groups(
  study: depth_regimes_config.RegimesConfig, probes: Sequence[storage.Row]
) -> Iterator[dict[str, Any]]:
  """Yields the regime of each depth and G: of all seeds, and of each."""
  for depth in study.depths:
    for exits in study.granularities:
      mine = _of(probes, depth, exits)
      if not mine:
        continue
      networks = [middle.of_record(each) for each in mine]
      each = [regimes.classify([network]) for network in networks]
      yield {
        'depth': depth,
        'exits': exits,
        'seeds': [row['model']['seed'] for row in mine],
        'loss': [row['quantities']['loss'][-1]['mean'] for row in mine],
        **dataclasses.asdict(regimes.classify(networks)),
        'regimes': [answer.regime for answer in each],
        'statistics': [
          {
            **middle.statistics(network),
            'middle_turn': middle.turn(network),
          }
          for network in networks
        ],
        'early_at': list(_early_at(mine)),
        'layers': {name: _by_layer(mine, name) for name in differences.LAYERS},
      }


def _early_at(probes: Sequence[storage.Row]) -> Iterator[dict[str, Any]]:
  """Yields the tokens that stop early, mean over seeds, by where that is cut."""
  for same in zip(*(each['early_at'] for each in probes), strict=True):
    shares = np.array([row['share'] for row in same])
    yield {
      'remaining': same[0]['remaining'],
      **dataclasses.asdict(estimate.Estimate.of(shares)),
    }


def _by_layer(probes: Sequence[storage.Row], name: str) -> list[dict[str, Any]]:
  """Means over seeds of a quantity by layer."""
  rows = zip(*(each['quantities'][name] for each in probes), strict=True)
  return [
    {
      'layer': same[0]['layer'],
      'mean': float(np.mean([row['mean'] for row in same])),
    }
    for same in rows
    if all(row['mean'] is not None for row in same)
  ]


def _differences(
  study: depth_regimes_config.RegimesConfig, probes: Sequence[storage.Row]
) -> Iterator[dict[str, Any]]:
  """Yields what exits change, by pairs of one depth and seed."""
  for depth in study.depths:
    dense = _of(probes, depth, 1)
    for exits in study.granularities:
      other = _of(probes, depth, exits)
      if exits == 1 or not dense or not other:
        continue
      try:
        rows = differences.compare(dense, other)
      except errors.UserError:  # No seed finished both.
        continue
      yield {
        'depth': depth,
        'exits': exits,
        'rows': [dataclasses.asdict(row) for row in rows],
      }


def towards_composition(rows: Sequence[Mapping[str, Any]]) -> str:
  """Returns whether exits move the statistics that composition predicts.

  Args:
    rows: differences of one depth and G.

  Returns:
    `yes` where all of COMPOSITION rise and their intervals leave out 0, `no`
    where none does, and `in part` otherwise.
  """
  risen = [
    row['low'] is not None and row['low'] > 0
    for row in rows
    if row['layer'] is None and row['name'] in COMPOSITION
  ]
  if all(risen):
    return 'yes'
  return 'in part' if any(risen) else 'no'


def _line(found: Mapping[str, Any]) -> str:
  parts = []
  for group in found['groups']:
    same = group['regimes'].count(group['regime'])
    name = f'G = {group["exits"]}' if group['exits'] > 1 else 'dense'
    parts.append(
      f'{name}, {group["depth"]} layers: {group["regime"]}'
      f' ({same} of {len(group["regimes"])} seeds alone)'
    )
  for each in found['differences']:
    parts.append(
      f'G = {each["exits"]} moves {each["depth"]} layers towards composition:'
      f' {towards_composition(each["rows"])}'
    )
  return '; '.join(parts)
