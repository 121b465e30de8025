"""What the middle layers of a network do, in numbers that tell regimes apart.

Random vectors: the cosine of two in D dimensions has mean 0 and standard
deviation 1/sqrt(D), and its square mean 1/D. `alignment` and `departure` take off
what is measured between different tokens: for independent updates these very
numbers, and more where all tokens drift one way, as by a bias of two layers, or
updates share a few dimensions, which is neither a flow nor a disagreement of
layers. `step_spread` takes off the 1/(2 (D - 1)) by which the squared relative
length of a random step varies.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from familial.analysis import trajectories
from familial.core import estimate

LEAST_DEPTH = 4  # which has two middle layers

DEFINITIONS = {
  'alignment': 'mean cosine c between neighbouring updates of the middle '
  'layers, beyond that between different tokens, d: (c - d) / (1 - d)',
  'departure': 'root of the same of the mean squares of the cosines',
  'drift': 'd: what the updates of all tokens have in common',
  'step_spread': "spread over tokens of a middle layer's share of the token's "
  'turns, over its mean, less that of random steps',
  'early': trajectories.DEFINITIONS['early'],
  'stop_spread': 'standard deviation over tokens of the layer at which they '
  'settled, over the depth',
  'angle_exponent': 'slope of the logarithm of the mean turn of a middle layer '
  'on that of depth; of three depths or more',
  'loss_exponent': 'a of the loss c / depth^a + rest, where it was fitted',
}


def statistics(
  network: trajectories.Summary, times: np.ndarray | None = None
) -> dict[str, float]:
  """Returns the statistics of DEFINITIONS that one network has.

  Args:
    network: of at least 4 layers.
    times: how often each group of tokens counts; once by default.
  """
  depth = network.depth
  cosine, other, share = (
    pooled(network, name, times)
    for name in ('cosine', 'cosine_other', 'path_share')
  )
  squares = [
    mean.mean**2 + mean.m2 / np.maximum(mean.count, 1)
    for mean in (cosine, other)
  ]
  variance = share.m2 / np.maximum(share.count, 1)
  relative = variance / np.maximum(share.mean, 1e-30) ** 2
  drift = _over(other.mean, other.count)
  chance = 1 / (2 * max(network.width - 1, 1))
  settled_L = np.einsum(
    'gl,g->l',
    network.settled,
    np.ones(len(network.settled)) if times is None else times,
  )
  settled_L = settled_L / max(settled_L.sum(), 1)
  layers = np.arange(depth + 1) / depth
  spread = settled_L @ layers**2 - (settled_L @ layers) ** 2
  return {
    'alignment': _beyond(_over(cosine.mean, cosine.count), drift),
    'departure': math.sqrt(
      max(
        0.0,
        _beyond(
          _over(squares[0], cosine.count), _over(squares[1], other.count)
        ),
      )
    ),
    'drift': drift,
    'step_spread': math.sqrt(max(0.0, _over(relative, share.count) - chance)),
    'early': float(settled_L[: int(trajectories.EARLY * depth) + 1].sum()),
    'stop_spread': math.sqrt(max(0.0, float(spread))),
  }


def angle_exponent(
  networks: Sequence[trajectories.Summary],
) -> estimate.Estimate | None:
  """Returns how a middle layer's mean turn falls with depth; None for fewer
  than three depths that have middle layers."""
  points = [
    (network.depth, turn(network)) for network in networks if network.depth >= 3
  ]
  return power(*zip(*points, strict=True)) if points else None


def turn(network: trajectories.Summary) -> float:
  """Returns the mean turn of the middle layers, radians; 0 for fewer than 3
  layers, which have none."""
  found = pooled(network, 'turn')
  return _over(found.mean, found.count)


def power(
  depths: Sequence[int], values: Sequence[float]
) -> estimate.Estimate | None:
  """Returns the power of depth that values above 0 follow; None for fewer than
  three depths."""
  x = np.log(np.asarray(depths, float))
  with np.errstate(divide='ignore'):
    y = np.log(np.asarray(values, float))
  if len(set(depths)) < 3 or not np.isfinite(y).all():
    return None
  return estimate.Estimate.slope(x, y)


def of_record(record: Mapping[str, Any]) -> trajectories.Summary:
  """Returns what a probe's record (probe.json) keeps by groups of windows."""
  groups = record['groups']
  moments = {
    name: trajectories.Moments(
      *(
        np.asarray(groups[name][part], float)
        for part in trajectories.Moments._fields
      )
    )
    for name in trajectories.NEEDED
  }
  return trajectories.Summary(
    record['model']['width'], moments, {}, np.asarray(groups['settled'])
  )


def pooled(
  network: trajectories.Summary, name: str, times: np.ndarray | None = None
) -> trajectories.Moments:
  """Returns a quantity's moments by middle layer, over all groups of tokens.

  Args:
    network: which.
    name: of the quantity.
    times: how often each group counts; once by default.
  """
  moments = network.moments[name]
  where = trajectories.middle(network.depth, moments.count.shape[1])
  part = trajectories.Moments(*(x[:, where] for x in moments))
  return trajectories.pool(part, times)


def _beyond(value: float, chance: float) -> float:
  """A cosine, or a squared one, as a share of what chance leaves of 1."""
  return (value - chance) / max(1 - chance, 1e-6)


def _over(values: np.ndarray, count: np.ndarray) -> float:
  """The mean over layers that have values; 0 where none has."""
  some = count > 0
  return float(values[some].mean()) if some.any() else 0.0
