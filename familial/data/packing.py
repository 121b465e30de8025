"""Documents, tokenised once and laid end to end in memory-mapped arrays.

Every document is followed by the separator, and begins with the tokens that its
tokenizer puts before a text. A packed corpus is a folder of the
cache: raw little-endian arrays, and meta.json with their sizes and hashes.
"""

import array
from collections.abc import Iterable
import dataclasses
import itertools
import json
import pathlib
from typing import Any

import numpy as np

from familial.core import errors
from familial.core import progress_bar
from familial.core import text
from familial.data import cache
from familial.data import config as config_lib
from familial.data import sources
from familial.data import tokenizers

# Part of every fingerprint; to be raised when equal text packs differently.
VERSION = 1

_META = 'meta.json'
_TOKENIZER = 'tokenizer.json'
_OFFSETS = np.dtype('<i8')
# Documents tokenised at a time.
_CHUNK = 64
# Larger arrays are checked by size alone: hashing them takes seconds.
HASHED_BYTES = 2**29


@text.brief
@dataclasses.dataclass(frozen=True)
class Packed:
  """One split as a flat array.

  Attributes:
    tokens: [T], uint16 or uint32, memory mapped.
    documents: [documents + 1], int64: document i is
      tokens[documents[i]:documents[i + 1]], its separator included.
    bytes: UTF-8 bytes of the split's text, separators not counted.
  """

  tokens: np.ndarray
  documents: np.ndarray
  bytes: int


@text.brief
@dataclasses.dataclass(frozen=True)
class Corpus:
  """A packed corpus.

  Attributes:
    name: the configured corpus.
    fingerprint: hash in hex of the tokens, the tokenizer and the version of the
      packing; equal on every machine that holds the same text.
    train: training documents.
    heldout: documents that do not occur in train.
    vocab_size: number of tokens of the tokenizer.
    separator: the token that ends every document.
    start: the tokens that begin every document, where these are not the
      separator before it.
    tokenizer_path: file of the tokenizer, '' for bytes.
    notes: what a user should know of the text: files that were left out.
  """

  name: str
  fingerprint: str
  train: Packed
  heldout: Packed
  vocab_size: int
  separator: int
  tokenizer_path: str
  start: tuple[int, ...] = ()
  notes: tuple[str, ...] = ()


def load(config: config_lib.DataConfig) -> Corpus:
  """Returns the packed corpus, prepared on first use.

  A damaged folder of the cache is reported, removed and made again.

  Raises:
    UserError: if the corpus is unknown, missing, empty or too small to split,
      or if the tokenizer file is invalid or its vocabulary has another size.
  """
  root = config_lib.cache_folder(config)
  try:
    root.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.UserError(
      f'cache_dir={str(root)!r} cannot be made: {error.strerror}; set '
      'data.cache_dir or $FAMILIAL_CACHE to a folder that can be written'
    ) from error
  given = [_tokenizer_digest(config)] if config.tokenizer_file else []
  if config.separator:
    given.append(config.separator)
  source = sources.open_source(config)
  key = cache.digest(
    source.key, config.vocab_size, config.heldout_percent, VERSION, *given
  )
  stem = config.corpus.replace('/', '-').replace(':', '-')
  kind = 'file' if given else config.tokenizer

  def make(folder: pathlib.Path) -> None:
    if config.tokenizer_file:
      # Checked before the text is prepared, which may take hours.
      text, tokenizer = tokenizers.read(config.tokenizer_file, config.separator)
      size = tokenizer.vocab_size
      if size != config.vocab_size:
        raise errors.UserError(
          f'data.vocab_size={config.vocab_size}: tokenizer='
          f'{config.tokenizer_file!r} has {size} tokens'
        )
      (folder / _TOKENIZER).write_bytes(text.encode('utf-8'))
    source.use(lambda splits: _write(config, splits, folder))

  corpus = cache.use(
    root / 'packed' / f'{stem}-{kind}-{key}',
    make,
    lambda folder: _map(config.corpus, folder),
  )
  if source.survey is None:
    return corpus
  notes = tuple(source.survey.lines(config.heldout_percent))
  return dataclasses.replace(corpus, notes=notes)


def _write(
  config: config_lib.DataConfig,
  splits: sources.Splits,
  folder: pathlib.Path,
) -> None:
  """Writes the packed corpus into `folder`."""
  tokenizer_path, tokenizer_digest = '', ''
  file = folder / _TOKENIZER
  if config.tokenizer == 'bpe':
    tokenizers.train(splits['train'].texts(), config.vocab_size, file)
  if file.exists():
    tokenizer_path, tokenizer_digest = str(file), cache.file_digest(file)
  tokenizer = tokenizers.load(tokenizer_path)
  meta: dict[str, Any] = {
    'version': VERSION,
    'tokenizer': tokenizer_digest,
    'vocab_size': tokenizer.vocab_size,
    'separator': tokenizer.separator,
  }
  if start := _start(tokenizer):
    meta['start'] = start
  for name, split in splits.items():
    bar = progress_bar.start(
      split.texts(), desc=f'packing {name}', total=split.most, unit='doc'
    )
    meta[name] = _write_split(folder, name, bar, tokenizer)
    if not meta[name]['documents']:
      raise errors.UserError(
        f'corpus={config.corpus!r} has no {name} document that is text, with '
        f'heldout_percent={config.heldout_percent}; more text, or another '
        'percentage'
      )
  meta['fingerprint'] = cache.digest(meta)
  (folder / _META).write_text(json.dumps(meta, indent=2) + '\n')


def _write_split(
  folder: pathlib.Path,
  name: str,
  texts: Iterable[str],
  tokenizer: tokenizers.Tokenizer,
) -> dict[str, Any]:
  """Writes a split's two arrays and returns its entry of meta.json."""
  dtype = _dtype(tokenizer.vocab_size)
  begin = np.array(_start(tokenizer), dtype)
  end = np.array([tokenizer.separator], dtype)
  offsets = array.array('q', [0])
  size = 0
  remaining = iter(texts)
  tokens_file, documents_file = _files(folder, name)
  with open(tokens_file, 'wb') as out:
    while chunk := list(itertools.islice(remaining, _CHUNK)):
      size += sum(len(text.encode('utf-8')) for text in chunk)
      for tokens in tokenizer.encode(chunk):
        tokens = np.concatenate([begin, tokens.astype(dtype), end])
        out.write(tokens.tobytes())
        offsets.append(offsets[-1] + len(tokens))
  np.asarray(offsets, _OFFSETS).tofile(documents_file)
  return {
    'tokens': offsets[-1],
    'documents': len(offsets) - 1,
    'bytes': size,
    'tokens_sha256': cache.file_digest(tokens_file),
    'documents_sha256': cache.file_digest(documents_file),
  }


def _start(tokenizer: tokenizers.Tokenizer) -> list[int]:
  """Returns the tokens that begin a document, the separator left out."""
  return [token for token in tokenizer.start if token != tokenizer.separator]


def _map(name: str, folder: pathlib.Path) -> Corpus:
  """Maps a packed corpus and checks it against meta.json.

  Raises:
    DamagedError: if a file is missing or differs from what meta.json says.
  """
  try:
    meta = json.loads((folder / _META).read_text())
    fingerprint = meta.pop('fingerprint')
    # It covers every size and hash below.
    if fingerprint != cache.digest(meta):
      raise cache.DamagedError(f'{_META} does not match its fingerprint')
    tokenizer_path = str(folder / _TOKENIZER) if meta['tokenizer'] else ''
    if (
      tokenizer_path and cache.file_digest(tokenizer_path) != meta['tokenizer']
    ):
      raise cache.DamagedError(f'{_TOKENIZER} has changed')
    return Corpus(
      name=name,
      fingerprint=fingerprint,
      train=_map_split(folder, 'train', meta),
      heldout=_map_split(folder, 'heldout', meta),
      vocab_size=meta['vocab_size'],
      separator=meta['separator'],
      tokenizer_path=tokenizer_path,
      start=tuple(meta.get('start', ())),
    )
  except cache.DamagedError:
    raise
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    raise cache.DamagedError(f'{type(error).__name__}: {error}') from error


def _map_split(folder: pathlib.Path, name: str, meta: dict[str, Any]) -> Packed:
  sizes = meta[name]
  tokens_file, documents_file = _files(folder, name)
  tokens = _map_array(
    tokens_file,
    _dtype(meta['vocab_size']),
    sizes['tokens'],
    sizes['tokens_sha256'],
  )
  documents = _map_array(
    documents_file,
    _OFFSETS,
    sizes['documents'] + 1,
    sizes['documents_sha256'],
  )
  return Packed(tokens, documents, sizes['bytes'])


def _map_array(
  file: pathlib.Path, dtype: np.dtype, count: int, sha256: str
) -> np.ndarray:
  size = file.stat().st_size
  if size != count * dtype.itemsize:
    raise cache.DamagedError(
      f'{file.name} has {size} bytes, not {count * dtype.itemsize}'
    )
  if size <= HASHED_BYTES and cache.file_digest(file) != sha256:
    raise cache.DamagedError(f'{file.name} has changed')
  return np.memmap(file, dtype, mode='r', shape=(count,))


def _dtype(vocab_size: int) -> np.dtype:
  return np.dtype('<u2' if vocab_size <= 2**16 else '<u4')


def _files(
  folder: pathlib.Path, name: str
) -> tuple[pathlib.Path, pathlib.Path]:
  """Returns the files of a split's tokens and of its documents' offsets."""
  return folder / f'{name}.tokens', folder / f'{name}.documents'


def _tokenizer_digest(config: config_lib.DataConfig) -> str:
  try:
    return cache.file_digest(config.tokenizer_file)
  except OSError as error:
    raise errors.UserError(
      f'data.tokenizer={config.tokenizer_file!r}: {error.strerror}'
    ) from None
