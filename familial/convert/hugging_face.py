"""Import of a Llama of `transformers` as a family, with exits added."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Annotated
from typing import Any

import jax
import numpy as np
import safetensors

from familial.convert import export
from familial.convert import load
from familial.core import errors
from familial.core import schema
from familial.core import storage
from familial.data import config as data_config
from familial.data import tokenizers
from familial.model import config as model_config
from familial.model import transformer
from familial.training import config as train_config

# Defaults of each architecture that differ from those of `_Llama`.
_DEFAULTS: dict[str, dict[str, Any]] = {
  'LlamaForCausalLM': {},
  'MistralForCausalLM': {'num_key_value_heads': 8, 'sliding_window': 4096},
}
_DTYPES = ('F32', 'F16', 'BF16')


def _only(*values: Any) -> schema.Bound:
  """Returns the bound of a key whose other values change the computation."""
  return schema.Bound(
    lambda x: x in values, f'{json.dumps(values[0])} to be imported'
  )


@dataclasses.dataclass(frozen=True)
class _Llama:
  """The keys of a config.json that matter here, with the defaults of a Llama."""

  vocab_size: schema.Count
  hidden_size: schema.Count
  intermediate_size: schema.Count
  num_hidden_layers: schema.Count
  num_attention_heads: schema.Count
  max_position_embeddings: schema.Count
  rms_norm_eps: schema.Positive
  num_key_value_heads: schema.Count | None = None
  head_dim: int | None = None
  rope_theta: schema.Positive = 10_000.0
  tie_word_embeddings: bool | None = False
  bos_token_id: Any = None
  eos_token_id: Any = None
  pad_token_id: Any = None
  hidden_act: Annotated[Any, _only('silu')] = 'silu'
  attention_bias: Annotated[Any, _only(False)] = False
  mlp_bias: Annotated[Any, _only(False)] = False
  sliding_window: Annotated[Any, _only(None)] = None
  rope_scaling: Annotated[Any, _only(None)] = None
  rope_type: Annotated[Any, _only('default')] = 'default'
  partial_rotary_factor: Annotated[Any, _only(None, 1)] = None
  quantization_config: Annotated[Any, _only(None)] = None

  def __post_init__(self) -> None:
    head_dim = self.hidden_size // self.num_attention_heads
    errors.require(
      self.head_dim in (None, head_dim),
      'head_dim',
      self.head_dim,
      f'hidden_size / num_attention_heads, {head_dim}',
    )

  def shape(
    self, exits: Sequence[int], exit_kind: str
  ) -> model_config.ModelConfig:
    """Returns the shape of the family, with the stored vocabulary."""
    depth, width, heads = (
      self.num_hidden_layers, self.hidden_size, self.num_attention_heads,
    )  # fmt: skip
    errors.require(
      list(exits) == sorted({*exits} & {*range(1, depth + 1)}),
      '--exits',
      ','.join(map(str, exits)),
      f'increasing layers from 1 to {depth}, joined by commas',
    )
    return model_config.ModelConfig(
      vocab_size=self.vocab_size,
      width=width,
      depth=depth,
      heads=heads,
      kv_heads=self.num_key_value_heads or heads,
      mlp_width=self.intermediate_size,
      exits=tuple(exits) if depth in exits else (*exits, depth),
      exit_kind=exit_kind,
      tied=bool(self.tie_word_embeddings),
      base_width=width,  # Its logits have no scale.
      rope_theta=self.rope_theta,
      norm_eps=self.rms_norm_eps,
    )


def from_hugging_face(
  folder: str | os.PathLike[str],
  exits: Sequence[int],
  exit_kind: str,
  out: str | os.PathLike[str],
) -> str:
  """Writes a Llama of `transformers` as a model folder; returns a summary line.

  The last exit equals that model to rounding. The other exits start from copies
  of its norm and unembedding, and a branch from the next trunk layer; they need
  training. The tokenizer's end-of-text token (the first `eos_token_id`) is the
  separator, all of them stop a generated text, and its template begins texts and
  documents; rows of the vocabulary without a token are left out. The FLOPs of
  earlier training are unknown and count as 0; `train` and the corpus of the
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
  architecture, values = _read(path)
  stored = values.shape(exits, exit_kind)
  text, tokenizer = _tokenizer(folder, values)
  size = tokenizer.vocab_size
  if size > stored.vocab_size:
    raise errors.UserError(
      f'{path}: vocab_size is {stored.vocab_size}, and {load.TOKENIZER} has '
      f'{size} tokens'
    )
  model = dataclasses.replace(stored, vocab_size=size)
  params = _params(_tensors(folder, stored), model)
  source = folder.absolute().name
  config = train_config.RunConfig(
    cell=source,
    arm='import',
    budget=0.0,
    model=model,
    data=data_config.DataConfig(
      tokenizer=load.TOKENIZER,  # Of the folder: export.write says where.
      vocab_size=model.vocab_size,
      seq_len=values.max_position_embeddings,
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
      'separator': tokenizer.name,
    },
  }
  export.write(out, config, lineage, params, text)
  return (
    f'{out}: a {architecture} of {model.depth} layers, with exits after '
    f'{", ".join(map(str, model.exits))}'
  )


def _read(path: pathlib.Path) -> tuple[str, _Llama]:
  """Returns the architecture and the keys of a config.json."""
  values = storage.read_json(path)
  found = values.get('architectures') if isinstance(values, dict) else None
  if not isinstance(found, list) or found[:1] not in [[x] for x in _DEFAULTS]:
    raise errors.UserError(
      f'{path}: architectures is {found!r}; it must be one of '
      f'{", ".join(_DEFAULTS)}'
    )
  rope = values.get('rope_parameters') or {}
  if not isinstance(rope, dict):
    raise errors.UserError(f'{path}: rope_parameters is {rope!r}, not a table')
  values = {**_DEFAULTS[found[0]], **values, **rope}
  known = {field.name for field in dataclasses.fields(_Llama)}
  try:
    return found[0], schema.read(
      _Llama, {key: values[key] for key in known & values.keys()}
    )
  except errors.UserError as error:
    raise errors.UserError(f'{path}: {error}') from None


def _tokenizer(
  folder: pathlib.Path, known: _Llama
) -> tuple[str, tokenizers.BPE]:
  """Returns the text of a tokenizer's file whose separator is the first end of
  text, and the tokenizer.

  The file says which tokens stop a text, and what an export gives back.
  """
  path = folder / load.TOKENIZER
  if not path.exists():
    raise errors.UserError(f'{folder} holds no {load.TOKENIZER}')
  files = {
    name: _file(folder / name)
    for name in export.TOKENIZER_FILES
    if (folder / name).exists()
  }
  generation = files.get(export.GENERATION, {})
  ends = _ends(known.eos_token_id)
  stops = _ends(generation.get('eos_token_id')) or ends
  made = storage.read_json(path)
  try:
    names = {
      token['id']: token['content']
      for token in made['added_tokens']
      if token['special']
    }
    if not ends or ends[0] not in names:
      raise errors.UserError(
        f'{folder / "config.json"}: eos_token_id is {known.eos_token_id!r}; it '
        f'must be a special token of {load.TOKENIZER}'
      )
    # Documents are encoded whole.
    made |= {'truncation': None, 'padding': None}
    _set_template(made, files.get(export.TOKENIZER_CONFIG, {}))
    text = tokenizers.marked(
      made,
      names[ends[0]],
      stops=sorted({*ends, *stops}),
      bos=_number(known.bos_token_id),
      pad=_number(known.pad_token_id),
      files=files,
    )
    read = tokenizers.BPE(text)
  except errors.UserError:
    raise
  except (LookupError, TypeError, AttributeError):
    raise errors.UserError(f'{path} is no tokenizer with merges') from None
  except Exception as error:  # The library raises bare Exceptions.
    line = str(error).splitlines()[0]
    raise errors.UserError(f'{path}: {line}') from error
  # The library renumbers added tokens if their numbers have a gap.
  if max(names) >= read.vocab_size or read.separator != ends[0]:
    raise errors.UserError(f'{path}: its tokens are not numbered without gaps')
  return text, read


def _file(path: pathlib.Path) -> Any:
  """Returns the JSON object in a file, or the text of another kind of file."""
  if path.suffix != '.json':
    return path.read_text('utf-8')
  value = storage.read_json(path)
  if not isinstance(value, dict):
    raise errors.UserError(f'{path}: not a JSON object')
  return value


def _set_template(made: dict[str, Any], settings: dict[str, Any]) -> None:
  """Sets the template of a tokenizer as its tokenizer_config.json does.

  As `transformers` reads them, `add_bos_token` and `add_eos_token` go before the
  template in tokenizer.json, and each is False where only the other is there.
  """
  if 'add_bos_token' not in settings and 'add_eos_token' not in settings:
    return
  numbers = {token['content']: token['id'] for token in made['added_tokens']}
  around: list[dict[str, int]] = []
  for kind in ('bos', 'eos'):
    name = settings.get(f'{kind}_token')
    name = name.get('content') if isinstance(name, dict) else name
    adds = settings.get(f'add_{kind}_token') and isinstance(name, str)
    around.append({str(name): numbers[name]} if adds else {})
  made['post_processor'] = tokenizers.template(*around)


def _ends(value: Any) -> list[int]:
  """Returns the tokens of an eos_token_id: a number, several, or none."""
  values = value if isinstance(value, (list, tuple)) else [value]
  return [number for number in values if _number(number) is not None]


def _number(value: Any) -> int | None:
  return value if type(value) is int and value >= 0 else None


def _tensors(
  folder: pathlib.Path, model: model_config.ModelConfig
) -> Callable[[str], np.ndarray]:
  """Returns a function that reads a tensor as float32; checks all shapes."""
  dense = model.submodel(model.granularity)
  like = jax.eval_shape(lambda: transformer.init(dense, jax.random.key(0)))
  shapes = {
    name: tensor.shape
    for name, tensor in export.llama_tensors(like, dense, 1).items()
  }
  where = _files(folder)
  if missing := sorted(shapes.keys() - where.keys()):
    raise errors.UserError(f'{folder} has no tensor {missing[0]}')
  for name in sorted(where.keys() - shapes.keys()):
    # Old files hold rotary frequencies, and some a tied matrix twice.
    if not name.endswith('.rotary_emb.inv_freq') and name != 'lm_head.weight':
      raise errors.UserError(
        f'{folder}: tensor {name} is no part of the model of its config.json'
      )
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

  def read(name: str) -> np.ndarray:
    # Each time anew: what was read of a file that stays open stays in memory.
    with _opened(where[name]) as file:
      return np.asarray(file.get_tensor(name), np.float32)

  return read


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
  read: Callable[[str], np.ndarray], model: model_config.ModelConfig
) -> transformer.Params:
  """Returns a family's parameters, with one tensor in memory twice at a time."""
  segments = []
  starts = (0, *model.exits[:-1])
  for start, stop in zip(starts, model.exits, strict=True):
    layers: transformer.Params = {}
    for name, path in export.LAYER.items():
      at = layers
      for key in path[:-1]:
        at = at.setdefault(key, {})
      stacked = None
      for index, layer in enumerate(range(start, stop)):
        tensor = read(f'model.layers.{layer}.{name}.weight').T
        if stacked is None:
          stacked = np.empty((stop - start, *tensor.shape), np.float32)
        stacked[index] = tensor
      at[path[-1]] = stacked
    segments.append(layers)
  params: transformer.Params = {
    f'segment_{index}': layers for index, layers in enumerate(segments)
  }
  vocab = model.vocab_size
  params['embedding'] = read('model.embed_tokens.weight')[:vocab].copy()
  unembedding = params['embedding'].T
  if not model.tied:
    unembedding = read('lm_head.weight')[:vocab].T.copy()
    params['unembedding'] = unembedding
  norm = {'gain': read('model.norm.weight')}
  for exit_ in range(1, model.granularity + 1):
    head: transformer.Params = {'norm': norm}
    if model.owns_layer(exit_):
      # The layer of the trunk after the exit, the first of the next segment.
      head['branch'] = jax.tree.map(lambda leaf: leaf[0], segments[exit_])
    if model.owns_unembedding(exit_):
      head['unembedding'] = unembedding
    params[f'exit_{exit_}'] = head
  return params
