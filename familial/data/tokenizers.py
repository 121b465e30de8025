"""Tokenizers: UTF-8 bytes, or a byte-level BPE.

Both have a separator, a token that ends every document and that no text
contains. In a tokenizer's file it is the token named SEPARATOR; an import renames
the end-of-text token.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import hashlib
import pathlib
from typing import Protocol

import numpy as np

from familial.core import errors

SEPARATOR = '<|separator|>'
# Every byte that UTF-8 uses, and text that a tokenizer that is not byte-level
# changes: no space at the start, two spaces, a combining accent.
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
    mark: identifier; tokenizers with equal marks have equal tokens.
  """

  vocab_size: int
  separator: int
  mark: str

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the tokens of each text, without separators."""

  def decode(self, tokens: Sequence[int]) -> str:
    """Returns the text without separators; invalid UTF-8 becomes U+FFFD."""

  def byte_lengths(self) -> np.ndarray:
    """Returns the number of bytes of each token, [V]."""


class Bytes:
  """One token per byte; 0xFF, which UTF-8 never uses, is the separator."""

  vocab_size = 256
  separator = 0xFF
  mark = 'bytes'

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the UTF-8 bytes of each text."""
    return [np.frombuffer(t.encode('utf-8'), np.uint8) for t in texts]

  def decode(self, tokens: Sequence[int]) -> str:
    """Returns the text without separators; invalid UTF-8 becomes U+FFFD."""
    kept = bytes(int(t) for t in tokens if t != self.separator)
    return kept.decode('utf-8', errors='replace')

  def byte_lengths(self) -> np.ndarray:
    """Returns the number of bytes of each token, [V]."""
    lengths_V = np.ones(self.vocab_size, np.int64)
    lengths_V[self.separator] = 0
    return lengths_V


class BPE:
  """A byte-level BPE, from the JSON text of the `tokenizers` library."""

  def __init__(self, text: str):
    import tokenizers

    self.mark = hashlib.sha256(text.encode('utf-8')).hexdigest()[:16]
    self._tokenizer = tokenizers.Tokenizer.from_str(text)
    # The separator's name within a text is encoded as text.
    self._tokenizer.encode_special_tokens = True
    self.vocab_size: int = self._tokenizer.get_vocab_size()
    separator = self._tokenizer.token_to_id(SEPARATOR)
    if separator is None:
      raise ValueError(f'it has no token {SEPARATOR!r}')
    self.separator: int = separator
    numbers = self._tokenizer.get_vocab().values()
    if sorted(numbers) != list(range(self.vocab_size)):
      raise ValueError(
        f'its {self.vocab_size} tokens are not numbered from 0 without gaps'
      )
    added = self._tokenizer.get_added_tokens_decoder().values()
    texts = [_PROBE, *(f' {t.content} ' for t in added if not t.special)]
    lengths_V = self.byte_lengths()
    for text, tokens in zip(texts, self.encode(texts), strict=True):
      size = len(text.encode('utf-8'))
      if (
        self.decode(tokens.tolist()) != text or lengths_V[tokens].sum() != size
      ):
        raise ValueError('it is no byte-level BPE, which gives back any text')

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the tokens of each text, without separators."""
    encodings = self._tokenizer.encode_batch_fast(
      list(texts), add_special_tokens=False
    )
    return [np.asarray(e.ids, np.uint32) for e in encodings]

  def decode(self, tokens: Sequence[int]) -> str:
    """Returns the text without separators; invalid UTF-8 becomes U+FFFD."""
    kept = [int(t) for t in tokens if t != self.separator]
    return self._tokenizer.decode(kept, skip_special_tokens=False)

  def byte_lengths(self) -> np.ndarray:
    """Returns the number of bytes of each token, [V]."""
    lengths_V = np.zeros(self.vocab_size, np.int64)
    # Each character of a token in this vocabulary is one byte.
    for token, number in self._tokenizer.get_vocab().items():
      lengths_V[number] = len(token)
    # Added tokens are plain text.
    for number, added in self._tokenizer.get_added_tokens_decoder().items():
      lengths_V[number] = len(added.content.encode('utf-8'))
    lengths_V[self.separator] = 0
    return lengths_V


def load(path: str) -> Tokenizer:
  """Returns the tokenizer of a file, or `Bytes` if the path is ''.

  Raises:
    UserError: if the file is missing or not a byte-level BPE of this library.
  """
  if not path:
    return Bytes()
  try:
    return BPE(pathlib.Path(path).read_text('utf-8'))
  except Exception as error:  # The library raises bare Exceptions.
    line = str(error).splitlines()[0]
    raise errors.UserError(f'tokenizer_path={path!r}: {line}') from error


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
