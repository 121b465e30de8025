"""The cost of packing the states between engines: their error, held-out loss."""

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
from familial.training import evaluation

Array = jax.Array


def costs(
  model: load.Model, batches: Sequence[batches_lib.Batch], dtype: str
) -> list[tuple[float | None, float]]:
  """Returns each segment's error and loss where states are packed before it.

  Args:
    model: the family.
    batches: held-out text.
    dtype: type of the packed states, one of wire.DTYPES.

  Returns:
    For each segment, the L2 norm of the error of the states handed on to it
    over the norm of the states (None for the first, which takes tokens), and
    the loss of its exit in nats per token.
  """
  shape, count = model.config.model, model.config.model.granularity
  nats_G, error_G, norm_G = np.zeros((3, count))
  tokens = 0
  for batch in batches:
    counted_BxL = batch['weights_BxL'] > 0
    tokens += int(counted_BxL.sum())
    x_BxLxD: Any = model.params['embedding'][batch['inputs_BxL']]
    x_BxLxD = x_BxLxD.astype(shape.dtype)
    for index in range(count):
      if index:
        states = np.asarray(x_BxLxD, np.float32).reshape(-1, shape.width)
        packed = wire.decode(
          wire.encode(states, dtype), len(states), shape.width
        )
        counted = counted_BxL.reshape(-1)
        error_G[index] += ((packed - states)[counted] ** 2).sum()
        norm_G[index] += (states[counted] ** 2).sum()
        x_BxLxD = jnp.asarray(packed.reshape(x_BxLxD.shape), shape.dtype)
      x_BxLxD, nats_BxL = _advance(shape, index, model.params, x_BxLxD, batch)
      nats_G[index] += np.asarray(nats_BxL)[counted_BxL].sum(dtype=np.float64)
  errors: list[float | None] = [None]
  errors += np.sqrt(error_G[1:] / norm_G[1:]).tolist()
  return list(zip(errors, (nats_G / tokens).tolist(), strict=True))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _advance(
  shape: model_config.ModelConfig,
  index: int,
  params: transformer.Params,
  x_BxLxD: Array,
  batch: dict[str, Array],
) -> tuple[Array, Array]:
  """Returns the states after a segment, and its exit's nats [B, L]."""
  x_BxLxD = transformer.segment(
    params, shape, index, x_BxLxD, batch.get('segments_BxL')
  )
  return x_BxLxD, evaluation.read_exit(
    params, shape, index + 1, x_BxLxD, batch
  )[0]
