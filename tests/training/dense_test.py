"""One exit is a dense model: against a decoder and a step written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.model import transformer
from familial.training import config as train_config
from familial.training import optimizer
from familial.training import step

B, L = 2, 32


def _llama(params, model, tokens):
  """A dense Llama in float32, one layer after another: logits [B, L, V].

  Equal bits need equal roundings: as in the model, queries are scaled rather
  than scores, and the softmax's sum divides what it weighs.
  """
  batch, length = tokens.shape
  dim, groups = model.head_dim, model.kv_heads

  def norm(x, gain):
    square = jnp.mean(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(square + model.norm_eps) * gain

  def heads(x):
    return jnp.transpose(x.reshape(batch, length, -1, dim), (0, 2, 1, 3))

  turns = np.outer(
    np.arange(length), model.rope_theta ** (-np.arange(0, dim, 2) / dim)
  )
  cos, sin = (f(turns).astype(np.float32) for f in (np.cos, np.sin))

  def rope(x):
    a, b = x[..., : dim // 2], x[..., dim // 2 :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

  x = params['embedding'][tokens]
  for index in range(model.depth):
    w = jax.tree.map(lambda leaf, i=index: leaf[i], params['segment_0'])
    h = norm(x, w['attention_norm']['gain'])
    q, k, v = (heads(h @ w['attention'][n]['kernel']) for n in 'qkv')
    q = rope(q).reshape(batch, groups, -1, dim) / np.float32(np.sqrt(dim))
    scores = q @ jnp.swapaxes(rope(k), 2, 3)
    scores = scores.reshape(batch, model.heads, length, length)
    seen = np.tril(np.ones((length, length), bool))
    scores = jnp.where(seen, scores, -jnp.inf)
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1).reshape(batch, groups, -1, 1)
    mixed = weights.reshape(batch, groups, -1, length) @ v / total
    mixed = mixed.reshape(batch, model.heads, length, dim).swapaxes(1, 2)
    mixed = mixed.reshape(batch, length, -1)
    x = x + mixed @ w['attention']['o']['kernel']
    h = norm(x, w['mlp_norm']['gain'])
    gate = h @ w['mlp']['gate']['kernel']
    up = h @ w['mlp']['up']['kernel']
    x = x + jax.nn.silu(gate) * up @ w['mlp']['down']['kernel']
  gain = params['exit_1']['norm']['gain'] * (model.base_width / model.width)
  matrix = params['embedding'].T if model.tied else params['unembedding']
  return norm(x, gain) @ matrix


@pytest.fixture(params=[True, False], ids=['tied', 'untied'])
def model(request, shape):
  return shape(depth=2, exits=(2,), tied=request.param, attention='plain')


@pytest.fixture
def params(model):
  """Random ones, with gains that are not 1, so that a lost one shows."""
  rng = np.random.default_rng(0)
  return jax.tree.map_with_path(
    lambda path, leaf: jnp.asarray(
      rng.uniform(0.5, 1.5, leaf.shape)
      if path[-1].key == 'gain'
      else rng.normal(0, model.base_width**-0.5, leaf.shape),
      jnp.float32,
    ),
    jax.eval_shape(lambda: transformer.init(model, jax.random.key(0))),
  )


@pytest.fixture
def tokens(model):
  rng = np.random.default_rng(1)
  return jnp.asarray(rng.integers(0, model.vocab_size, (B, L + 1)), jnp.int32)


def test_its_logits_are_equal_bit_for_bit(model, params, tokens):
  (logits,) = jax.jit(transformer.logits, static_argnums=1)(
    params, model, tokens[:, 1:]
  )
  expected = jax.jit(_llama, static_argnums=1)(params, model, tokens[:, 1:])
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

  def loss(params):
    log_p = jax.nn.log_softmax(_llama(params, model, tokens[:, :-1]))
    return -jnp.mean(jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1))

  # By NumPy from here: JAX would compile each operation.
  value, gradient = jax.device_get(jax.jit(jax.value_and_grad(loss))(params))
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
