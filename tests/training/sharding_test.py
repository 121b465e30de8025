"""Layouts on eight virtual devices, each in a process that has them."""

import collections
import dataclasses
import itertools
import json
import math
import os
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest

from familial import errors
from familial import records
from familial.model import transformer
from familial.planning import collectives
from familial.training import config as train_config
from familial.training import loop
from familial.training import sharding

Layout = train_config.LayoutConfig
# Prints each config's losses by step, how one of its kernels is split, and what
# the devices exchange in a step. What a layout has saved, the next one reads.
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
  rng, losses = np.random.default_rng(0), []
  with jax.set_mesh(mesh):
    state = step.init(model, 'all', jax.random.key(0), hyper)
    made = state.params['segment_0']['mlp']['gate']['kernel'].sharding
    programs = step.train._cache_size()
    for _ in range(train.steps):
      tokens = rng.integers(0, model.vocab_size, (8, 33), np.int32)
      batch = sharding.batch(
        {
          'inputs_BxL': tokens[:, :-1],
          'targets_BxL': tokens[:, 1:],
          'weights_BxL': (rng.random((8, 32)) < 0.8).astype(np.float32),
        },
        mesh,
      )
      state, metrics = step.train(
        model, 'all', state, batch, hyper, config.layout.microbatches
      )
      losses.append(metrics.losses_G.tolist())
  kernel = state.params['segment_0']['mlp']['gate']['kernel']
  assert kernel.sharding == made
  assert step.train._cache_size() <= programs + 1
  part = kernel.addressable_shards[0].data.size / kernel.size
  with jax.set_mesh(mesh):
    program = step.train.lower(
      model, 'all', state, batch, hyper, config.layout.microbatches
    )
  found = collectives.of(program.compile().as_text())
  found = [dataclasses.asdict(one) for one in found]
  checkpoints = checkpoint.Checkpoints(f'{sys.argv[2]}/{number}')
  checkpoints.save(state)
  checkpoints.wait()
  like = jax.tree.map(
    lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to),
    state,
    sharding.shardings(state, meshes[number - 1]),
  )
  restored = checkpoints.restore(like)
  checkpoints.close()
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  for leaf, due in zip(jax.tree.leaves(restored), jax.tree.leaves(like)):
    assert leaf.sharding == due.sharding
  print(json.dumps([losses, part, found]), flush=True)
"""
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
AXES = ('data', 'fsdp', 'tensor')
KINDS = {
  'all-gather': 'gather',
  'all-reduce': 'reduce',
  'reduce-scatter': 'reduce',
}
_EIGHT = {'XLA_FLAGS': '--xla_force_host_platform_device_count=8'}


@pytest.fixture
def on_eight(tmp_path):
  """Runs a program of this file on eight devices; returns what it prints."""

  def run(program, configs, *arguments):
    path = tmp_path / 'configs.pickle'
    path.write_bytes(pickle.dumps(configs))
    done = subprocess.run(
      [sys.executable, '-c', program, str(path), *map(str, arguments)],
      env={**os.environ, **_EIGHT},
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr
    # The partitioner found no split that it had to undo on the way.
    assert 'Involuntary' not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]

  return run


@pytest.fixture
def laid_out(run_config, shape):
  """Makes a config of 20 steps that lies on devices as is said."""

  def make(layout, **changes):
    model = shape(
      **{'vocab_size': 64, 'depth': 2, 'exits': (1, 2), 'unroll': False,
         'loss_chunk': 16, 'mlp_width': 32, **changes}
    )  # fmt: skip
    config = run_config(
      dataclasses.replace(model, vocab_size=256), steps=20, evaluations=1
    )
    return dataclasses.replace(config, layout=layout)

  return make


def same(found, expected_part):
  """Whether the first layout's losses are those of all the others."""
  (first, *_), *rest = found
  assert np.ptp(first) > 0.1
  for (losses, part, _), expected in zip(rest, expected_part, strict=True):
    np.testing.assert_allclose(losses, first, rtol=0, atol=1e-5)
    assert part == expected


def exchanged(config, found):
  """Returns the bytes of a step's collectives by (what, axes of the mesh).

  `gather` are all-gathers; `reduce` all-reduces and reduce-scatters, which on
  TPUs take the place of an all-reduce of which each device keeps its part.
  """
  shape = {name: getattr(config.layout, name) for name in AXES}
  devices = np.arange(math.prod(shape.values())).reshape(*shape.values())
  split = [name for name in AXES if shape[name] > 1]
  names = {}
  for count in range(1, len(split) + 1):
    for some in itertools.combinations(split, count):
      at = tuple(slice(None) if name in some else 0 for name in AXES)
      names[tuple(devices[at].ravel().tolist())] = '+'.join(some)
  total = collections.Counter()
  for one in found:
    what = KINDS.get(one['kind'], one['kind'])
    total[what, names[tuple(one['group'])]] += one['bytes'] * one['count']
  return dict(total)


def expected(config):
  """Returns the least and the most bytes that `exchanged` may have.

  The least is theory: every matrix that is split over `fsdp` is gathered once,
  every gradient summed once over the devices that have other rows, a token's
  state summed over `tensor` after the look-up, twice in a layer's forward pass,
  twice in its backward pass, and once for each exit.

  The most is what XLA does on CPU, which sums before it adds (TPUs add first):
  q, k, v and gate, up backwards one by one, 7 for a layer. It gathers the
  embedding for the look-up and, turned, for the exits, and a layer once more
  backwards where that is recomputed or scanned. Its reductions are all-reduces,
  of which each device keeps its part: no reduce-scatter, which would send half
  as much. The exits' gradient of the embedding is summed for itself, once,
  however many exits and chunks there are.
  Beside them go a scalar for each leaf's norm, twice, and for each token and
  exit the largest logit, the sum and the hit over `tensor`.
  """
  model, train, layout = config.model, config.train, config.layout
  params = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
  sizes = collections.Counter()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    sizes[path[-1].key] += 4 * leaf.size
  kernels, gains, table = (
    sizes[name] for name in ('kernel', 'gain', 'embedding')
  )
  exits, parts = model.granularity, layout.microbatches
  data, fsdp, tensor = layout.data, layout.fsdp, layout.tensor
  tokens = 4 * train.batch_size * 32 // (data * fsdp)
  again = 2 if model.remat or not model.unroll else 1
  few = 4 * (1 + exits) * parts + 8 * len(jax.tree.leaves(params))
  bounds = {}

  def add(what, names, least, most):
    axes = '+'.join(name for name in names if getattr(layout, name) > 1)
    if axes:
      low, high = bounds.get((what, axes), (0, few))
      bounds[what, axes] = (low + least, high + most)

  if fsdp > 1:
    least, most = kernels + table, again * kernels + 2 * table
    add('gather', ['fsdp'], least // tensor, parts * most // tensor)
  # Summed over `fsdp` each device keeps its part, and sums that over `data`.
  own = kernels // tensor
  add('reduce', ['fsdp'], own, parts * own)
  if data > 1:
    add('reduce', ['data'], own // fsdp, parts * own // fsdp)
  # The rest is summed over both at once, or over one after the other.
  whole = table // tensor + gains
  least = 0 if data > 1 and fsdp > 1 else whole
  add('reduce', ['data', 'fsdp'], least, parts * (whole + table // tensor))
  add(
    'reduce',
    ['tensor'],
    (1 + 4 * model.depth + exits) * tokens * model.width,
    ((1 + 7 * model.depth + exits) * model.width + 3 * exits) * tokens,
  )
  return bounds


def within(config, found):
  total, bounds = exchanged(config, found), expected(config)
  assert set(total) <= set(bounds)
  for key, (least, most) in bounds.items():
    assert least <= total.get(key, 0) <= most, (key, total, bounds)


def test_a_layout_trains_as_one_device_does(on_eight, laid_out, tmp_path):
  layouts = [Layout(data=1), Layout(data=2, fsdp=2, tensor=2, microbatches=2)]
  configs = [laid_out(layout) for layout in layouts]
  found = on_eight(_CHILD, configs, tmp_path)
  same(found, [1 / 4])
  assert not found[0][2]
  within(configs[1], found[1][2])


@pytest.mark.slow
@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'exit_kind': 'branch', 'branch_unembedding': 'own', 'remat': True},
    {'exit_kind': 'separate', 'tied': False, 'unroll': True},
  ],
)
def test_every_layout_trains_as_one_device_does(on_eight, laid_out, changes):
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
  found = on_eight(_CHILD, [laid_out(layout, **changes) for layout in layouts])
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
  found = on_eight(_COMPILED, configs)
  for config, one in zip(configs, found, strict=True):
    within(config, one)
  totals = [exchanged(*pair) for pair in zip(configs, found, strict=True)]
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
    if step == 11:
      raise Enough

  always = dataclasses.replace(one.train, checkpoint_seconds=0.0)
  part = dataclasses.replace(one, train=always)
  with pytest.raises(Enough):
    loop.run(part, folder, corpus, quiet=True, on_step=stop)
  many = dataclasses.replace(part, layout=Layout(data=2, fsdp=2, tensor=2))
  on_eight(_RUN, [many], folder)
  assert records.read_json(folder / 'config.json')['layout']['fsdp'] == 2
  found, wanted = (
    [row['loss'] for row in records.read(f / records.ROWS)]
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
