"""Which files a corpus of files consists of, and which of them are held out.

Everything is decided by content: a text that occurs twice is one document, so
it cannot lie on both sides of the split, and documents are ordered by the hash
of their content, so that the first held-out tokens are a sample of the corpus
rather than its alphabetical start.
"""

from collections.abc import Iterator
import hashlib
import os
import pathlib
import sysconfig

import tqdm

from familial.core import errors

# Corpora that are made of files, and so need no catalogue.
CORPORA = ('python_source', 'python_packages', 'text_files')

_NEVER = frozenset({'__pycache__'})
# Installed packages may live inside the standard library's own folder.
_NOT_STDLIB = frozenset({'site-packages', 'dist-packages'})


def roots(corpus: str, path: str) -> list[pathlib.Path]:
  """Returns the folders that one of CORPORA is read from.

  Raises:
    UserError: if one is missing.
  """
  if corpus == 'text_files':
    folder = pathlib.Path(path).expanduser()
    if not folder.is_dir():
      raise errors.UserError(f'path={path!r} is not a folder')
    return [folder]
  stdlib = pathlib.Path(sysconfig.get_path('stdlib'))
  if not stdlib.is_dir():
    raise errors.UserError(
      f'corpus={corpus!r}: this interpreter has no source folder {stdlib}'
    )
  if corpus == 'python_source':
    return [stdlib]
  packages = {sysconfig.get_path('purelib'), sysconfig.get_path('platlib')}
  return [stdlib, *(pathlib.Path(p) for p in sorted(packages))]


def listing(corpus: str, path: str) -> list[tuple[str, pathlib.Path]]:
  """Returns (name, file) of every candidate, sorted by name.

  The name is relative to the root and does not depend on the machine. Hidden
  files and folders are left out, links to folders are not followed.
  """
  python = corpus != 'text_files'
  skipped = _NEVER | _NOT_STDLIB if python else _NEVER
  suffix = '.py' if python else ''
  found = []
  for root in roots(corpus, path):
    for folder, folders, names in os.walk(root):
      folders[:] = [
        f for f in folders if f not in skipped and not f.startswith('.')
      ]
      found += [
        (root, pathlib.Path(folder, name))
        for name in names
        if name.endswith(suffix) and not name.startswith('.')
      ]
  return sorted((_name(root, file), file) for root, file in found)


def state(corpus: str, path: str) -> str:
  """Returns a hash of names, sizes and times: what a cache is made from."""
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
  """Returns the text of a file, or '' if it has no UTF-8 text to give."""
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
  """Yields every text the first time its content is met."""
  seen: set[bytes] = set()
  for text in texts:
    digest = _digest(text)
    if digest not in seen:
      seen.add(digest)
      yield text


def without(texts: Iterator[str], others: Iterator[str]) -> Iterator[str]:
  """Yields the texts whose content is that of none of the others."""
  left_out = set(map(_digest, others))
  for text in texts:
    if _digest(text) not in left_out:
      yield text


def _name(root: pathlib.Path, file: pathlib.Path) -> str:
  # A file's name need not be UTF-8, but what is stored of it must be.
  name = os.fsencode(file.relative_to(root).as_posix())
  return name.decode('utf-8', errors='replace')


def _digest(text: str) -> bytes:
  return hashlib.sha256(text.encode('utf-8')).digest()


def _split(digest: bytes, heldout_percent: int) -> str:
  # The last bytes, since the first ones order the documents: which split a
  # document is in and where it stands there are then independent.
  number = int.from_bytes(digest[-8:], 'big')
  return 'heldout' if number % 100 < heldout_percent else 'train'
