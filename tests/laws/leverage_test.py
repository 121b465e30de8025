import dataclasses
import json

import numpy as np
import pytest

from familial.core import errors
from familial.laws import fit_record
from familial.laws import forms
from familial.laws import leverage
from familial.laws import table as tables

LAW = {'E': 1.0, 'A': 8.0, 'B': 100.0, 'alpha': 0.5, 'beta': 0.4}


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
  assert found.leverage.value == pytest.approx(wanted, rel=1e-12)
  assert (found.exits, found.unreachable, found.leverage.lo) == (2, 0, None)
  assert not found.to_json()['infinite']


def test_out_of_reach_is_infinite_and_shown():
  # 1 + 8 / 8 = 2 is the best a dense model of 64 parameters ever gets.
  [found] = leverage.efficiency_leverage(LAW, family([1.99, 1.9]))
  assert found.leverage.value == np.inf
  assert found.unreachable == 1
  record = found.to_json()
  assert (record['leverage'], record['infinite']) == (None, True)
  json.dumps(record, allow_nan=False)
  samples = {name: np.full(100, value) for name, value in LAW.items()}
  samples['A'] = np.linspace(7.0, 9.0, 100)
  [found] = leverage.efficiency_leverage(LAW, family([1.99, 1.9]), samples)
  assert np.isfinite(found.leverage.lo) and found.leverage.hi == np.inf
  assert found.to_json()['hi_infinite']


def test_interval_holds_the_point():
  losses = [dense_loss(64, 1e4), dense_loss(256, 2e4)]
  rng = np.random.default_rng(0)
  samples = {k: v * rng.normal(1, 0.01, 200) for k, v in LAW.items()}
  [found] = leverage.efficiency_leverage(LAW, family(losses), samples)
  assert found.leverage.lo < found.leverage.value < found.leverage.hi


def test_needs_one_row_an_exit():
  table = family([3.0, 2.5])
  with pytest.raises(errors.UserError, match='1 rows and 2 exits'):
    leverage.efficiency_leverage(LAW, table.take(np.array([0])))
  columns = {k: v for k, v in table.columns.items() if k != 'flops_per_token'}
  with pytest.raises(errors.UserError, match='needs columns flops_per_token'):
    leverage.efficiency_leverage(LAW, tables.Table(columns, table.run))


def dense_run(run, flops, log_loss, params=64.0, arm='grid', exits=1, exit_=1):
  return {
    'run': run, 'arm': arm, 'status': 'finished', 'budget': flops,
    'flops': flops, 'exits': exits, 'exit': exit_, 'width': 8, 'heads': 1,
    'params': params, 'params_embedding': 10.0, 'loss': np.exp(log_loss),
  }  # fmt: skip


def test_measured_reads_the_compute_off_dense_runs():
  rows = [
    dense_run('low', 1e6, 2.0),
    dense_run('high', 1e8, 1.0, arm='seed'),
    dense_run('twin', 1e8, 1.2, params=32.0, arm='twin'),
    # Half of the way down from 1e6 to 1e8 costs 1e7; the twin has passed 1.5.
    dense_run('g2', 1e8, 1.5, exits=2, exit_=2),
    dense_run('g2', 1e8, 1.5, params=32.0, exits=2, exit_=1),
    dense_run('better', 1e8, 0.9, exits=2, exit_=2),  # Than any dense run.
    dense_run('cheap', 1e7, 1.3, params=32.0, exits=2, exit_=1),
  ]
  found = {(r.run, r.exit): r for r in leverage.measured(rows)}
  # `cheap` cost less than its twin, which therefore says nothing of it.
  assert set(found) == {('g2', 1), ('g2', 2)}
  last, first = found['g2', 2], found['g2', 1]
  assert last.share == pytest.approx(0.1) and not last.bound
  assert first.share == pytest.approx(1.0) and first.bound


def test_of_rows_has_an_interval_where_there_are_samples(rows):
  rows = [{**row, 'width': 8, 'heads': 1} for row in rows]
  samples = {name: np.linspace(0.9, 1.1, 9) * v for name, v in LAW.items()}
  record = fit_record.FitRecord(form='chinchilla', params=LAW)
  law = fit_record.Law(forms.get('chinchilla'), record, samples)
  [found] = leverage.of_rows(law, rows)
  assert found.run == 'a'
  assert found.leverage.lo < found.leverage.value < found.leverage.hi
  [bare] = leverage.of_rows(dataclasses.replace(law, samples=None), rows)
  assert bare.leverage.lo is None
  assert bare.leverage.value == found.leverage.value
  span = fit_record.Span(
    columns=('N', 'D'),
    logs=(True, True),
    centre=np.zeros(2),
    scale=np.ones(2),
    missing=np.array([[1.0, -1.0]]) / np.sqrt(2),
    room=1e-3,
    confounded=(),
  )
  for of_few in ({'span': span}, {'resamples': 9, 'resamples_failed': 5}):
    unsure = dataclasses.replace(
      law, record=dataclasses.replace(record, **of_few)
    )
    [none] = leverage.of_rows(unsure, rows)
    assert none.leverage.lo is None and none.leverage.hi is None
