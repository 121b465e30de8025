"""What early exits cost where the states of skipped layers are propagated.

Unlike deferred computation, propagation changes what later positions see, so
each threshold is a pass of its own: segment by segment, a position that is sure
enough leaves, and stays as it is for all that come after it. Every token of a
window is taken as one that was generated, given the text before it.
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

Array = jax.Array
_LOGITS = 2**24  # in memory at once
_HALVINGS = 8


def at(
  params: transformer.Params,
  model: model_config.ModelConfig,
  batches: Sequence[batches_lib.Batch],
  readings: thresholds.Readings,
  kind: str,
  threshold: float,
) -> thresholds.Outcome:
  """Returns the outcome of one threshold.

  Its `layers` are what propagation computes, but for the keys and values that
  it reads off in the layers it skips.

  Args:
    params: of the model.
    model: its shape.
    batches: that the readings are of.
    readings: of all exits, without propagation.
    kind: of confidence.
    threshold: from which an exit is believed.
  """
  length = batches[0]['inputs_BxL'].shape[1]
  rows = max(1, _LOGITS // (model.vocab_size * length))
  nats, places = [], []
  for batch in batches:
    kept = np.any(batch['weights_BxL'] > 0, axis=1)
    found = _leave(model, kind, rows, params, batch, np.float32(threshold))
    nats.append(np.asarray(found[0])[kept])
    places.append(np.asarray(found[1])[kept])
  return thresholds.outcome(
    readings, np.concatenate(places), threshold, np.concatenate(nats)
  )


def threshold_for(
  params: transformer.Params,
  model: model_config.ModelConfig,
  batches: Sequence[batches_lib.Batch],
  readings: thresholds.Readings,
  kind: str,
  loss_increase: float,
) -> thresholds.Outcome:
  """Returns the outcome of a threshold with a loss not too high, by halving.

  It is chosen and measured on the same tokens; loss need not fall evenly with
  the threshold, so a lower one may do as well.

  Args:
    params: of the model.
    model: its shape.
    batches: that the readings are of.
    readings: of all exits, without propagation.
    kind: of confidence.
    loss_increase: most that the mean loss may be above the last exit's, as a
      share of it, at least 0.

  Returns:
    The lowest threshold that was tried and keeps to it; at worst the one that
    no confidence reaches, so that all tokens are the last exit's.
  """
  low, high = 0.0, thresholds.NEVER
  best = at(params, model, batches, readings, kind, high)
  for _ in range(_HALVINGS):
    middle = (low + high) / 2
    found = at(params, model, batches, readings, kind, middle)
    if found.increase <= loss_increase:
      best, high = found, middle
    else:
      low = middle
  return best


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _leave(
  model: model_config.ModelConfig,
  kind: str,
  rows: int,
  params: transformer.Params,
  batch: dict[str, Array],
  threshold: Array,
) -> tuple[Array, Array]:
  """Returns each position's nats, and the place of the exit it left at."""

  def one(row: dict[str, Array]) -> tuple[Array, Array]:
    row = jax.tree.map(lambda x: x[None], row)
    segments = row.get('segments_BxL')
    x = params['embedding'][row['inputs_BxL']].astype(model.dtype)
    left = jnp.zeros(x.shape[:2], bool)
    nats, place = jnp.zeros(x.shape[:2]), jnp.zeros(x.shape[:2], jnp.int32)
    for index in range(model.granularity):
      x = transformer.segment(params, model, index, x, segments, left)
      h = transformer.head_state(params, model, index + 1, x, segments)
      logits = transformer.read_out(
        h, transformer.unembedding(params, model, index + 1)
      )
      log_probs = jax.nn.log_softmax(logits)
      own = -jnp.take_along_axis(
        log_probs, row['targets_BxL'][..., None], axis=-1
      )[..., 0]
      sure = sampling.confidence(logits, kind) >= threshold
      if index == model.granularity - 1:
        sure = jnp.ones_like(left)
      nats = jnp.where(left, nats, own)
      place = jnp.where(left, place, index)
      left |= sure
    return nats[0], place[0]

  found: tuple[Array, Array] = jax.lax.map(one, batch, batch_size=rows)
  return found
