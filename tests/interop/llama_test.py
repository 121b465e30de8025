"""Exported exits in `transformers`, and models of `transformers` imported."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.convert import export
from familial.convert import hugging_face
from familial.convert import load
from familial.data import config as data_config
from familial.data import tokenizers
from familial.model import transformer
from familial.serving import generate
from tests.data import vocabularies

pytestmark = pytest.mark.interop
_CONTEXT = 48
_TEXTS = ['def f(x):\n  return x + 1\n' * 9, 'the quick brown fox ' * 9]
_SAMPLES = [
  '',
  'def f(x):\n  return x + 1',
  '\N{PILE OF POO}\r\n\t é  \x00\x7f',
  'a <|separator|> is only text',
]


@pytest.fixture(scope='module')
def hub(tmp_path_factory):
  """The library, which is not to ask anything of a network."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('HF_HUB_OFFLINE', '1')
    patch.setenv('HF_HOME', str(tmp_path_factory.mktemp('hub')))
    import torch
    import transformers

    torch.manual_seed(0)
    yield transformers


@pytest.fixture(scope='module')
def bpe_path(tmp_path_factory):
  path = tmp_path_factory.mktemp('bpe') / 'tokenizer.json'
  tokenizers.train(iter(_TEXTS), 280, path)
  return str(path)


@pytest.fixture
def family(shape, tmp_path, untrained):
  """Makes random families of 4 layers with exits after 1, 3 and 4."""

  def make(path='', **changes):
    tokenizer = tokenizers.load(path)
    data = data_config.DataConfig(
      seq_len=_CONTEXT,
      tokenizer='bpe' if path else 'bytes',
      vocab_size=tokenizer.vocab_size,
    )
    values = {'base_width': 8, **changes}  # The logits of width 16 are halved.
    model = shape(
      depth=4, exits=(1, 3, 4), vocab_size=tokenizer.vocab_size, **values
    )
    return untrained(tmp_path, model, data, path)

  return make


def _theirs(llama, tokens):
  import torch

  with torch.no_grad():
    return llama(torch.from_numpy(tokens).long()).logits.numpy()


def _tokens(vocab_size):
  rng = np.random.default_rng(1)
  return rng.integers(0, vocab_size, (3, _CONTEXT), np.int32)


def _ours(params, model, tokens):
  return jax.jit(transformer.logits, static_argnums=1)(params, model, tokens)


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize(
  'changes',
  [
    {'exit_kind': 'head'},
    {'exit_kind': 'separate', 'kv_heads': 4},
    {'exit_kind': 'branch', 'kv_heads': 1},
    {'exit_kind': 'branch', 'branch_unembedding': 'own'},
    {'exit_kind': 'head', 'base_width': 16, 'rope_theta': 5e5},
  ],
)
def test_logits_of_every_exit(hub, family, tmp_path, tied, changes):
  model = family(tied=tied, **changes)
  tokens = _tokens(256)
  expected = _ours(model.params, model.config.model, tokens)
  for exit_ in (1, 2, 3):
    out = tmp_path / f'exit{exit_}'
    export.to_hugging_face(model, exit_, out)
    llama, found = hub.AutoModelForCausalLM.from_pretrained(
      out, output_loading_info=True
    )
    assert not any(found.values())  # Nothing missing, nothing over.
    assert type(llama).__name__ == 'LlamaForCausalLM'
    assert np.abs(expected[exit_ - 1]).max() > 1
    np.testing.assert_allclose(
      _theirs(llama, tokens), expected[exit_ - 1], rtol=0, atol=1e-5
    )


def test_shards_of_bfloat16_and_padding(hub, family, tmp_path, monkeypatch):
  import torch

  model = family()
  monkeypatch.setattr(export, 'SHARD_BYTES', 10_000)
  export.to_hugging_face(model, 3, tmp_path / 'out', 'bfloat16')
  assert len(list((tmp_path / 'out').glob('model-*-of-*.safetensors'))) > 1
  llama, found = hub.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'out', output_loading_info=True
  )
  assert not any(found.values()) and llama.dtype == torch.bfloat16
  expected = _ours(model.params, model.config.model, _tokens(256))[2]
  found = _theirs(llama.float(), _tokens(256))
  np.testing.assert_allclose(found, expected, rtol=0, atol=0.1)
  # Texts of a batch are padded on the left, which changes no text.
  theirs = hub.AutoTokenizer.from_pretrained(tmp_path / 'out')
  given = theirs(['a long prompt', 'a'], padding=True, return_tensors='pt')
  made = llama.generate(**given, do_sample=False, max_new_tokens=8)
  alone = llama.generate(
    **theirs('a', return_tensors='pt'), do_sample=False, max_new_tokens=8
  )
  assert theirs.decode(made[1], skip_special_tokens=True) == theirs.decode(
    alone[0], skip_special_tokens=True
  )


@pytest.mark.parametrize('kind', ['bytes', 'bpe'])
def test_tokens_and_text_are_ours(hub, family, tmp_path, bpe_path, kind):
  model = family(bpe_path if kind == 'bpe' else '')
  export.to_hugging_face(model, 1, tmp_path / 'out')
  theirs = hub.AutoTokenizer.from_pretrained(tmp_path / 'out')
  ours = model.tokenizer
  assert len(theirs) == ours.vocab_size
  assert theirs.bos_token_id == theirs.eos_token_id == ours.separator
  assert theirs.model_max_length == _CONTEXT
  for text, tokens in zip(_SAMPLES, ours.encode(_SAMPLES), strict=True):
    found = theirs(text)['input_ids']
    assert found == [ours.separator, *tokens.tolist()]
    assert theirs.decode(found, skip_special_tokens=True) == text


@pytest.mark.parametrize('kind', ['bytes', 'bpe'])
def test_greedy_text_is_ours(hub, family, tmp_path, bpe_path, kind):
  model = family(bpe_path if kind == 'bpe' else '', exit_kind='branch')
  export.to_hugging_face(model, 2, tmp_path / 'out')
  theirs = hub.AutoTokenizer.from_pretrained(tmp_path / 'out')
  llama = hub.AutoModelForCausalLM.from_pretrained(tmp_path / 'out')
  prompt = 'def the_quick'
  given = theirs(prompt, return_tensors='pt')
  length = given['input_ids'].shape[1] + 20
  made = llama.generate(**given, do_sample=False, max_length=length)[0]

  [tokens] = model.tokenizer.encode([prompt])
  expected = [model.tokenizer.separator, *tokens.tolist()]
  while len(expected) < length:
    padded = np.zeros((1, _CONTEXT), np.int32)
    padded[0, : len(expected)] = expected
    logits = _ours(model.params, model.config.model, padded)[1]
    expected.append(int(jnp.argmax(logits[0, len(expected) - 1])))
    if expected[-1] == model.tokenizer.separator:
      break
  assert made.tolist() == expected
  text = theirs.decode(made, skip_special_tokens=True)
  assert text == model.tokenizer.decode(expected)
  assert text.startswith(prompt)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('name', ['Llama', 'Mistral'])
@pytest.mark.parametrize('tied', [True, False])
def test_a_model_of_theirs_is_imported(
  hub, family, tmp_path, bpe_path, name, tied, dtype
):
  import torch

  config = getattr(hub, f'{name}Config')(
    vocab_size=288,  # 8 more than there are tokens.
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=_CONTEXT,
    rms_norm_eps=1e-6,
    rope_parameters={'rope_type': 'default', 'rope_theta': 5e5},
    tie_word_embeddings=tied,
    initializer_range=0.1,
    bos_token_id=None,
    eos_token_id=0,
    **({'sliding_window': None} if name == 'Mistral' else {}),
  )
  llama = getattr(hub, f'{name}ForCausalLM')(config)
  for parameter in llama.parameters():
    if parameter.ndim == 1:
      torch.nn.init.uniform_(parameter, 0.5, 1.5)
  folder = tmp_path / 'theirs'
  llama = llama.to(getattr(torch, dtype))
  # As several files, or as one.
  llama.save_pretrained(folder, max_shard_size='20KB' if tied else '1GB')
  assert (folder / 'model.safetensors.index.json').exists() == tied
  hub.PreTrainedTokenizerFast(
    tokenizer_file=bpe_path, eos_token='<|separator|>'
  ).save_pretrained(folder)

  hugging_face.from_hugging_face(folder, (1, 2), 'separate', tmp_path / 'ours')
  read = load.load(tmp_path / 'ours')
  assert read.config.model.vocab_size == 280
  tokens = _tokens(280)
  llama = hub.AutoModelForCausalLM.from_pretrained(folder, dtype='float32')
  expected = _theirs(llama, tokens)[..., :280]
  assert np.abs(expected).max() > 1
  found = _ours(read.params, read.config.model, tokens)[-1]
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_saved_again_by_them_an_export_comes_back(hub, family, tmp_path):
  model = family(exit_kind='branch', tied=False)
  export.to_hugging_face(model, 1, tmp_path / 'out')
  for kind in (hub.AutoModelForCausalLM, hub.AutoTokenizer):
    kind.from_pretrained(tmp_path / 'out').save_pretrained(tmp_path / 'again')
  hugging_face.from_hugging_face(
    tmp_path / 'again', (1,), 'head', tmp_path / 'ours'
  )
  read = load.load(tmp_path / 'ours')
  tokens = _tokens(256)
  alone, shape = export.submodel(model.params, model.config.model, 1)
  shape = dataclasses.replace(shape, exits=(2,))
  np.testing.assert_array_equal(
    _ours(read.params, read.config.model, tokens)[-1],
    _ours(alone, shape, tokens)[0],
  )
  for text in _SAMPLES:
    [ours], [theirs] = (
      tokenizer.encode([text])
      for tokenizer in (model.tokenizer, read.tokenizer)
    )
    np.testing.assert_array_equal(theirs, ours)


@pytest.mark.parametrize('kind', ['byte_level', 'byte_fallback'])
@pytest.mark.parametrize('settings', [{}, {'add_bos_token': False}])
def test_an_import_begins_and_ends_texts_as_theirs(
  hub, tmp_path, kind, settings
):
  import torch

  folder = tmp_path / 'theirs'
  folder.mkdir()
  getattr(vocabularies, kind)(folder / 'tokenizer.json')
  begin, end, *others = {
    'byte_level': (vocabularies.BEGIN, vocabularies.END, vocabularies.TURN),
    'byte_fallback': ('<s>', '</s>', '<unk>'),
  }[kind]
  theirs = hub.PreTrainedTokenizerFast(
    tokenizer_file=str(folder / 'tokenizer.json'),
    bos_token=begin, eos_token=end, **settings,
  )  # fmt: skip
  theirs.save_pretrained(folder)
  stops = [theirs.convert_tokens_to_ids(name) for name in (end, *others)]
  config = hub.LlamaConfig(
    vocab_size=len(theirs), hidden_size=32, intermediate_size=40,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=_CONTEXT, initializer_range=0.4,
    bos_token_id=theirs.bos_token_id, eos_token_id=stops,
  )  # fmt: skip
  llama = hub.LlamaForCausalLM(config)
  llama.save_pretrained(folder)
  hugging_face.from_hugging_face(folder, (1,), 'head', tmp_path / 'ours')
  read = load.load(tmp_path / 'ours')
  assert read.tokenizer.stops == {*stops}
  export.to_hugging_face(read, 2, tmp_path / 'again')

  prompts = ['the quick', 'fox é\n', 'x'] + ([''] if not settings else [])
  found = generate.run(read, prompts, generate.Options(max_tokens=20))
  for where in (folder, tmp_path / 'again'):
    tokenizer = hub.AutoTokenizer.from_pretrained(where)
    model = hub.AutoModelForCausalLM.from_pretrained(where)
    for name in ('bos_token', 'eos_token', 'pad_token', 'padding_side'):
      assert getattr(tokenizer, name) == getattr(theirs, name)
    for name in ('bos_token_id', 'eos_token_id', 'pad_token_id'):
      assert getattr(model.config, name) == getattr(llama.config, name)
    for prompt, completion in zip(prompts, found.completions, strict=True):
      given = tokenizer(prompt, return_tensors='pt')
      with torch.no_grad():
        made = model.generate(**given, do_sample=False, max_new_tokens=20)[0]
      assert made.tolist() == completion.tokens
      text = tokenizer.decode(made, skip_special_tokens=True)
      assert read.tokenizer.decode(completion.tokens) == text
