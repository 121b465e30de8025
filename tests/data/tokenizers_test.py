import json

import hypothesis
from hypothesis import strategies
import pytest
import tokenizers as library

from familial.core import errors
from familial.data import tokenizers
from tests.data import vocabularies

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


@pytest.fixture(
  scope='module', params=['bytes', 'NFC', 'fallback', 'metaspace']
)
def foreign(request, tmp_path_factory):
  """A tokenizer from elsewhere, and the library's own of the same file."""
  path = tmp_path_factory.mktemp('foreign') / 'tokenizer.json'
  separator = '</s>'
  if request.param in ('bytes', 'NFC'):
    normalizer = '' if request.param == 'bytes' else request.param
    vocabularies.byte_level(path, normalizer=normalizer)
    separator = vocabularies.END
  else:
    vocabularies.byte_fallback(path, metaspace=request.param == 'metaspace')
  _, ours = tokenizers.read(str(path), separator)
  theirs = library.Tokenizer.from_file(str(path))
  theirs.encode_special_tokens = True
  return ours, theirs


@hypothesis.given(strategies.text())
@hypothesis.example('\N{PILE OF POO}\r\n\t é e\N{COMBINING ACUTE ACCENT}')
@hypothesis.example('  the <|end_of_text|></s><s>\u2581 ')
@hypothesis.settings(deadline=None)
def test_tokens_and_text_are_those_of_the_library(foreign, text):
  ours, theirs = foreign
  [tokens] = ours.encode([text])
  due = theirs.encode(text)
  assert [*ours.start, *tokens.tolist()] == due.ids
  assert not ours.stops & set(tokens.tolist())
  back = theirs.decode(due.ids, skip_special_tokens=True)
  assert ours.decode(due.ids) == back
  # A corpus's bytes per token are those of the text that it reads.
  size = ours.byte_lengths()[due.ids].sum() - ours.prefix * bool(len(tokens))
  assert size == len(back.encode('utf-8'))


@hypothesis.given(strategies.data())
@hypothesis.settings(deadline=None)
def test_text_that_is_settled_stays(foreign, data):
  ours, theirs = foreign
  # Bytes of long characters, and of none.
  [tokens] = ours.encode(['\N{PILE OF POO}é the'])
  pool = [*tokens.tolist(), *range(3, 259, 17)]
  drawn = data.draw(strategies.lists(strategies.sampled_from(pool)))
  text = theirs.decode([*ours.start, *drawn])
  for count in range(len(drawn) + 1):
    assert text.startswith(ours.settled([*ours.start, *drawn[:count]]))


def test_a_first_token_is_that_of_the_template(tmp_path):
  path = vocabularies.byte_level(tmp_path / 'a.json')
  _, tokenizer = tokenizers.read(str(path), vocabularies.END)
  made = library.Tokenizer.from_file(str(path))
  assert tokenizer.start == (made.token_to_id(vocabularies.BEGIN),)
  assert tokenizer.separator == made.token_to_id(vocabularies.END)
  # Without one a text begins as it does behind the document before it.
  path = vocabularies.byte_level(tmp_path / 'b.json', begin=False)
  text, tokenizer = tokenizers.read(str(path), vocabularies.TURN)
  assert tokenizer.start == (tokenizer.separator,)
  # The file is one of the library still, which begins texts alike.
  separator = made.token_to_id(vocabularies.TURN)
  assert library.Tokenizer.from_str(text).encode('').ids == [separator]


def test_a_file_without_our_separator_names_what_would_do(tmp_path):
  path = vocabularies.byte_level(tmp_path / 'tokenizer.json')
  with pytest.raises(errors.UserError, match=r'data\.separator.*end_of_text'):
    tokenizers.load(str(path))
  with pytest.raises(errors.UserError, match=r"'the' .*<\|eot_id\|>"):
    tokenizers.read(str(path), 'the')
