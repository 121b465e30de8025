"""The ensemble extrapolates curves of its families, each allocation alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.allocation import ensemble
from familial.allocation import surrogate

POINTS = 20
FAMILIES = {  # in C of the last point, each coefficient [M]
  'power_law': lambda a, b, c, u: a + b * np.exp(-c * u),
  'exponential': lambda a, b, c, u: a + b * np.exp(-5 * c * np.expm1(u)),
  'mmf': lambda a, b, c, u: a + 11 * b / (1 + 10 * np.exp(c * u)),
}


def observed(curve, ends=4.0, models=4):
  """One allocation of curves of u = ln(C / C_last), asked at ends x C_last."""
  u = np.linspace(-5, 0, POINTS)
  return surrogate.Observed(
    log_c_SxT=40 + u[None],
    loss_SxMxT=curve(u)[None],
    active_SxM=np.ones((1, models), bool),
    features_SxMxF=np.zeros((1, models, 0)),
    log_end_SxM=np.full((1, models), 40 + np.log(ends)),
  )


def members(family):
  """Four curves of a family, as a function of u."""
  a, b = (
    np.array([[2.0], [2.3], [2.6], [3.0]]),
    np.array([[0.9, 0.7, 0.5, 0.3]]),
  )
  c = np.array([[0.25], [0.3], [0.35], [0.4]])
  return lambda u: FAMILIES[family](a, b.T, c, np.asarray(u))


def keys(n=1, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def hard():
  """Two constant curves, one that drops, one that is not active."""
  curves = np.full((4, POINTS), 3.0)
  curves[1] = 2.5
  curves[2] = np.where(np.arange(POINTS) < POINTS - 1, 11.0, 4.0)
  curves[3] = np.nan
  given = observed(lambda u: curves)
  active = np.array([[True, True, True, False]])
  return given._replace(active_SxM=active)


@pytest.mark.parametrize(
  'family',
  [
    pytest.param(f, marks=() if f == 'power_law' else pytest.mark.slow)
    for f in ensemble.FAMILIES
  ],
)
def test_recovers_members_of_its_family(family):
  curve = members(family)
  found = ensemble.predictor(family)(observed(curve), keys())
  truth = curve([np.log(4)]).T
  np.testing.assert_allclose(found.mean, truth, rtol=0.01)
  for values in found:
    assert values.shape == (1, 4) and values.dtype == np.float64
  # The last value would not do.
  assert (np.abs(curve([0.0]).T / truth - 1) > 0.02).all()


def test_allocations_are_independent_and_repeat():
  predict = ensemble.predictor('power_law')
  given, other = observed(members('power_law')), hard()
  alone = predict(given, keys())
  again = predict(given, keys())
  both = predict(
    surrogate.Observed(*map(np.concatenate, zip(other, given, strict=True))),
    jnp.concatenate([keys(seed=1), keys()]),
  )
  differs = predict(given, keys(seed=2))
  for one, same, two in zip(alone, again, both, strict=True):
    np.testing.assert_array_equal(one, same)
    np.testing.assert_allclose(one[0], two[1], rtol=1e-6)
  assert (alone.mean != differs.mean).all()
  # Curves that are constant, drop or are not active give numbers too.
  assert np.isfinite(np.array(both)[:, 0, :3]).all()
  np.testing.assert_allclose(both.mean[0, :2], [3.0, 2.5], rtol=0.01)


def test_networks_learn_from_active_curves_alone():
  predict = ensemble.predictor('power_law')
  given = observed(members('power_law'))
  given.active_SxM[0, 1] = False
  without = predict(given, keys())
  given.loss_SxMxT[0, 1] = np.nan
  given.log_end_SxM[0, 1] = np.inf
  found = predict(given, keys())
  everyone = predict(given._replace(active_SxM=np.ones((1, 4), bool)), keys())
  for a, b in zip(found, without, strict=True):
    np.testing.assert_array_equal(a[0, [0, 2, 3]], b[0, [0, 2, 3]])
  assert np.isnan(everyone.mean).any()  # so that the mask did something
  given.active_SxM[0, 1:] = False
  alone = predict(given, keys()).mean[0, 0]
  expected = members('power_law')(np.log(4))[0]
  np.testing.assert_allclose(alone, expected, rtol=0.01)


def test_intervals_widen_with_distance_and_cover():
  predict = ensemble.predictor('power_law')
  rng = np.random.default_rng(0)
  curve = members('power_law')
  covered, widths = [], []
  for draw in range(3):
    noise = 1 + 0.005 * rng.standard_normal((4, POINTS))
    for ends in (1.0, 4.0, 32.0) if draw == 0 else (4.0,):
      found = predict(
        observed(lambda u, n=noise: curve(u) * n, ends), keys(seed=draw)
      )
      assert (found.lo <= found.mean).all() and (found.mean <= found.hi).all()
      widths.append(found.hi / found.lo)
      truth = curve([np.log(ends)]).T
      if ends == 4:
        covered.append((found.lo <= truth) & (truth <= found.hi))
  assert (widths[0] < widths[1]).all() and (widths[1] < widths[2]).all()
  assert np.mean(covered) >= 0.7
