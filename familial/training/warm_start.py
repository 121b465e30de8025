"""What a run starts from: another run's, an export's or an import's model."""

import dataclasses
import os
import pathlib
from typing import Any

import jax
import numpy as np
import optax

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.expansion import config as growth_config
from familial.expansion import grown
from familial.expansion import maps
from familial.model import config as model_config
from familial.model import transformer
from familial.training import checkpoint
from familial.training import checkpoint_arrays
from familial.training import config as train_config
from familial.training import optimizer
from familial.training import step as step_lib

# In what a run and its parent may differ: how the same is computed, and where
# prepared data are kept.
FREE = frozenset(
  {
    'model.attention',
    'model.dtype',
    'model.unroll',
    'model.remat',
    'model.loss_chunk',
    'data.cache_dir',
  }
)
# What a dense parent does not have.
_OF_EXITS = frozenset(f'model.{key}' for key in maps.OF_EXITS)


def lineage(
  folder: pathlib.Path, config: train_config.RunConfig
) -> storage.Row:
  """Returns what a run starts from, and the FLOPs that went into it.

  Args:
    folder: of the run, which may not exist yet.
    config: its config.

  Raises:
    UserError: if `init_from` has no model to start from, or not this run's.
  """
  init_from = config.train.init_from
  if not init_from:
    return {
      'parent': None,
      'expansion': None,
      'inherited_flops': 0,
      'inherited_windows': 0,
    }
  parent = _resolve(folder, init_from)
  rows = storage.read_rows(parent / run_folder.ROWS)
  made = {} if rows else _made(parent)
  if not made and (not rows or rows[-1]['status'] != 'finished'):
    raise errors.UserError(
      f'train.init_from: {init_from!r} is not a finished run, an export, an '
      'import or an expansion'
    )
  _check_tokenizer(parent, config)
  expected = _expected(parent, config)
  free = set(FREE)
  grows = config.growth != growth_config.NONE
  if not grows and not _same_exits(parent, config):
    free |= _OF_EXITS
  if config.data.tokenizer_file:
    free.add('data.tokenizer')  # Compared by what it holds.
  for key, was, now in run_folder.differences(parent, expected):
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
  if made:
    spent, seen = made['inherited_flops'], made.get('inherited_windows', 0)
  else:
    spent, seen = rows[-1]['flops'], windows(parent, rows[-1]['step'])
  order = storage.read_own(parent / 'config.json')['train']['seed']
  # What grows, or has grown, goes on with the data in their order; others see
  # them anew.
  if not (grows or 'expand' in made) or order != config.train.seed:
    seen = 0
  check_moments(parent, config.growth)
  growth = (
    maps.plan(config.growth, shape(parent), config.model) if grows else None
  )
  return {
    'parent': pathlib.Path(init_from).name,
    'expansion': expansion(growth) if growth else None,
    'inherited_flops': spent,
    'inherited_windows': seen,
  }


def check_moments(
  parent: pathlib.Path, growth: growth_config.GrowthConfig
) -> None:
  """Refuses to carry moments of AdamW that a parent has not.

  Raises:
    UserError: for an export, an import, a model grown without them, or a run that
      trained its exits alone.
  """
  if growth.state == 'reset':
    return
  made = _made(parent)
  held = not made or (
    'expand' in made and made['expansion']['state'] != 'reset'
  )
  trained = storage.read_own(parent / 'config.json')['train']['trained']
  if not held or trained != 'all':
    raise errors.UserError(
      f'growth.state: {growth.state!r} is not possible from {parent}, which has '
      "no moments of all parameters; 'reset' is"
    )


def expansion(growth: maps.Growth) -> storage.Row:
  """Returns a growth as a lineage has it."""
  exact = growth.exact_exits()
  return {
    **dataclasses.asdict(growth.config),
    'exact': exact.get(growth.now.granularity) == growth.was.granularity,
    'exact_exits': [[new, old] for new, old in exact.items()],
    'from': {key: getattr(growth.was, key) for key in maps.GROWN},
  }


def shape(folder: pathlib.Path) -> model_config.ModelConfig:
  """Returns the model of a run, an export or an import."""
  values = dict(storage.read_own(folder / 'config.json')['model'])
  return model_config.ModelConfig(**{**values, 'exits': tuple(values['exits'])})


def windows(folder: pathlib.Path, step: int) -> int:
  """Returns how many windows of its data a run has read at a step, those of
  the runs whose data it goes on with included."""
  known = storage.read_json(folder / 'lineage.json')
  train = storage.read_own(folder / 'config.json')['train']
  return int(known.get('inherited_windows', 0) + step * train['batch_size'])


def graft(
  state: step_lib.State,
  folder: pathlib.Path,
  config: train_config.RunConfig,
) -> step_lib.State:
  """Returns a state with the parameters of a run's parent, grown where asked.

  A parent of the same exits gives all of them; a dense one the trunk and the
  last exit.

  Args:
    state: as it would be without it.
    folder: of the run.
    config: its config, with an `init_from` that `lineage` took.
  """
  parent = _resolve(folder, config.train.init_from)
  if config.growth != growth_config.NONE:
    step = checkpoint.steps(parent / 'checkpoints')['last']
    growth = maps.plan(config.growth, shape(parent), config.model)
    return grow(state, parent, step, growth, config.train)
  return state._replace(params=_given(state.params, parent, config))


def grow(
  state: step_lib.State,
  parent: pathlib.Path,
  step: int,
  growth: maps.Growth,
  train: train_config.TrainConfig,
) -> step_lib.State:
  """Returns the state of a model grown from a run's.

  Args:
    state: arrays or shapes of the grown model's; where they have shardings, each
      process reads and makes its own devices' parts alone.
    parent: the folder of the run.
    step: of its checkpoint.
    growth: from its model.
    train: of the grown model: the seed of what is fresh.
  """
  was, carried = growth.was, growth.config.state != 'reset'

  def held() -> dict[str, Any]:
    params = transformer.init(was, jax.random.key(0))
    h = optimizer.hyper(train, was.exits)
    moments = {'opt_state': optimizer.adamw(h, was).init(params)}
    return {'params': params, **(moments if carried else {})}

  take = checkpoint_arrays.reader(
    parent / 'checkpoints', step, jax.eval_shape(held)
  )

  def below(*section: str) -> grown.Take:
    return lambda path, index: take((*section, *path), index)

  params = grown.params(growth, state.params, below('params'), train.seed)
  if not carried:
    return state._replace(params=params)

  def carry(place: int, part: Any) -> Any:
    if not isinstance(part, optax.ScaleByAdamState):
      return part
    where = ('opt_state', str(place))
    return optax.ScaleByAdamState(
      count=jax.device_put(
        np.asarray(take((*where, 'count'), ()), np.int32),
        getattr(part.count, 'sharding', None),
      ),
      mu=grown.moments(growth, part.mu, below(*where, 'mu'), 1),
      nu=grown.moments(growth, part.nu, below(*where, 'nu'), 2),
    )

  opt_state = tuple(carry(i, part) for i, part in enumerate(state.opt_state))
  return state._replace(params=params, opt_state=opt_state)


def _given(
  params: transformer.Params,
  parent: pathlib.Path,
  config: train_config.RunConfig,
) -> transformer.Params:
  """Returns parameters with those of a parent of the same shape."""
  model = _expected(parent, config).model
  checkpoints = parent / 'checkpoints'
  given = checkpoint_arrays.read_params(
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


def _made(parent: pathlib.Path) -> storage.Row:
  """Returns the lineage of an export or import, or {}; once such a folder is
  trained on in its place, it is a run."""
  path = parent / 'lineage.json'
  known = storage.read_json(path) if path.exists() else {}
  if not {'export', 'import', 'expand'} & known.keys():
    return {}
  last = checkpoint.steps(parent / 'checkpoints')['last']
  return known if last == 0 else {}


def _resolve(folder: pathlib.Path, init_from: str) -> pathlib.Path:
  """Returns the parent's folder, by name: `folder` may not exist yet."""
  return pathlib.Path(os.path.normpath(folder / init_from))


def _same_exits(parent: pathlib.Path, config: train_config.RunConfig) -> bool:
  """Whether the parent is a family with this run's exits."""
  was: Any = storage.read_json(parent / 'config.json')
  exits = config.model.exits
  return len(exits) > 1 and was.get('model', {}).get('exits') == list(exits)


def _expected(
  parent: pathlib.Path, config: train_config.RunConfig
) -> train_config.RunConfig:
  """Returns the run that the parent must be: one of the same exits, or a dense
  one whose trunk and exit this one's can be."""
  model = config.model
  if config.growth != growth_config.NONE:
    grows = maps.parent_shape(shape(parent))
    model = dataclasses.replace(model, **grows)
  elif not _same_exits(parent, config):
    model = model.submodel(model.granularity)
  return dataclasses.replace(
    config,
    model=model,
    train=dataclasses.replace(config.train, trained='all', init_from=''),
    growth=growth_config.NONE,
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
