"""A study from its plan to its summary: who plans, what is resumed, what fails."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.data import packing
from familial.laws import selection
from familial.studies import execution
from familial.studies import isoflop
from familial.studies import plan as plan_lib
from familial.studies import study as study_lib
from familial.studies import sweep

ROOT = pathlib.Path(__file__).parents[2]
STUDY = isoflop.ISOFLOP


@pytest.fixture
def dense(make_study, corpus):
  """A study of one model at two budgets: quickly planned."""
  del corpus  # Packed once.
  return make_study(
    grid={'budgets': (1e8, 4e8), 'granularities': (1,), 'seconds': 10.0},
  )


def planned(workdir):
  plan = storage.read_own(workdir / study_lib.PLAN)
  return [row['cell'] for row in plan['cells']], plan['seconds']


def workers(number):
  return study_lib.Options(workers=number)


def test_the_first_to_begin_decides_on_the_runs(
  dense, tmp_path, calibrated, trained
):
  calibrations = calibrated(2e7)
  STUDY.run(dense, tmp_path)
  cells, seconds = planned(tmp_path)
  assert cells == ['c1e8_w8_d2_g1']
  STUDY.run(dense, tmp_path)
  assert planned(tmp_path) == (cells, seconds)
  assert calibrations == [1]
  # Two workers, each as fast as the one: half the time, for the same runs.
  STUDY.run(dense, tmp_path, workers(2))
  assert planned(tmp_path) == (cells, pytest.approx(seconds / 2))
  for number, speed in ((3, 1e9), (4, 1e3)):
    calibrated(speed)
    STUDY.run(dense, tmp_path, workers(number))
    assert planned(tmp_path)[0] == cells
  assert calibrations == [1, 2, 3, 4]


def test_a_plan_that_was_only_looked_at_binds_nobody(
  dense, tmp_path, calibrated, trained
):
  look = study_lib.Options(plan_only=True)
  calibrated(2e7)
  assert STUDY.run(dense, tmp_path, look).planned_only
  assert planned(tmp_path)[0] == ['c1e8_w8_d2_g1']
  assert not (tmp_path / 'cells').exists()
  calibrated(1e9)  # The machine that trains is faster.
  outcome = STUDY.run(dense, tmp_path)
  assert (outcome.total, outcome.failed, outcome.planned_only) == (2, (), False)
  calibrated(2e7)
  STUDY.run(dense, tmp_path, look)
  assert planned(tmp_path)[0] == ['c1e8_w8_d2_g1', 'c4e8_w8_d2_g1']


def test_of_two_that_begin_at_once_one_plans(
  dense, tmp_path, calibrated, trained, monkeypatch
):
  calibrations = calibrated(2e7)
  calibrate = plan_lib.calibrate

  def slowly(*arguments):
    time.sleep(0.2)  # The second comes meanwhile.
    return calibrate(*arguments)

  monkeypatch.setattr(plan_lib, 'calibrate', slowly)
  threads = [
    threading.Thread(target=STUDY.run, args=(dense, tmp_path)) for _ in range(2)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert calibrations == [1]
  assert planned(tmp_path)[0] == ['c1e8_w8_d2_g1']


def test_a_study_goes_on_with_its_own_corpus_and_config_only(
  dense, tmp_path, corpus, calibrated, trained, monkeypatch
):
  calibrated(2e7)
  STUDY.run(dense, tmp_path)
  # How laws are fitted may change; what was trained may not.
  other = dataclasses.replace(dense, fit=isoflop.Fit(starts=3))
  STUDY.run(other, tmp_path)
  grid = dataclasses.replace(dense.grid, seed=5)
  with pytest.raises(errors.UserError, match=r'grid\.seed'):
    STUDY.run(dataclasses.replace(dense, grid=grid), tmp_path)
  monkeypatch.setattr(
    packing,
    'load',
    lambda data: dataclasses.replace(corpus, fingerprint='another'),
  )
  with pytest.raises(errors.UserError) as raised:
    STUDY.run(other, tmp_path)
  for part in (corpus.fingerprint, 'another', 'text_files', 'workdir'):
    assert part in str(raised.value)


def test_a_study_without_some_runs_is_analysed_all_the_same(
  dense, tmp_path, calibrated, trained, capsys
):
  calibrated(1e9)
  trained.add('c4e8_w8_d2_g1')
  outcome = STUDY.run(dense, tmp_path)
  assert (outcome.failed, outcome.total) == (('c4e8_w8_d2_g1',), 2)
  assert 'c4e8_w8_d2_g1: ' in capsys.readouterr().err
  summary = STUDY.read_summary(tmp_path)
  assert (summary.cost.finished, summary.cost.missing) == (1, 1)
  assert any('c4e8_w8_d2_g1' in flag for flag in summary.flags)
  assert outcome.line == summary.summary_line
  trained.clear()
  assert STUDY.run(dense, tmp_path).failed == ()
  assert STUDY.read_summary(tmp_path).cost.finished == 2


def test_two_runs_of_one_name_are_refused(dense):
  run, other = STUDY.runs(dense)
  assert execution.named_once([run, other, run]) == [run, other]
  with pytest.raises(errors.UserError, match=f'^{run.cell}: '):
    execution.named_once([run, dataclasses.replace(other, cell=run.cell)])


def test_a_study_trains_its_runs_and_reads_what_they_found(
  make_study, corpus, tmp_path, calibrated, monkeypatch
):
  del corpus
  calibrated(1e9)
  # Each law takes seconds to compile; tests/studies/isoflop_test.py fits them.
  fitted = []
  monkeypatch.setattr(
    selection, 'compare', lambda table, *_, **__: fitted.append(table.rows)
  )
  config = make_study(grid={'budgets': (1e8,)})
  outcome = STUDY.run(config, tmp_path)
  assert (outcome.total, outcome.failed) == (2, ())
  assert fitted == [2, 2, 3, 3, 1]  # Last and mean, each exit twice, dense.
  results = study_lib.read(tmp_path)
  assert [run.cell for run in results.runs] == planned(tmp_path)[0]
  summary = STUDY.read_summary(tmp_path)
  assert summary.cost.finished == 2 and summary.cost.seconds > 0
  [ratio] = [
    row
    for row in summary.tables.paired_ratios
    if row.loss == 'final' and row.budget is None
  ]
  dense, family = (run.log_loss('final') for run in results.runs)
  assert ratio.log_ratio.value == pytest.approx(family - dense)


@pytest.mark.slow
def test_a_study_from_the_command_line(tmp_path, text_data):
  def run():
    done = subprocess.run(
      [
        sys.executable, '-m', 'familial', 'run', '--workers=2',
        f'--config={ROOT}/experiments/familial_law.py:test',
        f'--workdir={tmp_path}', '--config.data.corpus=text_files',
        f'--config.data.path={text_data.path}',
        '--config.data.heldout_percent=20',
      ],
      capture_output=True, text=True, cwd=ROOT, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'Traceback' not in done.stderr
    return done.stdout.rstrip().split('\n')

  *_, line, written = run()
  summary = STUDY.read_summary(tmp_path)
  assert line == summary.summary_line
  assert written == f'{tmp_path}/report/index.html'
  assert summary.tables.twins and len(summary.tables.gamma) == 6
  plan = storage.read_own(tmp_path / study_lib.PLAN)
  assert plan['power']
  for row in plan['cells']:
    status = run_folder.status(sweep.folder(tmp_path, row['cell']))
    assert status == 'finished'
  files = {
    path: (path.read_bytes(), path.stat().st_mtime_ns)
    for path in tmp_path.glob('cells/*/*.json*')
  }
  run()
  for path, (content, modified) in files.items():
    assert path.read_bytes() == content
    assert path.stat().st_mtime_ns == modified
  again = STUDY.read_summary(tmp_path)
  assert json.dumps(dataclasses.asdict(again)) == json.dumps(
    dataclasses.asdict(summary)
  )


def _grid(study, **changes):
  return dataclasses.replace(
    study, grid=dataclasses.replace(study.grid, **changes)
  )


def test_a_study_takes_more_runs_in_its_folder(
  make_study, corpus, tmp_path, calibrated, trained
):
  del corpus
  small = make_study(grid={'budgets': (1e8,)})
  calibrated(1e9)
  assert STUDY.run(small, tmp_path).total == 2
  before = {
    path: path.read_bytes() for path in tmp_path.glob('cells/*/*.jsonl')
  }
  assert len(before) == 2
  more = _grid(
    small,
    budgets=(1e8, 4e8),
    shapes=((8, 2, 1), (16, 2, 1)),
    granularities=(1, 2),
  )
  assert STUDY.run(more, tmp_path).total == 8
  assert len(planned(tmp_path)[0]) == 8
  assert STUDY.read_summary(tmp_path).cost.finished == 8
  for path, content in before.items():
    assert path.read_bytes() == content
  # Of what has begun nothing may change, and nothing may be left out.
  for other, key in (
    (small, r'grid\.budgets'),
    (
      dataclasses.replace(more, train={**more.train, 'base_lr': 1.0}),
      'base_lr',
    ),
  ):
    with pytest.raises(errors.UserError, match=rf'{key} = .*_w.* has begun'):
      STUDY.run(other, tmp_path)
  assert len(planned(tmp_path)[0]) == 8


def test_a_start_that_is_refused_writes_nothing(
  dense, tmp_path, corpus, calibrated, trained, monkeypatch
):
  calibrated(2e7)
  workdir = tmp_path / 'deep' / 'w'
  for other in (
    dataclasses.replace(dense, train={**dense.train, 'eval_tokens': 0}),
    dataclasses.replace(
      dense, data=dataclasses.replace(dense.data, seq_len=10**6)
    ),
    dataclasses.replace(
      dense, layout=dataclasses.replace(dense.layout, data=10**4)
    ),
  ):
    with pytest.raises(errors.UserError):
      STUDY.run(other, workdir)
    assert not (tmp_path / 'deep').exists()

  # A plan that was looked at is no reason to keep to its config.
  STUDY.run(dense, workdir, study_lib.Options(plan_only=True))
  other = _grid(dense, seed=3)
  assert STUDY.run(other, workdir).failed == ()
  # Another kind of folder is not a study's to overwrite.
  run = tmp_path / 'run'
  run_folder.open_folder(run, STUDY.runs(dense)[0], {'parent': None})
  content = (run / 'config.json').read_bytes()
  with pytest.raises(errors.UserError, match='was made with'):
    STUDY.run(dense, run)
  assert (run / 'config.json').read_bytes() == content
