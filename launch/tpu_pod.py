"""Runs a command on every host of a TPU slice, through gcloud.

  python launch/tpu_pod.py --name=family --zone=us-east5-a \
      --accelerator_type=v5p-32 --runtime_version=v2-alpha-tpuv5 --spot \
      --setup='sudo mkdir -p /work && sudo mount 10.0.0.2:/work /work' -- \
      familial train --config=experiments/single.py --workdir=/work/single

Asks for a queued resource, waits for it, copies the commit that is checked out
to all hosts, installs it, runs the command, streams its log and gives the slice
back, also if a step failed; but not at Ctrl-C or when the connection breaks: the
command runs on, and --steps=logs,delete comes back to it. The workdir must be a
folder that all hosts share and that outlives them: --setup mounts it. Standard
library only.
"""

import argparse
from collections.abc import Sequence
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
import time

# What is done, in this order, unless --steps names fewer.
STEPS = ('create', 'wait', 'copy', 'install', 'start', 'logs', 'delete')
# A request in one of these states will not become ACTIVE.
_OVER = ('FAILED', 'SUSPENDING', 'SUSPENDED', 'DELETING')
_POLL_SECONDS = 30.0
_ROOT = pathlib.Path(__file__).resolve().parents[1]
_ARCHIVE = 'familial.tar.gz'
_BROKEN = 255  # What ssh says of a connection.
_KEPT = (
  'the slice is kept, and paid for: --steps=logs,delete goes on, '
  '--steps=delete ends it'
)
# TPU images bring an older Python than 3.11.
_INSTALL = (
  f'rm -rf familial && mkdir familial && tar -xzf {_ARCHIVE} -C familial'
  ' && cd familial && python3 -m pip install --quiet --user uv'
  ' && ~/.local/bin/uv venv --quiet --python=3.11 .venv'
  ' && ~/.local/bin/uv pip install --quiet --python=.venv/bin/python'
  " -c constraints/py311.txt -e '.[tpu]'"
)
# Ends when the command has, with its status.
_LOGS = (
  'cd familial && tail -n +1 --pid="$(cat command.pid)" -F command.log'
  ' && exit "$(cat command.status)"'
)


def commands(arguments: argparse.Namespace) -> dict[str, list[list[str]]]:
  """Returns the argument lists of each step."""
  tpus = ['gcloud', 'compute', 'tpus']
  zone = f'--zone={arguments.zone}'
  name = arguments.name
  archive = str(pathlib.Path(tempfile.gettempdir()) / _ARCHIVE)

  def on_all(command: str) -> list[str]:
    host = [*tpus, 'tpu-vm', 'ssh', name, zone, '--worker=all']
    return [*host, f'--command={command}']

  return {
    'create': [
      [
        *tpus, 'queued-resources', 'create', name, zone,
        f'--node-id={name}',
        f'--accelerator-type={arguments.accelerator_type}',
        f'--runtime-version={arguments.runtime_version}',
        *(['--spot'] if arguments.spot else []),
      ]
    ],
    'wait': [
      [
        *tpus, 'queued-resources', 'describe', name, zone,
        '--format=value(state.state)',
      ]
    ],
    'copy': [
      ['git', '-C', str(_ROOT), 'archive', f'--output={archive}', 'HEAD'],
      [
        *tpus, 'tpu-vm', 'scp', archive, f'{name}:{_ARCHIVE}', zone,
        '--worker=all',
      ],
    ],
    'install': [
      on_all(_INSTALL),
      *([on_all(arguments.setup)] if arguments.setup else []),
    ],
    'start': [on_all(start(arguments.command))],
    'logs': [on_all(_LOGS)],
    'delete': [
      [
        *tpus, 'queued-resources', 'delete', name, zone, '--force', '--quiet',
      ]
    ],
  }  # fmt: skip


def start(command: Sequence[str]) -> str:
  """Returns a line of shell that starts a command which outlives the shell."""
  inner = f'{shlex.join(command)}; echo $? > command.status'
  return (
    'cd familial && rm -f command.status && export PATH="$PWD/.venv/bin:$PATH"'
    ' FAMILIAL_PROCESSES=auto'
    f' && (setsid nohup bash -c {shlex.quote(inner)}'
    ' > command.log 2>&1 < /dev/null & echo $! > command.pid)'
  )


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the flags; what is wrong with them is one line, and status 2."""
  parser = argparse.ArgumentParser(
    usage=argparse.SUPPRESS,
    description='launch/tpu_pod.py [flags] -- COMMAND',
    allow_abbrev=False,
  )
  for flag, text in {
    'name': "The request's and the slice's.",
    'zone': 'Such as us-east5-a.',
    'accelerator_type': 'Such as v5p-32.',
    'runtime_version': "The hosts' image, such as v2-alpha-tpuv5.",
  }.items():
    parser.add_argument(f'--{flag}', type=_name, required=True, help=text)
  parser.add_argument(
    '--spot', action='store_true', help='Cheaper, and may be taken away.'
  )
  parser.add_argument(
    '--setup',
    help='A line of shell that each host runs before the command; it mounts '
    'the shared folder.',
  )
  parser.add_argument(
    '--steps',
    type=_steps,
    default=STEPS,
    help=f'Which to do, of {",".join(STEPS)}.',
  )
  parser.add_argument(
    '--dry_run',
    '--dry-run',
    action='store_true',
    help='Print the commands, run nothing.',
  )
  parser.add_argument(
    'command', nargs='+', help='What each host runs, after --.'
  )
  return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
  """Prints or runs the steps; returns the exit status."""
  arguments = parse(argv)
  todo = commands(arguments)
  if arguments.dry_run:
    for step in arguments.steps:
      print('\n'.join(map(shlex.join, todo[step])))
    return 0
  try:
    return run(todo, arguments.steps)
  except OSError as error:
    print(f'tpu_pod.py: {error.filename}: {error.strerror}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print(f'tpu_pod.py: interrupted; {_KEPT}', file=sys.stderr)
    return 130


def run(todo: dict[str, list[list[str]]], steps: Sequence[str]) -> int:
  """Runs steps until one fails, and deletes if that is among them.

  Returns:
    0, or the status of what failed first.
  """
  status = 0
  for step in STEPS:
    if step not in steps or (status and step != 'delete'):
      continue
    for command in todo[step]:
      failed = _wait(command) if step == 'wait' else _call(command)
      if failed:
        print(f'tpu_pod.py: {step}: status {failed}', file=sys.stderr)
        status = status or failed
        break
    if step == 'create' and status:
      return status  # What has the name may be somebody's run.
    if step == 'logs' and status == _BROKEN:
      print(f'tpu_pod.py: the connection broke; {_KEPT}', file=sys.stderr)
      return status
  return status


def _call(command: Sequence[str]) -> int:
  print(f'+ {shlex.join(command)}', flush=True)
  return subprocess.run(command).returncode


def _wait(describe: Sequence[str]) -> int:
  """Asks for the request's state until it is active, or never will be."""
  before = ''
  while True:
    done = subprocess.run(describe, stdout=subprocess.PIPE, text=True)
    state = done.stdout.strip()
    if state != before:
      print(f'{time.strftime("%H:%M:%S")} {state}', flush=True)
    if done.returncode or state in _OVER:
      return done.returncode or 1
    if state == 'ACTIVE':
      return 0
    before = state
    time.sleep(_POLL_SECONDS)


def _name(text: str) -> str:
  # A value that began with '-' would be another flag to gcloud.
  if not re.fullmatch(r'[a-z0-9][a-z0-9.:-]*', text):
    raise argparse.ArgumentTypeError(
      f'{text!r} may have lower-case letters, digits, "-", "." and ":" only'
    )
  return text


def _steps(text: str) -> tuple[str, ...]:
  steps = tuple(text.split(','))
  for step in steps:
    if step not in STEPS:
      raise argparse.ArgumentTypeError(
        f'{step!r} is not one of {", ".join(STEPS)}'
      )
  return steps


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
