"""Sampling a token from an exit's logits, and the confidence of the exit."""

import dataclasses
import math
from typing import Annotated
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from familial.core import errors
from familial.core import schema

Array = jax.Array
# The range of each kind of confidence.
CONFIDENCES = {
  'max_prob': '1 / V (all V tokens alike) to 1',
  'gap': '0 to 1',
  'entropy': '0 (all tokens alike) to 1',
}
# Independent uses of `uniforms`.
DRAW, ACCEPT, REPLACE = range(3)
# Programs compute in float32: smaller numbers may round to 0 there.
_LEAST, _MOST = (float(x) for x in (np.finfo('f4').tiny, np.finfo('f4').max))


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are drawn.

  Attributes:
    temperature: divisor of the logits; 0 takes the likeliest token.
    top_k: number of likeliest tokens kept; 0 for all.
    top_p: the likeliest tokens that reach this probability are kept, at least
      one.
    seed: a row's draws depend on it, the row's number and the position alone.
  """

  temperature: Annotated[
    float,
    schema.Bound(
      lambda x: x == 0 or _LEAST <= x <= _MOST,
      f'0, or from {_LEAST:.2g} to {_MOST:.2g}',
    ),
  ] = 0.0
  top_k: Annotated[int, schema.within(0, 2**31 - 1)] = 0
  top_p: Annotated[float, schema.within(_LEAST, 1)] = 1.0
  seed: Annotated[int, schema.within(0, 2**32 - 1)] = 0

  def __post_init__(self) -> None:
    schema.check(self)
    for name, default in (('top_k', 0), ('top_p', 1.0)):
      if not self.temperature and getattr(self, name) != default:
        raise errors.UserError(
          f'{name}: {getattr(self, name)} has no effect at temperature 0, which '
          'takes the likeliest token'
        )


@dataclasses.dataclass(frozen=True)
class Policy:
  """How tokens are drawn, and which exit answers.

  Attributes:
    sampling: how an exit's token is drawn.
    confidence: kind of confidence.
    threshold: confidence from which an exit answers; the last exit always does.
    fill: what deeper layers compute for a position that left before them, once
      a later position of its row reaches them. defer: all of it, as if it had
      not left (exact); propagate: keys and values of the state that it left
      with.
  """

  sampling: Sampling = Sampling()
  confidence: Annotated[str, schema.one_of(*CONFIDENCES)] = 'max_prob'
  threshold: Annotated[
    float,
    schema.Bound(
      lambda x: abs(x) <= _MOST or x == math.inf,
      f'a number of magnitude up to {_MOST:.2g}, or inf',
    ),
  ] = math.inf
  fill: Annotated[str, schema.one_of('defer', 'propagate')] = 'defer'

  def __post_init__(self) -> None:
    schema.check(self)


class Numbers(NamedTuple):
  """The fields of a Sampling as arguments of a compiled program."""

  temperature: Any
  top_k: Any
  top_p: Any
  seed: Any


def numbers(sampling: Sampling) -> Numbers | None:
  """Returns the numbers of a Sampling; None for greedy decoding, whose programs
  are smaller."""
  if sampling.temperature == 0:
    return None
  return Numbers(
    np.float32(sampling.temperature),
    np.int32(sampling.top_k),
    np.float32(sampling.top_p),
    np.uint32(sampling.seed),
  )


def distribution(logits: Array, n: Numbers | None) -> Array:
  """Returns the probabilities [.., V] that tokens are drawn with, given float32
  logits [.., V]."""
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
  """Returns a uniform number for each row and position [T, Q].

  Args:
    seed: seed of the request.
    row_T: numbers of the rows.
    position_TxQ: numbers of the positions.
    use: DRAW, ACCEPT or REPLACE; numbers of different uses are independent.
  """
  key = jax.random.fold_in(jax.random.key(seed), use)

  def one(row: Array, position: Array) -> Array:
    own = jax.random.fold_in(jax.random.fold_in(key, row), position)
    return jax.random.uniform(own)

  return jax.vmap(jax.vmap(one, (None, 0)))(row_T, position_TxQ)


def confidence(logits: Array, kind: str) -> Array:
  """Returns the confidence of an exit [..], from 0 to 1.

  Args:
    logits: float32 logits [.., V], of temperature 1.
    kind: max_prob, the largest probability; gap, the largest less the second
      largest; entropy, 1 - H / log V.
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
