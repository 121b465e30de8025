"""`familial export`, `import` and `expand`: models made of other models."""

from __future__ import annotations

import dataclasses
from typing import Annotated
from typing import Any

from etils import epy

from familial.cli.command import Command
from familial.cli.command import ConfigFile
from familial.cli.command import Folder
from familial.core import errors
from familial.core import schema
from familial.model import config as model_config

# Imported when a command runs, not when its flags are read.
with epy.lazy_imports():
  from familial.convert import expand
  from familial.convert import export
  from familial.convert import hugging_face
  from familial.convert import load
  from familial.training import config as train_config

_FORMATS = ('familial', 'hugging_face', 'segments')


@dataclasses.dataclass(frozen=True)
class Export:
  """Flags of `familial export`.

  Attributes:
    checkpoint: run or export, or one of its checkpoints.
    out: folder of the result.
    step: checkpoint of a run: last, best, or a number of steps.
    exit: number of the exit, from 1; 0 for the last.
    format: `familial` (a model of this project), `hugging_face` (Hugging Face
      files) or `segments` (a folder for each segment up to the exit, to be
      served).
    dtype: type of the tensors of `hugging_face`: float32 or bfloat16.
  """

  checkpoint: Folder
  out: Folder
  step: str = 'last'
  exit: int = 0
  format: Annotated[str, schema.one_of(*_FORMATS)] = 'familial'
  dtype: Annotated[str, schema.one_of('float32', 'bfloat16')] = 'float32'


def _export(given: Export) -> str:
  if given.dtype != 'float32' and given.format != 'hugging_face':
    raise errors.UserError(
      f'--dtype={given.dtype}: not used by --format={given.format}, only by '
      'hugging_face'
    )
  model = load.load(given.checkpoint, given.step, stored=True)
  number = given.exit or model.config.model.granularity
  if given.format == 'hugging_face':
    export.to_hugging_face(model, number, given.out, given.dtype)
  else:
    write = {
      'familial': export.to_familial,
      'segments': export.to_segments,
    }
    write[given.format](model, number, given.out)
  what = 'segments up to exit' if given.format == 'segments' else 'exit'
  return f'wrote {what} {number} of {model.folder} to {given.out}'


@dataclasses.dataclass(frozen=True)
class Import:
  """Flags of `familial import`.

  Attributes:
    from_: folder of Hugging Face files of a Llama-like model.
    out: folder of the result.
    exits: layers after which exits are added, as 8,16; the last layer always has
      one.
    exit_kind: kind of the exits added.
  """

  from_: Folder
  out: Folder
  exits: tuple[int, ...] = ()
  exit_kind: Annotated[str, schema.key_of(model_config.EXIT_KINDS)] = 'head'


def _import(given: Import) -> str:
  return hugging_face.from_hugging_face(
    given.from_, given.exits, given.exit_kind, given.out
  )


@dataclasses.dataclass(frozen=True)
class Expand:
  """Flags of `familial expand`.

  Attributes:
    checkpoint: run or export, or one of its checkpoints.
    to: run whose model, growth and train.seed are read; data, layout and the rest
      of train stay the checkpoint's.
    out: folder of the result.
    step: checkpoint of a run: last, best, or a number of steps.
  """

  checkpoint: Folder
  to: Annotated[Any, ConfigFile(required=True)]
  out: Folder
  step: str = 'last'


def _expand(given: Expand) -> str:
  config = train_config.read(given.to)
  return expand.expand(given.checkpoint, config, given.out, given.step)


COMMANDS = {
  'export': Command(Export, _export),
  'import': Command(Import, _import),
  'expand': Command(Expand, _expand),
}
