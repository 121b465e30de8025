import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.training import config as train_config
from familial.training import optimizer
from familial.training import step


@pytest.mark.parametrize('count', [2, 11])
def test_on_a_frozen_trunk_all_exits_but_the_last_are_trained(count):
  exits = {f'exit_{number}': number for number in range(1, count + 1)}
  params = {'embedding': 0, 'segment_0': 0, 'unembedding': 0, **exits}
  trained, frozen = step.partition(params, 'exits')
  assert set(trained) == {f'exit_{number}' for number in range(1, count)}
  assert {**trained, **frozen} == params
  assert step.partition(params, 'all') == (params, {})


def test_a_step_weighs_the_exits_as_moving_weights_are_at_it(shape):
  model = shape(depth=2, exits=(1, 2))
  still = train_config.TrainConfig(
    steps=2, batch_size=2, base_lr=0.5, weighting='uniform'
  )
  moving = dataclasses.replace(still, weighting_end='final_one')
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, model.vocab_size, (2, 9))
  batch = {
    'inputs_BxL': jnp.asarray(tokens[:, :-1], jnp.int32),
    'targets_BxL': jnp.asarray(tokens[:, 1:], jnp.int32),
    'weights_BxL': jnp.ones((2, 8)),
  }
  advance = jax.jit(step.advance, static_argnums=(0, 1))
  norms = {}
  for name, train in (('still', still), ('moving', moving)):
    h = optimizer.hyper(train, model.exits)
    state = step.init(model, 'all', jax.random.key(0), h)
    norms[name] = [
      float(
        advance(model, 'all', state._replace(step=jnp.int32(number)), batch, h)[
          1
        ].gradient_norm
      )
      for number in range(2)
    ]
  assert norms['still'][0] == norms['still'][1]
  assert norms['moving'][0] == norms['still'][0]
  assert norms['moving'][1] != pytest.approx(norms['still'][1], rel=1e-3)
