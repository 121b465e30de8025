"""Documents, tokenised once and laid end to end in memory-mapped arrays.

Every document is followed by the separator. A packed corpus is a folder of the
cache: raw little-endian arrays and meta.json, which says how large they are and
what they hash to. Folders are written under another name and renamed, so they
are there in whole or not at all. Of processes that want the same one, the first
makes it and the others wait; where the file system keeps no locks, each makes
one, and the first to finish wins.
"""

import array
from collections.abc import Callable
from collections.abc import Iterable
import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import pathlib
import shutil
from typing import Any
import uuid

from absl import logging
import numpy as np
import tqdm

from familial.core import errors
from familial.data import config as config_lib
from familial.data import files
from familial.data import tokenizers

# Part of every fingerprint: raise it when equal text would pack differently.
VERSION = 1

_META = 'meta.json'
_TOKENIZER = 'tokenizer.json'
_OFFSETS = np.dtype('<i8')
# Documents tokenised at a time.
_CHUNK = 64
# Larger arrays are checked by size alone: hashing them takes seconds.
_HASHED_BYTES = 2**29


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


@dataclasses.dataclass(frozen=True)
class Corpus:
  """A packed corpus.

  Attributes:
    name: of the configuration.
    fingerprint: hex, of the tokens, the tokenizer and the packing's version;
      equal on every machine that holds the same text.
    train: what is trained on.
    heldout: documents that do not occur in train.
    vocab_size: every token is below it.
    separator: the token that ends every document.
    tokenizer_path: the tokenizer's file, '' for bytes.
  """

  name: str
  fingerprint: str
  train: Packed
  heldout: Packed
  vocab_size: int
  separator: int
  tokenizer_path: str


class _DamagedError(Exception):
  """Why a folder of the cache cannot be used."""


def load(config: config_lib.DataConfig) -> Corpus:
  """Returns the packed corpus, preparing it the first time.

  A damaged folder of the cache is reported, removed and made again.

  Raises:
    UserError: if the corpus is unknown, missing, empty or too small to split,
      or its tokenizer's file is none or has a vocabulary of another size.
  """
  cache = config_lib.cache_folder(config)
  try:
    cache.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise errors.UserError(
      f'cache_dir={str(cache)!r} cannot be made: {error.strerror}'
    ) from error
  given = [_hash_of_tokenizer(config)] if config.tokenizer_file else []
  data_dir, source = _source(config, cache)
  key = _hash(
    source, config.vocab_size, config.heldout_percent, VERSION, *given
  )
  stem = config.corpus.replace('/', '-').replace(':', '-')
  kind = 'file' if given else config.tokenizer
  folder = cache / 'packed' / f'{stem}-{kind}-{key}'
  for _ in range(2):
    try:
      _publish(folder, lambda temporary: _pack(config, data_dir, temporary))
    except OSError as error:
      raise errors.UserError(
        f'{folder}: cannot be written: {error.strerror or error}'
      ) from None
    try:
      return _map(config, folder)
    except _DamagedError as damage:
      logging.warning('%s is damaged (%s): made again', folder, damage)
      _discard(folder)
  raise errors.UserError(f'{folder} is damaged again once made: a bad disk?')


def _source(
  config: config_lib.DataConfig, cache: pathlib.Path
) -> tuple[pathlib.Path, str]:
  """Returns where TFDS data belong, and a hash of what the text comes from."""
  data_dir = cache / 'tfds'
  if config.corpus in files.CORPORA:
    source = _hash(
      files.state(config.corpus, config.path), config.heldout_percent
    )
    return data_dir / f'{config.corpus}-{source}', source
  # Slow to import, and not needed for files that are packed already.
  from familial.data import corpora

  info = corpora.catalogue(config.corpus, data_dir).info
  sizes = {name: split.num_examples for name, split in info.splits.items()}
  # What was packed before held-out texts were dropped from train is not used.
  return data_dir, _hash(info.full_name, sizes, 'disjoint')


def _pack(
  config: config_lib.DataConfig, data_dir: pathlib.Path, folder: pathlib.Path
) -> None:
  """Writes the packed corpus into `folder`, which exists and is empty."""
  from familial.data import corpora

  if config.tokenizer_file:
    # Checked before the text is prepared, which may take hours.
    size = tokenizers.load(config.tokenizer_file).vocab_size
    if size != config.vocab_size:
      raise errors.UserError(
        f'data.vocab_size={config.vocab_size}: tokenizer='
        f'{config.tokenizer_file!r} has {size} tokens'
      )
    shutil.copyfile(config.tokenizer_file, folder / _TOKENIZER)
  own = config.corpus in files.CORPORA
  if own:
    _publish(data_dir, lambda temporary: corpora.build(config, temporary))
  try:
    _write(config, data_dir, folder)
  except corpora.UnreadableError as error:
    if not own:
      raise
    logging.warning('%s: made again', error)
    _discard(data_dir)
    _publish(data_dir, lambda temporary: corpora.build(config, temporary))
    _write(config, data_dir, folder)


def _write(
  config: config_lib.DataConfig, data_dir: pathlib.Path, folder: pathlib.Path
) -> None:
  from familial.data import corpora

  tokenizer_path, tokenizer_hash = '', ''
  file = folder / _TOKENIZER
  if config.tokenizer == 'bpe':
    _, texts = corpora.documents(config, data_dir)['train']
    tokenizers.train(texts, config.vocab_size, file)
  if file.exists():
    tokenizer_path, tokenizer_hash = str(file), _hash_of_file(file)
  tokenizer = tokenizers.load(tokenizer_path)
  meta: dict[str, Any] = {
    'version': VERSION,
    'tokenizer': tokenizer_hash,
    'vocab_size': tokenizer.vocab_size,
    'separator': tokenizer.separator,
  }
  for split, (most, texts) in corpora.documents(config, data_dir).items():
    bar = tqdm.tqdm(
      texts, desc=f'packing {split}', total=most, unit='doc', disable=None
    )
    meta[split] = _write_split(folder, split, bar, tokenizer)
    if not meta[split]['documents']:
      raise errors.UserError(
        f'corpus={config.corpus!r} has no {split} document that is text, with '
        f'heldout_percent={config.heldout_percent}'
      )
  meta['fingerprint'] = _hash(meta)
  (folder / _META).write_text(json.dumps(meta, indent=2) + '\n')


def _write_split(
  folder: pathlib.Path,
  split: str,
  texts: Iterable[str],
  tokenizer: tokenizers.Tokenizer,
) -> dict[str, Any]:
  """Writes a split's two arrays and returns what meta.json says of them."""
  dtype = _dtype(tokenizer.vocab_size)
  end = np.array([tokenizer.separator], dtype)
  offsets = array.array('q', [0])
  size = 0
  remaining = iter(texts)
  with open(_tokens_file(folder, split), 'wb') as out:
    while chunk := list(itertools.islice(remaining, _CHUNK)):
      size += sum(len(text.encode('utf-8')) for text in chunk)
      for tokens in tokenizer.encode(chunk):
        out.write(tokens.astype(dtype).tobytes() + end.tobytes())
        offsets.append(offsets[-1] + len(tokens) + 1)
  np.asarray(offsets, _OFFSETS).tofile(_documents_file(folder, split))
  return {
    'tokens': offsets[-1],
    'documents': len(offsets) - 1,
    'bytes': size,
    'tokens_sha256': _hash_of_file(_tokens_file(folder, split)),
    'documents_sha256': _hash_of_file(_documents_file(folder, split)),
  }


def _map(config: config_lib.DataConfig, folder: pathlib.Path) -> Corpus:
  """Maps a packed corpus, trusting nothing that it can check.

  Raises:
    _DamagedError: if a file is missing or not what meta.json says.
  """
  try:
    meta = json.loads((folder / _META).read_text())
    fingerprint = meta.pop('fingerprint')
    # It covers every size and hash below.
    if fingerprint != _hash(meta):
      raise _DamagedError(f'{_META} does not match its fingerprint')
    tokenizer_path = str(folder / _TOKENIZER) if meta['tokenizer'] else ''
    if tokenizer_path and _hash_of_file(tokenizer_path) != meta['tokenizer']:
      raise _DamagedError(f'{_TOKENIZER} has changed')
    return Corpus(
      name=config.corpus,
      fingerprint=fingerprint,
      train=_map_split(folder, 'train', meta),
      heldout=_map_split(folder, 'heldout', meta),
      vocab_size=meta['vocab_size'],
      separator=meta['separator'],
      tokenizer_path=tokenizer_path,
    )
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    raise _DamagedError(f'{type(error).__name__}: {error}') from error


def _map_split(
  folder: pathlib.Path, split: str, meta: dict[str, Any]
) -> Packed:
  sizes = meta[split]
  tokens = _map_array(
    _tokens_file(folder, split),
    _dtype(meta['vocab_size']),
    sizes['tokens'],
    sizes['tokens_sha256'],
  )
  documents = _map_array(
    _documents_file(folder, split),
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
    raise _DamagedError(
      f'{file.name} has {size} bytes, not {count * dtype.itemsize}'
    )
  if size <= _HASHED_BYTES and _hash_of_file(file) != sha256:
    raise _DamagedError(f'{file.name} has changed')
  return np.memmap(file, dtype, mode='r', shape=(count,))


def _publish(
  folder: pathlib.Path, make: Callable[[pathlib.Path], None]
) -> None:
  """Has `make` fill a folder under another name, then renames it.

  Does nothing if the folder is there.
  """
  if folder.exists():
    return
  temporary = folder.with_name(f'.{folder.name}-{uuid.uuid4().hex[:12]}')
  temporary.parent.mkdir(parents=True, exist_ok=True)
  locks = folder.parents[1] / 'locks'
  locks.mkdir(parents=True, exist_ok=True)
  with open(locks / folder.name, 'w') as lock:
    with contextlib.suppress(OSError):  # No locks here: who is first, wins.
      fcntl.flock(lock, fcntl.LOCK_EX)
    if folder.exists():
      return
    temporary.mkdir()
    try:
      make(temporary)
      try:
        temporary.rename(folder)
      except OSError:
        # A folder that is not empty cannot be replaced: another process won.
        if not folder.exists():
          raise
    finally:
      shutil.rmtree(temporary, ignore_errors=True)


def _discard(folder: pathlib.Path) -> None:
  """Removes a folder that others may be removing too."""
  doomed = folder.with_name(f'.{folder.name}-{uuid.uuid4().hex[:12]}')
  # Renamed first, so that nobody meets it half removed.
  with contextlib.suppress(FileNotFoundError):
    folder.rename(doomed)
  shutil.rmtree(doomed, ignore_errors=True)


def _dtype(vocab_size: int) -> np.dtype:
  return np.dtype('<u2' if vocab_size <= 2**16 else '<u4')


def _tokens_file(folder: pathlib.Path, split: str) -> pathlib.Path:
  return folder / f'{split}.tokens'


def _documents_file(folder: pathlib.Path, split: str) -> pathlib.Path:
  return folder / f'{split}.documents'


def _hash(*parts: Any) -> str:
  text = json.dumps(parts, sort_keys=True)
  return hashlib.sha256(text.encode('utf-8')).hexdigest()[:16]


def _hash_of_tokenizer(config: config_lib.DataConfig) -> str:
  try:
    return _hash_of_file(config.tokenizer_file)
  except OSError as error:
    raise errors.UserError(
      f'data.tokenizer={config.tokenizer_file!r}: {error.strerror}'
    ) from None


def _hash_of_file(file: str | pathlib.Path) -> str:
  with open(file, 'rb') as opened:
    return hashlib.file_digest(opened, 'sha256').hexdigest()
