import concurrent.futures
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

from absl import logging
import numpy as np
import pytest

from familial.core import errors
from familial.data import batches
from familial.data import config
from familial.data import packing
from familial.data import sources
from familial.data import tokenizers
from tests.data import vocabularies

_TEXTS = [f'document {i} of the üsual kind\n' * (i % 7 + 1) for i in range(60)]


def _folder(path, texts=tuple(_TEXTS)):
  path.mkdir()
  for i, text in enumerate(texts):
    (path / f'{i}.txt').write_text(text)
  return path


@pytest.fixture
def settings(tmp_path):
  return config.DataConfig(
    corpus='text_files',
    path=str(_folder(tmp_path / 'text')),
    cache_dir=str(tmp_path / 'cache'),
    heldout_percent=20,
  )


@pytest.fixture
def warned(monkeypatch):
  lines = []
  monkeypatch.setattr(
    logging, 'warning', lambda form, *values: lines.append(form % values)
  )
  return lines


def _packed(settings):
  [folder] = pathlib.Path(settings.cache_dir, 'packed').iterdir()
  return folder


def _documents(corpus, split):
  tokenizer = tokenizers.load(corpus.tokenizer_path)
  bounds = zip(split.documents[:-1], split.documents[1:], strict=True)
  for start, stop in bounds:
    assert split.tokens[stop - 1] == corpus.separator
    yield tokenizer.decode(split.tokens[start : stop - 1])


def _bpe(settings):
  return dataclasses.replace(settings, tokenizer='bpe', vocab_size=270)


def _file(settings):
  path = pathlib.Path(settings.path).parent / 'mine.json'
  tokenizers.train(iter(_TEXTS), 265, path)
  return dataclasses.replace(settings, tokenizer=str(path), vocab_size=265)


@pytest.mark.parametrize('change', [lambda c: c, _bpe, _file])
def test_documents_come_back_each_in_its_split(settings, change):
  # The same documents again under other names, in another folder.
  _folder(pathlib.Path(settings.path, 'copies'))
  corpus = packing.load(change(settings))
  documents = []
  for name in ('train', 'heldout'):
    split = getattr(corpus, name)
    texts = list(_documents(corpus, split))
    assert {sources.split_of(t, 20) for t in texts} == {name}
    assert split.bytes == sum(len(t.encode('utf-8')) for t in texts)
    assert split.documents[0] == 0
    assert split.documents[-1] == len(split.tokens)
    assert split.tokens.dtype == np.uint16
    assert (split.tokens == corpus.separator).sum() == len(texts)
    documents += texts
  assert sorted(documents) == sorted(_TEXTS)


def test_a_split_is_of_the_last_bytes_of_the_documents_digest():
  # The first ones order the documents. Other bytes would move documents of
  # corpora that are in use from one split to the other.
  for text in _TEXTS:
    number = int(hashlib.sha256(text.encode('utf-8')).hexdigest()[-16:], 16)
    expected = 'heldout' if number % 100 < 20 else 'train'
    assert sources.split_of(text, 20) == expected


def test_a_packed_corpus_is_found_again(settings, monkeypatch):
  first = packing.load(settings)
  monkeypatch.setattr(tokenizers, 'load', None)
  second = packing.load(settings)
  assert first.fingerprint == second.fingerprint
  np.testing.assert_array_equal(first.train.tokens, second.train.tokens)
  assert not second.train.tokens.flags.writeable


def test_names_and_fingerprint_are_those_of_earlier_versions(
  tmp_path, monkeypatch
):
  folder = _folder(tmp_path / 'text')
  for file in folder.iterdir():
    os.utime(file, ns=(0, 10**18))
  settings = config.DataConfig(
    corpus='text_files', path=str(folder), cache_dir=str(tmp_path / 'cache')
  )
  assert packing.load(settings).fingerprint == '29a7bc7eb5c7d2e4'
  assert _packed(settings).name == 'text_files-bytes-70c16d3427aa24bc'
  assert os.listdir(tmp_path / 'cache' / 'tfds') == [
    'text_files-48ff57290f1a6768'
  ]


def test_fingerprint_is_of_the_content(settings, tmp_path):
  def fingerprint(**changes):
    return packing.load(dataclasses.replace(settings, **changes)).fingerprint

  first = fingerprint()
  # Another cache, another folder with the same text, other windows.
  assert fingerprint(cache_dir=str(tmp_path / 'other')) == first
  again = str(_folder(tmp_path / 'again', _TEXTS[::-1]))
  assert fingerprint(path=again) == first
  assert fingerprint(seq_len=64, document_mask=True) == first
  # Another split, tokenizer or text.
  assert fingerprint(heldout_percent=30) != first
  assert fingerprint(tokenizer='bpe', vocab_size=270) != first
  (tmp_path / 'text' / 'more.txt').write_text('one more document')
  assert fingerprint() != first


def test_bpe_is_trained_on_the_train_split_only(tmp_path, settings):
  """A word that only held-out documents have does not become a token."""
  texts = ['abcabc ' * 40 + str(i) for i in range(200)]
  with_word = [text + ' qzjqzj' * 400 for text in texts]
  heldout = [t for t in with_word if sources.split_of(t, 20) == 'heldout']
  train = [t for t in texts if sources.split_of(t, 20) == 'train']
  assert len(heldout) > 3
  folder = _folder(tmp_path / 'words', heldout + train)
  corpus = packing.load(
    dataclasses.replace(_bpe(settings), path=str(folder), vocab_size=262)
  )
  vocabulary = json.loads(pathlib.Path(corpus.tokenizer_path).read_text())
  tokens = list(vocabulary['model']['vocab'])
  assert any('abc' in t for t in tokens)
  assert not any('qz' in t for t in tokens)


def test_a_given_tokenizer_is_used_and_copied(settings):
  settings = _file(settings)
  first = packing.load(settings)
  given = pathlib.Path(settings.tokenizer)
  assert pathlib.Path(first.tokenizer_path).read_bytes() == given.read_bytes()
  assert (first.vocab_size, first.separator) == (265, 0)
  # The corpus depends on its content and not on its path.
  moved = given.rename(given.with_name('moved.json'))
  again = dataclasses.replace(settings, tokenizer=str(moved))
  assert packing.load(again).fingerprint == first.fingerprint
  tokenizers.train(iter(['abc abd ' * 40]), 260, moved)
  other = packing.load(dataclasses.replace(again, vocab_size=260))
  assert other.fingerprint != first.fingerprint
  with pytest.raises(errors.UserError, match=r'size=265.*has 260 tokens'):
    packing.load(again)
  with pytest.raises(errors.UserError, match=r"data\.tokenizer='.*mine\.json'"):
    packing.load(settings)
  moved.write_text('{}')
  with pytest.raises(errors.UserError, match=r"moved\.json'") as raised:
    packing.load(again)
  assert '\n' not in str(raised.value)


def _assert_only_finished_folders(settings):
  for kind in ('packed', 'tfds'):
    [folder] = os.listdir(pathlib.Path(settings.cache_dir, kind))
    assert not folder.startswith('.')


def test_two_at_once_make_one_where_there_are_no_locks(settings, monkeypatch):
  """Both prepare the corpus; one renames it first, both read the same."""

  def refuse(*_):
    raise OSError('no locks')

  monkeypatch.setattr(fcntl, 'flock', refuse)
  both_inside = threading.Barrier(2, timeout=60)
  load = tokenizers.load

  def load_together(path):
    both_inside.wait()
    return load(path)

  monkeypatch.setattr(tokenizers, 'load', load_together)
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    first, second = pool.map(packing.load, [settings] * 2)
  assert first == dataclasses.replace(
    second, train=first.train, heldout=first.heldout
  )
  np.testing.assert_array_equal(first.train.tokens, second.train.tokens)
  _assert_only_finished_folders(settings)


def test_of_processes_that_race_one_packs(settings):
  program = (
    'import os\n'
    'from familial.data import config, packing, tokenizers\n'
    'load = tokenizers.load\n'
    'def counted(path):\n'
    f'  open(f"{settings.cache_dir}/made_{{os.getpid()}}", "w").close()\n'
    '  return load(path)\n'
    'tokenizers.load = counted\n'
    f'corpus = packing.load(config.{settings!r})\n'
    'print(corpus.fingerprint, corpus.train.tokens.sum())\n'
  )
  running = [
    subprocess.Popen([sys.executable, '-c', program], stdout=subprocess.PIPE)
    for _ in range(3)
  ]
  printed = {process.communicate()[0] for process in running}
  assert [process.returncode for process in running] == [0] * 3
  assert len(printed) == 1
  assert len(list(pathlib.Path(settings.cache_dir).glob('made_*'))) == 1
  _assert_only_finished_folders(settings)


def test_a_killed_preparation_leaves_no_corpus(settings, monkeypatch):
  def killed(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(hashlib, 'file_digest', killed)
    with pytest.raises(KeyboardInterrupt):
      packing.load(settings)
  assert os.listdir(pathlib.Path(settings.cache_dir, 'packed')) == []
  assert len(packing.load(settings).train.tokens)


def _cut_short(content):
  return content[: len(content) // 2]


def _one_bit(content):
  middle = len(content) // 2
  return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def _spoil(file, damage):
  # Replaced, not written to: what is mapped already stays as it was.
  content = file.read_bytes()
  file.unlink()
  if damage:
    file.write_bytes(damage(content))


@pytest.mark.parametrize(
  'damage',
  [_cut_short, _one_bit, lambda c: b'', lambda c: c + b'\0', None],
  ids=['cut', 'bit', 'empty', 'longer', 'gone'],
)
def test_damaged_packed_files_are_reported_and_made_again(
  settings, warned, damage
):
  settings = _bpe(settings)
  good = packing.load(settings)
  tokens = np.array(good.train.tokens)
  folder = _packed(settings)
  names = sorted(os.listdir(folder))
  assert len(names) == 6
  for name in names:
    _spoil(folder / name, damage)
    again = packing.load(settings)
    assert again.fingerprint == good.fingerprint
    np.testing.assert_array_equal(again.train.tokens, tokens)
  assert len(warned) == len(names)
  assert all(str(folder) in line and '\n' not in line for line in warned)


def _altered(content):
  meta = json.loads(content)
  meta['heldout']['bytes'] += 1
  return json.dumps(meta)


@pytest.mark.parametrize(
  'alter',
  [
    lambda _: 'null',
    lambda _: '[]',
    lambda _: '{}',
    lambda _: '{"fingerprint": 3}',
    _altered,
  ],
)
def test_another_meta_is_damage(settings, warned, alter):
  good = packing.load(settings)
  path = _packed(settings) / 'meta.json'
  path.write_text(alter(path.read_text()))
  assert packing.load(settings).heldout.bytes == good.heldout.bytes
  assert len(warned) == 1


def test_files_too_large_to_hash_are_checked_by_size(
  settings, warned, monkeypatch
):
  monkeypatch.setattr(packing, 'HASHED_BYTES', 0)
  good = packing.load(settings)
  _spoil(_packed(settings) / 'heldout.tokens', lambda c: c + c)
  again = packing.load(settings)
  np.testing.assert_array_equal(again.heldout.tokens, good.heldout.tokens)
  assert 'heldout.tokens has' in warned[0]


@pytest.mark.parametrize('damage', [_cut_short, _one_bit, None])
def test_damaged_tfds_files_are_made_again(settings, damage):
  good = packing.load(settings)
  stored = pathlib.Path(settings.cache_dir, 'tfds')
  for name in ('dataset_info.json', 'features.json', '*train.array_record*'):
    [file] = stored.rglob(name)
    _spoil(file, damage)
    shutil.rmtree(_packed(settings))
    assert packing.load(settings).fingerprint == good.fingerprint


def test_a_cache_that_cannot_be_made_is_refused(settings):
  with pytest.raises(errors.UserError, match=r"^cache_dir='/dev/null'"):
    packing.load(dataclasses.replace(settings, cache_dir='/dev/null'))


def test_a_large_vocabulary_takes_four_bytes(settings, monkeypatch):
  small = np.array(packing.load(settings).train.tokens)
  shutil.rmtree(_packed(settings))
  monkeypatch.setattr(tokenizers.Bytes, 'vocab_size', 2**16 + 1)
  large = packing.load(settings).train.tokens
  assert large.dtype == np.dtype('<u4')
  np.testing.assert_array_equal(large, small)


def test_python_source_in_a_fresh_process(tmp_path):
  """The default corpus: tens of MB, in seconds, without TensorFlow."""
  program = (
    'import sys, time\n'
    'start = time.perf_counter()\n'
    'from familial.data import batches, config, packing\n'
    f'settings = config.DataConfig(cache_dir={str(tmp_path)!r})\n'
    'corpus = packing.load(settings)\n'
    'seconds = time.perf_counter() - start\n'
    'next(batches.iterate(batches.Batches(corpus, settings, 16, 0), 3))\n'
    'assert "tensorflow" not in sys.modules\n'
    'print(len(corpus.train.tokens), len(corpus.heldout.tokens), seconds)\n'
  )
  printed = subprocess.run(
    [sys.executable, '-c', program], check=True, capture_output=True, text=True
  ).stdout
  train, heldout, seconds = (float(n) for n in printed.split())
  assert train > 5e6
  assert 0.01 < heldout / train < 0.12
  assert seconds < 40


@pytest.mark.parametrize('kind', ['byte_level', 'byte_fallback'])
def test_documents_of_a_public_tokenizer_begin_as_its_template_does(
  settings, tmp_path, kind
):
  path = tmp_path / 'theirs.json'
  separator = '</s>' if kind == 'byte_fallback' else vocabularies.END
  getattr(vocabularies, kind)(path)
  size = tokenizers.read(str(path), separator)[1].vocab_size
  public = dataclasses.replace(
    settings, tokenizer=str(path), separator=separator, vocab_size=size
  )
  corpus = packing.load(public)
  tokenizer = tokenizers.load(corpus.tokenizer_path)
  assert corpus.start == tokenizer.start != (corpus.separator,)
  for split in (corpus.train, corpus.heldout):
    tokens, begins = np.asarray(split.tokens), split.documents[:-1]
    assert (tokens[begins] == corpus.start[0]).all()
    assert (tokens[split.documents[1:] - 1] == corpus.separator).all()
    assert np.isin(tokens, corpus.start).sum() == len(begins)

  # Windows of one token are every token: what counts is the text and its end.
  tokens = np.asarray(corpus.heldout.tokens)
  heldout = batches.heldout(
    corpus, dataclasses.replace(public, seq_len=1), len(tokens), 64
  )
  counted = sum(float(batch['weights_BxL'].sum()) for batch in heldout)
  assert counted == len(tokens) - len(corpus.heldout.documents) + 1
  bytes_per_token = batches.heldout_bytes_per_token(corpus, heldout)
  assert bytes_per_token * counted == pytest.approx(corpus.heldout.bytes)

  # Without a separator the refusal names those that would do.
  with pytest.raises(errors.UserError, match=r'data\.separator'):
    packing.load(dataclasses.replace(public, separator=''))
  with pytest.raises(errors.UserError, match=r'data\.separator'):
    dataclasses.replace(settings, separator='</s>')
