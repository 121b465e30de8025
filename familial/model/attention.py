"""Rotary positions and causal attention, heads before positions (BHLE)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from familial.model import kernels

Array = jax.Array

# Far below any logit, finite so that a masked row gives no NaN.
_MASKED = -1e9


def rotary(
  theta: float, dim: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Cosines and sines [L, E / 2] of positions 0 .. length - 1, as constants.

  Args:
    theta: base of the frequencies theta^(-2 i / E).
    dim: E, the dimension of a head.
    length: L, the number of positions.

  Source: RoFormer, arXiv 2104.09864.
  """
  frequencies = theta ** (-np.arange(0, dim, 2) / dim)
  angles_LxE = np.arange(length)[:, None] * frequencies
  return (
    np.cos(angles_LxE).astype(np.float32),
    np.sin(angles_LxE).astype(np.float32),
  )


def rotate(
  x_BxHxLxE: Array, cos: np.ndarray | Array, sin: np.ndarray | Array
) -> Array:
  """Returns queries or keys rotated by position, in the half-split convention.

  Args:
    x_BxHxLxE: queries or keys.
    cos: cosines of `rotary` at the positions of x, broadcast to [B, H, L, E / 2].
    sin: sines of `rotary`, in the same shape.

  Source: RoFormer, arXiv 2104.09864; pairs (i, i + E/2) as in Llama's files.
  """
  first, second = jnp.split(x_BxHxLxE.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return rotated.astype(x_BxHxLxE.dtype)


def causal(
  q_BxHxLxE: Array,
  k_BxKxLxE: Array,
  v_BxKxLxE: Array,
  segments_BxL: Array | None,
  kind: str,
) -> Array:
  """Returns causal attention's output [B, H, L, E].

  Args:
    q_BxHxLxE: rotated queries, unscaled.
    k_BxKxLxE: rotated keys; head h reads key head h // (H / K).
    v_BxKxLxE: values.
    segments_BxL: documents that attention must not cross, or None.
    kind: `plain`, `blocked` or `fused`; they agree up to rounding.

  Raises:
    UserError: if the devices do not support `fused`.
  """
  kernel = kernels.here() if kind == 'fused' else None
  if kernel is not None:
    return kernel(q_BxHxLxE, k_BxKxLxE, v_BxKxLxE, segments_BxL)
  length = q_BxHxLxE.shape[2]
  half = length // 2
  if kind == 'plain' or length % 2 or length < 32:
    return _square(q_BxHxLxE, k_BxKxLxE, v_BxKxLxE, segments_BxL)
  # The first half of the queries attends to no key of the second half, so a
  # quarter of the square is not computed.
  first = _square(
    q_BxHxLxE[:, :, :half],
    k_BxKxLxE[:, :, :half],
    v_BxKxLxE[:, :, :half],
    None if segments_BxL is None else segments_BxL[:, :half],
  )
  second = _square(q_BxHxLxE[:, :, half:], k_BxKxLxE, v_BxKxLxE, segments_BxL)
  return jnp.concatenate([first, second], axis=2)


def cached(
  q_BxHxPxE: Array,
  k_BxKxPxE: Array,
  v_BxKxPxE: Array,
  cache: tuple[Array, Array],
  start_B: Array,
  slot_B: Array | None = None,
) -> tuple[Array, tuple[Array, Array]]:
  """Attention of P new positions of each row to a cache extended by them.

  The positions of row b are start_b .. start_b + P - 1. Later entries of the cache
  are masked out of the softmax and may have any finite value.

  Args:
    q_BxHxPxE: rotated queries, unscaled.
    k_BxKxPxE: rotated keys.
    v_BxKxPxE: values.
    cache: keys and values, each [S, K, L, E]; L is at least start + P.
    start_B: each row's first new position.
    slot_B: each row's slot in the cache; None if all rows are in slot order.

  Returns:
    The output [B, H, P, E], and the cache with the new positions.
  """
  cache = (
    write(cache[0], k_BxKxPxE, slot_B, start_B, 1),
    write(cache[1], v_BxKxPxE, slot_B, start_B, 1),
  )
  keys_BxKxLxE, values_BxKxLxE = (
    buffer if slot_B is None else buffer[slot_B] for buffer in cache
  )
  ahead_BxPxL = np.arange(keys_BxKxLxE.shape[2]) - (
    start_B[:, None, None] + np.arange(q_BxHxPxE.shape[2])[:, None]
  )
  bias_BxPxL = jnp.where(ahead_BxPxL <= 0, 0.0, _MASKED)
  out_BxHxPxE = _attend(
    q_BxHxPxE, keys_BxKxLxE, values_BxKxLxE, [bias_BxPxL[:, None, None]]
  )
  return out_BxHxPxE, cache


def write(
  buffer: Array,
  new: Array,
  slot_B: Array | None,
  start_B: Array,
  axis: int,
) -> Array:
  """Returns a buffer with new positions of some rows, in place if donated.

  Args:
    buffer: [S, ..], one row per slot.
    new: [B, ..], with P positions along the axis.
    slot_B: each row's slot; None if the rows are in slot order.
    start_B: first of each row's positions.
    axis: axis of the positions within a row.
  """

  def one(b: Array, buffer: Array) -> Array:
    at = [b if slot_B is None else slot_B[b]] + [jnp.int32(0)] * (new.ndim - 1)
    at[1 + axis] = start_B[b]
    row = jax.lax.dynamic_slice_in_dim(new, b, 1)
    return jax.lax.dynamic_update_slice(buffer, row.astype(buffer.dtype), at)

  return jax.lax.fori_loop(0, new.shape[0], one, buffer)


def _square(
  q_BxHxQxE: Array,
  k_BxKxLxE: Array,
  v_BxKxLxE: Array,
  segments_BxL: Array | None,
) -> Array:
  """Causal attention of the last Q positions to all L."""
  queries, length = q_BxHxQxE.shape[2], k_BxKxLxE.shape[2]
  positions = np.arange(length)
  biases: list[Any] = [
    np.where(
      positions[None, :] <= positions[length - queries :, None], 0.0, _MASKED
    ).astype(np.float32)
  ]
  if segments_BxL is not None:
    same_BxQxL = (
      segments_BxL[:, length - queries :, None] == segments_BxL[:, None, :]
    )
    biases.append(jnp.where(same_BxQxL, 0.0, _MASKED)[:, None, None])
  return _attend(q_BxHxQxE, k_BxKxLxE, v_BxKxLxE, biases)


def _attend(
  q_BxHxQxE: Array, k_BxKxLxE: Array, v_BxKxLxE: Array, biases: list[Any]
) -> Array:
  """Attention with a softmax in float32.

  Args:
    q_BxHxQxE: queries, unscaled.
    k_BxKxLxE: keys.
    v_BxKxLxE: values.
    biases: added to the scores [B, K, H / K, Q, L].
  """
  batch, heads, queries, dim = q_BxHxQxE.shape
  kv_heads, length = k_BxKxLxE.shape[1:3]
  q_BxKxGQxE = q_BxHxQxE.reshape(batch, kv_heads, -1, dim) / math.sqrt(dim)
  scores = jnp.einsum(
    'bkqe,bkle->bkql', q_BxKxGQxE, k_BxKxLxE, preferred_element_type=jnp.float32
  )
  scores = scores.reshape(batch, kv_heads, heads // kv_heads, queries, length)
  for bias in biases:
    scores += bias
  top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.exp(scores - top)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  # Dividing after the value product touches Q x E numbers, not Q x L.
  out = jnp.einsum(
    'bkql,bkle->bkqe',
    weights.reshape(batch, kv_heads, -1, length).astype(v_BxKxLxE.dtype),
    v_BxKxLxE,
    preferred_element_type=jnp.float32,
  )
  out = out / total.reshape(batch, kv_heads, -1, 1)
  return out.reshape(batch, heads, queries, dim).astype(q_BxHxQxE.dtype)
