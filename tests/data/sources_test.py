import json
import os
import pathlib
import sysconfig

import numpy as np
import pytest
import tensorflow_datasets as tfds

from familial.core import errors
from familial.data import config
from familial.data import packing
from familial.data import sources
from familial.data import tokenizers


class Notes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A data set that a user prepared; every text occurs twice."""

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


class Overlap(Notes, skip_registration=True):
  def _generate_examples(self, split):
    for i in range(50):
      shared = i % 5 == 0
      yield i, {k: f'{"both" if shared else split} {i}' for k in self.features}


class OneSplit(Notes, skip_registration=True):
  splits = ('train',)


class NoTrain(Notes, skip_registration=True):
  splits = ('test',)


class Numbers(Notes, skip_registration=True):
  features = tfds.features.FeaturesDict(
    {'number': tfds.features.Scalar(dtype=np.int64)}
  )

  def _generate_examples(self, split):
    for i in range(50):
      yield i, {'number': i}


class OtherEncodings(Notes, skip_registration=True):
  """Some of its texts are not UTF-8: each of so many."""

  each = 25
  features = tfds.features.FeaturesDict(
    {'title': tfds.features.Text(), 'text': tfds.features.Text()}
  )

  def _generate_examples(self, split):
    for i in range(50):
      text = f'{split} {i} \u00e9'
      yield (
        i,
        {
          'title': '',
          'text': text.encode('latin-1') if i % self.each == 0 else text,
        },
      )


class MostlyOther(OtherEncodings, skip_registration=True):
  each = 2


def _prepare(builder, data_dir):
  builder(
    data_dir=str(data_dir), file_format='array_record'
  ).download_and_prepare()


def _config(tmp_path, corpus, **changes):
  return config.DataConfig(
    corpus=corpus, cache_dir=str(tmp_path), heldout_percent=30, **changes
  )


def _read(tmp_path, corpus):
  texts = {}
  sources.open_source(_config(tmp_path, corpus)).use(
    lambda splits: texts.update(
      {name: list(split.texts()) for name, split in splits.items()}
    )
  )
  return texts


def test_a_prepared_data_set_is_read_by_its_own_splits(tmp_path, monkeypatch):
  # In TFDS's own folder, which is searched too.
  own = str(tmp_path / 'own')
  monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', own)
  _prepare(Notes, own)
  read = _read(tmp_path, 'notes')
  assert {split: len(texts) for split, texts in read.items()} == {
    'train': 50,
    'heldout': 50,
  }
  assert all(t.startswith('train note') for t in read['train'])
  assert all(t.startswith('validation note') for t in read['heldout'])


def test_held_out_texts_are_removed_from_train(tmp_path):
  _prepare(Overlap, tmp_path / 'tfds')
  read = _read(tmp_path, 'overlap')
  assert len(read['heldout']) == 50 and 'both 0' in read['heldout']
  assert sorted(read['train']) == sorted(
    f'train {i}' for i in range(50) if i % 5
  )


def test_a_data_set_of_one_split_is_split_by_content(tmp_path):
  _prepare(OneSplit, tmp_path / 'tfds')
  read = _read(tmp_path, 'one_split')
  assert len(read['train']) + len(read['heldout']) == 25
  assert not set(read['train']) & set(read['heldout'])
  assert {sources.split_of(t, 30) for t in read['heldout']} == {'heldout'}
  corpus = packing.load(_config(tmp_path, 'one_split'))
  assert len(corpus.heldout.documents) == len(read['heldout']) + 1


@pytest.mark.parametrize(
  ('builder', 'expected'),
  [
    (NoTrain, "no train split, only ['test']"),
    (Numbers, 'no text feature, only number'),
  ],
)
def test_an_unusable_data_set_is_refused(tmp_path, builder, expected):
  _prepare(builder, tmp_path / 'tfds')
  with pytest.raises(errors.UserError) as raised:
    packing.load(_config(tmp_path, builder.name))
  assert expected in str(raised.value)


def test_another_file_format_is_refused(tmp_path):
  _prepare(Notes, tmp_path / 'tfds')
  # Other formats cannot be written without TensorFlow.
  [info] = tmp_path.rglob('dataset_info.json')
  info.write_text(info.read_text().replace('array_record', 'tfrecord'))
  with pytest.raises(errors.UserError, match=r'tfrecord.*array_record'):
    packing.load(_config(tmp_path, 'notes'))


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('c4/en', r"import tensorflow_datasets.text.c4; tfds.builder\('c4/en'"),
    ('mnist', r"as tfds; tfds.builder\('mnist', data_dir="),
    ('python_sorce', "'python_sorce' .*did you mean 'python_source'"),
    ('wikkipedia', "'wikkipedia' .*did you mean 'wikipedia'"),
    ('a b', "'a b'"),
    ('../etc', "'../etc'"),
    ('/', "'/'"),
    ('c4/en:x', "'c4/en:x'"),
  ],
)
def test_an_unprepared_or_unknown_name_is_refused(tmp_path, name, expected):
  with pytest.raises(errors.UserError, match=expected) as raised:
    packing.load(_config(tmp_path, name))
  assert '\n' not in str(raised.value)


def test_files_are_stored_with_text_and_path(tmp_path, capsys):
  folder = tmp_path / 'text'
  folder.mkdir()
  for i in range(40):
    (folder / f'{i}.txt').write_text(f'text {i}')
  packing.load(_config(tmp_path, 'text_files', path=str(folder)))
  [directory] = pathlib.Path(tmp_path, 'tfds').glob('*/text_files/*/1.0.0')
  builder = tfds.builder_from_directory(str(directory))
  stored = {
    example['path'].decode(): example['text'].decode()
    for split in ('train', 'heldout')
    for example in builder.as_data_source(split)
  }
  assert stored == {f'{i}.txt': f'text {i}' for i in range(40)}
  assert capsys.readouterr().out == ''


@pytest.fixture
def interpreter(tmp_path, monkeypatch):
  """A small standard library with packages inside, as without a venv."""
  contents = {
    'os.py': 'import abc',
    'email/parser.py': 'import email',
    'email/copy.py': 'import abc',
    'empty.py': '\n',
    'README': 'no source',
    '__pycache__/os.py': 'no source either',
    '.hidden/secret.py': 'hidden',
    'site-packages/numpy/core.py': 'import numpy',
    'site-packages/os.py': 'another os',
  }
  for name, text in contents.items():
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
  (tmp_path / 'latin.py').write_bytes(b'# \xe9t\xe9')
  (tmp_path / 'binary.py').write_bytes(b'a\0b')
  os.symlink('nowhere', tmp_path / 'dangling.py')
  os.mkfifo(tmp_path / 'pipe.py')
  paths = {
    'stdlib': str(tmp_path),
    'purelib': str(tmp_path / 'site-packages'),
    'platlib': str(tmp_path / 'site-packages'),
  }
  monkeypatch.setattr(sysconfig, 'get_path', paths.__getitem__)
  return tmp_path


def _texts(corpus, path=''):
  texts = {sources.read(file) for _, file in sources.listing(corpus, path)}
  return sorted(texts - {''})


@pytest.mark.parametrize(
  ('corpus', 'expected'),
  [
    ('python_source', ['import abc', 'import email']),
    (
      'python_packages',
      ['another os', 'import abc', 'import email', 'import numpy'],
    ),
  ],
)
def test_python_corpora(interpreter, corpus, expected):
  assert _texts(corpus) == expected


def test_a_new_corpus_is_a_line_of_the_registry(tmp_path, monkeypatch):
  notes = tmp_path / 'notes'
  corpus = sources.Files(
    lambda path: [notes], '.md', 'Notes.', frozenset({'drafts'})
  )
  monkeypatch.setitem(sources.FILE_CORPORA, 'notes', corpus)
  for name in (
    'drafts/left_out.md',
    'left_out.txt',
    *map('{}.md'.format, range(40)),
  ):
    (notes / name).parent.mkdir(parents=True, exist_ok=True)
    (notes / name).write_text(f'note {name}')
  packed = packing.load(_config(tmp_path, 'notes'))
  texts = []
  for split in (packed.train, packed.heldout):
    assert len(split.documents) > 1
    whole = tokenizers.Bytes().decode(split.tokens)
    texts += whole.replace('.md', '.md\n').splitlines()
  assert sorted(texts) == sorted(f'note {i}.md' for i in range(40))


def test_missing_folders_are_refused(tmp_path, monkeypatch):
  with pytest.raises(errors.UserError, match=r"path='.*/gone' is not a folder"):
    sources.listing('text_files', f'{tmp_path}/gone')
  monkeypatch.setattr(sysconfig, 'get_path', lambda _: '/nowhere')
  with pytest.raises(errors.UserError, match=r"'python_source'.*/nowhere"):
    sources.listing('python_source', '')


def test_text_files_takes_every_text_and_nothing_else(tmp_path):
  (tmp_path / 'deep').mkdir()
  (tmp_path / 'a.txt').write_text('first')
  (tmp_path / 'deep' / 'b.md').write_text('zwölf')
  (tmp_path / 'noise').write_bytes(b'\xff\xfe')
  assert _texts('text_files', str(tmp_path)) == ['first', 'zwölf']


def test_a_name_that_is_not_utf8_is_accepted(tmp_path):
  with open(os.fsencode(tmp_path) + b'/\xff.txt', 'w') as file:
    file.write('text')
  assert sources.state('text_files', str(tmp_path))
  [(name, _)] = sources.listing('text_files', str(tmp_path))
  assert name.encode('utf-8')


def test_state_depends_on_the_files_and_not_on_the_folder(tmp_path):
  for place in ('here', 'there'):
    (tmp_path / place).mkdir()
    (tmp_path / place / 'a.txt').write_text('a')
    os.utime(tmp_path / place / 'a.txt', (1, 1))
  here = sources.state('text_files', str(tmp_path / 'here'))
  assert here == sources.state('text_files', str(tmp_path / 'there'))
  (tmp_path / 'here' / 'a.txt').write_text('b')
  assert here != sources.state('text_files', str(tmp_path / 'here'))


def _index(folder, percent=20):
  """Returns the texts of each split, in order."""
  splits = sources.index('text_files', str(folder), percent)
  return {
    split: [document.text() for document in documents]
    for split, documents in splits.items()
  }


def test_splits_and_order_depend_on_the_content_alone(tmp_path):
  for i in range(400):
    (tmp_path / f'{i:03}.txt').write_text(f'document {i}')
  before = _index(tmp_path)
  for split, texts in before.items():
    assert {sources.split_of(text, 20) for text in texts} == {split}
  # Binomial: 80 of 400, five standard deviations to either side.
  assert 40 < len(before['heldout']) < 120
  assert before['train'] != sorted(before['train'])
  for i in range(400):
    (tmp_path / f'{i:03}.txt').rename(tmp_path / f'{500 - i:03}.md')
  assert _index(tmp_path) == before


def test_duplicates_are_one_document(tmp_path):
  for i in range(100):
    (tmp_path / f'{i}.txt').write_text(f'document {i % 10}')
  splits = _index(tmp_path, 30)
  assert sorted(splits['train'] + splits['heldout']) == [
    f'document {i}' for i in range(10)
  ]
  assert list(sources.distinct(iter('abab'))) == ['a', 'b']


@pytest.mark.parametrize('contents', [[], ['x'], [' \n', '']])
def test_too_little_text_for_two_parts_is_refused(tmp_path, contents):
  for i, content in enumerate(contents):
    (tmp_path / f'{i}.txt').write_text(content)
  count = len([text for text in contents if text.strip()])
  with pytest.raises(errors.UserError, match=rf'has {count} documents'):
    sources.index('text_files', str(tmp_path), 1)


@pytest.mark.parametrize('count', [1, 2, 46])
@pytest.mark.parametrize('percent', [1, 5, 20, 50])
def test_the_end_of_a_small_corpus_is_held_out(tmp_path, count, percent):
  """Texts of one side only: the other side takes a part of them by position."""
  for side in ('train', 'heldout'):
    folder = tmp_path / side
    folder.mkdir()
    numbers = iter(range(10**6))
    texts = []
    while len(texts) < count:
      n = next(numbers)
      text = '\n'.join(f'line {i} of text {n}' for i in range(99))
      if sources.split_of(text, percent) == side:
        (folder / f'{len(texts)}.txt').write_text(text)
        texts.append(text)
    splits = _index(folder, percent)
    assert all(text.strip() for part in splits.values() for text in part)
    whole = sum(map(len, texts))
    held = sum(map(len, splits['heldout']))
    assert sum(map(len, splits['train'])) + held == whole
    # Cut at the start of a line, none of which is longer than this.
    assert 0 <= held - whole * percent / 100 < 25
    assert _surveyed(folder, percent).by_position(percent)


def _surveyed(folder, percent=20, **changes):
  source = sources.open_source(
    config.DataConfig(
      corpus='text_files', path=str(folder), heldout_percent=percent,
      cache_dir=str(folder.with_name(f'{folder.name}_cache')), **changes,
    )
  )  # fmt: skip
  return source.survey


def test_what_is_left_out_is_counted_and_named(tmp_path):
  folder = tmp_path / 'text'
  folder.mkdir()
  for i in range(20):
    (folder / f'{i:02}.txt').write_text(f'document {i % 18}')
  assert _surveyed(folder).left_out == ()
  (folder / 'latin.txt').write_bytes('é'.encode('latin-1'))
  (folder / 'empty.txt').write_text(' \n')
  os.symlink('/nowhere', folder / 'dangling')
  (folder / '.git').mkdir()
  with pytest.raises(errors.UserError) as raised:
    _surveyed(folder)
  for part in ('3 of 23', 'latin.txt', 'empty.txt', 'dangling', 'UTF-8'):
    assert part in str(raised.value)
  survey = _surveyed(folder, allow_left_out=True)
  assert {
    (each.reason, each.count, each.names) for each in survey.left_out
  } == {
    ('not UTF-8', 1, ('latin.txt',)),
    ('empty', 1, ('empty.txt',)),
    ('no files', 1, ('dangling',)),
  }
  assert (survey.found, survey.documents) == (23, 18)
  assert [(each.reason, each.names) for each in survey.unread] == [
    ('hidden', ('.git',))
  ]
  # From the cache it is refused as before.
  with pytest.raises(errors.UserError, match='3 of 23'):
    _surveyed(folder)
  # Less than a tenth is said alone.
  for i in range(20, 30):
    (folder / f'{i:02}.txt').write_text(f'document {i}')
  assert len(_surveyed(folder).left_out) == 3


def test_the_text_of_records_is_read(tmp_path):
  folder = tmp_path / 'text'
  folder.mkdir()
  for i in range(10):
    records = [
      {'text': f'é {10 * i + j}\nof a record', 'id': j} for j in range(10)
    ]
    (folder / f'{i}.jsonl').write_text(
      '\n\n'.join(map(json.dumps, records)) + '\n'
    )
  (folder / 'plain.txt').write_text('{"text": "as it is"}')
  splits = _index(folder)
  assert sorted(splits['train'] + splits['heldout']) == sorted(
    [*(f'é {i}\nof a record' for i in range(100)), '{"text": "as it is"}']
  )
  assert _surveyed(folder).documents == 101
  for line in ('{"content": "x"}', '[1]', 'text', '{"text": 3}'):
    (folder / '3.jsonl').write_text('{"text": "x"}\n' + line)
    with pytest.raises(errors.UserError, match=r"3\.jsonl:2.*'text'"):
      _surveyed(folder)


def test_texts_of_other_encodings_are_counted_or_refused(tmp_path, capsys):
  _prepare(OtherEncodings, tmp_path / 'tfds')
  texts = _read(tmp_path, 'other_encodings')
  assert len(texts['train']) == 48
  err = capsys.readouterr().err
  assert err.count('left out: 2 of 50 texts of other_encodings/1.0.0') == 2
  _prepare(MostlyOther, tmp_path / 'tfds')
  with pytest.raises(errors.UserError, match=r'25 of 50 texts .* not UTF-8'):
    _read(tmp_path, 'mostly_other')
