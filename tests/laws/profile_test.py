import numpy as np
import pytest
from scipy import stats

from familial.laws import estimation
from familial.laws import forms
from familial.laws import profile as profiles

TOTAL = forms.get('familial_total')


def profiled(table, name='gamma', **options):
  fit = estimation.fit(TOTAL, table, starts=32, **options)
  return fit, profiles.profile(TOTAL, table, fit, name)[0]


def test_near_the_normal_interval_and_holds_the_null(make, truth):
  fit, found = profiled(make(noise=0.01))
  t = stats.t.ppf(0.975, fit.degrees)
  assert fit.degrees == 30
  assert found.cutoff == pytest.approx(t**2)
  half = t * fit.sd['gamma']
  assert found.hi - found.lo == pytest.approx(2 * half, rel=0.5)
  assert found.lo < truth['gamma'] < found.hi
  assert found.lo < fit.params['gamma'] < found.hi
  assert 0.0 in found.values
  assert (np.diff(found.values) > 0).all()
  assert found.deviance[found.values == fit.params['gamma']] == 0
  inside = (found.values > found.lo) & (found.values < found.hi)
  assert (found.deviance[inside] <= found.cutoff).all()
  assert found.p_value < 1e-3  # gamma is 0.033 +- 0.004
  assert found.flags == ()


def test_with_least_squares_it_is_the_square_of_students_t(make):
  # Near the optimum, where the law is as good as linear.
  fit, found = profiled(make(noise=0.001), delta=10.0)
  t = (found.values - fit.params['gamma']) / fit.sd['gamma']
  near = (np.abs(t) < 1) & (t != 0)
  assert near.sum() > 2
  np.testing.assert_allclose(found.deviance[near] / t[near] ** 2, 1, rtol=0.1)


def test_without_an_effect_the_null_is_inside(make):
  _, found = profiled(make(noise=0.01, params={'gamma': 0.0}))
  assert found.lo < 0 < found.hi
  assert found.p_value > 0.05


def test_flat_profile_has_no_ends(make):
  _, found = profiled(make(noise=0.01, G=np.full(36, 2.0)))
  assert (found.lo, found.hi) == (None, None)
  assert found.flags == ('the profile of gamma is flat',)
  assert found.p_value == pytest.approx(1.0)


def test_any_parameter_in_its_own_units(make):
  fit, found = profiled(make(noise=0.003), 'alpha')
  assert found.lo < fit.params['alpha'] < found.hi
  assert (found.null, found.p_value) == (None, None)
  found, _ = profiles.profile(TOTAL, make(noise=0.003), fit, 'A')
  assert 0 < found.lo < fit.params['A'] < found.hi


def test_with_least_squares_the_inflation_is_the_residual_variance(make):
  fit = estimation.fit(TOTAL, make(noise=0.01), starts=32, delta=10.0)
  variance = 2 * fit.objective / fit.degrees
  ratio = fit.inflation[TOTAL.names.index('gamma')] / variance
  assert 0.5 < ratio < 2
