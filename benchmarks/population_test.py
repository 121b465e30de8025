"""Eight runs as one population against eight runs in PyTorch, on CPU."""

from collections.abc import Callable
import functools
import os
import time

import jax
import numpy as np
import pytest

from benchmarks import clock
from familial.training import config as train_config
from familial.training import optimizer
from familial.training import population
from familial.training import sharding
from familial.training import step as step_lib

pytestmark = pytest.mark.bench

_ROWS, _LENGTH, _MEMBERS, _STEPS = 16, 128, 8, population.STEPS
# As short as a run of a sweep is: compiling is shared among that few steps.
_RUN = 400


@pytest.mark.parametrize(('width', 'depth'), [(16, 4), (32, 4), (64, 4)])
def test_seconds_of_eight_runs(width, depth):
  torch = pytest.importorskip('torch')
  from benchmarks import peer

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = clock.model(width, depth, 1)
  trains = [
    train_config.TrainConfig(
      steps=10**6,
      batch_size=_ROWS,
      base_lr=1e-3 * 1.2**k,
      schedule='constant',
      seed=k,
    )
    for k in range(_MEMBERS)
  ]
  data = clock.batch(_ROWS, _LENGTH)
  first = {}
  start = time.perf_counter()
  ours = _population(model, trains, data)
  losses = ours()
  first['familial'] = time.perf_counter() - start

  def contestant(compiled: bool) -> Callable[[], object]:
    runs = []
    for train in trains:
      state = step_lib.init(
        model,
        'all',
        jax.random.key(train.seed),
        optimizer.hyper(train, (depth,)),
      )
      decoder = peer.decoder(state.params, model, _LENGTH)
      adamw = peer.adamw(decoder, model, train)
      # A program serves all eight.
      decoder = torch.compile(decoder) if compiled else decoder
      runs.append(
        functools.partial(peer.step, decoder, adamw, data, train.clip)
      )
    return lambda: np.stack([[run() for _ in range(_STEPS)] for run in runs])

  contestants = {'familial': ours}
  for name, compiled in (('eager', False), ('compiled', True)):
    start = time.perf_counter()
    contestants[name] = contestant(compiled)
    theirs = contestants[name]()
    first[name] = time.perf_counter() - start
    # The same eight runs.
    np.testing.assert_allclose(losses[:, :3], theirs[:, :3, 0], rtol=1e-4)
  seconds = clock.fastest(contestants, rounds=4)
  print(f'\nwidth {width}, {depth} layers: {_MEMBERS} runs of {_RUN} steps')
  whole = {}
  for name, value in seconds.items():
    compiling = first[name] - value
    whole[name] = compiling + _RUN / _STEPS * value
    print(
      f'  {name:9s}{value / _STEPS / _MEMBERS * 1e3:7.2f} ms a step of one, '
      f'{compiling:5.1f} s to compile, {whole[name]:6.1f} s in all'
    )
  for name in ('eager', 'compiled'):
    print(
      f'  speed against PyTorch {name}: '
      f'{whole[name] / whole["familial"]:.2f} compiling counted, '
      f'{seconds[name] / seconds["familial"]:.2f} without'
    )
  assert whole['eager'] / whole['familial'] > 0.5


def _population(model, trains, data) -> Callable[[], np.ndarray]:
  """Returns what takes eight runs a dispatch further; it returns losses [K, T]."""
  mesh = sharding.population(_MEMBERS, _ROWS)
  numbers = [optimizer.hyper(train, model.exits) for train in trains]
  states = [
    population.Members(
      step_lib.init(model, 'all', jax.random.key(train.seed), h), np.bool_(True)
    )
    for train, h in zip(trains, numbers, strict=True)
  ]
  stack = functools.partial(jax.tree.map, lambda *leaves: np.stack(leaves))
  members = sharding.members(stack(*states), mesh)
  h = sharding.members(stack(*numbers), mesh)
  batches = sharding.members_batches(
    jax.tree.map(
      lambda rows: np.broadcast_to(
        rows, (_STEPS, _MEMBERS, *rows.shape)
      ).copy(),
      data,
    ),
    mesh,
  )

  def advance() -> np.ndarray:
    nonlocal members
    with jax.set_mesh(mesh):
      members, metrics = population.train(
        mesh, model, 'all', members, batches, np.int32(_STEPS), h
      )
    return np.asarray(metrics.losses_G)[..., 0].T

  return advance
