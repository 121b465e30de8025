"""The `familial` command: finds the subcommand and turns errors into one line."""

from collections.abc import Mapping
import io
import os
import sys

import familial
from familial.cli import command as command_lib
from familial.cli import completion
from familial.cli import help as help_lib
from familial.cli.help import Entry
from familial.core import errors


def _studies() -> Mapping[str, command_lib.Command]:
  from familial.cli import studies

  return studies.COMMANDS


def _models() -> Mapping[str, command_lib.Command]:
  from familial.cli import models

  return models.COMMANDS


def _laws() -> Mapping[str, command_lib.Command]:
  from familial.cli import laws

  return laws.COMMANDS


def _allocation() -> Mapping[str, command_lib.Command]:
  from familial.cli import allocation

  return allocation.COMMANDS


def _serving() -> Mapping[str, command_lib.Command]:
  from familial.cli import serving

  return serving.COMMANDS


def _analysis() -> Mapping[str, command_lib.Command]:
  from familial.cli import analysis

  return analysis.COMMANDS


# In the order in which `familial --help` lists them; a command's module is
# imported when it is called.
COMMANDS = {
  'run': Entry(
    'Run a study: plan, train, fit, report; resumable.',
    _studies,
    (
      'familial run --config=quickstart --workdir=runs/quickstart --workers=2',
      'familial run --config=familial_law:cpu --workdir=runs/cpu --plan_only',
    ),
  ),
  'train': Entry(
    'Train one run; resumable.',
    _studies,
    (
      'familial train --config=single --workdir=runs/single',
      'familial train --config=single --workdir=runs/two '
      "--config.model.exits='(4,8)'",
    ),
  ),
  'plan': Entry(
    'Estimate memory, step time and device-hours by ahead-of-time compilation.',
    _studies,
    ('familial plan --config=familial_law:paper --topology=v5p:4x4x8',),
  ),
  'report': Entry(
    'Write the page of a study or a run.',
    _studies,
    ('familial report --workdir=runs/quickstart',),
  ),
  'export': Entry(
    'Write one exit as a model, or segments to serve.',
    _models,
    (
      'familial export --checkpoint=runs/single --exit=1 '
      '--format=hugging_face --out=exports/small',
    ),
  ),
  'import': Entry(
    'Add exits to a Llama-like Hugging Face model.',
    _models,
    ('familial import --from=LLAMA_FOLDER --exits=8,16 --out=imports/family',),
  ),
  'expand': Entry(
    'Grow a trained model into a larger one.',
    _models,
    (
      'familial expand --checkpoint=runs/single --to=grow:runs/single '
      '--out=grown',
    ),
  ),
  'fit': Entry(
    'Fit laws to a table of runs, with intervals.',
    _laws,
    (
      'familial fit --table=points.csv --form=chinchilla --out=fits '
      "--columns='params=Model Size,flops=Training FLOP'",
      'familial fit --table=runs/cpu --loss=mean --out=fits',
    ),
  ),
  'predict': Entry(
    'Predict by fitted laws: loss with intervals, compute-optimal sizes.',
    _laws,
    (
      "familial predict --fit=fits/fit.json --at='params=7e9,tokens=2e12'",
      "familial predict --fit=fits/fit.json --at='flops=1e22'",
    ),
  ),
  'allocate': Entry(
    'Allocate a budget among candidates: replay known curves, or train.',
    _allocation,
    (
      'familial allocate --table=curves.csv --curve=run --budget=1e18 '
      '--candidates=8 --out=allocated',
      'familial allocate --config=allocation_live:cpu --out=runs/live',
    ),
  ),
  'evaluate': Entry(
    'Evaluate exits: loss, calibration and early-exit trade-off.',
    _serving,
    ('familial evaluate --checkpoint=runs/single --decode',),
  ),
  'generate': Entry(
    'Generate text (fixed exit, early exit, speculative decoding or relay).',
    _serving,
    (
      "familial generate --checkpoint=runs/single --prompt='def main(' "
      '--mode=speculative',
    ),
  ),
  'relay': Entry(
    'Serve one segment of a relay.',
    _serving,
    ('familial relay --segment=segments/segment_0 --port=7000',),
  ),
  'probe': Entry(
    'Measure what the layers do, and name their regime.',
    _analysis,
    ('familial probe --checkpoint=runs/single --out=probe',),
  ),
  'depth': Entry(
    'Write one page of the studies of depth.',
    _analysis,
    ('familial depth --law=runs/depth --toys=runs/toys --out=story',),
  ),
}


def main() -> None:
  """Runs the command of `sys.argv` and exits with its status."""
  # Text that the terminal's encoding lacks is written as escapes.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors='backslashreplace')
  sys.exit(run(sys.argv))


def run(argv: list[str]) -> int:
  """Runs a command line; returns its exit status.

  Status 0: done; 1: part of the work failed, the rest is saved; 2: refused; 130:
  interrupted, with everything saved.
  """
  name, *arguments = argv[1:] or ['--help']
  try:
    if name == 'help' and arguments:
      name, arguments = arguments[0], ['--help']
    if name in ('--help', '-h', 'help', '--helpshort', '--helpfull'):
      print(help_lib.usage(COMMANDS))
    elif name == '--version':
      print(f'familial {familial.__version__}')
    elif name == 'completion':
      commands = {name: load(name) for name in COMMANDS}
      print(completion.script(arguments, commands))
    elif line := _command(name, arguments):
      print(line)
    return 0
  except errors.UserError as error:
    return _fail(str(error), 2)
  except errors.Incomplete as error:
    return _fail(str(error), 1)
  except errors.Interrupted as error:
    return _fail(str(error), 130)
  except KeyboardInterrupt:
    return _fail('interrupted', 130)
  except BrokenPipeError:  # As of `| head`: nobody reads on.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141
  except OSError as error:
    what = (error.filename, error.strerror or error)
    return _fail(': '.join(map(str, filter(None, what))), 2)


def load(name: str) -> command_lib.Command:
  """Returns a command, importing its module."""
  return COMMANDS[name].load()[name]


def _command(name: str, arguments: list[str]) -> str:
  """Returns the summary line of a command, or its help."""
  if name not in COMMANDS:
    raise errors.UserError(
      f'{name}: not a command; one of {", ".join(COMMANDS)}'
      f'{errors.nearest(name, COMMANDS)}'
    )
  command = load(name)
  if {'--help', '-h'} & set(arguments):
    return help_lib.of_command(name, COMMANDS[name], command)
  if help_lib.CONFIG_KEYS in arguments:
    return help_lib.of_config(command, arguments)
  return command.run(command.read(arguments))


def _fail(line: str, status: int) -> int:
  print(f'familial: {line}', file=sys.stderr)
  return status
