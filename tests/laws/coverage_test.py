"""Do 95 % bootstrap intervals hold the truth in 95 % of studies?"""

import numpy as np
import pytest

from familial.laws import bootstrap as bootstraps
from familial.laws import forms
from familial.laws import levenberg_marquardt
from familial.laws import table as tables
from tests.laws.estimation_test import random_law

LAWS, ROWS, RESAMPLES, NOISE, DELTA = 1000, 200, 200, 0.01, 1e-3


def design(rng):
  """200 runs of decorrelated sizes, tokens, shapes and exits."""
  n, d = np.exp(
    rng.uniform(np.log([1e6, 1e8]), np.log([1e9, 1e11]), (ROWS, 2))
  ).T
  width, depth = np.exp(rng.uniform([4, 1], [8, 4], (ROWS, 2))).T
  return {
    'N': n,
    'D': d,
    'C': 6 * n * d,
    'G': rng.choice([1.0, 2.0, 4.0, 8.0], ROWS),
    'upstream': rng.integers(0, 4, ROWS) * 1.0,
    'downstream': rng.integers(0, 4, ROWS) * 1.0,
    'width': width,
    'depth': depth,
  }


@pytest.mark.slow
@pytest.mark.parametrize('name', [n for n in forms.FORMS if n != 'dense_null'])
def test_intervals_cover(name):
  form, rng = forms.get(name), np.random.default_rng(3)
  columns = design(rng)
  laws = [random_law(form, rng, columns) for _ in range(LAWS)]
  truth = np.stack([form.theta(law) for law in laws])
  target = levenberg_marquardt.predict(form, columns, truth)
  target = target + NOISE * rng.standard_normal(target.shape)
  table = tables.Table(
    {**columns, 'loss': np.ones(ROWS)}, np.arange(ROWS).astype(str)
  )
  options = {'first_delta': 0.3 * NOISE, 'damping': 1e-3}
  free = np.ones(len(form.names), bool)
  # From the truth: that many starts find the optimum is another test's.
  every = levenberg_marquardt.Problem(
    form, columns, target, np.ones_like(target), DELTA, 1.0, free
  )
  points = levenberg_marquardt.solve(every, truth, np.arange(LAWS), **options)
  covered, failed = [], 0
  for law in range(LAWS):
    weights = bootstraps.cluster_weights(table, RESAMPLES, rng)
    problem = levenberg_marquardt.Problem(
      form, columns, target[law], weights, DELTA, 1.0, free
    )
    ends = levenberg_marquardt.solve(
      problem, np.tile(points.theta[law], (RESAMPLES, 1)),
      np.arange(RESAMPLES), **options,
    )  # fmt: skip
    failed += int((~ends.converged).sum())
    lo, hi = np.quantile(ends.theta[ends.converged], [0.025, 0.975], axis=0)
    covered.append((lo <= truth[law]) & (truth[law] <= hi))
  rates = dict(zip(form.names, np.mean(covered, axis=0), strict=True))
  pooled = float(np.mean(covered))
  print(
    f'\n{name}: {pooled:.3f} pooled over {LAWS} laws, {failed} of '
    f'{LAWS * RESAMPLES} resamples failed;',
    ', '.join(f'{n} {rate:.3f}' for n, rate in rates.items()),
  )
  assert 0.93 <= pooled <= 0.97
