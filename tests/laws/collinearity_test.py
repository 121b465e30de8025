import math

import numpy as np
import pytest

from familial.laws import collinearity
from familial.laws import table as tables


def made(run, **logs):
  columns = {name: np.exp(np.array(values)) for name, values in logs.items()}
  return tables.Table({**columns, 'loss': np.ones(len(run))}, np.array(run))


def values(found):
  return {tuple(p['columns']): p['value'] for p in found['correlations']}


def test_correlation_by_hand():
  # Means 1 and 2/3; covariance 1/3, variances 2/3 and 2/9: r = sqrt(3) / 2.
  table = made(['a', 'b', 'c'], width=[0.0, 1, 2], depth=[0.0, 1, 1])
  found = collinearity.of_runs(table, ('width', 'depth'))
  r = math.sqrt(3) / 2
  assert values(found) == {('width', 'depth'): pytest.approx(r)}
  assert found['condition_number'] == pytest.approx((1 + r) / (1 - r))
  assert found['runs'] == 3


def test_a_run_counts_once_by_its_last_row():
  once = made(
    ['a', 'b', 'c'], width=[0.0, 1, 2], depth=[0.0, 1, 1], D=[3.0, 4, 6]
  )
  # As it comes from a table by step: the runs' rows lie between one another's.
  often = made(
    ['a', 'b', 'b', 'c', 'a', 'a', 'b', 'c'],
    width=[0.0, 1, 1, 2, 0, 0, 1, 2],
    depth=[0.0, 1, 1, 1, 0, 0, 1, 1],
    D=[0.0, 1, 2, 0, 1, 3, 4, 6],
  )
  columns = ('width', 'depth', 'D')
  a, b = (values(collinearity.of_runs(t, columns)) for t in (once, often))
  assert a == pytest.approx(b)
  assert ('width', 'tokens') in a


def test_a_full_grid_is_uncorrelated():
  width, depth = (v.ravel() for v in np.meshgrid([0.0, 1, 3], [0.0, 2, 3, 7]))
  run = [str(i) for i in range(12)]
  found = collinearity.of_runs(
    made(run, width=width, depth=depth), ('width', 'depth')
  )
  assert values(found)['width', 'depth'] == pytest.approx(0, abs=1e-12)
  assert found['condition_number'] == pytest.approx(1)


def test_what_does_not_vary_and_what_follows():
  run = [str(i) for i in range(4)]
  x = np.array([0.0, 1, 2, 4])
  table = made(run, width=x, depth=2 * x + 1, D=np.ones(4))
  found = collinearity.of_runs(table, ('width', 'depth', 'D'))
  assert values(found)['width', 'depth'] == pytest.approx(1)
  assert math.isnan(values(found)['width', 'tokens'])
  assert found['condition_number'] == math.inf
  one = collinearity.of_runs(made(run, D=np.ones(4)), ('D',))
  assert one['correlations'] == [] and math.isnan(one['condition_number'])
