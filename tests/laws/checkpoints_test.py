"""Tables of evaluations during few runs: clustered, or flagged where they are not."""

import numpy as np
import pytest

from familial.laws import estimation
from familial.laws import forms
from familial.laws import inference
from familial.laws import table as tables

LAW = {'E': 1.69, 'A': 406.4, 'B': 410.7, 'alpha': 0.34, 'beta': 0.28}


def checkpoints(rng, label=None, runs=8, points=12, spread=0.004):
  """Rows of a few runs, each off the law by a drift of its own."""
  rows = []
  for run in range(runs):
    n = float(np.exp(rng.uniform(np.log(2e7), np.log(2e9))))
    d = np.geomspace(2 * n, 20 * n * rng.uniform(0.5, 2), points)
    drift = spread * rng.standard_normal() / 2
    drift = drift + np.cumsum(spread / 4 * rng.standard_normal(points))
    loss = forms.get('chinchilla').predict(
      LAW, {'N': np.full(points, n), 'D': d}
    )
    loss = loss * np.exp(drift + 0.001 * rng.standard_normal(points))
    for tokens, value in zip(d, loss, strict=True):
      name = {} if label is None else {label: f'm{run}'}
      row = {'params': n, 'tokens': float(tokens), 'loss': float(value)}
      rows.append({**row, **name})
  return rows


def read(rows, **options):
  return tables.from_records(rows, {}, 'a.csv', '', ['N', 'D'], **options)


def is_flagged(table):
  fit = estimation.fit(forms.get('chinchilla'), table, starts=64)
  return any('alike residuals' in flag for flag in fit.flags)


@pytest.mark.parametrize('label', ['Name', 'run name', 'run-id', 'ID'])
def test_a_column_that_names_runs_makes_their_rows_belong_together(label):
  table = read(checkpoints(np.random.default_rng(0), label))
  assert table.unit == 'run' and table.clusters.max() == 7
  assert table.mapping['run'] == label
  assert not is_flagged(table)
  apart = tables.from_records(
    checkpoints(np.random.default_rng(0), label),
    {'run': ''},
    'a.csv',
    '',
    ['N'],
  )
  assert apart.unit == 'row'


@pytest.mark.parametrize('label', ['model', 'config', None])
def test_rows_of_one_run_that_no_column_names_are_flagged(label):
  """And those of separate runs are not, though a column names their sizes."""
  flagged, false = 0, 0
  for seed in range(10):
    rng = np.random.default_rng(seed)
    table = read(checkpoints(rng, label))
    assert table.unit == 'row'
    flagged += is_flagged(table)
    false += is_flagged(read(checkpoints(rng, label, spread=0.0)))
  assert flagged == 10 and false <= 1


@pytest.mark.slow
def test_intervals_of_checkpoints_hold_the_truth_or_are_flagged():
  held, flagged = [], []
  for seed in range(400):
    rng = np.random.default_rng([7, seed])
    table = read(checkpoints(rng, 'model', runs=int(rng.integers(8, 20))))
    options = inference.Options(starts=64, resamples=100, profiles='none')
    result = inference.fit('chinchilla', table, options)
    flagged.append(any('alike residuals' in flag for flag in result.flags))
    held.append(
      [
        result.interval(name).lo <= value <= result.interval(name).hi
        for name, value in LAW.items()
      ]
    )
  print(f'\nflagged {np.mean(flagged):.3f}, intervals hold {np.mean(held):.3f}')
  assert np.mean(flagged) >= 0.95
