"""What may change when a run is resumed: its place, its text's, its length."""

import dataclasses
import os
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.data import packing
from familial.training import loop
from familial.training import optimizer
from tests.training import runs


def _rows(folder):
  return storage.read_rows(folder / run_folder.ROWS)


def _train(config, folder, **how):
  return loop.run(config, folder, quiet=True, **how)


def _text(config, path, **changes):
  data = dataclasses.replace(config.data, path=str(path), **changes)
  return dataclasses.replace(config, data=data)


def _stop_at(step):
  def stop(reached):
    if reached == step:
      os.kill(os.getpid(), signal.SIGTERM)

  return stop


@pytest.fixture
def short(run_config):
  """Makes configs of runs of eight steps with a constant rate."""

  def make(**changes):
    values = {
      'steps': 8, 'evaluations': 2, 'schedule': 'constant', 'warmup_steps': 2
    }  # fmt: skip
    return run_config(**{**values, **changes})

  return make


def test_more_steps_are_those_of_the_longer_run(short, corpus, tmp_path):
  whole = short(steps=16, evaluations=4)
  assert _train(whole, tmp_path / 'whole', corpus=corpus) == 'finished'
  folder = tmp_path / 'run'
  assert _train(short(), folder, corpus=corpus) == 'finished'
  assert _train(whole, folder, corpus=corpus) == 'finished'
  for row, expected in zip(
    _rows(folder), _rows(tmp_path / 'whole'), strict=True
  ):
    assert row['loss'] == pytest.approx(expected['loss'], abs=1e-5)
    same = {'run': '', 'loss': 0, 'loss_per_byte': 0}
    assert {**row, **same} == {**expected, **same}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
    runs.state(whole, folder).params,
    runs.state(whole, tmp_path / 'whole').params,
  )
  # Once there, nothing is trained again, and no step is taken back.
  assert _train(whole, folder, corpus=corpus, on_step=pytest.fail) == 'finished'
  before = runs.rows(folder)
  with pytest.raises(errors.UserError, match=r'16 of 16.*train\.steps = 8'):
    _train(short(), folder, corpus=corpus)
  assert runs.rows(folder) == before


@pytest.mark.parametrize(
  ('was', 'now', 'step', 'allowed'),
  [
    ({}, {'steps': 90}, 40, True),
    ({}, {'steps': 30}, 40, False),
    ({'schedule': 'cosine'}, {'steps': 90}, 40, False),
    ({'schedule': 'cosine'}, {'steps': 90}, 0, True),
    ({'schedule': 'wsd'}, {'steps': 90}, 30, True),
    ({'schedule': 'wsd'}, {'steps': 90}, 40, False),
    # The decay may still be chosen before it begins.
    ({}, {'schedule': 'wsd', 'decay_fraction': 0.2}, 30, True),
    ({'schedule': 'wsd'}, {'final_lr': 0.1}, 36, False),
    ({}, {'warmup_steps': 3}, 40, False),
    ({'weighting': 'linear', 'weighting_end': 'uniform'}, {'steps': 90}, 9,
     False),
  ],
)  # fmt: skip
def test_steps_taken_stay_what_they_were(run_config, was, now, step, allowed):
  values = {'steps': 40, 'schedule': 'constant', **was}
  before = run_config(**values).train
  after = run_config(**{**values, **now}).train
  assert optimizer.same_steps(before, after, (1, 2), step) == allowed


def test_what_is_refused_has_a_remedy_and_changes_nothing(
  short, corpus, tmp_path
):
  folder = tmp_path / 'run'
  cosine = short(schedule='cosine')
  _train(cosine, folder, corpus=corpus)
  before = {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}
  for other, parts in (
    (short(schedule='cosine', steps=16), ('train.steps', 'train_on.py')),
    (short(schedule='cosine', base_lr=1.0), ('train.base_lr', 'workdir')),
    (short(schedule='cosine', final_lr=0.5), ('train.final_lr', 'workdir')),
  ):
    with pytest.raises(errors.UserError) as raised:
      _train(other, folder, corpus=corpus)
    assert all(part in str(raised.value) for part in parts)
  assert before == {p: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_a_run_and_its_text_may_move(short, text_data, tmp_path, monkeypatch):
  config = short()
  whole = tmp_path / 'whole' / 'moved'
  _train(config, whole)
  with pytest.raises(errors.Interrupted):
    _train(config, tmp_path / 'run', on_step=_stop_at(5))
  # Both are elsewhere now, and what is kept is decided anew.
  (tmp_path / 'run').rename(tmp_path / 'moved')
  shutil.copytree(text_data.path, tmp_path / 'text')
  monkeypatch.chdir(tmp_path)
  moved = _text(
    short(keep=7, checkpoint_seconds=1e3), 'text',
    cache_dir=str(tmp_path / 'cache'),
  )  # fmt: skip
  assert _train(moved, pathlib.Path('moved')) == 'finished'
  assert runs.rows(tmp_path / 'moved') == runs.rows(whole)
  stored = storage.read_json(tmp_path / 'moved' / 'config.json')
  assert stored['data']['path'] == 'text' and stored['train']['keep'] == 7
  # A text that is another one is none of its.
  (tmp_path / 'text' / 'new.txt').write_text('more text')
  with pytest.raises(errors.UserError, match='corpus'):
    _train(
      _text(short(steps=16), 'text', cache_dir=moved.data.cache_dir), 'moved'
    )


def test_a_folder_of_an_earlier_version_lacks_later_keys(
  short, corpus, tmp_path
):
  _train(short(), tmp_path, corpus=corpus)
  path = tmp_path / 'config.json'
  values = storage.read_json(path)
  del values['data']['allow_left_out'], values['train']['gradients']
  storage.write_json(path, values)
  content = path.read_bytes()
  assert _train(short(), tmp_path, corpus=corpus) == 'finished'
  assert path.read_bytes() == content
  with pytest.raises(errors.UserError, match=r'train\.gradients = False, not'):
    _train(short(gradients=True), tmp_path, corpus=corpus)


def test_weights_are_trained_on_other_text(short, corpus, tmp_path):
  _train(short(), tmp_path / 'parent', corpus=corpus)
  folder = tmp_path / 'other'
  folder.mkdir()
  for i in range(60):
    (folder / f'{i}.txt').write_text(f'entirely other text {i}; ' * 9)
  child = _text(short(init_from='../parent'), folder, seq_len=16)
  assert _train(child, tmp_path / 'child') == 'finished'
  lineage = storage.read_json(tmp_path / 'child' / 'lineage.json')
  other = packing.load(child.data).fingerprint
  assert lineage['corpus'] == other != corpus.fingerprint
  assert lineage['parent_corpus'] == corpus.fingerprint
  assert lineage['parent'] == 'parent'
  spent = _rows(tmp_path / 'parent')[-1]['flops']
  assert (
    lineage['inherited_flops'] == spent < _rows(tmp_path / 'child')[-1]['flops']
  )
  assert {row['corpus'] for row in _rows(tmp_path / 'child')} == {other}
  # It goes on although its parent has moved with it.
  (tmp_path / 'parent').rename(tmp_path / 'gone')
  moved = dataclasses.replace(
    child.train, init_from=str(tmp_path / 'new' / 'parent'), steps=16
  )
  longer = dataclasses.replace(child, train=moved)
  assert _train(longer, tmp_path / 'child') == 'finished'


def test_a_bpe_of_other_text_is_another_tokenizer(
  short, shape, text_data, tmp_path
):
  model = shape(vocab_size=270, depth=2, exits=(1, 2))
  bpe = dataclasses.replace(text_data, tokenizer='bpe', vocab_size=270)
  parent = dataclasses.replace(short(), model=model, data=bpe)
  _train(parent, tmp_path / 'parent')
  folder = tmp_path / 'other'
  folder.mkdir()
  for i in range(60):
    (folder / f'{i}.txt').write_text(f'quite other words, zigzag {i}; ' * 9)
  train = dataclasses.replace(parent.train, init_from='../parent')
  child = _text(dataclasses.replace(parent, train=train), folder)
  with pytest.raises(errors.UserError, match=r'tokenizer=.*parent/tokenizer'):
    _train(child, tmp_path / 'child')
  assert not (tmp_path / 'child').exists()
  own = str(tmp_path / 'parent' / 'tokenizer.json')
  child = _text(child, folder, tokenizer=own)
  assert _train(child, tmp_path / 'child') == 'finished'
  # The same text in a copied folder gives the same tokenizer.
  shutil.copytree(text_data.path, tmp_path / 'copy')
  copied = dataclasses.replace(parent, train=train)
  assert _train(_text(copied, tmp_path / 'copy'), tmp_path / 'c') == 'finished'


@pytest.mark.parametrize(
  'changes',
  [
    {'data': {'seq_len': 10**5}},
    {'train': {'batch_size': 10**6}},
    {'layout': {'data': 4096}},
    {'train': {'init_from': '../nothing'}},
    {'data': {'path': '/nowhere'}},
  ],
)
def test_a_refused_start_leaves_the_folder_free(short, tmp_path, changes):
  config = short()
  bad = dataclasses.replace(
    config,
    **{
      part: dataclasses.replace(getattr(config, part), **values)
      for part, values in changes.items()
    },
  )
  folder = tmp_path / 'deep' / 'run'
  with pytest.raises(errors.UserError), storage.lock(folder) as locked:
    assert locked
    _train(bad, folder)
  assert not (tmp_path / 'deep').exists()


def test_a_run_that_took_no_step_is_no_reason_to_keep_its_config(
  short, corpus, tmp_path, monkeypatch
):
  def fail(*_):
    raise RuntimeError('out of memory')

  with monkeypatch.context() as patch:
    patch.setattr(loop.step_lib, 'train', fail)
    with pytest.raises(RuntimeError):
      _train(short(), tmp_path / 'run', corpus=corpus)
  assert (tmp_path / 'run' / 'config.json').exists()
  other = short(batch_size=4, steps=4)
  assert _train(other, tmp_path / 'run', corpus=corpus) == 'finished'
  assert _rows(tmp_path / 'run')[-1]['batch_tokens'] == 4 * 32
