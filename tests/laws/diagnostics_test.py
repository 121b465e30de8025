"""Collinearity of columns over runs, and the flags of suspect rows."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.laws import diagnostics
from familial.laws import estimation
from familial.laws import forms
from familial.laws import table as tables
from familial.laws import user_forms
from tests.laws import points


def made(run, **logs):
  columns = {name: np.exp(np.array(values)) for name, values in logs.items()}
  return tables.Table({**columns, 'loss': np.ones(len(run))}, np.array(run))


def correlations(design):
  return {pair.columns: pair.value for pair in design.correlations}


def test_correlation_by_hand():
  # Means 1 and 2/3; covariance 1/3, variances 2/3 and 2/9: r = sqrt(3) / 2.
  table = made(['a', 'b', 'c'], width=[0.0, 1, 2], depth=[0.0, 1, 1])
  design = diagnostics.design(table, ('width', 'depth'))
  r = math.sqrt(3) / 2
  assert correlations(design) == {('width', 'depth'): pytest.approx(r)}
  assert design.condition_number == pytest.approx((1 + r) / (1 - r))
  assert design.runs == 3


def test_a_run_counts_once_by_its_last_row():
  once = made(
    ['a', 'b', 'c'], width=[0.0, 1, 2], depth=[0.0, 1, 1], D=[3.0, 4, 6]
  )
  # As it comes from a table by step: the runs' rows are interleaved.
  often = made(
    ['a', 'b', 'b', 'c', 'a', 'a', 'b', 'c'],
    width=[0.0, 1, 1, 2, 0, 0, 1, 2],
    depth=[0.0, 1, 1, 1, 0, 0, 1, 1],
    D=[0.0, 1, 2, 0, 1, 3, 4, 6],
  )
  a, b = (
    correlations(diagnostics.design(t, ('width', 'depth', 'D')))
    for t in (once, often)
  )
  assert a == pytest.approx(b)
  assert ('width', 'tokens') in a


def test_full_grids_constants_and_multiples():
  width, depth = (v.ravel() for v in np.meshgrid([0.0, 1, 3], [0.0, 2, 3, 7]))
  run = [str(i) for i in range(12)]
  grid = diagnostics.design(
    made(run, width=width, depth=depth), ('width', 'depth')
  )
  assert correlations(grid)['width', 'depth'] == pytest.approx(0, abs=1e-12)
  assert grid.condition_number == pytest.approx(1)
  x = np.array([0.0, 1, 2, 4])
  table = made(run[:4], width=x, depth=2 * x + 1, D=np.ones(4))
  follows = diagnostics.design(table, ('width', 'depth', 'D'))
  assert correlations(follows)['width', 'depth'] == pytest.approx(1)
  assert math.isnan(correlations(follows)['width', 'tokens'])
  assert follows.condition_number == math.inf
  one = diagnostics.design(table, ('D',))
  assert one.correlations == () and math.isnan(one.condition_number)


def test_copies_of_rows_are_flagged_unless_of_one_run():
  i = np.repeat(np.arange(30), 2)
  columns = {k: v[i] for k, v in points.columns(30).items()}
  assert points.law(columns).flags == (
    'rows that are copies of rows of other runs: 30',
  )
  table = tables.Table(
    {'N': columns['params'], 'D': columns['tokens'], 'loss': columns['loss']},
    i.astype(str),
  )
  assert estimation.fit(forms.get('chinchilla'), table, starts=16).flags == ()


@pytest.mark.parametrize(
  ('column', 'value', 'flag'),
  [
    ('params', 1e30, 'column N jumps from 1e+09 to 1e+30'),
    ('tokens', 1e-30, 'column D jumps from 1e-30 to'),
    ('loss', 1e30, 'rows off the law by more than a factor of 2: 1'),
    ('loss', 1e-30, 'rows off the law by more than a factor of 2: 1'),
  ],
)
def test_a_value_of_another_unit_is_flagged(column, value, flag):
  columns = points.columns()
  columns[column][3] = value
  assert any(f.startswith(flag) for f in points.law(columns).flags)


@pytest.mark.parametrize(
  ('params', 'flag'),
  [
    ({'E': 1e-9}, 'E may be 0'),
    ({'alpha': -0.1, 'A': 0.1}, 'alpha is not positive'),
  ],
)
def test_what_the_data_cannot_say_is_flagged(make, params, flag):
  """Columns that say nothing are those of any_input_test.py."""
  table = make(noise=0.003, seed=3, params=params)
  fit = estimation.fit(forms.get('familial_total'), table, starts=64)
  assert flag in fit.flags
  for name, known in fit.identified.items():
    assert known != any(
      flag in (f'{name} not identified', f'{name} may be 0')
      for flag in fit.flags
    )


@pytest.mark.parametrize('rows', [12, 40])
def test_an_accuracy_taken_for_a_loss_is_flagged(rows):
  """Losses, loss-like numbers below 1 and forms without decay are no accuracy."""
  columns = points.columns(rows)
  noise = 0.05 * np.random.default_rng(1).standard_normal(rows)
  cost = 6 * columns['params'] * columns['tokens']
  accuracy = 1 / (1 + np.exp(4 - columns['tokens'] ** 0.07 + noise))

  def flagged(loss, form='chinchilla'):
    flags = points.law({**columns, 'flops': cost, 'loss': loss}, form).flags
    return any('accuracy' in flag for flag in flags)

  def rising(C, *, a=user_forms.real(-10, 10), b=user_forms.real(-1, 1)):
    return jax.nn.sigmoid(a + b * jnp.log(C))

  assert tables.looks_like_accuracy(accuracy, cost)
  assert flagged(accuracy) and not flagged(accuracy, rising)
  for loss in (1 - accuracy, 1 + accuracy, columns['loss'] / 10):
    assert not tables.looks_like_accuracy(loss, cost)
    assert not flagged(loss)
  assert not tables.looks_like_accuracy(accuracy, np.ones(rows))
  assert not tables.looks_like_accuracy(np.ones(rows), cost)
