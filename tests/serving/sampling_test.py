import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.core import errors
from familial.serving import sampling


def distribution(logits, **how):
  numbers = sampling.numbers(sampling.Sampling(**how))
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
def test_distribution_is_that_by_hand(logits, how):
  np.testing.assert_allclose(
    distribution(logits, **how), by_hand(logits, **how), atol=1e-6
  )


def test_without_temperature_the_likeliest_alone(logits):
  found = distribution(logits)
  np.testing.assert_array_equal(found, np.eye(9)[logits.argmax(-1)])


@pytest.mark.parametrize('top_p', [0.0, 1e-45, 1.2e-38])
@pytest.mark.parametrize('temperature', [1.2e-38, 1e-20, 1.0])
def test_the_likeliest_is_there_however_small_the_numbers(
  logits, temperature, top_p
):
  numbers = sampling.numbers(sampling.Sampling(temperature=temperature))
  numbers = numbers._replace(top_p=np.float32(top_p))
  found = np.asarray(sampling.distribution(jnp.asarray(logits), numbers))
  np.testing.assert_array_equal(found, np.eye(9)[logits.argmax(-1)])


def test_a_low_temperature_takes_the_likeliest(logits):
  found = distribution(30 * logits, temperature=1.2e-38)
  np.testing.assert_array_equal(found, np.eye(9)[logits.argmax(-1)])


def test_draws_follow_the_probabilities():
  probs = jnp.array([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
  uniform = jnp.linspace(0, 1, 100_001)[:-1]
  drawn = np.asarray(
    sampling.draw(jnp.broadcast_to(probs, (100_000, 6)), uniform)
  )
  shares = np.bincount(drawn, minlength=6) / 100_000
  np.testing.assert_allclose(shares, probs, atol=1e-4)
  # Rounding leaves no one beyond the last token with a probability.
  assert sampling.draw(probs, jnp.float32(1 - 2**-24)) == 4


def test_uniforms_differ_by_seed_row_position_and_use():
  def of(seed=0, row=1, position=2, use=0):
    return float(
      sampling.uniforms(seed, jnp.array([row]), jnp.array([[position]]), use)[
        0, 0
      ]
    )

  numbers = [of(), of(seed=1), of(row=2), of(position=1), of(use=1)]
  assert len(set(numbers)) == 5
  assert of() == numbers[0]
  # A row's do not depend on how many there are.
  rows, places = jnp.arange(3), jnp.arange(12).reshape(3, 4) % 4 + 2
  assert float(sampling.uniforms(0, rows, places, 0)[1, 0]) == numbers[0]


def test_confidence_is_that_by_hand(logits):
  probs = np.asarray(jax.nn.softmax(logits))
  ordered = np.sort(probs)
  for kind, expected in (
    ('max_prob', ordered[:, -1]),
    ('gap', ordered[:, -1] - ordered[:, -2]),
    ('entropy', 1 + (probs * np.log(probs)).sum(-1) / np.log(9)),
  ):
    np.testing.assert_allclose(
      sampling.confidence(logits, kind), expected, atol=1e-6
    )
  sure = np.array([100.0] + [0.0] * 8, np.float32)
  for kind in sampling.CONFIDENCES:
    assert sampling.confidence(sure, kind) == pytest.approx(1)
    assert sampling.confidence(0 * sure, kind) == pytest.approx(
      1 / 9 if kind == 'max_prob' else 0, abs=1e-6
    )


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('temperature', -1.0),
    ('temperature', float('nan')),
    ('temperature', float('inf')),
    ('temperature', 1e-50),
    ('temperature', 1e-39),
    ('temperature', 1e39),
    ('top_k', -1),
    ('top_k', 2**31),
    ('top_p', 1e-50),
    ('top_p', 0.0),
    ('top_p', 1.1),
    ('seed', -1),
    ('seed', 2**32),
  ],
)
def test_numbers_out_of_range(name, value):
  with pytest.raises(errors.UserError, match=f'{name}: .* must be'):
    sampling.Sampling(**{name: value})


@pytest.mark.parametrize(('name', 'value'), [('top_k', 3), ('top_p', 0.5)])
def test_what_has_no_effect_is_refused(name, value):
  with pytest.raises(errors.UserError, match=f'^{name}: {value} has no effect'):
    sampling.Sampling(**{name: value})
  sampling.Sampling(temperature=0.5, **{name: value})


def test_policies_out_of_range():
  with pytest.raises(errors.UserError, match="did you mean 'entropy'"):
    sampling.Policy(confidence='entropi')
  with pytest.raises(errors.UserError, match='threshold'):
    sampling.Policy(threshold=float('nan'))
