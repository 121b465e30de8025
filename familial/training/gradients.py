"""Cosines between the exits' gradients in the layers that they share."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from familial.model import config as model_config
from familial.model import loss as model_loss
from familial.model import transformer

Array = jax.Array


class Cosine(NamedTuple):
  """The cosine of two exits' gradients with respect to one segment.

  Attributes:
    exit_a: number of the shallower exit.
    exit_b: number of the deeper exit.
    layer: last layer of the segment.
    cosine: of the gradients of their unweighted losses.
  """

  exit_a: int
  exit_b: int
  layer: int
  cosine: float


def cosines(
  params: transformer.Params,
  model: model_config.ModelConfig,
  batch: dict[str, Array],
) -> list[Cosine]:
  """Returns the cosine of every pair of exits and every segment they share.

  Args:
    params: parameters of the model.
    model: its config.
    batch: arrays as for `loss.exit_losses`.
  """
  cosines_GxGxS = np.asarray(_cosines(model, params, batch))
  return [
    Cosine(
      exit_a=a + 1,
      exit_b=b + 1,
      layer=model.exits[segment],
      cosine=float(cosines_GxGxS[a, b, segment]),
    )
    for b in range(model.granularity)
    for a in range(b)
    for segment in range(a + 1)
  ]


@functools.partial(jax.jit, static_argnums=0)
def _cosines(
  model: model_config.ModelConfig,
  params: transformer.Params,
  batch: dict[str, Array],
) -> Array:
  count = model.granularity

  def gradient(weights_G: Array) -> list[Array]:
    grads = jax.grad(
      lambda p: model_loss.exit_losses(p, model, batch, weights_G)[0]
    )(params)
    return [
      jnp.concatenate(
        [leaf.ravel() for leaf in jax.tree.leaves(grads[f'segment_{s}'])]
      )
      for s in range(count)
    ]

  by_segment = jax.lax.map(gradient, jnp.eye(count))
  cosines = []
  for grads_GxP in by_segment:
    products_GxG = grads_GxP @ grads_GxP.T
    norms_G = jnp.sqrt(jnp.diagonal(products_GxG))
    scale_GxG = jnp.maximum(norms_G[:, None] * norms_G, 1e-30)
    cosines.append(products_GxG / scale_GxG)
  return jnp.stack(cosines, axis=-1)
