"""A study that is killed at any moment ends as one that nothing happened to."""

import collections
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from familial.core import run_folder

ROOT = pathlib.Path(__file__).parents[2]
# What shows, and changes, while a study does something.
_SIGNS = {
  'saving': 'cells/*/checkpoints/*tmp*',
  'rows': 'cells/*/metrics.jsonl',
  'fitting': 'fits/**/*',
  'report': 'report/**/*',
}
# How many kills wait for each; a moment is any, after so many seconds at most.
_MOMENTS, _SECONDS = 5, 12.0
_KILLS = {'saving': 6, 'rows': 3, 'fitting': 4, 'report': 2}


class _Study:
  """A study's command, started again whenever it is gone."""

  def __init__(self, config, workdir):
    self._command = [
      sys.executable, '-m', 'familial', 'run', '--workers=2',
      f'--config={config}', f'--workdir={workdir}',
    ]  # fmt: skip
    self.workdir = workdir
    self.log = workdir.with_suffix('.log')
    self._process = None

  def start(self):
    """Starts it where it is not running."""
    if self._process is None or self._process.poll() is not None:
      with open(self.log, 'a') as log:
        self._process = subprocess.Popen(
          self._command, cwd=ROOT, stdout=log, stderr=log,
          start_new_session=True,
          env={**os.environ, 'PYTHONPATH': str(ROOT)},
        )  # fmt: skip

  def finish(self):
    """Lets it end by itself; returns its status."""
    self.start()
    return self._process.wait()

  def running(self):
    return self._process.poll() is None

  def kill(self):
    """Kills it with all that it started."""
    os.killpg(self._process.pid, signal.SIGKILL)
    self._process.wait()

  def workers(self):
    """Returns the numbers of the processes that it has work."""
    own = pathlib.Path('/proc', str(self._process.pid))
    try:
      children = (own / 'task' / own.name / 'children').read_text().split()
      return [
        int(child)
        for child in children
        if b'spawn_main' in pathlib.Path('/proc', child, 'cmdline').read_bytes()
      ]
    except FileNotFoundError:  # Gone meanwhile.
      return []

  def signs(self, phase):
    """Returns what a phase has left so far."""
    found = set()
    for path in self.workdir.glob(_SIGNS[phase]):
      try:
        stat = path.stat()
      except FileNotFoundError:
        continue
      found.add((path, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return found

  def reach(self, phase):
    """Waits until a phase is seen; returns whether it was."""
    before = self.signs(phase)
    while self.running():
      if self.signs(phase) - before:
        return True
      time.sleep(0.002)
    return False


def _without_clocks(value):
  if isinstance(value, dict):
    return {
      key: _without_clocks(item)
      for key, item in value.items()
      if 'seconds' not in key
    }
  return value


def _results(workdir):
  """Returns all that a study found."""
  found = {
    str(path.relative_to(workdir)): path.read_bytes()
    for path in workdir.glob('cells/*/metrics.jsonl')
  }
  for path in [workdir / 'summary.json', *workdir.glob('fits/**/*.json')]:
    value = _without_clocks(json.loads(path.read_text()))
    value.pop('machine', None)  # Its command names the folder.
    found[str(path.relative_to(workdir))] = value
  return found


@pytest.mark.slow
def test_killed_at_twenty_moments_it_finds_the_same(tmp_path, study):
  calm = _Study(study, tmp_path / 'calm')
  assert calm.finish() == 0, calm.log.read_text()[-2000:]

  rng = random.Random(0)
  early = ['moment'] * _MOMENTS
  early += ['saving'] * _KILLS['saving'] + ['rows'] * _KILLS['rows']
  rng.shuffle(early)
  late = ['fitting'] * _KILLS['fitting'] + ['report'] * _KILLS['report']
  killed = _Study(study, tmp_path / 'killed')
  done = collections.Counter()
  left = 0
  for number, phase in enumerate(early + late):
    killed.start()
    if phase == 'moment':
      time.sleep(rng.uniform(0.0, _SECONDS))
      seen = killed.running()
    else:
      seen = killed.reach(phase)
      most = {'saving': 0.05, 'rows': 0.02, 'fitting': 2.0, 'report': 1.0}
      time.sleep(rng.uniform(0.0, most[phase]))
    workers = killed.workers()
    if number % 3 == 1 and workers:
      os.kill(rng.choice(workers), signal.SIGKILL)
      done['worker', phase if seen else 'too late'] += 1
    else:
      killed.kill()
      left += bool(killed.signs('saving'))
      done['all', phase if seen else 'too late'] += 1
  print(dict(done), 'checkpoints left unfinished after', left)
  assert sum(done.values()) == 20
  assert left > 0
  for phase in _KILLS:
    assert done['all', phase] + done['worker', phase] > 0, phase
  assert killed.finish() == 0, killed.log.read_text()[-2000:]
  assert 'Traceback' not in killed.log.read_text()
  assert _results(killed.workdir) == _results(calm.workdir)
  for path in calm.workdir.glob('fits/**/bootstrap.npz'):
    other = killed.workdir / path.relative_to(calm.workdir)
    with np.load(path) as one, np.load(other) as two:
      for name in one.files:
        np.testing.assert_array_equal(one[name], two[name])
  for run in (killed.workdir / 'cells').iterdir():
    assert run_folder.status(run) == 'finished'
