import dataclasses
import json
import shutil

import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors
import tokenizers as library

from familial.convert import export
from familial.convert import load
from familial.core import errors
from familial.core import storage
from familial.data import config as data_config
from familial.data import tokenizers
from familial.model import config as model_config
from familial.model import flops
from familial.model import transformer
from familial.training import checkpoint
from familial.training import config as train_config
from familial.training import optimizer
from familial.training import step as step_lib

_TEXTS = ['def f(x):\n  return x + 1\n' * 9, 'the quick brown fox ' * 9]
_KINDS = [
  ('head', 'shared'),
  ('separate', 'shared'),
  ('branch', 'shared'),
  ('branch', 'own'),
]


def _config(shape, data=None):
  data = data or data_config.DataConfig(seq_len=32)
  return train_config.RunConfig(
    cell='cell',
    arm='single',
    budget=1e9,
    model=dataclasses.replace(shape, vocab_size=data.vocab_size),
    data=data,
    train=train_config.TrainConfig(
      steps=9, batch_size=4, base_lr=0.01, weighting='linear'
    ),
  )


def _params(model, seed=0):
  """Random ones, with gains that are not 1, so that a lost one shows."""
  rng = np.random.default_rng(seed)
  return jax.tree.map_with_path(
    lambda path, leaf: jnp.asarray(
      rng.uniform(0.5, 1.5, leaf.shape)
      if path[-1].key == 'gain'
      else rng.normal(0, model.base_width**-0.5, leaf.shape),
      jnp.float32,
    ),
    jax.eval_shape(lambda: transformer.init(model, jax.random.key(0))),
  )


def _tokens(model, length=8):
  rng = np.random.default_rng(1)
  return jnp.asarray(rng.integers(0, model.vocab_size, (2, length)), jnp.int32)


def _in_memory(shape, folder, path=''):
  """A model that no run trained."""
  vocab_size = tokenizers.load(path).vocab_size
  kind = 'bpe' if path else 'bytes'
  data = data_config.DataConfig(
    seq_len=32, tokenizer=kind, vocab_size=vocab_size
  )
  config = _config(shape, data)
  params = _params(config.model)
  return load.Model(folder, 0, config, params, tokenizers.load(path), path)


@pytest.fixture(scope='module')
def bpe_path(tmp_path_factory):
  path = tmp_path_factory.mktemp('bpe') / 'tokenizer.json'
  tokenizers.train(iter(_TEXTS), 280, path)
  return str(path)


@strategies.composite
def _shapes(draw):
  depth = draw(strategies.integers(1, 4))
  below = draw(strategies.sets(strategies.integers(1, depth))) - {depth}
  kind, unembedding = draw(strategies.sampled_from(_KINDS))
  heads = draw(strategies.sampled_from([2, 4]))
  return model_config.ModelConfig(
    vocab_size=24,
    width=16,
    depth=depth,
    heads=heads,
    kv_heads=draw(strategies.sampled_from([2, heads])),
    mlp_width=24,
    exits=(*sorted(below), depth),
    exit_kind=kind,
    branch_unembedding=unembedding,
    tied=draw(strategies.booleans()),
    base_width=draw(strategies.sampled_from([8, 16, 24])),
  )


def _same_logits(family, seed):
  params, tokens = _params(family, seed), _tokens(family)
  expected = transformer.logits(params, family, tokens)
  for exit_ in range(1, family.granularity + 1):
    alone, shape = export.submodel(params, family, exit_)
    assert shape == family.submodel(exit_)
    like = jax.eval_shape(
      lambda shape=shape: transformer.init(shape, jax.random.key(0))
    )
    assert jax.tree.map(jnp.shape, alone) == jax.tree.map(jnp.shape, like)
    [found] = transformer.logits(alone, shape, tokens)
    np.testing.assert_array_equal(found, expected[exit_ - 1])


@hypothesis.given(_shapes(), strategies.integers(0, 9))
@hypothesis.settings(max_examples=4, deadline=None, derandomize=True)
def test_logits_are_those_of_the_exit_to_the_bit(family, seed):
  _same_logits(family, seed)


@pytest.mark.slow
@hypothesis.given(_shapes(), strategies.integers(0, 9))
@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
def test_logits_of_many_shapes_are_those_of_the_exit_to_the_bit(family, seed):
  _same_logits(family, seed)


def test_scanned_layers_are_those_of_the_exit_to_rounding(shape):
  # A branch is outside of the family's scans and inside of its model's.
  family = shape(depth=5, exits=(1, 3, 5), exit_kind='branch', unroll=False)
  params, tokens = _params(family), _tokens(family)
  expected = transformer.logits(params, family, tokens)
  for exit_ in (1, 2, 3):
    [found] = transformer.logits(
      *export.submodel(params, family, exit_), tokens
    )
    np.testing.assert_allclose(found, expected[exit_ - 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(('kind', 'unembedding'), _KINDS)
def test_what_is_written_is_read_as_a_model(shape, tmp_path, kind, unembedding):
  family = shape(
    depth=5, exits=(1, 3, 5), exit_kind=kind, branch_unembedding=unembedding
  )
  config = _config(family)
  params = _params(config.model)
  # A family that was made by the same code: 9 steps after nothing.
  lineage = {'parent': None, 'expansion': None, 'inherited_flops': 10}
  lineage['corpus'] = 'fingerprint'
  export.write(tmp_path / 'family', config, lineage, params, '')
  family = dataclasses.replace(load.load(tmp_path / 'family'), step=9)
  out = tmp_path / 'deep' / 'alone'
  export.to_familial(family, 2, out)

  read = load.load(out)
  assert read.step == 0 and read.context == 32
  [found] = transformer.logits(
    read.params, read.config.model, _tokens(config.model)
  )
  expected = transformer.logits(params, config.model, _tokens(config.model))
  np.testing.assert_array_equal(found, expected[1])
  assert read.config == dataclasses.replace(
    config,
    cell='family_exit2',
    arm='export',
    budget=0.0,
    model=config.model.submodel(2),
  )
  assert storage.read_json(out / 'lineage.json') == {
    'parent': 'family',
    'parent_step': 9,
    'expansion': None,
    'inherited_flops': 10 + 9 * 4 * 32 * flops.train(config.model, 32),
    'inherited_windows': 9 * 4,
    'export': {'exit': 2, 'layer': 3},
    'corpus': 'fingerprint',
  }
  # The optimizer's state is there too, and fresh.
  hyper = optimizer.hyper(read.config.train, read.config.model.exits)
  like = step_lib.init(read.config.model, 'all', jax.random.key(0), hyper)
  checkpoints = checkpoint.Checkpoints(out / 'checkpoints', 1)
  state = checkpoints.restore(like)
  checkpoints.close()
  jax.tree.map(
    np.testing.assert_array_equal,
    state,
    like._replace(params=read.params),
  )


def test_an_exit_of_an_export_is_its_only_one(shape, tmp_path):
  family = _in_memory(shape(), tmp_path)
  storage.write_json(tmp_path / 'lineage.json', {'inherited_flops': 7})
  export.to_familial(family, 1, tmp_path / 'once')
  export.to_familial(load.load(tmp_path / 'once'), 1, tmp_path / 'twice')
  once, twice = (load.load(tmp_path / name) for name in ('once', 'twice'))
  jax.tree.map(np.testing.assert_array_equal, once.params, twice.params)
  lineage = storage.read_json(tmp_path / 'twice' / 'lineage.json')
  assert lineage['inherited_flops'] == 7


def test_a_folder_that_was_moved_takes_its_tokenizer_along(
  shape, tmp_path, bpe_path
):
  family = _in_memory(shape(), tmp_path, bpe_path)
  data = dataclasses.replace(family.config.data, tokenizer=bpe_path)
  config = dataclasses.replace(family.config, data=data)
  lineage = {'inherited_flops': 0}
  with open(bpe_path, encoding='utf-8') as file:
    text = file.read()
  export.write(tmp_path / 'a', config, lineage, family.params, text)
  written = load.read_config(tmp_path / 'a')
  assert written.data.tokenizer == str(tmp_path / 'a' / 'tokenizer.json')
  shutil.move(tmp_path / 'a', tmp_path / 'b')
  moved = str(tmp_path / 'b' / 'tokenizer.json')
  assert load.load(tmp_path / 'b').config.data.tokenizer == moved


@pytest.mark.parametrize('tied', [True, False])
def test_files_of_a_llama(shape, tmp_path, tied):
  family = _in_memory(shape(exit_kind='branch', tied=tied), tmp_path)
  out = tmp_path / 'llama'
  export.to_hugging_face(family, 1, out)
  said = json.loads((out / 'config.json').read_text())
  expected = {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'vocab_size': 256,
    'hidden_size': 16,
    'intermediate_size': 24,
    'num_hidden_layers': 2,  # One of the trunk, and the branch.
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 4,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-5,
    'rope_theta': 1e4,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 1e4},
    'max_position_embeddings': 32,
    'tie_word_embeddings': tied,
    'torch_dtype': 'float32',
    'bos_token_id': 255,
    'eos_token_id': 255,
  }
  assert {key: said[key] for key in expected} == expected
  tensors = safetensors.load_file(out / 'model.safetensors')
  assert {t.dtype for t in tensors.values()} == {np.dtype(np.float32)}
  assert len(tensors) == 2 * 9 + 2 + (not tied)
  branch = family.params['exit_1']['branch']
  np.testing.assert_array_equal(
    tensors['model.layers.1.mlp.down_proj.weight'],
    branch['mlp']['down']['kernel'].T,
  )
  # Width 16 at base 32: logits are doubled by the last norm.
  np.testing.assert_array_equal(
    tensors['model.norm.weight'], 2 * family.params['exit_1']['norm']['gain']
  )
  if not tied:
    np.testing.assert_array_equal(
      tensors['lm_head.weight'], family.params['unembedding'].T
    )


@pytest.fixture(scope='module', params=['bytes', 'bpe'])
def exported_tokenizer(request, shape, bpe_path, tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  path = bpe_path if request.param == 'bpe' else ''
  model = _in_memory(shape(), folder, path)
  export.to_hugging_face(model, 1, folder / 'out')
  made = library.Tokenizer.from_file(str(folder / 'out' / 'tokenizer.json'))
  made.encode_special_tokens = True  # As split_special_tokens has it.
  settings = storage.read_json(folder / 'out' / 'tokenizer_config.json')
  assert settings['split_special_tokens'] is True
  assert settings['eos_token'] == made.id_to_token(model.tokenizer.separator)
  return made, model.tokenizer


@hypothesis.given(strategies.text())
@hypothesis.example('<|separator|>')
@hypothesis.example('\N{PILE OF POO}\r\n\t é')
def test_its_tokens_are_ours_after_a_separator(exported_tokenizer, text):
  made, ours = exported_tokenizer
  [tokens] = ours.encode([text])
  found = made.encode(text).ids
  assert found == [ours.separator, *tokens.tolist()]
  assert made.decode(found, skip_special_tokens=True) == text
  assert made.get_vocab_size() == ours.vocab_size


_WRITERS = [export.to_familial, export.to_hugging_face]


@pytest.mark.parametrize('write', _WRITERS)
def test_nothing_is_left_of_what_failed(shape, tmp_path, monkeypatch, write):
  folder = tmp_path / 'family'
  family = _in_memory(shape(), folder)
  storage.write_json(folder / 'lineage.json', {'inherited_flops': 0})
  room = tmp_path / 'room'
  # The last that each writes.
  with monkeypatch.context() as patched:
    patched.setattr(checkpoint.Checkpoints, 'save', _fail)
    patched.setattr(storage, 'write_json', _fail)
    with pytest.raises(OSError, match='disk'):
      write(family, 1, room / 'out')
  assert not list(room.iterdir())
  (room / 'out').mkdir()  # An empty one will do.
  write(family, 1, room / 'out')
  assert (room / 'out' / 'config.json').exists()
  assert [path.name for path in room.iterdir()] == ['out']


def _fail(*_):
  raise OSError('disk')


@pytest.mark.parametrize('write', _WRITERS)
def test_what_is_there_stays(shape, tmp_path, write):
  family = _in_memory(shape(), tmp_path)
  storage.write_json(tmp_path / 'lineage.json', {'inherited_flops': 0})
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'mine').write_text('')
  for taken in ('out', 'out/mine'):
    with pytest.raises(errors.UserError, match=r'^out: .*empty folder'):
      write(family, 1, tmp_path / taken)
  for exit_ in (0, 3):
    with pytest.raises(errors.UserError, match=f'^exit: {exit_} is not'):
      write(family, exit_, tmp_path / 'new')
  assert sorted(path.name for path in tmp_path.iterdir()) == [
    'lineage.json',
    'out',
  ]
