"""Runs of several processes on this host, as launch/local.py starts them."""

import dataclasses
import os
import pathlib
import pickle
import socket
import subprocess
import sys
import time

import jax
from jax.experimental import multihost_utils
import numpy as np
import pytest

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.training import config as train_config
from familial.training import loop
from familial.training import processes

ROOT = pathlib.Path(__file__).parents[2]
# A run; process WHO sends itself the signal HOW in step WHEN.
_CHILD = """
import os, pathlib, pickle, sys, time
from familial.core import errors
from familial.training import evaluation
from familial.training import loop, processes
path, folder, who, when, how = sys.argv[1:]
losses = evaluation.losses
def checked(params, model, batches):
  # Every process holds all held-out rows: none counts twice.
  assert {len(batch['inputs_BxL']) for batch in batches} == {8}
  return losses(params, model, batches)
evaluation.losses = checked
# So that every step may be the one that is stopped after.
processes.EXCHANGE = 0.0
def on_step(step):
  if step == int(when) and processes.index() == int(who):
    pathlib.Path(path).with_name('time').write_text(str(time.time()))
    os.kill(os.getpid(), int(how))
with open(pathlib.Path(path).with_name('pids'), 'a') as file:
  file.write(f'{os.getpid()}\\n')
try:
  with processes.joined():
    with open(path, 'rb') as file:
      config = pickle.load(file)
    print(loop.run(config, folder, quiet=True, on_step=on_step))
except errors.Interrupted as error:
  print(error, file=sys.stderr)
  sys.exit(130)
"""


@dataclasses.dataclass(frozen=True)
class Ended:
  """How a launch ended: its status, its last line, seconds since the signal."""

  status: int
  last: str
  out: str
  seconds: float


@pytest.fixture
def launch(tmp_path):
  """Runs a config as several processes, one of which may get a signal."""

  def run(config, folder, count, who=0, when=-1, how=0, silence=60):
    (tmp_path / 'config').write_bytes(pickle.dumps(config))
    done = subprocess.run(
      [
        sys.executable, str(ROOT / 'launch/local.py'),
        f'--processes={count}', f'--silence={silence}', '--',
        sys.executable, '-c', _CHILD, str(tmp_path / 'config'), str(folder),
        str(who), str(when), str(int(how)),
      ],
      capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    ended = time.time()
    assert 'Traceback' not in done.stderr, done.stderr
    pids = (tmp_path / 'pids').read_text().split()
    assert len(pids) == count
    for pid in pids:  # None is left, not even to be waited for.
      assert not pathlib.Path('/proc', pid).exists()
    (tmp_path / 'pids').unlink()
    sent = float((tmp_path / 'time').read_text()) if when > 0 else ended
    return Ended(
      done.returncode,
      (done.stderr.splitlines() or [''])[-1],
      done.stdout,
      ended - sent,
    )

  return run


@pytest.fixture
def config(run_config, shape):
  """20 steps of a single layer, evaluated and saved every five."""
  model = shape(vocab_size=256, depth=1, exits=(1,))
  return run_config(model, steps=20, evaluations=4)


def _losses(folder):
  return [row['loss'] for row in storage.read_rows(folder / run_folder.ROWS)]


def _files(folder):
  return {
    name: (folder / name).read_bytes()
    for name in (run_folder.ROWS, 'config.json', 'lineage.json')
  }


def test_two_processes_train_as_one_and_stop_as_one(
  launch, config, corpus, tmp_path
):
  one, two = (tmp_path / name / 'run' for name in ('one', 'two'))
  loop.run(config, one, corpus, quiet=True)
  # One is told to stop: all do after the same step, and have saved it.
  told = launch(config, two, 2, who=1, when=17, how=15)
  assert told.status == 130
  assert 'stopped after step 18 and saved' in told.last
  rows = storage.read_rows(two / run_folder.ROWS)
  assert {row['step'] for row in rows} == {5, 10, 15}
  # What they have saved, one process goes on from, which is another layout.
  layout = train_config.LayoutConfig(data=1)
  alone, steps = dataclasses.replace(config, layout=layout), []
  loop.run(alone, two, corpus, quiet=True, on_step=steps.append)
  assert steps == [19, 20]
  assert storage.read_json(two / 'config.json')['layout']['data'] == 1
  assert _losses(two)[0] != _losses(two)[-1]
  np.testing.assert_allclose(_losses(two), _losses(one), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_processes_outlive_what_happens(launch, config, corpus, tmp_path):
  one, two, hurt = (tmp_path / name / 'run' for name in ('one', 'two', 'hurt'))
  loop.run(config, one, corpus, quiet=True)
  ended = launch(config, two, 2)
  assert (ended.status, ended.last) == (0, '')
  assert ended.out.splitlines()[-1] == 'finished'
  np.testing.assert_allclose(_losses(two), _losses(one), rtol=0, atol=1e-5)

  # One that is killed leaves the other alone, which ends.
  killed = launch(config, hurt, 2, who=0, when=12, how=9)
  assert killed.status == 128 + 9
  assert killed.last == (
    'local.py: process 0 of 2 was killed by SIGKILL; the others were stopped'
  )
  assert killed.seconds < 10
  assert {row['step'] for row in storage.read_rows(hurt / run_folder.ROWS)} == {
    5,
    10,
  }
  # One that is told to stop has all stop after the same step, saved.
  told = launch(config, hurt, 2, who=1, when=17, how=15)
  assert told.status == 130
  assert 'stopped after step 18 and saved' in told.last
  assert launch(config, hurt, 2).status == 0
  assert _files(hurt) == _files(two)


@pytest.mark.slow
def test_four_processes_train_as_one_and_as_two(
  launch, config, corpus, tmp_path
):
  one, four, split = (tmp_path / n / 'run' for n in ('one', 'four', 'split'))
  loop.run(config, one, corpus, quiet=True)
  # Killed as four, it goes on as two.
  killed = launch(config, four, 4, who=2, when=12, how=9)
  assert killed.status == 128 + 9 and killed.seconds < 10
  assert 'process 2 of 4 was killed by SIGKILL' in killed.last
  assert launch(config, four, 2).status == 0
  np.testing.assert_allclose(_losses(four), _losses(one), rtol=0, atol=1e-5)
  # What a run starts from is read by each process.
  alone, both = (tmp_path / n / 'run' for n in ('alone', 'both'))
  more = dataclasses.replace(
    config,
    train=dataclasses.replace(config.train, init_from='../../four/run'),
  )
  loop.run(more, alone, corpus, quiet=True)
  assert launch(more, both, 2).status == 0
  np.testing.assert_allclose(_losses(both), _losses(alone), rtol=0, atol=1e-5)
  assert _losses(both)[0] < _losses(four)[0]
  # Two share each slice of the rows, and no parameter is whole anywhere.
  config = dataclasses.replace(
    config, layout=train_config.LayoutConfig(fsdp=2, tensor=2)
  )
  assert launch(config, split, 4).status == 0
  np.testing.assert_allclose(_losses(split), _losses(one), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_one_that_hangs_is_noticed(launch, config, tmp_path):
  folder = tmp_path / 'hung' / 'run'
  hung = launch(config, folder, 2, who=1, when=3, how=19, silence=5)
  assert hung.status == 124
  assert hung.last == (
    'local.py: process 1 of 2 did not answer for 5 s; the others were stopped'
  )
  assert 3 < hung.seconds < 15
  assert launch(config, folder, 2).status == 0


# Prints its index, their number, and which devices it may use.
_MEETS = """
import jax
from familial.training import processes
with processes.joined():
  first = processes.broadcast_from_0(processes.index)
  print(processes.index(), processes.count(), first,
        jax.config._read('jax_cuda_visible_devices'))
"""


def _on_slurm(nodes, index):
  """Returns what srun tells one of two tasks."""
  return {
    processes.COUNT: 'auto',
    'SLURM_JOB_ID': '7',
    'SLURM_STEP_NODELIST': 'localhost' + ',other' * (nodes - 1),
    'SLURM_STEP_NUM_NODES': str(nodes),
    'SLURM_STEP_NUM_TASKS': '2',
    'SLURM_NTASKS': '2',
    'SLURM_PROCID': str(index),
    'SLURM_LOCALID': str(index if nodes == 1 else 0),
  }


@pytest.mark.slow
@pytest.mark.parametrize(
  ('nodes', 'devices'), [(2, ['all', 'all']), (1, ['0', '1'])]
)
def test_two_find_each_other_on_slurm(nodes, devices):
  with socket.create_server(('', 0)) as free:
    port = str(free.getsockname()[1])
  started = [
    subprocess.Popen(
      [sys.executable, '-c', _MEETS],
      env={
        **os.environ,
        **_on_slurm(nodes, index),
        'JAX_COORDINATOR_PORT': port,
      },
      stdout=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  said = [process.communicate(timeout=120)[0] for process in started]
  assert [line.split() for line in said] == [
    [str(index), '2', '0', devices[index]] for index in range(2)
  ]


@pytest.mark.parametrize(
  ('environment', 'expected'),
  [
    (_on_slurm(2, 0), {'local_device_ids': []}),
    (_on_slurm(1, 0), {}),
    ({processes.COUNT: 'auto'}, {}),
    (
      {
        **_on_slurm(2, 0),
        processes.COUNT: '2',
        processes.INDEX: '1',
        processes.ADDRESS: 'host:1',
      },
      {
        'coordinator_address': 'host:1',
        'num_processes': 2,
        'process_id': 1,
        'cluster_detection_method': 'deactivate',
      },
    ),
  ],
)
def test_what_is_not_said_is_left_to_jax(monkeypatch, environment, expected):
  asked = {}
  monkeypatch.setattr(jax.distributed, 'initialize', asked.update)
  monkeypatch.setattr(jax.config, 'update', lambda *_: None)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  with processes.joined():
    pass
  timeouts = {name for name in asked if 'timeout' in name}
  assert {name: asked[name] for name in asked.keys() - timeouts} == expected


def test_several_agree_about_once_a_second(monkeypatch):
  clock, wanted, asked = [0.0], [0, 0], []

  def gather(own):
    asked.append(step)
    return np.array([own, (wanted[0], wanted[1], 99)], np.int32)

  monkeypatch.setattr(processes, 'count', lambda: 2)
  monkeypatch.setattr(multihost_utils, 'process_allgather', gather)
  monkeypatch.setattr(time, 'monotonic', lambda: clock[0])
  decisions = processes.Decisions(10, lambda: False, 60.0)
  stopped = {}
  for step in range(11, 60):
    clock[0] += 0.1
    wanted[:] = [step >= 30, 1]  # The other's clock does not count.
    if any(found := decisions.after(step, ())):
      stopped[step] = found
  # As many steps as the last second had.
  assert np.diff(asked).max() <= 10
  assert asked[0] == 11 and len(asked) < 12
  assert min(stopped) == min(s for s in asked if s >= 30)
  assert set(stopped.values()) == {(True, False)}


@pytest.mark.parametrize(
  ('environment', 'said'),
  [
    ({processes.COUNT: 'two'}, "FAMILIAL_PROCESSES: 'two' is not a number"),
    ({processes.COUNT: '2'}, "FAMILIAL_PROCESS: '' is not a number from 0"),
    (
      {processes.COUNT: '2', processes.INDEX: '1'},
      "FAMILIAL_COORDINATOR: '' is not HOST:PORT",
    ),
    (
      {
        processes.COUNT: '2',
        processes.INDEX: '2',
        processes.ADDRESS: '127.0.0.1:1',
      },
      'FAMILIAL_PROCESS: 2 is not below FAMILIAL_PROCESSES 2',
    ),
  ],
)
def test_an_environment_that_cannot_be_is_refused(
  monkeypatch, environment, said
):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(errors.UserError) as raised:
    with processes.joined():
      pass
  assert str(raised.value).startswith(said)
  assert os.environ.get(processes.PULSE) is None
