"""What allocations are compared by: exact where the truth is known."""

import dataclasses

import numpy as np
import pytest

from familial.allocation import compared
from familial.allocation import config
from familial.allocation import curves
from familial.allocation import policies
from familial.allocation import replay
from familial.allocation import synthetic
from familial.laws import forms

LAW = config.Law('chinchilla')


def draws(count=3, candidates=6):
  pool = synthetic.curves(12).curves
  rng = np.random.default_rng(0)
  return [
    [pool[i] for i in rng.choice(12, candidates, replace=False)]
    for _ in range(count)
  ]


def allocate(grids, budget, names=('sh', 'uniform', 'oracle')):
  return {
    name: policies.allocate(
      name, [replay.Replay(g) for g in grids], budget, 2, LAW, 0
    )
    for name in names
  }


def test_whoever_trains_everything_misses_nothing():
  grids = draws()
  budget = 1e25
  found = compared.outcomes(allocate(grids, budget), grids, budget, LAW)
  for mine in found.values():
    # A curve's end takes no more, and uniform's one round is enough.
    assert (mine.gain <= 1e-12).all()
  whole = found['uniform']
  np.testing.assert_allclose(whole.regret, 0.0, atol=1e-12)
  np.testing.assert_allclose(whole.area, 0.0, atol=1e-12)
  np.testing.assert_allclose(whole.line, 0.0, atol=1e-12)
  np.testing.assert_allclose(whole.law, 0.0, atol=1e-9)


def test_the_bound_bounds_and_the_share_is_of_it():
  grids = draws(count=5, candidates=10)
  budget = 2e18
  found = compared.outcomes(allocate(grids, budget), grids, budget, LAW)
  assert found['oracle'].gain.mean() > 0
  summary = compared.summary(found)
  assert summary['sh']['share_of_bound']['value'] == 0.0
  assert summary['oracle']['share_of_bound']['value'] == 1.0
  assert (found['oracle'].best <= found['sh'].best).all()
  gain = (found['sh'].best - found['oracle'].best) / found['sh'].best
  np.testing.assert_array_equal(found['oracle'].gain, gain)
  assert summary['oracle']['gain']['value'] == pytest.approx(gain.mean())
  cost = [sum(curve.end for curve in grid) for grid in grids]
  np.testing.assert_allclose(found['sh'].saving, 1 - budget / np.array(cost))


def test_clean_curves_of_a_law_give_that_law_back():
  # On curves without noise even a fraction of them extrapolates exactly.
  grids = draws(count=2)
  budget = 2e19
  found = compared.outcomes(allocate(grids, budget), grids, budget, LAW)
  assert (np.abs(found['sh'].law) < 1e-3).all()
  assert (np.abs(found['sh'].line) > 1e-3).all()  # No line is that law.


def test_points_count_once_and_where_they_may():
  curve = curves.Curve(
    'a', np.array([6.0, 12.0]), np.array([3.0, 2.0]),
    {'N': np.ones(2), 'D': np.array([1.0, 2.0])},
  )  # fmt: skip
  other = dataclasses.replace(curve, name='b')
  table, weights = compared.rows([[curve, other], [curve.cut(9.0)]])
  assert table.rows == 5  # 6 and 12 of each, and a's 9.
  np.testing.assert_array_equal(weights.sum(axis=1), [4, 2])
  assert table.columns['D'][weights[1] > 0].tolist() == [1.0, 1.5]
  table, weights = compared.rows([[curve, other], [curve]], ('tokens>=2',))
  assert table.rows == 2 and weights.tolist() == [[1, 1], [1, 0]]


def test_an_interval_is_of_the_draws_that_are_known():
  values = np.array([1.0, 2.0, 3.0, np.nan])
  found = compared.interval(values, np.mean)
  assert found['value'] == 2.0
  assert 1.0 <= found['lo'] < 2.0 < found['hi'] <= 3.0
  assert compared.interval(np.array([np.nan, 5.0]), np.mean) == {
    'value': 5.0, 'lo': None, 'hi': None,
  }  # fmt: skip
  assert compared.interval(np.array([np.nan]), np.mean)['value'] is None


def test_the_extrapolated_loss_is_the_closed_form():
  form = forms.get('chinchilla')
  law = synthetic.LAW
  theta = form.theta(law)[None]
  curve = synthetic.curves(1).curves[0]
  table, _ = compared.rows([[curve]])
  [[loss]] = compared.extrapolated(form, table, theta, [1e21])
  # Hoffmann et al. (2022), equation 4.
  a, b = law['alpha'], law['beta']
  g = (a * law['A'] / (b * law['B'])) ** (1 / (a + b))
  n = g * (1e21 / 6) ** (b / (a + b))
  d = 1e21 / 6 / n
  assert loss == pytest.approx(
    law['E'] + law['A'] / n**a + law['B'] / d**b, rel=1e-9
  )


def test_what_is_lost_and_saved_by_hand():
  tokens = np.array([1.0, 2.0, 4.0])
  grids = [
    [
      curves.Curve('a', tokens, np.array([4.0, 3.0, 2.0])),
      curves.Curve('b', tokens, np.array([5.0, 2.5, 1.0])),
    ]
  ]
  law = config.Law('')
  mine = allocate(grids, 4.0, ('sh', 'uniform', 'oracle'))
  found = compared.outcomes(mine, grids, 4.0, law)
  # All of the budget on b would reach 1; half of it for each 2.5.
  assert found['uniform'].best == 2.5
  assert found['uniform'].regret == pytest.approx(1.5)
  assert found['uniform'].saving == pytest.approx(0.5)
  assert found['uniform'].spent == 4.0


@pytest.mark.slow
def test_laws_are_held_against_the_one_that_curves_obey():
  grids = draws(count=2)
  budget = 2e19
  mine = allocate(grids, budget, ('sh', 'oracle'))
  whole = compared.outcomes(mine, grids, budget, LAW)['sh'].law
  known = compared.outcomes(mine, grids, budget, LAW, synthetic.LAW)['sh'].law
  np.testing.assert_allclose(known, whole, atol=1e-4)
  doubled = {**synthetic.LAW, 'E': 2 * synthetic.LAW['E']}
  other = compared.outcomes(mine, grids, budget, LAW, doubled)['sh'].law
  assert (other < -0.3).all()


def test_calibration_counts_what_lies_within():
  grids = draws()
  [mine] = allocate(grids, 1e19, ('sh_ensemble_power_law',)).values()
  rows = compared.calibration(mine, grids)
  assert [row['round'] for row in rows] == [1, 2]
  for row in rows:
    assert row['coverage']['value'] > 0.5
    assert row['error'] < row['held_error']
  assert compared.calibration(allocate(grids, 1e19)['sh'], grids) == []
