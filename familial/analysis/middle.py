"""Statistics of the middle layers of a network that tell regimes apart.

The cosine of two random vectors in D dimensions has mean 0 and standard deviation
1/sqrt(D), and its square has mean 1/D. `alignment` and `departure` are corrected
for the cosines measured between different tokens: these equal the random values
for independent updates, and exceed them where all tokens drift in one direction
(as by a bias of two layers) or updates share a few dimensions, which indicates
neither a flow nor disagreement of layers. `step_spread` is corrected for
1/(2 (D - 1)), the variance of the squared relative length of a random step.
"""

from collections.abc import Sequence
import math

import numpy as np

from familial.analysis import trajectories
from familial.core.estimate import Estimate

LEAST_DEPTH = 4  # the least with two middle layers
DEFINITIONS = {
  'alignment': (
    'mean cosine c between neighbouring updates of the middle layers, corrected '
    'for the mean d between different tokens: (c - d) / (1 - d)'
  ),
  'departure': 'root of the mean squared cosine, corrected in the same way',
  'drift': 'd, the mean cosine between updates of different tokens',
  'step_spread': (
    "coefficient of variation over tokens of a middle layer's share of a token's "
    'turns, corrected for that of random steps'
  ),
  'early': trajectories.DEFINITIONS['early'],
  'stop_spread': (
    'standard deviation over tokens of the layer at which they settled, over the '
    'depth'
  ),
  'angle_exponent': (
    'slope of the log mean turn of a middle layer on log depth, from three depths '
    'or more'
  ),
  'loss_exponent': 'a of the fitted loss c / depth^a + constant',
}


def statistics(
  network: trajectories.NetworkStatistics, times: np.ndarray | None = None
) -> dict[str, float]:
  """Returns the statistics of DEFINITIONS that one network has.

  Args:
    network: of at least LEAST_DEPTH layers.
    times: multiplicity of each group of tokens; 1 by default.
  """
  depth = network.depth
  cosine, other, share = (
    pooled(network, name, times)
    for name in ('cosine', 'cosine_other', 'path_share')
  )
  squares, squares_other = (
    moments.mean**2 + moments.m2 / np.maximum(moments.count, 1)
    for moments in (cosine, other)
  )
  variance = share.m2 / np.maximum(share.count, 1)
  relative = variance / np.maximum(share.mean, 1e-30) ** 2
  drift = _mean(other.mean, other.count)
  chance = 1 / (2 * max(network.width - 1, 1))
  settled_L = np.einsum(
    'gl,g->l',
    network.settled,
    np.ones(len(network.settled)) if times is None else times,
  )
  settled_L = settled_L / max(settled_L.sum(), 1)
  layers = np.arange(depth + 1) / depth
  spread = settled_L @ layers**2 - (settled_L @ layers) ** 2
  departure = _corrected(
    _mean(squares, cosine.count), _mean(squares_other, other.count)
  )
  return {
    'alignment': _corrected(_mean(cosine.mean, cosine.count), drift),
    'departure': math.sqrt(max(0.0, departure)),
    'drift': drift,
    'step_spread': math.sqrt(max(0.0, _mean(relative, share.count) - chance)),
    'early': float(settled_L[: int(trajectories.EARLY * depth) + 1].sum()),
    'stop_spread': math.sqrt(max(0.0, float(spread))),
  }


def turn(network: trajectories.NetworkStatistics) -> float | None:
  """Returns the mean turn of the middle layers in radians.

  None for fewer than 3 layers, which have no middle.
  """
  if network.depth < 3:
    return None
  moments = pooled(network, 'turn')
  return _mean(moments.mean, moments.count)


def angle_exponent(
  networks: Sequence[trajectories.NetworkStatistics],
) -> Estimate | None:
  """Returns the exponent of depth in the mean turn of a middle layer.

  None for fewer than three depths that have middle layers.
  """
  points = [
    (network.depth, angle)
    for network in networks
    if (angle := turn(network)) is not None
  ]
  return power(*zip(*points, strict=True)) if points else None


def power(depths: Sequence[int], values: Sequence[float]) -> Estimate | None:
  """Returns the exponent of depth of positive values, by least squares of logs.

  None for fewer than three depths.
  """
  x = np.log(np.asarray(depths, float))
  with np.errstate(divide='ignore'):
    y = np.log(np.asarray(values, float))
  if len(set(depths)) < 3 or not np.isfinite(y).all():
    return None
  return Estimate.slope(x, y)


def pooled(
  network: trajectories.NetworkStatistics,
  name: str,
  times: np.ndarray | None = None,
) -> trajectories.Moments:
  """Returns a quantity's moments by middle layer, over all groups of tokens.

  Args:
    network: to summarise.
    name: of the quantity.
    times: multiplicity of each group; 1 by default.
  """
  moments = network.moments[name]
  layers = trajectories.middle_layers(network.depth, moments.count.shape[1])
  part = trajectories.Moments(*(x[:, layers] for x in moments))
  return trajectories.pool(part, times)


def _corrected(value: float, chance: float) -> float:
  """Returns a (squared) cosine as a share of the range that chance leaves of 1."""
  return (value - chance) / max(1 - chance, 1e-6)


def _mean(values: np.ndarray, count: np.ndarray) -> float:
  """Returns the mean over layers that have values; 0 where none has."""
  known = count > 0
  return float(values[known].mean()) if known.any() else 0.0
