"""Sources of documents: a corpus of files, or a data set of the TFDS catalogue.

Splits are decided by content. A text that occurs twice is one document, so it
cannot lie on both sides of the split. Documents of files are ordered by the hash
of their content, so that the first held-out tokens are a sample of the corpus
rather than its alphabetical start. Files without UTF-8 text are left out; a
`Survey` counts and names them.
"""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import sysconfig
from typing import TYPE_CHECKING
from typing import NamedTuple

from familial.core import errors
from familial.core import progress_bar
from familial.core import schema
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
    raise errors.UserError(
      f'data.path={path!r} is not a folder; the text may lie elsewhere now, and '
      'data.path may say where'
    )
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


# Files whose lines are JSON objects, with a document in the field `text` of each.
_RECORDS = ('.jsonl', '.ndjson')
_FIELD = 'text'
_NAMED = 5  # Files that a reason names.


class Document(NamedTuple):
  """Where the text of a document lies.

  Attributes:
    name: of its file, relative to the corpus; with its line if it is a record.
    file: its file.
    offset: of its record in the file, in bytes; None for the whole file.
    start: its first character in the text of the file or record.
    stop: the character after its last; None for the end.
  """

  name: str
  file: pathlib.Path
  offset: int | None = None
  start: int = 0
  stop: int | None = None

  def text(self) -> str:
    """Returns the text; '' if the file can no longer be read."""
    if self.offset is None:
      text = read(self.file)
    else:
      with open(self.file, 'rb') as lines:
        lines.seek(self.offset)
        text = _text_of_record(self.name, lines.readline())
    return text[self.start : self.stop]


@dataclasses.dataclass(frozen=True)
class LeftOut:
  """Files or records that are left out for one reason.

  Attributes:
    reason: why, as an adjective.
    count: number of them.
    names: names of the first ones.
  """

  reason: str
  count: int
  names: tuple[str, ...]

  def __str__(self) -> str:
    more = self.count - len(self.names)
    names = ', '.join(self.names) + (f' and {more} more' if more else '')
    return f'{self.count} {self.reason} ({names})'


@dataclasses.dataclass(frozen=True)
class Survey:
  """The files and records of a corpus.

  Attributes:
    found: number of files, or of records where a file has them.
    documents: number of texts that differ.
    left_out: those without text, by reason.
    unread: hidden files, and folders that are hidden or links.
    lowest: of the documents' numbers of 0 to 99, below which
      `heldout_percent` they are held out.
    highest: of these numbers.
  """

  found: int
  documents: int
  left_out: tuple[LeftOut, ...]
  unread: tuple[LeftOut, ...]
  lowest: int
  highest: int

  def by_position(self, heldout_percent: int) -> bool:
    """Whether a split by content would leave one part without documents."""
    return not self.lowest < heldout_percent <= self.highest

  def lines(self, heldout_percent: int) -> Iterator[str]:
    """Yields what a user should know of the corpus."""
    lost = sum(each.count for each in self.left_out)
    if lost:
      reasons = '; '.join(map(str, self.left_out))
      yield f'left out: {lost} of {self.found} files: {reasons}'
    if self.unread:
      yield f'not read: {"; ".join(map(str, self.unread))}'
    repeated = self.found - lost - self.documents
    if repeated:
      yield f'{repeated} of {self.found} files repeat the text of another one'
    if self.by_position(heldout_percent):
      yield (
        f'{self.documents} documents are too few to hold some out by their '
        f'content: the last {heldout_percent} % of the text are held out'
      )


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
    survey: of its files; None for a data set of the catalogue.
    use: prepares the splits `train` and `heldout` and calls a function of them,
      again if the prepared data turn out to be damaged.
  """

  key: str
  survey: Survey | None
  use: Callable[[Callable[[Splits], None]], None]


def open_source(config: config_lib.DataConfig) -> Source:
  """Returns the source of a configured corpus.

  Raises:
    UserError: if the corpus is unknown, missing or not prepared, or more than a
      tenth of its files would be left out; by `use`, if a split has no documents.
  """
  folder = config_lib.cache_folder(config) / 'tfds'
  if config.corpus in FILE_CORPORA:
    return _of_files(config, folder)
  return _of_catalogue(config, folder)


def _of_files(config: config_lib.DataConfig, folder: pathlib.Path) -> Source:
  """Returns a corpus of files, copied into the cache as a TFDS data set."""
  corpus, percent = config.corpus, config.heldout_percent
  files = state(corpus, config.path)
  key = cache.digest(files, percent)
  survey = _survey(config, files, folder.parent)

  def documents(entries: list[Document]) -> Iterator[tuple[str, str]]:
    for entry in progress_bar.start(entries, desc=corpus, unit='file'):
      yield entry.name, entry.text()

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

  return Source(key, survey, use)


def _survey(
  config: config_lib.DataConfig, files: str, folder: pathlib.Path
) -> Survey:
  """Returns the survey of a corpus of files, from the cache if it is there."""
  corpus, path = config.corpus, config.path

  def make(folder: pathlib.Path) -> None:
    schema.write_json(folder / 'survey.json', _surveyed(corpus, path))

  def load(folder: pathlib.Path) -> Survey:
    try:
      return schema.read_json(Survey, folder / 'survey.json')
    except (OSError, errors.UserError) as error:
      raise cache.DamagedError(str(error)) from error

  name = f'{corpus}-survey-{cache.digest(files)}'
  survey = cache.use(folder / 'surveys' / name, make, load)
  lost = sum(each.count for each in survey.left_out)
  # The corpora of Python are not the user's to mend.
  if path and 10 * lost > survey.found and not config.allow_left_out:
    reasons = '; '.join(map(str, survey.left_out))
    raise errors.UserError(
      f'data.path={path!r}: {lost} of {survey.found} files would be left out: '
      f'{reasons}; convert them to UTF-8 text or move them away, or allow it '
      'with data.allow_left_out=True'
    )
  return survey


def _surveyed(corpus: str, path: str) -> Survey:
  """Reads all files of a corpus and returns their survey."""
  texts = _texts(corpus, path)
  numbers = list(map(_number, texts.documents))
  return Survey(
    found=texts.found,
    documents=len(texts.documents),
    left_out=_reasons(texts.left_out),
    # Of what is not the user's own nobody needs to know it.
    unread=_reasons(_walk(corpus, path)[1]) if path else (),
    lowest=min(numbers, default=0),
    highest=max(numbers, default=0),
  )


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

  return Source(key, None, use)


def _stored(stored: 'tfds_storage.Dataset', split: str) -> Split:
  return Split(stored.sizes[split], functools.partial(stored.texts, split))


def listing(corpus: str, path: str) -> list[tuple[str, pathlib.Path]]:
  """Returns (name, file) of every candidate file, sorted by name.

  The name is relative to the root and does not depend on the machine. Hidden
  files and folders are left out, links to folders are not followed.
  """
  return _walk(corpus, path)[0]


def _walk(
  corpus: str, path: str
) -> tuple[list[tuple[str, pathlib.Path]], list[tuple[str, str]]]:
  """Returns (name, file) of candidate files, and (name, reason) of the unread."""
  files = FILE_CORPORA[corpus]
  skipped = {'__pycache__', *files.skipped}
  found, unread = [], []
  for root in files.roots(path):
    for folder, folders, names in os.walk(root):
      for name in [*folders, *names]:
        each = pathlib.Path(folder, name)
        if name.startswith('.'):
          unread.append((_name(root, each), 'hidden'))
        elif name in folders and each.is_symlink():
          unread.append((_name(root, each), 'linked folders'))
      folders[:] = [
        f for f in folders if f not in skipped and not f.startswith('.')
      ]
      found += [
        (_name(root, file), file)
        for file in (pathlib.Path(folder, name) for name in names)
        if file.name.endswith(files.suffix) and not file.name.startswith('.')
      ]
  return sorted(found), sorted(unread)


def state(corpus: str, path: str) -> str:
  """Returns a hash of the names, sizes and modification times of the files."""
  digest = hashlib.sha256()
  for name, file in listing(corpus, path):
    try:
      stat = file.stat()
    except OSError:
      continue
    digest.update(f'{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n'.encode())
    if _has_records(corpus, file):  # Earlier versions read it as one text.
      digest.update(b'records\n')
  return digest.hexdigest()[:16]


def index(
  corpus: str, path: str, heldout_percent: int
) -> dict[str, list[Document]]:
  """Returns the documents of `train` and `heldout`, each content once.

  Reads every file; files that are empty or hold no UTF-8 text are left out.
  Both lists are in the order of the hash of the content. Where one would be
  empty, the last part of the text in that order is held out.

  Raises:
    UserError: if there is too little text for two parts.
  """
  documents = _texts(corpus, path).documents
  splits: dict[str, list[Document]] = {'train': [], 'heldout': []}
  for digest, entry in sorted(documents.items()):
    splits[_split(digest, heldout_percent)].append(entry)
  if all(splits.values()):
    return splits
  parts = _by_position(splits['train'] + splits['heldout'], heldout_percent)
  if parts is None:
    raise errors.UserError(
      f'corpus={corpus!r}{f" with path={path!r}" if path else ""} has '
      f'{len(documents)} documents with text: too little to train on a part and '
      'hold another out'
    )
  return parts


def _by_position(
  documents: list[Document], heldout_percent: int
) -> dict[str, list[Document]] | None:
  """Returns documents whose last part is held out; None if a part is empty."""
  texts = [document.text() for document in documents]
  left = sum(map(len, texts)) * (100 - heldout_percent) // 100
  for place, (document, text) in enumerate(zip(documents, texts, strict=True)):
    if left >= len(text):
      left -= len(text)
      continue
    # At the start of a line, else of a word.
    at = text.rfind('\n', 0, left) + 1 or text.rfind(' ', 0, left) + 1 or left
    first, second = document._replace(stop=at), document._replace(start=at)
    train, heldout = documents[:place], documents[place + 1 :]
    if text[:at].strip():
      train = [*train, first]
    if text[at:].strip():
      heldout = [second, *heldout]
    break
  else:
    return None
  return {'train': train, 'heldout': heldout} if train and heldout else None


def read(file: pathlib.Path) -> str:
  """Returns the text of a file, or '' if it holds no UTF-8 text."""
  return _read(file)[0]


def _read(file: pathlib.Path) -> tuple[str, str]:
  """Returns the text of a file, and why it is left out; one of them is ''."""
  # A named pipe would block for ever, and a file can vanish or be unreadable.
  try:
    if not file.is_file():
      return '', 'no files'
    text = file.read_bytes().decode('utf-8')
  except OSError:
    return '', 'unreadable'
  except UnicodeDecodeError:
    return '', 'not UTF-8'
  # Zeros are valid UTF-8 but mean that the file is no text.
  if '\0' in text:
    return '', 'binary'
  return (text, '') if text.strip() else ('', 'empty')


def _has_records(corpus: str, file: pathlib.Path) -> bool:
  """Whether the lines of a file are JSON objects, each a document."""
  return not FILE_CORPORA[corpus].suffix and file.name.endswith(_RECORDS)


def _text_of_record(name: str, line: bytes) -> str:
  """Returns the text of a line of a file of records.

  Raises:
    UserError: if it has none.
  """
  try:
    record = json.loads(line)
  except ValueError:
    record = None
  keys = ', '.join(map(repr, record)) if isinstance(record, dict) else ''
  text = record.get(_FIELD) if isinstance(record, dict) else None
  if not isinstance(text, str):
    raise errors.UserError(
      f'{name}: is not a JSON object with a text in the field {_FIELD!r}'
      + (f', only {keys}' if keys else '')
      + '; name the field so, or end the name of the file with .txt to read it as '
      'it is'
    )
  return text


class _Texts(NamedTuple):
  """The texts of a corpus.

  Attributes:
    documents: the first document with each digest.
    found: number of files and records.
    left_out: (name, reason) of those without text.
  """

  documents: dict[bytes, Document]
  found: int
  left_out: list[tuple[str, str]]


def _texts(corpus: str, path: str) -> _Texts:
  """Reads all files of a corpus."""
  documents: dict[bytes, Document] = {}
  left_out, found = [], 0
  files = listing(corpus, path)
  for name, file in progress_bar.start(files, desc='listing', unit='file'):
    for document, text, reason in _documents(corpus, name, file):
      found += 1
      if text:
        documents.setdefault(_digest(text), document)
      else:
        left_out.append((document.name, reason))
  return _Texts(documents, found, left_out)


def _documents(
  corpus: str, name: str, file: pathlib.Path
) -> Iterator[tuple[Document, str, str]]:
  """Yields (document, text, why it is left out) of a file or of its records."""
  if not (_has_records(corpus, file) and file.is_file()):
    yield Document(name, file), *_read(file)
    return
  offset = 0
  with open(file, 'rb') as lines:
    for number, line in enumerate(lines, start=1):
      if line.strip():
        each = Document(f'{name}:{number}', file, offset)
        text = _text_of_record(each.name, line)
        blank = '' if text.strip() else 'empty'
        yield each, '' if blank else text, blank
      offset += len(line)


def _reasons(entries: list[tuple[str, str]]) -> tuple[LeftOut, ...]:
  """Returns (name, reason) by reason."""
  names: dict[str, list[str]] = {}
  for name, reason in entries:
    names.setdefault(reason, []).append(name)
  return tuple(
    LeftOut(reason, len(each), tuple(each[:_NAMED]))
    for reason, each in sorted(names.items())
  )


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
  return 'heldout' if _number(digest) < heldout_percent else 'train'


def _number(digest: bytes) -> int:
  # The last bytes, because the first ones order the documents: the split of a
  # document and its place there are then independent.
  return int.from_bytes(digest[-8:], 'big') % 100
