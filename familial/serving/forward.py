"""The compiled forward passes of an engine, over parameters and caches.

Shapes: S slots, T rows of a pass, P positions of a pass, L positions of a
cache, Q positions read out (P or 1); the rest as in `transformer`.
"""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from familial.model import attention
from familial.model import config as model_config
from familial.model import transformer
from familial.serving import sampling as sampling_lib

Array = jax.Array
# Keys and values of a layer, each [S, K, L, E].
Cache = tuple[Array, Array]
BEHIND = 4  # positions of a row that `advance` takes in unchanged


class Rows(NamedTuple):
  """The rows of a pass.

  Attributes:
    slot_T: each row's slot; None where the pass has all slots, in order.
    start_T: each row's first position.
    at_T: index of the position that is read out; None for all.
    number_T: numbers of the rows, for their draws.
  """

  slot_T: Any
  start_T: Any
  at_T: Any
  number_T: Any


class Reading(NamedTuple):
  """Predictions of an exit for each row of a pass, on the device.

  Attributes:
    tokens: token drawn at each position [T, Q].
    confidence: confidence of the exit [T, Q].
    logits: float32 logits [T, Q, V].
  """

  tokens: Array
  confidence: Array
  logits: Array


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(5, 6))
def advance(
  model: model_config.ModelConfig,
  confidence: str,
  length: int,
  layers: list[transformer.Params],
  rest: transformer.Params,
  cache: list[Cache],
  states: Array | None,
  x: Array,
  rows: Rows,
  numbers: sampling_lib.Numbers | None,
  behind_T: Array | None,
) -> tuple[Reading, list[Cache], Array | None]:
  """Computes positions through a segment's layers, and its exit's predictions.

  Args:
    model: shape of the family.
    confidence: kind of confidence.
    length: P.
    layers: the segment's layers, one by one.
    rest: the exit's norm, unembedding and branch; a first segment's embedding.
    cache: cache of each layer, the branch's last; donated.
    states: the trunk's states at the segment's end [S, L, D], or None; donated.
    x: tokens [T, P], states [T, P, D], or the states of all slots [S, L, D].
    rows: the rows of the pass.
    numbers: numbers of the sampling; None for greedy decoding.
    behind_T: first of `BEHIND` positions of each row whose states stay as they
      are and which are written to the caches before; those at or after the
      row's start are overwritten. None for no such positions.

  Returns:
    The predictions, the caches, the states.
  """
  slot_T, start_T, at_T, number_T = rows
  x_TxPxD: Any = _inputs(model, rest, x, slot_T, start_T, length)
  position_TxP = start_T[:, None] + np.arange(length)
  cos, sin = _turns(model, cache, position_TxP)
  if behind_T is not None:
    stay_TxPxD = _inputs(model, rest, x, slot_T, behind_T, BEHIND)
    turns = _turns(model, cache, behind_T[:, None] + np.arange(BEHIND))
  grown: list[Cache] = []

  def attend(q_TxHxPxE: Array, k_TxKxPxE: Array, v_TxKxPxE: Array) -> Array:
    out, grown[-1] = attention.cached(
      attention.rotate(q_TxHxPxE, cos, sin),
      attention.rotate(k_TxKxPxE, cos, sin),
      v_TxKxPxE,
      grown[-1],
      start_T,
      slot_T,
    )
    return out

  def through(params: transformer.Params, x_TxPxD: Any) -> Any:
    kept = cache[len(grown)]
    if behind_T is not None:
      kept = _kept(model, params, stay_TxPxD, kept, turns, slot_T, behind_T)
    grown.append(kept)
    return transformer.Layer(model).apply({'params': params}, x_TxPxD, attend)

  for params in layers:
    x_TxPxD = through(params, x_TxPxD)
  if states is not None:
    if behind_T is not None:
      states = attention.write(states, stay_TxPxD, slot_T, behind_T, 0)
    states = attention.write(states, x_TxPxD, slot_T, start_T, 0)
  if 'branch' in rest:
    x_TxPxD = through(rest['branch'], x_TxPxD)
  if at_T is not None:
    x_TxPxD = jnp.take_along_axis(x_TxPxD, at_T[:, None, None], axis=1)
    position_TxP = start_T[:, None] + at_T[:, None]
  h_TxQxD = transformer.head_norm(rest, model, x_TxPxD)
  logits_TxQxV = transformer.read_out(h_TxQxD, rest['unembedding'])
  if numbers is None:
    tokens_TxQ = jnp.argmax(logits_TxQxV, axis=-1).astype(jnp.int32)
  else:
    tokens_TxQ = sampling_lib.draw(
      sampling_lib.distribution(logits_TxQxV, numbers),
      sampling_lib.uniforms(
        numbers.seed, number_T, position_TxP, sampling_lib.DRAW
      ),
    )
  sure_TxQ = sampling_lib.confidence(logits_TxQxV, confidence)
  return Reading(tokens_TxQ, sure_TxQ, logits_TxQxV), grown, states


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(4, 5))
def propagate(
  model: model_config.ModelConfig,
  length: int,
  layers: list[transformer.Params],
  rest: transformer.Params,
  cache: list[Cache],
  states: Array | None,
  x: Array,
  rows: Rows,
) -> tuple[list[Cache], Array | None]:
  """Writes positions whose states stay as they are; see `advance`."""
  slot_T, start_T, *_ = rows
  x_TxPxD = _inputs(model, rest, x, slot_T, start_T, length)
  turns = _turns(model, cache, start_T[:, None] + np.arange(length))
  every = layers + ([rest['branch']] if 'branch' in rest else [])
  grown = [
    _kept(model, params, x_TxPxD, kept, turns, slot_T, start_T)
    for params, kept in zip(every, cache, strict=True)
  ]
  if states is not None:
    states = attention.write(states, x_TxPxD, slot_T, start_T, 0)
  return grown, states


def _kept(
  model: model_config.ModelConfig,
  params: transformer.Params,
  x_TxPxD: Array,
  kept: Cache,
  turns: tuple[Array, Array],
  slot_T: Array | None,
  start_T: Array,
) -> Cache:
  """Returns a layer's cache with the keys and values of given states."""
  found: list[Cache] = []

  def keep(q_TxHxPxE: Array, k_TxKxPxE: Array, v_TxKxPxE: Array) -> Array:
    turned = attention.rotate(k_TxKxPxE, *turns)
    found.append(
      (
        attention.write(kept[0], turned, slot_T, start_T, 1),
        attention.write(kept[1], v_TxKxPxE, slot_T, start_T, 1),
      )
    )
    return q_TxHxPxE

  # The output is not used: the compiler leaves out all but keys and values.
  transformer.Layer(model).apply({'params': params}, x_TxPxD, keep)
  return found[0]


def _inputs(
  model: model_config.ModelConfig,
  rest: transformer.Params,
  x: Array,
  slot_T: Array | None,
  start_T: Array,
  length: int,
) -> Array:
  """Returns the states [T, P, D] that a pass begins with."""
  if 'embedding' in rest:
    x = rest['embedding'][x]
  elif x.shape[:2] != (start_T.shape[0], length):
    x = _rows(x, slot_T, start_T, length)
  return x.astype(model.dtype)


def _turns(
  model: model_config.ModelConfig,
  cache: list[Cache],
  position_TxP: Array,
) -> tuple[Array, Array]:
  """Returns the rotations [T, 1, P, E / 2] of positions."""
  length = cache[0][0].shape[2]
  cos, sin = attention.rotary(model.rope_theta, model.head_dim, length)
  return (
    jnp.asarray(cos)[position_TxP][:, None],
    jnp.asarray(sin)[position_TxP][:, None],
  )


def _rows(
  states: Array, slot_T: Array | None, start_T: Array, length: int
) -> Array:
  """Returns positions [T, P, D] of some rows of a buffer [S, L, D]."""
  if slot_T is None:
    slot_T = jnp.arange(start_T.shape[0])
  # Slicing rows first, and windows of them then, would copy whole rows.
  return jax.vmap(
    lambda slot, start: jax.lax.dynamic_slice(
      states, (slot, start, 0), (1, length, states.shape[2])
    )[0]
  )(slot_T, start_T)


cut = jax.jit(_rows, static_argnums=3)


@functools.partial(jax.jit, donate_argnums=(0, 1))
def clear(
  cache: list[Cache], states: Array | None, slot: int
) -> tuple[list[Cache], Array | None]:
  """Zeroes a slot."""
  return jax.tree.map(lambda kept: kept.at[slot].set(0.0), (cache, states))
