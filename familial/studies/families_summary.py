"""What a study of families found: `summary.json`, with all that it rests on."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import os
import pathlib
from typing import Any

import jax

from familial.convert import load
from familial.core import run_folder
from familial.core import storage
from familial.data import batches
from familial.data import packing
from familial.model import flops as flops_lib
from familial.model import transformer
from familial.studies import families_cells
from familial.studies import families_compared
from familial.studies import families_config
from familial.studies import summary
from familial.studies import sweep
from familial.training import evaluation

Row = storage.Row
Found = families_compared.Found


def write(
  study: families_config.FamiliesConfig,
  workdir: str | os.PathLike[str],
  failed: Sequence[str],
) -> str:
  """Compares the families, writes `summary.json`; returns one line.

  Args:
    study: what was asked.
    workdir: of the study.
    failed: runs that have no result.
  """
  workdir = pathlib.Path(workdir)
  found = {
    place: members
    for place, family in families_cells.families(study).items()
    if (members := list(_members(place, family, workdir)))
  }
  compared = list(families_compared.compared(study, found))
  result: dict[str, Any] = {
    'schema': storage.SCHEMA,
    'machine': summary.machine(),
    'cost': {
      'flops': sum(
        summary.spent(workdir, row)
        for row in _ends(workdir, families_cells.build(study))
      ),
      'seconds': summary.seconds(workdir),
      'missing': len(failed),
    },
    'ways': [_way(study, name) for name in study.ways],
    'members': [row for members in found.values() for row in members],
    'losses': list(families_compared.losses(found)),
    'compared': compared,
    'overall': list(families_compared.overall(study, compared)),
    'equal_loss': list(families_compared.equal_loss(study, found, compared)),
    'saving': list(families_compared.saving(study, found, compared)),
    'agreement': list(_agreement(study, found, workdir)),
    'storage': list(_storage(study)),
  }
  result['summary_line'] = _line(result)
  storage.write_json(workdir / 'summary.json', result)
  return str(result['summary_line'])


def _ends(workdir: pathlib.Path, runs: Sequence[Any]) -> Iterator[Row]:
  """Yields the last row of each finished run."""
  for run in runs:
    rows = storage.read_rows(sweep.folder(workdir, run.cell) / run_folder.ROWS)
    if rows and rows[-1]['status'] == 'finished':
      yield rows[-1]


def _members(
  place: families_cells.Place,
  family: families_cells.Family,
  workdir: pathlib.Path,
) -> Iterator[Row]:
  """Yields the members of a family whose runs have finished."""
  for size, (run, exit_) in enumerate(family.members, start=1):
    folder = sweep.folder(workdir, run.cell)
    rows = [
      row
      for row in storage.read_rows(folder / run_folder.ROWS)
      if row['status'] == 'finished' and row['exit'] == exit_
    ]
    if not rows:
      continue
    row = rows[-1]
    before = storage.read_json(folder / 'lineage.json')['inherited_windows']
    yield {
      **place._asdict(),
      'size': size,
      'run': run.cell,
      'exit': exit_,
      'width': row['width'],
      'layer': row['layer'],
      'params': row['params'],
      'loss': row['loss'],
      'loss_per_byte': row['loss_per_byte'],
      'flops': row['flops'],
      'tokens': row['tokens'],
      'tokens_seen': before * run.data.seq_len + row['tokens'],
      'epochs': row['epochs'],
    }


def _agreement(
  study: families_config.FamiliesConfig, found: Found, workdir: pathlib.Path
) -> Iterator[Row]:
  """Yields how far members agree: adjacent sizes of a family, and, as a scale,
  the same member of two seeds."""
  corpus = packing.load(study.data)
  train = next(iter(families_cells.build(study))).train
  heldout = batches.heldout(
    corpus, study.data, train.eval_tokens, train.eval_batch_size
  )
  loaded: dict[str, load.Model] = {}

  def member(row: Row) -> evaluation.Member:
    run = row['run']
    if run not in loaded:
      loaded[run] = load.load(sweep.folder(workdir, run))
    model = loaded[run]
    return evaluation.Member(model.params, model.config.model, row['exit'])

  def pair(one: Row, other: Row, kind: str) -> Row:
    measured = evaluation.agreement(member(one), member(other), heldout)
    return {
      'kind': kind,
      **{key: one[key] for key in ('way', 'budget', 'seed', 'size')},
      'other_size': other['size'],
      'other_seed': other['seed'],
      **{name: value for name, (value, _) in measured.items()},
      'errors': {name: error for name, (_, error) in measured.items()},
    }

  for place, members in found.items():
    for one, other in itertools.pairwise(members):
      if other['size'] == one['size'] + 1:
        yield pair(one, other, 'adjacent')
    first = found.get(place._replace(seed=study.seeds[0]), [])
    if place.seed != study.seeds[0]:
      sizes = {row['size']: row for row in members}
      for row in first:
        if row['size'] in sizes:
          yield pair(row, sizes[row['size']], 'seeds')
    if place.seed == study.seeds[-1]:
      loaded.clear()


def _way(study: families_config.FamiliesConfig, name: str) -> Row:
  way = study.ways[name]
  return {
    'way': name,
    'kind': way.kind,
    'against': list(way.against),
    'keep_exits': way.keep_exits,
    'rate_width': way.rate_width,
    'alike': way.alike,
    'growth': {
      key: getattr(way.growth, key)
      for key in ('width', 'split', 'depth', 'state')
    },
  }


def _storage(study: families_config.FamiliesConfig) -> Iterator[Row]:
  """Yields what a family costs to store, and each member to serve."""
  for place, family in families_cells.families(study).items():
    if place.seed != study.seeds[0] or place.budget != study.budgets[0]:
      continue
    held = {run.cell: run.model for run, _ in family.members}
    yield {
      'way': place.way,
      'models': len(held),
      'bytes': sum(map(_bytes, held.values())),
      'forward_flops': [
        flops_lib.forward(run.model.submodel(exit_), study.data.seq_len)
        for run, exit_ in family.members
      ],
      'member_bytes': [
        _bytes(run.model.submodel(exit_)) for run, exit_ in family.members
      ],
    }


def _bytes(model: Any) -> int:
  """Returns the bytes of a model's parameters in float32."""
  shapes = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
  return sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)
  )


def _line(result: Mapping[str, Any]) -> str:
  """Returns each way's loss over that of the one it is compared with."""
  parts = []
  for row in result['overall']:
    span = '' if row['lo'] is None else f' [{row["lo"]:+.1%}, {row["hi"]:+.1%}]'
    parts.append(
      f'{row["way"]} {row["value"]:+.1%}{span} over {row["against"]}'
    )
  for row in result['saving']:
    span = '' if row['lo'] is None else f' [{row["lo"]:.0%}, {row["hi"]:.0%}]'
    parts.append(
      f'{row["way"]} at {row["budget"]:.2g} FLOPs saves {row["ledger"]:.1%} by '
      f'its ledger, {row["value"]:.1%}{span} at its losses'
    )
  return 'loss, geometric mean of all sizes: ' + '; '.join(
    parts or ['none compared']
  )
