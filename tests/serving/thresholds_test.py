import dataclasses
import types

import numpy as np
import pytest

from familial.serving import thresholds

G, W, L = 3, 5, 7
LAYERS = (2, 3, 8)
KIND = 'max_prob'


@pytest.fixture
def readings():
  rng = np.random.default_rng(0)
  counted = rng.random((W, L)) < 0.8
  counted[:, 2] = True
  return thresholds.Readings(
    exits=(1, 2, 4),
    layers=LAYERS,
    nats_GxWxL=rng.exponential(size=(G, W, L)).astype(np.float32),
    correct_GxWxL=rng.random((G, W, L)) < 0.5,
    confidences={KIND: rng.random((G, W, L)).astype(np.float32)},
    counted_WxL=counted,
    documents_WxL=np.cumsum(rng.random((W, L)) < 0.2, axis=1),
  )


def plain(nats_GxWxL, confidence_GxWxL):
  """Readings of two exits, of windows that are one document each."""
  return thresholds.Readings(
    exits=(1, 2),
    layers=(1, 2),
    nats_GxWxL=nats_GxWxL,
    correct_GxWxL=np.zeros(nats_GxWxL.shape, bool),
    confidences={KIND: confidence_GxWxL},
    counted_WxL=np.ones(nats_GxWxL.shape[1:], bool),
    documents_WxL=np.zeros(nats_GxWxL.shape[1:], int),
  )


def brute_force(readings, threshold):
  """Shares, loss, layers, deferred layers, position by position."""
  leaves, nats = {}, []
  for w in range(W):
    for p in range(L):
      if not readings.counted_WxL[w, p]:
        continue
      for g in range(G):
        if readings.confidences[KIND][g, w, p] >= threshold or g == G - 1:
          leaves[w, p] = g
          nats.append(float(readings.nats_GxWxL[g, w, p]))
          break
  deferred = [
    max(
      LAYERS[leaves[w, q]]
      for q in range(p, L)
      if (w, q) in leaves
      and readings.documents_WxL[w, q] == readings.documents_WxL[w, p]
    )
    for w, p in leaves
  ]
  chosen = list(leaves.values())
  return (
    [chosen.count(g) / len(chosen) for g in range(G)],
    np.mean(nats),
    np.mean([LAYERS[g] for g in chosen]),
    np.mean(deferred),
  )


@pytest.mark.parametrize('threshold', [0.0, 0.2, 0.5, 0.9, 1.1])
def test_outcomes_are_those_of_a_loop_over_positions(readings, threshold):
  found = thresholds.at(readings, KIND, threshold)
  for value, expected in zip(
    (found.shares, found.loss, found.layers, found.layers_deferred),
    brute_force(readings, threshold),
    strict=True,
  ):
    np.testing.assert_allclose(value, expected)


def test_the_ends_of_a_curve_are_the_first_and_the_last_exit(readings):
  first, *_, last = thresholds.curve(readings, KIND)
  assert first.threshold == 0 and last.threshold > 1
  assert first.shares == (1, 0, 0) and last.shares == (0, 0, 1)
  assert (last.increase, last.increase_low, last.increase_high) == (0, 0, 0)
  # Not even a probability that rounds to 1 reaches the last threshold.
  readings.confidences[KIND][:] = 1.0
  assert thresholds.curve(readings, KIND)[-1].shares == (0, 0, 1)
  assert thresholds.at(readings, KIND, 1.0).shares == (1, 0, 0)


def test_along_a_curve_tokens_go_deeper_by_even_steps():
  rng = np.random.default_rng(1)
  shape = (2, 40, 50)
  # Bunched up, so that even thresholds would not be even steps.
  sure = rng.random(shape).astype(np.float32) ** 8
  outcomes = thresholds.curve(plain(rng.random(shape), sure), KIND)
  assert len(outcomes) == 101
  steps = -np.diff([outcome.shares[0] for outcome in outcomes])
  assert steps.min() >= 0
  assert steps.max() < 0.011
  for key in ('threshold', 'layers', 'layers_deferred'):
    assert np.diff([getattr(o, key) for o in outcomes]).min() >= 0
  deep = [outcome.layers_deferred - outcome.layers for outcome in outcomes]
  assert min(deep) >= 0


def test_no_exit_is_better_than_the_oracles(readings):
  found = thresholds.oracle(readings)
  best = readings.nats_GxWxL.min(axis=0)[readings.counted_WxL]
  np.testing.assert_allclose(found.loss, best.mean(), rtol=1e-6)
  assert found.threshold is None
  assert found.loss < min(o.loss for o in thresholds.curve(readings, KIND))


def test_the_interval_is_of_differences_between_whole_windows(readings):
  found = thresholds.at(readings, KIND, 0.5)
  middle = (found.increase_low + found.increase_high) / 2
  np.testing.assert_allclose(middle, found.increase)
  # Windows twice over: what is alike within one tells nothing more.
  twice = dataclasses.replace(
    readings,
    nats_GxWxL=np.tile(readings.nats_GxWxL, 2),
    confidences={KIND: np.tile(readings.confidences[KIND], 2)},
    counted_WxL=np.tile(readings.counted_WxL, 2),
    documents_WxL=np.concatenate(
      [readings.documents_WxL, readings.documents_WxL + L], axis=1
    ),
  )
  again = thresholds.at(twice, KIND, 0.5)
  np.testing.assert_allclose(again.increase_low, found.increase_low)
  # Noise that all exits share is not in it.
  noise = np.random.default_rng(2).exponential(50, size=(1, W, 1))
  noisy = dataclasses.replace(readings, nats_GxWxL=readings.nats_GxWxL + noise)
  wide = thresholds.at(noisy, KIND, 0.5)
  nats = (wide.increase_high - wide.increase_low) * wide.loss
  assert nats < 3 * (found.increase_high - found.increase_low) * found.loss


def test_the_interval_has_its_coverage():
  rng = np.random.default_rng(3)
  held, runs, windows = 0, 400, 60
  for _ in range(runs):
    shared = rng.exponential(size=(1, windows, 1))
    worse = rng.normal(0.3, 0.3, size=(windows, 1)) * np.ones((windows, 8))
    deep = shared + rng.exponential(size=(1, windows, 8))
    nats = np.concatenate([deep + worse, deep])
    readings = plain(nats, np.ones(nats.shape, np.float32))
    found = thresholds.at(readings, KIND, 0.5)
    held += found.increase_low <= 0.3 / 2 <= found.increase_high
  assert 0.91 < held / runs < 0.98


def test_the_lowest_threshold_that_is_good_enough_is_chosen(readings):
  outcomes = thresholds.curve(readings, KIND)
  for most in (0.0, 0.05, 10.0):
    found = thresholds.threshold_for(outcomes, most)
    assert found.increase <= most
    below = [o for o in outcomes if o.threshold < found.threshold]
    assert all(o.increase > most for o in below)
  assert thresholds.threshold_for(outcomes, 10.0).threshold == 0


def test_calibration_is_its_definition():
  confidence = np.array([0.0, 0.05, 0.5, 0.5, 0.52, 1.0], np.float32)
  correct = np.array([False, True, True, False, True, True])
  bins = thresholds.reliability(confidence, correct)
  assert len(bins) == 15
  assert [b.tokens for b in bins if b.tokens] == [2, 3, 1]
  filled = [bins[0], bins[7], bins[14]]
  np.testing.assert_allclose([b.low for b in filled], [0, 7 / 15, 14 / 15])
  np.testing.assert_allclose([b.high for b in filled], [1 / 15, 8 / 15, 1])
  np.testing.assert_allclose(
    [b.confidence for b in filled], [0.025, 1.52 / 3, 1], rtol=1e-6
  )
  np.testing.assert_allclose([b.accuracy for b in filled], [0.5, 2 / 3, 1])
  assert bins[1].confidence is None and bins[1].accuracy is None
  error = (2 * 0.475 + 3 * (2 / 3 - 1.52 / 3) + 0) / 6
  np.testing.assert_allclose(
    thresholds.calibration_error(bins), error, rtol=1e-6
  )


def test_a_bisection_may_end_at_the_threshold_that_nothing_reaches():
  def outcome_at(threshold):
    increase = float(np.float32(1) >= np.float32(threshold))
    return types.SimpleNamespace(increase=increase, threshold=threshold)

  found = thresholds.bisect(outcome_at, 0.01)
  assert found.increase == 0 and found.threshold == thresholds.NEVER
