"""The compiled training step: (state, batch, settings) to (state, metrics)."""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from familial.model import axes
from familial.model import config as model_config
from familial.model import loss as model_loss
from familial.model import transformer
from familial.training import optimizer

Array = jax.Array
PyTree = Any


class State(NamedTuple):
  """The state of a run between steps."""

  params: transformer.Params
  opt_state: PyTree
  step: Array


class Metrics(NamedTuple):
  """The exits' losses [G] before a step, and the norm of the gradient."""

  losses_G: Array
  gradient_norm: Array


@functools.partial(jax.jit, static_argnums=(0, 1))
def init(
  model: model_config.ModelConfig, trained: str, key: Array, h: optimizer.Hyper
) -> State:
  """Returns the state before the first step."""
  # With a mesh, each device draws only its own part.
  params = axes.constrain_tree(transformer.init(model, key))
  trainable, _ = partition(params, trained)
  opt_state = optimizer.adamw(h, model).init(trainable)
  return axes.constrain_tree(State(params, opt_state, jnp.int32(0)))


def advance(
  model: model_config.ModelConfig,
  trained: str,
  state: State,
  batch: dict[str, Array],
  h: optimizer.Hyper,
  microbatches: int = 1,
) -> tuple[State, Metrics]:
  """Returns the state after one step, and the losses before it.

  Args:
    model: config of the model; with `trained` it determines the program.
    trained: `all` or `exits`.
    state: state of the run; donated by `train`.
    batch: arrays as for `loss.exit_losses`.
    h: settings of the run.
    microbatches: number of sequential parts of the batch; the result equals that
      of the whole batch up to rounding.
  """
  trainable, frozen = partition(state.params, trained)
  weights_G = optimizer.exit_weights(state.step, h)

  def total(trainable: PyTree, batch: dict[str, Array]) -> tuple[Array, Array]:
    return model_loss.exit_losses(
      {**frozen, **trainable},
      model,
      batch,
      weights_G,
      trunk_frozen=trained == 'exits',
    )

  gradient, losses_G = _in_parts(
    jax.grad(total, has_aux=True), trainable, batch, microbatches
  )
  updates, opt_state = optimizer.adamw(h, model).update(
    gradient, state.opt_state, trainable
  )
  params = {**frozen, **optax.apply_updates(trainable, updates)}
  state = State(params, opt_state, state.step + 1)
  metrics = Metrics(losses_G, optax.tree.norm(gradient))
  # Metrics are replicated, because every process of a run reads them.
  return axes.constrain_tree(state), jax.tree.map(axes.constrain, metrics)


train = jax.jit(advance, static_argnums=(0, 1, 5), donate_argnums=2)


def partition(
  params: transformer.Params, trained: str
) -> tuple[transformer.Params, transformer.Params]:
  """Returns (trained, frozen) parameters.

  Args:
    params: parameters of a model.
    trained: `all`, or `exits` for every exit but the last.
  """
  if trained == 'all':
    return params, {}
  exits = sorted(
    (name for name in params if name.startswith('exit_')),
    key=lambda name: int(name.removeprefix('exit_')),
  )
  chosen = set(exits[:-1])
  return (
    {name: params[name] for name in params if name in chosen},
    {name: params[name] for name in params if name not in chosen},
  )


def _in_parts(
  gradient: Callable[..., tuple[PyTree, Array]],
  trainable: PyTree,
  batch: dict[str, Array],
  parts: int,
) -> tuple[PyTree, Array]:
  """Returns the gradient and losses of a batch, summed over its parts."""
  if parts == 1:
    return gradient(trainable, batch)

  def cut(rows: Array) -> Array:
    # Strided, so that every device cuts its own rows.
    cut = rows.reshape(-1, parts, *rows.shape[1:]).swapaxes(0, 1)
    return axes.constrain(cut, 'parts', 'batch')

  tokens = jnp.maximum(jnp.sum(batch['weights_BxL']), 1.0)

  def add(total: PyTree, part: dict[str, Array]) -> tuple[PyTree, None]:
    share = jnp.sum(part['weights_BxL']) / tokens
    new = gradient(trainable, part)
    return jax.tree.map(lambda x, y: x + share * y, total, new), None

  shapes = jax.eval_shape(gradient, trainable, batch)
  zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
  summed, _ = jax.lax.scan(add, zeros, jax.tree.map(cut, batch))
  return summed
