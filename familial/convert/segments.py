"""A family cut into segments, each of which can be held by another machine.

A segment is the layers between two exits with the exit at its end, and what
that exit reads its logits with. It keeps the family's names of parameters, so
cutting is a choice of keys, and every layer is in one segment.
"""

from collections.abc import Sequence
import dataclasses
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

from familial.core import errors
from familial.core import schema
from familial.core import storage
from familial.data import tokenizers
from familial.model import config as model_config
from familial.model import transformer

CONFIG = 'segment.json'
_PARAMS = 'params.safetensors'
_TOKENIZER = 'tokenizer.json'
# Of a shape: how the same numbers are computed.
_HOW = ('attention', 'unroll', 'remat', 'loss_chunk')


@dataclasses.dataclass(frozen=True)
class Segment:
  """Some consecutive layers of a family and the exit at their end.

  Attributes:
    model: the family's shape.
    exits: all exits at which this family was cut, increasing; the segment is
      one of them.
    index: which: it holds the layers above exit exits[index - 1], or above the
      embedding, up to exit exits[index].
    context: positions that the family was trained on.
    fingerprint: of the whole family: only segments of one family go together.
    tokenizer: mark of the tokenizer of its text.
    params: float32, under the family's names.
  """

  model: model_config.ModelConfig
  exits: tuple[int, ...]
  index: int
  context: int
  fingerprint: str
  tokenizer: str
  params: transformer.Params

  @property
  def exit(self) -> int:
    """The exit at its end."""
    return self.exits[self.index]

  @property
  def first(self) -> bool:
    """Whether it begins with tokens, not with another's states."""
    return self.index == 0

  @property
  def last(self) -> bool:
    """Whether none comes after it."""
    return self.index == len(self.exits) - 1

  @property
  def depth(self) -> int:
    """How many trunk layers it holds."""
    below = (
      0 if self.first else self.model.exits[self.exits[self.index - 1] - 1]
    )
    return self.model.exits[self.exit - 1] - below


@dataclasses.dataclass(frozen=True)
class Config:
  """What `segment.json` says of a segment.

  Attributes:
    model: the family's shape.
    exits: all exits at which the family was cut.
    index: which segment.
    context: positions that the family was trained on.
    fingerprint: of the family.
    tokenizer: mark of the tokenizer.
    bytes: of the parameters; see nbytes.
    sha256: of the file of parameters.
  """

  model: model_config.ModelConfig
  exits: tuple[int, ...]
  index: int
  context: schema.Count
  fingerprint: str
  tokenizer: str
  bytes: dict[str, int]
  sha256: str

  def __post_init__(self) -> None:
    schema.check(self)
    for exit_ in self.exits:
      self.model.submodel(exit_)  # Refuses what is no exit.
    increase = all(a < b for a, b in itertools.pairwise(self.exits))
    errors.require(
      bool(self.exits) and increase, 'exits', self.exits, 'increasing'
    )
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
    params: of the family.
    model: its shape.
    context: positions it was trained on.
    exits: where to cut, increasing; those of all exits by default. Layers above
      the last of them are left out.
    tokenizer: mark of the tokenizer.

  Raises:
    UserError: for what is no exit, or exits that do not increase.
  """
  exits = tuple(exits) or tuple(range(1, model.granularity + 1))
  for exit_ in exits:
    model.submodel(exit_)  # Refuses what is no exit.
  if any(a >= b for a, b in itertools.pairwise(exits)):
    raise errors.UserError(f'exits: {exits} do not increase')
  mark = fingerprint(params, model)
  parts = [_cut(params, model, exits, index) for index in range(len(exits))]
  return [
    Segment(model, exits, index, context, mark, tokenizer, part)
    for index, part in enumerate(parts)
  ]


def fingerprint(
  params: transformer.Params, model: model_config.ModelConfig
) -> str:
  """Returns a hash of a family: of its shape and of every parameter."""
  shape = {k: v for k, v in _shape(model).items() if k not in _HOW}
  hashed = hashlib.sha256(json.dumps(shape).encode())
  for name, leaf in sorted(_flat(params).items()):
    hashed.update(name.encode() + np.asarray(leaf, np.float32).tobytes())
  return hashed.hexdigest()[:16]


def nbytes(segment: Segment) -> dict[str, int]:
  """Returns its bytes: of `layers` and exit, held here alone, and what is
  `copied`: an embedding or unembedding that other segments need as well."""
  sizes = {
    name: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    for name, tree in segment.params.items()
  }
  copied = sum(
    size for name, size in sizes.items() if name in ('embedding', 'unembedding')
  )
  return {'layers': sum(sizes.values()) - copied, 'copied': copied}


def save(
  segment: Segment, folder: str | os.PathLike[str], tokenizer: str = ''
) -> None:
  """Writes a segment: its config, its parameters, the tokenizer's file."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  arrays = {n: np.asarray(leaf) for n, leaf in _flat(segment.params).items()}
  content = safetensors.save(arrays)
  storage.write_bytes(folder / _PARAMS, content)
  if tokenizer:
    storage.write_bytes(
      folder / _TOKENIZER, pathlib.Path(tokenizer).read_bytes()
    )
  config = Config(
    model=segment.model,
    exits=segment.exits,
    index=segment.index,
    context=segment.context,
    fingerprint=segment.fingerprint,
    tokenizer=segment.tokenizer,
    bytes=nbytes(segment),
    sha256=hashlib.sha256(content).hexdigest(),
  )
  schema.write_json(folder / CONFIG, config)


def load(folder: str | os.PathLike[str]) -> Segment:
  """Reads a segment that `save` wrote.

  Raises:
    UserError: where it is none, damaged, or not of the shape it says.
  """
  folder = pathlib.Path(folder)
  known = read_config(folder)
  model, exits, index = known.model, known.exits, known.index
  tokenizer = folder / _TOKENIZER
  own = tokenizers.load(str(tokenizer) if tokenizer.exists() else '')
  if own.mark != known.tokenizer:
    raise errors.UserError(
      f'{folder}: its tokenizer is {own.mark}; {CONFIG} says {known.tokenizer}'
    )
  like = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
  expected = _cut(like, model, exits, index)
  try:
    content = (folder / _PARAMS).read_bytes()
    arrays = safetensors.load(content)
  except (SafetensorError, OSError, LookupError, ValueError) as error:
    raise errors.UserError(f'{folder / _PARAMS}: {error}') from None
  flat = _flat(expected)
  for name in sorted(flat.keys() | arrays.keys()):
    was, needed = (_said(of.get(name)) for of in (arrays, flat))
    if was != needed:
      raise errors.UserError(
        f'{folder / _PARAMS}: {name} is {was}, and {needed} is needed'
      )
  if hashlib.sha256(content).hexdigest() != known.sha256:
    raise errors.UserError(
      f'{folder / _PARAMS}: its SHA-256 is not that in {CONFIG}: damaged, or of '
      'another segment'
    )
  params = jax.tree_util.tree_map_with_path(
    lambda path, _: jnp.asarray(arrays[_name(path)]), expected
  )
  return Segment(
    model, exits, index, known.context, known.fingerprint, known.tokenizer,
    params,
  )  # fmt: skip


def read_config(folder: pathlib.Path) -> Config:
  """Reads what a segment says of itself, and no parameters.

  Raises:
    UserError: where it is none.
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


def _shape(model: model_config.ModelConfig) -> dict[str, Any]:
  return dataclasses.asdict(model) | {'exits': list(model.exits)}


def _said(leaf: Any) -> str:
  return 'nothing' if leaf is None else f'{leaf.dtype} {tuple(leaf.shape)}'


def _flat(params: transformer.Params) -> dict[str, Any]:
  """Returns the leaves by dotted names."""
  return {
    _name(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def _name(path: tuple[Any, ...]) -> str:
  return '.'.join(part.key for part in path)
