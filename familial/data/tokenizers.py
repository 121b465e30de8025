"""Tokenizers: UTF-8 bytes, or a BPE of the `tokenizers` library.

A tokenizer reads any text: it is byte-level, or has byte fallback. Its separator is
a token that ends every document and that no text contains: the token named
SEPARATOR, or the one that the file marks with FACTS (see `marked`), as an import and
a corpus with `data.separator` do. What stands before a text is `start`: of a marked
file what its own template puts there, and otherwise the separator.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import hashlib
import json
import pathlib
import re
from typing import Any
from typing import Protocol

import numpy as np

from familial.core import errors

SEPARATOR = '<|separator|>'
# Key, in the entry of an added token of a file, that marks it as the separator. The
# library ignores it.
FACTS = 'familial'
_FALLBACK = re.compile('<0x[0-9A-F]{2}>')
_SPACE = '\u2581'  # what a BPE that is not byte-level writes for a space
# Every byte that UTF-8 uses, and text that some tokenizers change: no space at the
# start, two spaces, a combining accent.
_PROBE = ''.join(
  map(
    chr,
    [
      *range(0x100),
      *range(0x100, 0x800, 0x40),
      *range(0x800, 0xD800, 0x1000),
      0xE000,
      0xF000,
      *range(0x10000, 0x110000, 0x40000),
      0x10FFFF,
      *b'e  ',
      0x301,
    ],
  )
)
# Merges hardly change after this much text, and the trainer holds it in memory.
TRAINING_BYTES = 2**28


class Tokenizer(Protocol):
  """The interface of a tokenizer.

  Attributes:
    vocab_size: number of tokens.
    separator: the token that ends a document.
    start: the tokens before a text.
    stops: tokens that end a generated text, the separator among them.
    prefix: bytes that the tokens of a text have beyond the text's: 1 where a space
      is put before each text, else 0.
    mark: identifier; tokenizers with equal marks have equal tokens.
  """

  vocab_size: int
  separator: int
  start: tuple[int, ...]
  stops: frozenset[int]
  prefix: int
  mark: str

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the tokens of each text alone."""

  def decode(self, tokens: Sequence[int]) -> str:
    """Returns the text without special tokens; invalid UTF-8 becomes U+FFFD."""

  def settled(self, tokens: Sequence[int]) -> str:
    """Returns the beginning of `decode` that no further token changes."""

  def byte_lengths(self) -> np.ndarray:
    """Returns the number of bytes of each token, [V]."""


class Bytes:
  """One token per byte; 0xFF, which UTF-8 never uses, is the separator."""

  vocab_size = 256
  separator = 0xFF
  start: tuple[int, ...] = (separator,)
  stops = frozenset(start)
  prefix = 0
  mark = 'bytes'

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the UTF-8 bytes of each text."""
    return [np.frombuffer(t.encode('utf-8'), np.uint8) for t in texts]

  def decode(self, tokens: Sequence[int]) -> str:
    """Returns the text without separators; invalid UTF-8 becomes U+FFFD."""
    kept = bytes(int(t) for t in tokens if t != self.separator)
    return kept.decode('utf-8', errors='replace')

  def settled(self, tokens: Sequence[int]) -> str:
    """Returns the text without an incomplete character at its end."""
    return self.decode(tokens).rstrip('\ufffd')

  def byte_lengths(self) -> np.ndarray:
    """Returns the number of bytes of each token, [V]."""
    lengths_V = np.ones(self.vocab_size, np.int64)
    lengths_V[self.separator] = 0
    return lengths_V


class BPE:
  """A BPE of any text, from the JSON text of the `tokenizers` library.

  It is byte-level, or has byte fallback and writes spaces as U+2581. What its
  normaliser (NFC) or its spaces change of a text is what the library's decoder
  gives back, and its bytes are counted.

  Attributes:
    facts: what the file says beside its separator; see `marked`.
    name: name of the separator.
  """

  def __init__(self, text: str):
    import tokenizers

    made = json.loads(text)
    self.mark = hashlib.sha256(text.encode('utf-8')).hexdigest()[:16]
    self._tokenizer = tokenizers.Tokenizer.from_str(text)
    # A special token's name within a text is encoded as text, and whole texts are.
    self._tokenizer.encode_special_tokens = True
    self._tokenizer.no_truncation()
    self._tokenizer.no_padding()
    self.vocab_size: int = self._tokenizer.get_vocab_size()
    numbers = self._tokenizer.get_vocab()
    if sorted(numbers.values()) != list(range(self.vocab_size)):
      raise ValueError(
        f'its {self.vocab_size} tokens are not numbered from 0 without gaps'
      )
    self._added = self._tokenizer.get_added_tokens_decoder()
    self.facts, name = _facts(made), SEPARATOR
    if self.facts is not None:
      name = next(t['content'] for t in made['added_tokens'] if FACTS in t)
    if name not in numbers:
      raise ValueError(
        f'it has no token {SEPARATOR!r}; name the one that ends a document with '
        f'--config.data.separator=TOKEN: {_listed(special_tokens(made))}'
      )
    self.name, self.separator = name, int(numbers[name])
    stops = (self.facts or {}).get('stops', ())
    self.stops = frozenset({self.separator, *stops})
    decoders = set(_types(made.get('decoder')))
    self._byte_level = 'ByteLevel' in decoders
    if not decoders & {'ByteLevel', 'ByteFallback'}:
      raise ValueError(
        'some text has no tokens: it is not byte-level and has no byte fallback'
      )
    self._fallback = {
      number for name, number in numbers.items() if _FALLBACK.fullmatch(name)
    }
    self._lengths_V = self._byte_lengths()
    self.prefix = int(self._lengths_V[self.encode(['a'])[0]].sum()) - 1
    self.start = self._start(self.facts is not None)
    self._check('NFC' in set(_types(made.get('normalizer'))))

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the tokens of each text alone."""
    encodings = self._tokenizer.encode_batch_fast(
      list(texts), add_special_tokens=False
    )
    return [np.asarray(e.ids, np.uint32) for e in encodings]

  def decode(self, tokens: Sequence[int]) -> str:
    """Returns the text without special tokens; invalid UTF-8 becomes U+FFFD."""
    kept = [int(t) for t in tokens if t not in self.stops]
    return self._tokenizer.decode(kept, skip_special_tokens=True)

  def settled(self, tokens: Sequence[int]) -> str:
    """Returns the beginning of `decode` that no further token changes."""
    if self._byte_level:
      return self.decode(tokens).rstrip('\ufffd')
    # The library decodes consecutive bytes together, as soon as all are known.
    count = len(tokens)
    while count and int(tokens[count - 1]) in self._fallback:
      count -= 1
    return self.decode(tokens[:count])

  def byte_lengths(self) -> np.ndarray:
    """Returns the number of bytes of each token, [V]."""
    return self._lengths_V

  def _byte_lengths(self) -> np.ndarray:
    lengths_V = np.zeros(self.vocab_size, np.int64)
    for token, number in self._tokenizer.get_vocab().items():
      if self._byte_level:  # Each character is one byte.
        lengths_V[number] = len(token)
      elif number in self._fallback:
        lengths_V[number] = 1
      else:
        lengths_V[number] = len(token.replace(_SPACE, ' ').encode('utf-8'))
    for number, added in self._added.items():
      # Plain text; a special token is none.
      size = 0 if added.special else len(added.content.encode('utf-8'))
      lengths_V[number] = size
    lengths_V[self.separator] = 0
    return lengths_V

  def _start(self, marked: bool) -> tuple[int, ...]:
    """Returns the tokens before a text."""
    if not marked:
      return (self.separator,)
    encoding = self._tokenizer.encode('a')
    text = [at for at, is_special in enumerate(encoding.special_tokens_mask)
            if not is_special]  # fmt: skip
    after = set(encoding.ids[text[-1] + 1 :]) - {self.separator}
    if after:
      names = [self._tokenizer.id_to_token(number) for number in sorted(after)]
      raise ValueError(
        f'its template puts {", ".join(map(repr, names))} after a text, which is '
        'not its separator'
      )
    return tuple(encoding.ids[: text[0]])

  def _check(self, is_nfc: bool) -> None:
    """Raises a ValueError unless any text comes back, with its bytes.

    Args:
      is_nfc: whether the text that comes back is normalised.
    """
    import tokenizers

    plain = [
      token.content for token in self._added.values() if not token.special
    ]
    names = [token.content for token in self._added.values() if token.special]
    texts = [f'a{c}b' for c in _PROBE] + [_PROBE] + [f' {t} ' for t in plain]
    for text, tokens in zip(texts, self.encode(texts), strict=True):
      due = tokenizers.normalizers.NFC().normalize_str(text) if is_nfc else text
      found = self.decode(tokens.tolist())
      size = int(self._lengths_V[tokens].sum()) - self.prefix
      if text[:1] == ' ' and self.prefix:  # It may stand for the space before.
        due, found = due.strip(' '), found.strip(' ')
        size = len(due.encode('utf-8'))
      if found != due or size != len(due.encode('utf-8')):
        raise ValueError(
          'a byte-level BPE, or one with byte fallback, must give back any text; '
          f'of {text[:40]!r} this one makes {found[:40]!r}'
        )
    for name, tokens in zip(names, self.encode(names), strict=True):
      if self.stops & set(tokens.tolist()):
        raise ValueError(f'a text with {name!r} holds the token that ends one')


def special_tokens(made: dict[str, Any]) -> list[str]:
  """Returns the names of the special tokens of a file's JSON object."""
  return [t['content'] for t in made['added_tokens'] if t['special']]


def marked(made: dict[str, Any], name: str, **facts: Any) -> str:
  """Returns the text of a file whose separator is the special token `name`.

  Args:
    made: JSON object of a file of the `tokenizers` library.
    name: the token that ends a document.
    **facts: `stops`, numbers of the tokens that end a generated text; and of an
      import what an export gives back.

  Raises:
    ValueError: if it has no such special token.
  """
  if name not in special_tokens(made):
    raise ValueError(
      f'separator: {name!r} is no special token of it; one of '
      f'{_listed(special_tokens(made))}'
    )
  plain = unmarked(made)
  for token in plain['added_tokens']:
    if token['content'] == name:
      token[FACTS] = facts
  return json.dumps(plain, ensure_ascii=False)


def unmarked(made: dict[str, Any]) -> dict[str, Any]:
  """Returns the JSON object of a file without what `marked` adds."""
  added = [
    {key: value for key, value in token.items() if key != FACTS}
    for token in made['added_tokens']
  ]
  return {**made, 'added_tokens': added}


def template(before: dict[str, int], after: dict[str, int]) -> dict[str, Any]:
  """Returns the post-processor that puts special tokens around each text.

  Args:
    before: names and numbers of the tokens before it.
    after: names and numbers of the tokens after it.
  """
  import tokenizers

  one, two = ([*before, f'${x}', *after] for x in 'AB')
  processor = tokenizers.processors.TemplateProcessing(
    single=one, pair=[*one, *two], special_tokens=[*(before | after).items()]
  )
  return dict(json.loads(processor.__getstate__()))


def read(path: str, separator: str = '') -> tuple[str, BPE]:
  """Returns the text of a tokenizer's file, and the tokenizer.

  Args:
    path: the file.
    separator: name of the token that ends a document, which the text marks; ''
      for the file's own. Where the file's template puts nothing before a text, the
      separator is put there.

  Raises:
    UserError: if the file is missing, or is no BPE of this library that gives back
      any text.
  """
  try:
    text = pathlib.Path(path).read_bytes().decode('utf-8')
    if separator:
      made = json.loads(text)
      text = marked(made, separator)
      tokenizer = BPE(text)
      if tokenizer.start:
        return text, tokenizer
      made['post_processor'] = template({separator: tokenizer.separator}, {})
      text = marked(made, separator)
    return text, BPE(text)
  except Exception as error:  # The library raises bare Exceptions.
    line = (str(error).splitlines() or [type(error).__name__])[0]
    raise errors.UserError(f'tokenizer_path={path!r}: {line}') from error


def load(path: str) -> Tokenizer:
  """Returns the tokenizer of a file, or `Bytes` if the path is ''.

  Raises:
    UserError: as `read` does.
  """
  return read(path)[1] if path else Bytes()


def _facts(made: Any) -> dict[str, Any] | None:
  """Returns the facts of a file that marks its separator, else None.

  Raises:
    ValueError: if they are not of the form that `marked` gives them.
  """
  found = [t[FACTS] for t in made.get('added_tokens', ()) if FACTS in t]
  if not found:
    return None
  [facts] = found if len(found) == 1 else [None]
  stops = facts.get('stops', []) if isinstance(facts, dict) else None
  if not isinstance(stops, list) or not all(type(x) is int for x in stops):
    raise ValueError(
      f'its key {FACTS!r} is not of the form that an import writes'
    )
  return facts


def _types(part: Any) -> Iterator[str]:
  """Yields the types of a part of a file, and of the sequence in it."""
  if isinstance(part, dict):
    yield str(part.get('type'))
    for key in ('decoders', 'normalizers'):
      for inner in part.get(key, ()):
        yield from _types(inner)


def _listed(names: Iterable[str]) -> str:
  shown = list(names)
  return ', '.join(map(repr, shown[:8])) + (', ...' if len(shown) > 8 else '')


def train(texts: Iterator[str], vocab_size: int, path: pathlib.Path) -> None:
  """Trains a byte-level BPE on `texts` and writes it to `path`.

  The vocabulary is the separator, the 256 bytes, and merges by frequency.

  Raises:
    UserError: if the texts yield fewer tokens.
  """
  import tokenizers

  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  level = tokenizers.pre_tokenizers.ByteLevel
  tokenizer.pre_tokenizer = level(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.train_from_iterator(
    _first_bytes(texts),
    tokenizers.trainers.BpeTrainer(
      vocab_size=vocab_size,
      special_tokens=[SEPARATOR],
      initial_alphabet=level.alphabet(),
      show_progress=False,
    ),
  )
  if tokenizer.get_vocab_size() != vocab_size:
    raise errors.UserError(
      f'vocab_size={vocab_size}: this corpus gives at most '
      f'{tokenizer.get_vocab_size()} tokens'
    )
  tokenizer.save(str(path))


def _first_bytes(texts: Iterator[str]) -> Iterator[str]:
  left = TRAINING_BYTES
  for text in texts:
    part = text.encode('utf-8')[:left]
    # The cut may leave part of a character at the end.
    yield part.decode('utf-8', errors='ignore')
    left -= len(part)
    if not left:
      return
