"""The `familial` command: finds the subcommand and turns errors into one line."""

from collections.abc import Callable
from collections.abc import Mapping
import io
import pathlib
import re
import sys
import traceback
from typing import NamedTuple

from absl import flags

from familial.cli import command as command_lib
from familial.core import errors


class Entry(NamedTuple):
  """A subcommand that is not loaded yet: its help, and how to load it."""

  help: str
  load: Callable[[], Mapping[str, command_lib.Command]]


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
  'run': Entry('Run a study: plan, train, fit, report; resumable.', _studies),
  'train': Entry('Train one run; resumable.', _studies),
  'plan': Entry(
    'Estimate memory, step time and device-hours by ahead-of-time compilation.',
    _studies,
  ),
  'report': Entry('Write the page of a study or a run.', _studies),
  'export': Entry('Write one exit as a model, or segments to serve.', _models),
  'import': Entry('Add exits to a Llama-like Hugging Face model.', _models),
  'expand': Entry('Grow a trained model into a larger one.', _models),
  'fit': Entry('Fit laws to a table of runs, with intervals.', _laws),
  'allocate': Entry(
    'Allocate a budget among candidates: replay known curves, or train.',
    _allocation,
  ),
  'evaluate': Entry(
    'Evaluate exits: loss, calibration and early-exit trade-off.', _serving
  ),
  'generate': Entry(
    'Generate text (fixed exit, early exit, speculative decoding or relay).',
    _serving,
  ),
  'relay': Entry('Serve one segment of a relay.', _serving),
  'probe': Entry(
    'Measure what the layers do, and name their regime.', _analysis
  ),
  'depth': Entry('Write one page of the studies of depth.', _analysis),
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
  name = argv[1] if len(argv) > 1 else '--help'
  if name in ('--help', '-h', 'help', '--helpshort', '--helpfull'):
    print(_usage())
    return 0
  try:
    if name not in COMMANDS:
      raise errors.UserError(
        f'{name}: not a command; one of {", ".join(COMMANDS)}'
        f'{errors.nearest(name, COMMANDS)}'
      )
    command = load(name)
    if {'--help', '-h'} & set(argv[2:]):
      values = flags.FlagValues()
      command.define(values)
      print(f'familial {name}: {COMMANDS[name].help}\n{values.get_help()}')
      return 0
    values, rest = _parse(command, argv[:1] + argv[2:])
    if rest:
      raise errors.UserError(f'{rest[0]}: familial {name} takes flags only')
    if line := command.call(values):
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
  except OSError as error:
    what = (error.filename, error.strerror or error)
    return _fail(': '.join(map(str, filter(None, what))), 2)


def load(name: str) -> command_lib.Command:
  """Returns a command, importing its module."""
  return COMMANDS[name].load()[name]


def _fail(line: str, status: int) -> int:
  print(f'familial: {line}', file=sys.stderr)
  return status


def _parse(
  command: command_lib.Command, argv: list[str]
) -> tuple[flags.FlagValues, list[str]]:
  """Parses flags and loads the config; an error in either is one line."""
  values = flags.FlagValues()
  try:
    command.define(values)  # Reads overrides of the default config already.
    rest = values(argv)[1:]
    for name in ('config', 'to'):
      if name in values:
        config = getattr(values, name)  # Runs the file, if nothing has yet.
        if config is not None:
          config.lock()
    return values, rest
  except Exception as error:  # A config file is anyone's code.
    if not _of_config(error):
      raise errors.UserError(_one_line(str(error))) from None
    text = re.sub(r'\\n|[\\\'"]', ' ', str(error.args[0]))
    text = ' '.join(text.split())
    flag = 'to' if 'to' in values else 'config'
    raise errors.UserError(f'--{flag}: unknown key {text}') from None


def _of_config(error: Exception) -> bool:
  """Whether a ConfigDict raised an error for a key that it lacks."""
  if not isinstance(error, (AttributeError, KeyError)):
    return False
  frames = traceback.extract_tb(error.__traceback__)
  return 'ml_collections' in pathlib.Path(frames[-1].filename).parts


def _one_line(text: str) -> str:
  """Returns an error's text without the traceback that absl puts into it."""
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  if any(line.startswith('Traceback') for line in lines):
    lines = lines[-1:]
  return ' '.join(lines)


def _usage() -> str:
  width = max(map(len, COMMANDS))
  lines = [
    f'  {name:<{width}}  {entry.help}' for name, entry in COMMANDS.items()
  ]
  return (
    'usage: familial COMMAND [--flags]\n\n'
    + '\n'.join(lines)
    + '\n\nfamilial COMMAND --help lists its flags.'
  )
