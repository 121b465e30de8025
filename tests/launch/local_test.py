"""What launch/local.py does with processes that end as they like."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Says that it is alive, or sleeps, as its line says for its index.
_CHILD = """
import os, signal, sys, time
folder, *lines = sys.argv[1:]
index, pipe = (int(os.environ[f'FAMILIAL_{n}']) for n in ('PROCESS', 'PULSE'))
with open(f'{folder}/{index}', 'w') as file:
  file.write(f'{os.getpid()} {sorted(os.sched_getaffinity(0))}')
def alive(seconds, what=b'.'):
  end = time.monotonic() + seconds
  while time.monotonic() < end:
    os.write(pipe, what)
    time.sleep(0.05)
exec(lines[index])
"""


@pytest.fixture
def command(tmp_path):
  """Makes the command line of processes that do what their lines say."""

  def make(*lines, flags=()):
    return [
      sys.executable, str(ROOT / 'launch/local.py'),
      f'--processes={len(lines)}', *flags, '--',
      sys.executable, '-c', _CHILD, str(tmp_path), *lines,
    ]  # fmt: skip

  return make


def _run(command):
  start = time.monotonic()
  done = subprocess.run(command, capture_output=True, text=True, timeout=60)
  return done, time.monotonic() - start


def _none_left(folder, count):
  pids = [path.read_text().split()[0] for path in folder.iterdir()]
  assert len(pids) == count
  return not any(map(_runs, pids))


def _runs(pid):
  # One that ended stays in the list until whoever adopted it looks.
  try:
    status = pathlib.Path('/proc', pid, 'stat').read_text()
  except (FileNotFoundError, ProcessLookupError):
    return False
  return status.rpartition(') ')[2][0] not in 'ZX'


def test_all_that_end_well(command, tmp_path):
  done, _ = _run(command('print("zero")', 'print("one")'))
  assert (done.returncode, done.stderr, done.stdout) == (0, '', 'zero\n')
  cores = [eval((tmp_path / n).read_text().split(' ', 1)[1]) for n in '01']
  assert set(cores[0] + cores[1]) == os.sched_getaffinity(0)
  if len(os.sched_getaffinity(0)) > 1:
    assert not set(cores[0]) & set(cores[1])


@pytest.mark.parametrize(
  ('lines', 'status', 'said'),
  [
    (
      ('alive(60)', 'os.kill(os.getpid(), 9)', 'alive(60)'),
      137,
      'process 1 of 3 was killed by SIGKILL; the others were stopped',
    ),
    (
      ('alive(0.3); sys.exit(75)', 'print("why"); sys.exit(3)'),
      3,
      'process 1 of 2 ended with status 3; the others were stopped',
    ),
    # Those that it left alone are not blamed, though they end first.
    (
      ('os.abort()', 'alive(0.5); sys.exit(4)'),
      4,
      'process 1 of 2 ended with status 4; the others were stopped',
    ),
    (
      ('alive(60)', 'alive(0.5); os.kill(os.getpid(), 19)'),
      124,
      'process 1 of 2 did not answer for 1 s; the others were stopped',
    ),
    (
      ('alive(0.2, b"s"); alive(60)', 'alive(0.2, b"s"); alive(60)'),
      124,
      'no process finished a step for 2 s; all were stopped',
    ),
    (
      ('pass', 'alive(60)'),
      124,
      'process 1 of 2 still ran 1 s after another had ended; '
      'the others were stopped',
    ),
  ],
)
def test_one_that_ends_badly_ends_all(command, tmp_path, lines, status, said):
  done, seconds = _run(command(*lines, flags=('--silence=1', '--stall=2')))
  assert done.returncode == status
  assert done.stderr.splitlines()[-1] == f'local.py: {said}'
  assert ('[1] why' in done.stderr.splitlines()) == (status == 3)
  assert seconds < 10
  assert _none_left(tmp_path, len(lines))


def test_a_signal_is_passed_on(command, tmp_path):
  lines = [
    'signal.signal(15, lambda *_: sys.exit(130)); alive(0.1); '
    f'print("ready {i}", flush=True); alive(60)'
    for i in range(2)
  ]
  with subprocess.Popen(
    command(*lines), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  ) as started:
    assert started.stdout.readline() == 'ready 0\n'
    time.sleep(0.5)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=20)
  assert (started.returncode, said) == (130, '')
  assert _none_left(tmp_path, 2)


def test_none_outlives_the_launcher(command, tmp_path):
  with subprocess.Popen(command('alive(60)', 'alive(60)')) as started:
    while len(list(tmp_path.iterdir())) < 2:
      assert started.poll() is None
      time.sleep(0.05)
    started.kill()
  end = time.monotonic() + 30  # They look for it now and then.
  while not _none_left(tmp_path, 2) and time.monotonic() < end:
    time.sleep(0.1)
  assert _none_left(tmp_path, 2)


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    (('--processes=0', '--', 'true'), "'0' is not a number from 1 on"),
    (('--processes=2', '--', '/nowhere/x'), '/nowhere/x: No such file'),
  ],
)
def test_what_cannot_be_started_is_refused(flags, said):
  done, _ = _run([sys.executable, str(ROOT / 'launch/local.py'), *flags])
  assert done.returncode == 2
  assert said in done.stderr and 'Traceback' not in done.stderr
