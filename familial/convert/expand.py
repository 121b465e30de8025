"""Expansion of a trained model into a larger one, as a folder to train."""

import dataclasses
import os

import jax
import jax.numpy as jnp

from familial.convert import export
from familial.convert import load
from familial.core import errors
from familial.core import run_folder
from familial.expansion import maps
from familial.training import config as train_config
from familial.training import optimizer
from familial.training import step as step_lib
from familial.training import warm_start


def expand(
  folder: str | os.PathLike[str],
  to: train_config.RunConfig,
  out: str | os.PathLike[str],
  step: str = 'last',
) -> str:
  """Writes the model that a parent grows into; returns a summary line.

  A run whose `train.init_from` is the folder continues training it: its FLOPs
  include the parent's, and its data continue where the parent stopped. No array
  of the parent is in memory as a whole.

  Args:
    folder: folder of the parent, a run, export or import.
    to: run of the grown model, of which `model`, `growth` and `train.seed` are
      read; data, layout and the rest of `train` are the parent's.
    out: the folder to make.
    step: last, best, or a number.

  Raises:
    UserError: if the parent cannot grow into this model, or `out` is not empty.
  """
  export.check_out(out)
  folder, step = load.locate(folder, step)
  was = load.read_config(folder)
  for key, old, new in run_folder.differences(
    folder,
    dataclasses.replace(
      to, model=dataclasses.replace(to.model, **maps.parent_shape(was.model))
    ),
  ):
    if key.startswith('model.') and key not in warm_start.FREE:
      raise errors.UserError(
        f'{key}: {new!r} is not that of {folder}, {old!r}, and no growth changes '
        'it'
      )
  growth = maps.plan(to.growth, was.model, to.model)
  warm_start.check_moments(folder, to.growth)
  number = load.find_step(folder / 'checkpoints', step)
  h = optimizer.hyper(to.train, to.model.exits)
  state = jax.eval_shape(
    lambda: step_lib.init(to.model, 'all', jax.random.key(0), h)
  )
  if to.growth.state == 'reset':
    state = state._replace(opt_state=())
  state = warm_start.grow(state, folder, number, growth, to.train)
  # All of the optimizer's state but the moments starts at zero.
  state = jax.tree.map(
    lambda leaf: leaf if isinstance(leaf, jax.Array) else jnp.zeros_like(leaf),
    state,
  )
  _, tokenizer = load.read_tokenizer(folder, was.model.vocab_size)
  export.write(
    out,
    export.derived_config(folder, was, 'expanded', 'expand', to.model),
    export.derived_lineage(
      folder, was, number,
      expansion=warm_start.expansion(growth), expand={'step': number},
    ),
    state.params,
    export.tokenizer_text(tokenizer),
    state.opt_state,
  )  # fmt: skip
  why = growth.inexact()
  same = f'not the same function, for {why}:' if why else 'the same function as'
  return (
    f'{out}: width {was.model.width} to {to.model.width}, depth '
    f'{was.model.depth} to {to.model.depth}; {same} step {number} of {folder}'
  )
