"""A family cut into segments that different machines can hold.

A segment is the layers between two exits, the exit at its end, and what that
exit reads its logits with. It keeps the family's names of parameters, so a cut
is a choice of keys, and every layer is in one segment.
"""

from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from familial.convert import tensor_file
from familial.core import errors
from familial.core import schema
from familial.core import storage
from familial.core import text
from familial.data import tokenizers
from familial.model import config as model_config
from familial.model import transformer

CONFIG = 'segment.json'
_PARAMS = 'params.safetensors'
_TOKENIZER = 'tokenizer.json'
# Fields of a shape that do not change what is computed.
_HOW = ('attention', 'unroll', 'remat', 'loss_chunk')


@dataclasses.dataclass(frozen=True)
class Cut:
  """Which part of which family a segment is.

  Attributes:
    model: shape of the family.
    exits: exits at which the family was cut, increasing.
    index: index of the segment: it holds the layers above exit
      exits[index - 1], or above the embedding, up to exit exits[index].
    context: positions that the family was trained on.
    fingerprint: fingerprint of the family; segments of different families do
      not go together.
    tokenizer: mark of the tokenizer of its text.
  """

  model: model_config.ModelConfig
  exits: tuple[int, ...]
  index: int
  context: schema.Count
  fingerprint: str
  tokenizer: str

  @property
  def exit(self) -> int:
    """The exit at the segment's end."""
    return self.exits[self.index]

  @property
  def first(self) -> bool:
    """Whether the inputs are tokens, not states."""
    return self.index == 0

  @property
  def last(self) -> bool:
    """Whether no segment follows."""
    return self.index == len(self.exits) - 1


@text.brief
@dataclasses.dataclass(frozen=True)
class Segment(Cut):
  """Consecutive layers of a family and the exit at their end.

  Attributes:
    params: float32 parameters, under the family's names.
  """

  params: transformer.Params


@dataclasses.dataclass(frozen=True)
class Config(Cut):
  """The contents of `segment.json`.

  Attributes:
    bytes: bytes of the parameters; see nbytes.
    sha256: SHA-256 of the file of parameters.
  """

  bytes: dict[str, int]
  sha256: str

  def __post_init__(self) -> None:
    schema.check(self)
    check_exits(self.model, self.exits)
    errors.require(
      0 <= self.index < len(self.exits),
      'index',
      self.index,
      f'from 0 to {len(self.exits) - 1}',
    )


def split(
  params: transformer.Params,
  model: model_config.ModelConfig,
  context: int,
  exits: Sequence[int] = (),
  tokenizer: str = tokenizers.Bytes.mark,
) -> list[Segment]:
  """Returns the segments of a family, first to last.

  Args:
    params: parameters of the family.
    model: shape of the family.
    context: positions that it was trained on.
    exits: where to cut, increasing; all exits by default. Layers above the last
      of them are left out.
    tokenizer: mark of the tokenizer.

  Raises:
    UserError: for exits that do not exist or do not increase.
  """
  exits = tuple(exits) or tuple(range(1, model.granularity + 1))
  check_exits(model, exits)
  mark = fingerprint(params, model)
  return [
    Segment(
      model, exits, index, context, mark, tokenizer,
      _cut(params, model, exits, index),
    )
    for index in range(len(exits))
  ]  # fmt: skip


def check_exits(
  model: model_config.ModelConfig, exits: tuple[int, ...]
) -> None:
  """Refuses exits that a model does not have, or that do not increase."""
  for exit_ in exits:
    model.submodel(exit_)
  errors.require(
    bool(exits) and all(a < b for a, b in itertools.pairwise(exits)),
    'exits',
    exits,
    f'increasing numbers from 1 to {model.granularity}',
  )


def fingerprint(
  params: transformer.Params, model: model_config.ModelConfig
) -> str:
  """Returns a hash of a family's shape and parameters."""
  shape = {k: v for k, v in dataclasses.asdict(model).items() if k not in _HOW}
  hashed = hashlib.sha256(json.dumps(shape).encode())
  for name, leaf in sorted(_flat(params).items()):
    hashed.update(name.encode() + np.asarray(leaf, np.float32).tobytes())
  return hashed.hexdigest()[:16]


def nbytes(segment: Segment) -> dict[str, int]:
  """Returns the bytes of a segment's parameters.

  `layers` are those of layers and exit, held here alone; `copied` those of an
  embedding or unembedding that other segments hold as well.
  """
  sizes = {'layers': 0, 'copied': 0}
  for name, tree in segment.params.items():
    part = 'copied' if name in ('embedding', 'unembedding') else 'layers'
    sizes[part] += sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
  return sizes


def save(
  segment: Segment, folder: str | os.PathLike[str], tokenizer: str = ''
) -> None:
  """Writes a segment: its config, its parameters, the tokenizer's file."""
  folder = pathlib.Path(folder)
  with storage.writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  sha256 = tensor_file.write(
    folder / _PARAMS,
    {
      name: tensor_file.Tensor(leaf.shape, functools.partial(np.asarray, leaf))
      for name, leaf in _flat(segment.params).items()
    },
  )
  if tokenizer:
    storage.write_bytes(
      folder / _TOKENIZER, pathlib.Path(tokenizer).read_bytes()
    )
  config = Config(
    **_fields(segment),
    bytes=nbytes(segment),
    sha256=sha256,
  )
  schema.write_json(folder / CONFIG, config)


def load(folder: str | os.PathLike[str]) -> Segment:
  """Reads a segment that `save` wrote.

  Raises:
    UserError: if it is none, damaged, or not of the shape in its config.
  """
  folder = pathlib.Path(folder)
  known = read_config(folder)
  tokenizer = folder / _TOKENIZER
  own = tokenizers.load(str(tokenizer) if tokenizer.exists() else '')
  if own.mark != known.tokenizer:
    raise errors.UserError(
      f'{folder}: its tokenizer is {own.mark}; {CONFIG} says {known.tokenizer}'
    )
  like = jax.eval_shape(
    lambda: transformer.init(known.model, jax.random.key(0))
  )
  expected = _cut(like, known.model, known.exits, known.index)
  path = folder / _PARAMS
  try:
    content = path.read_bytes()
    arrays = safetensors.load(content)
  except (SafetensorError, OSError, LookupError, ValueError) as error:
    raise errors.UserError(f'{path}: {error}') from None
  flat = _flat(expected)
  for name in sorted(flat.keys() | arrays.keys()):
    found, needed = (_kind(leaves.get(name)) for leaves in (arrays, flat))
    if found != needed:
      raise errors.UserError(
        f'{path}: {name} is {found}, and {needed} is needed'
      )
  if hashlib.sha256(content).hexdigest() != known.sha256:
    raise errors.UserError(
      f'{path}: its SHA-256 is not that in {CONFIG}: damaged, or of another '
      'segment'
    )
  params = jax.tree_util.tree_map_with_path(
    lambda path, _: jnp.asarray(arrays[_name(path)]), expected
  )
  return Segment(**_fields(known), params=params)


def read_config(folder: pathlib.Path) -> Config:
  """Reads the config of a segment, and no parameters.

  Raises:
    UserError: if there is none, or its values make no sense.
  """
  path = folder / CONFIG
  if not path.exists():
    raise errors.UserError(f'{folder} holds no {CONFIG}: not a segment')
  return schema.read_json(Config, path)


def _cut(
  params: transformer.Params,
  model: model_config.ModelConfig,
  exits: tuple[int, ...],
  index: int,
) -> transformer.Params:
  """Returns the parameters of one segment."""
  exit_ = exits[index]
  below = exits[index - 1] if index else 0
  names = {f'segment_{i}' for i in range(below, exit_)} | {f'exit_{exit_}'}
  if not index:
    names.add('embedding')
  if not model.owns_unembedding(exit_):
    names.add('embedding' if model.tied else 'unembedding')
  return {name: params[name] for name in sorted(names)}


def _fields(cut: Cut) -> dict[str, Any]:
  return {f.name: getattr(cut, f.name) for f in dataclasses.fields(Cut)}


def _kind(leaf: Any) -> str:
  return 'nothing' if leaf is None else f'{leaf.dtype} {tuple(leaf.shape)}'


def _flat(params: transformer.Params) -> dict[str, Any]:
  """Returns the leaves by dotted names."""
  return {
    _name(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def _name(path: tuple[Any, ...]) -> str:
  return '.'.join(part.key for part in path)
