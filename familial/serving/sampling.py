"""From an exit's logits to a token, and how sure the exit is of it."""

import dataclasses
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from familial.core import errors

Array = jax.Array
CONFIDENCES = ('max_prob', 'gap', 'entropy')
FILLS = ('defer', 'propagate')
# Uses of `uniforms`.
DRAW, ACCEPT, REPLACE = range(3)
# Programs compute in float32: what rounds to 0 there is 0, and what is subnormal
# may be.
_LEAST, _MOST = (float(x) for x in (np.finfo('f4').tiny, np.finfo('f4').max))


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are drawn.

  Attributes:
    temperature: logits are divided by it; 0 takes the likeliest token.
    top_k: only this many of the likeliest tokens; 0 for all.
    top_p: only the likeliest tokens that reach this probability together; one
      at least.
    seed: a row's draws depend on it, the row's number and the position alone.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0

  def __post_init__(self) -> None:
    temperature, top_p = self.temperature, self.top_p
    for name, holds, allowed in (
      (
        'temperature',
        temperature == 0 or _LEAST <= temperature <= _MOST,
        f'0, or from {_LEAST:.2g} to {_MOST:.2g}',
      ),
      ('top_k', 0 <= self.top_k < 2**31, 'from 0 to 2^31 - 1'),
      ('top_p', _LEAST <= top_p <= 1, f'from {_LEAST:.2g} to 1'),
      ('seed', 0 <= self.seed < 2**32, 'from 0 to 2^32 - 1'),
    ):
      if not holds:
        raise errors.UserError(
          f'{name}: {getattr(self, name)} is not allowed; it must be {allowed}'
        )
    for name, nothing in (('top_k', 0), ('top_p', 1.0)):
      if temperature == 0 and getattr(self, name) != nothing:
        raise errors.UserError(
          f'{name}: {getattr(self, name)} has no effect at temperature 0, which '
          'takes the likeliest token'
        )


@dataclasses.dataclass(frozen=True)
class Policy:
  """How tokens are drawn, and which exit is believed.

  Attributes:
    sampling: how an exit's token is drawn.
    confidence: one of CONFIDENCES.
    threshold: an exit's token is taken if it is at least this sure; the last
      exit's always is.
    fill: what deeper layers make of a position that left before them, when a
      later one of its row gets there: defer, they take it in then, as if it had
      never left; propagate, they read keys and values off the state it left
      with, and do no more.
  """

  sampling: Sampling = Sampling()
  confidence: str = 'max_prob'
  threshold: float = math.inf
  fill: str = 'defer'

  def __post_init__(self) -> None:
    if self.fill not in FILLS:
      raise errors.UserError(
        f'fill: {self.fill!r} is not one of {", ".join(FILLS)}'
        f'{errors.nearest(self.fill, FILLS)}'
      )
    if self.confidence not in CONFIDENCES:
      raise errors.UserError(
        f'confidence: {self.confidence!r} is not one of '
        f'{", ".join(CONFIDENCES)}'
        f'{errors.nearest(self.confidence, CONFIDENCES)}'
      )
    if not (abs(self.threshold) <= _MOST or self.threshold == math.inf):
      raise errors.UserError(
        f'threshold: {self.threshold} is not allowed; it must be a number of '
        f'magnitude up to {_MOST:.2g}, or inf'
      )


class Numbers(NamedTuple):
  """Those of a Sampling, as a compiled program takes them."""

  temperature: Any
  top_k: Any
  top_p: Any
  seed: Any


def numbers(sampling: Sampling) -> Numbers | None:
  """Returns the numbers of a Sampling; None for the likeliest tokens, whose
  programs are smaller."""
  if sampling.temperature == 0:
    return None
  return Numbers(
    np.float32(sampling.temperature),
    np.int32(sampling.top_k),
    np.float32(sampling.top_p),
    np.uint32(sampling.seed),
  )


def distribution(logits: Array, n: Numbers | None) -> Array:
  """Returns the probabilities [.., V] that tokens are drawn with.

  Args:
    logits: [.., V], float32.
    n: of the sampling.
  """
  vocab = logits.shape[-1]
  if n is None:
    return jax.nn.one_hot(jnp.argmax(logits, axis=-1), vocab)
  # The largest is 0 before it is divided: a low temperature overflows to -inf.
  below = logits - jnp.max(logits, axis=-1, keepdims=True)
  probs = jax.nn.softmax(below / n.temperature, axis=-1)
  order = jnp.argsort(-probs, axis=-1, stable=True)
  ranked = jnp.take_along_axis(probs, order, axis=-1)
  rank = jnp.arange(vocab)
  kept = (jnp.cumsum(ranked, axis=-1) - ranked < n.top_p) & (
    (n.top_k == 0) | (rank < n.top_k)
  )
  kept |= rank == 0  # Whatever top_p is.
  ranks = jnp.argsort(order, axis=-1)
  probs = jnp.where(jnp.take_along_axis(kept, ranks, axis=-1), probs, 0.0)
  return probs / jnp.sum(probs, axis=-1, keepdims=True)


def draw(probs: Array, uniform: Array) -> Array:
  """Returns the token [..] at a quantile [..] of probabilities [.., V]."""
  total = jnp.cumsum(probs, axis=-1)
  # Scaled by the sum, which rounding leaves short of 1.
  below = total <= (uniform[..., None] * total[..., -1:])
  # A token of probability 0 is never drawn: its total equals the one before.
  return jnp.sum(below, axis=-1).astype(jnp.int32)


def uniforms(
  seed: int | Array, row_T: Array, position_TxQ: Array, use: int
) -> Array:
  """Returns a uniform number a row and position [T, Q].

  Args:
    seed: of the whole request.
    row_T: numbers of the rows.
    position_TxQ: numbers of the positions.
    use: what for: numbers of different uses are independent.
  """
  key = jax.random.fold_in(jax.random.key(seed), use)

  def one(row: Array, position: Array) -> Array:
    own = jax.random.fold_in(jax.random.fold_in(key, row), position)
    return jax.random.uniform(own)

  return jax.vmap(jax.vmap(one, (None, 0)))(row_T, position_TxQ)


def confidence(logits: Array, kind: str) -> Array:
  """Returns how sure an exit is [..], from 0 to 1, given its logits [.., V].

  Args:
    logits: float32, of temperature 1.
    kind: max_prob, the largest probability; gap, it less the second largest;
      entropy, 1 - H / log V.
  """
  log_probs = jax.nn.log_softmax(logits, axis=-1)
  probs = jnp.exp(log_probs)
  if kind == 'max_prob':
    return jnp.max(probs, axis=-1)
  if kind == 'gap':
    first = jnp.argmax(logits, axis=-1, keepdims=True)
    others = jnp.where(jnp.arange(logits.shape[-1]) == first, 0.0, probs)
    return jnp.max(probs, axis=-1) - jnp.max(others, axis=-1)
  entropy = -jnp.sum(probs * log_probs, axis=-1)
  return jnp.maximum(1 - entropy / math.log(logits.shape[-1]), 0.0)
