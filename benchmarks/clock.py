"""Fair timing on a busy machine: contestants take turns, the fastest counts."""

from collections.abc import Callable
import time

import jax
import numpy as np

from familial.model import config as model_config
from familial.training import compilation
from familial.training import config as train_config
from familial.training import optimizer
from familial.training import step as step_lib

# As the commands do, and as early: here for PyTorch too.
compilation.keep_freed_memory()


def fastest(
  contestants: dict[str, Callable[[], object]], rounds: int
) -> dict[str, float]:
  """Returns each contestant's least seconds over interleaved rounds."""
  seconds = dict.fromkeys(contestants, np.inf)
  for _ in range(rounds):
    for name, run in contestants.items():
      time.sleep(0.02)  # The last one's threads may still spin for work.
      start = time.perf_counter()
      run()
      seconds[name] = min(seconds[name], time.perf_counter() - start)
  return seconds


def model(width: int, depth: int, granularity: int) -> model_config.ModelConfig:
  """Returns a byte-level model with heads of 32 and G even exits."""
  return model_config.ModelConfig(
    vocab_size=256,
    width=width,
    depth=depth,
    heads=max(1, width // 32),
    kv_heads=max(1, width // 32),
    mlp_width=round(2.75 * width),
    exits=model_config.even_exits(depth, granularity),
  )


def batch(rows: int, length: int) -> dict[str, np.ndarray]:
  """Returns a batch of random bytes."""
  tokens = np.random.default_rng(0).integers(
    0, 256, (rows, length + 1), dtype=np.int32
  )
  return {
    'inputs_BxL': np.ascontiguousarray(tokens[:, :-1]),
    'targets_BxL': np.ascontiguousarray(tokens[:, 1:]),
    'weights_BxL': np.ones((rows, length), np.float32),
  }


class Trainer:
  """The training step of `familial`, with its state.

  Attributes:
    state: the current one.
    compile_seconds: of the first step.
  """

  def __init__(
    self,
    config: model_config.ModelConfig,
    train: train_config.TrainConfig,
    data: dict[str, np.ndarray],
  ):
    self._config, self._data = config, data
    self._hyper = optimizer.hyper(train, config.exits)
    self.state = step_lib.init(
      config, train.trained, jax.random.key(0), self._hyper
    )
    lowered = step_lib.train.lower(
      config, train.trained, self.state, data, self._hyper
    )
    start = time.perf_counter()
    self._step = lowered.compile()
    self.compile_seconds = time.perf_counter() - start

  def step(self) -> np.ndarray:
    """Takes one step; returns the losses [G] before it."""
    self.state, metrics = self._step(self.state, self._data, self._hyper)
    jax.block_until_ready(self.state)
    return np.asarray(metrics.losses_G)
