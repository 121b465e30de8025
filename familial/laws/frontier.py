"""The best size at one budget: the minimum of an IsoFLOP curve.

N is parameters, in the literature's notation.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

TOO_FEW = 'fewer than three sizes'
NOT_CONVEX = 'the curve does not bend upwards'
AT_EDGE = 'the minimum lies outside the sampled sizes'


@dataclasses.dataclass(frozen=True)
class Minimum:
  """The minimum of log loss as a parabola in log N.

  Attributes:
    n_opt: the vertex; the best sampled size where `interior` is false.
    loss: in nats, at `n_opt`.
    interior: a vertex between the smallest and the largest sampled size was
      found; otherwise the parabola says nothing and must not be drawn.
    points: how many losses it rests on.
    curvature: log loss = log(`loss`) + curvature * log(N / n_opt)^2; 0 where
      not `interior`.
    flag: why it is not interior, or ''.
  """

  n_opt: float
  loss: float
  interior: bool
  points: int
  curvature: float = 0.0
  flag: str = ''

  def curve(self, params: np.ndarray) -> np.ndarray:
    """Returns the parabola's loss, in nats, at sizes N."""
    return self.loss * np.exp(self.curvature * np.log(params / self.n_opt) ** 2)


def minimum(params: Sequence[float], losses: Sequence[float]) -> Minimum:
  """Returns the IsoFLOP minimum of one budget and granularity.

  The second approach of Hoffmann et al. (2022), in log loss, where noise is
  even.

  Args:
    params: N of each run, at least one.
    losses: in nats, positive, of the same length.
  """
  sizes = np.asarray(params, np.float64)
  values = np.asarray(losses, np.float64)
  if len(np.unique(sizes)) < 3:
    return _flagged(sizes, values, TOO_FEW)
  # Centred and scaled, so that the normal equations stay well conditioned.
  log_sizes = np.log(sizes)
  centre, scale = log_sizes.mean(), np.ptp(log_sizes)
  bend, slope, level = np.polyfit(
    (log_sizes - centre) / scale, np.log(values), 2
  )
  # Rounding alone bends a straight line by about 1e-16 of its height.
  if bend <= 1e-12 * max(1.0, abs(slope)):
    return _flagged(sizes, values, NOT_CONVEX)
  vertex = -slope / (2 * bend)
  log_n = centre + scale * vertex
  if not log_sizes.min() < log_n < log_sizes.max():
    return _flagged(sizes, values, AT_EDGE)
  return Minimum(
    n_opt=math.exp(log_n),
    loss=math.exp(level - bend * vertex**2),
    interior=True,
    points=len(sizes),
    curvature=float(bend / scale**2),
  )


def _flagged(sizes: np.ndarray, values: np.ndarray, flag: str) -> Minimum:
  best = int(np.argmin(values))
  return Minimum(
    n_opt=float(sizes[best]),
    loss=float(values[best]),
    interior=False,
    points=len(sizes),
    flag=flag,
  )
