"""Layouts on eight virtual devices, each in a process that has them."""

import dataclasses

import numpy as np
import pytest

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.planning import collectives
from familial.training import config as train_config
from familial.training import loop
from familial.training import sharding
from tests.training import traffic

Layout = train_config.LayoutConfig
# Prints what the devices exchange in a step of each config. With a folder it trains
# too, and prints the losses by step and which part of a kernel a device has; what
# a layout has saved, the next one reads.
_CHILD = """
import dataclasses, json, pickle, sys
import jax, numpy as np
from familial.planning import collectives
from familial.training import checkpoint, optimizer, sharding, step
with open(sys.argv[1], 'rb') as file:
  configs = pickle.load(file)
meshes = [sharding.mesh(config) for config in configs]
for number, config in enumerate(configs):
  model, train = config.model, config.train
  mesh, hyper = meshes[number], optimizer.hyper(train, model.exits)
  rng = np.random.default_rng(0)
  def batch():
    shape = (train.batch_size, 33)
    tokens = rng.integers(0, model.vocab_size, shape, np.int32)
    weights = rng.random((train.batch_size, 32)) < 0.8
    return sharding.batch(
      {
        'inputs_BxL': tokens[:, :-1],
        'targets_BxL': tokens[:, 1:],
        'weights_BxL': weights.astype(np.float32),
      },
      mesh,
    )
  def init():
    return step.init(model, 'all', jax.random.key(0), hyper)
  def placed(mesh):
    shapes = jax.eval_shape(init)
    return jax.tree.map(
      lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to),
      shapes,
      sharding.shardings(shapes, mesh),
    )
  parts = config.layout.microbatches
  with jax.set_mesh(mesh):
    program = step.train.lower(
      model, 'all', placed(mesh), batch(), hyper, parts
    )
  found = collectives.of(program.compile().as_text())
  found = [dataclasses.asdict(one) for one in found]
  if len(sys.argv) < 3:
    print(json.dumps(found), flush=True)
    continue
  rng, losses = np.random.default_rng(0), []
  with jax.set_mesh(mesh):
    state = init()
    made = state.params['segment_0']['mlp']['gate']['kernel'].sharding
    programs = step.train._cache_size()
    for _ in range(train.steps):
      state, metrics = step.train(model, 'all', state, batch(), hyper, parts)
      losses.append(metrics.losses_G.tolist())
  kernel = state.params['segment_0']['mlp']['gate']['kernel']
  assert kernel.sharding == made
  assert step.train._cache_size() <= programs + 1
  part = kernel.addressable_shards[0].data.size / kernel.size
  checkpoints = checkpoint.Checkpoints(f'{sys.argv[2]}/{number}')
  checkpoints.save(state)
  checkpoints.wait()
  like = placed(meshes[number - 1])
  restored = checkpoints.restore(like)
  checkpoints.close()
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  for leaf, due in zip(jax.tree.leaves(restored), jax.tree.leaves(like)):
    assert leaf.sharding == due.sharding
  print(json.dumps([losses, part, found]), flush=True)
"""
# Prints how far splash attention is from plain attention, and what lies where.
_FUSED = """
import functools, json, sys
import jax, jax.numpy as jnp, numpy as np
from familial.model import attention, kernels
rng = np.random.default_rng(0)
q, k, v = (
  jnp.asarray(rng.normal(size=(4, heads, 128, 8)), jnp.float32)
  for heads in (4, 2, 2)
)
documents = jnp.asarray(rng.integers(0, 2, (4, 128)).cumsum(1) // 30)
def both(attend):
  def total(q, k, v):
    out = attend(q, k, v, documents)
    return jnp.sum(out**2 * jnp.arange(8)), out
  return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v)
plain = both(functools.partial(attention.causal, kind='plain'))
mesh = jax.sharding.Mesh(
  np.array(jax.devices()).reshape(2, 2, 2), ('data', 'fsdp', 'tensor'),
  axis_types=(jax.sharding.AxisType.Auto,) * 3,
)
with jax.set_mesh(mesh):
  fused = both(functools.partial(kernels.splash, interpret=True))
gaps = jax.tree.map(lambda a, b: float(abs(a - b).max()), plain, fused)
print(json.dumps([jax.tree.leaves(gaps), str(fused[1].sharding.spec)]))
"""
_RUN = """
import pickle, sys
from familial.training import loop
with open(sys.argv[1], 'rb') as file:
  [config] = pickle.load(file)
loop.run(config, sys.argv[2], quiet=True)
"""


def same(found, expected_part):
  """Whether the first layout's losses are those of all the others."""
  (first, *_), *rest = found
  assert np.ptp(first) > 0.1
  for (losses, part, _), expected in zip(rest, expected_part, strict=True):
    np.testing.assert_allclose(losses, first, rtol=0, atol=1e-5)
    assert part == expected


def test_a_layout_trains_as_one_device_does(on_eight, laid_out, tmp_path):
  layouts = [Layout(data=1), Layout(data=2, fsdp=2, tensor=2, microbatches=2)]
  configs = [laid_out(layout) for layout in layouts]
  found = on_eight(_CHILD, configs, tmp_path)
  same(found, [1 / 4])
  assert not found[0][2]
  traffic.within(configs[1], found[1][2])


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'exit_kind': 'branch', 'branch_unembedding': 'own', 'remat': True},
    {'exit_kind': 'separate', 'tied': False, 'unroll': True},
  ],
)
def test_every_layout_trains_as_one_device_does(
  on_eight, laid_out, tmp_path, changes
):
  layouts = {
    Layout(data=1): 1,
    Layout(): 1,
    Layout(data=1, microbatches=4): 1,
    Layout(data=8): 1,
    Layout(data=2, fsdp=4): 1 / 4,
    Layout(data=2, fsdp=2, tensor=2): 1 / 4,
    Layout(data=4, tensor=2): 1 / 2,
    Layout(fsdp=8): 1 / 8,
    Layout(fsdp=4, tensor=2, microbatches=2): 1 / 8,
  }
  configs = [laid_out(layout, **changes) for layout in layouts]
  found = on_eight(_CHILD, configs, tmp_path)
  same(found, list(layouts.values())[1:])


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
  found = on_eight(_CHILD, configs)
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


@pytest.mark.slow
def test_fused_attention_is_plain_attention_on_any_layout(on_eight):
  [[gaps, spec]] = on_eight(_FUSED, [])
  assert max(gaps) < 2e-4
  assert spec == "P(('data', 'fsdp'), 'tensor')"


@pytest.mark.slow
def test_a_run_goes_on_in_another_layout(
  on_eight, laid_out, corpus, tmp_path, monkeypatch
):
  one = laid_out(Layout())
  expected, folder = tmp_path / 'one' / 'run', tmp_path / 'many' / 'run'
  assert loop.run(one, expected, corpus, quiet=True) == 'finished'

  class Enough(Exception):
    pass

  def stop(step):
    if step == 6:
      raise Enough

  always = dataclasses.replace(one.train, checkpoint_seconds=0.0)
  part = dataclasses.replace(one, train=always)
  with pytest.raises(Enough):
    loop.run(part, folder, corpus, quiet=True, on_step=stop)
  many = dataclasses.replace(part, layout=Layout(data=2, fsdp=2, tensor=2))
  on_eight(_RUN, [many], folder)
  assert storage.read_json(folder / 'config.json')['layout']['fsdp'] == 2
  found, wanted = (
    [row['loss'] for row in storage.read_rows(f / run_folder.ROWS)]
    for f in (folder, expected)
  )
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
  ('layout', 'said'),
  [
    ({'fsdp': 3}, 'layout.fsdp: 3 does not divide model.width 16'),
    ({'tensor': 3}, 'layout.tensor: 3 does not divide model.heads 4'),
    ({'tensor': 4}, 'layout.tensor: 4 does not divide model.kv_heads 2'),
    ({'fsdp': 16}, 'layout.fsdp: 16 does not divide train.batch_size 8'),
    ({'data': 2}, '2 x 1 x 1 devices are asked for, and there are 1'),
    ({'microbatches': 3}, 'layout.microbatches: 3 does not divide the 8 rows'),
  ],
)
def test_a_layout_that_cannot_be_is_refused(laid_out, layout, said):
  with pytest.raises(errors.UserError, match='layout') as raised:
    sharding.mesh(laid_out(Layout(**layout)))
  assert said in str(raised.value)
