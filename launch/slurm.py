"""Submits a command to Slurm: an array for a sweep, or one job over nodes.

  python launch/slurm.py --tasks=8 --time=4:00:00 --sbatch=--gpus=1 -- \
      familial run --config=experiments/familial_law.py:gpu --workdir=runs/gpu
  python launch/slurm.py --nodes=4 --time=1-0 --sbatch=--gpus-per-node=8 -- \
      familial train --config=experiments/single.py --workdir=runs/single

The tasks of an array share the workdir, each takes the cells that nobody holds.
Of a job over nodes every node runs one process, and JAX finds the others and
their coordinator in Slurm's variables. Standard library only.
"""

import argparse
from collections.abc import Sequence
import pathlib
import shlex
import string
import subprocess
import sys

# What the script depends on.
_OURS = (
  '--array',
  '--job-name',
  '--nodes',
  '--ntasks',
  '--ntasks-per-node',
  '--no-requeue',
  '--open-mode',
  '--output',
  '--requeue',
  '--signal',
  '--time',
)
_SCRIPT = string.Template(r"""#!/bin/bash
$options

restarts="$${SLURM_RESTART_COUNT:-0}"
if [ "$$restarts" -gt $restarts ]; then
  echo "started again $$restarts times, --restarts=$restarts: submit it anew" >&2
  exit 1
fi
echo "$$(date): start $$((restarts + 1)) on $$(hostname)"
# srun does not take over the job's CPUs a task by itself.
if [ -n "$${SLURM_CPUS_PER_TASK:-}" ]; then
  export SRUN_CPUS_PER_TASK="$$SLURM_CPUS_PER_TASK"
fi

$environment
$command &
step=$$!
# TERM comes to the step too when Slurm takes the nodes away, or at scancel:
# the command saves and ends. USR1 comes here alone, shortly before the time is
# up. Sending srun a TERM would kill the step at once.
again=''
trap : TERM
trap 'again=yes; scancel --signal=TERM "$$SLURM_JOB_ID.0"' USR1
while kill -0 "$$step" 2> /dev/null; do
  wait "$$step"  # Returns at a signal, too.
done
wait "$$step"
status=$$?
if [ -n "$$again" ] && [ "$$status" -eq 130 ]; then
  scontrol requeue "$job"
fi
exit "$$status"
""")


def script(arguments: argparse.Namespace) -> str:
  """Returns the text that sbatch gets: options, then the command."""
  array = bool(arguments.tasks)
  logs = str(arguments.logs).replace('%', '%%')  # Slurm fills in %A and such.
  options = [
    f'--job-name={arguments.name}',
    f'--array=0-{arguments.tasks - 1}' if array else '',
    f'--nodes={arguments.nodes or 1}',
    '--ntasks-per-node=1',
    f'--time={arguments.time}' if arguments.time else '',
    '--requeue',
    '--open-mode=append',
    f'--signal=B:USR1@{arguments.notice}',
    f'--output={logs}/%x-{"%A_%a" if array else "%j"}.log',
    *arguments.sbatch,
  ]
  return _SCRIPT.substitute(
    # sbatch reads quotes as a shell does.
    options='\n'.join(f'#SBATCH {shlex.quote(o)}' for o in options if o),
    restarts=arguments.restarts,
    # familial train is then one of the step's processes.
    environment='' if array else 'export FAMILIAL_PROCESSES=auto',
    # Of several processes the first to end leaves the others time to save.
    command=shlex.join(
      ['srun', *([] if array else ['--wait=300']), *arguments.command]
    ),
    # The array's own number would mean all its tasks.
    job='${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID'
    if array
    else '$SLURM_JOB_ID',
  )


def parse(argv: Sequence[str]) -> argparse.Namespace:
  """Returns the flags; what is wrong with them is one line, and status 2."""
  parser = argparse.ArgumentParser(
    usage=argparse.SUPPRESS,
    description='launch/slurm.py --tasks=N | --nodes=N [flags] -- COMMAND',
    allow_abbrev=False,
  )
  kind = parser.add_mutually_exclusive_group(required=True)
  kind.add_argument(
    '--tasks',
    type=_count,
    help='An array of so many jobs of one process, for familial run.',
  )
  kind.add_argument(
    '--nodes',
    type=_count,
    help='One job over so many nodes, a process on each, for familial train.',
  )
  parser.add_argument('--name', type=_name, default='familial')
  parser.add_argument(
    '--time',
    type=_plain,
    help='Limit of a start, as sbatch has it; the job is then started again.',
  )
  parser.add_argument(
    '--notice',
    type=_count,
    default=120,
    help='Seconds before the limit at which the command is told to save; '
    'Slurm may be up to 60 early.',
  )
  parser.add_argument(
    '--restarts',
    type=_count,
    default=20,
    help='How often a job is started again, after preemptions and limits.',
  )
  parser.add_argument(
    '--logs', type=_plain, default='runs/logs', help='Folder of the log files.'
  )
  parser.add_argument(
    '--sbatch',
    type=_option,
    action='append',
    default=[],
    help='One more option of sbatch, such as --sbatch=--partition=long; '
    'repeated.',
  )
  parser.add_argument(
    '--dry_run',
    '--dry-run',
    action='store_true',
    help='Print the script, submit nothing.',
  )
  parser.add_argument(
    'command', nargs='+', help='What to run, after --: as in a shell.'
  )
  return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
  """Prints the script or submits it; returns the exit status."""
  arguments = parse(argv)
  text = script(arguments)
  if arguments.dry_run:
    print(text, end='')
    return 0
  try:
    pathlib.Path(arguments.logs).mkdir(parents=True, exist_ok=True)
    # Its own words say what became of it.
    return subprocess.run(['sbatch'], input=text, text=True).returncode
  except OSError as error:
    print(f'slurm.py: {error.filename}: {error.strerror}', file=sys.stderr)
    return 2


def _count(text: str) -> int:
  if not text.isdecimal() or int(text) < 1:
    raise argparse.ArgumentTypeError(f'{text!r} is not a number of 1 or more')
  return int(text)


def _plain(text: str) -> str:
  """Refuses what would end the line of an option."""
  if not text or not text.isprintable():
    raise argparse.ArgumentTypeError(f'{text!r} is not one line of text')
  return text


def _name(text: str) -> str:
  if not text or set(text) - set(string.ascii_letters + string.digits + '-_.'):
    raise argparse.ArgumentTypeError(
      f'{text!r} may have letters, digits, "-", "_" and "." only'
    )
  return text


def _option(text: str) -> str:
  option = _plain(text).split('=')[0]
  if not option.startswith('--') or option in _OURS:
    raise argparse.ArgumentTypeError(
      f'{text!r} must be a long option of sbatch, and none of '
      f'{", ".join(_OURS)}, which are set here'
    )
  return text


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
