import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors
import tokenizers as library

from familial.convert import export
from familial.convert import hugging_face
from familial.convert import load
from familial.core import errors
from familial.core import storage
from familial.data import config as data_config
from familial.model import transformer
from familial.serving import generate
from tests.data import vocabularies

_TOKENS = jnp.asarray(
  np.random.default_rng(1).integers(0, 255, (2, 8)), jnp.int32
)

_YARN = {'rope_type': 'yarn', 'rope_theta': 1e4}


@pytest.fixture
def llama(shape, tmp_path, untrained):
  """Writes a Llama of 3 layers; returns (model, folder)."""

  def make(**changes):
    model = shape(vocab_size=256, exits=(3,), **changes)
    data = data_config.DataConfig(seq_len=32)
    family = untrained(tmp_path, model, data)
    export.to_hugging_face(family, 1, tmp_path / 'llama')
    return family, tmp_path / 'llama'

  return make


def _change(path, **changes):
  storage.write_json(path, {**storage.read_json(path), **changes})


def _tensors(folder):
  return safetensors.load_file(folder / 'model.safetensors')


def _save(folder, tensors):
  safetensors.save_file(tensors, folder / 'model.safetensors')


def _import(folder, exits=(1, 2), kind='head'):
  out = folder.parent / 'imported'
  hugging_face.from_hugging_face(folder, exits, kind, out)
  return load.load(out)


@pytest.mark.parametrize(
  ('kind', 'tied'),
  [
    ('head', True),
    ('separate', False),
    ('branch', True),
  ],
)
def test_what_was_exported_comes_back_with_exits(llama, tied, kind):
  family, folder = llama(tied=tied)
  expected = family.params
  read = _import(folder, (1, 2), kind)
  model = read.config.model
  assert model == dataclasses.replace(
    family.config.model, exits=(1, 2, 3), exit_kind=kind, base_width=16
  )
  assert read.context == 32
  last = transformer.logits(read.params, model, _TOKENS)[-1]
  [before] = transformer.logits(expected, family.config.model, _TOKENS)
  np.testing.assert_array_equal(last, before)

  # The exits that were added begin as the last one.
  gain = 2 * expected['exit_1']['norm']['gain']  # Base 32 over width 16.
  matrix = transformer.unembedding(expected, family.config.model, 1)
  for exit_ in (1, 2):
    head = read.params[f'exit_{exit_}']
    np.testing.assert_array_equal(head['norm']['gain'], gain)
    found = transformer.unembedding(read.params, model, exit_)
    np.testing.assert_array_equal(found, matrix)
    assert ('unembedding' in head) == (kind == 'separate')
    assert ('branch' in head) == (kind == 'branch')
    if kind == 'branch':
      layer = jax.tree.map(lambda x, at=exit_: x[at], expected['segment_0'])
      jax.tree.map(np.testing.assert_array_equal, head['branch'], layer)


def test_its_folder_says_where_it_is_from(llama):
  _, folder = llama()
  read = _import(folder, (2, 3))  # The last layer may be named.
  assert read.config.model.exits == (2, 3)
  assert read.step == 0
  assert (read.config.cell, read.config.arm) == ('llama', 'import')
  assert storage.read_json(read.folder / 'lineage.json') == {
    'parent': None,
    'expansion': None,
    'inherited_flops': 0,
    'import': {
      'source': 'llama',
      'architecture': 'LlamaForCausalLM',
      'exits': [2, 3],
      'separator': '<|separator|>',
    },
  }
  assert read.config.data.tokenizer == str(read.folder / 'tokenizer.json')
  assert read.tokenizer.separator == 255


@pytest.mark.parametrize('kind', [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32(llama, kind, monkeypatch):
  _, folder = llama()
  halves = {name: t.astype(kind) for name, t in _tensors(folder).items()}
  _save(folder, halves)
  written = []
  monkeypatch.setattr(export, 'write', lambda *given: written.append(given[3]))
  hugging_face.from_hugging_face(folder, (1,), 'head', folder.parent / 'out')
  [params] = written
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}
  assert dtypes == {jnp.dtype('float32')}
  np.testing.assert_array_equal(
    params['segment_1']['mlp']['up']['kernel'][0],
    halves['model.layers.1.mlp.up_proj.weight'].astype(np.float32).T,
  )


def test_shards_and_tensors_that_say_nothing_new(llama):
  family, folder = llama()
  tensors = _tensors(folder)
  frequencies = 'model.layers.0.self_attn.rotary_emb.inv_freq'
  tensors[frequencies] = np.ones(2, np.float32)
  tensors['lm_head.weight'] = tensors['model.embed_tokens.weight']
  (folder / 'model.safetensors').unlink()
  names = sorted(tensors)
  where = {}
  for number, part in enumerate((names[::2], names[1::2])):
    file = f'model-{number}.safetensors'
    safetensors.save_file({n: tensors[n] for n in part}, folder / file)
    where |= dict.fromkeys(part, file)
  storage.write_json(
    folder / 'model.safetensors.index.json', {'weight_map': where}
  )
  read = _import(folder)
  np.testing.assert_array_equal(
    read.params['embedding'], family.params['embedding']
  )


def test_rows_without_a_token_are_left_out(llama):
  family, folder = llama(tied=False)
  tensors = _tensors(folder)
  for name in ('model.embed_tokens.weight', 'lm_head.weight'):
    tensors[name] = np.concatenate([tensors[name], tensors[name][:44]])
  _save(folder, tensors)
  _change(folder / 'config.json', vocab_size=300)
  read = _import(folder)
  assert read.config.model.vocab_size == 256
  last = transformer.logits(read.params, read.config.model, _TOKENS)[-1]
  [before] = transformer.logits(family.params, family.config.model, _TOKENS)
  np.testing.assert_array_equal(last, before)


def test_first_tokens_stops_and_padding_come_and_go(llama, tmp_path):
  _, folder = llama()
  path = vocabularies.byte_level(folder / 'tokenizer.json')
  made = library.Tokenizer.from_file(str(path))
  begin, end, turn = map(
    made.token_to_id, (vocabularies.BEGIN, vocabularies.END, vocabularies.TURN)
  )
  made.enable_truncation(4)
  made.save(str(path))
  size = made.get_vocab_size()
  tensors = _tensors(folder)
  name = 'model.embed_tokens.weight'
  tensors[name] = np.resize(tensors[name], (size, 16))
  _save(folder, tensors)
  _change(
    folder / 'config.json',
    vocab_size=size, bos_token_id=begin, eos_token_id=end, pad_token_id=None,
  )  # fmt: skip
  files = {
    'tokenizer_config.json': {
      'bos_token': vocabularies.BEGIN, 'eos_token': vocabularies.END,
      'chat_template': 'any',
    },
    'generation_config.json': {'eos_token_id': [end, turn], 'top_p': 0.5},
  }  # fmt: skip
  for name, value in files.items():
    storage.write_json(folder / name, value)
  read = _import(folder)
  tokenizer = read.tokenizer
  assert tokenizer.separator == end
  assert tokenizer.start == (begin,)
  assert tokenizer.stops == {end, turn}
  lineage = storage.read_json(read.folder / 'lineage.json')
  assert lineage['import']['separator'] == vocabularies.END
  for text in (vocabularies.END, 'longer than it was cut'):
    [tokens] = generate.encode(tokenizer, [text])
    assert tokens[0] == begin and end not in tokens
    assert tokenizer.decode([*tokens, turn]) == text

  export.to_hugging_face(read, 3, tmp_path / 'again')
  config = storage.read_json(tmp_path / 'again' / 'config.json')
  assert config['bos_token_id'] == begin
  assert config['eos_token_id'] == [end, turn]
  assert config['pad_token_id'] is None
  for name, value in files.items():
    assert storage.read_json(tmp_path / 'again' / name) == value
  again, before = (
    storage.read_json(where / 'tokenizer.json')
    for where in (tmp_path / 'again', folder)
  )
  assert again == {**before, 'truncation': None}


@pytest.mark.parametrize(
  ('settings', 'starts'),
  [
    ({}, True),
    ({'add_bos_token': True}, True),
    ({'add_bos_token': False}, False),
    ({'add_eos_token': True}, False),  # As in `transformers`.
    ({'add_bos_token': True, 'add_eos_token': True}, True),
  ],
)
def test_settings_of_a_tokenizer_go_before_its_template(
  llama, settings, starts
):
  _, folder = llama()  # Its template puts the separator first.
  named = {'bos_token': {'content': '<|separator|>'}, **settings}
  named['eos_token'] = '<|separator|>'
  storage.write_json(folder / 'tokenizer_config.json', named)
  read = _import(folder)
  assert read.tokenizer.start == ((255,) if starts else ())


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    ('architectures', ['GPT2LMHeadModel']),
    ('architectures', None),
    ('hidden_act', 'gelu'),
    ('sliding_window', 4096),
    ('rope_scaling', {'rope_type': 'llama3'}),
    ('rope_parameters', _YARN),
    ('rope_parameters', 'default'),
    ('partial_rotary_factor', 0.5),
    ('head_dim', 8),
    ('hidden_size', '16'),
    ('num_hidden_layers', 0),
    ('vocab_size', 255),
    ('eos_token_id', None),
    ('eos_token_id', 7),
  ],
)
def test_what_is_computed_otherwise_is_refused(llama, key, value):
  _, folder = llama()
  _change(folder / 'config.json', **{key: value})
  said = 'rope_type' if value == _YARN else key
  _refused(folder, rf'config\.json: {said}\b')


def test_a_mistral_has_a_window_unless_it_says_otherwise(llama):
  _, folder = llama()
  path = folder / 'config.json'
  _change(path, architectures=['MistralForCausalLM'])
  _refused(folder, 'sliding_window: 4096')
  _change(path, sliding_window=None)
  lineage = storage.read_json(_import(folder).folder / 'lineage.json')
  assert lineage['import']['architecture'] == 'MistralForCausalLM'


@pytest.mark.parametrize(
  ('name', 'change', 'said'),
  [
    ('model.norm.weight', None, 'has no tensor model.norm.weight'),
    ('model.norm.weight', np.ones(9, np.float32), r'F32 \(9,\).*\(16,\)'),
    ('model.norm.weight', np.ones(16, np.int64), 'model.norm.weight is I64'),
    (
      'model.layers.0.self_attn.q_proj.bias',
      np.ones(16, np.float32),
      'q_proj.bias is no part',
    ),
    (
      'model.layers.2.mlp.up_proj.weight',
      np.ones((16, 24), np.float32),
      r'\(16, 24\).*\(24, 16\)',
    ),
  ],
)
def test_tensors_that_do_not_fit_are_refused(llama, name, change, said):
  _, folder = llama()
  tensors = _tensors(folder)
  tensors[name] = change
  _save(folder, {n: t for n, t in tensors.items() if t is not None})
  _refused(folder, said)


def test_files_that_are_not_safe_or_not_whole_are_refused(llama):
  _, folder = llama()
  weights = folder / 'model.safetensors'
  content = weights.read_bytes()
  weights.write_bytes(content[: len(content) // 2])
  _refused(folder, 'model.safetensors: ')
  weights.rename(folder / 'pytorch_model.bin')
  _refused(folder, 'pickled')
  index = folder / 'model.safetensors.index.json'
  for shards in (None, {'model.norm.weight': '../model.safetensors'}):
    storage.write_json(index, {'weight_map': shards})
    _refused(folder, 'weight_map')
  index.unlink()
  (folder / 'pytorch_model.bin').unlink()
  _refused(folder, 'holds no model.safetensors')
  (folder / 'config.json').unlink()
  _refused(folder, 'holds no config.json')


def _update(*path, **changes):
  """Returns a change of a part of a tokenizer's file."""

  def change(made):
    for key in path:
      made = made[key]
    made.update(changes)

  return change


def _gapped(made):
  made['added_tokens'].append({**made['added_tokens'][0], 'content': '<a>'})
  made['added_tokens'][1]['id'] = 400


_PREFIX = {
  'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True,
  'use_regex': True,
}  # fmt: skip
_UNIGRAM = {'type': 'Unigram', 'vocab': [['a', 0.0]], 'unk_id': 0}


@pytest.mark.parametrize(
  ('spoil', 'said'),
  [
    (_update(pre_tokenizer=_PREFIX), 'tokenizer.json: .*byte-level'),
    (_update(normalizer={'type': 'Lowercase'}), 'tokenizer.json: .*byte-level'),
    (_gapped, 'tokenizer.json: .*numbered'),
    (_update('model', 'vocab', a=400), 'tokenizer.json: .*numbered'),
    (_update('added_tokens', 0, special=False), 'eos_token_id'),
    (_update(model=_UNIGRAM), 'tokenizer.json'),
    (lambda made: made.clear(), 'tokenizer.json'),
  ],
)
def test_other_tokenizers_are_refused(llama, spoil, said):
  _, folder = llama()
  path = folder / 'tokenizer.json'
  made = json.loads(path.read_text('utf-8'))
  spoil(made)
  path.write_text(json.dumps(made), 'utf-8')
  _refused(folder, said)
  path.unlink()
  _refused(folder, 'tokenizer.json')


def test_exits_that_the_model_cannot_have_are_refused(llama):
  _, folder = llama()
  for exits in ((2, 1), (0,), (4,)):
    _refused(folder, '--exits', exits)
  _refused(folder, r'model\.exit_kind', (1,), 'other')
  (folder.parent / 'imported').mkdir()
  (folder.parent / 'imported' / 'mine').write_text('')
  # Said before anything is read.
  with pytest.raises(errors.UserError, match=r'^out: '):
    hugging_face.from_hugging_face(
      folder / 'nothing', (1,), 'head', folder.parent / 'imported'
    )


def _refused(folder, said, exits=(1, 2), kind='head'):
  with pytest.raises(errors.UserError, match=said) as raised:
    _import(folder, exits, kind)
  assert '\n' not in str(raised.value)
  assert [path.name for path in folder.parent.iterdir()] == ['llama']
