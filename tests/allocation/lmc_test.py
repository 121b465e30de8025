import jax
import numpy as np
import pytest

from familial.allocation import coregionalisation
from familial.allocation import lmc
from familial.allocation import surrogate
from tests.allocation import dense

CURVES, POINTS = 4, 10


def observed(draws=2, curves=CURVES, points=POINTS, seed=0):
  """Noisy power laws of compute, of sizes that differ."""
  rng = np.random.default_rng(seed)
  log_c = np.linspace(30.0, 35.0, points)
  size = rng.uniform(0.5, 2.0, (draws, curves, 1))
  loss = 2 + 1 / size + size * np.exp(-0.4 * (log_c - 30.0))
  loss = loss * np.exp(0.003 * rng.standard_normal(loss.shape))
  return surrogate.Observed(
    np.tile(log_c, (draws, 1)),
    loss,
    np.ones((draws, curves), bool),
    np.zeros((draws, curves, 0)),
    np.full((draws, curves), 36.0),
  )


def keys(draws):
  return jax.random.split(jax.random.key(0), draws)


@pytest.fixture
def point():
  rng = np.random.default_rng(0)
  active = np.ones(CURVES, bool)
  with jax.enable_x64(True):
    x = rng.standard_normal(6 * CURVES + 2)
    yield (
      x,
      lmc.covariance(x, POINTS, active),
      rng.normal(size=(POINTS, CURVES)),
    )


def test_objective_and_gradient_are_those_of_the_full_covariance(point):
  x, _, y = point
  active = np.ones(CURVES, bool)

  def plain(x):
    made = lmc.covariance(x, POINTS, active)
    return dense.likelihood(made, y) + 0.5 * x @ x

  value, gradient = jax.jit(lmc.objective)(x, y, active)
  theirs, slope = jax.jit(jax.value_and_grad(plain))(x)
  np.testing.assert_allclose(value, theirs, rtol=1e-9)
  np.testing.assert_allclose(
    gradient, slope, rtol=1e-6, atol=1e-9 * np.abs(slope).max()
  )


def test_posterior_is_that_of_the_full_covariance(point):
  _, covariance, y = point
  rng = np.random.default_rng(1)
  cross, variance = rng.uniform(size=(CURVES, POINTS)), np.full(CURVES, 2.0)
  ours = jax.jit(coregionalisation.posterior)(covariance, y, cross, variance)
  theirs = dense.posterior(covariance, y, cross, variance)
  np.testing.assert_allclose(ours, theirs, rtol=1e-8)


def test_a_curve_that_is_not_active_is_not_there():
  seen = observed(draws=1)
  seen.active_SxM[0, 1] = False
  seen.loss_SxMxT[0, 1] = np.nan
  fewer = seen._replace(
    **{
      name: getattr(seen, name)[:, [0, 2, 3]]
      for name in ('loss_SxMxT', 'active_SxM', 'features_SxMxF', 'log_end_SxM')
    }
  )
  x, rates = np.random.default_rng(0).standard_normal((2, 3, CURVES)), [0.3, -1]
  full = np.append(np.where(seen.active_SxM[0], x, 0.0), rates)
  part = np.append(x[..., [0, 2, 3]], rates)
  values = []
  with jax.enable_x64(True):
    for point, of in ((full, seen), (part, fewer)):
      made = lmc.covariance(point, POINTS, of.active_SxM[0])
      y = lmc.standardised(of, 0).y_TxM
      values.append(jax.jit(dense.likelihood)(made, y))
  np.testing.assert_allclose(*values, rtol=1e-10)


@pytest.mark.slow
def test_a_curve_that_is_not_active_says_nothing():
  seen = observed(draws=1)
  seen.active_SxM[0, 1] = False
  before = lmc.predict(seen, keys(1))
  seen.loss_SxMxT[0, 1] = np.nan
  seen.log_end_SxM[0, 1] = np.nan
  after = lmc.predict(seen, keys(1))
  for a, b in zip(before, after, strict=True):
    np.testing.assert_array_equal(a[seen.active_SxM], b[seen.active_SxM])


@pytest.mark.slow
def test_allocations_do_not_know_of_one_another_and_keys_decide():
  seen = observed()
  together = lmc.predict(seen, keys(2))
  last = surrogate.Observed(*(column[1:] for column in seen))
  alone = lmc.predict(last, keys(2)[1:])
  for a, b in zip(together, alone, strict=True):
    np.testing.assert_array_equal(a[1:], b)


@pytest.mark.slow
def test_the_curves_go_on_as_they_would():
  seen = observed(draws=1)
  found = lmc.predict(seen, keys(1))
  rng = np.random.default_rng(0)
  size = rng.uniform(0.5, 2.0, (1, CURVES))
  truth = 2 + 1 / size + size * np.exp(-0.4 * 6.0)
  last = seen.loss_SxMxT[..., -1]
  assert (np.abs(found.mean - truth) < 0.5 * np.abs(last - truth)).all()
  assert (found.lo < found.mean).all() and (found.mean < found.hi).all()
  assert ((found.lo < truth) & (truth < found.hi)).mean() >= 0.75


@pytest.mark.slow
def test_flat_curves():
  seen = observed(draws=1)
  seen.loss_SxMxT[:] = 3.0
  found = lmc.predict(seen, keys(1))
  np.testing.assert_allclose(found.mean, 3.0, rtol=1e-4)
