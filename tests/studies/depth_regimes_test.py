"""The study of layers and exits: pairs that differ in their exits alone."""

import pytest

from experiments import depth_regimes as experiment
from familial.cli import main
from familial.core.estimate import Estimate
from familial.studies import depth_regimes
from tests.studies import regimes_rows

REGIMES = depth_regimes.REGIMES


@pytest.fixture(scope='module')
def study(tmp_path_factory):
  folder = tmp_path_factory.mktemp('regimes')
  return folder, regimes_rows.write(folder).tables


def test_regimes_are_those_of_the_networks(study):
  _, tables = study
  regimes = {row.exits: row.regime for row in tables.groups}
  assert regimes == {1: 'ensemble', 2: 'compositional', 4: 'ensemble'}
  assert [(row.same, row.seeds) for row in tables.groups] == [
    (2, 2),
    (2, 2),
    (1, 1),
  ]
  assert [(row.exits, row.seed) for row in tables.seeds] == [
    (1, 0), (1, 1), (2, 0), (2, 1), (4, 0),
  ]  # fmt: skip


def test_exits_are_compared_by_pairs(study):
  _, tables = study
  by = {(row.exits, row.seed): row for row in tables.seeds}
  for exits, seeds in ((2, (0, 1)), (4, (0,))):
    [row] = [
      row
      for row in tables.differences
      if (row.exits, row.name) == (exits, 'early')
    ]
    apart = [by[exits, s].early - by[1, s].early for s in seeds]
    assert row.difference == Estimate.of(apart)
    assert row.pairs == len(seeds)
  layers = {row.name for row in tables.differences if row.layer is not None}
  assert layers <= set(depth_regimes.LAYERS)


def test_towards_composition_all_its_statistics_rise(study):
  _, tables = study
  for row in tables.towards:
    signs = [
      other.difference.sign
      for other in tables.differences
      if other.exits == row.exits and other.name in depth_regimes.COMPOSITION
    ]
    risen = signs.count('higher')
    expected = {0: 'no', 3: 'yes'}.get(risen, 'in part')
    assert row.composition == expected
  assert {row.exits: row.composition for row in tables.towards}[4] == 'no'


def test_the_summary_is_read_back(study):
  folder, tables = study
  assert REGIMES.read_summary(folder).tables == tables


@pytest.mark.parametrize('arg', ['test', 'cpu', 'gpu'])
def test_pairs_differ_in_their_exits_alone(arg):
  runs = REGIMES.runs(REGIMES.read_config(experiment.get_config(arg)))
  assert len({run.cell for run in runs}) == len(runs)
  of = {(r.model.depth, r.model.granularity, r.train.seed): r for r in runs}
  assert len(of) == len(runs)
  for (depth, _, seed), run in of.items():
    dense = of[depth, 1, seed]
    assert run.train == dense.train and run.data == dense.data
    assert run.model.width == dense.model.width


@pytest.mark.slow
def test_a_study_runs_and_probes_once(tmp_path):
  flags = [
    '--config=experiments/depth_regimes.py:test',
    f'--workdir={tmp_path}',
  ]
  assert main.run(['familial', 'run', *flags]) == 0
  tables = REGIMES.read_summary(tmp_path).tables
  assert [row.exits for row in tables.groups] == [1, 2]
  assert len(tables.seeds) == 4
  before = {p: p.stat().st_mtime_ns for p in (tmp_path / 'probes').iterdir()}
  assert main.run(['familial', 'run', *flags]) == 0
  assert before == {p: p.stat().st_mtime_ns for p in before}
