import dataclasses
import os
import signal
import types

import pytest

from familial.core import errors
from familial.model import flops as flops_lib
from familial.studies import cells as cells_lib
from familial.studies import isoflop
from familial.studies import plan as plan_lib

SPEED = plan_lib.Speed((8, 32), (1e9, 4e9), 3.0, 'cpu')


def corpus(tokens):
  split = types.SimpleNamespace(tokens=range(tokens), bytes=tokens)
  return types.SimpleNamespace(
    name='made', fingerprint='f00d', train=split, heldout=split, vocab_size=256
  )


def make(study, tokens=10**6, workers=1, speed=SPEED):
  cells = cells_lib.build(study)
  return isoflop.plan(study, cells, corpus(tokens), speed, workers)


@pytest.fixture
def dense(make_study):
  """Without a second granularity: the power, which is slow, is not computed."""

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
  assert SPEED.at(8) == pytest.approx(1e9)
  assert SPEED.at(16) == pytest.approx(2e9)
  assert SPEED.at(32) == pytest.approx(4e9)
  assert SPEED.at(64) == pytest.approx(4e9)  # Not beyond what was measured.
  assert plan_lib.Speed((8, 8), (2e9, 2e9), 1.0, 'cpu').at(8) == pytest.approx(
    2e9
  )


def kill(cells, cores):
  os.kill(os.getpid(), signal.SIGKILL)


def test_a_calibration_that_is_killed_says_so(dense, monkeypatch):
  monkeypatch.setattr(plan_lib, '_time_steps', kill)
  cells = cells_lib.build(dense())
  with pytest.raises(errors.UserError, match='was killed'):
    plan_lib.calibrate(cells, 1)


def test_times_add_up(dense):
  study = dense()
  cells = cells_lib.build(study)
  one, two = make(study), make(study, workers=2)
  for cell, row in zip(cells, one['cells'], strict=True):
    per_token = flops_lib.forward(cell.model, 16)
    evaluation = cell.train.evaluations * cell.train.eval_tokens * per_token
    speed = {8: 1e9, 16: 2e9}[cell.model.width]
    assert row['seconds'] == pytest.approx((row['flops'] + evaluation) / speed)
  # Two shapes, each with a program to train and one to evaluate, of 3 s each.
  assert one['programs'] == 4
  trained = sum(row['seconds'] for row in one['cells'])
  assert one['seconds'] == pytest.approx(trained + 12)
  assert two['seconds'] == pytest.approx(one['seconds'] / 2)
  assert one['flops'] == sum(map(cells_lib.cost, cells))


def test_more_than_four_epochs_are_warned_of(dense):
  rows = {row['cell']: row for row in make(dense())['cells']}
  tokens = rows['c4e8_w8_d2_g1']['tokens']
  assert tokens == max(row['tokens'] for row in rows.values())

  def warned(corpus_tokens):
    warnings = make(dense(), tokens=corpus_tokens)['warnings']
    return [warning for warning in warnings if 'epochs' in warning]

  [warning] = warned(tokens // 4 - 1)
  assert warning.startswith('c4e8_w8_d2_g1: 4.0 epochs')
  assert warned(tokens // 4 + 1) == []


def test_rounding_beyond_half_a_percent_is_warned_of(dense):
  plan = make(dense(budgets=(1e7, 4e8), shapes=((8, 2, 1),)))
  short, long = plan['cells']
  assert abs(short['flops'] / short['budget'] - 1) > 0.005
  assert abs(long['flops'] / long['budget'] - 1) < 0.005
  [warning] = plan['warnings']
  assert short['cell'] in warning
  assert f'{short["flops"] / short["budget"] - 1:+.1%}' in warning


def test_the_text_has_every_cell_and_warning(dense):
  plan = make(dense(budgets=(1e7, 4e8)), tokens=100_000)
  text = isoflop.text(plan)
  assert len(plan['cells']) == 4
  for row in plan['cells']:
    [line] = [line for line in text.split('\n') if line.startswith(row['cell'])]
    assert str(row['steps']) in line and f'{row["flops"]:.2e}' in line
  assert plan['warnings']
  for warning in plan['warnings']:
    assert f'warning: {warning}' in text
  assert 'f00d' in text and 'gamma' not in text


def test_gamma_s_interval_is_as_wide_as_the_noise(make_study):
  grid = {
    'budgets': (4e8, 1e9, 4e9),
    'shapes': ((8, 4, 1), (16, 4, 1), (32, 4, 1)),
    'granularities': (1, 2, 4),
  }
  quiet, loud = (
    make(make_study(grid=grid, assumed={'noise': noise}))
    for noise in (0.005, 0.01)
  )
  half_width = quiet['power']['gamma_half_width']
  assert 0.001 < half_width < 0.05
  ratio = loud['power']['gamma_half_width'] / half_width
  assert ratio == pytest.approx(2, rel=0.3)
  assert quiet['power']['runs'] == 27
  assert f'+- {half_width:.4f}' in isoflop.text(quiet)


def test_within_leaves_out_budgets_from_the_top(dense):
  cells = cells_lib.build(dense(budgets=(1e8, 4e8, 4e10)))
  needed = 12 + sum(cells_lib.cost(c) / 1e9 for c in cells if c.budget < 1e9)
  kept = plan_lib.within(needed + 1, cells, SPEED, 1)
  assert kept == [cell for cell in cells if cell.budget <= 4e8]
  assert plan_lib.within(1e6, cells, SPEED, 1) == cells
  with pytest.raises(errors.UserError, match=r'grid\.seconds: 1 '):
    plan_lib.within(1.0, cells, SPEED, 1)


def test_another_batch_is_another_program_to_train_alone(dense):
  study = dense()
  rules = dataclasses.replace(study.rules, batch_exponent=1.0)
  assert make(dataclasses.replace(study, rules=rules))['programs'] == 2 * 2 + 2


def test_within_never_leaves_the_grid_out(make_study):
  arm = {'budgets': (4e10,), 'shapes': (0,), 'granularities': (2,)}
  study = make_study(
    grid={'budgets': (4e10,)},
    arms={'frozen': {**arm, 'values': ('separate',), 'share': 0.25}},
  )
  with pytest.raises(errors.UserError, match=r'grid\.seconds: 50 .* 108 s'):
    plan_lib.within(50, cells_lib.build(study), SPEED, 1)


def test_within_keeps_no_cell_without_its_parent(make_study):
  arm = {'budgets': (4e10,), 'shapes': (0,), 'granularities': (2,)}
  study = make_study(
    grid={'budgets': (2e10, 4e10)},
    arms={'frozen': {**arm, 'values': ('separate',), 'share': 0.25}},
  )
  cells = cells_lib.build(study)
  assert cells[-1].budget < 2e10 < cells[-2].budget
  kept = plan_lib.within(100, cells, SPEED, 1)
  assert [cell.cell for cell in kept] == ['c2e10_w8_d2_g1', 'c2e10_w8_d2_g2']
  assert plan_lib.within(1000, cells, SPEED, 1) == cells
