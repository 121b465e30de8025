"""Fused attention kernels, which keep no L x L scores in memory."""

from collections.abc import Callable
import math

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as splash_mask,
)

from familial.core import errors
from familial.model import axes

Array = jax.Array
# Causal attention of queries [B, H, L, E], keys and values [B, K, L, E] and
# documents [B, L] or None.
Kernel = Callable[[Array, Array, Array, Array | None], Array]

_LEAST_TILE, _LARGEST_TILE = 128, 512


def here() -> Kernel | None:
  """Returns the kernel for the platform that a program is traced for.

  The platform is that of the current mesh, else JAX's default. None on CPU, which
  has no such kernel.
  """
  mesh = jax.sharding.get_abstract_mesh()
  platform = jax.default_backend()
  if not mesh.empty and mesh.abstract_device is not None:
    platform = mesh.abstract_device.platform
  return {'gpu': cudnn, 'cuda': cudnn, 'tpu': splash}.get(platform)


def cudnn(
  q_BxHxLxE: Array,
  k_BxKxLxE: Array,
  v_BxKxLxE: Array,
  segments_BxL: Array | None,
) -> Array:
  """Causal attention by cuDNN, on an NVIDIA GPU.

  Documents are a mask [B, 1, L, L] shared by the heads: cuDNN's format of packed
  documents needs a bound on their number per row.

  Raises:
    UserError: if the GPU or its cuDNN does not support it.
  """
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
  # Not supported by this GPU or its cuDNN.
  except (NotImplementedError, RuntimeError) as error:
    raise errors.UserError(f"model.attention: 'fused': {error}") from error
  return out_BxLxHxE.swapaxes(1, 2)


def splash(
  q_BxHxLxE: Array,
  k_BxKxLxE: Array,
  v_BxKxLxE: Array,
  segments_BxL: Array | None,
  interpret: bool = False,
) -> Array:
  """Causal attention by JAX's splash kernel, on a TPU.

  Tiles above the diagonal are not computed. XLA cannot partition a kernel, so
  each device is given its rows and heads explicitly.

  Args:
    q_BxHxLxE: rotated queries, unscaled; L is a multiple of 128.
    k_BxKxLxE: rotated keys.
    v_BxKxLxE: values.
    segments_BxL: documents that attention must not cross, or None.
    interpret: whether to interpret the kernel without a TPU, slowly.

  Raises:
    UserError: if L is not a multiple of 128.
  """
  length = q_BxHxLxE.shape[2]
  if length % _LEAST_TILE:
    raise errors.UserError(
      f"model.attention: 'fused' on a TPU takes sequences of a multiple of "
      f'{_LEAST_TILE} tokens, not data.seq_len {length}'
    )

  def local(
    q_BxHxLxE: Array,
    k_BxKxLxE: Array,
    v_BxKxLxE: Array,
    segments_BxL: Array | None,
  ) -> Array:
    rows, heads, _, dim = q_BxHxLxE.shape
    kv_heads = k_BxKxLxE.shape[1]
    group = heads // kv_heads
    kernel = splash_kernel.make_splash_mqa_single_device(
      splash_mask.MultiHeadMask(
        [splash_mask.CausalMask((length,) * 2)] * group
      ),
      block_sizes=_tiles(math.gcd(length, _LARGEST_TILE)),
      interpret=interpret,
    )
    documents = None
    if segments_BxL is not None:
      documents = splash_kernel.SegmentIds(segments_BxL, segments_BxL)
    by_kv_head = jax.vmap(kernel, (0, 0, 0, None))
    by_row = jax.vmap(by_kv_head, (0, 0, 0, documents and 0))
    out = by_row(
      q_BxHxLxE.reshape(rows, kv_heads, group, length, dim) / math.sqrt(dim),
      k_BxKxLxE,
      v_BxKxLxE,
      documents,
    )
    return out.reshape(q_BxHxLxE.shape)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return local(q_BxHxLxE, k_BxKxLxE, v_BxKxLxE, segments_BxL)
  by_heads, by_kv_heads = (
    axes.spec(('batch', heads), mesh) for heads in ('heads', 'kv_heads')
  )
  return jax.shard_map(
    local,
    in_specs=(by_heads, by_kv_heads, by_kv_heads, axes.spec(('batch',), mesh)),
    out_specs=by_heads,
    # A kernel does not declare over which mesh axes its result is replicated.
    check_vma=False,
  )(q_BxHxLxE, k_BxKxLxE, v_BxKxLxE, segments_BxL)


def _tiles(size: int) -> splash_kernel.BlockSizes:
  return splash_kernel.BlockSizes(
    block_q=size,
    block_kv=size,
    block_q_dkv=size,
    block_kv_dkv=size,
    block_q_dq=size,
    block_kv_dq=size,
  )
