"""What surrogates are shown, that predictions decide, and how they are calibrated."""

import numpy as np
import pytest

from familial.allocation import curves
from familial.allocation import halving
from familial.allocation import policies
from familial.allocation import replay
from familial.allocation import surrogate
from tests.allocation import replays


def random_curves(rng, count=6):
  found = []
  for i in range(count):
    flops = np.sort(np.exp(rng.uniform(30, 38, 12)))
    loss = 2 + 5 * np.exp(-0.2 * (np.log(flops) - 30)) + rng.normal(0, 0.05, 12)
    found.append(
      curves.Curve(f'{i}', flops, loss, {}, {'params': float(i + 1)})
    )
  return found


def cut(known):
  """The curves as far as the shortest."""
  end = min(curve.end for curve in known)
  return [curve.cut(end) for curve in known]


def survey(known, end_factor=8.0):
  spent = np.array([[curve.end for curve in known]])
  return halving.Survey(
    sources=[replay.KnownCurves(known)],
    alive_SxM=np.arange(len(known))[None],
    curves=[known],
    end_SxM=spent * end_factor,
    round=0,
  )


def test_surrogates_see_the_curves_and_nothing_else():
  rng = np.random.default_rng(0)
  for _ in range(50):
    known = cut(random_curves(rng))
    seen, _ = surrogate.observe(survey(known))
    assert seen.loss_SxMxT.shape == (1, 6, surrogate.POINTS)
    [active] = seen.active_SxM
    first = max(k.flops[0] for k, a in zip(known, active, strict=True) if a)
    np.testing.assert_allclose(
      np.exp(seen.log_c_SxT[0, [0, -1]]), [first, known[0].end], rtol=1e-9
    )
    for i in np.flatnonzero(active):
      lowest = np.minimum.accumulate(known[i].loss)
      shown = seen.loss_SxMxT[0, i]
      assert shown[-1] == pytest.approx(lowest[-1], rel=1e-12)
      assert lowest[-1] <= shown.min() and shown.max() <= lowest[0]
      assert (np.diff(shown) <= 0).all()


def test_the_past_is_of_the_same_curves_asked_as_far_ahead():
  known = cut(random_curves(np.random.default_rng(0)))
  for factor, most in ((1.5, 1.5), (1e9, np.inf)):
    now, before = surrogate.observe(survey(known, factor))
    start, stop = now.log_c_SxT[0, [0, -1]]
    first, end = before.log_c_SxT[0, [0, -1]]
    np.testing.assert_allclose(before.log_end_SxM, stop)
    assert first == start
    # No more of the curve is held back than is shown.
    share = min(np.log(most) / (stop - start), 1.0)
    assert (stop - end) / (end - start) == pytest.approx(share)
    for i in np.flatnonzero(now.active_SxM[0]):
      np.testing.assert_allclose(
        before.loss_SxMxT[0, i], known[i].at_log(before.log_c_SxT[0])
      )


def test_features_are_standardised_logs():
  known = random_curves(np.random.default_rng(0))
  features = surrogate.observe(survey(known))[0].features_SxMxF[0, :, 0]
  logs = np.log(np.arange(1.0, 7))
  np.testing.assert_allclose(features, (logs - logs.mean()) / logs.std())


def test_curves_that_ended_diverged_or_show_too_little_are_not_predicted():
  a, b = cut(random_curves(np.random.default_rng(1), 2))
  end, nothing = a.end, np.zeros(0)
  gone = curves.Curve('gone', nothing, nothing, {}, {'params': 7.0}, 5.0)
  short = curves.Curve(
    'short', np.array([0.9 * end, end]), np.array([3.0, 2.9])
  )
  asked = survey([a, b, gone, short])
  asked = asked._replace(end_SxM=np.where([[1, 0, 1, 1]], asked.end_SxM, end))
  now, _ = surrogate.observe(asked)
  assert now.active_SxM.tolist() == [[True, False, False, False]]
  # Nor do they stop the others.
  pool = [*random_curves(np.random.default_rng(3), 5), gone]
  for name in ('sh', 'sh_ensemble_power_law'):
    [found] = replays.allocate(name, [pool], 6e17)
    assert 5 not in found.rounds[0].kept and found.spent[5] == 5.0
    assert (found.rounds[0].predicted or [None] * 6)[5] is None


def test_a_surrogate_that_knows_the_future_is_the_oracle():
  rng = np.random.default_rng(2)
  flops = np.geomspace(1e13, 1e17, 40)
  pool = [
    curves.Curve(str(i), flops, np.sort(rng.uniform(2, 9, 40))[::-1])
    for i in range(10)
  ]

  def rank(survey, seed):
    future = policies.by_future_loss(survey, seed).score_SxM

    def predict(observed, keys):
      mean = np.concatenate([future, future])  # And of what is known by now.
      return halving.Prediction(mean, mean - 0.1, mean + 0.1)

    return surrogate.ranked_by(predict)(survey, seed)

  found = [
    [closed.kept for closed in replays.allocate(policy, [pool], 4e17)[0].rounds]
    for policy in (policies.SuccessiveHalving(rank), 'oracle', 'sh')
  ]
  assert found[0] == found[1] != found[2]


def test_candidates_without_a_prediction_rank_by_the_loss_seen():
  def flat(observed, keys):
    """Right of what is known by now, which comes second; else 3 nats."""
    mean = observed.loss_SxMxT[:, :, -1].copy()
    mean[: len(mean) // 2] = 3.0
    return halving.Prediction(mean, 0.9 * mean, 1.1 * mean)

  # The second ends within the first round: there is nothing to predict.
  flops = np.arange(1.0, 65.0)
  grid = [
    curves.Curve(name, flops[:points], np.full(points, level))
    for name, level, points in (('a', 3.0, 64), ('b', 2.0, 4), ('c', 5.0, 64))
  ]
  policy = policies.SuccessiveHalving(surrogate.ranked_by(flat))
  [found] = replays.allocate(policy, [grid], 60.0)
  assert found.rounds[0].score == (3.0, 2.0, 3.0)
  expected = pytest.approx((3.0, 2.7, 3.3))
  assert found.rounds[0].predicted == (expected, None, expected)


def predictions(rng, count, curves, factor):
  """Predictions whose errors are `factor` times what their intervals say."""
  mean = rng.normal(size=(count, curves))
  half = rng.uniform(0.5, 2, size=(count, curves))
  true = mean + factor * half / 1.645 * rng.standard_normal((count, curves))
  return halving.Prediction(mean, mean - half, mean + half), true


def test_intervals_that_are_too_narrow_are_widened_to_cover():
  rng = np.random.default_rng(0)
  future, true = predictions(rng, 4000, 20, 3.0)
  past, known = predictions(rng, 4000, 20, 3.0)
  raw = (future.lo <= true) & (true <= future.hi)
  assert raw.mean() < 0.5
  found = surrogate.calibrated(future, past, known, np.ones((4000, 20), bool))
  covered = (found.lo <= true) & (true <= found.hi)
  # (ceil(21 * 0.9)) / 21, exactly, if past and future errors are alike.
  assert abs(covered.mean() - 19 / 21) < 0.005
  np.testing.assert_array_equal(found.mean, future.mean)


def test_intervals_are_never_narrowed():
  rng = np.random.default_rng(0)
  future, _ = predictions(rng, 50, 5, 1.0)
  past, known = predictions(rng, 50, 5, 0.01)
  found = surrogate.calibrated(future, past, known, np.ones((50, 5), bool))
  np.testing.assert_allclose(found, future)


def test_curves_that_are_not_active_do_not_calibrate():
  rng = np.random.default_rng(0)
  future, _ = predictions(rng, 2, 4, 1.0)
  past, known = predictions(rng, 2, 4, 1.0)
  active = np.array([[True, True, False, True], [False] * 4])
  known[~active] = 1e9
  found = surrogate.calibrated(future, past, known, active)
  assert (found.hi[0] < 1e3).all()
  np.testing.assert_allclose(found.hi[1], future.hi[1])
