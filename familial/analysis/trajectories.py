"""How states move from layer to layer, and exact statistics of it by parts.

Shapes: L layers, R rows (windows of text, or any split of a batch), T tokens of
a row, D width. h_0 is the embedding, h_l the state after layer l = 1 .. L,
before any final norm; dh_l = h_l - h_{l-1}. The states may be those of any
residual network.

Statistics of parts are merged in float64 by the pairwise formula of Chan, Golub
and LeVeque (1979), so nothing depends on how tokens were cut into batches but
rounding, and memory not on how many there are.
"""

from collections.abc import Mapping
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
# share of the largest that it had;
SETTLED = 0.1
# and it has stopped early if that was within this share of the layers.
EARLY = 0.75
# Where a token that has settled is told apart from one that has not is a choice:
# what others would say.
REMAINING = (0.05, 0.1, 0.15, 0.2)
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)

DEFINITIONS = {
  'turn': 'angle between h_{l-1} and h_l, radians; layer l from 1',
  'path_share': 'turn of layer l over the sum of the token\'s turns',
  'bend': 'angle between dh_l and dh_{l+1}, radians; layer l from 1',
  'cosine': 'cosine of bend',
  'cosine_other': 'cosine between dh_l of a token and dh_{l+1} of the token '
  'half a row away: what bend would be by chance and by common drift',
  'norm': 'length of h_l; layer l from 0',
  'update': 'length of dh_l; layer l from 1',
  'to_last': 'angle between h_l and h_L, radians; layer l from 0',
  'remaining': 'to_last over the largest that the token had; layer l from 0',
  'settled': 'share of tokens whose angle to the last state is at most '
  f'{SETTLED:g} of the largest that they had, from layer l on for good',
  'early': f'share of tokens that have settled by layer {EARLY:g} L',
  'early_at': f'share of tokens whose remaining at layer {EARLY:g} L is at most '
  'this much, whatever comes after',
}  # fmt: skip


class Scale(NamedTuple):
  """Where a quantity is counted: `bins` equal steps from `low` to `high`, of
  its decimal logarithm if `log`; what is outside goes to the ends."""

  low: float
  high: float
  bins: int
  log: bool = False


_ANGLE, _LENGTH = Scale(0, math.pi, 720), Scale(-6, 6, 2400, log=True)
# What the regimes are told from, kept by groups in a probe's record.
NEEDED = ('turn', 'path_share', 'cosine', 'cosine_other')
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
  """Of values that count: how many, their mean, and their summed squared
  distance from it; three arrays of one shape."""

  count: Any
  mean: Any
  m2: Any


class Tally(NamedTuple):
  """What a batch adds.

  Attributes:
    moments: by quantity, [R, n]; n is L or so, as the quantity has it.
    bins: by quantity of SCALES, counts [n, bins].
    settled: tokens of each row that settled at each layer, [R, L + 1].
  """

  moments: dict[str, Moments]
  bins: dict[str, Array]
  settled: Array


@dataclasses.dataclass(frozen=True)
class Summary:
  """Statistics of tokens in groups of rows, from which errors are known.

  Attributes:
    width: D.
    moments: by quantity, float64 [groups, n].
    bins: by quantity of SCALES, int64 [n, bins].
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
    By name values [n, R, T], NaN where a vector of length zero leaves an angle
    undefined; and the layer at which each token settled [R, T], in 0 .. L, -1
    where that is undefined.
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

  By half-angles of unit vectors (Kahan): exact near 0 and pi, where the inverse
  cosine of a float32 is not. NaN where a vector has length zero.
  """
  a, b = _unit(a), _unit(b)
  return 2 * jnp.arctan2(
    jnp.linalg.norm(a - b, axis=-1), jnp.linalg.norm(a + b, axis=-1)
  )


def tally(values: Mapping[str, Array], settled: Array, counted: Array) -> Tally:
  """Returns what a batch adds to a summary; for use inside a compiled program.

  Args:
    values: by quantity, [n, R, T]; NaN does not count.
    settled: as of `measure`.
    counted: [R, T], whether a token counts.
  """
  depth = values['turn'].shape[0]
  at = jax.nn.one_hot(settled, depth + 1, dtype=jnp.int32)  # Of -1 all zero.
  # All at once: a program of one reduction compiles faster than of ten.
  whole = _moments(jnp.concatenate(list(values.values())), counted)
  ends = np.cumsum([len(value) for value in values.values()])[:-1]
  parts = zip(*(jnp.split(x, ends, axis=1) for x in whole), strict=True)
  return Tally(
    dict(zip(values, (Moments(*part) for part in parts), strict=True)),
    {
      name: _count(values[name], counted, scale)
      for name, scale in SCALES.items()
      if name in values
    },
    jnp.sum(at * counted[..., None], axis=1, dtype=jnp.int32),
  )


def add(
  summary: Summary | None,
  batch: Tally,
  group_R: np.ndarray,
  groups: int,
  width: int,
) -> Summary:
  """Returns a summary with a batch's rows merged into their groups."""
  belongs_GxR = np.arange(groups)[:, None] == group_R
  rows = {
    name: _grouped(moments, belongs_GxR)
    for name, moments in batch.moments.items()
  }
  settled = belongs_GxR.astype(np.int64) @ np.asarray(batch.settled)
  bins = {name: np.asarray(c, np.int64) for name, c in batch.bins.items()}
  if summary is None:
    return Summary(width, rows, bins, settled)
  return Summary(
    width,
    {
      name: pool(
        Moments(*map(np.stack, zip(was, rows[name], strict=True)))
      )
      for name, was in summary.moments.items()
    },
    {name: was + bins[name] for name, was in summary.bins.items()},
    summary.settled + settled,
  )  # fmt: skip


def summarise(states: Array, groups: int = 32) -> Summary:
  """Returns the statistics of states in memory, [L + 1, T, D], in equal groups
  of tokens; of T tokens the last T mod groups are left out."""
  length = states.shape[1] // groups
  rows = states[:, : groups * length].reshape(
    states.shape[0], groups, length, states.shape[2]
  )
  return add(None, _tally_all(rows), np.arange(groups), groups, states.shape[2])


def pool(moments: Moments, times: np.ndarray | None = None) -> Moments:
  """Returns the moments of all parts together.

  Args:
    moments: of the parts, along axis 0.
    times: how often each part counts, [parts]; once by default.
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
  """Returns the error of each mean, groups taken as independent; None for
  fewer than two groups that have values."""
  found = []
  for count, mean in zip(moments.count.T, moments.mean.T, strict=True):
    some = count > 0
    _, error = (
      evaluation.ratio((count * mean)[some], count[some])
      if some.any()
      else (None, None)
    )
    found.append(error)
  return found


def quantiles(counts: np.ndarray, scale: Scale) -> list[float | None]:
  """Returns the quantiles at LEVELS of counted values, to within a bin."""
  upto = np.cumsum(counts)
  if not upto[-1]:
    return [None] * len(LEVELS)
  wanted = np.array(LEVELS) * upto[-1]
  place = np.searchsorted(upto, wanted)
  inside = 1 - (upto[place] - wanted) / counts[place]
  at = scale.low + (place + inside) * (scale.high - scale.low) / scale.bins
  return [float(x) for x in (10**at if scale.log else at)]


def share_below(counts: np.ndarray, scale: Scale, value: float) -> float:
  """Returns the share of counted values up to one, at an edge between bins."""
  bins = round((value - scale.low) / (scale.high - scale.low) * scale.bins)
  return float(counts[:bins].sum() / max(counts.sum(), 1))


def middle(depth: int, every: int) -> slice:
  """Returns where the middle layers are, in a quantity of L or L - 1 values.

  The first and the last quarter, each rounded up, are left out: the first and
  the last layers do what is theirs alone. Of neighbours both are in the middle.
  Five layers lose but one at either end, or no two would be left.
  """
  edge = 1 if depth == 5 else math.ceil(depth / 4)
  return slice(edge, every - edge)


def _unit(x: Array) -> Array:
  return x / _positive(jnp.linalg.norm(x, axis=-1, keepdims=True))


def _positive(x: Array) -> Array:
  return jnp.where(x > 0, x, jnp.nan)


def _moments(values: Array, counted: Array) -> Moments:
  """Of each row, [R, n], in two passes: no difference of large numbers."""
  use = counted & jnp.isfinite(values)
  count = jnp.sum(use, axis=-1).astype(jnp.float32)
  mean = jnp.sum(jnp.where(use, values, 0), axis=-1) / jnp.maximum(count, 1)
  apart = jnp.where(use, values - mean[..., None], 0)
  return Moments(count.T, mean.T, jnp.sum(apart**2, axis=-1).T)


def _count(values: Array, counted: Array, scale: Scale) -> Array:
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
  pooled = [
    pool(Moments(*(part[belongs_R] for part in moments)))
    for belongs_R in belongs_GxR
  ]
  return Moments(*map(np.stack, zip(*pooled, strict=True)))


@jax.jit
def _tally_all(states: Array) -> Tally:
  values, settled = measure(states)
  return tally(values, settled, jnp.ones(states.shape[1:3], bool))
