"""What packing the states between tiers costs: their error, and held-out loss."""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from familial.convert import load
from familial.data import batches as batches_lib
from familial.model import config as model_config
from familial.model import transformer
from familial.relay import wire

Array = jax.Array
_LOGITS = 2**24  # in memory at once


def costs(
  model: load.Model, batches: Sequence[batches_lib.Batch], dtype: str
) -> list[tuple[float | None, float]]:
  """Returns each tier's error and loss where all before it pack their states.

  Args:
    model: the family.
    batches: held-out text.
    dtype: of the states on the way, one of wire.DTYPES.

  Returns:
    Of each tier the error of the states handed on to it, L2 norm of the
    difference over that of the states (None for the first, which gets tokens),
    and the loss of its exit in nats.
  """
  shape, count = model.config.model, model.config.model.granularity
  nats_G, off_G, norm_G = np.zeros((3, count))
  tokens = 0
  for batch in batches:
    counted_BxL = batch['weights_BxL'] > 0
    tokens += int(counted_BxL.sum())
    inputs_BxL = batch['inputs_BxL']
    rows = max(1, _LOGITS // (shape.vocab_size * inputs_BxL.shape[1]))
    x_BxLxD: Any = model.params['embedding'][inputs_BxL].astype(shape.dtype)
    for index in range(count):
      x_BxLxD, nats_BxL = _through(
        shape, index, rows, model.params, x_BxLxD, batch
      )
      nats_G[index] += np.asarray(nats_BxL)[counted_BxL].sum(dtype=np.float64)
      if index + 1 < count:
        was = np.asarray(x_BxLxD, np.float32).reshape(-1, shape.width)
        now = wire.decode(wire.encode(was, dtype), len(was), shape.width)
        counted = counted_BxL.reshape(-1)
        off, norm = ((x[counted] ** 2).sum() for x in (now - was, was))
        off_G[index + 1] += off
        norm_G[index + 1] += norm
        x_BxLxD = jnp.asarray(now.reshape(x_BxLxD.shape), shape.dtype)
  return [
    (float(np.sqrt(off / norm)) if index else None, float(nats / tokens))
    for index, (nats, off, norm) in enumerate(
      zip(nats_G, off_G, norm_G, strict=True)
    )
  ]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _through(
  shape: model_config.ModelConfig,
  index: int,
  rows: int,
  params: transformer.Params,
  x_BxLxD: Array,
  batch: dict[str, Array],
) -> tuple[Array, Array]:
  """Returns states [B, L, D] after a segment, and the nats [B, L] of its exit;
  logits are there for some rows at once."""

  def one(row: tuple[Array, dict[str, Array]]) -> tuple[Array, Array]:
    x, row_batch = jax.tree.map(lambda leaf: leaf[None], row)
    documents = row_batch.get('segments_BxL')
    x = transformer.segment(params, shape, index, x, documents)
    h = transformer.head_state(params, shape, index + 1, x, documents)
    logits = transformer.read_out(
      h, transformer.unembedding(params, shape, index + 1)
    )
    own = jnp.take_along_axis(
      logits, row_batch['targets_BxL'][..., None], axis=-1
    )[..., 0]
    return x[0], (jax.nn.logsumexp(logits, axis=-1) - own)[0]

  found: tuple[Array, Array] = jax.lax.map(
    one, (x_BxLxD, batch), batch_size=rows
  )
  return found
