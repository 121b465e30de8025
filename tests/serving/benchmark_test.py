"""Tests of propagation, and of the benchmark of decoding."""

import types

import numpy as np
import pytest

from familial.data import batches
from familial.serving import benchmark
from familial.serving import evaluate
from familial.serving import propagation
from familial.serving import sampling
from familial.serving import thresholds
from tests.serving.families import Family


@pytest.fixture(scope='module')
def heldout(model, corpus):
  return batches.heldout(corpus, model.config.data, 500, 8)


@pytest.fixture(scope='module')
def readings(model, heldout):
  return evaluate.readings(model.params, model.config.model, heldout, (1, 2, 3))


def propagated(model, heldout, readings, threshold):
  return propagation.at(
    model.params, model.config.model, heldout, readings, 'max_prob', threshold
  )


@pytest.mark.parametrize(('threshold', 'place'), [(2.0, 2), (0.0, 0)])
def test_without_a_choice_propagation_is_an_exit(
  model, heldout, readings, threshold, place
):
  found = propagated(model, heldout, readings, threshold)
  nats = readings.nats_GxWxL[place][readings.counted_WxL]
  assert found.loss == pytest.approx(nats.mean(), rel=1e-6)
  assert found.shares[place] == 1


def test_propagation_equals_passes_that_are_told_who_left(
  model, heldout, readings
):
  found = propagated(model, heldout, readings, 0.4)
  made = Family()
  made.params, made.config = model.params, model.config.model
  nats, places = [], []
  for batch in heldout:
    for inputs, targets, weights in zip(
      batch['inputs_BxL'], batch['targets_BxL'], batch['weights_BxL'],
      strict=True,
    ):  # fmt: skip
      left = np.full(32, 2)
      for place in range(2):  # Who left before is known when an exit is read.
        logits = made.frozen(inputs, left)[place]
        sure = np.asarray(sampling.confidence(logits, 'max_prob')) >= 0.4
        left = np.where((left > place) & sure, place, left)
      logits = made.frozen(inputs, left)
      own = np.take_along_axis(logits, left[None, :, None], 0)[0]
      own = own - np.log(np.exp(own).sum(-1, keepdims=True))
      hit = np.take_along_axis(own, targets[:, None], 1)[:, 0]
      nats.append(-hit[weights > 0])
      places.append(left[weights > 0])
  assert found.loss == pytest.approx(np.concatenate(nats).mean(), rel=1e-5)
  shares = np.bincount(np.concatenate(places), minlength=3) / 500
  np.testing.assert_allclose(found.shares, shares, atol=1e-9)
  assert 0.02 < shares[0] < 0.98
  exact = thresholds.at(readings, 'max_prob', 0.4)
  assert abs(found.loss - exact.loss) > 1e-4


def test_a_bisection_may_end_at_the_threshold_that_nothing_reaches():
  def outcome_at(threshold):
    increase = float(np.float32(1) >= np.float32(threshold))
    return types.SimpleNamespace(increase=increase, threshold=threshold)

  found = thresholds.bisect(outcome_at, 0.01)
  assert found.increase == 0 and found.threshold == thresholds.NEVER


@pytest.mark.slow
def test_each_mode_is_measured(model, corpus):
  found = benchmark.measure(model, rows=(2,), corpus=corpus)
  assert [s.mode for s in found.speeds] == (
    ['exit'] * 3 + ['confidence'] * 2 + ['speculative'] * 2
  )
  for speed in found.speeds:
    assert speed.tokens == 2 * 16 and speed.seconds > 0
  for speed in found.speeds[3:5]:
    assert speed.loss_increase <= evaluate.LOSS_INCREASE
    assert sum(speed.shares) == pytest.approx(1)
    assert speed.layers <= 1
