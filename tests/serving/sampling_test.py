import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.core import errors
from familial.serving import sampling


def distribution(logits, least_p=None, **how):
  numbers = sampling.numbers(sampling.Sampling(**how))
  if least_p is not None:  # Smaller than a Sampling allows.
    numbers = numbers._replace(top_p=np.float32(least_p))
  return np.asarray(sampling.distribution(jnp.asarray(logits), numbers))


@pytest.fixture
def logits():
  return np.random.default_rng(0).normal(size=(4, 9)).astype(np.float32)


def by_hand(logits, temperature, top_k=0, top_p=1.0):
  out = np.zeros(logits.shape)
  for row, target in zip(logits.astype(np.float64), out, strict=True):
    probs = np.exp(row / temperature)
    probs /= probs.sum()
    reached = 0.0
    for rank, token in enumerate(np.argsort(-probs)):
      if reached >= top_p or (top_k and rank >= top_k):
        break
      target[token] = probs[token]
      reached += probs[token]
    target /= target.sum()
  return out


@pytest.mark.parametrize(
  'how',
  [
    {'temperature': 1.0},
    {'temperature': 0.5, 'top_k': 3},
    {'temperature': 2.0, 'top_p': 0.6},
    {'temperature': 1.0, 'top_k': 4, 'top_p': 0.5},
    {'temperature': 1.0, 'top_k': 99, 'top_p': 1e-6},
  ],
)
def test_the_distribution_is_its_definition(logits, how):
  expected = by_hand(logits, **how)
  np.testing.assert_allclose(distribution(logits, **how), expected, atol=1e-6)


@pytest.mark.parametrize(
  ('scale', 'temperature', 'top_p'),
  [
    (1, 0.0, None),
    (30, 1.2e-38, None),
    (1, 1.2e-38, 0.0),
    (1, 1e-20, 1e-45),
    (1, 1.0, 0.0),
    (1, 1.0, 1.2e-38),
  ],
)
def test_the_likeliest_token_is_left_however_small_the_numbers(
  logits, scale, temperature, top_p
):
  found = distribution(scale * logits, top_p, temperature=temperature)
  np.testing.assert_array_equal(found, np.eye(9)[logits.argmax(-1)])


def test_draws_follow_the_probabilities():
  probs = jnp.array([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
  uniform = jnp.linspace(0, 1, 100_001)[:-1]
  drawn = np.asarray(
    sampling.draw(jnp.broadcast_to(probs, (100_000, 6)), uniform)
  )
  shares = np.bincount(drawn, minlength=6) / 100_000
  np.testing.assert_allclose(shares, probs, atol=1e-4)
  # Rounding leaves nothing beyond the last token with a probability.
  assert sampling.draw(probs, jnp.float32(1 - 2**-24)) == 4


def test_uniforms_differ_by_seed_row_position_and_use():
  def one(seed=0, row=1, position=2, use=0):
    rows, positions = jnp.array([row]), jnp.array([[position]])
    return float(sampling.uniforms(seed, rows, positions, use)[0, 0])

  numbers = [one(), one(seed=1), one(row=2), one(position=1), one(use=1)]
  assert len(set(numbers)) == 5
  # A row's numbers do not depend on the other rows.
  rows, places = jnp.arange(3), jnp.arange(12).reshape(3, 4) % 4 + 2
  assert float(sampling.uniforms(0, rows, places, 0)[1, 0]) == numbers[0]


def test_confidence_is_its_definition(logits):
  probs = np.asarray(jax.nn.softmax(logits))
  ordered = np.sort(probs)
  expected = {
    'max_prob': ordered[:, -1],
    'gap': ordered[:, -1] - ordered[:, -2],
    'entropy': 1 + (probs * np.log(probs)).sum(-1) / np.log(9),
  }
  certain = np.array([100.0] + [0.0] * 8, np.float32)
  for kind in sampling.CONFIDENCES:
    found = sampling.confidence(logits, kind)
    np.testing.assert_allclose(found, expected[kind], atol=1e-6)
    assert sampling.confidence(certain, kind) == pytest.approx(1)
    assert sampling.confidence(0 * certain, kind) == pytest.approx(
      1 / 9 if kind == 'max_prob' else 0, abs=1e-6
    )


@pytest.mark.parametrize(
  ('made', 'name', 'value'),
  [
    *((sampling.Sampling, 'temperature', x) for x in (np.nan, 1e-39, 1e39)),
    (sampling.Sampling, 'top_k', 2**31),
    *((sampling.Sampling, 'top_p', x) for x in (1e-50, 0.0)),
    (sampling.Sampling, 'seed', 2**32),
    # Without effect at temperature 0.
    (sampling.Sampling, 'top_k', 3),
    (sampling.Sampling, 'top_p', 0.5),
    *((sampling.Policy, 'threshold', x) for x in (np.nan, 1e39, -np.inf)),
  ],
)
def test_numbers_that_are_not_allowed(made, name, value):
  with pytest.raises(errors.UserError, match=f'^{name}: '):
    made(**{name: value})
