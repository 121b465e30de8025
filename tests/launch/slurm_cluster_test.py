"""The Slurm launcher on a cluster of two nodes that are both this host."""

from collections.abc import Callable
from collections.abc import Iterator
import getpass
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest

from familial.core import run_folder
from familial.core import storage

ROOT = pathlib.Path(__file__).parents[2]
NEEDED = ('slurmctld', 'slurmd', 'sbatch', 'srun', 'scontrol')

pytestmark = [
  pytest.mark.slurm,
  pytest.mark.skipif(
    not all(map(shutil.which, NEEDED)), reason='Slurm is not installed'
  ),
]

# As much of Slurm as one host needs: no accounting, no keys.
CONFIG = """
ClusterName=test
SlurmctldHost={host}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName={host}-b NodeHostname={host}-b NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=ALL Default=YES State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL State=UP PriorityTier=2
"""


@pytest.fixture(scope='module', autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
  """A controller and two nodes, gone with the test."""
  folder = tmp_path_factory.mktemp('slurm')
  host = socket.gethostname().split('.')[0]
  (folder / 'state').mkdir()
  config = folder / 'slurm.conf'
  config.write_text(
    CONFIG.format(
      host=host, user=getpass.getuser(), folder=folder, ports=free_ports(3)
    )
  )
  commands = [['slurmctld', '-D', '-c']]
  for node in (host, f'{host}-b'):
    (folder / node).mkdir()
    commands.append(['slurmd', '-D', '-N', node])
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('SLURM_CONF', str(config))
    # This process may be a job of another cluster.
    for name in [name for name in os.environ if name.startswith('SLURM_')]:
      if name != 'SLURM_CONF':
        patch.delenv(name)
    patch.setenv('PYTHONPATH', str(ROOT))
    daemons = [
      subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
      )
      for command in commands
    ]
    try:
      end = time.monotonic() + 30
      while slurm('sinfo', '-h', '-o', '%D %t') != '2 idle':
        if time.monotonic() > end:
          pytest.skip('Slurm does not come up on this host')
        time.sleep(0.1)
      yield
    finally:
      slurm('scancel', '--user', getpass.getuser())
      for daemon in reversed(daemons):
        daemon.terminate()
      for daemon in daemons:
        try:
          daemon.wait(20)
        except subprocess.TimeoutExpired:
          daemon.kill()
          daemon.wait()


def free_ports(count: int) -> list[int]:
  sockets = [socket.create_server(('', 0)) for _ in range(count)]
  ports = [server.getsockname()[1] for server in sockets]
  for server in sockets:
    server.close()
  return ports


def slurm(*command: str) -> str:
  done = subprocess.run(command, capture_output=True, text=True)
  return done.stdout.strip()


def wait(condition: Callable[[], object], seconds: float) -> None:
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, slurm('scontrol', 'show', 'job')
    time.sleep(0.1)


def field(job: str, name: str) -> str:
  """Returns a field of a job, or of one task of an array."""
  for word in slurm('scontrol', 'show', 'job', job).split():
    if word.startswith(f'{name}='):
      return word.split('=', 1)[1]
  return ''


def text(log: pathlib.Path) -> str:
  """Returns a log, in which Slurm's words may cut a progress bar's."""
  return log.read_text(errors='replace') if log.exists() else ''


def submit(folder: pathlib.Path, *arguments: str) -> str:
  """Submits through the launcher; returns the job's number."""
  done = subprocess.run(
    [
      sys.executable, str(ROOT / 'launch' / 'slurm.py'),
      f'--logs={folder}/logs', *arguments,
    ],
    capture_output=True, text=True, cwd=folder,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return done.stdout.split()[-1]


def again(job: str, restarts: int) -> None:
  """Waits for a job to be in the queue again, and starts it at once."""
  wait(
    lambda: (
      field(job, 'JobState') == 'PENDING'
      and field(job, 'Restarts') == str(restarts)
    ),
    60,
  )
  # A job that ends sets its time of eligibility last: two minutes from then.
  time.sleep(1)
  slurm('scontrol', 'update', f'JobId={job}', 'StartTime=now')


def test_an_array_finishes_a_sweep_though_a_task_is_requeued(
  tmp_path, text_data
):
  workdir = tmp_path / 'study'
  job = submit(
    tmp_path, '--tasks=2', '--', sys.executable, '-m', 'familial', 'run',
    f'--config={ROOT}/experiments/quickstart.py', f'--workdir={workdir}',
    '--config.data.corpus=text_files', f'--config.data.path={text_data.path}',
    '--config.data.heldout_percent=20', '--config.data.seq_len=16',
    '--config.grid.budgets=(2e9,)', '--config.grid.shapes=((8,2,1),)',
    '--config.grid.granularities=(1,2)', '--config.model.base_width=8',
    '--config.arms.seed.budgets=(2e9,)', '--config.arms.seed.shapes=(0,)',
    '--config.arms.seed.granularities=(1,2)', '--config.arms.seed.values=(1,)',
    '--config.train.eval_tokens=256', '--config.train.evaluations=20',
    '--config.rules.batch_tokens=64', '--config.fit.starts=8',
    '--config.fit.resamples=10',
  )  # fmt: skip
  logs = {
    f'{job}_{number}': tmp_path / 'logs' / f'familial-{job}_{number}.log'
    for number in range(2)
  }

  def training():
    return [
      task
      for task, log in logs.items()
      for cell in re.findall(r'^training (\S+)', text(log), re.M)[-1:]
      if run_folder.status(workdir / 'cells' / cell) == 'running'
      and storage.read_rows(workdir / 'cells' / cell / run_folder.PROGRESS)
    ]

  wait(training, 90)
  victim = training()[0]
  slurm('scontrol', 'requeue', victim)
  again(victim, restarts=1)
  for task, log in logs.items():
    wait(lambda task=task: field(task, 'JobState') == 'COMPLETED', 120)
    assert field(task, 'Restarts') == str(int(task == victim))
    assert text(log).count(': start ') == 1 + (task == victim)
  assert 'saved' in text(logs[victim])
  cells = storage.read_json(workdir / 'plan.json')['cells']
  assert len(cells) == 4
  for cell in cells:
    run = workdir / 'cells' / cell['cell']
    assert run_folder.status(run) == 'finished' and not list(
      run.glob('error.log')
    )
    rows = [
      (row['step'], row['exit'])
      for row in storage.read_rows(run / run_folder.ROWS)
    ]
    assert rows == sorted(set(rows)) and len(rows) == 20 * cell['exits']
  assert (workdir / 'report' / 'index.html').exists()


# Saves for a while, as the command does, and ends as it does.
STOPS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(3), print('saved'),
                                          sys.exit(130)))
print('up', flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_a_job_out_of_time_starts_again_a_few_times_and_a_cancelled_one_never(
  tmp_path,
):
  job = submit(
    tmp_path, '--tasks=3', '--restarts=1', '--', sys.executable, '-c', STOPS
  )
  tasks = [f'{job}_{number}' for number in range(3)]

  def log(task):
    return text(tmp_path / 'logs' / f'familial-{task}.log')

  for task in tasks:
    wait(lambda task=task: log(task).count('up') == 1, 30)
  # As Slurm does when the limit is near.
  slurm('scancel', '--batch', '--signal=USR1', tasks[2])
  slurm('scancel', tasks[0])
  again(tasks[2], restarts=1)
  wait(lambda: log(tasks[2]).count('up') == 2, 30)
  slurm('scancel', '--batch', '--signal=USR1', tasks[2])
  again(tasks[2], restarts=2)
  wait(lambda: field(tasks[2], 'JobState') == 'FAILED', 30)
  assert log(tasks[2]).count('saved') == log(tasks[2]).count('up') == 2
  assert 'started again 2 times' in log(tasks[2])
  assert field(tasks[0], 'JobState') == 'CANCELLED'
  assert log(tasks[0]).count('saved') == 1
  # The array's last task has the array's own number: it was meant alone.
  assert field(tasks[1], 'JobState') == 'RUNNING'
  assert field(tasks[1], 'Restarts') == '0'
  slurm('scancel', job)


@pytest.mark.slow
def test_a_preempted_job_saves_on_all_nodes_and_starts_again(tmp_path):
  job = submit(tmp_path, '--nodes=2', '--', sys.executable, '-c', STOPS)
  log = tmp_path / 'logs' / f'familial-{job}.log'
  wait(lambda: text(log).count('up') == 2, 30)
  subprocess.run(
    ['sbatch', '--partition=urgent', '--nodes=2', '--exclusive', '--wrap=true'],
    cwd=tmp_path, check=True, capture_output=True,
  )  # fmt: skip
  again(job, restarts=1)
  assert text(log).count('saved') == 2
  wait(lambda: text(log).count('up') == 4, 30)
  slurm('scancel', job)


def test_a_run_over_nodes_is_that_of_as_many_processes_on_one_host(
  tmp_path, text_data
):
  def train(folder):
    return [
      sys.executable, '-m', 'familial', 'train',
      f'--config={ROOT}/experiments/single.py', f'--workdir={folder}',
      '--config.data.corpus=text_files', f'--config.data.path={text_data.path}',
      '--config.data.heldout_percent=20', '--config.data.seq_len=16',
      '--config.model.width=8', '--config.model.depth=2',
      '--config.model.mlp_width=16', '--config.model.exits=(1,2)',
      '--config.train.steps=20', '--config.train.warmup_steps=2',
      '--config.train.batch_size=4', '--config.train.eval_tokens=256',
      '--config.train.eval_batch_size=4', '--config.train.evaluations=2',
    ]  # fmt: skip

  over, here = (tmp_path / name / 'run' for name in ('over', 'here'))
  job = submit(tmp_path, '--nodes=2', '--', *train(over))
  wait(lambda: field(job, 'JobState') in ('COMPLETED', 'FAILED'), 120)
  log = text(tmp_path / 'logs' / f'familial-{job}.log')
  assert field(job, 'JobState') == 'COMPLETED', log
  subprocess.run(
    [
      sys.executable, str(ROOT / 'launch' / 'local.py'), '--processes=2', '--',
      *train(here),
    ],
    check=True,
  )  # fmt: skip
  rows = [(folder / run_folder.ROWS).read_bytes() for folder in (over, here)]
  assert rows[0] == rows[1]
  steps = {
    (row['step'], row['exit'])
    for row in storage.read_rows(over / run_folder.ROWS)
  }
  assert steps == {(10, 1), (10, 2), (20, 1), (20, 2)}
