import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from familial.allocation import lbfgs

LIMITS = {
  'gradient_tolerance': 1e-7,
  'gain': 0.0,
  'patience': 5,
  'evaluations': 400,
}


def rosenbrock(x):
  return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


@functools.partial(jax.jit, static_argnums=0)
def compiled(function, x, limits):
  return lbfgs.minimise(jax.vmap(jax.value_and_grad(function)), x, **limits)


def minimise(function, x, **limits):
  with jax.enable_x64(True):
    found = compiled(function, jnp.asarray(x), {**LIMITS, **limits})
    return jax.tree.map(np.asarray, found)


def test_many_lanes_reach_what_scipy_reaches_in_as_many_evaluations():
  x = np.random.default_rng(0).uniform(-1.5, 1.5, (16, 4))
  found = minimise(rosenbrock, x)
  theirs = [
    optimize.minimize(
      optimize.rosen, one, jac=optimize.rosen_der, method='L-BFGS-B'
    )
    for one in x
  ]
  # The valley of four dimensions has two minima; which one is reached may differ.
  ends = np.array([one.fun for one in theirs])
  assert np.isin(found.value.round(4), ends.round(4)).all()
  assert (found.value < 1e-9).sum() >= 12
  slopes = np.abs([optimize.rosen_der(one) for one in found.x]).max(1)
  assert (slopes < 1e-6).all()
  assert found.evaluations.mean() < 2 * np.mean([one.nfev for one in theirs])


def test_badly_scaled_bowls():
  scales = np.logspace(0, 5, 12)
  found = minimise(
    lambda x: 0.5 * jnp.sum(scales * (x - 3.0) ** 2),
    np.zeros((3, 12)),
    evaluations=2000,
  )
  np.testing.assert_allclose(found.x, 3.0, atol=1e-5)


def test_no_number_is_a_step_too_long():
  # Neither below 0 nor beyond 2 is there a number; the minimum is at 1.
  def walled(x):
    return jnp.sum(x - jnp.log(x) + 0 * jnp.log(2 - x))

  x = np.array([[1e-3, 1.9], [0.5, 1e-6], [-1.0, 0.5]])
  found = minimise(walled, x)
  np.testing.assert_allclose(found.x[:2], 1.0, atol=1e-5)
  np.testing.assert_array_equal(found.x[2], x[2])
  assert found.value[2] == np.inf
  assert found.evaluations[2] == 1


def test_lanes_do_not_know_of_one_another():
  x = np.random.default_rng(1).uniform(-1.5, 1.5, (16, 4))
  together = minimise(rosenbrock, x)
  others = np.concatenate([x[:1], np.full((15, 4), np.nan)])
  alone = minimise(rosenbrock, others)
  np.testing.assert_array_equal(together.x[0], alone.x[0])
  assert together.evaluations[0] == alone.evaluations[0]


def test_evaluations_are_bounded_and_counted():
  x = np.full((16, 4), -1.2)
  few = minimise(rosenbrock, x, evaluations=10)
  assert (few.evaluations == 10).all()
  loose = minimise(rosenbrock, x, gain=1e9, patience=3)
  assert (loose.evaluations < 10).all()
