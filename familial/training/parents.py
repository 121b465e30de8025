"""What a run starts from: another run's, an export's or an import's model."""

import dataclasses
import os
import pathlib
from typing import Any

import jax

from familial import errors
from familial import records
from familial.model import transformer
from familial.training import checkpoint
from familial.training import config as train_config

# In what a run and its parent may differ: how the same is computed, and where
# prepared data are kept.
_FREE = frozenset(
  {
    'model.attention',
    'model.unroll',
    'model.remat',
    'model.loss_chunk',
    'data.cache_dir',
  }
)
# What a dense parent does not have.
_OF_EXITS = frozenset({'model.exit_kind', 'model.branch_unembedding'})


def lineage(
  folder: pathlib.Path, config: train_config.RunConfig
) -> records.Row:
  """Returns what a run starts from, and the FLOPs that went into it.

  Args:
    folder: of the run, which may not exist yet.
    config: its config.

  Raises:
    UserError: if `init_from` has no model to start from, or not this run's.
  """
  known: records.Row = {'parent': None, 'expansion': None, 'inherited_flops': 0}
  init_from = config.train.init_from
  if not init_from:
    return known
  parent = _resolve(folder, init_from)
  rows = records.read(parent / records.ROWS)
  made = {} if rows else _made(parent)
  if not made and (not rows or rows[-1]['status'] != 'finished'):
    raise errors.UserError(
      f'train.init_from: {init_from!r} is not a finished run, an export or an '
      'import'
    )
  _check_tokenizer(parent, config)
  expected = _expected(parent, config)
  free = set(_FREE)
  if not _same_exits(parent, config):
    free |= _OF_EXITS
  if config.data.tokenizer_file:
    free.add('data.tokenizer')  # Compared by what it holds.
  for key, was, now in records.differences(parent, expected):
    # Nobody knows an import's data but for their tokenizer.
    unknown = 'import' in made and key != 'data.tokenizer'
    if key in free or not key.startswith(
      'model.' if unknown else ('model.', 'data.')
    ):
      continue
    raise errors.UserError(
      f'train.init_from: {init_from!r} was trained with {key} = {was!r}, and '
      f'this run needs {now!r}'
    )
  spent = rows[-1]['flops'] if rows else made['inherited_flops']
  return {
    **known,
    'parent': pathlib.Path(init_from).name,
    'inherited_flops': spent,
  }


def graft(
  params: transformer.Params,
  folder: pathlib.Path,
  config: train_config.RunConfig,
) -> transformer.Params:
  """Returns parameters with those of a run's parent.

  A parent of the same exits gives all of them; a dense one the trunk and the
  last exit.

  Args:
    params: as they would be without it.
    folder: of the run.
    config: its config, with an `init_from` that `lineage` took.
  """
  parent = _resolve(folder, config.train.init_from)
  model = _expected(parent, config).model
  checkpoints = parent / 'checkpoints'
  given = checkpoint.read_params(
    checkpoints,
    checkpoint.steps(checkpoints)['last'],
    jax.eval_shape(lambda: transformer.init(model, jax.random.key(0))),
  )
  if model.granularity == config.model.granularity:
    return given
  grafted = params | transformer.cut(given['segment_0'], config.model.exits)
  grafted[f'exit_{config.model.granularity}'] = given['exit_1']
  for name in ('embedding', 'unembedding'):
    if name in given:
      grafted[name] = given[name]
  return grafted


def _made(parent: pathlib.Path) -> records.Row:
  """Returns the lineage of an export or import, or {}; once such a folder is
  trained on in its place, it is a run."""
  path = parent / 'lineage.json'
  known = records.read_json(path) if path.exists() else {}
  if not {'export', 'import'} & known.keys():
    return {}
  last = checkpoint.steps(parent / 'checkpoints')['last']
  return known if last == 0 else {}


def _resolve(folder: pathlib.Path, init_from: str) -> pathlib.Path:
  """Returns the parent's folder, by name: `folder` may not exist yet."""
  return pathlib.Path(os.path.normpath(folder / init_from))


def _same_exits(parent: pathlib.Path, config: train_config.RunConfig) -> bool:
  """Whether the parent is a family with this run's exits."""
  was: Any = records.read_json(parent / 'config.json')
  exits = config.model.exits
  return len(exits) > 1 and was.get('model', {}).get('exits') == list(exits)


def _expected(
  parent: pathlib.Path, config: train_config.RunConfig
) -> train_config.RunConfig:
  """Returns the run that the parent must be: one of the same exits, or a dense
  one whose trunk and exit this one's can be."""
  model = config.model
  if not _same_exits(parent, config):
    model = model.submodel(model.granularity)
  return dataclasses.replace(
    config,
    model=model,
    train=dataclasses.replace(config.train, trained='all', init_from=''),
  )


def _check_tokenizer(
  parent: pathlib.Path, config: train_config.RunConfig
) -> None:
  """Refuses a tokenizer's file that does not hold what the parent's does."""
  if not config.data.tokenizer_file:
    return
  own = parent / 'tokenizer.json'
  try:
    asked = pathlib.Path(config.data.tokenizer_file).read_bytes()
  except OSError as error:
    raise errors.UserError(
      f'data.tokenizer: {config.data.tokenizer_file!r}: {error.strerror}'
    ) from None
  if not own.exists() or own.read_bytes() != asked:
    raise errors.UserError(
      f'train.init_from: {config.train.init_from!r} has another tokenizer than '
      f'data.tokenizer = {config.data.tokenizer_file!r}'
    )
