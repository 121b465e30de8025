import math

import numpy as np
import pytest

from familial.laws import asymptotics


@pytest.fixture
def linear():
  """A linear model's Jacobian, its residuals, and the run of each row."""
  rng = np.random.default_rng(0)
  runs = np.repeat(np.arange(10), 4)
  jacobian = rng.standard_normal((10, 3))[runs]
  jacobian = (jacobian + 0.3 * rng.standard_normal((40, 3))) * [1.0, 30.0, 0.01]
  residual = 0.1 * rng.standard_normal(40) + 0.1 * rng.standard_normal(10)[runs]
  left = np.linalg.lstsq(jacobian, residual, rcond=None)[0]
  return jacobian, residual - jacobian @ left, runs


def covariance(jacobian, residual, runs, weight=None):
  weight = np.ones(len(runs)) if weight is None else weight
  return asymptotics.covariance(jacobian, residual, runs, math.inf, weight)


def test_least_squares_covariance_is_the_clustered_sandwich(linear):
  jacobian, residual, runs = linear
  inverse = np.linalg.inv(jacobian.T @ jacobian)
  scores = np.zeros((10, 3))
  np.add.at(scores, runs, jacobian * residual[:, None])
  expected = inverse @ scores.T @ scores @ inverse * 10 / 7
  alone = inverse @ (jacobian * residual[:, None] ** 2).T @ jacobian @ inverse
  assert (np.diag(expected) > np.diag(alone) * 40 / 37).all()
  found, _ = covariance(jacobian, residual, runs)
  np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_variances_are_not_below_those_of_independent_rows(linear):
  jacobian, residual, runs = linear
  # Within a run the scores cancel: runs alone would say there is no noise.
  apart = np.concatenate([jacobian, jacobian])
  residual = np.concatenate([residual, -residual])
  found, _ = covariance(apart, residual, np.concatenate([runs, runs]))
  rows, _ = covariance(apart, residual, np.arange(80))
  np.testing.assert_allclose(np.diag(found), np.diag(rows), rtol=1e-9)
  assert np.isfinite(np.diag(found)).all()


def test_covariance_follows_the_unit_of_a_coordinate(linear):
  jacobian, residual, runs = linear
  unit = np.array([2.0, 1e-3, 1e4])
  found, ratio = covariance(jacobian, residual, runs)
  scaled, same = covariance(jacobian * unit, residual, runs)
  np.testing.assert_allclose(scaled * np.outer(unit, unit), found, rtol=1e-9)
  np.testing.assert_allclose(same, ratio, rtol=1e-9)
  assert (
    np.linalg.eigvalsh(found / np.sqrt(np.outer(*2 * [np.diag(found)])))[0]
    > -1e-12
  )


@pytest.mark.parametrize('column', [np.zeros(40), None])
def test_what_rows_cannot_tell_has_infinite_variance(linear, column):
  jacobian, residual, runs = linear
  copy = jacobian[:, 0] if column is None else column
  lost = [0, 3] if column is None else [3]
  known = [i for i in range(4) if i not in lost]
  found, ratio = covariance(np.column_stack([jacobian, copy]), residual, runs)
  assert np.isinf(np.diag(found)[lost]).all() and np.isinf(ratio[lost]).all()
  assert np.isfinite(found[np.ix_(known, known)]).all()
  assert np.isnan(found[known][:, lost]).all()


def test_of_least_squares_the_criteria_are_those_of_normal_noise(linear):
  _, residual, _ = linear
  rows, square = len(residual), residual @ residual
  minus_log_likelihood = rows / 2 * (np.log(2 * np.pi * square / rows) + 1)
  aic, bic = asymptotics.criteria(square / 2, np.ones(rows), 3, 10.0, 1.0)
  # The noise's scale is a fourth parameter.
  assert aic == pytest.approx(2 * 4 + 2 * minus_log_likelihood)
  assert bic == pytest.approx(np.log(rows) * 4 + 2 * minus_log_likelihood)
