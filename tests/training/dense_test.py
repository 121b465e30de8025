"""One exit is a dense model: against a decoder and a step written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.model import transformer
from familial.training import config as train_config
from familial.training import optimizer
from familial.training import step
from tests.model import oracle

B, L = 2, 32


@pytest.fixture(params=[True, False], ids=['tied', 'untied'])
def model(request, shape):
  return shape(depth=2, exits=(2,), tied=request.param, attention='plain')


@pytest.fixture
def params(model):
  return jax.tree.map(jnp.array, oracle.params(model))


@pytest.fixture
def tokens(model):
  rng = np.random.default_rng(1)
  return jnp.asarray(rng.integers(0, model.vocab_size, (B, L + 1)), jnp.int32)


def test_its_logits_are_equal_bit_for_bit(model, params, tokens):
  (logits,) = jax.jit(transformer.logits, static_argnums=1)(
    params, model, tokens[:, 1:]
  )
  (expected,) = jax.jit(oracle.logits, static_argnums=(1, 3))(
    params, model, tokens[:, 1:], jnp
  )
  assert np.abs(expected).max() > 0.5
  np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize(
  'model',
  [True, pytest.param(False, marks=pytest.mark.slow)],
  ids=['tied', 'untied'],
  indirect=True,
)
def test_a_step_of_training_is_equal_to_rounding(model, params, tokens):
  # Not to the bit: the loss forms its gradient of the logits itself, where
  # differentiation here adds two halves. AdamW's first step is the sign of a
  # gradient; an eps near the gradients keeps it as smooth as they are.
  lr, decay, eps, clip = 0.1, 0.3, 1e-2, 0.5
  h = optimizer.hyper(
    train_config.TrainConfig(
      steps=9, batch_size=B, base_lr=lr, weight_decay=decay, eps=eps, clip=clip
    ),
    model.exits,
  )
  state = step.init(model, 'all', jax.random.key(0), h)
  batch = {
    'inputs_BxL': tokens[:, :-1],
    'targets_BxL': tokens[:, 1:],
    'weights_BxL': jnp.ones((B, L)),
  }

  value_and_grad = jax.jit(
    jax.value_and_grad(oracle.loss), static_argnums=(1, 3)
  )
  # By NumPy from here: JAX would compile each operation.
  value, gradient = jax.device_get(value_and_grad(params, model, tokens, jnp))
  norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient)))
  assert norm > clip

  def stepped(path, leaf, g):
    update = g / norm * clip
    update = update / (np.abs(update) + eps)
    if path[-1].key == 'kernel':
      update = update * model.base_width / model.width
    if path[-1].key != 'gain':
      update = update + decay * leaf
    return leaf - lr * update

  expected = jax.tree.map_with_path(stepped, jax.device_get(params), gradient)
  state, metrics = step.train(
    model, 'all', state._replace(params=params), batch, h
  )
  np.testing.assert_allclose(metrics.losses_G, [value], rtol=1e-6)
  np.testing.assert_allclose(metrics.gradient_norm, norm, rtol=1e-6)
  jax.tree.map(
    lambda got, by_hand: np.testing.assert_allclose(
      got, by_hand, rtol=0, atol=1e-6
    ),
    state.params,
    expected,
  )
