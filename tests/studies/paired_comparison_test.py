import math

import numpy as np
import pytest
from scipy import stats

from familial.model import flops as flops_lib
from familial.studies import cells as cells_lib
from familial.studies import paired_comparison
from familial.training import rows as rows_lib

GRID = {
  'budgets': (4e8, 4e9),
  'shapes': ((8, 4, 1), (16, 4, 1)),
  'granularities': (1, 2, 4),
}
SEEDS = {'budgets': (4e8,), 'shapes': (0, 1), 'granularities': (1, 4)}
TWIN = {'budgets': (4e8,), 'shapes': (0, 1), 'granularities': (2, 4)}
LAW = {'E': 1.0, 'A': 30.0, 'B': 90.0, 'alpha': 0.4, 'beta': 0.4}


def runs_of(study, logs_of):
  """The last rows of a study's runs; `logs_of(cell)` are its log losses."""
  last = {}
  for cell in cells_lib.build(study):
    last[cell.cell] = rows_lib.of_evaluation(
      cell, cell.cell, 'f00d', cell.train.steps, 0.0, 0.1,
      np.exp(logs_of(cell)), 1.0, 'finished',
    )  # fmt: skip
  return last


def dense_log(cell, exit_=None):
  """Of a dense model of an exit's shape and the cell's budget."""
  return (
    3 / flops_lib.params(cell.model, exit_ or cell.model.granularity) ** 0.1
  )


def test_noise_by_hand(make_study):
  logs = {
    'c4e8_w8_d4_g4': 0.0, 'c4e8_w8_d4_g4_seed1': 0.02,
    'c4e8_w8_d4_g4_seed2': 0.04,  # Mean 0.02: squares 8e-4 on 2 degrees.
    'c4e8_w16_d4_g4': 1.0, 'c4e8_w16_d4_g4_seed1': 1.01,  # 5e-5 on 1.
  }  # fmt: skip
  others = {
    'c4e8_w8_d4_g1': 9.0, 'c4e8_w8_d4_g2': 7.0, 'c4e8_w8_d4_g4_linear': 5.0
  }  # fmt: skip
  one = {'budgets': (4e8,), 'shapes': (0, 1), 'granularities': (4,)}
  study = make_study(
    grid=GRID,
    arms={'seed': {**one, 'values': (1, 2)},
          'weighting': {**one, 'values': ('linear',)}},
  )  # fmt: skip

  # Shallow exits differ twice as much.
  def logs_of(cell):
    log = {**logs, **others}.get(cell.cell, 0.0)
    return [2 * log] * (cell.model.granularity - 1) + [log]

  every = runs_of(study, logs_of)
  found = paired_comparison.noise(
    {name: every[name] for name in {**logs, **others}}
  )
  sd = math.sqrt(8.5e-4 / 3)
  assert found['sd_log_loss']['final'] == pytest.approx(sd)
  # Of four exits, three with four times the square.
  assert found['sd_log_loss']['exit'] == pytest.approx(sd * math.sqrt(13 / 4))
  assert sd < found['sd_log_loss']['mean'] < 2 * sd
  assert (found['cells'], found['seeds'], found['degrees']) == (2, 3, 3)
  assert paired_comparison.noise({name: every[name] for name in others}) is None


@pytest.mark.parametrize('change', [0.0, 0.02])
def test_gamma_of_pairs_and_its_trend_do_not_see_shapes(make_study, change):
  """Whatever level a block has, its slope on log G is gamma."""

  def logs_of(cell):
    gamma = 0.03 + change * math.log10(cell.budget / 4e8)
    bumps = {8: 0.002, 16: -0.002}[cell.model.width]
    level = cell.model.width / 7 - math.log(cell.budget)
    penalty = (gamma + bumps) * math.log(cell.model.granularity)
    return [level + penalty] * cell.model.granularity

  seeds = {**SEEDS, 'values': (1, 2)}
  last = runs_of(make_study(grid=GRID, arms={'seed': seeds}), logs_of)
  found = paired_comparison.paired(last, {})
  gammas = {(row['loss'], row['budget']): row for row in found['gamma']}
  assert {row['equal'] for row in found['gamma']} == {'flops'}
  for loss in ('final', 'mean'):
    for budget, wanted in ((4e8, 0.03), (4e9, 0.03 + change)):
      assert gammas[loss, budget]['value'] == pytest.approx(wanted)
      assert gammas[loss, budget]['blocks'] == 2
    pooled = gammas[loss, None]
    values = [0.032, 0.028, 0.032 + change, 0.028 + change]
    wanted = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (pooled['lo'], pooled['hi']) == pytest.approx(wanted)
  [trend] = [row for row in found['trend'] if row['loss'] == 'final']
  assert trend['value'] == pytest.approx(change, abs=1e-12)
  x = [0, 0, 1, 1]
  fit = stats.linregress(x, values)
  half = stats.t.ppf(0.975, 2) * fit.stderr
  assert trend['hi'] - trend['value'] == pytest.approx(half)
  [ratio] = [
    row
    for row in found['ratios']
    if (row['loss'], row['exits'], row['budget']) == ('final', 4, None)
  ]
  assert ratio['value'] == pytest.approx(np.mean(values) * math.log(4))


def test_pairs_at_equal_tokens_make_up_for_the_heads(make_study):
  """A law of N and D alone shows a penalty at equal FLOPs, none at equal D."""

  def logs_of(cell):
    tokens = cell.train.steps * cell.train.batch_size * cell.data.seq_len
    size = flops_lib.params_full(cell.model)
    loss = 1 + 30 / size**0.4 + 90 / tokens**0.4
    return [math.log(loss)] * cell.model.granularity

  last = runs_of(make_study(grid=GRID), logs_of)
  found = paired_comparison.paired(last, {'final': LAW})
  gamma = {
    row['equal']: row['value']
    for row in found['gamma']
    if row['loss'] == 'final' and row['budget'] is None
  }
  assert gamma['flops'] > 0.005
  assert gamma['tokens'] == pytest.approx(0, abs=1e-9)


def test_a_family_without_its_dense_model_is_no_pair(make_study):
  last = runs_of(make_study(grid=GRID), lambda c: [1.0] * c.model.granularity)
  del last['c4e8_w8_d4_g1']
  blocks = paired_comparison.paired(last, {})['blocks']
  assert {(row['budget'], row['width']) for row in blocks} == {
    (4e8, 16), (4e9, 8), (4e9, 16)
  }  # fmt: skip
  families = {name: last[name] for name in last if '_g1' not in name}
  assert not any(paired_comparison.paired(families, {}).values())


def test_twins_give_back_gamma_and_every_exit(make_study):
  def logs_of(cell):
    penalty = 0.03 * math.log(cell.model.granularity)
    exits = range(1, cell.model.granularity + 1)
    return [dense_log(cell, exit_) + penalty for exit_ in exits]

  last = runs_of(make_study(grid=GRID, arms={'twin': TWIN}), logs_of)
  twins = paired_comparison.twins(last, None)
  # Two sizes; G = 2 has two exits and G = 4 four, each with its dense twin.
  assert len(twins['rows']) == 2 * (2 + 4)
  assert twins['value'] == pytest.approx(0.03)
  assert (twins['lo'], twins['hi']) == (None, None)
  assert [row['width'] for row in twins['shapes']] == [8, 16]
  for row in twins['rows']:
    ratio = math.log(row['loss_exit'] / row['loss_twin'])
    assert row['log_ratio'] == pytest.approx(ratio)
    assert ratio == pytest.approx(0.03 * math.log(row['exits']))
    assert row['budget'] == 4e8  # The other has no twins.
  assert [(row['exits'], row['layer']) for row in twins['depths']] == [
    (2, 2), (2, 4), (4, 1), (4, 2), (4, 3), (4, 4),
  ]  # fmt: skip


def test_twins_count_every_seed_and_the_twins_own_noise(make_study):
  ratios = {2: [0.01, 0.02], 4: [0.03, 0.05, 0.02, 0.08]}
  luck = {0: 0.0, 1: 0.06}

  def logs_of(cell):
    logs = ratios.get(cell.model.granularity, [0.0])
    return np.array(logs) + luck[cell.train.seed]

  seeds = {'budgets': (4e8,), 'shapes': (0,), 'granularities': (4,)}
  study = make_study(
    grid={**GRID, 'shapes': ((8, 4, 1),)},
    arms={'twin': {**TWIN, 'shapes': (0,)},
          'seed': {**seeds, 'values': (1,)}},
  )  # fmt: skip
  last = runs_of(study, logs_of)
  spread = {'sd_log_loss': {'exit': 0.01}, 'degrees': 8}
  found = paired_comparison.twins(last, spread)
  x = np.repeat(np.log([2, 4]), [2, 4])
  y = np.array([0.01, 0.02, 0.06, 0.08, 0.05, 0.11])  # G = 4: mean of seeds.
  weights = x / (x @ x)
  assert found['value'] == pytest.approx(weights @ y)
  two, four = weights[0], weights[2]
  variance = (2 * two) ** 2 + (4 * four) ** 2 / 2  # Two seeds.
  # Layers 2 and 4 are the twin of an exit of both families.
  variance += 2 * four**2 + 2 * (two + four) ** 2
  half = stats.t.ppf(0.975, 8) * 0.01 * math.sqrt(variance)
  assert found['hi'] - found['value'] == pytest.approx(half)
  assert found['value'] - found['lo'] == pytest.approx(half)
  seen = {(r['exits'], r['layer']): (r['seeds'], r['seeds_twin'])
          for r in found['rows']}  # fmt: skip
  assert seen[2, 2] == (1, 1) and seen[4, 2] == (2, 1)


def test_twins_of_exits_that_are_dense_models_one_layer_deeper(make_study):
  study = make_study(
    model={'exit_kind': 'branch'},
    grid={'shapes': ((8, 4, 1), (8, 2, 1))},
    arms={'twin': {**TWIN, 'shapes': (0,), 'granularities': (2,)}},
  )
  last = runs_of(study, lambda cell: [0.5] * cell.model.granularity)
  rows = paired_comparison.twins(last, None)['rows']
  # Layer 2 and a branch: a twin of 3.
  assert {(r['depth'], r['exit']) for r in rows} >= {(4, 1), (4, 2)}


def test_minima_carry_the_noise(make_study):
  shapes = tuple((width, 4, 1) for width in (8, 16, 24, 32))

  def logs_of(cell):
    log_n = math.log(flops_lib.params_full(cell.model))
    bend = 0.05 * (log_n - math.log(8000)) ** 2
    return [bend + 0.05 * (cell.model.granularity > 1)] * cell.model.granularity

  grid = {**GRID, 'budgets': (4e9,), 'shapes': shapes, 'granularities': (1, 2)}
  last = runs_of(make_study(grid=grid), logs_of)
  wide = {}
  for sd in (0.002, 0.004):
    spread = {'sd_log_loss': {'final': sd, 'mean': sd}}
    [row] = [
      r for r in paired_comparison.minima(last, spread) if r['loss'] == 'final'
    ]
    assert row['value'] == pytest.approx(0.05)
    assert row['lo'] < 0.05 < row['hi']
    wide[sd] = row['hi'] - row['lo']
  assert wide[0.004] == pytest.approx(2 * wide[0.002], rel=0.15)
  assert wide[0.004] > 4 * 0.004 * math.sqrt(2 / 4)  # Than that of a mean.
  assert [row['lo'] for row in paired_comparison.minima(last, None)] == [
    None,
    None,
  ]


def test_no_minimum_at_the_edge_is_compared(make_study):
  last = runs_of(
    make_study(grid={**GRID, 'shapes': ((8, 4, 1), (16, 4, 1), (24, 4, 1))}),
    lambda cell: [-0.01 * cell.model.width] * cell.model.granularity,
  )
  assert not paired_comparison.minima(last, None)
