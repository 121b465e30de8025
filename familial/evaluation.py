"""Loss at every exit on held-out tokens."""

from collections.abc import Iterable
import functools

import jax
import jax.numpy as jnp
import numpy as np

from familial.model import config as model_config
from familial.model import loss as model_loss
from familial.model import transformer

Array = jax.Array


def losses(
  params: transformer.Params,
  model: model_config.ModelConfig,
  batches: Iterable[dict[str, Array]],
) -> np.ndarray:
  """Returns each exit's mean token cross-entropy [G] in nats.

  Args:
    params: of the model.
    model: its shape.
    batches: of one shape, tokens to leave out at weight 0; sums are float32.
  """
  total, count = jnp.zeros(model.granularity, jnp.float32), jnp.float32(0)
  for batch in batches:
    total, count = _add(model, params, batch, total, count)
  return np.asarray(total / count)


@functools.partial(jax.jit, static_argnums=0)
def _add(
  model: model_config.ModelConfig,
  params: transformer.Params,
  batch: dict[str, Array],
  total: Array,
  count: Array,
) -> tuple[Array, Array]:
  tokens = jnp.sum(batch['weights_BxL'])
  none_G = jnp.zeros(model.granularity)
  losses_G = model_loss.exit_losses(params, model, batch, none_G)[1]
  return total + tokens * losses_G, count + tokens
