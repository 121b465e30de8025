"""Statistics of how the states of a residual network move from layer to layer.

Shapes: L layers, R rows (windows of text, or any split of a batch), T tokens of
a row, D width. h_0 is the embedding, h_l the state after layer l = 1 .. L,
before any final norm; dh_l = h_l - h_{l-1}.

Moments of parts are merged in float64 by the pairwise formula of Chan, Golub and
LeVeque (1979): the result depends on the cut into batches by rounding alone, and
the memory does not depend on the number of tokens.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from familial.training import evaluation

Array = jax.Array
# A token has settled once its angle to its last state stays at or below this
# share of its largest angle;
SETTLED = 0.1
# it stopped early if that was within this share of the layers.
EARLY = 0.75
# Other thresholds of the angle, since SETTLED is a choice.
REMAINING = (0.05, 0.1, 0.15, 0.2)
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the quantiles

DEFINITIONS = {
  'turn': 'angle between h_{l-1} and h_l in radians; l from 1',
  'path_share': "turn of layer l over the sum of the token's turns",
  'bend': 'angle between dh_l and dh_{l+1} in radians; l from 1',
  'cosine': 'cosine of bend',
  'cosine_other': (
    'cosine between dh_l of a token and dh_{l+1} of the token half a row away: '
    'the baseline of chance and of a drift common to all tokens'
  ),
  'norm': 'length of h_l; l from 0',
  'update': 'length of dh_l; l from 1',
  'to_last': 'angle between h_l and h_L in radians; l from 0',
  'remaining': "to_last over the token's largest; l from 0",
  'settled': (
    'share of tokens whose angle to the last state stays at or below '
    f'{SETTLED:g} of their largest from layer l on'
  ),
  'early': f'share of tokens that have settled by layer {EARLY:g} L',
  'early_at': (
    f'share of tokens whose remaining at layer {EARLY:g} L is at most this '
    'value, later layers ignored'
  ),
}


class Scale(NamedTuple):
  """Histogram of a quantity: equal bins from `low` to `high`.

  With `log`, of its decimal logarithm. Values outside go to the outermost bins.
  """

  low: float
  high: float
  bins: int
  log: bool = False


_ANGLE, _LENGTH = Scale(0, math.pi, 720), Scale(-6, 6, 2400, log=True)
# Quantities that the regimes follow from; a probe keeps them by group.
REGIME_QUANTITIES = ('turn', 'path_share', 'cosine', 'cosine_other')
SCALES = {
  'turn': _ANGLE,
  'bend': _ANGLE,
  'to_last': _ANGLE,
  'remaining': Scale(0, 1, 400),
  'norm': _LENGTH,
  'update': _LENGTH,
  'loss': Scale(0, 40, 2000),
}


class Moments(NamedTuple):
  """Number of values, their mean, and their summed squared distance from it.

  Three arrays of one shape.
  """

  count: Any
  mean: Any
  m2: Any


class Tally(NamedTuple):
  """Statistics of one batch.

  Attributes:
    moments: by quantity, [R, n]; n is the number of layers of the quantity.
    bins: histograms by quantity of SCALES, [n, bins].
    settled: tokens of each row that settled at each layer, [R, L + 1].
  """

  moments: dict[str, Moments]
  bins: dict[str, Array]
  settled: Array


@dataclasses.dataclass(frozen=True)
class NetworkStatistics:
  """Statistics of a network's tokens by groups of rows, which give errors.

  Attributes:
    width: D.
    moments: by quantity, float64 [groups, n].
    bins: histograms by quantity of SCALES, int64 [n, bins].
    settled: tokens that settled at each layer, int64 [groups, L + 1].
  """

  width: int
  moments: dict[str, Moments]
  bins: dict[str, np.ndarray]
  settled: np.ndarray

  @property
  def depth(self) -> int:
    """L."""
    return self.settled.shape[1] - 1


def measure(states: Array) -> tuple[dict[str, Array], Array]:
  """Returns the quantities of DEFINITIONS for each token.

  Args:
    states: h_0 .. h_L, [L + 1, R, T, D].

  Returns:
    Values [n, R, T] by quantity, NaN where a vector of length zero leaves an
    angle undefined; and the layer at which each token settled [R, T], in 0 .. L,
    or -1 where it is undefined.
  """
  updates = states[1:] - states[:-1]
  turn = angle(states[:-1], states[1:])
  to_last = angle(states, states[-1])
  heading = _unit(updates)
  half = states.shape[2] // 2
  largest = jnp.max(to_last, axis=0)
  below = to_last <= SETTLED * largest
  still = jnp.sum(jnp.cumprod(below[::-1].astype(jnp.int32), axis=0), axis=0)
  values = {
    'turn': turn,
    'path_share': turn / _positive(jnp.sum(turn, axis=0)),
    'bend': angle(updates[:-1], updates[1:]),
    'cosine': jnp.sum(heading[:-1] * heading[1:], axis=-1),
    'cosine_other': jnp.sum(
      heading[:-1] * jnp.roll(heading[1:], half, axis=2), axis=-1
    ),
    'norm': jnp.linalg.norm(states, axis=-1),
    'update': jnp.linalg.norm(updates, axis=-1),
    'to_last': to_last,
    'remaining': to_last / _positive(largest),
  }
  settled = jnp.where(still > 0, states.shape[0] - still, -1)
  return values, settled


def angle(a: Array, b: Array) -> Array:
  """Returns the angle between vectors along the last axis, in radians.

  Kahan's half-angle formula for unit vectors is accurate near 0 and pi, where the
  inverse cosine in float32 is not. NaN where a vector has length zero.
  """
  a, b = _unit(a), _unit(b)
  return 2 * jnp.arctan2(
    jnp.linalg.norm(a - b, axis=-1), jnp.linalg.norm(a + b, axis=-1)
  )


def tally(values: Mapping[str, Array], settled: Array, counted: Array) -> Tally:
  """Returns the statistics of a batch; for use inside a compiled program.

  Args:
    values: by quantity, [n, R, T]; NaN is left out.
    settled: layer at which each token settled, as `measure` returns it.
    counted: [R, T], whether a token counts.
  """
  depth = values['turn'].shape[0]
  at = jax.nn.one_hot(settled, depth + 1, dtype=jnp.int32)  # -1: all zeros
  # One reduction of all quantities compiles faster than one for each.
  whole = _moments(jnp.concatenate(list(values.values())), counted)
  ends = np.cumsum([len(value) for value in values.values()])[:-1]
  parts = zip(*(jnp.split(x, ends, axis=1) for x in whole), strict=True)
  return Tally(
    dict(zip(values, (Moments(*part) for part in parts), strict=True)),
    {
      name: _histogram(values[name], counted, scale)
      for name, scale in SCALES.items()
      if name in values
    },
    jnp.sum(at * counted[..., None], axis=1, dtype=jnp.int32),
  )


def add(
  total: NetworkStatistics | None,
  batch: Tally,
  group_R: np.ndarray,
  groups: int,
  width: int,
) -> NetworkStatistics:
  """Returns the statistics with a batch's rows merged into their groups.

  Args:
    total: of the batches before; None for the first.
    batch: to add.
    group_R: group of each row.
    groups: number of groups.
    width: D.
  """
  belongs_GxR = np.arange(groups)[:, None] == group_R
  moments = {
    name: _grouped(rows, belongs_GxR) for name, rows in batch.moments.items()
  }
  settled = belongs_GxR.astype(np.int64) @ np.asarray(batch.settled)
  bins = {name: np.asarray(c, np.int64) for name, c in batch.bins.items()}
  if total is None:
    return NetworkStatistics(width, moments, bins, settled)
  return NetworkStatistics(
    width,
    {
      name: pool(_stacked([before, moments[name]]))
      for name, before in total.moments.items()
    },
    {name: before + bins[name] for name, before in total.bins.items()},
    total.settled + settled,
  )


def of_states(states: Array, groups: int = 32) -> NetworkStatistics:
  """Returns the statistics of states in memory, [L + 1, T, D].

  Tokens are cut into equal groups; the last T mod `groups` are left out.
  """
  length = states.shape[1] // groups
  rows = states[:, : groups * length].reshape(
    states.shape[0], groups, length, states.shape[2]
  )
  return add(None, _tally_all(rows), np.arange(groups), groups, states.shape[2])


def pool(moments: Moments, times: np.ndarray | None = None) -> Moments:
  """Returns the moments of all parts together (Chan, Golub and LeVeque).

  Args:
    moments: of the parts, along axis 0.
    times: multiplicity of each part, [parts]; 1 by default.
  """
  count, mean, m2 = (np.asarray(x, np.float64) for x in moments)
  if times is not None:
    weight = times.reshape(-1, *(1,) * (count.ndim - 1))
    count, m2 = count * weight, m2 * weight
  total = count.sum(axis=0)
  centre = (count * mean).sum(axis=0) / np.maximum(total, 1)
  apart = (count * (mean - centre) ** 2).sum(axis=0)
  return Moments(total, centre, m2.sum(axis=0) + apart)


def sd(moments: Moments) -> np.ndarray:
  """Returns the standard deviation of the values themselves."""
  return np.asarray(
    np.sqrt(moments.m2 / np.maximum(np.asarray(moments.count) - 1, 1))
  )


def standard_errors(moments: Moments) -> list[float | None]:
  """Returns the standard error of each mean from the scatter between groups.

  None where fewer than two groups have values.
  """
  result = []
  for count, mean in zip(moments.count.T, moments.mean.T, strict=True):
    known = count > 0
    error = None
    if known.any():
      _, error = evaluation.ratio((count * mean)[known], count[known])
    result.append(error)
  return result


def quantiles(counts: np.ndarray, scale: Scale) -> tuple[float | None, ...]:
  """Returns the quantiles at LEVELS of a histogram, to within a bin."""
  cumulative = np.cumsum(counts)
  if not cumulative[-1]:
    return (None,) * len(LEVELS)
  wanted = np.array(LEVELS) * cumulative[-1]
  place = np.searchsorted(cumulative, wanted)
  inside = 1 - (cumulative[place] - wanted) / counts[place]
  at = scale.low + (place + inside) * (scale.high - scale.low) / scale.bins
  return tuple(float(x) for x in (10**at if scale.log else at))


def share_below(counts: np.ndarray, scale: Scale, value: float) -> float:
  """Returns the share of a histogram up to a value at an edge between bins."""
  bins = round((value - scale.low) / (scale.high - scale.low) * scale.bins)
  return float(counts[:bins].sum() / max(counts.sum(), 1))


def middle_layers(depth: int, count: int) -> slice:
  """Returns the indices of the middle layers of a quantity of `count` values.

  The first and the last quarter of the layers, each rounded up, are left out:
  they do special work. Of two neighbours both are in the middle. A network of
  five layers leaves out one at each end, or it would have no two neighbours.
  """
  edge = 1 if depth == 5 else math.ceil(depth / 4)
  return slice(edge, count - edge)


def _unit(x: Array) -> Array:
  return x / _positive(jnp.linalg.norm(x, axis=-1, keepdims=True))


def _positive(x: Array) -> Array:
  return jnp.where(x > 0, x, jnp.nan)


def _moments(values: Array, counted: Array) -> Moments:
  """Returns the moments of each row, [R, n], in two passes for accuracy."""
  use = counted & jnp.isfinite(values)
  count = jnp.sum(use, axis=-1).astype(jnp.float32)
  mean = jnp.sum(jnp.where(use, values, 0), axis=-1) / jnp.maximum(count, 1)
  apart = jnp.where(use, values - mean[..., None], 0)
  return Moments(count.T, mean.T, jnp.sum(apart**2, axis=-1).T)


def _histogram(values: Array, counted: Array, scale: Scale) -> Array:
  use = counted & jnp.isfinite(values)
  if scale.log:
    values = jnp.log10(jnp.maximum(values, 1e-30))
  place = (values - scale.low) / (scale.high - scale.low) * scale.bins
  place = jnp.clip(jnp.where(use, place, 0), 0, scale.bins - 1)
  layer = jnp.arange(values.shape[0])[:, None, None]
  none = jnp.zeros((values.shape[0], scale.bins), jnp.int32)
  return none.at[layer, place.astype(jnp.int32)].add(use.astype(jnp.int32))


def _grouped(moments: Moments, belongs_GxR: np.ndarray) -> Moments:
  """Pools rows [R, n] into groups [groups, n]."""
  moments = Moments(*map(np.asarray, moments))
  return _stacked(
    [
      pool(Moments(*(part[belongs_R] for part in moments)))
      for belongs_R in belongs_GxR
    ]
  )


def _stacked(parts: Sequence[Moments]) -> Moments:
  """Returns the moments of parts along a new axis 0."""
  return Moments(*map(np.stack, zip(*parts, strict=True)))


@jax.jit
def _tally_all(states: Array) -> Tally:
  values, settled = measure(states)
  return tally(values, settled, jnp.ones(states.shape[1:3], bool))
