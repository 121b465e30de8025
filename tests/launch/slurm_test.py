import json
import pathlib
import shlex
import subprocess
import sys

import pytest

RUN = ['familial', 'run', '--config=a.py', '--workdir=runs/a b']


@pytest.fixture(scope='module')
def slurm(launcher):
  return launcher('slurm')


def script(slurm, *flags, command=RUN):
  return slurm.script(slurm.parse([*flags, '--', *command]))


def options(text):
  lines = text.split('\n')
  return [shlex.split(line)[1] for line in lines if line.startswith('#SBATCH')]


def executed(text, folder, **variables):
  """Runs a script with a stand-in for Slurm's commands; returns what it ran."""
  tools = folder / 'tools'
  tools.mkdir(exist_ok=True)
  for name in ('srun', 'scontrol', 'scancel'):
    (tools / name).write_text(
      f'#!{sys.executable}\n'
      'import json, os, sys\n'
      f'with open({str(folder / "calls")!r}, "a") as file:\n'
      f'  print(json.dumps([{name!r}, *sys.argv[1:],\n'
      '    os.environ.get("SRUN_CPUS_PER_TASK")]), file=file)\n'
      'sys.exit(int(os.environ.get("STATUS", 0)))\n'
    )
    (tools / name).chmod(0o755)
  (folder / 'calls').unlink(missing_ok=True)
  done = subprocess.run(
    ['bash'], input=text, text=True, capture_output=True, cwd=folder,
    env={'PATH': f'{tools}:/usr/bin:/bin', **variables},
  )  # fmt: skip
  calls = folder / 'calls'
  return done, calls.read_text().splitlines() if calls.exists() else []


def test_a_sweep_is_an_array_of_processes(slurm):
  text = script(slurm, '--tasks=3', '--time=4:00:00', '--notice=60')
  assert options(text) == [
    '--job-name=familial',
    '--array=0-2',
    '--nodes=1',
    '--ntasks-per-node=1',
    '--time=4:00:00',
    '--requeue',
    '--open-mode=append',
    '--signal=B:USR1@60',
    '--output=runs/logs/%x-%A_%a.log',
  ]
  assert f'\nsrun {shlex.join(RUN)} &\n' in text
  # Not the array's number alone: that would be all of its tasks.
  assert 'requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"' in text


def test_a_run_over_nodes_is_one_job(slurm):
  text = script(slurm, '--nodes=4', '--name=big', '--logs=100%')
  assert options(text)[:3] == ['--job-name=big', '--nodes=4'] + [
    '--ntasks-per-node=1'
  ]
  assert options(text)[-1] == '--output=100%%/%x-%j.log'
  assert not [option for option in options(text) if 'array' in option]
  assert f'\nsrun --wait=300 {shlex.join(RUN)} &\n' in text
  assert 'requeue "$SLURM_JOB_ID"' in text


# What a shell would take apart, and what Python's templates would.
NASTY = [
  'x; touch broken', '$(touch broken)', '`touch broken`', "'; touch broken; '",
  '"', '\\', 'a\n#SBATCH --array=0-99\ntouch broken\n', '$command', '%A', '&',
]  # fmt: skip


def test_the_command_arrives_as_it_was_given(slurm, tmp_path):
  text = script(slurm, '--tasks=1', command=[*RUN, *NASTY])
  done, calls = executed(text, tmp_path, SLURM_CPUS_PER_TASK='3')
  assert done.returncode == 0, done.stderr
  assert [json.loads(call) for call in calls] == [
    ['srun', *RUN, *NASTY, '3'],
  ]
  assert not (tmp_path / 'broken').exists()


def test_options_stay_options(slurm, tmp_path):
  nasty = [f'--comment={text}' for text in NASTY if '\n' not in text]
  flags = [f'--sbatch={option}' for option in nasty]
  text = script(slurm, '--tasks=1', *flags)
  assert options(text)[-len(nasty) :] == nasty
  done, _ = executed(text, tmp_path)
  assert done.returncode == 0 and not (tmp_path / 'broken').exists()


def test_starts_are_counted(slurm, tmp_path):
  text = script(slurm, '--tasks=1', '--restarts=5')
  done, calls = executed(text, tmp_path, SLURM_RESTART_COUNT='5', STATUS='7')
  assert done.returncode == 7 and 'start 6' in done.stdout and len(calls) == 1
  done, calls = executed(text, tmp_path, SLURM_RESTART_COUNT='6')
  assert done.returncode == 1 and not calls
  assert '--restarts=5' in done.stderr


def test_a_dry_run_prints_what_would_be_submitted(
  slurm, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  submitted = []

  def submit(argv, *, input, text):
    submitted.append((argv, input))
    return subprocess.CompletedProcess(argv, 0)

  monkeypatch.setattr(subprocess, 'run', submit)
  flags = ['--tasks=2', '--logs=logs', '--', *RUN]
  assert slurm.main(['--dry-run', *flags]) == 0
  printed = capsys.readouterr().out
  assert not submitted and not list(tmp_path.iterdir())
  assert slurm.main(flags) == 0
  assert submitted == [(['sbatch'], printed)]
  assert pathlib.Path('logs').is_dir()  # Without it, Slurm drops the job.
