"""Loss at every exit on held-out tokens, and how well it is known."""

from collections.abc import Iterable
import functools
import math

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


def by_window(nats_WxL: np.ndarray, counted_WxL: np.ndarray) -> np.ndarray:
  """Returns each window's sum [W], in float64, over positions that count."""
  return np.asarray(
    np.sum(nats_WxL, axis=1, dtype=np.float64, where=counted_WxL)
  )


def ratio(
  above_W: np.ndarray, below_W: np.ndarray
) -> tuple[float, float | None]:
  """Returns the ratio of two sums over windows, and its standard error.

  Windows are taken as independent, the tokens of one are not: the error is that
  of the ratio's linear part, by window. Windows of one document are somewhat
  alike, which it does not know.

  Args:
    above_W: each window's share of the numerator, such as its nats.
    below_W: of the denominator, such as its tokens.

  Returns:
    The ratio, and its error; None for fewer than two windows.
  """
  windows, total = len(above_W), float(below_W.sum())
  value = float(above_W.sum()) / total
  if windows < 2:
    return value, None
  square = float(np.sum((above_W - value * below_W) ** 2))
  return value, math.sqrt(square * windows / (windows - 1)) / total


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
