"""Trajectories whose regime is known, [L + 1, T, D]."""

import numpy as np


def flow(depth, width, noise=0.0, seed=0, tokens=640):
  """A smooth linear flow for a fixed time, by Euler steps; noise is a random
  part of each step, as a share of the step's length."""
  rng = np.random.default_rng(seed)
  field_DxD = rng.normal(size=(width, width)) / np.sqrt(width)
  states = [rng.normal(size=(tokens, width))]
  for _ in range(depth):
    step = states[-1] @ field_DxD / depth
    random = rng.normal(size=step.shape) / np.sqrt(width)
    length = np.linalg.norm(step, axis=-1, keepdims=True)
    states.append(states[-1] + step + noise * length * random)
  return np.stack(states).astype(np.float32)


def walk(depth, width, noise=0.0, seed=0, tokens=640, power=1.0):
  """Independent steps as 1/depth^power: at 1, an average of estimates; noise is
  a drift that all tokens and layers share, as a share of a step's length."""
  rng = np.random.default_rng(seed)
  drift_D = rng.normal(size=width)
  steps = rng.normal(size=(depth, tokens, width)) + noise * drift_D
  first = rng.normal(size=(1, tokens, width))
  return np.cumsum(
    np.concatenate([first, steps / depth**power]), axis=0
  ).astype(np.float32)


def stopping(depth, width, noise=0.0, seed=0, tokens=640):
  """Each token takes as many random steps as it needs, 1 to all; noise is what
  it goes on doing afterwards, as a share of a step's length."""
  rng = np.random.default_rng(seed)
  needed = rng.integers(1, depth + 1, tokens)
  moves = np.arange(depth)[:, None] < needed
  size = np.where(moves, 1, 0.1 * noise) / np.sqrt(needed)
  steps = rng.normal(size=(depth, tokens, width)) * size[..., None]
  first = rng.normal(size=(1, tokens, width))
  return np.cumsum(np.concatenate([first, steps]), axis=0).astype(np.float32)
