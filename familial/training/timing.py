"""Measurement of the time of a training step."""

import time

import jax
import numpy as np

from familial.model import flops as flops_lib
from familial.training import compilation
from familial.training import config as train_config
from familial.training import optimizer
from familial.training import sharding
from familial.training import step as step_lib


def measure(config: train_config.RunConfig, steps: int) -> tuple[float, float]:
  """Returns (model FLOP/s, seconds to compile) of a run's training step.

  Args:
    config: config of the run; its tokens are replaced by random ones.
    steps: number of timed steps, of which the fastest counts.
  """
  compilation.prepare(config.data)
  model, train = config.model, config.train
  # Sharded as in a run, so that the run reuses the compiled program.
  over = sharding.mesh(config)
  shape = (train.batch_size // jax.process_count(), config.data.seq_len)
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, model.vocab_size, shape, dtype=np.int32)
  arrays = {
    'inputs_BxL': tokens,
    'targets_BxL': tokens,
    'weights_BxL': np.ones(shape, np.float32),
  }
  if config.data.document_mask:
    arrays['segments_BxL'] = np.zeros(shape, np.int32)
  batch = sharding.batch(arrays, over)
  h = optimizer.hyper(train, model.exits)
  start = time.perf_counter()
  with jax.set_mesh(over):
    state = step_lib.init(model, train.trained, jax.random.key(0), h)

    def step() -> None:
      nonlocal state
      state, _ = step_lib.train(
        model, train.trained, state, batch, h, config.layout.microbatches
      )
      jax.block_until_ready(state)

    step()
    compiled = time.perf_counter() - start
    seconds = []
    for _ in range(steps):
      start = time.perf_counter()
      step()
      seconds.append(time.perf_counter() - start)
  tokens_step = train.batch_size * config.data.seq_len
  flops = tokens_step * flops_lib.train(
    model, config.data.seq_len, train.trained
  )
  return flops / min(seconds), compiled
