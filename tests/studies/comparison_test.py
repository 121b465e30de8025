"""Families beside dense models, from losses of which the answer is known."""

import math

import numpy as np
import pytest
from scipy import stats

from familial.model import flops as flops_lib
from familial.studies import comparison
from familial.studies import isoflop

GRID = {
  'budgets': (4e8, 4e9),
  'shapes': ((8, 4, 1), (16, 4, 1)),
  'granularities': (1, 2, 4),
}
SEEDS = {'budgets': (4e8,), 'shapes': (0, 1), 'granularities': (1, 4)}
TWIN = {'budgets': (4e8,), 'shapes': (0, 1), 'granularities': (2, 4)}
LAW = {'E': 1.0, 'A': 30.0, 'B': 90.0, 'alpha': 0.4, 'beta': 0.4}


@pytest.fixture
def runs_of(tmp_path, make_study, results_of):
  """Finished runs of a study; `logs_of(run)` are the log losses of its exits."""

  def make(logs_of, without=(), **sections):
    runs = isoflop.ISOFLOP.runs(make_study(**sections))
    kept = [run for run in runs if run.cell not in without]
    return results_of(
      tmp_path, kept, lambda run: np.exp(logs_of(run)).tolist()
    ).finished

  return make


def noise_of(exit_, degrees=8):
  return comparison.Noise(exit_, exit_, exit_, 3, 3, degrees)


def dense_log(run, exit_):
  """Of a dense model of an exit's shape."""
  return 3 / flops_lib.params(run.model, exit_) ** 0.1


def test_noise_by_hand(runs_of):
  logs = {
    'c4e8_w8_d4_g4': 0.0, 'c4e8_w8_d4_g4_seed1': 0.02,
    'c4e8_w8_d4_g4_seed2': 0.04,  # Mean 0.02: squares 8e-4 on 2 degrees.
    'c4e8_w16_d4_g4': 1.0, 'c4e8_w16_d4_g4_seed1': 1.01,  # 5e-5 on 1.
    'c4e8_w8_d4_g1': 9.0, 'c4e8_w8_d4_g4_linear': 5.0,  # Alone.
  }  # fmt: skip
  one = {'budgets': (4e8,), 'shapes': (0, 1), 'granularities': (4,)}

  # Shallow exits differ twice as much.
  def logs_of(run):
    log = logs.get(run.cell, 0.0)
    return [2 * log] * (run.model.granularity - 1) + [log]

  runs = runs_of(
    logs_of,
    grid=GRID,
    arms={'seed': {**one, 'values': (1, 2)},
          'weighting': {**one, 'values': ('linear',)}},
  )  # fmt: skip
  runs = [run for run in runs if run.cell in logs]
  found = comparison.noise(runs)
  sd = math.sqrt(8.5e-4 / 3)
  assert found.final == pytest.approx(sd)
  # Of four exits, three with four times the square.
  assert found.exit == pytest.approx(sd * math.sqrt(13 / 4))
  assert sd < found.mean < 2 * sd
  assert (found.cells, found.seeds, found.degrees) == (2, 3, 3)
  assert comparison.noise([run for run in runs if run.seed == 0]) is None


@pytest.mark.parametrize('change', [0.0, 0.02])
def test_gamma_of_pairs_and_its_trend_do_not_see_shapes(runs_of, change):
  """Whatever level a block has, its slope on log G is gamma."""

  def logs_of(run):
    gamma = 0.03 + change * math.log10(run.budget / 4e8)
    bumps = {8: 0.002, 16: -0.002}[run.model.width]
    level = run.model.width / 7 - math.log(run.budget)
    penalty = (gamma + bumps) * math.log(run.model.granularity)
    return [level + penalty] * run.model.granularity

  seeds = {**SEEDS, 'values': (1, 2)}
  found = comparison.paired(
    runs_of(logs_of, grid=GRID, arms={'seed': seeds}), {}
  )
  assert {row.equal for row in found.gamma} == {'flops'}
  gammas = {(row.loss, row.budget): row for row in found.gamma}
  values = [0.032, 0.028, 0.032 + change, 0.028 + change]
  pooled = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
  for loss in comparison.LOSSES:
    for budget, wanted in ((4e8, 0.03), (4e9, 0.03 + change)):
      row = gammas[loss, budget]
      assert row.gamma.value == pytest.approx(wanted) and row.blocks == 2
    row = gammas[loss, None]
    assert (row.gamma.lo, row.gamma.hi) == pytest.approx(pooled)
    assert row.gamma.sign == 'higher'
  [trend] = [row.gamma for row in found.trend if row.loss == 'final']
  fit = stats.linregress([0, 0, 1, 1], values)
  assert trend.value == pytest.approx(change, abs=1e-12)
  half = stats.t.ppf(0.975, 2) * fit.stderr
  assert trend.hi - trend.value == pytest.approx(half)
  assert trend.sign == ('higher' if change else 'n.s.')
  ratios = {(row.loss, row.exits, row.budget): row for row in found.ratios}
  ratio = ratios['final', 4, None]
  assert ratio.blocks == 4
  assert ratio.log_ratio.value == pytest.approx(np.mean(values) * math.log(4))
  blocks = [row for row in found.blocks if (row.loss, row.exits) == ('mean', 2)]
  assert [row.log_ratio for row in blocks] == pytest.approx(
    [value * math.log(2) for value in values]
  )


def test_pairs_at_equal_tokens_make_up_for_the_heads(runs_of):
  """A law of N and D alone shows a penalty at equal FLOPs, none at equal D."""

  def logs_of(run):
    tokens = run.train.steps * run.train.batch_size * run.data.seq_len
    size = flops_lib.params_full(run.model)
    loss = 1 + 30 / size**0.4 + 90 / tokens**0.4
    return [math.log(loss)] * run.model.granularity

  found = comparison.paired(runs_of(logs_of, grid=GRID), {'final': LAW})
  gamma = {
    row.equal: row.gamma.value
    for row in found.gamma
    if row.loss == 'final' and row.budget is None
  }
  assert gamma['flops'] > 0.005
  assert gamma['tokens'] == pytest.approx(0, abs=1e-9)


def test_a_family_without_its_dense_model_is_no_pair(runs_of):
  runs = runs_of(
    lambda run: [1.0] * run.model.granularity, ('c4e8_w8_d4_g1',), grid=GRID
  )
  blocks = comparison.paired(runs, {}).blocks
  assert {(row.budget, row.width) for row in blocks} == {
    (4e8, 16), (4e9, 8), (4e9, 16)
  }  # fmt: skip
  families = [run for run in runs if run.exits > 1]
  assert comparison.paired(families, {}) == comparison.Paired((), (), (), ())


def test_twins_give_back_gamma_and_every_exit(runs_of):
  def logs_of(run):
    penalty = 0.03 * math.log(run.model.granularity)
    exits = range(1, run.model.granularity + 1)
    return [dense_log(run, exit_) + penalty for exit_ in exits]

  runs = runs_of(logs_of, grid=GRID, arms={'twin': TWIN})
  twins = comparison.twins(runs, None)
  # Two sizes; G = 2 has two exits and G = 4 four, each with its dense twin.
  assert len(twins.exits) == 2 * (2 + 4)
  every, *shapes = twins.gamma
  assert every.gamma.value == pytest.approx(0.03)
  assert not every.gamma.bounded
  assert [row.width for row in shapes] == [8, 16]
  for row in twins.exits:
    ratio = math.log(row.loss_exit / row.loss_twin)
    assert row.log_ratio == pytest.approx(ratio)
    assert ratio == pytest.approx(0.03 * math.log(row.exits))
    assert row.budget == 4e8  # The other has no twins.
  assert [(row.exits, row.layer) for row in twins.depths] == [
    (2, 2), (2, 4), (4, 1), (4, 2), (4, 3), (4, 4),
  ]  # fmt: skip


def test_twins_count_every_seed_and_the_twins_own_noise(runs_of):
  ratios = {2: [0.01, 0.02], 4: [0.03, 0.05, 0.02, 0.08]}
  luck = {0: 0.0, 1: 0.06}

  def logs_of(run):
    logs = ratios.get(run.model.granularity, [0.0])
    return np.array(logs) + luck[run.train.seed]

  seeds = {'budgets': (4e8,), 'shapes': (0,), 'granularities': (4,)}
  runs = runs_of(
    logs_of,
    grid={**GRID, 'shapes': ((8, 4, 1),)},
    arms={'twin': {**TWIN, 'shapes': (0,)},
          'seed': {**seeds, 'values': (1,)}},
  )  # fmt: skip
  found = comparison.twins(runs, noise_of(0.01))
  x = np.repeat(np.log([2, 4]), [2, 4])
  y = np.array([0.01, 0.02, 0.06, 0.08, 0.05, 0.11])  # G = 4: mean of seeds.
  weights = x / (x @ x)
  gamma = found.gamma[0].gamma
  assert gamma.value == pytest.approx(weights @ y)
  two, four = weights[0], weights[2]
  variance = (2 * two) ** 2 + (4 * four) ** 2 / 2  # Two seeds.
  # Layers 2 and 4 are the twin of an exit of both families.
  variance += 2 * four**2 + 2 * (two + four) ** 2
  half = stats.t.ppf(0.975, 8) * 0.01 * math.sqrt(variance)
  assert (gamma.lo, gamma.hi) == pytest.approx(
    (gamma.value - half, gamma.value + half)
  )
  seeds = {(r.exits, r.layer): (r.seeds, r.seeds_twin) for r in found.exits}
  assert seeds[2, 2] == (1, 1) and seeds[4, 2] == (2, 1)


def test_twins_of_exits_that_are_dense_models_one_layer_deeper(runs_of):
  runs = runs_of(
    lambda run: [0.5] * run.model.granularity,
    model={'exit_kind': 'branch'},
    grid={'shapes': ((8, 4, 1), (8, 2, 1))},
    arms={'twin': {**TWIN, 'shapes': (0,), 'granularities': (2,)}},
  )
  # Layer 2 and a branch: a twin of 3.
  exits = {(row.depth, row.exit) for row in comparison.twins(runs, None).exits}
  assert exits >= {(4, 1), (4, 2)}


def test_minima_carry_the_noise(runs_of):
  def logs_of(run):
    log_n = math.log(flops_lib.params_full(run.model))
    bend = 0.05 * (log_n - math.log(8000)) ** 2
    return [bend + 0.05 * (run.model.granularity > 1)] * run.model.granularity

  grid = {
    'budgets': (4e9,),
    'shapes': tuple((width, 4, 1) for width in (8, 16, 24, 32)),
    'granularities': (1, 2),
  }
  runs = runs_of(logs_of, grid=grid)
  wide = {}
  for sd in (0.002, 0.004):
    [dense, family] = [
      r for r in comparison.minima(runs, noise_of(sd)) if r.loss == 'final'
    ]
    assert dense.log_ratio is None and dense.interior and dense.points == 4
    assert dense.n_opt == pytest.approx(
      8000
    ) and dense.minimum == pytest.approx(1)
    assert dense.curvature == pytest.approx(0.05)
    assert dense.curve(np.array([8000 * math.e]))[0] == pytest.approx(
      math.exp(0.05)
    )
    assert family.log_ratio.value == pytest.approx(0.05)
    assert 0.05 in family.log_ratio
    wide[sd] = family.log_ratio.hi - family.log_ratio.lo
  assert wide[0.004] == pytest.approx(2 * wide[0.002], rel=0.15)
  assert wide[0.004] > 4 * 0.004 * math.sqrt(2 / 4)  # Than that of a mean.
  for row in comparison.minima(runs, None):
    assert row.exits == 1 or not row.log_ratio.bounded


def test_no_minimum_at_the_edge_is_compared(runs_of):
  runs = runs_of(
    lambda run: [-0.01 * run.model.width] * run.model.granularity,
    grid={**GRID, 'shapes': ((8, 4, 1), (16, 4, 1), (24, 4, 1))},
  )
  for row in comparison.minima(runs, None):
    assert not row.interior and row.flag and row.log_ratio is None
    assert row.n_opt == max(run.params_full for run in runs)
