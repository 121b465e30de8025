"""What a study of families found: `summary.json`, with all that it rests on.

Losses are compared as logarithms, by pairs of the same seed, budget and size.
Intervals are Student's at 95 %: the scatter between seeds is pooled over all
pairs of the study, for it is about the same in each and there are few seeds. Its
degrees of freedom count the runs that pairs share once.
"""

from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
import os
import pathlib
import statistics
from typing import Any

import jax
import numpy as np

from familial import evaluation
from familial import flops as flops_lib
from familial import records
from familial.data import batches
from familial.data import packing
from familial.model import transformer
from familial.serving import models
from familial.studies import families_cells
from familial.studies import families_config
from familial.studies import pairs
from familial.studies import summary
from familial.studies import sweep

Row = records.Row
Found = dict[families_cells.Place, list[Row]]
# Values by what they are of, and then by the runs that they are from.
Pairs = dict[tuple[Any, ...], dict[Any, float]]


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
  compared = list(_compared(study, found))
  result: dict[str, Any] = {
    'schema': records.SCHEMA,
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
    'losses': list(_losses(found)),
    'compared': compared,
    'overall': list(_overall(study, compared)),
    'equal_loss': list(_equal_loss(study, found, compared)),
    'saving': list(_saving(study, found, compared)),
    'agreement': list(_agreement(study, found, workdir)),
    'storage': list(_storage(study)),
  }
  result['summary_line'] = _line(result)
  records.write_json(workdir / 'summary.json', result)
  return str(result['summary_line'])


def _ends(workdir: pathlib.Path, runs: Sequence[Any]) -> Iterator[Row]:
  """Yields the last row of each finished run."""
  for run in runs:
    rows = records.read(sweep.folder(workdir, run.cell) / records.ROWS)
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
      for row in records.read(folder / records.ROWS)
      if row['status'] == 'finished' and row['exit'] == exit_
    ]
    if not rows:
      continue
    row = rows[-1]
    before = records.read_json(folder / 'lineage.json')['inherited_windows']
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


def _losses(found: Found) -> Iterator[Row]:
  """Yields the mean loss of each size in each way, with its interval."""
  logs: Pairs = defaultdict(dict)
  for place, members in found.items():
    for row in members:
      key = (place.way, place.budget, row['size'])
      logs[key][_member(row)] = math.log(row['loss'])
  half = _half_widths(logs)
  for (way, budget, size), by_run in logs.items():
    values = list(by_run.values())
    named = {'way': way, 'budget': budget, 'size': size, 'seeds': len(values)}
    yield {**named, **_exponential(float(np.mean(values)), half(len(values)))}


def _compared(
  study: families_config.FamiliesConfig, found: Found
) -> Iterator[Row]:
  """Yields the log of each size's loss over that of the way it is compared
  with.

  Where both are one run, as a chain's first stage may be, there is nothing to
  compare.
  """
  logs: Pairs = defaultdict(dict)
  for place, members in found.items():
    for against in study.ways[place.way].against:
      others = {
        row['size']: row for row in found.get(place._replace(way=against), ())
      }
      for row in members:
        other = others.get(row['size'])
        if other is None or _member(row) == _member(other):
          continue
        key = (place.way, against, place.budget, row['size'])
        pair = (_member(row), _member(other))
        logs[key][pair] = math.log(row['loss'] / other['loss'])
  # Ways share the runs that they are compared with.
  shared = {key[1:]: len(by_pair) - 1 for key, by_pair in logs.items()}
  half = _half_widths(logs, sum(shared.values()))
  for (way, against, budget, size), by_pair in logs.items():
    values = list(by_pair.values())
    value, width = float(np.mean(values)), half(len(values))
    yield {
      'way': way,
      'against': against,
      'budget': budget,
      'size': size,
      'seeds': len(values),
      'value': value,
      'lo': None if width is None else value - width,
      'hi': None if width is None else value + width,
    }


def _overall(
  study: families_config.FamiliesConfig, compared: Sequence[Row]
) -> Iterator[Row]:
  """Yields the mean of those logs over a way's sizes and budgets."""
  for way, against in (
    (name, other) for name, of in study.ways.items() for other in of.against
  ):
    rows = [
      row for row in compared if (row['way'], row['against']) == (way, against)
    ]
    if not rows:
      continue
    value = float(np.mean([row['value'] for row in rows]))
    halves = [row['hi'] - row['value'] for row in rows if row['hi'] is not None]
    # Seeds are shared by the sizes of a family: their scatters are taken as one,
    # not as independent, and only budgets average it.
    half = None
    if len(halves) == len(rows):
      half = float(np.mean(halves)) / math.sqrt(
        len({row['budget'] for row in rows})
      )
    yield {
      'way': way,
      'against': against,
      'value': value,
      'lo': None if half is None else value - half,
      'hi': None if half is None else value + half,
    }


def _slopes(found: Found) -> dict[tuple[str, int], float]:
  """Returns s of loss ~ C^-s for each way and size, over the budgets."""
  points: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
  for place, members in found.items():
    for row in members:
      points[place.way, row['size']].append(
        (math.log(place.budget), math.log(row['loss']))
      )
  return {
    key: -statistics.linear_regression(*zip(*values, strict=True)).slope
    for key, values in points.items()
    if len({x for x, _ in values}) > 1
  }


def _equal_loss(
  study: families_config.FamiliesConfig,
  found: Found,
  compared: Sequence[Row],
) -> Iterator[Row]:
  """Yields the compute that a way needs for the other's loss, as a multiple of
  what that one had: exp(log ratio / s), s of the way's own losses over C."""
  slopes = _slopes(found)
  for row in compared:
    slope = slopes.get((row['way'], row['size']), 0.0)
    first = study.ways[row['way']].against[0]
    if slope <= 0 or row['against'] != first:
      continue
    yield {
      **{k: row[k] for k in ('way', 'against', 'budget', 'size')},
      'slope': slope,
      **{
        key: None if row[key] is None else math.exp(row[key] / slope)
        for key in ('value', 'lo', 'hi')
      },
    }


def _saving(
  study: families_config.FamiliesConfig,
  found: Found,
  compared: Sequence[Row],
) -> Iterator[Row]:
  """Yields what a chain saves: as its ledger has it, and for its losses.

  The sizes trained alone would reach the chain's losses with
  sum_i C_i exp(-d_i / s_i), d_i the log of the chain's loss over theirs and s_i
  of theirs over C.
  """
  slopes = _slopes(found)
  for way, budget in itertools.product(study.ways, study.budgets):
    against = (*study.ways[way].against, '')[0]
    rows = [
      row
      for row in compared
      if (row['way'], row['against'], row['budget']) == (way, against, budget)
    ]
    chain = next(
      (m for p, m in found.items() if (p.way, p.budget) == (way, budget)), []
    )
    alone = next(
      (m for p, m in found.items() if (p.way, p.budget) == (against, budget)),
      [],
    )
    whole = len(chain) == len(alone) == len(study.sizes)
    if study.ways[way].kind != 'chain' or not rows or not whole:
      continue
    if any(slopes.get((against, row['size']), 0.0) <= 0 for row in rows):
      continue
    by_size = {row['size']: row for row in rows}
    spent, needed, half = max(row['flops'] for row in chain), 0.0, 0.0
    for other in alone:
      row, slope = by_size.get(other['size']), slopes[against, other['size']]
      term = other['flops'] * math.exp(-(row['value'] if row else 0) / slope)
      needed += term
      if row and row['hi'] is not None:
        half += term / slope * (row['hi'] - row['value'])
    yield {
      'way': way,
      'against': against,
      'budget': budget,
      'ledger': 1 - spent / sum(row['flops'] for row in alone),
      'value': 1 - spent / needed,
      'lo': 1 - spent / (needed - half) if 0 < half < needed else None,
      'hi': 1 - spent / (needed + half) if half else None,
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
  loaded: dict[str, models.Model] = {}

  def member(row: Row) -> evaluation.Member:
    run = row['run']
    if run not in loaded:
      loaded[run] = models.load(sweep.folder(workdir, run))
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


def _member(row: Row) -> tuple[str, int]:
  """Returns the run and the exit that a member is."""
  return row['run'], row['exit']


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


def _half_widths(
  groups: Pairs, degrees: int | None = None
) -> Callable[[int], float | None]:
  """Returns the half width of a mean of n values.

  Args:
    groups: values that scatter about their means alike, by the runs that they
      are of; two groups of the same runs count once.
    degrees: of freedom, where groups share runs; by default all of theirs.

  Returns:
    A function of n; None where no group has two values.
  """
  distinct = [
    np.array(list(values.values()))
    for values in {tuple(group): group for group in groups.values()}.values()
  ]
  own = sum(len(values) - 1 for values in distinct)
  if own < 1:
    return lambda count: None
  square = sum(float(np.sum((v - v.mean()) ** 2)) for v in distinct)
  quantile = pairs.quantile(min(own, degrees or own))
  return lambda count: quantile * math.sqrt(square / own / count)


def _exponential(value: float, half: float | None) -> Mapping[str, Any]:
  return {
    'value': math.exp(value),
    'lo': None if half is None else math.exp(value - half),
    'hi': None if half is None else math.exp(value + half),
  }


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
