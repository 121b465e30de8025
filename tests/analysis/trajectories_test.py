import jax
import numpy as np
import pytest

from familial.analysis import trajectories
from tests.analysis import paths

ROWS, TOKENS, DEPTH, WIDTH = 12, 20, 6, 8


@pytest.fixture(scope='module')
def states():
  """Of one size of array throughout, so that one program serves all tests."""
  return paths.walk(DEPTH, WIDTH, tokens=ROWS * TOKENS).reshape(
    DEPTH + 1, ROWS, TOKENS, WIDTH
  )


@pytest.fixture(scope='module')
def tallied():
  @jax.jit
  def compute(states, counted):
    values, settled = trajectories.measure(states)
    return values, settled, trajectories.tally(values, settled, counted)

  return compute


def angle(a, b):
  cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1)
  return np.arccos(np.clip(cosine / np.linalg.norm(b, axis=-1), -1, 1))


def direct(states):
  """The definitions, in float64 and without tricks."""
  states = states.astype(np.float64)
  updates = np.diff(states, axis=0)
  turn = angle(states[:-1], states[1:])
  half = np.roll(updates[1:], TOKENS // 2, axis=2)
  to_last = angle(states, states[-1])
  return {
    'turn': turn,
    'path_share': turn / turn.sum(axis=0),
    'bend': angle(updates[:-1], updates[1:]),
    'cosine': np.cos(angle(updates[:-1], updates[1:])),
    'cosine_other': np.cos(angle(updates[:-1], half)),
    'norm': np.linalg.norm(states, axis=-1),
    'update': np.linalg.norm(updates, axis=-1),
    'to_last': to_last,
    'remaining': to_last / to_last.max(axis=0),
  }


def test_quantities_are_their_definitions(states, tallied):
  values, _, _ = tallied(states, np.ones((ROWS, TOKENS), bool))
  expected = direct(states)
  assert values.keys() == expected.keys() < trajectories.DEFINITIONS.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(values[name], value, atol=2e-5, rtol=1e-5)


def test_tiny_and_undefined_angles():
  a = np.array([[1, 0], [1, 0], [-1, 0], [0, 0]], np.float32)
  b = np.array([[1, 1e-5], [2, 0], [1, 0], [1, 0]], np.float32)
  found = np.asarray(trajectories.angle(a, b))
  # An inverse cosine would give 0 for the first.
  np.testing.assert_allclose(found[:3], [1e-5, 0, np.pi], rtol=1e-5)
  assert np.isnan(found[3])


def test_parts_together_are_the_whole(states, tallied):
  rng = np.random.default_rng(1)
  states = states.copy()
  states[3, 2, 5] = states[2, 2, 5]  # A layer that does nothing: no direction.
  counted = rng.random((ROWS, TOKENS)) < 0.7
  counted[2, 5] = True
  values, settled, _ = tallied(states, counted)
  groups = np.arange(ROWS) * 5 // ROWS
  summaries = []
  for rows in (ROWS, 4, 1):
    summary = None
    for start in range(0, ROWS, rows):
      # Of one shape: what is not of the part has weight 0, as a batch's filling.
      of_part = counted.copy()
      of_part[:start] = of_part[start + rows :] = False
      _, _, found = tallied(states, of_part)
      summary = trajectories.add(summary, found, groups, 5, WIDTH)
    summaries.append(summary)
  for summary in summaries:
    np.testing.assert_array_equal(summary.settled, summaries[0].settled)
    for name, counts in summary.bins.items():
      np.testing.assert_array_equal(counts, summaries[0].bins[name])
    for name, moments in summary.moments.items():
      some = counted & np.isfinite(values[name])
      of_layer = [
        np.asarray(layer, np.float64)[use]
        for layer, use in zip(values[name], some, strict=True)
      ]
      pooled = trajectories.pool(moments)
      np.testing.assert_array_equal(pooled.count, [len(x) for x in of_layer])
      np.testing.assert_allclose(
        pooled.mean, [x.mean() for x in of_layer], rtol=1e-5, atol=1e-6
      )
      np.testing.assert_allclose(
        trajectories.sd(pooled), [x.std(ddof=1) for x in of_layer],
        rtol=1e-5, atol=1e-6,
      )  # fmt: skip
  full = summaries[0]
  assert trajectories.pool(full.moments['cosine']).count[2] == counted.sum() - 1
  assert full.settled.sum() == counted.sum()
  expected = np.bincount(np.asarray(settled)[counted], minlength=DEPTH + 1)
  np.testing.assert_array_equal(full.settled.sum(axis=0), expected)


def test_resampling_groups_is_repeating_their_rows(states):
  rows = np.asarray(direct(states)['turn'])
  parts = trajectories.Moments(
    np.full((ROWS, DEPTH), TOKENS),
    rows.mean(-1).T,
    rows.var(-1).T * TOKENS,
  )
  times = np.random.default_rng(0).multinomial(ROWS, np.full(ROWS, 1 / ROWS))
  found = trajectories.pool(parts, times)
  repeated = np.repeat(rows, times, axis=1).reshape(DEPTH, -1)
  np.testing.assert_allclose(found.mean, repeated.mean(-1))
  np.testing.assert_allclose(trajectories.sd(found), repeated.std(-1, ddof=1))


def test_quantiles_are_those_of_the_values_to_a_bin(states, tallied):
  values, _, found = tallied(states, np.ones((ROWS, TOKENS), bool))
  for name in ('turn', 'norm'):
    scale = trajectories.SCALES[name]
    for counts, layer in zip(found.bins[name], values[name], strict=True):
      near = trajectories.quantiles(np.asarray(counts), scale)
      exact = np.quantile(layer, trajectories.LEVELS, method='inverted_cdf')
      width = (scale.high - scale.low) / scale.bins
      if scale.log:
        near, exact = np.log10(near), np.log10(exact)
      np.testing.assert_allclose(near, exact, atol=1.01 * width)
  left = np.asarray(values['remaining'][4])
  scale = trajectories.SCALES['remaining']
  for most in trajectories.REMAINING + (0.5,):
    found_share = trajectories.share_below(
      np.asarray(found.bins['remaining'][4]), scale, most
    )
    assert found_share == pytest.approx((left < most).mean(), abs=1e-9)
  none = np.zeros(trajectories.SCALES['turn'].bins)
  assert set(trajectories.quantiles(none, trajectories.SCALES['turn'])) == {
    None
  }


def test_when_a_token_settles(tallied):
  angles = np.array(
    [
      [1.0, 0.8, 0.6, 0.4, 0.3, 0.2, 0.0],  # Never before the end.
      [1.0, 0.05, 0.04, 0.03, 0.02, 0.01, 0.0],  # From layer 1 on.
      [1.0, 0.05, 0.5, 0.04, 0.02, 0.01, 0.0],  # It came by, and left again.
      [0.01, 0.008, 0.006, 0.004, 0.0005, 0.0004, 0.0],  # However little it is.
    ]
  )
  plane = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
  states = np.zeros((DEPTH + 1, ROWS, TOKENS, WIDTH), np.float32)
  states[..., 0] = 1
  states[:, 0, :4, :2] = plane.swapaxes(0, 1)
  counted = np.zeros((ROWS, TOKENS), bool)
  counted[0, :4] = True
  _, settled, found = tallied(states, counted)
  np.testing.assert_array_equal(settled[0, :4], [6, 1, 3, 4])
  np.testing.assert_array_equal(found.settled[0], [0, 1, 0, 1, 1, 0, 1])
  assert not found.settled[1:].any()


def test_random_vectors_give_what_the_record_says():
  width = 24
  found = trajectories.of_states(paths.walk(2, width, tokens=4096), 8)
  for name in ('cosine', 'cosine_other'):
    pooled = trajectories.pool(found.moments[name])
    assert abs(pooled.mean[0]) < 4 / np.sqrt(width * 4096)
    np.testing.assert_allclose(trajectories.sd(pooled), width**-0.5, rtol=0.05)
  # And the errors from groups are those of independent tokens.
  [error] = trajectories.standard_errors(found.moments['cosine'])
  assert 0.4 < error / (width * 4096) ** -0.5 < 1.8
