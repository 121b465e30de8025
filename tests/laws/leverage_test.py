import json

import numpy as np
import pytest

from familial import errors
from familial.laws import leverage
from familial.laws import table as tables

LAW = {'E': 1.0, 'A': 8.0, 'B': 100.0, 'alpha': 0.5, 'beta': 0.5}


def dense_loss(n, d):
  return LAW['E'] + LAW['A'] / n ** LAW['alpha'] + LAW['B'] / d ** LAW['beta']


def family(losses, run='a', flops=100.0):
  size = np.array([64.0, 256.0])
  return tables.Table(
    {
      'N': size,
      'D': np.ones(2),
      'G': np.full(2, 2.0),
      'C': np.full(2, flops),
      'loss': np.array(losses),
      'flops_per_token': 6 * size,
    },
    np.array([run, run]),
  )


def test_is_the_dense_models_compute_over_the_familys():
  # Dense models of the exits' sizes reach these losses with 1e4, 2e4 tokens.
  losses = [dense_loss(64, 1e4), dense_loss(256, 2e4)]
  [found] = leverage.efficiency_leverage(LAW, family(losses, flops=1e7))
  wanted = (6 * 64 * 1e4 + 6 * 256 * 2e4) / 1e7
  assert found.leverage == pytest.approx(wanted, rel=1e-12)
  assert (found.exits, found.unreachable, found.lo) == (2, 0, None)
  assert not found.to_json()['infinite']


def test_out_of_reach_is_infinite_and_shown():
  # 1 + 8 / 8 = 2 is the best a dense model of 64 parameters ever gets.
  [found] = leverage.efficiency_leverage(LAW, family([1.99, 1.9]))
  assert found.leverage == np.inf
  assert found.unreachable == 1
  record = found.to_json()
  assert (record['leverage'], record['infinite']) == (None, True)
  json.dumps(record, allow_nan=False)
  samples = {name: np.full(100, value) for name, value in LAW.items()}
  samples['A'] = np.linspace(7.0, 9.0, 100)
  [found] = leverage.efficiency_leverage(LAW, family([1.99, 1.9]), samples)
  assert np.isfinite(found.lo) and found.hi == np.inf
  assert found.to_json()['hi_infinite']


def test_interval_holds_the_point():
  losses = [dense_loss(64, 1e4), dense_loss(256, 2e4)]
  rng = np.random.default_rng(0)
  samples = {k: v * rng.normal(1, 0.01, 200) for k, v in LAW.items()}
  [found] = leverage.efficiency_leverage(LAW, family(losses), samples)
  assert found.lo < found.leverage < found.hi


def test_needs_one_row_an_exit():
  table = family([3.0, 2.5])
  with pytest.raises(errors.UserError, match='1 rows and 2 exits'):
    leverage.efficiency_leverage(LAW, table.take(np.array([0])))
  columns = {k: v for k, v in table.columns.items() if k != 'flops_per_token'}
  with pytest.raises(errors.UserError, match='needs columns flops_per_token'):
    leverage.efficiency_leverage(LAW, tables.Table(columns, table.run))
