"""The compiled passes of a tier: pure functions of parameters and caches.

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
BEHIND = 4  # positions of a row that a pass takes in as they are


class Reading(NamedTuple):
  """What an exit says of each row of a pass, on the device.

  Attributes:
    tokens: [T, Q], drawn at each position: what follows it.
    confidence: [T, Q], how sure the exit is there.
    logits: [T, Q, V], float32.
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
  slot_T: Array | None,
  start_T: Array,
  at_T: Array | None,
  row_T: Array,
  numbers: sampling_lib.Numbers | None,
  behind_T: Array | None,
) -> tuple[Reading, list[Cache], Array | None]:
  """Takes positions through the layers, and reads the exit out.

  Args:
    model: of the family.
    confidence: its kind.
    length: P.
    layers: of the segment, one by one.
    rest: the exit's norm, unembedding and branch; the embedding of a first one.
    cache: of each layer, the branch's last; donated.
    states: where the trunk's states at the end are kept [S, L, D], or None;
      donated.
    x: tokens [T, P], states [T, P, D], or those of all slots [S, L, D].
    slot_T: each row's slot; None where all are in the pass, in order.
    start_T: each row's first position.
    at_T: which of its positions is read out; None for all.
    row_T: numbers of the rows, for their draws.
    numbers: of the sampling.
    behind_T: first of `BEHIND` positions of each row that stay as they are, and
      are taken in before; what lies past the row's own start is written over.
      None for no such positions.

  Returns:
    The reading, the caches, the states.
  """
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
        numbers.seed, row_T, position_TxP, sampling_lib.DRAW
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
  slot_T: Array | None,
  start_T: Array,
) -> tuple[list[Cache], Array | None]:
  """Takes positions in that stay as they are; arguments as in `advance`."""
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
  """Returns a layer's cache with positions that pass it by."""
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

  # What it returns is not used: the compiler leaves out all but k and v.
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
  """Returns a pass's first states [T, P, D], whatever `Tier.step` was given."""
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
  """Returns some rows' positions [T, P, D] of a buffer of all slots [S, L, D]."""
  if slot_T is None:
    slot_T = jnp.arange(start_T.shape[0])
  # Windows, not rows of which windows are cut: those would be copied whole.
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
