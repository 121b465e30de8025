"""The compiled training step: (state, batch, numbers) to (state, metrics)."""

import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from familial.model import config as model_config
from familial.model import loss as model_loss
from familial.model import transformer
from familial.training import optimizer

Array = jax.Array
PyTree = Any


class State(NamedTuple):
  """All that a run carries from step to step."""

  params: transformer.Params
  opt_state: PyTree
  step: Array


class Metrics(NamedTuple):
  """What a step reports."""

  losses_G: Array
  gradient_norm: Array


@functools.partial(jax.jit, static_argnums=(0, 1))
def init(
  model: model_config.ModelConfig, trained: str, key: Array, h: optimizer.Hyper
) -> State:
  """Returns the state before the first step."""
  params = transformer.init(model, key)
  trainable, _ = partition(params, trained)
  return State(params, optimizer.adamw(h, model).init(trainable), jnp.int32(0))


def advance(
  model: model_config.ModelConfig,
  trained: str,
  state: State,
  batch: dict[str, Array],
  h: optimizer.Hyper,
) -> tuple[State, Metrics]:
  """Returns the state after one step, and the losses before it.

  Args:
    model: the model; with `trained` it fixes the compiled program.
    trained: `all` or `exits`.
    state: of the run.
    batch: as `loss.exit_losses` takes it.
    h: the run's numbers.
  """
  trainable, frozen = partition(state.params, trained)
  weights_G = optimizer.exit_weights(state.step, h)

  def total(trainable: PyTree) -> tuple[Array, Array]:
    return model_loss.exit_losses(
      {**frozen, **trainable},
      model,
      batch,
      weights_G,
      trunk_frozen=trained == 'exits',
    )

  gradient, losses_G = jax.grad(total, has_aux=True)(trainable)
  updates, opt_state = optimizer.adamw(h, model).update(
    gradient, state.opt_state, trainable
  )
  params = {**frozen, **optax.apply_updates(trainable, updates)}
  return (
    State(params, opt_state, state.step + 1),
    Metrics(losses_G, optax.tree.norm(gradient)),
  )


train = jax.jit(advance, static_argnums=(0, 1), donate_argnums=2)


def partition(
  params: transformer.Params, trained: str
) -> tuple[transformer.Params, transformer.Params]:
  """Returns (trained, frozen) parameters.

  Args:
    params: of a model.
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
