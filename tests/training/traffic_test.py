import dataclasses

import pytest

from familial.planning import collectives
from familial.training import config as train_config
from tests.training import traffic

Layout = train_config.LayoutConfig
# Prints what the devices exchange in a step of each config; runs none.
_COMPILED = """
import dataclasses, json, pickle, sys
import jax, numpy as np
from familial.planning import collectives
from familial.training import optimizer, sharding, step
with open(sys.argv[1], 'rb') as file:
  configs = pickle.load(file)
for config in configs:
  model, train = config.model, config.train
  mesh, hyper = sharding.mesh(config), optimizer.hyper(train, model.exits)
  rows = np.zeros((train.batch_size, 32), np.int32)
  batch = sharding.batch(
    {
      'inputs_BxL': rows,
      'targets_BxL': rows,
      'weights_BxL': rows.astype(np.float32),
    },
    mesh,
  )
  with jax.set_mesh(mesh):
    state = jax.eval_shape(
      lambda: step.init(model, 'all', jax.random.key(0), hyper)
    )
    state = jax.tree.map(
      lambda leaf, where: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=where
      ),
      state,
      sharding.shardings(state, mesh),
    )
    program = step.train.lower(
      model, 'all', state, batch, hyper, config.layout.microbatches
    )
  found = collectives.of(program.compile().as_text())
  print(json.dumps([dataclasses.asdict(one) for one in found]), flush=True)
"""


@pytest.mark.slow
def test_what_devices_exchange_follows_from_the_layout(on_eight, laid_out):
  """Weak scaling: bytes a device depend on its rows, not on how many it is."""

  def make(batch, remat=False, **layout):
    config = laid_out(Layout(**{'data': 1, **layout}), unroll=True, remat=remat)
    return dataclasses.replace(
      config,
      train=dataclasses.replace(
        config.train, batch_size=batch, eval_batch_size=batch
      ),
    )

  configs = [
    *(make(2 * n, data=n) for n in (2, 4, 8)),
    make(32, data=8),
    *(make(2 * n, fsdp=n) for n in (2, 4, 8)),
    make(32, fsdp=8),
    make(16, fsdp=8, remat=True),
    make(4, tensor=2),
    make(8, tensor=2),
    make(16, data=2, fsdp=2, tensor=2),
  ]
  found = on_eight(_COMPILED, configs)
  for config, one in zip(configs, found, strict=True):
    traffic.within(config, one)
  totals = [
    traffic.exchanged(*pair) for pair in zip(configs, found, strict=True)
  ]
  data, fsdp, recomputed, tensor = (
    totals[:4], totals[4:8], totals[8], totals[9:11]
  )  # fmt: skip
  assert data[0] == data[1] == data[2] == data[3]
  assert fsdp[0] == fsdp[1] == fsdp[2] == fsdp[3]
  # What is recomputed is gathered again.
  gather = ('gather', 'fsdp')
  assert recomputed[gather] > 1.1 * fsdp[2][gather]
  # Only what grows with the tokens is exchanged within a row of `tensor`.
  assert tensor[1]['reduce', 'tensor'] > 1.99 * tensor[0]['reduce', 'tensor']
  for number, one in zip((2, 4, 8), found, strict=False):
    sent = sum(
      collectives.Collective(**{**each, 'group': tuple(each['group'])}).sent
      * each['count']
      for each in one
    )
    ring = 2 * (number - 1) / number
    assert sent == pytest.approx(ring * data[0]['reduce', 'data'])
