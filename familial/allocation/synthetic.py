"""Synthetic learning curves of a known law, clean or noisy.

As in arXiv 2605.17234: L = E + A / N^alpha + B / D^beta with the constants of
Hoffmann et al. (2022) as refitted by Besiroglu et al. (2024). The paper states
neither the length of its curves nor the size of its noise: both are chosen here.
"""

from collections.abc import Mapping

import numpy as np

from familial.allocation import curves as curves_lib

LAW = {'A': 482.01, 'B': 2085.43, 'alpha': 0.3478, 'beta': 0.3658, 'E': 1.8172}
NOISES = ('clean', 'white', 'brownian', 'ornstein_uhlenbeck')
SIZES = 10**2.9, 10**9.2  # range of N, log-uniform
TOKENS = 2e4, 2e10  # D of a curve's first and last point
POINTS = 60  # of a curve, evenly spaced in log D
SCALE = 0.01  # deviation of the noise in ln L, of Brownian noise at the end
_MEMORY = 1.0  # correlation length of Ornstein-Uhlenbeck noise in ln D


def curves(
  count: int,
  noise: str = 'clean',
  seed: int = 0,
  law: Mapping[str, float] = LAW,
) -> curves_lib.Curves:
  """Returns synthetic curves.

  Args:
    count: of curves.
    noise: of ln L along a curve, one of NOISES: `white` is independent,
      `brownian` a random walk in ln D, `ornstein_uhlenbeck` stationary.
    seed: of sizes and noise.
    law: its constants A, B, alpha, beta and E.
  """
  rng = np.random.default_rng(seed)
  low, high = np.log(SIZES)
  sizes = np.exp(rng.uniform(low, high, count))
  tokens = np.geomspace(*TOKENS, POINTS)
  pool = []
  for number, n in enumerate(sizes):
    loss = (
      law['E'] + law['A'] / n ** law['alpha'] + law['B'] / tokens ** law['beta']
    )
    pool.append(
      curves_lib.Curve(
        f'{number}: N = {n:.3g}',
        6 * n * tokens,
        loss * np.exp(SCALE * log_noise(noise, rng)),
        {'N': np.full(POINTS, n), 'D': tokens},
        {'params': float(n)},
      )
    )
  return curves_lib.Curves(tuple(pool), f'synthetic, {noise}', law=law)


def log_noise(kind: str, rng: np.random.Generator) -> np.ndarray:
  """Returns the noise of one curve, of deviation 1 at its end, [POINTS]."""
  steps = rng.standard_normal(POINTS)
  if kind == 'clean':
    return np.zeros(POINTS)
  if kind == 'white':
    return steps
  if kind == 'brownian':
    return np.cumsum(steps) / np.sqrt(POINTS)
  # From the stationary state, by the exact transition.
  decay = np.exp(-np.log(TOKENS[1] / TOKENS[0]) / (POINTS - 1) / _MEMORY)
  path = np.empty(POINTS)
  path[0] = steps[0]
  for i in range(1, POINTS):
    path[i] = decay * path[i - 1] + np.sqrt(1 - decay**2) * steps[i]
  return path
