"""Export of an exit as a stand-alone model, or of segments.

A stand-alone model has the embedding, the layers up to the exit, and the exit's
branch, norm and unembedding.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import functools
import json
import operator
import os
import pathlib
import shutil
from typing import Any
import uuid

import jax
import jax.numpy as jnp
import numpy as np

from familial.convert import load
from familial.convert import segments
from familial.convert import tensor_file
from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.data import tokenizers as tokenizers_lib
from familial.model import config as model_config
from familial.model import flops
from familial.model import transformer
from familial.training import checkpoint
from familial.training import config as train_config
from familial.training import optimizer
from familial.training import step as step_lib

TOKENIZER_CONFIG, GENERATION = 'tokenizer_config.json', 'generation_config.json'
DTYPES = ('float32', 'bfloat16')
SHARD_BYTES = (
  5 * 10**9
)  # of a file of tensors, as `transformers` has long had it
# Files of `transformers` that an import keeps and an export gives back.
TOKENIZER_FILES = (
  TOKENIZER_CONFIG, GENERATION, 'special_tokens_map.json', 'chat_template.jinja',
)  # fmt: skip
# Paths of a layer's parameters by their names in the files of a Llama, where a
# matrix is (out, in).
LAYER = {
  'input_layernorm': ('attention_norm', 'gain'),
  'self_attn.q_proj': ('attention', 'q', 'kernel'),
  'self_attn.k_proj': ('attention', 'k', 'kernel'),
  'self_attn.v_proj': ('attention', 'v', 'kernel'),
  'self_attn.o_proj': ('attention', 'o', 'kernel'),
  'post_attention_layernorm': ('mlp_norm', 'gain'),
  'mlp.gate_proj': ('mlp', 'gate', 'kernel'),
  'mlp.up_proj': ('mlp', 'up', 'kernel'),
  'mlp.down_proj': ('mlp', 'down', 'kernel'),
}


def submodel(
  params: transformer.Params, model: model_config.ModelConfig, exit_: int
) -> tuple[transformer.Params, model_config.ModelConfig]:
  """Returns the parameters and shape of exit 1..G as a family of one exit.

  Its logits equal the exit's in the family bit for bit if programs of equal
  shapes compute both, and otherwise to rounding.
  """
  shape = model.submodel(exit_)
  head = params[f'exit_{exit_}']
  alone = {
    'embedding': params['embedding'],
    'segment_0': jax.tree.map(
      lambda *parts: parts[0] if len(parts) == 1 else _stacked(parts),
      *(params[f'segment_{index}'] for index in range(exit_)),
      *([head['branch']] if 'branch' in head else []),
    ),
    'exit_1': {'norm': head['norm']},
  }
  if not shape.tied:
    alone['unembedding'] = transformer.unembedding(params, model, exit_)
  return alone, shape


def _stacked(parts: Sequence[Any]) -> np.ndarray:
  """Returns layers, stacked on axis 0, and the single layer of a branch."""
  axes = max(part.ndim for part in parts)
  counts = [part.shape[0] if part.ndim == axes else 1 for part in parts]
  shape = parts[0].shape[1:] if parts[0].ndim == axes else parts[0].shape
  stacked, at = np.empty((sum(counts), *shape), parts[0].dtype), 0
  for part, count in zip(parts, counts, strict=True):
    out = stacked[at : at + count] if part.ndim == axes else stacked[at]
    if isinstance(part, checkpoint.Stored):
      part.read(out)
    else:
      out[...] = part
    at += count
  return stacked


def to_familial(
  model: load.Model, exit_: int, out: str | os.PathLike[str]
) -> None:
  """Writes exit 1..G as a model that every command reads.

  A run whose `train.init_from` is the folder continues training it with a fresh
  optimizer; its FLOPs include the family's.

  Raises:
    UserError: if there is no such exit, or `out` is not empty.
  """
  params, shape = submodel(model.params, model.config.model, exit_)
  layer = model.config.model.exits[exit_ - 1]
  write(
    out,
    derived_config(model.folder, model.config, f'exit{exit_}', 'export', shape),
    derived_lineage(
      model.folder, model.config, model.step,
      export={'exit': exit_, 'layer': layer},
    ),
    params,
    tokenizer_text(model.tokenizer_path),
  )  # fmt: skip


def to_hugging_face(
  model: load.Model,
  exit_: int,
  out: str | os.PathLike[str],
  dtype: str = 'float32',
) -> None:
  """Writes exit 1..G as a LlamaForCausalLM of `transformers`.

  The scale of the logits is folded into the last norm. The tokenizer begins a text
  as prompts are encoded here; that of an import is as it was. A model of more than
  SHARD_BYTES is written as several files with an index.

  Args:
    model: the family; its parameters may be stored ones, see `load.load`.
    exit_: number of the exit.
    out: the folder to make.
    dtype: type of the tensors, one of DTYPES.

  Raises:
    UserError: if there is no such exit or type, or `out` is not empty.
  """
  errors.require_one_of('dtype', dtype, DTYPES)
  shape = model.config.model.submodel(exit_)
  tensors = llama_tensors(model.params, model.config.model, exit_)
  tokenizer, files, ends = _hugging_face_tokenizer(model)
  with _whole(out) as folder:
    _write_shards(folder, tensors, jnp.dtype(dtype))
    storage.write_text(folder / load.TOKENIZER, tokenizer)
    for name, value in files.items():
      is_text = isinstance(value, str)
      write = storage.write_text if is_text else storage.write_json
      write(folder / name, value)
    storage.write_json(
      folder / 'config.json',
      {
        'architectures': ['LlamaForCausalLM'],
        'model_type': 'llama',
        'vocab_size': shape.vocab_size,
        'hidden_size': shape.width,
        'intermediate_size': shape.mlp_width,
        'num_hidden_layers': shape.depth,
        'num_attention_heads': shape.heads,
        'num_key_value_heads': shape.kv_heads,
        'head_dim': shape.head_dim,
        'hidden_act': 'silu',
        'attention_bias': False,
        'mlp_bias': False,
        'rms_norm_eps': shape.norm_eps,
        # Releases before 5 read the first, those since the second.
        'rope_theta': shape.rope_theta,
        'rope_parameters': {
          'rope_type': 'default',
          'rope_theta': shape.rope_theta,
        },
        'max_position_embeddings': model.context,
        'tie_word_embeddings': shape.tied,
        'torch_dtype': dtype,
        **ends,
      },
    )


def _write_shards(
  folder: pathlib.Path, tensors: Mapping[str, tensor_file.Tensor], dtype: Any
) -> None:
  """Writes model.safetensors, or files of up to SHARD_BYTES each and an index."""
  shards: list[dict[str, tensor_file.Tensor]] = [{}]
  total = size = 0
  for name, tensor in tensors.items():
    more = tensor_file.nbytes(tensor, dtype)
    if shards[-1] and size + more > SHARD_BYTES:
      shards.append({})
      size = 0
    shards[-1][name] = tensor
    size, total = size + more, total + more
  where: dict[str, str] = {}
  for number, shard in enumerate(shards, start=1):
    name = 'model.safetensors'
    if len(shards) > 1:
      name = f'model-{number:05d}-of-{len(shards):05d}.safetensors'
    tensor_file.write(folder / name, shard, dtype, {'format': 'pt'})
    where |= dict.fromkeys(shard, name)
  if len(shards) > 1:
    storage.write_json(
      folder / 'model.safetensors.index.json',
      {'metadata': {'total_size': total}, 'weight_map': where},
    )


def llama_tensors(
  params: transformer.Params, model: model_config.ModelConfig, exit_: int
) -> dict[str, tensor_file.Tensor]:
  """Returns the tensors of exit 1..G by their names in a Llama.

  Args:
    params: parameters of the family, their shapes, or stored ones; they are read
      with each tensor.
    model: shape of the family.
    exit_: number of the exit.
  """
  head = params[f'exit_{exit_}']
  layers: list[tuple[transformer.Params, int | None]] = []
  for index in range(exit_):
    tree = params[f'segment_{index}']
    count = jax.tree.leaves(tree)[0].shape[0]
    layers += [(tree, place) for place in range(count)]
  if 'branch' in head:
    layers.append((head['branch'], None))
  scale = np.float32(model.base_width / model.width)
  gain_D, embedding = head['norm']['gain'], params['embedding']
  tensors = {
    'model.embed_tokens.weight': tensor_file.Tensor(
      embedding.shape, lambda: np.asarray(embedding)
    ),
    'model.norm.weight': tensor_file.Tensor(
      gain_D.shape, lambda: np.asarray(gain_D) * scale
    ),
  }
  latest = _Latest()
  for name, path in LAYER.items():
    for number, (tree, place) in enumerate(layers):
      leaf: Any = functools.reduce(operator.getitem, path, tree)
      tensors[f'model.layers.{number}.{name}.weight'] = tensor_file.Tensor(
        (leaf.shape if place is None else leaf.shape[1:])[::-1],
        functools.partial(latest.transposed, leaf, place),
      )
  if not model.submodel(exit_).tied:
    owner = head if model.owns_unembedding(exit_) else params
    matrix = owner['unembedding']
    tensors['lm_head.weight'] = tensor_file.Tensor(
      matrix.shape[::-1], functools.partial(latest.transposed, matrix, None)
    )
  return tensors


class _Latest:
  """The array that was read last: a chunk of a stored one holds many layers."""

  def __init__(self) -> None:
    self._leaf: Any = None
    self._array = np.zeros(0)

  def transposed(self, leaf: Any, place: int | None) -> np.ndarray:
    """Returns an array, or the one at a place in a stack, transposed."""
    if self._leaf is not leaf:
      self._array = np.zeros(0)  # Freed before the next one is read.
      self._leaf, self._array = leaf, np.asarray(leaf)
    return (self._array if place is None else self._array[place]).T


def to_segments(
  model: load.Model, exit_: int, out: str | os.PathLike[str]
) -> None:
  """Writes the segments up to exit 1..G, in folders segment_0, segment_1, ...

  Raises:
    UserError: if there is no such exit, or `out` is not empty.
  """
  model.config.model.submodel(exit_)  # Refuses an exit that does not exist.
  cuts = range(1, exit_ + 1)
  parts = segments.split(
    model.params, model.config.model, model.context, cuts, model.tokenizer.mark
  )
  with _whole(out) as folder:
    for part in parts:
      segments.save(
        part, folder / f'segment_{part.index}', model.tokenizer_path
      )


def write(
  out: str | os.PathLike[str],
  config: train_config.RunConfig,
  lineage: dict[str, Any],
  params: transformer.Params,
  tokenizer: str,
  opt_state: Any = None,
) -> None:
  """Writes a model's folder atomically.

  It has the layout of a run's, with a checkpoint of step 0 and no rows.

  Args:
    out: the folder to make.
    config: config of the model.
    lineage: contents of lineage.json.
    params: parameters.
    tokenizer: text of the tokenizer's file; '' for bytes.
    opt_state: state of the optimizer; a fresh one by default.

  Raises:
    UserError: if `out` is not empty.
  """
  if config.data.tokenizer_file:
    own = str(pathlib.Path(out).absolute() / load.TOKENIZER)
    data = dataclasses.replace(config.data, tokenizer=own)
    config = dataclasses.replace(config, data=data)
  arrays = {'params': params}
  if opt_state is None:  # A fresh one, which is of zeros.
    hyper = optimizer.hyper(config.train, config.model.exits)
    fresh = optimizer.adamw(hyper, config.model).init
    opt_state = jax.eval_shape(fresh, params)
  else:
    arrays['opt_state'] = opt_state
  zeros = jax.tree.map(
    checkpoint.zeros, step_lib.State(params, opt_state, jnp.int32(0))
  )
  with _whole(out) as folder:
    run_folder.open_folder(folder, config, lineage)
    if tokenizer:
      storage.write_text(folder / load.TOKENIZER, tokenizer)
    checkpoints = checkpoint.Checkpoints(folder / 'checkpoints', 1)
    try:
      checkpoints.save(zeros)
    finally:
      checkpoints.close()
    checkpoint.fill(folder / 'checkpoints', 0, arrays)


def derived_config(
  folder: pathlib.Path,
  config: train_config.RunConfig,
  name: str,
  arm: str,
  model: model_config.ModelConfig,
) -> train_config.RunConfig:
  """Returns the config of a model made of a folder's."""
  return dataclasses.replace(
    config,
    cell=f'{folder.absolute().name}_{name}',
    arm=arm,
    budget=0.0,
    model=model,
    train=dataclasses.replace(config.train, trained='all', init_from=''),
  )


def derived_lineage(
  folder: pathlib.Path, config: train_config.RunConfig, step: int, **more: Any
) -> dict[str, Any]:
  """Returns the lineage of a model made of a folder's step."""
  known = storage.read_json(folder / 'lineage.json')
  train, seq_len = config.train, config.data.seq_len
  windows = step * train.batch_size
  spent = windows * seq_len * flops.train(config.model, seq_len, train.trained)
  return {
    'parent': folder.absolute().name,
    'parent_step': step,
    'expansion': None,
    'inherited_flops': known['inherited_flops'] + spent,
    'inherited_windows': known.get('inherited_windows', 0) + windows,
    **more,
    # The data of an import are not known.
    **{key: known[key] for key in ('corpus', 'import') if key in known},
  }


def check_out(out: str | os.PathLike[str]) -> None:
  """Refuses a path that exists, unless it is an empty folder."""
  out = pathlib.Path(out)
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    raise errors.UserError(
      f'out: {str(out)!r} is there already; it must be a new or an empty folder'
    )


@contextlib.contextmanager
def _whole(out: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Yields a temporary folder, which becomes `out` unless an error is raised."""
  check_out(out)
  out = pathlib.Path(out).absolute()
  temporary = out.with_name(f'.{out.name}.{uuid.uuid4().hex[:12]}.tmp')
  with storage.writing(out):
    temporary.mkdir(parents=True)
  try:
    yield temporary
    temporary.rename(out)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def tokenizer_text(path: str) -> str:
  """Returns the text of a tokenizer's file; '' for bytes."""
  return pathlib.Path(path).read_text('utf-8') if path else ''


def _hugging_face_tokenizer(
  model: load.Model,
) -> tuple[str, dict[str, Any], dict[str, Any]]:
  """Returns a tokenizer's file for `transformers`, the files beside it, and the
  special tokens by their keys in a config.json."""
  tokenizer, text = model.tokenizer, tokenizer_text(model.tokenizer_path)
  if isinstance(tokenizer, tokenizers_lib.BPE) and tokenizer.facts is not None:
    made = tokenizers_lib.unmarked(json.loads(text))
    facts = tokenizer.facts
  else:
    made = json.loads(text or _bytes().to_str())
    facts = {}
    made['post_processor'] = tokenizers_lib.template(
      {tokenizers_lib.SEPARATOR: tokenizer.separator}, {}
    )
  last, *others = tokenizer.separator, *sorted(tokenizer.stops)
  others.remove(last)
  first = next(iter(tokenizer.start), None)
  ends = {
    'bos_token_id': facts.get('bos', first),
    'eos_token_id': [last, *others] if others else last,
    'pad_token_id': facts.get('pad', last),
  }
  names = {token['id']: token['content'] for token in made['added_tokens']}
  files = facts.get('files') or {
    TOKENIZER_CONFIG: {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'bos_token': names.get(first),
      'eos_token': names[last],
      'pad_token': names[last],
      'padding_side': 'left',
      'clean_up_tokenization_spaces': False,
      'model_max_length': model.context,
      # A text that contains the separator's name is only text.
      'split_special_tokens': True,
    },
    GENERATION: ends,
  }
  return json.dumps(made, ensure_ascii=False, indent=1), files, ends


def _bytes() -> Any:
  """Returns the byte tokenizer as a BPE without merges."""
  import tokenizers

  # The byte-level alphabet has these bytes as themselves, and the others in
  # order as the characters from 256 on.
  printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
  others = [byte for byte in range(0x100) if byte not in printed]
  numbers = {chr(byte): byte for byte in printed}
  numbers |= {chr(0x100 + i): byte for i, byte in enumerate(others)}
  separator = tokenizers_lib.Bytes.separator
  del numbers[chr(separator)]
  numbers[tokenizers_lib.SEPARATOR] = separator
  made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=numbers, merges=[]))
  made.add_special_tokens([tokenizers_lib.SEPARATOR])
  made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  made.decoder = tokenizers.decoders.ByteLevel()
  return made
