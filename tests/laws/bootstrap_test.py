import dataclasses

import numpy as np
import pytest

from familial.laws import bootstrap as bootstraps
from familial.laws import estimation
from familial.laws import forms
from familial.laws import levenberg_marquardt
from familial.laws import multistart as starts_lib


@pytest.fixture
def total():
  return forms.get('familial_total')


def test_intervals_agree_with_the_asymptotic_deviation(make, total, truth):
  table = make(noise=0.01)
  fit = estimation.fit(total, table, starts=32)
  found = bootstraps.bootstrap(fit, table, resamples=100)
  spread = found.intervals['gamma']
  assert 0.5 < spread.sd / fit.sd['gamma'] < 2
  assert spread.lo < truth['gamma'] < spread.hi
  assert (found.unit, found.flags) == ('row', ())
  assert found.failed < 4
  assert len(found.samples['E']) == 100 - found.failed
  again = bootstraps.bootstrap(fit, table, resamples=100)
  assert again.intervals == found.intervals
  other = bootstraps.bootstrap(fit, table, resamples=100, seed=1)
  assert other.intervals != found.intervals


def test_whole_runs_are_drawn(make):
  table = make(noise=0.01)
  families = dataclasses.replace(
    table, run=np.repeat(np.arange(12), 3).astype(str)
  )
  assert families.unit == 'run'
  weights = bootstraps.cluster_weights(families, 50, 0).reshape(50, 12, 3)
  assert (weights == weights[:, :, :1]).all()
  assert (weights[:, :, 0].sum(1) == 12).all()
  assert weights.std() > 0.5


def test_each_resample_is_as_good_as_many_starts_make_it(make, total):
  table = make(noise=0.02)
  fit = estimation.fit(total, table, starts=32)
  weights = bootstraps.cluster_weights(table, 6, 0)
  problem = fit.problem(table, weights)
  ends = bootstraps.refit(fit, problem, lambda done: None)
  assert ends.converged.all()
  starts = starts_lib.draw(total, 48, 1).block(0, 48)
  full = levenberg_marquardt.solve(
    problem, np.tile(starts, (6, 1)), np.repeat(np.arange(6), 48)
  )
  best = full.objective.reshape(6, 48).min(1)
  objective = problem.objective(ends.theta, np.arange(6))
  np.testing.assert_allclose(objective, best, rtol=1e-6)


def test_resamples_that_cannot_tell_are_failures(make, total):
  """One run of G > 1: most of a third of the resamples miss it."""
  table = make(noise=0.01, G=np.where(np.arange(36) == 7, 2.0, 1.0))
  fit = estimation.fit(total, table, starts=32)
  found = bootstraps.bootstrap(fit, table, resamples=200)
  assert 40 < found.failed < 110  # (1 - 1/36)^36 = 0.363
  assert found.flags == (f'{found.failed} of 200 resamples failed',)
  assert len(found.samples['gamma']) == 200 - found.failed
