import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.model import loss
from familial.model import transformer

B, L, D, V = 2, 16, 8, 40
init = jax.jit(transformer.init, static_argnums=0)


@pytest.fixture(scope='module')
def inputs():
  """States, matrices, targets, weights of tokens (some 0) and of exits."""
  rng = np.random.default_rng(0)
  hidden = [rng.normal(size=(B, L, D)) for _ in range(3)]
  matrices = {owner: rng.normal(size=(D, V)) for owner in (0, 2)}
  counts = rng.integers(0, 2, (B, L))
  return jax.tree.map(
    lambda x: jnp.asarray(x, jnp.int32 if x.dtype.kind == 'i' else 'float32'),
    (
      hidden,
      matrices,
      rng.integers(0, V, (B, L)),
      counts / counts.sum(),
      rng.uniform(0.1, 1, 3),
    ),
  )


def _by_definition(hidden, matrices, targets, weights, exit_weights, owners):
  losses = []
  for h, owner in zip(hidden, owners, strict=True):
    log_p = jax.nn.log_softmax(h @ matrices[owner])
    hit = jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    losses.append(-jnp.sum(weights * hit))
  losses = jnp.stack(losses)
  return jnp.sum(exit_weights * losses), losses


def _value_and_grad(function, inputs, *static):
  hidden, matrices, targets, weights, exit_weights = inputs

  def scaled(hidden, matrices, exit_weights):
    total, losses = function(
      hidden, matrices, targets, weights, exit_weights, *static
    )
    return 3 * total, losses  # A cotangent that is not 1.

  grad = jax.jit(jax.value_and_grad(scaled, argnums=(0, 1, 2), has_aux=True))
  return grad(hidden, matrices, exit_weights)


def _close(got, expected, rtol=1e-5, atol=1e-6):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=rtol, atol=atol),
    got,
    expected,
  )


def test_value_and_gradient_equal_those_of_a_log_softmax(inputs):
  owners = (0, 2, 0)
  expected = _value_and_grad(_by_definition, inputs, owners)
  alone = jax.jit(loss.cross_entropies, static_argnums=(5, 6))
  for chunk in (L, 8):
    got = _value_and_grad(loss.cross_entropies, inputs, owners, chunk)
    _close(got, expected)
    # Without a gradient another pass computes the value.
    value, losses = alone(*inputs, owners, chunk)
    _close((3 * value, losses), expected[0])


def test_large_logits_give_finite_losses_and_gradients(inputs):
  hidden, *rest = inputs
  large = ([300 * h for h in hidden], *rest)
  owners = (0, 2, 0)
  got = _value_and_grad(loss.cross_entropies, large, owners, L)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
  _close(
    got, _value_and_grad(_by_definition, large, owners), rtol=1e-4, atol=1e-3
  )


def test_bfloat16_states_have_bfloat16_gradients_and_matrices_float32(inputs):
  hidden, *rest = inputs
  low = ([h.astype(jnp.bfloat16) for h in hidden], *rest)
  owners = (0, 2, 0)
  (total, losses), gradients = _value_and_grad(
    loss.cross_entropies, low, owners, 8
  )
  (full, full_losses), full_gradients = _value_and_grad(
    _by_definition, inputs, owners
  )
  assert total.dtype == losses.dtype == jnp.float32
  assert {dh.dtype for dh in gradients[0]} == {jnp.dtype(jnp.bfloat16)}
  assert {dw.dtype for dw in gradients[1].values()} == {jnp.dtype('float32')}
  _close((total, losses), (full, full_losses), rtol=2e-2)
  for got, expected in zip(
    jax.tree.leaves(gradients), jax.tree.leaves(full_gradients), strict=True
  ):
    _close(got.astype(jnp.float32), expected, 0, 0.03 * np.abs(expected).max())


def _batch(seed=0, length=L, segments=True):
  rng = np.random.default_rng(seed)
  inputs, targets = rng.integers(0, 48, (2, B, length))
  weights = rng.integers(0, 2, (B, length))
  ends = rng.integers(0, 4, (B, length)) == 0
  batch = {
    'inputs_BxL': jnp.asarray(inputs, jnp.int32),
    'targets_BxL': jnp.asarray(targets, jnp.int32),
    'weights_BxL': jnp.asarray(weights, jnp.float32),
  }
  if segments:
    batch['segments_BxL'] = jnp.asarray(ends.cumsum(axis=1), jnp.int32)
  return batch


def _losses_by_definition(params, model, batch, exit_weights_G):
  outs = transformer.logits(
    params, model, batch['inputs_BxL'], batch['segments_BxL']
  )
  counts = batch['weights_BxL']
  losses = []
  for logits in outs:
    log_p = jax.nn.log_softmax(logits)
    hit = jnp.take_along_axis(log_p, batch['targets_BxL'][..., None], axis=-1)
    losses.append(-jnp.sum(counts * hit[..., 0]) / jnp.sum(counts))
  losses = jnp.stack(losses)
  return jnp.sum(exit_weights_G * losses), losses


@pytest.mark.parametrize(
  'kind, tied',
  [
    ('head', True),
    pytest.param('separate', True, marks=pytest.mark.slow),
    ('branch', False),
  ],
)
def test_every_parameter_gets_the_gradient_of_the_definition(shape, kind, tied):
  model = shape(exit_kind=kind, tied=tied, depth=2, exits=(1, 2), loss_chunk=8)
  params = init(model, jax.random.key(0))
  weights = jnp.asarray([0.3, 1.0])
  batch = _batch()

  def both(params, weights):
    return tuple(
      jax.value_and_grad(function, has_aux=True)(params, model, batch, weights)
      for function in (loss.exit_losses, _losses_by_definition)
    )

  both = jax.jit(both)
  got, expected = both(params, weights)
  _close(got, expected)
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(got[1]))
  # An exit of weight 0 is measured and trains nothing.
  got, expected = both(params, jnp.asarray([0.0, 1.0]))
  _close(got, expected)
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(got[1]['exit_1']))
  assert got[0][1][0] > 1


def test_a_token_of_weight_0_does_not_count(shape):
  model = shape(depth=1, exits=(1,))
  params = init(model, jax.random.key(0))
  batch = _batch(segments=False)
  grad = jax.jit(
    lambda batch: jax.value_and_grad(loss.exit_losses, has_aux=True)(
      params, model, batch, jnp.ones(1)
    )
  )
  left_out = batch['weights_BxL'] == 0
  other = {
    **batch,
    'targets_BxL': jnp.where(left_out, 7, batch['targets_BxL']),
  }
  jax.tree.map(np.testing.assert_array_equal, grad(other), grad(batch))
  counted = {
    **batch,
    'targets_BxL': jnp.where(left_out, batch['targets_BxL'], 7),
  }
  assert grad(counted)[0][0] != grad(batch)[0][0]
  # A batch of nothing is worth nothing, not NaN.
  empty = grad({**batch, 'weights_BxL': 0 * batch['weights_BxL']})
  assert all((leaf == 0).all() for leaf in jax.tree.leaves(empty))


def test_frozen_trunk_gets_no_gradient(shape):
  model = shape(exit_kind='branch', depth=2, exits=(1, 2), tied=False)
  params = init(model, jax.random.key(0))
  gradient = jax.jit(
    lambda params: jax.grad(loss.exit_losses, has_aux=True)(
      params, model, _batch(), jnp.ones(2), trunk_frozen=True
    )[0]
  )(params)
  for name in ('embedding', 'segment_0', 'segment_1'):
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient[name]))
  assert all(leaf.any() for leaf in jax.tree.leaves(gradient['exit_1']))


def _temporary_bytes(exits, chunk):
  """Memory beside arguments and results of the loss and its gradient."""
  batch, length, width, vocab = 8, 256, 256, 32_768
  f32 = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)

  def total(hidden, matrices, targets, weights, exit_weights):
    return loss.cross_entropies(
      hidden, matrices, targets, weights, exit_weights, (0,) * exits, chunk
    )

  return (
    jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
    .lower(
      [f32((batch, length, width))] * exits,
      {0: f32((width, vocab))},
      jax.ShapeDtypeStruct((batch, length), jnp.int32),
      f32((batch, length)),
      f32((exits,)),
    )
    .compile()
    .memory_analysis()
    .temp_size_in_bytes
  )


def test_eight_exits_need_the_memory_of_one():
  one, eight = (_temporary_bytes(exits, chunk=64) for exits in (1, 8))
  print(f'temporary MB: {one / 2**20:.1f}, {eight / 2**20:.1f}')
  assert one >= 8 * 64 * 32_768 * 4
  assert eight < 1.3 * one
  assert _temporary_bytes(1, chunk=256) > 2 * one
