"""What a study costs, before it runs."""

import dataclasses
import os
import signal

import pytest

from familial.core import errors
from familial.model import flops as flops_lib
from familial.studies import isoflop
from familial.studies import plan as plan_lib
from familial.studies import shapes
from familial.training import config as train_config
from tests.studies.conftest import SPEED

STUDY = isoflop.ISOFLOP
FROZEN = {
  'budgets': (4e10,), 'shapes': (0,), 'granularities': (2,),
  'values': ('separate',), 'share': 0.25,
}  # fmt: skip


@pytest.fixture
def dense(make_study):
  """Of one granularity: its power, which is slow, is not computed."""

  def make(**grid):
    return make_study(
      grid={
        'budgets': (1e8, 4e8),
        'shapes': ((8, 2, 1), (16, 2, 1)),
        'granularities': (1,),
        **grid,
      }
    )

  return make


def test_speed_is_linear_in_the_logarithms():
  # Not beyond what was measured.
  for width, speed in ((8, 1e9), (16, 2e9), (32, 4e9), (64, 4e9)):
    assert SPEED.at(width) == pytest.approx(speed)
  assert plan_lib.Speed((8, 8), (2e9, 2e9), 1.0, 'cpu').at(8) == pytest.approx(
    2e9
  )


def kill():
  os.kill(os.getpid(), signal.SIGKILL)


class Deadly(train_config.RunConfig):
  """A run that kills the process which it is sent to."""

  def __reduce__(self):
    return kill, ()


def test_a_calibration_that_is_killed_is_refused(dense):
  run = STUDY.runs(dense())[-1]
  parts = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
  with pytest.raises(errors.UserError, match=f'^{run.cell}: '):
    plan_lib.calibrate([Deadly(**parts)], 1)


def test_times_add_up(dense, make_plan):
  config = dense()
  runs = STUDY.runs(config)
  one, two = make_plan(STUDY, config), make_plan(STUDY, config, workers=2)
  for run, row in zip(runs, one['cells'], strict=True):
    per_token = flops_lib.forward(run.model, 16)
    evaluation = run.train.evaluations * run.train.eval_tokens * per_token
    speed = {8: 1e9, 16: 2e9}[run.model.width]
    assert row['seconds'] == pytest.approx((row['flops'] + evaluation) / speed)
  # Two shapes, each with a program to train and one to evaluate, of 3 s each.
  assert one['programs'] == 4
  trained = sum(row['seconds'] for row in one['cells'])
  assert one['seconds'] == pytest.approx(trained + 12)
  assert two['seconds'] == pytest.approx(one['seconds'] / 2)
  assert one['flops'] == sum(map(shapes.cost, runs))


def test_more_than_four_epochs_are_warned_of(dense, make_plan):
  rows = {row['cell']: row for row in make_plan(STUDY, dense())['cells']}
  tokens = rows['c4e8_w8_d2_g1']['tokens']
  assert tokens == max(row['tokens'] for row in rows.values())

  def warned(corpus_tokens):
    warnings = make_plan(STUDY, dense(), tokens=corpus_tokens)['warnings']
    return [warning.split(':')[0] for warning in warnings if 'epoch' in warning]

  assert warned(tokens // 4 - 1) == ['c4e8_w8_d2_g1']
  assert warned(tokens // 4 + 1) == []


def test_rounding_beyond_half_a_percent_is_warned_of(dense, make_plan):
  plan = make_plan(STUDY, dense(budgets=(1e7, 4e8), shapes=((8, 2, 1),)))
  short, long = plan['cells']
  assert abs(short['flops'] / short['budget'] - 1) > 0.005
  assert abs(long['flops'] / long['budget'] - 1) < 0.005
  [warning] = plan['warnings']
  assert short['cell'] in warning
  assert f'{short["flops"] / short["budget"] - 1:+.1%}' in warning


def test_gamma_s_interval_is_that_of_the_planned_runs(make_study):
  grid = {
    'budgets': (4e8, 1e9, 4e9),
    'shapes': ((8, 4, 1), (16, 4, 1), (32, 4, 1)),
    'granularities': (1, 2, 4),
  }
  config = make_study(grid=grid, assumed={'noise': 0.005})
  power = STUDY.plan(config, STUDY.runs(config))['power']
  assert 0.001 < power['gamma_half_width'] < 0.05
  assert (power['runs'], power['noise']) == (27, 0.005)


def test_one_granularity_has_no_power(dense):
  config = dense()
  assert STUDY.plan(config, STUDY.runs(config)) == {'power': None}


def test_a_limit_leaves_out_budgets_from_the_top(dense):
  runs = STUDY.runs(dense(budgets=(1e8, 4e8, 4e10)))
  needed = 12 + sum(shapes.cost(run) / 1e9 for run in runs if run.budget < 1e9)
  kept = plan_lib.within(needed + 1, runs, SPEED, 1)
  assert kept == [run for run in runs if run.budget <= 4e8]
  assert plan_lib.within(1e6, runs, SPEED, 1) == runs
  with pytest.raises(errors.UserError, match=r'grid\.seconds: 1 '):
    plan_lib.within(1.0, runs, SPEED, 1)


def test_another_batch_is_another_program_to_train_alone(dense, make_plan):
  config = dense()
  rules = dataclasses.replace(config.rules, batch_exponent=1.0)
  config = dataclasses.replace(config, rules=rules)
  assert make_plan(STUDY, config)['programs'] == 2 * 2 + 2


def test_a_limit_never_leaves_the_grid_out(make_study):
  config = make_study(grid={'budgets': (4e10,)}, arms={'frozen': FROZEN})
  with pytest.raises(errors.UserError, match=r'grid\.seconds: 50 .* 108 s'):
    plan_lib.within(50, STUDY.runs(config), SPEED, 1)


def test_a_limit_keeps_no_run_without_its_parent(make_study):
  config = make_study(grid={'budgets': (2e10, 4e10)}, arms={'frozen': FROZEN})
  runs = STUDY.runs(config)
  assert runs[-1].budget < 2e10 < runs[-2].budget
  kept = plan_lib.within(100, runs, SPEED, 1)
  assert [run.cell for run in kept] == ['c2e10_w8_d2_g1', 'c2e10_w8_d2_g2']
  assert plan_lib.within(1000, runs, SPEED, 1) == runs
