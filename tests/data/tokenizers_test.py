import json

import hypothesis
from hypothesis import strategies
import numpy as np
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


def test_a_vocabulary_larger_than_the_text_gives_is_said(tmp_path):
  with pytest.raises(errors.UserError, match=r'vocab_size=5000.*at most'):
    tokenizers.train(iter(['aaa bbb']), 5000, tmp_path / 't.json')


@pytest.mark.parametrize('content', [None, 'no json', '{}'])
def test_a_file_that_is_no_tokenizer_is_said(tmp_path, content):
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
  ],
)
def test_a_tokenizer_that_changes_text_is_said(
  tmp_path, bpe_path, change, said
):
  with open(bpe_path, encoding='utf-8') as file:
    made = json.load(file)
  if 'vocab' in change:
    made['model']['vocab']['a'] = change['vocab']
  else:
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


def test_a_tokenizer_without_our_separator_is_said(tmp_path, bpe_path):
  path = tmp_path / 'tokenizer.json'
  with open(bpe_path, encoding='utf-8') as file:
    path.write_text(file.read().replace('<|separator|>', '<|end|>'))
  with pytest.raises(errors.UserError, match='separator'):
    tokenizers.load(str(path))


def test_bytes_are_utf8():
  [tokens] = tokenizers.Bytes().encode(['né'])
  np.testing.assert_array_equal(tokens, [110, 195, 169])


@pytest.mark.parametrize(
  ('texts', 'expected'),
  [
    (['abcdef', 'ghi'], ['abcde']),
    (['abc', 'def', 'ghi'], ['abc', 'de']),
    (['abcde', 'f'], ['abcde']),
    (['éé', 'é', 'a'], ['éé']),  # Two bytes each: half of one is left out.
    (['ab'], ['ab']),
  ],
)
def test_a_bpe_is_trained_on_the_first_bytes(monkeypatch, texts, expected):
  monkeypatch.setattr(tokenizers, '_TRAINING_BYTES', 5)
  found = tokenizers._first_bytes(iter(texts))
  assert [text for text in found if text] == expected


def test_one_document_beyond_the_limit_still_trains(monkeypatch, tmp_path):
  monkeypatch.setattr(tokenizers, '_TRAINING_BYTES', 60)
  tokenizers.train(iter(['the quick brown fox ' * 9]), 260, tmp_path / 't.json')
  assert tokenizers.load(str(tmp_path / 't.json')).vocab_size == 260
