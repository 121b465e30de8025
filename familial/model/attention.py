"""Rotary positions and causal attention, heads before positions (BHLE)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from familial import errors

Array = jax.Array

# Far below any logit, finite so that a masked row gives no NaN.
_MASKED = -1e9


def rotate(x_BxHxLxE: Array, theta: float, start: int | Array = 0) -> Array:
  """Returns queries or keys rotated by position, in the half-split convention.

  Args:
    x_BxHxLxE: queries or keys.
    theta: base of the frequencies theta^(-2 i / E).
    start: position of the first one.

  Source: RoFormer, arXiv 2104.09864; pairs (i, i + E/2) as in Llama's files.
  """
  length, dim = x_BxHxLxE.shape[-2:]
  frequencies = theta ** (-np.arange(0, dim, 2) / dim)
  # NumPy where the start is known: constants of the program.
  xp: Any = np if isinstance(start, int) else jnp
  angles_LxE = (start + xp.arange(length))[:, None] * frequencies
  cos_LxE = xp.cos(angles_LxE).astype(np.float32)
  sin_LxE = xp.sin(angles_LxE).astype(np.float32)
  first, second = jnp.split(x_BxHxLxE.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate(
    [first * cos_LxE - second * sin_LxE, second * cos_LxE + first * sin_LxE],
    axis=-1,
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
    kind: `plain`, `blocked` or `fused`; they agree to rounding.

  Raises:
    UserError: if `fused` is not to be had here.
  """
  if kind == 'fused':
    return _fused(q_BxHxLxE, k_BxKxLxE, v_BxKxLxE, segments_BxL)
  length = q_BxHxLxE.shape[2]
  half = length // 2
  if kind == 'plain' or length % 2 or length < 32:
    return _square(q_BxHxLxE, k_BxKxLxE, v_BxKxLxE, segments_BxL)
  # The first half of the queries sees no key of the second: a quarter of the
  # square is never computed.
  first = _square(
    q_BxHxLxE[:, :, :half],
    k_BxKxLxE[:, :, :half],
    v_BxKxLxE[:, :, :half],
    None if segments_BxL is None else segments_BxL[:, :half],
  )
  second = _square(q_BxHxLxE[:, :, half:], k_BxKxLxE, v_BxKxLxE, segments_BxL)
  return jnp.concatenate([first, second], axis=2)


def check(kind: str) -> None:
  """Refuses `fused` where JAX has no NVIDIA GPU."""
  if kind == 'fused' and jax.default_backend() != 'gpu':
    raise errors.UserError(
      "model.attention: 'fused' is cuDNN's kernel and needs an NVIDIA GPU, not "
      f"JAX's backend {jax.default_backend()!r}; use 'plain' or 'blocked'"
    )


def _square(
  q_BxHxQxE: Array,
  k_BxKxLxE: Array,
  v_BxKxLxE: Array,
  segments_BxL: Array | None,
) -> Array:
  """Attention of the last Q positions to all L, softmax in float32."""
  batch, heads, queries, dim = q_BxHxQxE.shape
  kv_heads, length = k_BxKxLxE.shape[1:3]
  q_BxKxGQxE = q_BxHxQxE.reshape(batch, kv_heads, -1, dim) / math.sqrt(dim)
  scores = jnp.einsum(
    'bkqe,bkle->bkql', q_BxKxGQxE, k_BxKxLxE, preferred_element_type=jnp.float32
  )
  scores = scores.reshape(batch, kv_heads, heads // kv_heads, queries, length)
  positions = np.arange(length)
  scores += np.where(
    positions[None, :] <= positions[length - queries :, None], 0.0, _MASKED
  ).astype(np.float32)
  if segments_BxL is not None:
    same_BxQxL = (
      segments_BxL[:, length - queries :, None] == segments_BxL[:, None, :]
    )
    scores += jnp.where(same_BxQxL, 0.0, _MASKED)[:, None, None]
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


def _fused(
  q_BxHxLxE: Array,
  k_BxKxLxE: Array,
  v_BxKxLxE: Array,
  segments_BxL: Array | None,
) -> Array:
  """Attention by cuDNN, which keeps no L x L scores.

  Documents are a mask B x 1 x L x L, shared by the heads: cuDNN's own lengths
  of packed documents need a bound on their number that a row does not have.
  """
  check('fused')
  mask = None
  if segments_BxL is not None:
    mask = segments_BxL[:, None, :, None] == segments_BxL[:, None, None, :]
  try:
    out_BxLxHxE = jax.nn.dot_product_attention(
      q_BxHxLxE.swapaxes(1, 2),
      k_BxKxLxE.swapaxes(1, 2),
      v_BxKxLxE.swapaxes(1, 2),
      mask=mask,
      is_causal=True,
      implementation='cudnn',
    )
  # What a GPU or its cuDNN does not have.
  except (NotImplementedError, RuntimeError) as error:
    raise errors.UserError(f"model.attention: 'fused': {error}") from error
  return out_BxLxHxE.swapaxes(1, 2)
