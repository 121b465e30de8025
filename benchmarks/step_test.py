"""Training steps against the same architecture in PyTorch 2, on CPU."""

from collections.abc import Callable
import functools
import os
import time

import numpy as np
import pytest

from benchmarks import clock
from familial.model import flops
from familial.training import config as train_config

pytestmark = pytest.mark.bench

_ROWS, _LENGTH = 16, 128
_TRAIN = train_config.TrainConfig(
  steps=1000, batch_size=_ROWS, base_lr=1e-3, schedule='constant'
)


@pytest.mark.parametrize(
  ('width', 'depth', 'granularity'),
  [(64, 4, 1), (128, 6, 1), (256, 8, 1), (64, 4, 4)],
)
def test_tokens_per_second(width, depth, granularity):
  torch = pytest.importorskip('torch')
  from benchmarks import peer

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  config = clock.model(width, depth, granularity)
  data = clock.batch(_ROWS, _LENGTH)
  ours = clock.Trainer(config, _TRAIN, data)

  def contestant(compiled: bool) -> Callable[[], np.ndarray]:
    model = peer.decoder(ours.state.params, config, _LENGTH)
    adamw = peer.adamw(model, config, _TRAIN)
    model = torch.compile(model) if compiled else model
    return functools.partial(peer.step, model, adamw, data, _TRAIN.clip)

  steps = {
    'familial': ours.step,
    'eager': contestant(False),
    'compiled': contestant(True),
  }
  compile_seconds = {}
  losses = {}
  for name, step in steps.items():
    start = time.perf_counter()
    first = step()
    compile_seconds[name] = time.perf_counter() - start
    losses[name] = np.stack([first] + [step() for _ in range(3)])
  compile_seconds['familial'] += ours.compile_seconds
  # The same mathematics: losses, gradients, clipping and AdamW.
  for name in ('eager', 'compiled'):
    np.testing.assert_allclose(losses['familial'], losses[name], rtol=1e-4)

  seconds = clock.fastest(steps, rounds=10)
  tokens = _ROWS * _LENGTH
  work = tokens * flops.train(config, _LENGTH)
  print(f'\nwidth {width}, {depth} layers, G = {granularity}')
  for name, value in seconds.items():
    print(
      f'  {name:9s}{value * 1e3:7.1f} ms {tokens / value:10,.0f} tokens/s '
      f'{work / value / 1e9:6.1f} GFLOP/s, first step '
      f'{compile_seconds[name]:5.1f} s'
    )
  for name in ('eager', 'compiled'):
    ratio = seconds[name] / seconds['familial']
    print(f'  speed against PyTorch {name}: {ratio:.2f} (0.8 or better)')
    assert ratio > 0.5
