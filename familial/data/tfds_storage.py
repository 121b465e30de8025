"""Documents in TFDS data sets, written and read without TensorFlow.

Data sets are stored as ArrayRecord, which TFDS reads as a random-access source.
"""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import functools
import io
import pathlib
from typing import Any

import tensorflow_datasets as tfds

from familial.core import errors
from familial.core import progress_bar
from familial.data import cache
from familial.data import config as config_lib

_FORMAT = 'array_record'


class Dataset:
  """A prepared data set.

  Attributes:
    full_name: name, config and version.
    sizes: number of examples of each split.
  """

  def __init__(self, builder: tfds.core.DatasetBuilder):
    self.full_name: str = builder.info.full_name
    self.sizes: dict[str, int] = {
      name: split.num_examples for name, split in builder.info.splits.items()
    }
    self._builder = builder
    self._reported: set[str] = (
      set()
    )  # splits whose texts that are left out were said

  def texts(self, split: str) -> Iterator[str]:
    """Yields the documents of a split in order, except empty ones.

    Texts that are not UTF-8 are left out, and counted on stderr at the end.

    Raises:
      UserError: if the data set has no text feature, or more than a tenth of its
        texts are not UTF-8.
      DamagedError: if the stored data cannot be read.
    """
    feature = self._text_feature()
    lost = 0
    try:
      for example in self._builder.as_data_source(split):
        try:
          text = example[feature].decode('utf-8')
        except UnicodeDecodeError:
          lost += 1
          continue
        if text:
          yield text
    # The type of the error depends on where the file is damaged.
    except Exception as error:
      raise cache.DamagedError(
        f'{self._builder.data_path} cannot be read: {_first_line(error)}'
      ) from error
    count = (
      f'{lost} of {self.sizes[split]} texts of {self.full_name}, split {split}'
    )
    if 10 * lost > self.sizes[split]:
      raise errors.UserError(
        f'{count}, are not UTF-8: prepare them as UTF-8 text'
      )
    if lost and split not in self._reported:
      self._reported.add(split)
      progress_bar.say(f'left out: {count}, that are not UTF-8')

  def _text_feature(self) -> str:
    features = self._builder.info.features
    names = [
      name
      for name, feature in features.items()
      if isinstance(feature, tfds.features.Text)
    ]
    if not names:
      raise errors.UserError(
        f'corpus={self._builder.name!r} has no text feature, '
        f'only {", ".join(features)}'
      )
    return 'text' if 'text' in names else names[0]


def write(
  corpus: str,
  description: str,
  heldout_percent: int,
  splits: Mapping[str, Iterable[tuple[str, str]]],
  data_dir: pathlib.Path,
) -> None:
  """Writes a corpus of files under `data_dir`.

  Args:
    corpus: name of the data set.
    description: what it holds.
    heldout_percent: part of the data set's name.
    splits: (path, text) of the documents of each split, in order.
    data_dir: folder of TFDS data.
  """
  tfds.disable_progress_bar()  # The documents come with one.
  # TFDS prints where it downloads to, though nothing is downloaded.
  with contextlib.redirect_stdout(io.StringIO()):
    prepared = _FilesBuilder(
      corpus,
      description,
      splits,
      config=_config(heldout_percent),
      data_dir=str(data_dir),
      file_format=_FORMAT,
    )
    try:
      prepared.download_and_prepare()
    except RuntimeError as error:  # ArrayRecord's, where the disk is full.
      raise OSError(_first_line(error)) from None


def read(corpus: str, heldout_percent: int, data_dir: pathlib.Path) -> Dataset:
  """Returns the dataset that `write` stored.

  Raises:
    DamagedError: if it is missing or cannot be read.
  """
  builder = _prepared(f'{corpus}/{_config(heldout_percent)}', data_dir)
  if not builder or set(builder.info.splits) != {'train', 'heldout'}:
    raise cache.DamagedError(f'corpus={corpus!r} is not in {data_dir}')
  return Dataset(builder)


def catalogue(
  name: str, data_dir: pathlib.Path, file_corpora: Collection[str]
) -> Dataset:
  """Returns a TFDS data set that was prepared as ArrayRecord.

  Args:
    name: name in the catalogue, with a config and a version if wanted.
    data_dir: searched first; then TFDS's own default folder.
    file_corpora: names of the corpora of files, for the error's text.

  Raises:
    UserError: if TFDS knows no such name, or its data are missing or damaged.
  """
  for folder in (data_dir, pathlib.Path(tfds.core.constants.DATA_DIR)):
    builder = _prepared(name, folder)
    if builder:
      stored = builder.info.file_format.value
      if stored == _FORMAT:
        return Dataset(builder)
      raise errors.UserError(
        f'corpus={name!r} is stored as {stored} in {builder.data_path}, only '
        f'{_FORMAT} is read: prepare it with file_format={_FORMAT!r}'
      )
  base = name.split('/')[0].split(':')[0]
  known = {
    *file_corpora,
    *_text_modules(),
    *tfds.list_builders(with_community_datasets=False),
  }
  if base not in known:
    raise errors.UserError(
      f'corpus={name!r} is none of {", ".join(file_corpora)} and no TFDS data '
      f'set{errors.nearest(base, known)}'
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


def _config(heldout_percent: int) -> str:
  return f'heldout_{heldout_percent}'


class _FilesBuilder(tfds.core.GeneratorBasedBuilder):
  """Documents with their text and path."""

  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = tuple(
    tfds.core.BuilderConfig(name=_config(percent))
    for percent in config_lib.HELDOUT_PERCENTS
  )
  DEFAULT_BUILDER_CONFIG_NAME = 'heldout_5'

  def __init__(
    self,
    name: str,
    description: str,
    splits: Mapping[str, Iterable[tuple[str, str]]],
    **kwargs: Any,
  ):
    self.name, self._description, self._splits = name, description, splits
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text()
    return tfds.core.DatasetInfo(
      builder=self,
      description=self._description,
      features=tfds.features.FeaturesDict({'text': text, 'path': text}),
      # The order is that of the documents, not of the keys.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # Nothing is downloaded.
    return {
      name: self._generate_examples(documents)
      for name, documents in self._splits.items()
    }

  def _generate_examples(
    self, documents: Iterable[tuple[str, str]]
  ) -> Iterator[tuple[int, dict[str, str]]]:
    for key, (path, text) in enumerate(documents):
      yield key, {'text': text, 'path': path}


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
    raise cache.DamagedError(
      f'corpus={name!r}: {_first_line(error)}'
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
