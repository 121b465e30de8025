"""Training steps against the same architecture in PyTorch, on CPU."""

import functools
import os
import time

import numpy as np
import pytest

from familial import flops
from familial.training import config as train_config
from tests.benchmarks import clock

pytestmark = pytest.mark.bench

_ROWS, _LENGTH = 16, 128
_TRAIN = train_config.TrainConfig(
  steps=1000, batch_size=_ROWS, base_lr=1e-3, schedule='constant'
)


@pytest.mark.parametrize('granularity', [1, 4])
@pytest.mark.parametrize(('width', 'depth'), [(64, 4), (128, 6), (256, 8)])
def test_step_against_pytorch(width, depth, granularity, capsys):
  torch = pytest.importorskip('torch')
  from tests.benchmarks import peer

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  config = clock.model(width, depth, granularity)
  data = clock.batch(_ROWS, _LENGTH)
  ours = clock.Trainer(config, _TRAIN, data)
  eager = peer.decoder(ours.state.params, config, _LENGTH)
  start = time.perf_counter()
  peers = {'eager': eager}
  compiled = peer.decoder(ours.state.params, config, _LENGTH)
  compiled_forward = torch.compile(compiled)
  steps = {
    'eager': functools.partial(
      peer.step, eager, peer.adamw(eager, config, _TRAIN), data, _TRAIN.clip
    ),
    'compiled': functools.partial(
      peer.step,
      compiled_forward,
      peer.adamw(compiled, config, _TRAIN),
      data,
      _TRAIN.clip,
    ),
  }
