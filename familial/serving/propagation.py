"""The cost of early exits where the states of skipped layers are propagated.

Unlike deferred computation, propagation changes what later positions attend to,
so each threshold needs a forward pass of its own: a position that leaves at an
exit keeps its state in all deeper layers. Every token of a window is treated as
if it had been generated, given the text before it.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from familial.data import batches as batches_lib
from familial.model import config as model_config
from familial.model import transformer
from familial.serving import sampling
from familial.serving import thresholds
from familial.training import evaluation

Array = jax.Array


def at(
  params: transformer.Params,
  model: model_config.ModelConfig,
  batches: Sequence[batches_lib.Batch],
  readings: thresholds.Readings,
  kind: str,
  threshold: float,
) -> thresholds.Outcome:
  """Returns the outcome of one threshold.

  Its `layers` count what propagation computes, except for the keys and values
  of the skipped layers.

  Args:
    params: parameters of the model.
    model: shape of the model.
    batches: the batches that `readings` was made of.
    readings: readings of all exits, without propagation.
    kind: kind of confidence.
    threshold: confidence from which an exit answers.
  """
  nats, places = [], []
  for batch in batches:
    kept = np.any(batch['weights_BxL'] > 0, axis=1)
    found = _leave(model, kind, params, batch, np.float32(threshold))
    nats.append(np.asarray(found[0])[kept])
    places.append(np.asarray(found[1])[kept])
  return thresholds.outcome(
    readings, np.concatenate(places), threshold, np.concatenate(nats)
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _leave(
  model: model_config.ModelConfig,
  kind: str,
  params: transformer.Params,
  batch: dict[str, Array],
  threshold: Array,
) -> tuple[Array, Array]:
  """Returns each position's nats [B, L] and the index of the exit it left at."""
  inputs_BxL, segments = batch['inputs_BxL'], batch.get('segments_BxL')
  x_BxLxD = params['embedding'][inputs_BxL].astype(model.dtype)
  left_BxL = jnp.zeros(inputs_BxL.shape, bool)
  nats_BxL = jnp.zeros(inputs_BxL.shape)
  place_BxL = jnp.zeros(inputs_BxL.shape, jnp.int32)
  for index in range(model.granularity):
    x_BxLxD = transformer.segment(
      params, model, index, x_BxLxD, segments, left_BxL
    )
    own_BxL, confidence_BxL = evaluation.read_exit(
      params, model, index + 1, x_BxLxD, batch,
      lambda logits_V, _: sampling.confidence(logits_V, kind),
    )  # fmt: skip
    nats_BxL = jnp.where(left_BxL, nats_BxL, own_BxL)
    place_BxL = jnp.where(left_BxL, place_BxL, index)
    left_BxL |= confidence_BxL >= threshold
  return nats_BxL, place_BxL
