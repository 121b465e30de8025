"""What a run is trained on: the data room's configuration."""

import dataclasses
import os
import pathlib

from familial.core import errors

TOKENIZERS = ('bytes', 'bpe')
HELDOUT_PERCENTS = range(1, 51)


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """A corpus, its tokenizer and how windows are cut from it.

  Attributes:
    corpus: python_source, python_packages, text_files, or the name of a TFDS
      data set with a text feature, such as lm1b or c4/en.
    path: text_files: the folder that is read, with its subfolders.
    cache_dir: where prepared data live; '' stands for $FAMILIAL_CACHE, and
      ~/.cache/familial where that is unset.
    tokenizer: bytes, bpe (byte-level, trained on the train split), or a file,
      FOLDER/tokenizer.json: that of a run, an export or an import.
    vocab_size: tokens of the vocabulary, the separator included; bytes: 256.
    seq_len: tokens a window, L.
    document_mask: attention and loss do not cross documents.
    heldout_percent: share of the documents held out, by a hash of their
      content; used where the corpus has no held-out split of its own.

  Raises:
    UserError: at construction, if a value is not allowed.
  """

  corpus: str = 'python_source'
  path: str = ''
  cache_dir: str = ''
  tokenizer: str = 'bytes'
  vocab_size: int = 256
  seq_len: int = 128
  document_mask: bool = False
  heldout_percent: int = 5

  def __post_init__(self) -> None:
    if not self.corpus:
      raise errors.UserError(
        "data.corpus='' names no corpus, try 'python_source'"
      )
    if self.corpus == 'text_files' and not self.path:
      raise errors.UserError(
        "data.path='' with corpus='text_files': name the folder of text to read"
      )
    if self.corpus != 'text_files' and self.path:
      raise errors.UserError(
        f"data.path={self.path!r} is only read with corpus='text_files', "
        f'not with corpus={self.corpus!r}'
      )
    if self.tokenizer not in TOKENIZERS and not self.tokenizer_file:
      raise errors.UserError(
        f'data.tokenizer={self.tokenizer!r} is not one of '
        f'{", ".join(TOKENIZERS)}, or a file that ends in .json'
        f'{errors.nearest(self.tokenizer, TOKENIZERS)}'
      )
    if self.tokenizer == 'bytes' and self.vocab_size != 256:
      raise errors.UserError(
        f"data.vocab_size={self.vocab_size} with tokenizer='bytes': it is 256"
      )
    if self.tokenizer == 'bpe' and self.vocab_size < 257:
      raise errors.UserError(
        f"data.vocab_size={self.vocab_size} with tokenizer='bpe': it is at least "
        '257, for 256 bytes and the separator'
      )
    if self.seq_len < 1:
      raise errors.UserError(f'data.seq_len={self.seq_len} is not at least 1')
    if self.heldout_percent not in HELDOUT_PERCENTS:
      raise errors.UserError(
        f'data.heldout_percent={self.heldout_percent} is not within 1 to 50'
      )

  @property
  def tokenizer_file(self) -> str:
    """The file that holds the tokenizer; '' where there is none yet."""
    return self.tokenizer if self.tokenizer.endswith('.json') else ''


def cache_folder(config: DataConfig) -> pathlib.Path:
  """Returns the folder of prepared data: the key, the environment, or home."""
  chosen = config.cache_dir or os.environ.get('FAMILIAL_CACHE', '')
  folder = chosen or '~/.cache/familial'
  return pathlib.Path(folder).expanduser().absolute()
