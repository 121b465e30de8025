"""Intervals that reach as far as past errors did."""

import numpy as np

from familial.allocation import surrogate


def draw(rng, count, curves, factor):
  """Predictions whose errors are `factor` times what their intervals say."""
  mean = rng.normal(size=(count, curves))
  half = rng.uniform(0.5, 2, size=(count, curves))
  true = mean + factor * half / 1.645 * rng.standard_normal((count, curves))
  return surrogate.Prediction(mean, mean - half, mean + half), true


def test_intervals_that_are_too_narrow_cover_as_they_say():
  rng = np.random.default_rng(0)
  told, true = draw(rng, 4000, 20, 3.0)
  trial, past = draw(rng, 4000, 20, 3.0)
  raw = (told.lo <= true) & (true <= told.hi)
  assert raw.mean() < 0.5
  found = surrogate.calibrated(told, trial, past, np.ones((4000, 20), bool))
  held = (found.lo <= true) & (true <= found.hi)
  # (ceil(21 * 0.9)) / 21, exactly, if errors are alike now and then.
  assert abs(held.mean() - 19 / 21) < 0.005
  np.testing.assert_array_equal(found.mean, told.mean)


def test_intervals_are_never_narrowed():
  rng = np.random.default_rng(0)
  told, _ = draw(rng, 50, 5, 1.0)
  trial, past = draw(rng, 50, 5, 0.01)
  found = surrogate.calibrated(told, trial, past, np.ones((50, 5), bool))
  np.testing.assert_allclose(found.hi, told.hi)
  np.testing.assert_allclose(found.lo, told.lo)


def test_curves_that_are_not_predicted_say_nothing():
  rng = np.random.default_rng(0)
  told, _ = draw(rng, 2, 4, 1.0)
  trial, past = draw(rng, 2, 4, 1.0)
  active = np.array([[True, True, False, True], [False] * 4])
  past[~active] = 1e9
  found = surrogate.calibrated(told, trial, past, active)
  assert (found.hi[0] < 1e3).all()
  np.testing.assert_allclose(found.hi[1], told.hi[1])
