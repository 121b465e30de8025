import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

from familial.core import errors
from familial.data import config
from familial.data import corpora
from familial.data import files
from familial.data import packing


class _Notes(tfds.core.GeneratorBasedBuilder):
  """What a user could have: a data set that this project knows nothing of."""

  VERSION = tfds.core.Version('1.0.0')
  splits = ('train', 'validation')
  features = tfds.features.FeaturesDict(
    {'title': tfds.features.Text(), 'text': tfds.features.Text()}
  )

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=self.features)

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split) for split in self.splits}

  def _generate_examples(self, split):
    for i in range(50):
      text = f'{split} note {i // 2}'
      yield i, {k: text if k != 'title' else 'no' for k in self.features}


class NotesTwoSplits(_Notes):
  pass


class NotesOverlap(NotesTwoSplits):
  def _generate_examples(self, split):
    for i in range(50):
      shared = i % 5 == 0
      yield i, {k: f'{"both" if shared else split} {i}' for k in self.features}


class NotesOneSplit(_Notes):
  splits = ('train',)


class NotesNoTrain(_Notes):
  splits = ('test',)


class NotesNumbers(_Notes):
  features = tfds.features.FeaturesDict(
    {'number': tfds.features.Scalar(dtype=np.int64)}
  )

  def _generate_examples(self, split):
    for i in range(50):
      yield i, {'number': i}


def _prepare(builder, data_dir):
  builder(
    data_dir=str(data_dir), file_format='array_record'
  ).download_and_prepare()


def _settings(tmp_path, corpus, **more):
  return config.DataConfig(
    corpus=corpus, cache_dir=str(tmp_path), heldout_percent=30, **more
  )


def _read(tmp_path, corpus):
  found = corpora.documents(_settings(tmp_path, corpus), tmp_path / 'tfds')
  return {split: list(texts) for split, (_, texts) in found.items()}


def test_a_prepared_data_set_is_read_by_its_own_splits(tmp_path):
  _prepare(NotesTwoSplits, tmp_path / 'tfds')
  read = _read(tmp_path, 'notes_two_splits')
  assert {split: len(texts) for split, texts in read.items()} == {
    'train': 50,
    'heldout': 50,
  }
  assert all(t.startswith('train note') for t in read['train'])
  assert all(t.startswith('validation note') for t in read['heldout'])


def test_what_a_data_set_holds_out_too_is_not_trained_on(tmp_path):
  _prepare(NotesOverlap, tmp_path / 'tfds')
  read = _read(tmp_path, 'notes_overlap')
  assert len(read['heldout']) == 50 and 'both 0' in read['heldout']
  assert sorted(read['train']) == sorted(
    f'train {i}' for i in range(50) if i % 5
  )


def test_a_data_set_of_one_split_is_split_by_content(tmp_path):
  _prepare(NotesOneSplit, tmp_path / 'tfds')
  read = _read(tmp_path, 'notes_one_split')
  assert len(read['train']) + len(read['heldout']) == 25
  assert not set(read['train']) & set(read['heldout'])
  assert {files.split_of(t, 30) for t in read['heldout']} == {'heldout'}
  corpus = packing.load(_settings(tmp_path, 'notes_one_split'))
  assert len(corpus.heldout.documents) == len(read['heldout']) + 1


def test_tfds_own_folder_is_searched_too(tmp_path, monkeypatch):
  _prepare(NotesTwoSplits, tmp_path / 'own')
  own = str(tmp_path / 'own')
  monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', own)
  assert len(_read(tmp_path, 'notes_two_splits')['train']) == 50


@pytest.mark.parametrize(
  ('builder', 'said'),
  [
    (NotesNoTrain, "no train split, only ['test']"),
    (NotesNumbers, 'no text feature, only number'),
  ],
)
def test_a_data_set_that_cannot_serve_is_said(tmp_path, builder, said):
  _prepare(builder, tmp_path / 'tfds')
  with pytest.raises(errors.UserError) as raised:
    packing.load(_settings(tmp_path, builder.name))
  assert said in str(raised.value)


def test_another_file_format_is_told_to_be_prepared_again(tmp_path):
  _prepare(NotesTwoSplits, tmp_path / 'tfds')
  # Other formats cannot be written here without TensorFlow.
  [info] = tmp_path.rglob('dataset_info.json')
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(errors.UserError, match=r'tfrecord.*array_record'):
    packing.load(_settings(tmp_path, 'notes_two_splits'))


@pytest.mark.parametrize(
  ('name', 'module'), [('c4/en', 'text.c4'), ('mnist', '')]
)
def test_how_to_prepare_is_told(tmp_path, name, module):
  with pytest.raises(errors.UserError) as raised:
    packing.load(_settings(tmp_path, name))
  message = str(raised.value)
  assert '\n' not in message
  assert f"tfds.builder('{name}', data_dir='{tmp_path}/tfds'" in message
  assert ('import tensorflow_datasets.' in message) == bool(module)
  assert module in message


@pytest.mark.parametrize(
  ('name', 'nearest'),
  [('python_sorce', 'python_source'), ('wikkipedia', 'wikipedia')],
)
def test_an_unknown_corpus_is_answered_with_the_nearest(
  tmp_path, name, nearest
):
  with pytest.raises(errors.UserError) as raised:
    packing.load(_settings(tmp_path, name))
  assert f"'{name}'" in str(raised.value)
  assert f"did you mean '{nearest}'?" in str(raised.value)
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize('name', ['a b', '../etc', '/', 'c4/en:x'])
def test_a_name_that_is_none_is_said_in_one_line(tmp_path, name):
  with pytest.raises(errors.UserError) as raised:
    packing.load(_settings(tmp_path, name))
  assert '\n' not in str(raised.value)


def test_builders_write_array_record_with_text_and_path(tmp_path, capsys):
  folder = tmp_path / 'text'
  folder.mkdir()
  for i in range(40):
    (folder / f'{i}.txt').write_text(f'text {i}')
  settings = _settings(tmp_path, 'text_files', path=str(folder))
  corpora.build(settings, tmp_path / 'tfds')
  [directory] = pathlib.Path(tmp_path, 'tfds').glob('text_files/*/1.0.0')
  builder = tfds.builder_from_directory(str(directory))
  examples = [
    e for s in ('train', 'heldout') for e in builder.as_data_source(s)
  ]
  stored = {e['path'].decode(): e['text'].decode() for e in examples}
  assert stored == {f'{i}.txt': f'text {i}' for i in range(40)}
  assert capsys.readouterr().out == ''
