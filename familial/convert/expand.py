"""Expansion of a trained model into a larger one, as a folder to train."""

import dataclasses
import os
import pathlib

import jax
import jax.numpy as jnp

from familial.convert import export
from familial.convert import load
from familial.core import errors
from familial.core import run_folder
from familial.core import storage
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
  known = storage.read_json(folder / 'lineage.json')
  expansion = warm_start.expansion(growth)
  lineage = {
    'parent': folder.absolute().name,
    'parent_step': number,
    'expansion': expansion,
    'inherited_flops': known['inherited_flops'] + export.spent(was, number),
    'inherited_windows': warm_start.windows(folder, number),
    'expand': {'step': number},
    **{key: known[key] for key in ('corpus', 'import') if key in known},
  }
  config = dataclasses.replace(
    was,
    cell=f'{folder.absolute().name}_expanded',
    arm='expand',
    budget=0.0,
    model=to.model,
    train=dataclasses.replace(was.train, trained='all', init_from=''),
  )
  _, tokenizer = load.read_tokenizer(folder, was.model.vocab_size)
  text = pathlib.Path(tokenizer).read_text('utf-8') if tokenizer else ''
  export.write(out, config, lineage, state.params, text, state.opt_state)
  why = growth.inexact()
  same = f'not the same function, for {why}:' if why else 'the same function as'
  return (
    f'{out}: width {was.model.width} to {to.model.width}, depth '
    f'{was.model.depth} to {to.model.depth}; {same} step {number} of {folder}'
  )
