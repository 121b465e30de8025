import json

import hypothesis
from hypothesis import strategies
import pytest
import tokenizers as library

from familial.core import errors
from familial.data import tokenizers

_TEXTS = ['def f(x):\n  return x + 1\n' * 9, 'the quick brown fox ' * 9]


@pytest.fixture(scope='module')
def bpe_path(tmp_path_factory):
  path = tmp_path_factory.mktemp('bpe') / 'tokenizer.json'
  tokenizers.train(iter(_TEXTS), 280, path)
  return str(path)


@pytest.fixture(params=['bytes', 'bpe'])
def tokenizer(request, bpe_path):
  return tokenizers.load(bpe_path if request.param == 'bpe' else '')


@hypothesis.given(strategies.text())
@hypothesis.settings(
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.example('<|separator|>')
@hypothesis.example('\N{PILE OF POO}\r\n\t é')
def test_any_text_comes_back_and_holds_no_separator(tokenizer, text):
  [tokens] = tokenizer.encode([text])
  assert tokenizer.decode(tokens) == text
  assert tokenizer.separator not in tokens.tolist()
  assert all(t < tokenizer.vocab_size for t in tokens.tolist())
  lengths = tokenizer.byte_lengths()
  assert lengths[tokens].sum() == len(text.encode('utf-8'))


def test_separators_vanish_and_broken_text_is_shown(tokenizer):
  a, b = tokenizer.encode(['one', 'two'])
  joined = [*a, tokenizer.separator, *b, tokenizer.separator]
  assert tokenizer.decode(joined) == 'onetwo'
  assert tokenizer.byte_lengths()[tokenizer.separator] == 0
  [euro] = tokenizer.encode(['€'])
  assert '\ufffd' in tokenizer.decode(euro[:1])


def test_bpe_is_shorter_and_has_the_size_asked_for(bpe_path):
  bpe = tokenizers.load(bpe_path)
  assert bpe.vocab_size == 280
  assert len(bpe.encode(_TEXTS)[0]) < len(_TEXTS[0]) * 0.6


def test_training_is_deterministic(bpe_path, tmp_path):
  again = tmp_path / 'again.json'
  tokenizers.train(iter(_TEXTS), 280, again)
  with open(bpe_path, 'rb') as first:
    assert again.read_bytes() == first.read()


def test_a_vocabulary_larger_than_the_text_yields_is_refused(tmp_path):
  with pytest.raises(errors.UserError, match=r'vocab_size=5000.*at most'):
    tokenizers.train(iter(['aaa bbb']), 5000, tmp_path / 't.json')


@pytest.mark.parametrize('content', [None, 'no json', '{}'])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, content):
  path = tmp_path / 'tokenizer.json'
  if content is not None:
    path.write_text(content)
  with pytest.raises(errors.UserError, match='tokenizer_path=') as raised:
    tokenizers.load(str(path))
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    ({'add_prefix_space': True}, 'byte-level'),
    ({'type': 'Whitespace'}, 'byte-level'),
    ({'vocab': 300}, 'numbered'),
    ({'separator': '<|end|>'}, 'separator'),
  ],
)
def test_a_tokenizer_that_changes_text_is_refused(
  tmp_path, bpe_path, change, said
):
  with open(bpe_path, encoding='utf-8') as file:
    text = file.read()
  if 'separator' in change:
    text = text.replace('<|separator|>', change['separator'])
  made = json.loads(text)
  if 'vocab' in change:
    made['model']['vocab']['a'] = change['vocab']
  elif 'separator' not in change:
    made['pre_tokenizer'] |= change
  path = tmp_path / 'tokenizer.json'
  path.write_text(json.dumps(made), 'utf-8')
  with pytest.raises(errors.UserError, match=said):
    tokenizers.load(str(path))


def test_an_added_token_has_the_bytes_of_its_text(tmp_path, bpe_path):
  made = library.Tokenizer.from_file(bpe_path)
  made.add_tokens(['東京'])
  made.save(str(tmp_path / 'tokenizer.json'))
  tokenizer = tokenizers.load(str(tmp_path / 'tokenizer.json'))
  [tokens] = tokenizer.encode(['東京'])
  assert tokens.tolist() == [280]
  assert tokenizer.byte_lengths()[280] == 6
  assert tokenizer.decode(tokens.tolist()) == '東京'
  # Of these letters the library takes each for a byte.
  made.add_tokens(['Größe'])
  made.save(str(tmp_path / 'tokenizer.json'))
  with pytest.raises(errors.UserError, match='byte-level'):
    tokenizers.load(str(tmp_path / 'tokenizer.json'))


@pytest.mark.parametrize(
  ('texts', 'expected'),
  [
    (['abc abc abd', 'abc'], ['abc abc a']),
    (['abc ', 'abc abd'], ['abc ', 'abc a']),
    (['abc abc a', 'abd'], ['abc abc a']),
    (['ab ab éé', 'éé'], ['ab ab é']),  # Half of a character is left out.
  ],
)
def test_a_bpe_is_trained_on_the_first_bytes(
  monkeypatch, tmp_path, texts, expected
):
  monkeypatch.setattr(tokenizers, 'TRAINING_BYTES', 9)
  tokenizers.train(iter(texts), 258, tmp_path / 'limited.json')
  monkeypatch.undo()
  tokenizers.train(iter(expected), 258, tmp_path / 'expected.json')
  limited, whole = (tmp_path / f'{n}.json' for n in ('limited', 'expected'))
  assert limited.read_bytes() == whole.read_bytes()
