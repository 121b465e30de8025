"""Corpus, tokenizer and windows that a run is trained on."""

import dataclasses
import functools
import os
import pathlib
import sys
import tempfile
from typing import Annotated

from familial.core import errors
from familial.core import schema
from familial.core import storage

TOKENIZERS = ('bytes', 'bpe')
HELDOUT_PERCENTS = range(1, 51)

_Corpus = Annotated[
  str, schema.Bound(bool, "the name of a corpus, such as 'python_source'")
]
_Tokenizer = Annotated[
  str,
  schema.Bound(
    lambda name: name in TOKENIZERS or name.endswith('.json'),
    'bytes, bpe, or a file that ends in .json',
    TOKENIZERS,
  ),
]
_Percent = Annotated[
  int, schema.within(HELDOUT_PERCENTS[0], HELDOUT_PERCENTS[-1])
]


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """A corpus, its tokenizer and how windows are cut from it.

  Attributes:
    corpus: `python_source`, `python_packages`, `text_files`, or the name of a
      TFDS data set with a text feature, such as `lm1b` or `c4/en`.
    path: folder of text for `text_files`, read with its subfolders; a file
      *.jsonl or *.ndjson holds a document in the field `text` of each line.
    cache_dir: folder of prepared data; '' for $FAMILIAL_CACHE, or
      ~/.cache/familial where that is unset.
    tokenizer: `bytes`, `bpe` (byte-level, trained on the train split), or a file:
      FOLDER/tokenizer.json of a run, an export or an import, or any BPE of the
      `tokenizers` library that is byte-level or has byte fallback.
    separator: name of the token that ends a document, of a tokenizer's file that is
      from elsewhere; '' for the file's own.
    vocab_size: number of tokens in the vocabulary, including the separator; 256
      for `bytes`.
    seq_len: L, window length in tokens.
    document_mask: whether attention and loss stop at document boundaries.
    heldout_percent: percentage of documents held out, chosen by a hash of their
      content; used where the corpus has no held-out split. Where too few
      documents leave none, the last part of the text is held out.
    allow_left_out: whether more than a tenth of the files of `path` may be left
      out because they hold no UTF-8 text.

  Raises:
    UserError: at construction, if a value is not allowed.
  """

  corpus: _Corpus = 'python_source'
  path: str = ''
  cache_dir: str = ''
  tokenizer: _Tokenizer = 'bytes'
  separator: str = ''
  vocab_size: schema.Count = 256
  seq_len: schema.Count = 128
  document_mask: bool = False
  heldout_percent: _Percent = 5
  allow_left_out: bool = False

  def __post_init__(self) -> None:
    schema.check(self, 'data')
    if self.corpus == 'text_files':
      allowed = "the folder of text for corpus 'text_files'"
      errors.require(bool(self.path), 'data.path', self.path, allowed)
    else:
      allowed = f"'' for corpus {self.corpus!r}; only 'text_files' reads a path"
      errors.require(not self.path, 'data.path', self.path, allowed)
    if self.separator and not self.tokenizer_file:
      allowed = f"'' for tokenizer {self.tokenizer!r}; only a file has names"
      errors.require(False, 'data.separator', self.separator, allowed)
    if self.tokenizer == 'bytes':
      right, allowed = self.vocab_size == 256, "256 for tokenizer 'bytes'"
    elif self.tokenizer == 'bpe':
      right = self.vocab_size >= 257
      allowed = "at least 257 for tokenizer 'bpe': 256 bytes and the separator"
    else:
      return
    errors.require(right, 'data.vocab_size', self.vocab_size, allowed)

  @property
  def tokenizer_file(self) -> str:
    """The file that holds the tokenizer; '' where there is none yet."""
    return self.tokenizer if self.tokenizer.endswith('.json') else ''


def cache_folder(config: DataConfig) -> pathlib.Path:
  """Returns the folder of prepared data: the key, the environment, or home.

  Where nothing can be written to home, it is a folder of this user's among the
  temporary files.
  """
  chosen = config.cache_dir or os.environ.get('FAMILIAL_CACHE', '')
  if chosen:
    return pathlib.Path(chosen).expanduser().absolute()
  try:
    folder = pathlib.Path('~/.cache/familial').expanduser().absolute()
    storage.check_writable(folder)
    return folder
  except (errors.UserError, RuntimeError) as error:  # Or there is no home.
    return _temporary(str(error))


@functools.cache
def _temporary(why: str) -> pathlib.Path:
  """Returns the folder in place of home's; says so once."""
  folder = pathlib.Path(tempfile.gettempdir()) / f'familial-{os.getuid()}'
  with storage.writing(folder):
    folder.mkdir(mode=0o700, exist_ok=True)
  # A folder that others may write is no place for programs and text.
  stat = folder.lstat()
  if stat.st_uid != os.getuid() or stat.st_mode & 0o022 or folder.is_symlink():
    raise errors.UserError(
      f'{folder}: belongs to another user; set data.cache_dir or $FAMILIAL_CACHE'
    )
  print(
    f'familial: {why.partition(";")[0]}; prepared data are kept in {folder}, or '
    'where data.cache_dir or $FAMILIAL_CACHE says',
    file=sys.stderr,
  )
  return folder
