"""What surrogates are shown, and that what they say decides."""

import numpy as np
import pytest

from familial.allocation import config
from familial.allocation import curves
from familial.allocation import halving
from familial.allocation import policies
from familial.allocation import replay
from familial.allocation import surrogate


def random_curves(rng, count=6):
  found = []
  for i in range(count):
    flops = np.sort(np.exp(rng.uniform(30, 38, 12)))
    loss = 2 + 5 * np.exp(-0.2 * (np.log(flops) - 30)) + rng.normal(0, 0.05, 12)
    found.append(
      curves.Curve(f'{i}', flops, loss, {}, {'params': float(i + 1)})
    )
  return found


def survey(known, end_factor=8.0, target=None):
  spent = np.array([[curve.end for curve in known]])
  return halving.Survey(
    sources=[replay.Replay(known)],
    alive_SxM=np.arange(len(known))[None],
    curves=[known],
    target_SxM=spent,
    end_SxM=spent * end_factor,
    round=0,
  )


def test_surrogates_see_the_curves_and_nothing_else():
  rng = np.random.default_rng(0)
  for _ in range(300):
    known = random_curves(rng)
    end = min(curve.end for curve in known)
    known = [curve.cut(end) for curve in known]
    seen = policies.observe(survey(known)).now
    assert seen.loss_SxMxT.shape == (1, 6, policies.POINTS)
    [active] = seen.active_SxM
    first = max(k.flops[0] for k, a in zip(known, active, strict=True) if a)
    np.testing.assert_allclose(
      np.exp(seen.log_c_SxT[0, [0, -1]]), [first, end], rtol=1e-9
    )
    for i in np.flatnonzero(active):
      lowest = np.minimum.accumulate(known[i].loss)
      shown = seen.loss_SxMxT[0, i]
      assert shown[-1] == pytest.approx(lowest[-1], rel=1e-12)
      assert lowest[-1] <= shown.min() and shown.max() <= lowest[0]
      assert (np.diff(shown) <= 0).all()


def test_past_errors_are_of_the_same_curves_asked_as_far_ahead():
  known = random_curves(np.random.default_rng(0))
  end = min(curve.end for curve in known)
  known = [curve.cut(end) for curve in known]
  for factor, most in ((1.5, 1.5), (1e9, np.inf)):
    now, before, last = policies.observe(survey(known, factor))
    np.testing.assert_array_equal(last, now.loss_SxMxT[:, :, -1])
    start, stop = now.log_c_SxT[0, [0, -1]]
    first, cut = before.log_c_SxT[0, [0, -1]]
    np.testing.assert_allclose(before.log_end_SxM, stop)
    assert first == start
    # No more of the curve is held back than is shown.
    share = min(np.log(most) / (stop - start), 1.0)
    assert (stop - cut) / (cut - start) == pytest.approx(share)
    for i in np.flatnonzero(now.active_SxM[0]):
      np.testing.assert_allclose(
        before.loss_SxMxT[0, i], known[i].at_log(before.log_c_SxT[0])
      )


def test_features_are_standard_and_logs_where_they_can_be():
  known = random_curves(np.random.default_rng(0))
  features = policies.observe(survey(known)).now.features_SxMxF[0, :, 0]
  assert features.mean() == pytest.approx(
    0
  ) and features.std() == pytest.approx(1)
  logs = np.log(np.arange(1.0, 7))
  np.testing.assert_allclose(features, (logs - logs.mean()) / logs.std())


def test_who_ended_or_diverged_or_shows_nothing_is_not_predicted():
  a, b, c, d = random_curves(np.random.default_rng(1), 4)
  end = min(curve.end for curve in (a, b, c, d))
  a, b, c = (curve.cut(end) for curve in (a, b, c))
  gone = curves.Curve('gone', np.zeros(0), np.zeros(0), {}, {}, 5.0)
  short = curves.Curve(
    'short', np.array([0.9 * end, end]), np.array([3.0, 2.9])
  )
  asked = survey([a, b, gone, short])
  asked = asked._replace(end_SxM=np.where([[1, 0, 1, 1]], asked.end_SxM, end))
  assert policies.observe(asked).now.active_SxM.tolist() == [
    [True, False, False, False]
  ]


def test_a_surrogate_that_knows_the_future_is_the_oracle(monkeypatch):
  rng = np.random.default_rng(2)
  pool = random_curves(rng, 10)
  pool = [
    curves.Curve(
      c.name,
      np.geomspace(1e13, 1e17, 40),
      np.sort(rng.uniform(2, 9, 40))[::-1],
      {},
      c.features,
    )
    for c in pool
  ]
  sources = [replay.Replay(pool)]
  budget = 4e17

  def knows(survey):
    def predict(observed, keys):
      mean = np.array(
        [
          [
            float(sources[0].future(int(i), end))
            for i, end in zip(row, ends, strict=True)
          ]
          for row, ends in zip(survey.alive_SxM, survey.end_SxM, strict=True)
        ]
      )
      mean = np.concatenate([mean, mean])  # And of what is known by now.
      return surrogate.Prediction(mean, mean - 0.1, mean + 0.1)

    return policies._predicted(predict, 0, survey)

  [mine] = halving.run(sources, budget, 2, knows)
  [bound] = policies.allocate('oracle', sources, budget, 2, config.Law(), 0)
  assert [r.kept for r in mine.rounds] == [r.kept for r in bound.rounds]
  [plain] = policies.allocate('sh', sources, budget, 2, config.Law(), 0)
  assert [r.kept for r in mine.rounds] != [r.kept for r in plain.rounds]


def test_one_that_diverged_before_any_loss_stops_nobody():
  pool = [
    *random_curves(np.random.default_rng(3), 5),
    curves.Curve('nan', np.zeros(0), np.zeros(0), {}, {'params': 9.0}, 1e13),
  ]
  for name in ('sh', 'sh_ensemble_power_law'):
    [found] = policies.allocate(
      name, [replay.Replay(pool)], 6e17, 2, config.Law(), 0
    )
    assert 5 not in found.rounds[0].kept
    assert found.spent[5] == 1e13
    predicted = found.rounds[0].predicted
    assert predicted is None or predicted[5] is None
