"""Studies of families: the runs that they make, and what they find in rows."""

import dataclasses
import json
import math

import pytest

from experiments import expansion
from experiments import three_families
from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.expansion import maps
from familial.report import page
from familial.studies import families
from familial.studies import shapes
from familial.studies import study
from tests.studies import families_rows

STUDY = families.FAMILIES
EXPERIMENTS = [
  (module, arg)
  for module in (expansion, three_families)
  for arg in ('test', 'cpu', 'gpu', 'paper')
] + [(expansion, 'operators')]


@pytest.mark.parametrize(('module', 'arg'), EXPERIMENTS)
def test_every_size_gets_its_own_budget_within_half_a_step(module, arg):
  config = STUDY.read_config(module.get_config(arg))
  found = families.families(config)
  runs = {run.cell: run for family in found.values() for run in family.runs}
  assert runs == {run.cell: run for run in STUDY.runs(config)}
  for place, family in found.items():
    way = config.ways[place.way]
    assert len(family.members) == len(config.sizes)
    for run, stage in zip(family.runs, family.stages, strict=True):
      step = stage.flops / stage.steps
      assert abs(stage.total - stage.budget) <= 0.51 * step
      assert shapes.cost(run) == stage.flops
    total = sum(stage.flops for stage in family.stages)
    if config.equal == 'total':
      slack = sum(stage.flops / stage.steps for stage in family.stages)
      assert abs(total - place.budget) <= slack
    if way.kind == 'chain':
      assert total == family.stages[-1].total
      parents = [run.train.init_from for run in family.runs]
      assert parents == ['', *(f'../{run.cell}' for run in family.runs[:-1])]
    depths = tuple(depth for _, depth, _ in way.sizes or config.sizes)
    if way.kind == 'exits':
      assert family.runs[0].model.exits == depths
    if way.keep_exits:
      exits = [run.model.exits for run in family.runs]
      assert exits == [depths[:n] for n in range(1, len(depths) + 1)]


@pytest.mark.parametrize('module', [expansion, three_families])
def test_exact_chains_are_exact(module):
  config = STUDY.read_config(module.get_config('cpu'))
  for place, family in families.families(config).items():
    for before, run in zip(family.runs, family.runs[1:], strict=False):
      if place.way != 'chain_inexact' and run.train.init_from:
        growth = dataclasses.replace(run.growth, exact=True)
        maps.plan(growth, before.model, run.model)


def test_large_doublings_save_what_arithmetic_says():
  config = STUDY.read_config(expansion.get_config('paper'))
  [row] = [row for row in families.ledger_rows(config) if row.way == 'chain']
  assert row.saving == pytest.approx(0.247, abs=0.015)
  assert row.over == pytest.approx(-0.247, abs=0.015)
  assert all(abs(stage.steps_off) <= 0.5 for stage in row.stages)


@pytest.mark.parametrize(
  ('key', 'changes'),
  [
    ('train.batch_size', {'train': {'batch_size': None}}),
    ('ways.a.sizes', {'ways': {'a': {'kind': 'exits', 'sizes': ((8, 1, 1),)}}}),
    (
      'ways.a.sizes',
      {'ways': {'a': {'kind': 'exits'}}, 'sizes': ((8, 1, 1), (16, 2, 2))},
    ),
    ('ways.a.keep_exits', {'ways': {'a': {'kind': 'exits', 'keep_exits': True}}}),
    ('ways.a.alike', {'ways': {'a': {'kind': 'chain', 'alike': True}}}),
    ('separate_c1e9_s0: train.steps', {'train': {'steps': 3}}),
  ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(text_data, key, changes):
  with pytest.raises(errors.UserError) as raised:
    STUDY.runs(families_rows.config(text_data, **changes))
  assert str(raised.value).startswith(f'{key}: ')
  assert '\n' not in str(raised.value)


@pytest.fixture
def config(text_data):
  return families_rows.config(text_data, budgets=(1e9, 4e9), seeds=(0, 1))


def test_tables_hold_what_the_rows_follow(config, tmp_path):
  families_rows.write(config, tmp_path)
  _, tables = STUDY.analyse(config, study.read(tmp_path))
  # A chain begins with the smallest size trained alone.
  assert len(tables.compared) == 2 * (1 + 2)
  for row in tables.compared:
    log = row.log_ratio
    assert log.value == pytest.approx(families_rows.WORSE[row.way], abs=3e-3)
    assert log.lo < log.value < log.hi < log.lo + 0.02
  signs = {row.way: row.log_ratio.sign for row in tables.overall}
  assert signs == {'chain': 'lower', 'exits': 'higher'}
  for row in tables.equal_loss:
    due = math.exp(families_rows.WORSE[row.way] / families_rows.SLOPE)
    assert row.slope == pytest.approx(families_rows.SLOPE, abs=5e-3)
    assert row.compute.value == pytest.approx(due, rel=0.05)
  ledger = {(row.way, row.budget): row for row in tables.ledger}
  assert len(tables.saving) == 2
  for row in tables.saving:
    chain, alone = ledger['chain', row.budget], ledger['separate', row.budget]
    assert row.ledger == pytest.approx(-chain.over)
    first, last = (
      stage.total for stage in alone.stages
    )  # Both share the first.
    due = 1 - chain.flops / (first + last * math.exp(0.2))
    assert row.saving.value == pytest.approx(due, abs=0.02)
    assert row.saving.lo < row.saving.value < row.saving.hi
  seen = {row.run: row.tokens_seen - row.tokens for row in tables.members}
  first, last = ledger['chain', 1e9].stages
  assert (seen[first.cell], seen[last.cell]) == (0, first.tokens)
  stored = {row.way: row for row in tables.storage}
  assert stored['exits'].models == 1
  assert stored['exits'].bytes < stored['separate'].bytes
  assert stored['exits'].bytes > stored['exits'].member_bytes[-1]
  assert tables.agreement == ()  # There are no checkpoints.


def test_the_plan_has_the_ledger_of_the_tables(config, tmp_path):
  families_rows.write(config, tmp_path)
  _, tables = STUDY.analyse(config, study.read(tmp_path))
  plan = STUDY.plan(config, STUDY.runs(config))
  assert plan['ledger'] == [dataclasses.asdict(row) for row in tables.ledger]
  assert sum(len(row.stages) for row in tables.ledger) == 2 * (2 + 2 + 1)
  printed = '\n'.join(STUDY.plan_lines(json.loads(json.dumps(plan))))
  assert all(f'\n{way}: ' in printed for way in config.ways)


def test_members_that_are_missing_are_left_out(config, tmp_path):
  place = families.Place('chain', 1e9, 0)
  run = families.families(config)[place].runs[-1]
  families_rows.write(config, tmp_path, without=[run.cell])
  _, tables = STUDY.analyse(config, study.read(tmp_path))
  seeds = {(r.way, r.budget, r.size): r.seeds for r in tables.losses}
  assert seeds['chain', 1e9, 2] == 1 and seeds['chain', 1e9, 1] == 2
  assert [row.budget for row in tables.saving] == [4e9]


def test_one_seed_has_no_interval(text_data, tmp_path):
  config = families_rows.config(text_data)
  families_rows.write(config, tmp_path)
  _, tables = STUDY.analyse(config, study.read(tmp_path))
  assert not any(row.log_ratio.bounded for row in tables.compared)
  assert {row.log_ratio.sign for row in tables.overall} == {'n.s.'}
  assert not tables.equal_loss and not tables.saving  # These take two budgets.


def test_what_two_ways_do_alike_is_trained_once(text_data):
  found = families.families(families_rows.config(text_data))
  chain, separate = (
    found[families.Place(way, 1e9, 0)] for way in ('chain', 'separate')
  )
  assert chain.runs[0] is separate.runs[0] is chain.members[0][0]
  assert chain.runs[1].train.init_from == f'../{separate.runs[0].cell}'
  assert chain.runs[1] != separate.runs[1]


def test_scatter_counts_runs_that_are_shared_once():
  one = {('a', 0): 1.0, ('b', 0): 1.2}
  groups = {('x',): one, ('y',): dict(one)}
  (_, count, mean), twice = families.means(groups)
  assert (count, mean.value) == (2, pytest.approx(1.1))
  assert twice[2] == mean
  assert next(families.means({('x',): one}))[2] == mean


@pytest.mark.slow
def test_a_study_from_its_plan_to_its_page(text_data, tmp_path):
  config = families_rows.config(text_data, seeds=(0, 1), budgets=(3e7,))
  outcome = STUDY.run(config, tmp_path)
  assert not outcome.failed
  summary = STUDY.read_summary(tmp_path)
  kinds = {(row.kind, row.way) for row in summary.tables.agreement}
  assert kinds == {
    (kind, way) for kind in ('adjacent', 'seeds') for way in config.ways
  }
  for row in summary.tables.agreement:
    assert row.agreement.kl.value > 0 and row.agreement.top1.value < 1
  # As an earlier version left it: read from the runs, which stay as they are.
  old = storage.read_own(tmp_path / study.SUMMARY)
  old.pop('tables')
  storage.write_json(tmp_path / study.SUMMARY, old)
  assert page.write(tmp_path).exists()
  assert storage.read_own(tmp_path / study.SUMMARY) == old
  rows = list(run_folder.rows_of(tmp_path))
  STUDY.run(config, tmp_path)
  assert list(run_folder.rows_of(tmp_path)) == rows
  assert STUDY.read_summary(tmp_path).tables == summary.tables
