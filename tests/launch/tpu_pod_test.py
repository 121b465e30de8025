import shlex
import subprocess
import time

import pytest

FLAGS = [
  '--name=fam', '--zone=us-east5-a', '--accelerator_type=v5p-32',
  '--runtime_version=v2-alpha-tpuv5',
]  # fmt: skip
COMMAND = ['familial', 'train', '--config=a.py', '--workdir=/work/a b']


@pytest.fixture(scope='module')
def pod(launcher):
  return launcher('tpu_pod')


@pytest.fixture
def todo(pod):
  """Returns the argument lists of each step, for some more flags."""

  def make(*flags, command=COMMAND):
    return pod.commands(pod.parse([*FLAGS, *flags, '--', *command]))

  return make


@pytest.fixture
def gcloud(monkeypatch):
  """Stands in for gcloud: answers by step, and keeps what was asked."""
  asked = []
  answers = {}

  def run(command, **_):
    joined = ' '.join(command)
    kinds = {
      'create': 'create', 'describe': 'wait', 'delete': 'delete',
      'scp': 'copy', 'archive': 'copy',
    }  # fmt: skip
    kind = next((kinds[word] for word in command if word in kinds), '')
    if not kind:
      kind = (
        'logs' if 'tail' in joined else
        'start' if 'setsid' in joined else 'install'
      )  # fmt: skip
    if not asked or asked[-1] != kind:
      asked.append(kind)
    answer = answers.get(kind, 0)
    if isinstance(answer, list):
      return subprocess.CompletedProcess(command, 0, stdout=answer.pop(0))
    if isinstance(answer, BaseException):
      raise answer
    return subprocess.CompletedProcess(command, answer, stdout='ACTIVE\n')

  monkeypatch.setattr(subprocess, 'run', run)
  monkeypatch.setattr(time, 'sleep', lambda _: None)
  return asked, answers


def test_a_slice_is_asked_for_and_deleted(todo):
  (create,) = todo('--spot')['create']
  assert create[:6] == [
    'gcloud', 'compute', 'tpus', 'queued-resources', 'create', 'fam',
  ]  # fmt: skip
  assert set(create[6:]) == {
    '--zone=us-east5-a', '--node-id=fam', '--accelerator-type=v5p-32',
    '--runtime-version=v2-alpha-tpuv5', '--spot',
  }  # fmt: skip
  assert '--spot' not in todo()['create'][0]
  # Deleting takes a broken slice too.
  (delete,) = todo()['delete']
  assert delete[3:6] == ['queued-resources', 'delete', 'fam']
  assert {'--force', '--quiet'} <= set(delete)


def test_every_call_names_the_zone_and_every_host(todo):
  steps = todo('--setup=sudo mount a:/b /work')
  calls = [call for step in steps.values() for call in step]
  hosts = [call for call in calls if 'tpu-vm' in call]
  assert len(hosts) == 5  # Copy, install, set up, start, logs.
  for call in calls:
    assert call[0] == 'git' or '--zone=us-east5-a' in call
  for call in hosts:
    assert '--worker=all' in call
  archive = steps['copy'][0]
  assert archive[-1] == 'HEAD' and archive[-2][len('--output=') :] in hosts[0]
  assert 'fam:familial.tar.gz' in hosts[0]
  assert hosts[2][-1] == '--command=sudo mount a:/b /work'
  assert "'.[tpu]'" in hosts[1][-1]


def test_what_runs_on_a_host(todo, tmp_path):
  """The lines for the hosts, run by a shell here."""
  (tmp_path / 'familial' / '.venv' / 'bin').mkdir(parents=True)
  tool = tmp_path / 'familial' / '.venv' / 'bin' / 'familial'
  tool.write_text('#!/bin/sh\nfor x; do echo "<$x>"; done\nsleep 1\nexit 7\n')
  tool.chmod(0o755)
  nasty = ['a b', '$(touch x)', "'; touch x; '", '"', '\n', "--c='(4,8)'"]
  steps = todo(command=['familial', *nasty])

  def host(step):
    line = steps[step][0][-1].removeprefix('--command=')
    return subprocess.run(
      ['bash', '-c', line], cwd=tmp_path, capture_output=True, text=True
    )

  start = time.monotonic()
  assert host('start').returncode == 0
  assert time.monotonic() - start < 0.9  # The connection may go.
  logs = host('logs')
  assert logs.returncode == 7
  assert logs.stdout == ''.join(f'<{text}>\n' for text in nasty)
  assert not list(tmp_path.rglob('x'))
  assert host('logs').stdout == logs.stdout  # A later call sees the end too.


def test_a_dry_run_prints_what_would_run(pod, todo, gcloud, capsys):
  asked, _ = gcloud
  assert pod.main(['--dry_run', *FLAGS, '--', *COMMAND]) == 0
  printed = capsys.readouterr().out.splitlines()
  calls = [call for step in todo().values() for call in step]
  assert [shlex.split(line) for line in printed] == calls and not asked
  assert pod.main(['--steps=wait,delete', '--dry-run', *FLAGS, 'x']) == 0
  assert len(capsys.readouterr().out.splitlines()) == 2


def test_all_steps_in_order(pod, gcloud):
  asked, answers = gcloud
  answers['wait'] = ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']
  assert pod.main([*FLAGS, '--', *COMMAND]) == 0
  assert asked == list(pod.STEPS)


@pytest.mark.parametrize(
  ('answers', 'status', 'last'),
  [
    ({'create': 1}, 1, ['create']),  # The name may be another run's.
    ({'wait': ['ACCEPTED', 'FAILED']}, 1, ['wait', 'delete']),
    ({'install': 5}, 5, ['install', 'delete']),
    ({'logs': 2}, 2, ['logs', 'delete']),
    ({'logs': 255}, 255, ['start', 'logs']),
    ({'logs': KeyboardInterrupt()}, 130, ['start', 'logs']),
    ({'delete': 3}, 3, ['logs', 'delete']),
  ],
)
def test_what_is_left_when_a_step_fails(
  pod, gcloud, capsys, answers, status, last
):
  asked, given = gcloud
  given.update(answers)
  assert pod.main([*FLAGS, '--', *COMMAND]) == status
  assert asked[-len(last) :] == last
  err = capsys.readouterr().err
  kept = last[-1] == 'logs'
  assert ('--steps=logs,delete' in err) == kept
