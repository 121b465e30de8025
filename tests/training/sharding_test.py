"""Layouts on eight virtual devices, each in a process that has them."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from familial import errors
from familial import records
from familial.training import config as train_config
from familial.training import loop
from familial.training import sharding

Layout = train_config.LayoutConfig
# Prints each config's losses by step, and how one of its kernels is split.
_CHILD = """
import json, pickle, sys
import jax, numpy as np
from familial.training import optimizer, sharding, step
with open(sys.argv[1], 'rb') as file:
  configs = pickle.load(file)
for config in configs:
  model, train = config.model, config.train
  mesh, hyper = sharding.mesh(config), optimizer.hyper(train, model.exits)
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
  print(json.dumps([losses, part]), flush=True)
"""
_RUN = """
import pickle, sys
from familial.training import loop
with open(sys.argv[1], 'rb') as file:
  [config] = pickle.load(file)
loop.run(config, sys.argv[2], quiet=True)
"""
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
  (first, _), *rest = found
  assert np.ptp(first) > 0.1
  for (losses, part), expected in zip(rest, expected_part, strict=True):
    np.testing.assert_allclose(losses, first, rtol=0, atol=1e-5)
    assert part == expected


def test_a_layout_trains_as_one_device_does(on_eight, laid_out):
  layouts = [Layout(data=1), Layout(data=2, fsdp=2, tensor=2, microbatches=2)]
  found = on_eight(_CHILD, [laid_out(layout) for layout in layouts])
  same(found, [1 / 4])


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
