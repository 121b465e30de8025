import pytest

from familial.core import errors
from familial.model import flops as flops_lib
from familial.studies import cells as cells_lib

# One token through width 8, depth 2: four 8 x 8 projections, three 8 x 22 of
# the MLP and two L x 8 products of attention a layer; 8 x 256 an exit.
LAYER = 2 * (4 * 8 * 8 + 3 * 8 * 22) + 4 * 16 * 8
EXIT = 2 * 8 * 256


def by_name(study):
  return {cell.cell: cell for cell in cells_lib.build(study)}


def test_a_cell_costs_its_budget_counted_by_hand(make_study):
  cells = by_name(make_study())
  for exits in (1, 2):
    cell = cells[f'c4e8_w8_d2_g{exits}']
    step = 64 * 3 * (2 * LAYER + exits * EXIT)
    assert cell.train.steps == round(4e8 / step)
    assert cells_lib.cost(cell) == cell.train.steps * step
    assert cells_lib.cost(cell) == pytest.approx(4e8, rel=0.5 * step / 4e8)


def test_cells_of_200_steps_are_within_a_quarter_percent(make_study):
  study = make_study(
    grid={
      'budgets': (4e8, 3.3e9, 1.7e10),
      'shapes': ((8, 2, 1), (16, 4, 2), (24, 6, 2)),
    },
    rules={'batch_exponent': 0.5},
  )
  long = [c for c in cells_lib.build(study) if c.train.steps >= 200]
  assert len(long) > 6
  for cell in long:
    assert cells_lib.cost(cell) == pytest.approx(cell.budget, rel=0.0025)


def test_names_are_unique_and_the_grid_comes_first(make_study):
  arm = {'budgets': (4e8,), 'shapes': (0, 1), 'granularities': (2,)}
  study = make_study(
    grid={'shapes': ((8, 4, 1), (16, 4, 1))},
    arms={
      'seed': {**arm, 'values': (1, 2)},
      'twin': arm,
      'weighting': {**arm, 'values': ('linear',)},
      'frozen': {**arm, 'values': ('head', 'separate')},
      'kind': {**arm, 'values': ('separate',)},
      'branch': {**arm, 'values': ((1, 4), (3, 4))},
      'rate': {**arm, 'values': (0.1, 0.2)},
      'gradients': {**arm, 'values': (3,)},
    },
  )
  cells = cells_lib.build(study)
  arms = [cell.arm for cell in cells]
  assert len({cell.cell for cell in cells}) == len(cells) == 4 + 2 * 12
  assert set(arms[:4]) == {'grid'}
  assert set(arms[4:]) == set(study.arms)
  changed = {cell.arm: cell for cell in cells}
  assert changed['seed'].train.seed == 2
  assert changed['weighting'].train.weighting == 'linear'
  assert changed['kind'].model.exit_kind == 'separate'
  assert changed['branch'].model.exits == (3, 4)
  assert changed['rate'].train.base_lr == 0.2
  assert changed['gradients'].train.evaluations == 3


def test_batch_warm_up_and_beta2_follow_the_budget(make_study):
  study = make_study(
    grid={'budgets': (4e8, 1.6e9, 6.4e9), 'granularities': (1,)},
    rules={'batch_exponent': 0.5, 'beta2': 0.96, 'warmup': 0.1},
  )
  cells = cells_lib.build(study)
  # 64 tokens are 4 sequences at 4e8; 4 x the budget doubles them.
  assert [cell.train.batch_size for cell in cells] == [4, 8, 16]
  for cell, grown in zip(cells, (1, 2, 4), strict=True):
    assert cell.train.beta2 == pytest.approx(0.96**grown)
    assert cell.train.warmup_steps == round(0.1 * cell.train.steps)


def test_the_batch_is_the_nearest_power_of_two(make_study):
  study = make_study(rules={'batch_exponent': 1.0})
  sizes = {
    budget: cells_lib.batch_size(study, budget)
    for budget in (1e7, 4e8, 5.5e8, 5.8e8, 8e8)
  }
  assert list(sizes.values()) == [1, 4, 4, 8, 8]


@pytest.mark.parametrize('kind', ['head', 'separate', 'branch'])
@pytest.mark.parametrize('tied', [True, False])
def test_twins_have_the_exact_shape_of_the_exits(make_study, kind, tied):
  study = make_study(
    model={'exit_kind': kind, 'tied': tied, 'kv_ratio': 0.5},
    grid={'shapes': ((8, 6, 2), (8, 2, 2))},
    arms={'twin': {'budgets': (4e8,), 'shapes': (0,), 'granularities': (3,)}},
  )
  cells = by_name(study)
  family = cells_lib.model(study, (8, 6, 2), (2, 4, 6))
  dense = [
    cell
    for cell in cells.values()
    if cell.model.granularity == 1 and cell.arm in ('grid', 'twin')
  ]
  for exit_ in (1, 2, 3):
    size = flops_lib.params(family, exit_)
    whole = size, flops_lib.params_embedding(family, exit_)
    same = [
      cell
      for cell in dense
      if (size, flops_lib.params_embedding(cell.model, 1)) == whole
      and flops_lib.params(cell.model, 1) == size
    ]
    assert len(same) == 1  # Neither missing nor trained twice.
    assert same[0].model.kv_heads == 1
    assert cells_lib.cost(same[0]) == pytest.approx(4e8, rel=0.01)


def test_twins_do_not_count_on_a_grid_without_dense_cells(make_study):
  study = make_study(
    grid={'shapes': ((8, 4, 1), (8, 2, 1)), 'granularities': (2,)},
    arms={'twin': {'budgets': (4e8,), 'shapes': (0,), 'granularities': (2,)}},
  )
  assert 'c4e8_w8_d2_g1_twin' in by_name(study)


def test_frozen_cells_start_from_their_dense_cell(make_study):
  study = make_study(
    arms={
      'frozen': {
        'budgets': (4e8,),
        'shapes': (0,),
        'granularities': (2,),
        'values': ('separate',),
        'share': 0.5,
      }
    },
  )
  cells = by_name(study)
  frozen = cells['c4e8_w8_d2_g2_frozen_separate']
  assert frozen.train.init_from == '../c4e8_w8_d2_g1'
  assert frozen.train.trained == 'exits'
  parent = cells['c4e8_w8_d2_g1']
  last = frozen.model.submodel(2)
  assert (last.width, last.depth, last.tied) == (
    parent.model.width, parent.model.depth, parent.model.tied,
  )  # fmt: skip
  # One trunk layer forward; the exit's product, and its two gradients.
  step = 64 * (LAYER + 3 * EXIT)
  assert frozen.train.steps == round(2e8 / step)
  assert cells_lib.cost(frozen) == frozen.train.steps * step
  assert frozen.budget == 2e8


INF = float('inf')
FROZEN = {'budgets': (4e8,), 'shapes': (0,), 'values': ('head',)}


@pytest.mark.parametrize(
  ('sections', 'said'),
  [
    ({'grid': {'granularities': (3,)}}, ['granularity', '3', '1..2']),
    ({'grid': {'shapes': ((8, 2, 3),)}}, ['model.heads', '3', 'width 8']),
    ({'grid': {'budgets': (1e5,)}}, ['grid.budgets', '100000', 'one step']),
    ({'grid': {'shapes': ()}}, ['grid.shapes', 'empty']),
    ({'grid': {'shapes': ((8, 2),)}}, ['grid.shapes', '(8, 2)']),
    ({'grid': {'shapes_of': ((0,), (0,))}}, ['grid.shapes_of', '2 entries']),
    ({'grid': {'shapes_of': ((1,),)}}, ['grid.shapes_of', '1', '0..0']),
    ({'grid': {'budgets': (-1.0,)}}, ['grid.budgets', '-1.0']),
    ({'model': {'dtpye': 'float32'}}, ['model.dtpye', "'dtype'"]),
    ({'train': {'base_rl': 0.1}}, ['train.base_rl', "'base_lr'"]),
    ({'model': {'depth': 3}}, ['model.depth', 'follows from the cell']),
    ({'train': {'steps': 3}}, ['train.steps', 'follows from the cell']),
    ({'train': {'seed': 3}}, ['train.seed', 'follows from the cell']),
    ({'rules': {'batch_tokens': 0}}, ['rules.batch_tokens', '0']),
    ({'rules': {'at_budget': 0.0}}, ['rules.at_budget', '0.0']),
    ({'rules': {'warmup': 2.0}}, ['rules.warmup', '2.0']),
    ({'rules': {'at_budget': INF}}, ['rules.at_budget', 'inf']),
    ({'rules': {'batch_exponent': INF}}, ['rules.batch_exponent', 'inf']),
    ({'grid': {'budgets': (INF,)}}, ['grid.budgets', 'inf']),
    ({'grid': {'seed': -1}}, ['grid.seed', '-1']),
    ({'grid': {'seconds': -1.0}}, ['grid.seconds', '-1.0']),
    ({'model': {'mlp_ratio': INF}}, ['model.mlp_ratio', 'inf']),
    ({'model': {'kv_ratio': 0.0}}, ['model.kv_ratio', '0.0']),
    ({'assumed': {'A': -1.0}}, ['assumed.A', '-1.0']),
    ({'assumed': {'alpha': 0.0}}, ['assumed.alpha', '0.0']),
    ({'assumed': {'noise': 0.0}}, ['assumed.noise', '0.0']),
    ({'assumed': {'gamma': INF}}, ['assumed.gamma', 'inf']),
    ({'fit': {'starts': 0}}, ['fit.starts', '0']),
    ({'fit': {'resamples': 1}}, ['fit.resamples', '1']),
    ({'arms': {'twins': FROZEN}}, ['arms.twins', "'twin'"]),
    (
      {'arms': {'seed': {**FROZEN, 'budgets': (0.0,)}}},
      ['arms.seed.budgets', '0.0'],
    ),
    (
      {'arms': {'kind': {**FROZEN, 'shapes': (4,)}}},
      ['arms.kind.shapes', '4', '0..0'],
    ),
    ({'arms': {'frozen': FROZEN}}, ['arms.frozen.granularities', '1']),
    (
      {'arms': {'frozen': {**FROZEN, 'granularities': (2,), 'budgets': (5e8,)}}},
      ['arms.frozen', 'c5e8_w8_d2_g1'],
    ),
    (
      {
        'arms': {'frozen': {**FROZEN, 'granularities': (2,)}},
        'grid': {'granularities': (2,)},
      },
      ['arms.frozen', 'c4e8_w8_d2_g1'],
    ),
    (
      {'arms': {'frozen': {**FROZEN, 'granularities': (2,), 'share': 0.0}}},
      ['arms.frozen.share', '0.0'],
    ),
    *(
      ({'arms': {name: {**FROZEN, 'values': (value,)}}},
       [f'arms.{name}.values', repr(value)])
      for name, value in (
        ('seed', 'x'), ('seed', -1), ('seed', True), ('twin', 1),
        ('weighting', 1), ('frozen', 2), ('kind', (1,)), ('branch', 2),
        ('branch', (1, 'x')), ('rate', 'x'), ('rate', 0.0), ('rate', INF),
        ('gradients', 'x'), ('gradients', 0),
      )
    ),
    (
      {'arms': {'branch': {**FROZEN, 'values': ((1, 3),)}}},
      ['model.exits', '(1, 3)', 'depth 2'],
    ),
  ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_one_line(make_study, sections, said):
  with pytest.raises(errors.UserError) as raised:
    cells_lib.build(make_study(**sections))
  message = str(raised.value)
  assert '\n' not in message
  for part in said:
    assert part in message
