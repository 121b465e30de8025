import os
import sysconfig

import pytest

from familial.core import errors
from familial.data import files


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
  found = {files.read(file) for _, file in files.listing(corpus, path)}
  return sorted(found - {''})


def test_python_source_is_the_standard_library_without_packages(interpreter):
  assert _texts('python_source') == ['import abc', 'import email']


def test_python_packages_adds_what_is_installed(interpreter):
  assert _texts('python_packages') == [
    'another os',
    'import abc',
    'import email',
    'import numpy',
  ]


def test_a_missing_standard_library_is_said(interpreter, monkeypatch):
  monkeypatch.setattr(sysconfig, 'get_path', lambda _: '/nowhere')
  with pytest.raises(errors.UserError, match=r"'python_source'.*/nowhere"):
    files.listing('python_source', '')


def test_text_files_takes_every_text_and_nothing_else(tmp_path):
  (tmp_path / 'deep').mkdir()
  (tmp_path / 'a.txt').write_text('first')
  (tmp_path / 'deep' / 'b.md').write_text('zwölf')
  (tmp_path / 'noise').write_bytes(b'\xff\xfe')
  assert _texts('text_files', str(tmp_path)) == ['first', 'zwölf']


def test_a_name_that_is_not_utf8_is_no_obstacle(tmp_path):
  with open(os.fsencode(tmp_path) + b'/\xff.txt', 'w') as file:
    file.write('text')
  assert files.state('text_files', str(tmp_path))
  [(name, _)] = files.listing('text_files', str(tmp_path))
  assert name.encode('utf-8')


def test_state_follows_content_and_not_the_place(tmp_path):
  for place in ('here', 'there'):
    (tmp_path / place).mkdir()
    (tmp_path / place / 'a.txt').write_text('a')
    os.utime(tmp_path / place / 'a.txt', (1, 1))
  here = files.state('text_files', str(tmp_path / 'here'))
  assert here == files.state('text_files', str(tmp_path / 'there'))
  (tmp_path / 'here' / 'a.txt').write_text('b')
  assert here != files.state('text_files', str(tmp_path / 'here'))


def test_split_depends_on_the_content_alone(tmp_path):
  """Other documents, names and folders change nothing for a document."""
  texts = [f'document {i}' for i in range(400)]
  for i, text in enumerate(texts):
    (tmp_path / f'{i}.txt').write_text(text)
  before = files.index('text_files', str(tmp_path), 20)
  for split, entries in before.items():
    assert {files.split_of(files.read(f), 20) for _, f in entries} == {split}
  # Binomial: 80 of 400, five standard deviations to either side.
  assert 40 < len(before['heldout']) < 120


def test_duplicates_are_one_document(tmp_path):
  for i in range(100):
    (tmp_path / f'{i}.txt').write_text(f'document {i % 10}')
  splits = files.index('text_files', str(tmp_path), 30)
  texts = [files.read(f) for entries in splits.values() for _, f in entries]
  assert sorted(texts) == [f'document {i}' for i in range(10)]
  assert list(files.distinct(iter('abab'))) == ['a', 'b']


def test_order_does_not_follow_names(tmp_path):
  for i in range(100):
    (tmp_path / f'{i:03}.txt').write_text(f'document {i}')
  train = [n for n, _ in files.index('text_files', str(tmp_path), 20)['train']]
  assert train != sorted(train)
  # Renaming every file leaves the documents where they were.
  texts = [
    files.read(f)
    for _, f in files.index('text_files', str(tmp_path), 20)['train']
  ]
  for i in range(100):
    (tmp_path / f'{i:03}.txt').rename(tmp_path / f'{200 - i:03}.md')
  renamed = files.index('text_files', str(tmp_path), 20)['train']
  assert [files.read(f) for _, f in renamed] == texts


@pytest.mark.parametrize('count', [0, 1, 3])
def test_a_split_without_documents_is_said(tmp_path, count):
  for i in range(count):
    (tmp_path / f'{i}.txt').write_text(f'document {i}')
  with pytest.raises(errors.UserError, match=f'heldout_percent=1 .*{count}$'):
    files.index('text_files', str(tmp_path), 1)


def test_a_missing_folder_is_said(tmp_path):
  with pytest.raises(errors.UserError, match=r"path='.*/gone' is not a folder"):
    files.listing('text_files', f'{tmp_path}/gone')
