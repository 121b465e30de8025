import dataclasses
import os
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
from familial.convert import hugging_face
from familial.convert import load
from familial.core import errors
from familial.core import storage
from familial.data import config as data_config
from familial.data import tokenizers
from familial.model import config as model_config
from familial.model import flops
from familial.model import transformer
from familial.training import checkpoint
from familial.training import optimizer
from familial.training import step as step_lib
from tests.serving import families

TEXTS = ['def f(x):\n  return x + 1\n' * 9, 'the quick brown fox ' * 9]
KINDS = [
  ('head', 'shared'),
  ('separate', 'shared'),
  ('branch', 'shared'),
  ('branch', 'own'),
]
WRITERS = [export.to_familial, export.to_hugging_face, export.to_segments]


def random_params(model, seed=0):
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


def logits(params, model):
  rng = np.random.default_rng(1)
  tokens = jnp.asarray(rng.integers(0, model.vocab_size, (2, 8)), jnp.int32)
  return transformer.logits(params, model, tokens)


@pytest.fixture(scope='module')
def bpe_path(tmp_path_factory):
  path = tmp_path_factory.mktemp('bpe') / 'tokenizer.json'
  tokenizers.train(iter(TEXTS), 280, path)
  return str(path)


@pytest.fixture(scope='module')
def make(untrained, shape):
  """Makes a family of a folder that says what it cost."""

  def one(folder, path='', **changes):
    vocab_size = tokenizers.load(path).vocab_size
    data = data_config.DataConfig(
      seq_len=32, tokenizer=path or 'bytes', vocab_size=vocab_size
    )
    lineage = {'inherited_flops': 7, 'corpus': 'fingerprint'}
    storage.write_json(folder / 'lineage.json', lineage)
    model = shape(vocab_size=vocab_size, **changes)
    return untrained(folder, model, data, path)

  return one


@hypothesis.given(families.shapes(), strategies.integers(0, 9))
@hypothesis.settings(max_examples=4, deadline=None, derandomize=True)
def test_logits_are_those_of_the_exit_bit_for_bit(changes, seed):
  family = model_config.ModelConfig(
    vocab_size=24, width=16, mlp_width=24, **changes
  )
  params = random_params(family, seed)
  for exit_, expected in enumerate(logits(params, family), start=1):
    alone, shape = export.submodel(params, family, exit_)
    like = jax.eval_shape(
      lambda shape=shape: transformer.init(shape, jax.random.key(0))
    )
    assert jax.tree.map(jnp.shape, alone) == jax.tree.map(jnp.shape, like)
    [found] = logits(alone, shape)
    np.testing.assert_array_equal(found, expected)


def test_scanned_layers_are_those_of_the_exit_to_rounding(shape):
  # A branch is outside of the family's scans and inside of its model's.
  family = shape(depth=5, exits=(1, 3, 5), exit_kind='branch', unroll=False)
  params = random_params(family)
  for exit_, expected in enumerate(logits(params, family), start=1):
    [found] = logits(*export.submodel(params, family, exit_))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(('kind', 'unembedding'), KINDS)
def test_an_export_is_read_as_a_model(make, tmp_path, kind, unembedding):
  family = make(
    tmp_path, depth=5, exits=(1, 3, 5), exit_kind=kind,
    branch_unembedding=unembedding,
  )  # fmt: skip
  family = dataclasses.replace(family, step=9)
  config, out = family.config, tmp_path / 'deep' / 'alone'
  export.to_familial(family, 2, out)
  read = load.load(out)
  assert read.step == 0 and read.context == 32
  [found] = logits(read.params, read.config.model)
  expected = logits(family.params, config.model)[1]
  np.testing.assert_array_equal(found, expected)
  assert read.config == dataclasses.replace(
    config,
    cell=f'{tmp_path.name}_exit2',
    arm='export',
    budget=0.0,
    model=config.model.submodel(2),
  )
  windows = 9 * config.train.batch_size
  assert storage.read_json(out / 'lineage.json') == {
    'parent': tmp_path.name,
    'parent_step': 9,
    'expansion': None,
    'inherited_flops': 7 + windows * 32 * flops.train(config.model, 32),
    'inherited_windows': windows,
    'export': {'exit': 2, 'layer': 3},
    'corpus': 'fingerprint',
  }
  # The optimizer's state is there too, and fresh.
  hyper = optimizer.hyper(read.config.train, read.config.model.exits)
  like = step_lib.init(read.config.model, 'all', jax.random.key(0), hyper)
  checkpoints = checkpoint.Checkpoints(out / 'checkpoints', 1)
  state = checkpoints.restore(like)
  checkpoints.close()
  expected = like._replace(params=read.params)
  jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_an_export_of_an_export_is_the_same(make, tmp_path):
  export.to_familial(make(tmp_path), 1, tmp_path / 'once')
  export.to_familial(load.load(tmp_path / 'once'), 1, tmp_path / 'twice')
  once, twice = (load.load(tmp_path / name) for name in ('once', 'twice'))
  jax.tree.map(np.testing.assert_array_equal, once.params, twice.params)
  lineage = storage.read_json(tmp_path / 'twice' / 'lineage.json')
  assert lineage['inherited_flops'] == 7


def test_a_moved_folder_keeps_its_tokenizer(make, tmp_path, bpe_path):
  export.to_familial(make(tmp_path, bpe_path), 1, tmp_path / 'a')
  for name in ('a', 'b'):
    own = str(tmp_path / name / 'tokenizer.json')
    assert load.load(tmp_path / name).config.data.tokenizer == own
    if name == 'a':
      shutil.move(tmp_path / 'a', tmp_path / 'b')


@pytest.mark.parametrize('tied', [True, False])
def test_files_of_a_llama(make, tmp_path, tied):
  family = make(tmp_path, exit_kind='branch', tied=tied)
  out = tmp_path / 'llama'
  export.to_hugging_face(family, 1, out)
  config = storage.read_json(out / 'config.json')
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
  assert {key: config[key] for key in expected} == expected
  tensors = safetensors.load_file(out / 'model.safetensors')
  assert {t.dtype for t in tensors.values()} == {np.dtype(np.float32)}
  assert len(tensors) == 2 * 9 + 2 + (not tied)
  head = family.params['exit_1']
  for name, expected in {
    'model.layers.1.mlp.down_proj.weight': (
      head['branch']['mlp']['down']['kernel'].T
    ),
    # Width 16 at base 32: logits are doubled by the last norm.
    'model.norm.weight': 2 * head['norm']['gain'],
    **({} if tied else {'lm_head.weight': family.params['unembedding'].T}),
  }.items():
    np.testing.assert_array_equal(tensors[name], expected)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_large_model_is_several_files(make, tmp_path, monkeypatch, dtype):
  family = make(tmp_path / 'family', exit_kind='branch', tied=False)
  export.to_hugging_face(family, 1, tmp_path / 'one', dtype)
  monkeypatch.setattr(export, 'SHARD_BYTES', 10_000)
  export.to_hugging_face(family, 1, tmp_path / 'many', dtype)
  whole = safetensors.load_file(tmp_path / 'one' / 'model.safetensors')
  index = storage.read_json(tmp_path / 'many' / 'model.safetensors.index.json')
  files = sorted(tmp_path.glob('many/model-*.safetensors'))
  count = len(files)
  assert count > 1 and [path.name for path in files] == [
    f'model-{number:05d}-of-{count:05d}.safetensors'
    for number in range(1, count + 1)
  ]
  parts = {path.name: safetensors.load_file(path) for path in files}
  assert index['weight_map'] == {
    name: file for file, tensors in parts.items() for name in tensors
  }
  assert index['metadata'] == {
    'total_size': sum(tensor.nbytes for tensor in whole.values())
  }
  together = {n: t for tensors in parts.values() for n, t in tensors.items()}
  assert together.keys() == whole.keys()
  exact = {
    name: np.asarray(tensor.read(), np.float32)
    for name, tensor in export.llama_tensors(
      family.params, family.config.model, 1
    ).items()
  }
  for name, tensor in whole.items():
    assert tensor.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(tensor, together[name])
    np.testing.assert_array_equal(tensor, exact[name].astype(dtype))
  config = storage.read_json(tmp_path / 'many' / 'config.json')
  assert config['torch_dtype'] == dtype
  # They come back.
  hugging_face.from_hugging_face(
    tmp_path / 'many', (1,), 'head', tmp_path / 'back'
  )
  found = load.load(tmp_path / 'back').params['embedding']
  expected = jnp.asarray(family.params['embedding'], dtype)
  np.testing.assert_array_equal(found, expected.astype(jnp.float32))
  with pytest.raises(errors.UserError, match="dtype: 'float16'"):
    export.to_hugging_face(family, 1, tmp_path / 'half', 'float16')


@pytest.mark.parametrize('write', WRITERS)
def test_files_have_the_mode_of_the_umask(make, tmp_path, write):
  family = make(tmp_path / 'family')
  before = os.umask(0o027)
  try:
    write(family, 1, tmp_path / 'out')
  finally:
    os.umask(before)
  files = [path for path in (tmp_path / 'out').rglob('*') if path.is_file()]
  assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


@pytest.mark.parametrize('write', WRITERS)
def test_stored_parameters_are_exported_as_loaded_ones(make, tmp_path, write):
  """A model's arrays are read from the disk as they are written."""
  family = make(tmp_path, depth=5, exits=(1, 3, 5), exit_kind='branch')
  config = dataclasses.replace(family.config, cell='family')
  lineage = {'parent': None, 'expansion': None, 'inherited_flops': 0}
  export.write(tmp_path / 'all', config, lineage, family.params, '')
  for exit_ in (1, 2, 3):
    found = []
    for stored in (False, True):
      out = tmp_path / f'{exit_}_{stored}'
      write(load.load(tmp_path / 'all', stored=stored), exit_, out)
      if write is export.to_familial:
        found.append(load.load(out).params)
      else:
        found.append(
          {str(p.relative_to(out)): p.read_bytes() for p in out.rglob('*.*')}
        )
    jax.tree.map(np.testing.assert_array_equal, *found)


@pytest.fixture(scope='module', params=['bytes', 'bpe'])
def exported_tokenizer(request, make, bpe_path, tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  model = make(folder, bpe_path if request.param == 'bpe' else '')
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


def fail(*_):
  raise OSError('disk')


@pytest.mark.parametrize('write', WRITERS)
def test_nothing_is_left_of_a_write_that_fails(
  make, tmp_path, monkeypatch, write
):
  family, room = make(tmp_path / 'family'), tmp_path / 'room'
  with monkeypatch.context() as patched:  # The last that each writes.
    patched.setattr(checkpoint.Checkpoints, 'save', fail)
    patched.setattr(storage, 'write_json', fail)
    with pytest.raises(OSError, match='disk'):
      write(family, 1, room / 'out')
  assert not list(room.iterdir())
  (room / 'out').mkdir()  # An empty folder is allowed.
  write(family, 1, room / 'out')
  assert list((room / 'out').iterdir())
  assert [path.name for path in room.iterdir()] == ['out']


@pytest.mark.parametrize('write', WRITERS)
def test_existing_files_are_kept(make, tmp_path, write):
  family = make(tmp_path)
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'mine').write_text('')
  for taken in ('out', 'out/mine'):
    with pytest.raises(errors.UserError, match=r'^out: .*empty folder'):
      write(family, 1, tmp_path / taken)
  for exit_ in (0, 3):
    with pytest.raises(errors.UserError, match=f'^exit: {exit_} is not'):
      write(family, exit_, tmp_path / 'new')
  found = sorted(path.name for path in tmp_path.iterdir())
  assert found == ['lineage.json', 'out']
