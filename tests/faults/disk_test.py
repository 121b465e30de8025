"""A disk that is full or read-only: one line, status 2, and nothing is lost."""

import os
import pathlib
import re
import subprocess
import sys

from jax._src import lru_cache
import jax.numpy as jnp
import numpy as np
import pytest

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.training import checkpoint
from familial.training import compilation
from familial.training import step as step_lib

ROOT = pathlib.Path(__file__).parents[2]
FULL = 'cannot be written: No space left on device'
READ_ONLY = 'cannot be written: Read-only file system'


def _state(step):
  # Of numbers that do not compress.
  leaf = jnp.asarray(np.random.default_rng(step).normal(size=20_000))
  return step_lib.State({'w': leaf}, {'mean': 2 * leaf}, jnp.int32(step))


def test_rows_and_files_outlive_a_full_disk(disk):
  path, value = disk.folder / 'rows.jsonl', disk.folder / 'value.json'
  storage.append(path, [{'step': 1}, {'step': 2}])
  storage.write_json(value, 'old')
  disk.fill()
  many = [{'step': 3, 'text': 'x' * 9000}]
  for write in (
    lambda: storage.append(path, many),
    lambda: storage.write_json(value, 'new' * 9000),
    lambda: run_folder.open_folder(
      disk.folder / 'run', None, {'x': 'y' * 9000}
    ),
  ):
    with pytest.raises(errors.UserError, match=FULL) as raised:
      write()
    assert '\n' not in str(raised.value)
  disk.empty()
  assert storage.read_rows(path) == [{'step': 1}, {'step': 2}]
  assert storage.read_json(value) == 'old'
  run_folder.truncate(path, 2)
  storage.append(path, many)
  assert storage.read_rows(path)[2:] == many
  left = {entry.name for entry in disk.folder.iterdir()}
  assert left == {'rows.jsonl', 'value.json', 'run'}


def test_a_read_only_disk_is_one_line(disk):
  path = disk.folder / 'rows.jsonl'
  storage.append(path, [{'step': 1}])
  disk.remount('ro')
  for write in (
    lambda: storage.append(path, [{'step': 2}]),
    lambda: storage.write_json(disk.folder / 'value.json', 1),
    lambda: run_folder.open_folder(disk.folder / 'run', None),
    lambda: storage.lock(disk.folder / 'run').__enter__(),
    lambda: checkpoint.Checkpoints(disk.folder / 'checkpoints'),
  ):
    with pytest.raises(errors.UserError, match=READ_ONLY):
      write()
  assert storage.read_rows(path) == [{'step': 1}]


def test_checkpoints_outlive_a_full_disk(disk, capfd):
  folder = disk.folder / 'checkpoints'
  checkpoints = checkpoint.Checkpoints(folder, keep=9)
  with pytest.raises(errors.UserError, match=FULL):
    for step in range(1, 9):
      checkpoints.save(_state(step), 1.0)
      checkpoints.wait()
  for end in (checkpoints.close, checkpoints.close):
    try:
      end()
    except errors.UserError as error:
      assert FULL in str(error)
  assert list(folder.glob('*tmp*'))
  # The last whole one can be read from a disk that is full, and read-only.
  disk.remount('ro')
  last = checkpoint.steps(folder)['last']
  assert last > 1
  params = checkpoint.read_params(folder, last, _state(0).params)
  np.testing.assert_array_equal(params['w'], _state(last).params['w'])
  disk.remount('rw,size=8m')
  checkpoints = checkpoint.Checkpoints(folder, keep=9)
  assert checkpoints.latest() == last
  checkpoints.save(_state(last + 2), 1.0)
  checkpoints.close()
  assert not list(folder.glob('*tmp*'))
  assert checkpoint.steps(folder)['last'] == last + 2
  printed = capfd.readouterr()
  assert 'Traceback' not in printed.err and 'Error' not in printed.err


def test_a_program_is_kept_whole_or_not_at_all(disk):
  cache = lru_cache.LRUCache(str(disk.folder / 'xla'), max_size=-1)
  compilation.prepare()
  disk.fill()
  with pytest.raises(errors.UserError, match=FULL):
    cache.put('key', b'program' * 9000)
  disk.empty()
  assert cache.get('key') is None
  cache.put('key', b'program' * 9000)
  assert cache.get('key') == b'program' * 9000


@pytest.fixture
def familial(text_data, cache):
  """Runs a command to its end; returns its status and its last line."""

  def run(name, *arguments, caches=cache):
    corpus = [
      '--config.data.corpus=text_files', f'--config.data.path={text_data.path}',
      '--config.data.heldout_percent=20',
    ]  # fmt: skip
    done = subprocess.run(
      [
        sys.executable, '-m', 'familial', name, *map(str, arguments),
        *(corpus if name == 'train' else ()),
      ],
      capture_output=True, text=True, cwd=ROOT,
      env={
        **os.environ, 'PYTHONPATH': str(ROOT), 'FAMILIAL_CACHE': str(caches)
      },
    )  # fmt: skip
    assert 'Traceback' not in done.stderr, done.stderr
    lines = re.split('[\r\n]+', done.stderr)
    said = [line for line in lines if line.strip().startswith('familial: ')]
    assert len(said) == (done.returncode != 0), done.stderr
    return done.returncode, ' '.join(said)

  return run


SINGLE = [
  f'--config={ROOT}/experiments/single.py', '--config.data.seq_len=16',
  '--config.model.width=8', '--config.model.depth=2',
  '--config.model.heads=1', '--config.model.kv_heads=1',
  '--config.model.exits=(1,2)', '--config.train.steps=40',
  '--config.train.warmup_steps=1', '--config.train.batch_size=4',
  '--config.train.eval_tokens=128', '--config.train.evaluations=10',
  '--config.train.keep=20', '--config.train.checkpoint_seconds=0',
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('name', ['train', 'run'])
def test_what_trains_goes_on_when_there_is_room(
  disk, tmp_path, familial, study, name
):
  config = [f'--config={study}', '--workers=2'] if name == 'run' else SINGLE
  workdir = disk.folder / 'w'
  for size in ('300k', '1300k'):
    disk.remount(f'size={size}')
    status, line = familial(name, f'--workdir={workdir}', *config)
    assert status == 2 and FULL in line
  before = {
    path: path.read_bytes()
    for path in workdir.rglob(run_folder.ROWS)
    if storage.read_rows(path)
  }
  assert before or name == 'run'
  disk.remount('size=64m')
  assert familial(name, f'--workdir={workdir}', *config)[0] == 0
  assert familial(name, f'--workdir={tmp_path}/w', *config)[0] == 0
  rows = list((tmp_path / 'w').rglob(run_folder.ROWS))
  assert rows
  for path in rows:
    again = workdir / path.relative_to(tmp_path / 'w')
    assert again.read_bytes() == path.read_bytes()
  for path, content in before.items():
    records_then = content[: content.rfind(b'\n') + 1]
    assert path.read_bytes().startswith(records_then)


@pytest.mark.slow
def test_what_is_made_of_runs_is_there_before_and_after(
  disk, tmp_path, familial, study
):
  workdir = disk.folder / 'w'
  disk.remount('size=64m')
  whole = ['run', f'--workdir={workdir}', f'--config={study}']
  assert familial(*whole)[0] == 0
  page = workdir / 'report' / 'index.html'
  figures = sorted(page.parent.glob('figures/*.png'))
  seen = page.read_bytes()
  run = next(iter(sorted((workdir / 'cells').iterdir())))
  fit = [f'--table={workdir}', '--form=dense_null', '--starts=4',
         '--resamples=4', f'--out={disk.folder}/fit']  # fmt: skip
  export = ['export', f'--checkpoint={run}', f'--out={disk.folder}/out']
  commands = [
    ['report', f'--workdir={workdir}'],
    ['fit', *fit],
    ['evaluate', f'--checkpoint={run}'],
    export,
    [*export, '--format=hugging_face'],
    [*export, '--format=segments'],
  ]
  disk.fill()
  for command in [whole, *commands]:
    status, line = familial(*command)
    assert status == 2 and 'No space left on device' in line, command
  disk.empty()
  disk.remount('ro')
  for command in commands:
    status, line = familial(*command)
    assert status == 2 and READ_ONLY in line, command
  generate = ['generate', f'--checkpoint={run}', '--prompt=the']
  assert familial(*generate, '--max_tokens=2')[0] == 0
  assert page.read_bytes() == seen
  assert sorted(page.parent.glob('figures/*.png')) == figures
  disk.remount('rw')
  assert not (disk.folder / 'out').exists()
  assert not list(disk.folder.glob('.out*'))
  for command in commands[1:4]:
    assert familial(*command)[0] == 0, command


@pytest.mark.slow
def test_a_cache_without_room(disk, tmp_path, familial):
  caches = disk.folder / 'cache'
  train = ['train', f'--workdir={tmp_path}/w', *SINGLE]
  for size in ('20k', '100k'):
    disk.remount(f'size={size}')
    status, line = familial(*train, caches=caches)
    assert status == 2 and 'No space left on device' in line
    left = {path.parent.name for path in caches.rglob('*') if path.is_file()}
    assert left <= {'locks', '1.0.0'}
  disk.remount('size=8m')
  assert familial(*train, caches=caches)[0] == 0


@pytest.mark.slow
def test_programs_without_room_are_compiled_all_the_same(
  disk, tmp_path, familial
):
  caches = tmp_path / 'cache'
  caches.mkdir()
  (caches / 'xla').symlink_to(disk.folder)
  disk.fill()
  train = ['train', f'--workdir={tmp_path}/w', *SINGLE]
  assert familial(*train, caches=caches)[0] == 0
  assert [path.name for path in disk.folder.iterdir()] == ['filling']
