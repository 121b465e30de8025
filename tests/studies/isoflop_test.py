"""The study of L(N, D, G): its runs, and what it finds in rows of a known law."""

import dataclasses
import itertools

import pytest

from familial.core import errors
from familial.core import storage
from familial.laws import definitions
from familial.laws import fit_record
from familial.model import flops as flops_lib
from familial.studies import isoflop
from familial.studies import shapes
from familial.studies import study as study_lib

STUDY = isoflop.ISOFLOP
# One token through width 8, depth 2: four 8 x 8 projections, three 8 x 22 of
# the MLP and two L x 8 products of attention a layer; 8 x 256 an exit.
LAYER = 2 * (4 * 8 * 8 + 3 * 8 * 22) + 4 * 16 * 8
EXIT = 2 * 8 * 256
GAMMA = 0.03
ONE = {'budgets': (4e8,), 'shapes': (0,), 'granularities': (2,)}
TWO = {'budgets': (4e8,), 'shapes': (0, 1), 'granularities': (2, 4)}


def by_name(config):
  return {run.cell: run for run in STUDY.runs(config)}


def test_a_run_costs_its_budget_counted_by_hand(make_study):
  runs = by_name(make_study())
  for exits in (1, 2):
    run = runs[f'c4e8_w8_d2_g{exits}']
    step = 64 * 3 * (2 * LAYER + exits * EXIT)
    assert run.train.steps == round(4e8 / step)
    assert shapes.cost(run) == run.train.steps * step
    assert shapes.cost(run) == pytest.approx(4e8, rel=0.5 * step / 4e8)


def test_names_are_unique_and_each_arm_changes_one_thing(make_study):
  arm = {**ONE, 'shapes': (0, 1)}
  values = {
    'seed': (1, 2),
    'twin': (),
    'weighting': ('linear',),
    'frozen': ('head', 'separate'),
    'kind': ('separate',),
    'branch': ((1, 4), (3, 4)),
    'rate': (0.1, 0.2),
    'gradients': (3,),
  }
  config = make_study(
    grid={'shapes': ((8, 4, 1), (16, 4, 1))},
    arms={name: {**arm, 'values': each} for name, each in values.items()},
  )
  runs = STUDY.runs(config)
  arms = [run.arm for run in runs]
  assert len({run.cell for run in runs}) == len(runs) == 4 + 2 * 12
  assert set(arms[:4]) == {'grid'}
  assert set(arms[4:]) == set(isoflop.ARMS)
  last = {run.arm: run for run in runs}
  assert last['seed'].train.seed == 2
  assert last['weighting'].train.weighting == 'linear'
  assert last['kind'].model.exit_kind == 'separate'
  assert last['branch'].model.exits == (3, 4)
  assert last['rate'].train.base_lr == 0.2
  assert last['gradients'].train.evaluations == 3
  assert last['gradients'].train.gradients


def test_shapes_are_sampled_by_budget(make_study):
  grid = {
    'budgets': (4e8, 8e8),
    'shapes': ((8, 2, 1), (16, 2, 1)),
    'granularities': (1,),
    'shapes_of': ((0,), (0, 1)),
  }
  assert list(by_name(make_study(grid=grid))) == [
    'c4e8_w8_d2_g1', 'c8e8_w8_d2_g1', 'c8e8_w16_d2_g1',
  ]  # fmt: skip


def test_batch_warm_up_and_beta2_follow_the_budget(make_study):
  config = make_study(
    grid={'budgets': (4e8, 1.6e9, 6.4e9), 'granularities': (1,)},
    rules={'batch_exponent': 0.5, 'beta2': 0.96, 'warmup': 0.1},
  )
  runs = STUDY.runs(config)
  # 64 tokens are 4 sequences at 4e8; 4 x the budget doubles them.
  assert [run.train.batch_size for run in runs] == [4, 8, 16]
  for run, grown in zip(runs, (1, 2, 4), strict=True):
    assert run.train.beta2 == pytest.approx(0.96**grown)
    assert run.train.warmup_steps == round(0.1 * run.train.steps)


def test_the_batch_is_the_nearest_power_of_two(make_study):
  budgets = (1e7, 4e8, 5.5e8, 5.8e8, 8e8)
  config = make_study(
    grid={'budgets': budgets, 'granularities': (1,)},
    rules={'batch_exponent': 1.0},
  )
  sizes = [run.train.batch_size for run in STUDY.runs(config)]
  assert sizes == [1, 4, 4, 8, 8]


@pytest.mark.parametrize('kind', ['head', 'separate', 'branch'])
@pytest.mark.parametrize('tied', [True, False])
def test_twins_have_the_exact_shape_of_the_exits(make_study, kind, tied):
  config = make_study(
    model={'exit_kind': kind, 'tied': tied, 'kv_ratio': 0.5},
    grid={'shapes': ((8, 6, 2), (8, 2, 2))},
    arms={'twin': {**ONE, 'granularities': (3,)}},
  )
  family = shapes.model(config, (8, 6, 2), (2, 4, 6))
  dense = [
    run
    for run in STUDY.runs(config)
    if run.model.granularity == 1 and run.arm in ('grid', 'twin')
  ]
  for exit_ in (1, 2, 3):
    size = flops_lib.params(family, exit_)
    whole = size, flops_lib.params_embedding(family, exit_)
    same = [
      run
      for run in dense
      if (size, flops_lib.params_embedding(run.model, 1)) == whole
      and flops_lib.params(run.model, 1) == size
    ]
    assert len(same) == 1  # Neither missing nor trained twice.
    assert same[0].model.kv_heads == 1
    assert shapes.cost(same[0]) == pytest.approx(4e8, rel=0.01)


def test_twins_do_not_count_on_a_grid_without_dense_runs(make_study):
  config = make_study(
    grid={'shapes': ((8, 4, 1), (8, 2, 1)), 'granularities': (2,)},
    arms={'twin': ONE},
  )
  assert 'c4e8_w8_d2_g1_twin' in by_name(config)


def test_frozen_runs_start_from_their_dense_run(make_study):
  arm = {**ONE, 'values': ('separate',), 'share': 0.5}
  runs = by_name(make_study(arms={'frozen': arm}))
  frozen = runs['c4e8_w8_d2_g2_frozen_separate']
  assert frozen.train.init_from == '../c4e8_w8_d2_g1'
  assert frozen.train.trained == 'exits'
  parent = runs['c4e8_w8_d2_g1']
  last = frozen.model.submodel(2)
  assert (last.width, last.depth, last.tied) == (
    parent.model.width, parent.model.depth, parent.model.tied,
  )  # fmt: skip
  # One trunk layer forward; the exit's product, and its two gradients.
  step = 64 * (LAYER + 3 * EXIT)
  assert frozen.train.steps == round(2e8 / step)
  assert shapes.cost(frozen) == frozen.train.steps * step
  assert frozen.budget == 2e8


FROZEN = {**ONE, 'values': ('head',)}


@pytest.mark.parametrize(
  ('sections', 'said'),
  [
    ({'model': {'dtpye': 'float32'}}, ['model.dtpye', "'dtype'"]),
    ({'model': {'depth': 3}}, ['model.depth']),
    ({'train': {'seed': 3}}, ['train.seed']),
    (
      {'arms': {'frozen': {**FROZEN, 'budgets': (5e8,)}}},
      ['arms.frozen', 'c5e8_w8_d2_g1'],
    ),
    (
      {'arms': {'frozen': FROZEN}, 'grid': {'granularities': (2,)}},
      ['arms.frozen', 'c4e8_w8_d2_g1'],
    ),
  ],
)
def test_a_run_that_cannot_be_is_refused_by_its_key(make_study, sections, said):
  with pytest.raises(errors.UserError) as raised:
    STUDY.runs(make_study(**sections))
  message = str(raised.value)
  assert '\n' not in message
  for part in said:
    assert part in message


def lawful(run):
  """What every exit of a run loses: a dense law times G^gamma."""
  model = run.model
  return [
    (
      1
      + 30 / flops_lib.params(model, exit_) ** 0.4
      + 90 / shapes.tokens(run) ** 0.4
    )
    * model.granularity**GAMMA
    for exit_ in range(1, model.granularity + 1)
  ]


@pytest.fixture(scope='module')
def known(make_study, write_rows, tmp_path_factory):
  """Config, runs and results of a study without fits, its losses lawful."""
  config = make_study(
    grid={
      'budgets': (4e8, 1.6e9, 6.4e9),
      'shapes': ((8, 4, 1), (16, 4, 1), (24, 4, 1)),
      'granularities': (1, 2, 4),
    },
    arms={
      'twin': TWO,
      'seed': {**ONE, 'granularities': (1, 4), 'values': (1,)},
      'weighting': {**ONE, 'values': ('final_one', 'linear')},
      'kind': {**ONE, 'values': ('separate',)},
      'frozen': {**ONE, 'values': ('separate', 'head', 'branch')},
    },
  )
  folder = tmp_path_factory.mktemp('known')
  runs = STUDY.runs(config)
  for run in runs:
    inherited = 4e8 if run.train.init_from else 0.0
    lineage = {'inherited_flops': inherited}
    written = write_rows(folder, run, lawful(run), inherited)
    storage.write_json(written / 'lineage.json', lineage)
  return config, {run.cell: run for run in runs}, study_lib.read(folder)


@pytest.fixture(scope='module')
def tables(known):
  config, _, results = known
  return STUDY.analyse(config, results)[1]


def test_weightings_stand_beside_the_uniform_one(tables):
  rows = tables.weighting
  assert sorted((row.weighting, row.exit) for row in rows) == [
    *itertools.product(('final_one', 'linear', 'uniform'), (1, 2))
  ]
  assert {(row.budget, row.width, row.exits) for row in rows} == {(4e8, 8, 2)}


def test_frozen_exits_stand_beside_joint_ones_of_their_kind(known, tables):
  _, runs, _ = known
  found = {row.exit_kind: row for row in tables.frozen}
  assert (
    len(tables.frozen) == len(found) == 3
  )  # The last exit is not trained again.
  # The trunk's FLOPs and a quarter more; nearest is the budget of 4e8.
  assert found['head'].flops == pytest.approx(5e8, rel=0.05)
  assert found['head'].budget_joint == 4e8
  for kind, suffix in (('head', ''), ('separate', '_separate')):
    joint = lawful(runs[f'c4e8_w8_d4_g2{suffix}'])[0]
    assert found[kind].loss_joint == pytest.approx(joint)
  assert found['branch'].loss_joint is None  # None was trained jointly.
  assert found['branch'].budget_joint is None


def test_cost_counts_each_flop_once(known):
  """A frozen trunk's FLOPs are its own run's."""
  _, runs, results = known
  cost = study_lib.cost_of(results)
  assert cost.finished == len(runs)
  own = sum(map(shapes.cost, runs.values()))
  assert cost.flops == pytest.approx(own, rel=1e-12)


def test_one_granularity_fits_no_gamma(make_study, tmp_path, results_of):
  config = make_study(grid={'granularities': (2,)})
  results = results_of(tmp_path, STUDY.runs(config), lawful)
  _, tables = STUDY.analyse(config, results)
  assert tables.gamma == tables.paired_gamma == ()
  assert len(list(STUDY.fit(config, results))) >= 1
  assert not (tmp_path / 'fits' / 'final').exists()


# Of two budgets there are 64 rows at most: programs that the laws' tests share.
@pytest.mark.slow
@pytest.mark.parametrize('budgets', [2, 3])
def test_real_fits_find_gamma_and_leverage(
  known, tmp_path, results_of, monkeypatch, budgets
):
  config = known[0]
  grid = dataclasses.replace(config.grid, budgets=config.grid.budgets[:budgets])
  config = dataclasses.replace(config, grid=grid)
  monkeypatch.setattr(isoflop, 'LOSSES', ('final',))
  monkeypatch.setattr(isoflop, 'FORMS', isoflop.FORMS[:2])
  runs = STUDY.runs(config)
  results = results_of(tmp_path, runs, lawful)
  assert list(STUDY.fit(config, results)) == []
  line, tables = STUDY.analyse(config, results)
  total = tables.gamma[0]
  assert (total.loss, total.form) == ('final', 'familial_total')
  assert total.gamma.value == pytest.approx(GAMMA, abs=1e-3)
  assert total.gamma.value in total.gamma
  assert f'{total.gamma}' in line and f'{tables.twin_gamma[0].gamma}' in line
  families = [run for run in runs if run.arm in definitions.GRID]
  families = {run.cell for run in families if run.model.granularity > 1}
  assert {row.run for row in tables.leverage} == families
  for row in tables.leverage:
    assert row.lo is not None
    assert row.infinite or row.lo <= row.leverage
  # Every exit of the twins' families has a dense run of its own FLOPs.
  measured = {row.run for row in tables.leverage_measured}
  assert {'c4e8_w8_d4_g2', 'c4e8_w16_d4_g4'} <= measured
  fits = {
    path.parent.name: fit_record.load(path).record.table.filters['arms']
    for path in tmp_path.glob('fits/*/*/fit.json')
  }
  assert {name: tuple(arms) for name, arms in fits.items()} == {
    'familial_total': ('grid', 'seed'),  # Twins would move the level at G = 1.
    'familial_reducible': ('grid', 'seed'),
    'chinchilla': ('grid', 'seed', 'twin'),
    'branch': ('grid', 'seed', 'twin', 'branch'),
  }


def test_runs_of_200_steps_are_within_a_quarter_percent(make_study):
  config = make_study(
    grid={
      'budgets': (4e8, 3.3e9, 1.7e10),
      'shapes': ((8, 2, 1), (16, 4, 2), (24, 6, 2)),
    },
    rules={'batch_exponent': 0.5},
  )
  long = [run for run in STUDY.runs(config) if run.train.steps >= 200]
  assert len(long) > 6
  for run in long:
    assert shapes.cost(run) == pytest.approx(run.budget, rel=0.0025)
