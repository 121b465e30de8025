"""From an exit's logits to a token, and how sure the exit is of it."""

import dataclasses

import jax
import jax.numpy as jnp

from familial import errors

Array = jax.Array
CONFIDENCES = ('max_prob', 'gap', 'entropy')
# Uses of `uniforms`.
DRAW, ACCEPT, REPLACE = range(3)


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How tokens are drawn.

  Attributes:
    temperature: logits are divided by it; 0 takes the likeliest token.
    top_k: only this many of the likeliest tokens; 0 for all.
    top_p: only the likeliest tokens that reach this probability together.
    seed: a row's draws depend on it, the row's number and the position alone.
  """

  temperature: float = 0.0
  top_k: int = 0
  top_p: float = 1.0
  seed: int = 0

  def __post_init__(self) -> None:
    for name, holds, allowed in (
      ('temperature', 0 <= self.temperature < float('inf'), 'at least 0'),
      ('top_k', self.top_k >= 0, 'at least 0'),
      ('top_p', 0 < self.top_p <= 1, 'above 0 and at most 1'),
      ('seed', 0 <= self.seed < 2**32, 'from 0 to 2^32 - 1'),
    ):
      if not holds:
        raise errors.UserError(
          f'{name}: {getattr(self, name)} is not allowed; it must be {allowed}'
        )


def distribution(logits: Array, sampling: Sampling) -> Array:
  """Returns the probabilities [.., V] that tokens are drawn with.

  Args:
    logits: [.., V], float32.
    sampling: its numbers are part of the program; a seed is not used.
  """
  vocab = logits.shape[-1]
  if sampling.temperature == 0:
    return jax.nn.one_hot(jnp.argmax(logits, axis=-1), vocab)
  probs = jax.nn.softmax(logits / sampling.temperature, axis=-1)
  if sampling.top_k or sampling.top_p < 1:
    order = jnp.argsort(-probs, axis=-1, stable=True)
    ranked = jnp.take_along_axis(probs, order, axis=-1)
    kept = jnp.cumsum(ranked, axis=-1) - ranked < sampling.top_p
    if sampling.top_k:
      kept &= jnp.arange(vocab) < sampling.top_k
    ranks = jnp.argsort(order, axis=-1)
    probs = jnp.where(jnp.take_along_axis(kept, ranks, axis=-1), probs, 0.0)
    probs /= jnp.sum(probs, axis=-1, keepdims=True)
  return probs


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
    top = jax.lax.top_k(probs, 2)[0]
    return top[..., 0] - top[..., 1]
  entropy = -jnp.sum(probs * log_probs, axis=-1)
  return 1 - entropy / jnp.log(logits.shape[-1])


def check_confidence(kind: str) -> None:
  """Refuses an unknown kind of confidence."""
  if kind not in CONFIDENCES:
    raise errors.UserError(
      f'confidence: {kind!r} is not one of {", ".join(CONFIDENCES)}'
      f'{errors.nearest(kind, CONFIDENCES)}'
    )
