"""The corpora as TFDS data sets, written and read without TensorFlow.

Corpora made of files (the standard library, installed packages, a folder) have
builders here; any other name is looked up in the TFDS catalogue. All are stored
as ArrayRecord, which TFDS reads as a random-access source.
"""

import abc
from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import io
import pathlib
from typing import Any

import tensorflow_datasets as tfds
import tqdm

from familial.core import errors
from familial.data import config as config_lib
from familial.data import files

_FORMAT = 'array_record'
_HELDOUT_NAMES = ('heldout', 'validation', 'valid', 'dev', 'test')


@dataclasses.dataclass(eq=False)
class HeldOut(tfds.core.BuilderConfig):
  """How much of a corpus of files is held out."""

  percent: int = 5


class _FilesBuilder(tfds.core.GeneratorBasedBuilder):
  """Every distinct text of some folders is a document: text and path.

  Splits train and heldout, by a hash of the content, in the order of a hash of
  the content.
  """

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = tuple(
    HeldOut(name=f'heldout_{p}', percent=p) for p in config_lib.HELDOUT_PERCENTS
  )
  DEFAULT_BUILDER_CONFIG_NAME = 'heldout_5'

  def __init__(self, path: str = '', **kwargs: Any):
    self._path = path
    super().__init__(**kwargs)

  @property
  @abc.abstractmethod
  def summary(self) -> str:
    """One sentence that says what the documents are."""

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text()
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.summary,
      features=tfds.features.FeaturesDict({'text': text, 'path': text}),
      # The order is files.index's, not that of the keys.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # Nothing is downloaded.
    percent = self.builder_config.percent
    splits = files.index(self.name, self._path, percent)
    return {
      s: self._generate_examples(entries) for s, entries in splits.items()
    }

  def _generate_examples(
    self, entries: list[tuple[str, pathlib.Path]]
  ) -> Iterator[tuple[int, dict[str, str]]]:
    bar = tqdm.tqdm(entries, desc=self.name, unit='file', disable=None)
    for key, (name, file) in enumerate(bar):
      yield key, {'text': files.read(file), 'path': name}


class PythonSource(_FilesBuilder):
  """The standard library of the interpreter that runs this."""

  summary = 'Source text of a Python standard library.'


class PythonPackages(_FilesBuilder):
  """The standard library and every installed package."""

  summary = 'Source text of a Python standard library and installed packages.'


class TextFiles(_FilesBuilder):
  """A folder of the user's own text."""

  summary = "The text files of one of the user's own folders."


class UnreadableError(errors.UserError):
  """Prepared data that cannot be read back."""


def build(config: config_lib.DataConfig, data_dir: pathlib.Path) -> None:
  """Writes a corpus of files as ArrayRecord under `data_dir`."""
  builders = (PythonSource, PythonPackages, TextFiles)
  builder = next(b for b in builders if b.name == config.corpus)
  tfds.disable_progress_bar()  # The builder shows one of its own.
  # TFDS prints where it downloads to, though nothing is downloaded.
  with contextlib.redirect_stdout(io.StringIO()):
    made = builder(
      path=config.path,
      config=_heldout_name(config),
      data_dir=str(data_dir),
      file_format=_FORMAT,
    )
    try:
      made.download_and_prepare()
    except RuntimeError as error:  # ArrayRecord's, where the disk is full.
      raise OSError(_first_line(error)) from None


def documents(
  config: config_lib.DataConfig, data_dir: pathlib.Path
) -> dict[str, tuple[int, Iterator[str]]]:
  """Returns {'train' | 'heldout': (at most how many, the texts in order)}.

  A text that is held out is not in train, whatever the data set's own splits.

  Args:
    config: which corpus.
    data_dir: where TFDS data are; a catalogue's data set is also looked for in
      TFDS's own default folder.

  Raises:
    UserError: if the corpus is unknown, not prepared, or holds no text.
    UnreadableError: also while iterating, if the stored data are damaged.
  """
  name, feature = config.corpus, 'text'
  if name in files.CORPORA:
    builder = _prepared(f'{name}/{_heldout_name(config)}', data_dir)
    if not builder:
      raise UnreadableError(f'corpus={name!r} is not in {data_dir}')
  else:
    builder = catalogue(name, data_dir)
    feature = _text_feature(name, builder)
  sizes = {split: i.num_examples for split, i in builder.info.splits.items()}
  if 'train' not in sizes:
    raise errors.UserError(
      f'corpus={name!r} has no train split, only {sorted(sizes)}'
    )
  read = functools.partial(_texts, builder, feature)
  heldout = next((split for split in _HELDOUT_NAMES if split in sizes), None)
  if heldout:
    return {
      'train': (sizes['train'], files.without(read('train'), read(heldout))),
      'heldout': (sizes[heldout], read(heldout)),
    }

  def of(split: str) -> Iterator[str]:
    for text in files.distinct(read('train')):
      if files.split_of(text, config.heldout_percent) == split:
        yield text

  return {s: (sizes['train'], of(s)) for s in ('train', 'heldout')}


def catalogue(name: str, data_dir: pathlib.Path) -> tfds.core.DatasetBuilder:
  """Returns the builder of a TFDS data set that is prepared as ArrayRecord.

  Raises:
    UserError: if TFDS knows no such name, or its data are not there.
  """
  for folder in (data_dir, pathlib.Path(tfds.core.constants.DATA_DIR)):
    builder = _prepared(name, folder)
    if builder:
      stored = builder.info.file_format.value
      if stored == _FORMAT:
        return builder
      raise errors.UserError(
        f'corpus={name!r} is stored as {stored} in {builder.data_path}, only '
        f'{_FORMAT} is read: prepare it with file_format={_FORMAT!r}'
      )
  base = name.split('/')[0].split(':')[0]
  known = {
    *files.CORPORA,
    *_text_modules(),
    *tfds.list_builders(with_community_datasets=False),
  }
  if base not in known:
    raise errors.UserError(
      f'corpus={name!r} is none of {", ".join(files.CORPORA)} and no TFDS data set'
      f'{errors.nearest(base, known)}'
    )
  # Builders outside TFDS's folder of packages are known only once imported.
  module = _text_modules().get(base)
  extra = f'import {module}; ' if module else ''
  raise errors.UserError(
    f'corpus={name!r} is not prepared as ArrayRecord; do that once, some data '
    'sets in an environment with TensorFlow or Beam, with: '
    f'python -c "import tensorflow_datasets as tfds; {extra}'
    f"tfds.builder('{name}', data_dir='{data_dir}', file_format='{_FORMAT}')"
    '.download_and_prepare()"'
  )


def _heldout_name(config: config_lib.DataConfig) -> str:
  return f'heldout_{config.heldout_percent}'


def _prepared(
  name: str, data_dir: pathlib.Path
) -> tfds.core.DatasetBuilder | None:
  # From the files alone: the code of the data set, which may need TensorFlow
  # or Beam, is not imported.
  try:
    return tfds.core.read_only_builder.builder_from_files(
      name, data_dir=str(data_dir)
    )
  except tfds.core.DatasetNotFoundError:
    return None
  # A damaged file raises errors of json, protobuf or TFDS.
  except Exception as error:
    raise UnreadableError(f'corpus={name!r}: {_first_line(error)}') from error


def _text_feature(name: str, builder: tfds.core.DatasetBuilder) -> str:
  texts = [
    key
    for key, feature in builder.info.features.items()
    if isinstance(feature, tfds.features.Text)
  ]
  if not texts:
    raise errors.UserError(
      f'corpus={name!r} has no text feature, '
      f'only {", ".join(builder.info.features)}'
    )
  return 'text' if 'text' in texts else texts[0]


def _texts(
  builder: tfds.core.DatasetBuilder, feature: str, split: str
) -> Iterator[str]:
  try:
    for example in builder.as_data_source(split):
      try:
        text = example[feature].decode('utf-8')
      except UnicodeDecodeError:
        continue
      if text:
        yield text
  # What a damaged file raises depends on where it is damaged.
  except Exception as error:
    raise UnreadableError(
      f'{builder.data_path} cannot be read: {_first_line(error)}'
    ) from error


def _first_line(error: Exception) -> str:
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


@functools.cache
def _text_modules() -> dict[str, str]:
  folder = pathlib.Path(tfds.__file__).parent / 'text'
  return {
    file.stem: f'tensorflow_datasets.text.{file.stem}'
    for file in folder.glob('*.py')
    if not file.stem.startswith('_') and not file.stem.endswith('_test')
  }
