import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.data import packing
from familial.laws import selection
from familial.model import flops as flops_lib
from familial.report import html
from familial.report import page
from familial.studies import isoflop
from familial.studies import plan as plan_lib
from familial.studies import summary
from familial.studies import sweep
from familial.training import rows as rows_lib

ROOT = pathlib.Path(__file__).parents[2]
REPORT = page.write  # Which a fixture replaces.


def without_clocks(value):
  """A fit without what it took and where it was."""
  if isinstance(value, dict):
    return {
      key: without_clocks(item)
      for key, item in value.items()
      if 'seconds' not in key
    }
  return value


def results(workdir):
  return {
    path.relative_to(workdir): without_clocks(json.loads(path.read_text()))
    for path in [workdir / 'summary.json', *workdir.glob('fits/**/*.json')]
  }


@pytest.fixture
def dense(make_study):
  """A study of one model at two budgets: quickly planned."""
  return make_study(
    grid={'budgets': (1e8, 4e8), 'granularities': (1,), 'seconds': 10.0}
  )


@pytest.fixture
def calibrated(monkeypatch):
  """Sets the FLOP/s that calibrations find; returns how many there were."""
  found = []

  def calibrate(cells, workers):
    found.append(workers)
    time.sleep(0.2)  # A second process comes meanwhile.
    return plan_lib.Speed((8, 8), (speed[0], speed[0]), 0.0, 'cpu')

  def at(flops_per_second):
    speed[:] = [flops_per_second]
    return found

  speed = []
  monkeypatch.setattr(plan_lib, 'calibrate', calibrate)
  return at


@pytest.fixture
def untrained(monkeypatch):
  """Studies end with their plan: nothing is trained, nothing reported."""
  monkeypatch.setattr(sweep, 'execute', lambda *_, **__: [])
  monkeypatch.setattr(summary, 'write', lambda *_: 'what was found')
  monkeypatch.setattr(page, 'write', lambda workdir: workdir / 'index.html')


def planned(workdir):
  plan = json.loads((workdir / 'plan.json').read_text())
  return [row['cell'] for row in plan['cells']], plan['seconds']


def test_the_first_to_begin_decides_on_the_cells(
  dense, tmp_path, calibrated, untrained
):
  calibrations = calibrated(2e7)
  isoflop.run(dense, tmp_path)
  cells, seconds = planned(tmp_path)
  assert cells == ['c1e8_w8_d2_g1']
  isoflop.run(dense, tmp_path)
  assert planned(tmp_path) == (cells, seconds)
  assert calibrations == [1]
  # Two workers, each as fast as the one: half the time, for the same cells.
  isoflop.run(dense, tmp_path, workers=2)
  assert planned(tmp_path) == (cells, pytest.approx(seconds / 2))
  for workers, speed in ((3, 1e9), (4, 1e3)):
    calibrated(speed)
    isoflop.run(dense, tmp_path, workers=workers)
    assert planned(tmp_path)[0] == cells
  assert calibrations == [1, 2, 3, 4]


def test_a_plan_that_was_only_looked_at_binds_nobody(
  dense, tmp_path, calibrated, untrained
):
  calibrated(2e7)
  isoflop.run(dense, tmp_path, plan_only=True)
  assert planned(tmp_path)[0] == ['c1e8_w8_d2_g1']
  calibrated(1e9)  # The machine that trains is faster.
  isoflop.run(dense, tmp_path)
  assert planned(tmp_path)[0] == ['c1e8_w8_d2_g1', 'c4e8_w8_d2_g1']
  calibrated(2e7)
  isoflop.run(dense, tmp_path, plan_only=True)
  assert planned(tmp_path)[0] == ['c1e8_w8_d2_g1', 'c4e8_w8_d2_g1']


def test_of_two_that_begin_at_once_one_plans(
  dense, tmp_path, calibrated, untrained
):
  calibrations = calibrated(2e7)
  threads = [
    threading.Thread(target=isoflop.run, args=(dense, tmp_path))
    for _ in range(2)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert calibrations == [1]
  assert planned(tmp_path)[0] == ['c1e8_w8_d2_g1']


def test_a_study_goes_on_with_its_own_corpus_only(
  dense, tmp_path, corpus, calibrated, untrained, monkeypatch
):
  calibrated(2e7)
  isoflop.run(dense, tmp_path)
  other = dataclasses.replace(corpus, fingerprint='another')
  monkeypatch.setattr(packing, 'load', lambda data: other)
  with pytest.raises(errors.UserError) as raised:
    isoflop.run(dense, tmp_path)
  for part in (corpus.fingerprint, 'another', 'text_files', 'workdir'):
    assert part in str(raised.value)


def test_a_plan_of_another_version_is_refused(
  dense, tmp_path, calibrated, untrained
):
  calibrated(2e7)
  isoflop.run(dense, tmp_path)
  path = tmp_path / 'plan.json'
  plan = json.loads(path.read_text())
  assert plan['schema'] == storage.SCHEMA
  path.write_text(json.dumps({**plan, 'schema': 99}))
  for use in (lambda: isoflop.run(dense, tmp_path), lambda: REPORT(tmp_path)):
    with pytest.raises(
      errors.UserError, match=r'plan\.json: schema 99 is not 1'
    ):
      use()


def test_a_study_without_some_cells_is_reported_and_no_success(
  dense, tmp_path, calibrated, monkeypatch, capsys
):
  calibrated(1e9)

  def write(study, workdir, failed):
    assert failed == ['c4e8_w8_d2_g1']
    return 'what was found'

  monkeypatch.setattr(sweep, 'execute', lambda *_, **__: ['c4e8_w8_d2_g1'])
  monkeypatch.setattr(summary, 'write', write)
  monkeypatch.setattr(page, 'write', lambda workdir: workdir / 'index.html')
  with pytest.raises(errors.Incomplete, match='1 of 2 cells failed'):
    isoflop.run(dense, tmp_path)
  printed = capsys.readouterr()
  assert f'what was found\n{tmp_path}/index.html' in printed.out
  assert 'c4e8_w8_d2_g1: ' in printed.err


def test_a_study_from_its_plan_to_its_page(
  make_study, tmp_path, calibrated, monkeypatch
):
  calibrated(1e9)  # The slow one below times steps.
  write = rows_lib.of_evaluation

  def lawful(config, run, fingerprint, step, inherited, epochs, losses, *rest):
    """Rows of what was trained, but for losses of which gamma is known."""
    assert np.isfinite(losses).all()
    tokens = step * config.train.batch_size * config.data.seq_len
    size = flops_lib.params_full(config.model)
    loss = 1 + 30 / size**0.5 + 20 / tokens**0.4
    losses = [loss * len(losses) ** 0.05] * len(losses)
    return write(
      config, run, fingerprint, step, inherited, epochs, losses, *rest
    )

  fit = selection.compare

  def first(table, forms, out, *options, loss_definition, **named):
    """Fits one law to one loss: each takes seconds to compile."""
    if loss_definition != 'final':
      raise errors.UserError('left out')
    named['loss_definition'] = loss_definition
    return fit(table, forms[:1], out / forms[0], *options, **named)

  monkeypatch.setattr(rows_lib, 'of_evaluation', lawful)
  monkeypatch.setattr(selection, 'compare', first)
  monkeypatch.setattr(html, '_DPI', 60)
  study = make_study(
    grid={'budgets': (1e8, 2e8, 4e8, 8e8)},
    fit={'starts': 2, 'resamples': 2},
  )
  line, written = isoflop.run(study, tmp_path).split('\n')
  assert 'final loss 0.05' in line and '8 runs' in line
  cells, _ = planned(tmp_path)
  assert len(cells) == 8
  for cell in cells:
    assert run_folder.status(tmp_path / 'cells' / cell) == 'finished'
  assert 'gamma' in pathlib.Path(written.split(' (')[0]).read_text()


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
    return done.stdout

  out = run()
  plan = json.loads((tmp_path / 'plan.json').read_text())
  assert [row['cell'] for row in plan['cells']] and plan['power']
  for row in plan['cells']:
    folder = tmp_path / 'cells' / row['cell']
    assert run_folder.status(folder) == 'finished'
    assert row['cell'] in out
  pattern = r'final loss -?\d+\.\d{4} \[-?\d+\.\d{4}, -?\d+\.\d{4}\]'
  assert re.search(pattern, out.rstrip().split('\n')[-2])
  assert 'report/index.html' in out.rstrip().split('\n')[-1]
  page = (tmp_path / 'report' / 'index.html').read_text()
  assert 'gamma' in page and 'http://' not in page.replace('http://www.w3', '')
  assert {path.parent.name for path in tmp_path.glob('fits/final/*/fit.json')}
  first = results(tmp_path)
  assert first[pathlib.Path('summary.json')]['twins']['rows']
  files = {
    path: (path.read_bytes(), path.stat().st_mtime_ns)
    for path in tmp_path.glob('cells/*/*.json*')
  }
  run()
  for path, (content, modified) in files.items():
    assert path.read_bytes() == content
    assert path.stat().st_mtime_ns == modified
  assert results(tmp_path) == first
