"""Sources of documents: a corpus of files, or a data set of the TFDS catalogue.

Splits are decided by content. A text that occurs twice is one document, so it
cannot lie on both sides of the split. Documents of files are ordered by the hash
of their content, so that the first held-out tokens are a sample of the corpus
rather than its alphabetical start.
"""

from collections.abc import Callable
from collections.abc import Iterator
import functools
import hashlib
import os
import pathlib
import sysconfig
from typing import TYPE_CHECKING
from typing import NamedTuple

import tqdm

from familial.core import errors
from familial.data import cache
from familial.data import config as config_lib

if TYPE_CHECKING:
  from familial.data import tfds_storage

_HELDOUT_NAMES = ('heldout', 'validation', 'valid', 'dev', 'test')


class Files(NamedTuple):
  """A corpus of files on this machine.

  Attributes:
    roots: returns the folders that are read, given the config's `path`; raises a
      UserError if one is missing.
    suffix: of the names of its files.
    description: of the data set that the cache stores.
    skipped: names of folders that are left out.
  """

  roots: Callable[[str], list[pathlib.Path]]
  suffix: str
  description: str
  skipped: frozenset[str] = frozenset()


def _stdlib(path: str = '') -> list[pathlib.Path]:
  del path
  folder = pathlib.Path(sysconfig.get_path('stdlib'))
  if not folder.is_dir():
    raise errors.UserError(
      "corpus='python_source' or 'python_packages': this interpreter has no "
      f'source folder {folder}'
    )
  return [folder]


def _packages(path: str) -> list[pathlib.Path]:
  del path
  packages = {sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}
  return [*_stdlib(), *map(pathlib.Path, sorted(packages))]


def _folder(path: str) -> list[pathlib.Path]:
  folder = pathlib.Path(path).expanduser()
  if not folder.is_dir():
    raise errors.UserError(f'path={path!r} is not a folder')
  return [folder]


# Installed packages may live inside the standard library's own folder.
_INSTALLED = frozenset({'site-packages', 'dist-packages'})
# The corpora of files: a new one is a line here.
FILE_CORPORA = {
  'python_source': Files(
    _stdlib, '.py', 'Source text of a Python standard library.', _INSTALLED
  ),
  'python_packages': Files(
    _packages,
    '.py',
    'Source text of a Python standard library and installed packages.',
    _INSTALLED,
  ),
  'text_files': Files(
    _folder, '', "The text files of one of the user's own folders."
  ),
}


class Split(NamedTuple):
  """The documents of `train` or `heldout`.

  Attributes:
    most: an upper bound on their number.
    texts: yields them in order; it may be called again.
  """

  most: int
  texts: Callable[[], Iterator[str]]


Splits = dict[str, Split]


class Source(NamedTuple):
  """Where documents come from.

  Attributes:
    key: changes whenever the documents may have changed.
    use: prepares the splits `train` and `heldout` and calls a function of them,
      again if the prepared data turn out to be damaged.
  """

  key: str
  use: Callable[[Callable[[Splits], None]], None]


def open_source(config: config_lib.DataConfig) -> Source:
  """Returns the source of a configured corpus.

  Raises:
    UserError: if the corpus is unknown, missing or not prepared; by `use`, if a
      split has no documents.
  """
  folder = config_lib.cache_folder(config) / 'tfds'
  if config.corpus in FILE_CORPORA:
    return _of_files(config, folder)
  return _of_catalogue(config, folder)


def _of_files(config: config_lib.DataConfig, folder: pathlib.Path) -> Source:
  """Returns a corpus of files, copied into the cache as a TFDS data set."""
  corpus, percent = config.corpus, config.heldout_percent
  key = cache.digest(state(corpus, config.path), percent)

  def documents(
    entries: list[tuple[str, pathlib.Path]],
  ) -> Iterator[tuple[str, str]]:
    for name, file in tqdm.tqdm(
      entries, desc=corpus, unit='file', disable=None
    ):
      yield name, read(file)

  def use(consume: Callable[[Splits], None]) -> None:
    # Slow to import, and not needed for files that are packed already.
    from familial.data import tfds_storage

    def make(folder: pathlib.Path) -> None:
      entries = index(corpus, config.path, percent)
      splits = {split: documents(files) for split, files in entries.items()}
      about = FILE_CORPORA[corpus].description
      tfds_storage.write(corpus, about, percent, splits, folder)

    def pass_on(folder: pathlib.Path) -> None:
      stored = tfds_storage.read(corpus, percent, folder)
      consume({split: _stored(stored, split) for split in ('train', 'heldout')})

    cache.use(folder / f'{corpus}-{key}', make, pass_on)

  return Source(key, use)


def _of_catalogue(
  config: config_lib.DataConfig, folder: pathlib.Path
) -> Source:
  """Returns a TFDS data set that the user has prepared.

  A text that is held out is not in train, whatever the data set's splits.
  """
  from familial.data import tfds_storage

  corpus = config.corpus
  stored = tfds_storage.catalogue(corpus, folder, FILE_CORPORA)
  # 'disjoint': packed data of earlier versions, whose train split could hold
  # held-out texts, are not used.
  key = cache.digest(stored.full_name, stored.sizes, 'disjoint')

  def of(split: str) -> Iterator[str]:
    for text in distinct(stored.texts('train')):
      if split_of(text, config.heldout_percent) == split:
        yield text

  def use(consume: Callable[[Splits], None]) -> None:
    if 'train' not in stored.sizes:
      raise errors.UserError(
        f'corpus={corpus!r} has no train split, only {sorted(stored.sizes)}'
      )
    train = _stored(stored, 'train')
    name = next((name for name in _HELDOUT_NAMES if name in stored.sizes), '')
    if name:
      heldout = _stored(stored, name)
      train = Split(
        train.most, lambda: without(stored.texts('train'), heldout.texts())
      )
    else:
      heldout = Split(train.most, lambda: of('heldout'))
      train = Split(train.most, lambda: of('train'))
    consume({'train': train, 'heldout': heldout})

  return Source(key, use)


def _stored(stored: 'tfds_storage.Dataset', split: str) -> Split:
  return Split(stored.sizes[split], functools.partial(stored.texts, split))


def listing(corpus: str, path: str) -> list[tuple[str, pathlib.Path]]:
  """Returns (name, file) of every candidate file, sorted by name.

  The name is relative to the root and does not depend on the machine. Hidden
  files and folders are left out, links to folders are not followed.
  """
  files = FILE_CORPORA[corpus]
  skipped = {'__pycache__', *files.skipped}
  found = []
  for root in files.roots(path):
    for folder, folders, names in os.walk(root):
      folders[:] = [
        f for f in folders if f not in skipped and not f.startswith('.')
      ]
      found += [
        (root, pathlib.Path(folder, name))
        for name in names
        if name.endswith(files.suffix) and not name.startswith('.')
      ]
  return sorted((_name(root, file), file) for root, file in found)


def state(corpus: str, path: str) -> str:
  """Returns a hash of the names, sizes and modification times of the files."""
  digest = hashlib.sha256()
  for name, file in listing(corpus, path):
    try:
      stat = file.stat()
    except OSError:
      continue
    digest.update(f'{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n'.encode())
  return digest.hexdigest()[:16]


def index(
  corpus: str, path: str, heldout_percent: int
) -> dict[str, list[tuple[str, pathlib.Path]]]:
  """Returns {'train' | 'heldout': [(name, file)]}, each content once.

  Reads every file; files that are empty or hold no UTF-8 text are left out.
  Both lists are in the order of the hash of the content.

  Raises:
    UserError: if one of them is empty.
  """
  first_with: dict[bytes, tuple[str, pathlib.Path]] = {}
  for name, file in tqdm.tqdm(
    listing(corpus, path), desc='listing', unit='file', disable=None
  ):
    text = read(file)
    if text:
      first_with.setdefault(_digest(text), (name, file))
  splits: dict[str, list[tuple[str, pathlib.Path]]] = {
    'train': [],
    'heldout': [],
  }
  for digest, entry in sorted(first_with.items()):
    splits[_split(digest, heldout_percent)].append(entry)
  for split, entries in splits.items():
    if not entries:
      raise errors.UserError(
        f'heldout_percent={heldout_percent} leaves no {split} document: '
        f'corpus={corpus!r}{f" with path={path!r}" if path else ""} has only '
        f'{len(first_with)}'
      )
  return splits


def read(file: pathlib.Path) -> str:
  """Returns the text of a file, or '' if it holds no UTF-8 text."""
  # A named pipe would block for ever, and a file can vanish or be unreadable.
  try:
    text = file.read_bytes().decode('utf-8') if file.is_file() else ''
  except (OSError, UnicodeDecodeError):
    return ''
  # Zeros are valid UTF-8 but mean that the file is no text.
  return '' if '\0' in text or not text.strip() else text


def split_of(text: str, heldout_percent: int) -> str:
  """Returns 'heldout' or 'train' for a text, by its content alone."""
  return _split(_digest(text), heldout_percent)


def distinct(texts: Iterator[str]) -> Iterator[str]:
  """Yields every text the first time its content occurs."""
  seen: set[bytes] = set()
  for text in texts:
    digest = _digest(text)
    if digest not in seen:
      seen.add(digest)
      yield text


def without(texts: Iterator[str], others: Iterator[str]) -> Iterator[str]:
  """Yields the texts whose content equals none of the others'."""
  left_out = set(map(_digest, others))
  for text in texts:
    if _digest(text) not in left_out:
      yield text


def _name(root: pathlib.Path, file: pathlib.Path) -> str:
  # The name of a file need not be UTF-8, but what is stored of it must be.
  name = os.fsencode(file.relative_to(root).as_posix())
  return name.decode('utf-8', errors='replace')


def _digest(text: str) -> bytes:
  return hashlib.sha256(text.encode('utf-8')).digest()


def _split(digest: bytes, heldout_percent: int) -> str:
  # The last bytes, because the first ones order the documents: the split of a
  # document and its place there are then independent.
  number = int.from_bytes(digest[-8:], 'big')
  return 'heldout' if number % 100 < heldout_percent else 'train'
