"""Models read back: from a run, from an export, at any of their steps."""

import dataclasses
import os
import pathlib
import re

import jax
import ml_collections

from familial.convert import segments
from familial.core import errors
from familial.core import storage
from familial.data import tokenizers
from familial.model import transformer
from familial.training import checkpoint
from familial.training import config as train_config

TOKENIZER = 'tokenizer.json'


@dataclasses.dataclass(frozen=True)
class Model:
  """A model and what is known of it.

  Attributes:
    folder: of the run or export.
    step: of the checkpoint.
    config: as it was trained, or made.
    params: its parameters.
    tokenizer: of its text.
    tokenizer_path: the tokenizer's file; '' for bytes.
  """

  folder: pathlib.Path
  step: int
  config: train_config.RunConfig
  params: transformer.Params
  tokenizer: tokenizers.Tokenizer
  tokenizer_path: str

  @property
  def context(self) -> int:
    """Positions of a sequence, as it was trained."""
    return self.config.data.seq_len


def load(folder: str | os.PathLike[str], step: str = 'last') -> Model:
  """Reads a model.

  Args:
    folder: of a run or an export, or one of its checkpoints.
    step: last, best (lowest held-out loss of the last exit), or a number; a
      folder that is one checkpoint says it itself, and leaves no choice.

  Raises:
    UserError: where there is no such checkpoint, it is damaged, or it is of
      another shape than its folder's config.
  """
  folder, step = locate(folder, step)
  config = read_config(folder)
  number = find_step(folder / 'checkpoints', step)
  like = jax.eval_shape(
    lambda: transformer.init(config.model, jax.random.key(0))
  )
  params = checkpoint.read_params(folder / 'checkpoints', number, like)
  tokenizer, path = read_tokenizer(folder, config.model.vocab_size)
  if config.data.tokenizer_file:  # Which may have been moved, with the folder.
    data = dataclasses.replace(config.data, tokenizer=path)
    config = dataclasses.replace(config, data=data)
  return Model(folder, number, config, params, tokenizer, path)


def locate(
  folder: str | os.PathLike[str], step: str
) -> tuple[pathlib.Path, str]:
  """Returns a model's folder and step, given it or one of its checkpoints."""
  folder = pathlib.Path(os.path.normpath(folder))
  if folder.parent.name == 'checkpoints' and re.fullmatch(
    '[0-9]{1,18}', folder.name
  ):
    if step not in ('last', folder.name):
      raise errors.UserError(
        f'step: {step!r} is not allowed for {folder}, which is the checkpoint '
        f'of step {folder.name}'
      )
    folder, step = folder.parent.parent, folder.name
  return folder, step


def read_config(folder: pathlib.Path) -> train_config.RunConfig:
  """Returns the config of a run or an export."""
  path = folder / 'config.json'
  if not path.exists():
    raise errors.UserError(
      f'{folder} holds no config.json: not a run, nor one of its checkpoints'
    )
  values = storage.read_own(path)
  if 'train' not in values or 'grid' in values:
    raise errors.UserError(f'{path} is not the config of a single run')
  values.pop('schema', None)
  return train_config.read(values)


def template_of(folder: str | os.PathLike[str]) -> ml_collections.ConfigDict:
  """Returns the config of a run that starts from a folder's model, to change.

  Model, data and training are the folder's; all of it is trained, none grows.

  Args:
    folder: of a run, an export, an import or an expansion; a relative one is
      below the current directory.

  Raises:
    UserError: if it holds no model.
  """
  folder = pathlib.Path(folder).absolute()
  parent = read_config(folder)
  config = train_config.template()
  for name in ('model', 'data', 'train'):
    config[name].update(dataclasses.asdict(getattr(parent, name)))
  if parent.data.tokenizer_file:  # Which may have been moved, with the folder.
    config.data.tokenizer = str(folder / TOKENIZER)
  config.train.update(init_from=str(folder), trained='all')
  return config


def tokenizer_of(folder: str | os.PathLike[str]) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a run, an export or a segment."""
  folder = pathlib.Path(folder)
  if (folder / segments.CONFIG).exists():
    vocab_size = segments.read_config(folder).model.vocab_size
  else:
    vocab_size = read_config(folder).model.vocab_size
  return read_tokenizer(folder, vocab_size)[0]


def read_tokenizer(
  folder: pathlib.Path, vocab_size: int
) -> tuple[tokenizers.Tokenizer, str]:
  """Returns the tokenizer of a run, an export or a segment, and its file.

  Raises:
    UserError: if it is not of the model's vocabulary.
  """
  path = str(folder / TOKENIZER) if (folder / TOKENIZER).exists() else ''
  tokenizer = tokenizers.load(path)
  if tokenizer.vocab_size != vocab_size:
    raise errors.UserError(
      f'{path or "the byte tokenizer"} has {tokenizer.vocab_size} tokens, and '
      f'the model of {folder} has {vocab_size}'
    )
  return tokenizer, path


def find_step(folder: pathlib.Path, step: str) -> int:
  """Returns the step of a folder of checkpoints that last, best or a number
  names."""
  if re.fullmatch('[0-9]{1,18}', step):
    return int(step)
  if step not in ('last', 'best'):
    raise errors.UserError(
      f"step: {step!r} is not 'last', 'best' or a step's number"
    )
  return checkpoint.steps(folder)[step]
