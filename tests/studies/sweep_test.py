import collections
import dataclasses
import fcntl
import multiprocessing
import os
import pathlib
import signal
import threading
import time
import types

import pytest

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.studies import isoflop
from familial.studies import shapes
from familial.studies import sweep


@pytest.fixture
def tiny(make_study, corpus):
  """Cells of a few steps that differ by budget alone: one program."""
  del corpus  # Packed once, before anything is timed or counted.

  def make(budgets=(1e7, 1.3e7, 1.6e7), **sections):
    study = make_study(
      grid={'budgets': budgets, 'granularities': (2,)},
      **{'train': {'evaluations': 2}, **sections},
    )
    return isoflop.ISOFLOP.runs(study)

  return make


@pytest.fixture
def frozen_first(make_study, corpus):
  """A frozen cell, and the dense one that it starts from behind it."""
  del corpus
  arm = {'budgets': (4e8,), 'shapes': (0,), 'granularities': (2,)}
  cells = isoflop.ISOFLOP.runs(
    make_study(
      grid={'granularities': (1,)},
      arms={'frozen': {**arm, 'values': ('separate',)}},
    )
  )
  return cells[::-1]


@pytest.fixture
def fake_loop(monkeypatch, tmp_path, write_rows):
  """Replaces training: cells finish at once, but for what `does` says."""
  from familial.training import loop
  from familial.training import population

  calls = collections.Counter()
  does = {}

  def run(cell, folder, corpus, *, until, quiet, tensorboard, profile):
    assert pathlib.Path(folder) == sweep.folder(tmp_path, cell.cell)
    calls[cell.cell] += 1
    outcome = does.get(cell.cell, lambda attempt: 'finished')(calls[cell.cell])
    losses = [2.0] * cell.model.granularity
    write_rows(tmp_path, cell, losses if outcome == 'finished' else None)
    return outcome

  def together(cells, folders, corpus, model, **flags):
    return [
      run(*member, corpus, **flags)
      for member in zip(cells, folders, strict=True)
    ]

  monkeypatch.setattr(loop, 'run', run)
  monkeypatch.setattr(population, 'run', together)
  return types.SimpleNamespace(calls=calls, does=does)


def never_sleep(monkeypatch):
  def sleep(seconds):
    raise AssertionError('waits for what will never come')

  monkeypatch.setattr(sweep, 'time', types.SimpleNamespace(sleep=sleep))


def raises(error, times=99):
  def outcome(attempt):
    if attempt <= times:
      raise error
    return 'finished'

  return outcome


def files_of(workdir):
  return {
    path: (path.read_bytes(), path.stat().st_mtime_ns)
    for path in workdir.rglob('*')
    if path.is_file() and path.name != 'lock'
  }


def assert_whole(workdir, cells):
  for cell in cells:
    rows = storage.read_rows(sweep.folder(workdir, cell.cell) / run_folder.ROWS)
    steps, count = cell.train.steps, cell.train.evaluations
    expected = [
      (round(steps * i / count), exit_)
      for i in range(1, count + 1)
      for exit_ in range(1, cell.model.granularity + 1)
    ]
    assert [(row['step'], row['exit']) for row in rows] == expected
    assert rows[-1]['status'] == 'finished'
    assert rows[-1]['flops'] == shapes.cost(cell)


def test_two_processes_train_each_cell_once(tiny, tmp_path, monkeypatch):
  cells = tiny()
  spawn = multiprocessing.get_context('spawn')
  processes = [
    spawn.Process(
      target=sweep.work, args=(cells, str(tmp_path)), kwargs={'quiet': True}
    )
    for _ in range(2)
  ]
  for process in processes:
    process.start()
  for process in processes:
    process.join()
  assert [process.exitcode for process in processes] == [0, 0]
  assert_whole(tmp_path, cells)
  assert not list(tmp_path.rglob('error.log'))
  # Again: nothing is trained, nothing is touched.
  before = files_of(tmp_path)
  for module in ('loop', 'population'):
    monkeypatch.setattr(f'familial.training.{module}.run', None)
  sweep.work(cells, tmp_path)
  assert sweep.execute(cells, tmp_path, sweep.Options(workers=2)) == []
  assert files_of(tmp_path) == before


def test_a_cell_that_raises_once_is_tried_again(tiny, tmp_path, fake_loop):
  cells = tiny()
  fake_loop.does[cells[1].cell] = raises(RuntimeError('out of luck'), times=1)
  assert sweep.execute(cells, tmp_path) == []
  assert fake_loop.calls == {
    cell.cell: 1 + (cell is cells[1]) for cell in cells
  }
  assert not list(tmp_path.rglob('error.log'))


def test_a_cell_that_always_raises_leaves_its_traceback(
  tiny, tmp_path, fake_loop, capsys
):
  cells = tiny()
  fake_loop.does[cells[1].cell] = raises(RuntimeError('out of luck'))
  assert sweep.execute(cells, tmp_path) == [cells[1].cell]
  log = (sweep.folder(tmp_path, cells[1].cell) / 'error.log').read_text()
  assert 'Traceback' in log and 'RuntimeError: out of luck' in log
  assert 'Traceback' not in capsys.readouterr().err
  for cell in cells:
    status = run_folder.status(sweep.folder(tmp_path, cell.cell))
    assert (status == 'finished') == (cell is not cells[1])
  # The next call tries again, that one alone.
  fake_loop.calls.clear()
  fake_loop.does.clear()
  assert sweep.execute(cells, tmp_path) == []
  assert fake_loop.calls == {cells[1].cell: 1}
  assert not list(tmp_path.rglob('error.log'))


def test_a_diverged_cell_is_recorded_and_skipped(tiny, tmp_path, fake_loop):
  cells = tiny()
  fake_loop.does[cells[2].cell] = lambda attempt: 'diverged'
  assert sweep.execute(cells, tmp_path) == []
  assert run_folder.status(sweep.folder(tmp_path, cells[2].cell)) == 'diverged'
  fake_loop.calls.clear()
  assert sweep.execute(cells, tmp_path) == []
  sweep.work(cells, tmp_path)
  assert not fake_loop.calls


def test_a_frozen_cell_waits_for_its_parent(
  frozen_first, tmp_path, fake_loop, monkeypatch
):
  never_sleep(monkeypatch)
  frozen, dense = frozen_first
  assert sweep.execute(frozen_first, tmp_path) == []
  assert list(fake_loop.calls) == [dense.cell, frozen.cell]


@pytest.mark.parametrize(
  'outcome', [raises(RuntimeError('no')), lambda attempt: 'diverged']
)
def test_a_frozen_cell_does_not_wait_for_a_parent_that_cannot_finish(
  frozen_first, tmp_path, fake_loop, monkeypatch, outcome
):
  never_sleep(monkeypatch)
  frozen, dense = frozen_first
  fake_loop.does[dense.cell] = outcome
  assert frozen.cell in sweep.execute(frozen_first, tmp_path)
  assert frozen.cell not in fake_loop.calls


def test_a_frozen_cell_without_its_parent_is_not_waited_for(
  frozen_first, tmp_path, fake_loop, monkeypatch
):
  never_sleep(monkeypatch)
  assert sweep.execute(frozen_first[:1], tmp_path) == [frozen_first[0].cell]
  assert not fake_loop.calls


def test_a_cell_that_another_process_holds_is_taken_when_that_dies(
  tiny, tmp_path, fake_loop, monkeypatch
):
  cells = tiny()
  run = sweep.folder(tmp_path, cells[0].cell)
  run.mkdir(parents=True)
  held = open(run / 'lock', 'w')
  fcntl.flock(held, fcntl.LOCK_EX)
  others = {}

  def sleep(seconds):
    others.update(fake_loop.calls)
    held.close()  # What the system does for a process that dies.

  monkeypatch.setattr(sweep, 'time', types.SimpleNamespace(sleep=sleep))
  assert sweep.execute(cells, tmp_path) == []
  assert set(others) == {cell.cell for cell in cells[1:]}
  assert fake_loop.calls[cells[0].cell] == 1


def test_a_stop_is_no_failure_and_ends_the_sweep(tiny, tmp_path, fake_loop):
  cells = tiny()
  fake_loop.does[cells[1].cell] = raises(errors.Interrupted('stopped'))
  with pytest.raises(errors.Interrupted):
    sweep.execute(cells, tmp_path)
  assert fake_loop.calls == {cells[0].cell: 1, cells[1].cell: 1}
  assert not list(tmp_path.rglob('error.log'))


def test_what_one_worker_refuses_stops_all(tiny, tmp_path):
  long, cell = tiny((1.2e10, 1.25e10), train={'evaluations': 100})
  nowhere = dataclasses.replace(cell.data, path=str(tmp_path / 'nowhere'))
  refused = dataclasses.replace(cell, data=nowhere)
  with pytest.raises(errors.UserError, match='nowhere'):
    sweep.execute([long, refused], tmp_path, sweep.Options(workers=2))
  for cell in (long, refused):
    status = run_folder.status(sweep.folder(tmp_path, cell.cell))
    assert status in ('new', 'running')
  assert not list(tmp_path.rglob('error.log'))


def test_a_stop_while_workers_start_leaves_none(tiny, tmp_path, monkeypatch):
  workers = []

  class Worker:
    exitcode = None

    def __init__(self, **unused):
      workers.append(self)

    def start(self):
      self.alive = True
      os.kill(os.getpid(), signal.SIGTERM)

    def is_alive(self):
      return self.alive

    def terminate(self):
      self.alive = False

    def join(self):
      assert not self.alive

  def orphaned(*unused):
    raise AssertionError('nobody listens yet')

  spawn = multiprocessing.get_context('spawn')
  monkeypatch.setattr(spawn, 'Process', Worker)
  before = signal.signal(signal.SIGTERM, orphaned)
  try:
    with pytest.raises(errors.Interrupted):
      sweep.execute(tiny(), tmp_path, sweep.Options(workers=2))
  finally:
    signal.signal(signal.SIGTERM, before)
  assert [worker.alive for worker in workers] == [False, False]


@pytest.mark.slow
def test_sigterm_stops_all_workers_and_all_can_go_on(tiny, tmp_path):
  cells = tiny((1.2e10, 1.25e10), train={'evaluations': 100})
  runs = [sweep.folder(tmp_path, cell.cell) for cell in cells]

  def stop_when_both_train():
    while not all(run_folder.status(run) == 'running' for run in runs):
      time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)

  before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
  try:
    threading.Thread(target=stop_when_both_train, daemon=True).start()
    with pytest.raises(errors.Interrupted):
      sweep.execute(cells, tmp_path, sweep.Options(workers=2))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
  finally:
    signal.signal(signal.SIGTERM, before)
  assert not list(tmp_path.rglob('error.log'))
  left = {run: files_of(run)[run / run_folder.ROWS][0] for run in runs}
  for run in runs:
    assert run_folder.status(run) == 'running'
    assert list((run / 'checkpoints').iterdir())
  assert sweep.execute(cells, tmp_path) == []
  assert_whole(tmp_path, cells)
  for run, rows in left.items():  # What was there went on, not anew.
    assert (run / run_folder.ROWS).read_bytes().startswith(rows)
