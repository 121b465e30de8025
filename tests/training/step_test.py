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
  model = shape(exits=(1, 3))
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
  norms = {}
  for name, train in (('still', still), ('moving', moving)):
    h = optimizer.hyper(train, model.exits)
    state = step.init(model, 'all', jax.random.key(0), h)
    norms[name] = []
    for number in range(2):
      at = state._replace(step=jnp.int32(number))
      _, metrics = step.advance(model, 'all', at, batch, h)
      norms[name].append(float(metrics.gradient_norm))
  assert norms['still'][0] == norms['still'][1]
  assert norms['moving'][0] == norms['still'][0]
  assert norms['moving'][1] != pytest.approx(norms['still'][1], rel=1e-3)
