"""Import of a Llama of `transformers` as a family, with exits added."""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from familial.convert import export
from familial.convert import load
from familial.core import errors
from familial.core import storage
from familial.data import config as data_config
from familial.data import tokenizers
from familial.model import config as model_config
from familial.model import transformer
from familial.training import config as train_config

# Defaults of each architecture's config.
_DEFAULTS: dict[str, dict[str, Any]] = {
  'LlamaForCausalLM': {'rope_theta': 10_000.0},
  'MistralForCausalLM': {
    'rope_theta': 10_000.0,
    'num_key_value_heads': 8,
    'sliding_window': 4096,
  },
}
# Supported values of keys whose other values change the computation; the first
# is the default.
_PLAIN: dict[str, tuple[Any, ...]] = {
  'hidden_act': ('silu',),
  'attention_bias': (False,),
  'mlp_bias': (False,),
  'sliding_window': (None,),
  'rope_scaling': (None,),
  'partial_rotary_factor': (None, 1),
  'quantization_config': (None,),
}
_PLAIN_ROPE: dict[str, tuple[Any, ...]] = {
  'rope_type': ('default',),
  'partial_rotary_factor': (None, 1),
}
_DTYPES = ('F32', 'F16', 'BF16')


def from_hugging_face(
  folder: str | os.PathLike[str],
  exits: Sequence[int],
  exit_kind: str,
  out: str | os.PathLike[str],
) -> str:
  """Writes a Llama of `transformers` as a model folder; returns a summary line.

  The last exit equals that model to rounding. The other exits start from copies
  of its norm and unembedding, and a branch from the next trunk layer; they need
  training. The tokenizer's end-of-text token (the first `eos_token_id`) becomes
  the separator; rows of the vocabulary without a token are left out. The FLOPs
  of earlier training are unknown and count as 0; `train` and the corpus of the
  written config have no meaning.

  To continue training, a run of this model (`model` in config.json) has the
  folder as `train.init_from`, on a corpus packed with its tokenizer
  (`data.tokenizer=OUT/tokenizer.json`, `data.vocab_size` as here).

  Args:
    folder: folder with config.json, tokenizer.json, and model.safetensors or
      shards.
    exits: layers that an exit follows; the last layer always has one.
    exit_kind: head, separate or branch.
    out: the folder to make.

  Raises:
    UserError: if the model is not supported, its files do not fit its config, or
      `out` is not empty.
  """
  export.check_out(out)
  folder = pathlib.Path(folder)
  path = folder / 'config.json'
  if not path.exists():
    raise errors.UserError(f'{folder} holds no config.json: not a model')
  values = _values(path)
  stored = _model(values, path, exits, exit_kind)
  context = _number(values, path, 'max_position_embeddings')
  text, name, size = _tokenizer(folder, values.get('eos_token_id'))
  if size > stored.vocab_size:
    raise errors.UserError(
      f'{path}: vocab_size is {stored.vocab_size}, and {load.TOKENIZER} has '
      f'{size} tokens'
    )
  model = dataclasses.replace(stored, vocab_size=size)
  params = _params(_tensors(folder, _shapes(stored)), model)
  architecture, source = values['architectures'][0], folder.absolute().name
  config = train_config.RunConfig(
    cell=source,
    arm='import',
    budget=0.0,
    model=model,
    data=data_config.DataConfig(
      tokenizer=load.TOKENIZER,  # Of the folder: export.write says where.
      vocab_size=model.vocab_size,
      seq_len=context,
    ),
    train=train_config.TrainConfig(steps=1, batch_size=1, base_lr=1e-3),
  )
  lineage = {
    'parent': None,
    'expansion': None,
    'inherited_flops': 0,
    'import': {
      'source': source,
      'architecture': architecture,
      'exits': list(model.exits),
      'separator': name,
    },
  }
  export.write(out, config, lineage, params, text)
  return (
    f'{out}: a {architecture} of {model.depth} layers, with exits after '
    f'{", ".join(map(str, model.exits))}'
  )


def _values(path: pathlib.Path) -> dict[str, Any]:
  """Returns a config with its defaults, if the model is supported."""
  values = storage.read_json(path)
  if not isinstance(values, dict):
    raise errors.UserError(f'{path} holds no config')
  found = values.get('architectures')
  if not isinstance(found, list) or found[:1] not in [
    [name] for name in _DEFAULTS
  ]:
    raise errors.UserError(
      f'{path}: architectures is {found!r}; it must be one of '
      f'{", ".join(_DEFAULTS)}'
    )
  values = {**_DEFAULTS[found[0]], **values}
  rope = values.get('rope_parameters') or {}
  if not isinstance(rope, dict):
    raise errors.UserError(f'{path}: rope_parameters is {rope!r}, not a table')
  for part, plain in ((values, _PLAIN), (rope, _PLAIN_ROPE)):
    for key, allowed in plain.items():
      if part.get(key, allowed[0]) not in allowed:
        raise errors.UserError(
          f'{path}: {key} is {part[key]!r}; only {json.dumps(allowed[0])} can '
          'be imported'
        )
  return {**values, **rope}


def _model(
  values: dict[str, Any],
  path: pathlib.Path,
  exits: Sequence[int],
  exit_kind: str,
) -> model_config.ModelConfig:
  """Returns the shape of the family, with the stored vocabulary."""
  depth, width, heads = (
    _number(values, path, key)
    for key in ('num_hidden_layers', 'hidden_size', 'num_attention_heads')
  )
  if values.get('num_key_value_heads') is None:
    values['num_key_value_heads'] = heads
  model = model_config.ModelConfig(
    vocab_size=_number(values, path, 'vocab_size'),
    width=width,
    depth=depth,
    heads=heads,
    kv_heads=_number(values, path, 'num_key_value_heads'),
    mlp_width=_number(values, path, 'intermediate_size'),
    exits=tuple(exits) if depth in exits else (*exits, depth),
    exit_kind=exit_kind,
    tied=values.get('tie_word_embeddings', False) is True,
    base_width=width,  # Its logits have no scale.
    rope_theta=_number(values, path, 'rope_theta', float),
    norm_eps=_number(values, path, 'rms_norm_eps', float),
  )
  if values.get('head_dim') not in (None, model.head_dim):
    raise errors.UserError(
      f'{path}: head_dim is {values["head_dim"]!r}; it must be hidden_size / '
      f'num_attention_heads, {model.head_dim}'
    )
  return model


def _number(
  values: dict[str, Any], path: pathlib.Path, key: str, kind: type = int
) -> Any:
  value: Any = values.get(key)
  right = isinstance(value, (int, kind)) and not isinstance(value, bool)
  if not right or not 0 < value < float('inf'):
    raise errors.UserError(
      f'{path}: {key} is {value!r}; it must be '
      f'{"an integer" if kind is int else "a number"} above 0'
    )
  return kind(value)


def _tokenizer(folder: pathlib.Path, end: Any) -> tuple[str, str, int]:
  """Returns a tokenizer file with the token `end` renamed to the separator, that
  token's former name, and the number of tokens."""
  path = folder / load.TOKENIZER
  if not path.exists():
    raise errors.UserError(f'{folder} holds no {load.TOKENIZER}')
  made = storage.read_json(path)
  if isinstance(end, list) and end:
    end = end[0]
  try:
    added = {token['id']: token for token in made['added_tokens']}
    if end not in added or not added[end]['special']:
      raise errors.UserError(
        f'{folder / "config.json"}: eos_token_id is {end!r}; it must be a '
        f'special token of {load.TOKENIZER}'
      )
    name, added[end]['content'] = added[end]['content'], tokenizers.SEPARATOR
    numbers = made['model']['vocab']
    if name in numbers:
      numbers[tokenizers.SEPARATOR] = numbers.pop(name)
  except (LookupError, TypeError, AttributeError):
    raise errors.UserError(f'{path} is no tokenizer with merges') from None
  # Documents are encoded whole; separators are added by the packing.
  made |= {'truncation': None, 'padding': None, 'post_processor': None}
  text = json.dumps(made, ensure_ascii=False)
  try:
    read = tokenizers.BPE(text)
  except Exception as error:  # The library raises bare Exceptions.
    line = str(error).splitlines()[0]
    raise errors.UserError(f'{path}: {line}') from error
  # The library renumbers added tokens if their numbers have a gap.
  if max(added) >= read.vocab_size or read.separator != end:
    raise errors.UserError(f'{path}: its tokens are not numbered without gaps')
  return text, name, read.vocab_size


def _shapes(model: model_config.ModelConfig) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every tensor that the files must hold."""
  dense = model.submodel(model.granularity)
  like = jax.eval_shape(lambda: transformer.init(dense, jax.random.key(0)))
  shapes = {
    'model.embed_tokens.weight': (model.vocab_size, model.width),
    'model.norm.weight': (model.width,),
  }
  if not model.tied:
    shapes['lm_head.weight'] = (model.vocab_size, model.width)
  for name, path in export.LAYER.items():
    leaf = like['segment_0']
    for key in path:
      leaf = leaf[key]
    for layer in range(model.depth):
      shapes[f'model.layers.{layer}.{name}.weight'] = leaf.shape[:0:-1]
  return shapes


def _tensors(
  folder: pathlib.Path, shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
  """Reads a model's tensors as float32, after checking their shapes."""
  where = _files(folder)
  if missing := sorted(shapes.keys() - where.keys()):
    raise errors.UserError(f'{folder} has no tensor {missing[0]}')
  for name in sorted(where.keys() - shapes.keys()):
    # Old files hold rotary frequencies, and some a tied matrix twice.
    if not name.endswith('.rotary_emb.inv_freq') and name != 'lm_head.weight':
      raise errors.UserError(
        f'{folder}: tensor {name} is no part of the model of its config.json'
      )
  tensors = {}
  for path in sorted({where[name] for name in shapes}):
    with _opened(path) as file:
      for name in (name for name in shapes if where[name] == path):
        stored = file.get_slice(name)
        kind, shape = stored.get_dtype(), tuple(stored.get_shape())
        if kind not in _DTYPES or shape != shapes[name]:
          raise errors.UserError(
            f'{path}: {name} is {kind} {shape}; it must be '
            f'{" or ".join(_DTYPES)} {shapes[name]}'
          )
        tensors[name] = file.get_tensor(name).astype(np.float32)
  return tensors


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
  """Opens a file of tensors; its errors are one line."""
  try:
    with safetensors.safe_open(path, 'np') as file:
      yield file
  except (safetensors.SafetensorError, OSError) as error:
    raise errors.UserError(f'{path}: {error}') from None


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the file of each tensor."""
  whole = folder / 'model.safetensors'
  index = folder / 'model.safetensors.index.json'
  if whole.exists():
    with _opened(whole) as file:
      return dict.fromkeys(file.keys(), whole)
  if index.exists():
    read = storage.read_json(index)
    shards = read.get('weight_map') if isinstance(read, dict) else None
    if not isinstance(shards, dict) or not all(
      isinstance(name, str) and pathlib.Path(name).name == name
      for name in shards.values()
    ):
      raise errors.UserError(
        f'{index}: its weight_map does not name files of this folder'
      )
    return {tensor: folder / name for tensor, name in shards.items()}
  if any(folder.glob('*.bin')) or any(folder.glob('*.pt*')):
    raise errors.UserError(
      f'{folder} holds pickled weights only, and reading those runs what code '
      'they hold; save the model as safetensors'
    )
  raise errors.UserError(f'{folder} holds no model.safetensors')


def _params(
  tensors: dict[str, np.ndarray], model: model_config.ModelConfig
) -> transformer.Params:
  """Returns a family's parameters; removes the tensors from the dict."""
  trunk: transformer.Params = {}
  for name, path in export.LAYER.items():
    at = trunk
    for key in path[:-1]:
      at = at.setdefault(key, {})
    layers = [f'model.layers.{i}.{name}.weight' for i in range(model.depth)]
    stacked = np.stack([tensors.pop(layer).T for layer in layers])
    at[path[-1]] = jnp.asarray(stacked)
  embedding = jnp.asarray(
    tensors['model.embed_tokens.weight'][: model.vocab_size]
  )
  params: transformer.Params = {'embedding': embedding}
  unembedding = embedding.T
  if not model.tied:
    unembedding = jnp.asarray(tensors['lm_head.weight'][: model.vocab_size].T)
    params['unembedding'] = unembedding
  norm = {'gain': jnp.asarray(tensors['model.norm.weight'])}
  params |= transformer.cut(trunk, model.exits)
  for exit_, stop in enumerate(model.exits, start=1):
    head: transformer.Params = {'norm': norm}
    if model.owns_layer(exit_):
      head['branch'] = jax.tree.map(lambda leaf, at=stop: leaf[at], trunk)
    if model.owns_unembedding(exit_):
      head['unembedding'] = unembedding
    params[f'exit_{exit_}'] = head
  return params
