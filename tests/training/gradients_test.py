"""Cosines between the exits' gradients against a gradient of each alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.model import transformer
from familial.training import gradients


def test_cosines_are_those_of_each_exits_own_gradient(shape):
  model = shape(depth=4, exits=(1, 3, 4))
  params = jax.jit(transformer.init, static_argnums=0)(model, jax.random.key(0))
  tokens = np.random.default_rng(0).integers(0, 48, (2, 17), dtype=np.int32)
  batch = {
    'inputs_BxL': tokens[:, :-1],
    'targets_BxL': tokens[:, 1:],
    'weights_BxL': np.ones((2, 16), np.float32),
  }

  @jax.jit
  @jax.jacrev
  def plain(p):
    losses = []
    for logits in transformer.logits(p, model, batch['inputs_BxL']):
      log_p = jax.nn.log_softmax(logits)
      hit = jnp.take_along_axis(log_p, batch['targets_BxL'][..., None], -1)
      losses.append(-hit.mean())
    return jnp.stack(losses)

  grads_G = plain(params)
  grads = [jax.tree.map(lambda leaf, i=i: leaf[i], grads_G) for i in range(3)]
  found = gradients.cosines(params, model, batch)
  assert [tuple(cosine[:3]) for cosine in found] == [
    (1, 2, 1), (1, 3, 1), (2, 3, 1), (2, 3, 3),
  ]  # fmt: skip
  segment_of = {1: 'segment_0', 3: 'segment_1'}
  for record in found:
    a, b = (
      np.concatenate(
        [
          np.ravel(leaf)
          for leaf in jax.tree.leaves(
            grads[exit_ - 1][segment_of[record.layer]]
          )
        ]
      )
      for exit_ in (record.exit_a, record.exit_b)
    )
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert abs(expected) < 0.999
    assert record.cosine == pytest.approx(expected, abs=1e-5)
