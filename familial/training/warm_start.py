"""Warm starts: a run's initial state from a run, an export or an import."""

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
from familial.data import packing
from familial.expansion import config as growth_config
from familial.expansion import grown
from familial.expansion import maps
from familial.model import config as model_config
from familial.model import transformer
from familial.training import checkpoint
from familial.training import config as train_config
from familial.training import optimizer
from familial.training import step as step_lib

# Keys of the model in which a run and its parent may differ: how it is computed.
FREE = frozenset(
  {
    'model.attention',
    'model.dtype',
    'model.unroll',
    'model.remat',
    'model.loss_chunk',
  }
)
# Keys that mean nothing in a dense parent.
_OF_EXITS = frozenset(f'model.{key}' for key in maps.OF_EXITS)


def lineage(
  folder: pathlib.Path, config: train_config.RunConfig
) -> storage.Row:
  """Returns the lineage of a run: its parent and what the parent has spent.

  The parent's model and tokenizer must be this run's. Its text need not be:
  `parent_corpus` is that text's fingerprint, None if it is not known.

  Args:
    folder: folder of the run, which may not exist yet.
    config: config of the run.

  Raises:
    UserError: if `init_from` holds no finished model, or one that does not fit.
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
  origin = {} if rows else _origin(parent)
  if not origin and (not rows or rows[-1]['status'] != 'finished'):
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
    free.add('data.tokenizer')  # Compared by its content.
  for key, was, now in run_folder.differences(parent, expected, free):
    if key.startswith('model.') or key == 'data.tokenizer':
      raise errors.UserError(
        f'train.init_from: {init_from!r} was trained with {key} = {was!r}, and '
        f'this run needs {now!r}'
      )
  if origin:
    spent, seen = origin['inherited_flops'], origin.get('inherited_windows', 0)
  else:
    spent, seen = rows[-1]['flops'], windows(parent, rows[-1]['step'])
  was = storage.read_own(parent / 'config.json')
  order = was['train']['seed'], was['data']['seq_len']
  # A run that grows, or continues a grown model, continues with the parent's data
  # in their order; others start from the beginning.
  if not (grows or 'expand' in origin) or order != (
    config.train.seed,
    config.data.seq_len,
  ):
    seen = 0
  check_moments(parent, config.growth)
  growth = (
    maps.plan(config.growth, shape(parent), config.model) if grows else None
  )
  return {
    'parent': parent.name,
    'parent_corpus': storage.read_json(parent / 'lineage.json').get('corpus'),
    'expansion': expansion(growth) if growth else None,
    'inherited_flops': spent,
    'inherited_windows': seen,
  }


def on_corpus(lineage: storage.Row, fingerprint: str) -> storage.Row:
  """Returns a lineage with the run's corpus; another text is read from its start."""
  row = {**lineage, 'corpus': fingerprint}
  if row.get('parent_corpus') not in (None, fingerprint):
    row['inherited_windows'] = 0
  return row


def check_tokenizer(
  folder: pathlib.Path, config: train_config.RunConfig, corpus: packing.Corpus
) -> None:
  """Raises a UserError if the text's tokenizer is not that of the parent.

  A BPE that is trained on other text is another tokenizer.

  Args:
    folder: of the run; its own model is the parent if there is no `init_from`.
    config: of the run.
    corpus: its text.
  """
  parent = _resolve(folder, config.train.init_from)
  if not any((parent / 'checkpoints').glob('[0-9]*')):
    return
  own, path = parent / run_folder.TOKENIZER, corpus.tokenizer_path
  was = own.read_bytes() if own.exists() else b''
  if was != (pathlib.Path(path).read_bytes() if path else b''):
    raise errors.UserError(
      f'data.tokenizer: {config.data.tokenizer!r} is not the tokenizer of '
      f'{parent} on this text; that is '
      + (f'data.tokenizer={own}' if was else "'bytes'")
    )


def check_moments(
  parent: pathlib.Path, growth: growth_config.GrowthConfig
) -> None:
  """Raises a UserError if AdamW's moments are to be carried and are missing.

  Exports, imports, models grown without them and runs that trained their exits
  alone have no moments of all parameters.
  """
  if growth.state == 'reset':
    return
  origin = _origin(parent)
  has_moments = not origin or (
    'expand' in origin and origin['expansion']['state'] != 'reset'
  )
  trained = storage.read_own(parent / 'config.json')['train']['trained']
  if not has_moments or trained != 'all':
    raise errors.UserError(
      f'growth.state: {growth.state!r} is not possible from {parent}, which has '
      "no moments of all parameters; 'reset' is"
    )


def expansion(growth: maps.Growth) -> storage.Row:
  """Returns a growth in the form of a lineage."""
  exact = growth.exact_exits()
  return {
    **dataclasses.asdict(growth.config),
    'exact': exact.get(growth.now.granularity) == growth.was.granularity,
    'exact_exits': [[new, old] for new, old in exact.items()],
    'from': {key: getattr(growth.was, key) for key in maps.GROWN},
  }


def shape(folder: pathlib.Path) -> model_config.ModelConfig:
  """Returns the model config of a run, an export or an import."""
  values = dict(storage.read_own(folder / 'config.json')['model'])
  return model_config.ModelConfig(**{**values, 'exits': tuple(values['exits'])})


def windows(folder: pathlib.Path, step: int) -> int:
  """Returns the windows that a run has read at a step, inherited ones included."""
  inherited = storage.read_json(folder / 'lineage.json')
  train = storage.read_own(folder / 'config.json')['train']
  return int(inherited.get('inherited_windows', 0) + step * train['batch_size'])


def graft(
  state: step_lib.State,
  folder: pathlib.Path,
  config: train_config.RunConfig,
) -> step_lib.State:
  """Returns a state with the parameters of a run's parent, grown if configured.

  A parent with the same exits gives all parameters; a dense parent gives the
  trunk and the last exit.

  Args:
    state: initial state without the parent.
    folder: folder of the run.
    config: config of the run, checked by `lineage`.
  """
  parent = _resolve(folder, config.train.init_from)
  if config.growth != growth_config.NONE:
    step = checkpoint.steps(parent / 'checkpoints')['last']
    growth = maps.plan(config.growth, shape(parent), config.model)
    return grow(state, parent, step, growth, config.train)
  return state._replace(params=_inherited(state.params, parent, config))


def grow(
  state: step_lib.State,
  parent: pathlib.Path,
  step: int,
  growth: maps.Growth,
  train: train_config.TrainConfig,
) -> step_lib.State:
  """Returns the state of a model grown from that of a run.

  Args:
    state: arrays or shapes of the grown state; with shardings, each process
      reads and makes its own devices' parts alone.
    parent: folder of the run.
    step: step of its checkpoint.
    growth: growth from its model.
    train: training config of the grown model, for the seed of new parameters.
  """
  was, carried = growth.was, growth.config.state != 'reset'

  def sections() -> dict[str, Any]:
    params = transformer.init(was, jax.random.key(0))
    h = optimizer.hyper(train, was.exits)
    moments = {'opt_state': optimizer.adamw(h, was).init(params)}
    return {'params': params, **(moments if carried else {})}

  take = checkpoint.reader(
    parent / 'checkpoints', step, jax.eval_shape(sections)
  )

  def below(*section: str) -> grown.Take:
    return lambda path, index: take((*section, *path), index)

  params = grown.params(growth, state.params, below('params'), train.seed)
  if not carried:
    return state._replace(params=params)

  def carry(position: int, part: Any) -> Any:
    if not isinstance(part, optax.ScaleByAdamState):
      return part
    where = ('opt_state', str(position))
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


def _inherited(
  params: transformer.Params,
  parent: pathlib.Path,
  config: train_config.RunConfig,
) -> transformer.Params:
  """Returns parameters of which a parent's replace its own."""
  model = _expected(parent, config).model
  checkpoints = parent / 'checkpoints'
  inherited = checkpoint.read_params(
    checkpoints,
    checkpoint.steps(checkpoints)['last'],
    jax.eval_shape(lambda: transformer.init(model, jax.random.key(0))),
  )
  if model.granularity == config.model.granularity:
    return inherited
  params = params | transformer.cut(inherited['segment_0'], config.model.exits)
  params[f'exit_{config.model.granularity}'] = inherited['exit_1']
  for name in ('embedding', 'unembedding'):
    if name in inherited:
      params[name] = inherited[name]
  return params


def _origin(parent: pathlib.Path) -> storage.Row:
  """Returns the lineage of an export, import or expansion; {} for a run.

  Once such a folder is trained further in place, it is a run.
  """
  path = parent / 'lineage.json'
  lineage = storage.read_json(path) if path.exists() else {}
  if not {'export', 'import', 'expand'} & lineage.keys():
    return {}
  last = checkpoint.steps(parent / 'checkpoints')['last']
  return lineage if last == 0 else {}


def _resolve(folder: pathlib.Path, init_from: str) -> pathlib.Path:
  """Returns the parent's folder, lexically, because `folder` may not exist."""
  return pathlib.Path(os.path.normpath(folder / init_from))


def _same_exits(parent: pathlib.Path, config: train_config.RunConfig) -> bool:
  """Whether the parent is a family with this run's exits."""
  was: Any = storage.read_json(parent / 'config.json')
  exits = config.model.exits
  return len(exits) > 1 and was.get('model', {}).get('exits') == list(exits)


def _expected(
  parent: pathlib.Path, config: train_config.RunConfig
) -> train_config.RunConfig:
  """Returns the config that the parent must have.

  It has the same exits, or is dense and gives the trunk and the last exit.
  """
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
  """Raises a UserError if the tokenizer file differs from the parent's."""
  if not config.data.tokenizer_file:
    return
  own = parent / run_folder.TOKENIZER
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
