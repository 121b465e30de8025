"""Loading of models: of a run, an export or an import, at any step."""

import dataclasses
import os
import pathlib
import re

import jax
import ml_collections

from familial.convert import segments
from familial.core import errors
from familial.core import storage
from familial.core import text
from familial.data import tokenizers
from familial.model import transformer
from familial.training import checkpoint
from familial.training import config as train_config

TOKENIZER = 'tokenizer.json'


@text.brief
@dataclasses.dataclass(frozen=True)
class Model:
  """A loaded model.

  Attributes:
    folder: folder of the run or export.
    step: step of the checkpoint.
    config: config of the run or export.
    params: parameters.
    tokenizer: tokenizer of its text.
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
    """The positions of a training sequence."""
    return self.config.data.seq_len


def load(
  folder: str | os.PathLike[str], step: str = 'last', *, stored: bool = False
) -> Model:
  """Loads a model.

  Args:
    folder: folder of a run or an export, or one of its checkpoints.
    step: last, best (lowest held-out loss of the last exit), or a number; not
      used for a folder that is a checkpoint.
    stored: whether the parameters stay on the disk, as arrays of which NumPy reads
      what is asked for.

  Raises:
    UserError: if there is no such checkpoint, it is damaged, or its shape is
      not that of its folder's config.
  """
  folder, step = locate(folder, step)
  config = read_config(folder)
  number = find_step(folder / 'checkpoints', step)
  like = jax.eval_shape(
    lambda: transformer.init(config.model, jax.random.key(0))
  )
  read = checkpoint.stored_params if stored else checkpoint.read_params
  params = read(folder / 'checkpoints', number, like)
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
  """Returns a config template of a run that starts from a folder's model.

  Model, data and training are the folder's; all parameters are trained, and the
  model does not grow.

  Raises:
    UserError: if the folder holds no model.
  """
  folder = pathlib.Path(folder).absolute()
  parent = read_config(folder)
  config = train_config.template()
  for name in ('model', 'data', 'train'):
    config[name].update(dataclasses.asdict(getattr(parent, name)))
  # A BPE of other text would be another tokenizer; the folder may have moved.
  if (folder / TOKENIZER).exists() or parent.data.tokenizer_file:
    config.data.tokenizer = str(folder / TOKENIZER)
  config.train.update(init_from=str(folder), trained='all')
  return config


def tokenizer_of(folder: str | os.PathLike[str]) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a run, an export or a segment."""
  folder = pathlib.Path(folder)
  is_segment = (folder / segments.CONFIG).exists()
  config = (segments.read_config if is_segment else read_config)(folder)
  return read_tokenizer(folder, config.model.vocab_size)[0]


def read_tokenizer(
  folder: pathlib.Path, vocab_size: int
) -> tuple[tokenizers.Tokenizer, str]:
  """Returns the tokenizer of a folder, and its file.

  Raises:
    UserError: if its vocabulary is not the model's.
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
  """Returns the number of a step: last, best or a number."""
  if re.fullmatch('[0-9]{1,18}', step):
    return int(step)
  if step not in ('last', 'best'):
    raise errors.UserError(
      f"step: {step!r} is not 'last', 'best' or a step's number"
    )
  return checkpoint.steps(folder)[step]
