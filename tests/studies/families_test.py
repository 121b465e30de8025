"""Studies of families: the runs they make, and what they make of their rows."""

import dataclasses
import json
import math

import numpy as np
import pytest

from experiments import expansion
from experiments import three_families
from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.expansion import config as growth_config
from familial.report import page
from familial.studies import cells as cells_lib
from familial.studies import families
from familial.studies import families_cells
from familial.studies import families_compared
from familial.studies import families_summary
from familial.studies import sweep
from familial.studies import templates
from familial.training import rows as rows_lib

GROWTH = growth_config.GrowthConfig(width='replicate', depth='identity')
STUDIES = [
  (module, arg)
  for module in (expansion, three_families)
  for arg in ('test', 'cpu', 'gpu', 'paper')
] + [(expansion, 'operators')]


@pytest.mark.parametrize(('module', 'arg'), STUDIES)
def test_every_size_gets_its_own_budget_within_half_a_step(module, arg):
  study = templates.families(module.get_config(arg))
  found = families_cells.families(study)
  cells = {cell.cell: cell for cell in families_cells.build(study)}
  runs = {run.cell: run for family in found.values() for run in family.runs}
  assert runs == cells  # What two ways do alike is one run.
  for place, family in found.items():
    way = study.ways[place.way]
    assert len(family.members) == len(study.sizes)
    for run, stage in zip(family.runs, family.stages, strict=True):
      step = stage.flops / stage.steps
      assert abs(stage.total - stage.budget) <= 0.51 * step
      assert cells_lib.cost(run) == stage.flops
    total = sum(stage.flops for stage in family.stages)
    if study.equal == 'total':
      slack = sum(stage.flops / stage.steps for stage in family.stages)
      assert abs(total - place.budget) <= slack
    if way.kind == 'chain':
      assert total == family.stages[-1].total
      # Grown from one another, exactly where the way is.
      parents = [run.train.init_from for run in family.runs]
      names = [f'../{run.cell}' for run in family.runs]
      assert parents == ['', *names[:-1]]
    depths = tuple(depth for _, depth, _ in way.sizes or study.sizes)
    if way.kind == 'exits':
      assert family.runs[0].model.exits == depths
    if way.keep_exits:
      exits = [run.model.exits for run in family.runs]
      assert exits == [depths[:n] for n in range(1, len(depths) + 1)]


def test_exact_chains_are_exact():
  for module in (expansion, three_families):
    study = templates.families(module.get_config('cpu'))
    for place, family in families_cells.families(study).items():
      for before, run in zip(family.runs, family.runs[1:], strict=False):
        if place.way != 'chain_inexact' and run.train.init_from:
          growth = dataclasses.replace(run.growth, exact=True)
          families_cells.maps.plan(growth, before.model, run.model)


def test_large_doublings_save_what_arithmetic_says():
  study = templates.families(expansion.get_config('paper'))
  [row] = [row for row in families.ledger_rows(study) if row['way'] == 'chain']
  assert row['saving'] == pytest.approx(0.247, abs=0.015)


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'sizes': ()}, 'sizes: is empty'),
    ({'budgets': (0.0,)}, r'budgets: 0.0 must be positive'),
    ({'equal': 'cost'}, "equal: 'cost' is not one of member, total"),
    ({'warmup': 2.0}, r'warmup: 2.0 is not allowed'),
    (
      {'ways': {'a': {'kind': 'chains'}}},
      r"ways.a.kind: 'chains' .*mean 'chain'",
    ),
    (
      {'ways': {'a': {'kind': 'separate', 'against': ('b',)}}},
      r"ways.a.against: 'b' is not another one of a",
    ),
    (
      {'ways': {'a': {'kind': 'exits', 'sizes': ((8, 1, 1),)}}},
      r'ways.a.sizes: .* are not 2',
    ),
    (
      {'ways': {'a': {'kind': 'exits'}}, 'sizes': ((8, 1, 1), (16, 2, 2))},
      r'ways.a.sizes: .* several widths',
    ),
    (
      {'ways': {'a': {'kind': 'separate', 'keep_exits': True}}},
      r'ways.a.keep_exits: only a chain',
    ),
    (
      {'ways': {'a': {'kind': 'chain', 'growth': {'depht': 'stack'}}}},
      r"ways.a.growth.depht: unknown key .*'depth'",
    ),
    (
      {'ways': {'a': {'kind': 'chain'}}},
      r"a_c1e9_s0: model.depth: 2 is not the parent's 1, and growth.depth is ''",
    ),
    ({'train': {'steps': 3}}, r'train.steps: follows from the cell'),
  ],
)
def test_what_cannot_be_is_one_line(text_data, changes, says):
  values = _values(text_data)
  train = {**values['train'], **changes.pop('train', {})}
  with pytest.raises(errors.UserError, match=says) as raised:
    families_cells.build(
      templates.families({**values, **changes, 'train': train})
    )
  assert '\n' not in str(raised.value)


def _values(data, **changes):
  values = {
    'title': 'Families',
    'data': dataclasses.asdict(data),
    'model': {'base_width': 16},
    'train': {
      'batch_size': 4,
      'base_lr': 0.01,
      'eval_tokens': 500,
      'eval_batch_size': 8,
    },
    'sizes': ((8, 1, 1), (8, 2, 1)),
    'budgets': (1e9,),
    'ways': {
      'separate': {'kind': 'separate'},
      'chain': {
        'kind': 'chain',
        'against': ('separate',),
        'growth': {'depth': 'identity'},
      },
      'exits': {'kind': 'exits', 'against': ('separate',)},
    },
  }
  return {**values, **changes}


@pytest.fixture
def finished(text_data, tmp_path, monkeypatch):
  """A study whose rows follow a law, with no run trained: (study, folder)."""
  study = templates.families(
    _values(text_data, budgets=(1e9, 4e9), seeds=(0, 1))
  )
  rng = np.random.default_rng(0)
  worse = {'separate': 0.0, 'chain': -0.02, 'exits': 0.05}
  for place, family in families_cells.families(study).items():
    noise = rng.normal(scale=1e-3)
    for run, stage in zip(family.runs, family.stages, strict=True):
      folder = sweep.folder(tmp_path, run.cell)
      if folder.exists():
        continue  # Of another way too.
      run_folder.open_folder(
        folder, run, {'inherited_flops': 0, 'inherited_windows': 0}
      )
      exits = range(run.model.granularity)
      logs = [
        1
        - 0.1 * math.log(place.budget / 1e9)
        - 0.1 * run.model.exits[k]
        + noise
        for k in exits
      ]
      storage.append(
        folder / run_folder.ROWS,
        rows_lib.of_evaluation(
          run, run.cell, 'f00d', run.train.steps,
          stage.total - stage.flops, 0.1,
          [math.exp(log + worse[place.way]) for log in logs], 1.0, 'finished',
        ),
      )  # fmt: skip
  monkeypatch.setattr(families_summary, '_agreement', lambda *_: [])
  return study, tmp_path


def test_a_summary_finds_what_the_rows_hold(finished):
  study, folder = finished
  line = families_summary.write(study, folder, [])
  found = json.loads((folder / 'summary.json').read_text())
  assert len(found['compared']) == 2 * (1 + 2)
  for row in found['compared']:
    due = {'chain': -0.02, 'exits': 0.05}[row['way']]
    assert row['value'] == pytest.approx(due, abs=3e-3)
    assert row['lo'] < row['value'] < row['hi'] < row['lo'] + 0.02
  overall = {row['way']: row for row in found['overall']}
  assert overall['exits']['lo'] > 0 > overall['chain']['hi']
  assert 'chain -2.0%' in line and 'exits +4.9%' in line
  # Losses fall as C^-0.1: 2 % less is worth a fifth of the compute.
  for row in found['equal_loss']:
    due = math.exp({'chain': -0.2, 'exits': 0.5}[row['way']])
    assert row['value'] == pytest.approx(due, rel=0.05)
  for row in found['saving']:
    chain = families_cells.Place('chain', row['budget'], 0)
    alone = families_cells.Place('separate', row['budget'], 0)
    spent, needed = (
      families_cells.families(study)[place].stages for place in (chain, alone)
    )
    sizes = sum(stage.total for stage in needed)
    assert row['ledger'] == pytest.approx(1 - spent[-1].total / sizes)
    first, last = (stage.total for stage in needed)  # The first is shared.
    due = 1 - spent[-1].total / (first + last * math.exp(0.2))
    assert row['value'] == pytest.approx(due, abs=0.02)
    assert row['lo'] < row['value'] < row['hi']
  stored = {row['way']: row for row in found['storage']}
  assert stored['exits']['models'] == 1
  assert stored['exits']['bytes'] < stored['separate']['bytes']


def test_members_that_are_missing_are_left_out(finished):
  study, folder = finished
  place = families_cells.Place('chain', 1e9, 0)
  run = families_cells.families(study)[place].runs[-1]
  (sweep.folder(folder, run.cell) / run_folder.ROWS).unlink()
  families_summary.write(study, folder, [run.cell])
  found = json.loads((folder / 'summary.json').read_text())
  assert found['cost']['missing'] == 1
  seeds = {
    (row['way'], row['budget'], row['size']): row['seeds']
    for row in found['losses']
  }
  assert seeds['chain', 1e9, 2] == 1
  assert seeds['chain', 1e9, 1] == 2


@pytest.mark.slow
def test_a_study_from_its_plan_to_its_page(text_data, tmp_path, capsys):
  study = templates.families(_values(text_data, seeds=(0, 1), budgets=(3e7,)))
  families.run(study, tmp_path)
  found = json.loads((tmp_path / 'summary.json').read_text())
  kinds = {(row['kind'], row['way']) for row in found['agreement']}
  assert kinds == {
    (kind, way) for kind in ('adjacent', 'seeds') for way in study.ways
  }
  assert all(row['kl'] > 0 and row['top1'] < 1 for row in found['agreement'])
  rows = list(run_folder.rows_of(tmp_path))
  assert page.write(tmp_path).exists()
  families.run(study, tmp_path)
  assert list(run_folder.rows_of(tmp_path)) == rows
  again = json.loads((tmp_path / 'summary.json').read_text())
  assert again['compared'] == found['compared']
  assert 'less than its sizes alone' in capsys.readouterr().out


def test_what_two_ways_do_alike_is_trained_once(text_data):
  study = templates.families(_values(text_data))
  found = families_cells.families(study)
  chain, separate = (
    found[families_cells.Place(way, 1e9, 0)] for way in ('chain', 'separate')
  )
  assert chain.runs[0] is separate.runs[0]
  assert chain.members[0][0] is separate.members[0][0]
  assert chain.runs[1].train.init_from == f'../{separate.runs[0].cell}'
  assert chain.runs[1] != separate.runs[1]


def test_scatter_counts_runs_that_are_shared_once():
  one = {('a', 0): 1.0, ('b', 0): 1.2}
  twice = {'x': one, 'y': dict(one)}
  assert families_compared._half_widths(twice)(2) == pytest.approx(
    families_compared._half_widths({'x': one})(2)
  )
