"""The `familial` command: finds the subcommand, and makes errors one line."""

import pathlib
import re
import sys
import traceback

from absl import flags

from familial.cli import allocation
from familial.cli import analysis
from familial.cli import command as command_lib
from familial.cli import laws
from familial.cli import models
from familial.cli import serving
from familial.cli import training
from familial.core import errors

COMMANDS = {
  **training.COMMANDS,
  **models.COMMANDS,
  **laws.COMMANDS,
  **allocation.COMMANDS,
  **serving.COMMANDS,
  **analysis.COMMANDS,
}


def main() -> None:
  """Runs the command of `sys.argv` and exits with its status."""
  sys.exit(_main(sys.argv))


def _main(argv: list[str]) -> int:
  name = argv[1] if len(argv) > 1 else '--help'
  if name in ('--help', '-h', 'help', '--helpshort', '--helpfull'):
    print(_usage())
    return 0
  try:
    if name not in COMMANDS:
      raise errors.UserError(
        f'{name}: not a command; one of '
        f'{", ".join(COMMANDS)}'
        f'{errors.nearest(name, COMMANDS)}'
      )
    command = COMMANDS[name]
    if {'--help', '-h'} & set(argv[2:]):
      values = flags.FlagValues()
      command.define(values)
      print(f'familial {name}: {command.help}\n{values.get_help()}')
      return 0
    values, rest = _parse(command, argv[:1] + argv[2:])
    if rest:
      raise errors.UserError(f'{rest[0]}: familial {name} takes flags only')
    print(command.run(values))
    return 0
  except errors.UserError as error:
    print(f'familial: {error}', file=sys.stderr)
    return 2
  except errors.Incomplete as error:
    print(f'familial: {error}', file=sys.stderr)
    return 1
  except errors.Interrupted as error:
    print(f'familial: {error}', file=sys.stderr)
    return 130
  except KeyboardInterrupt:
    print('familial: interrupted', file=sys.stderr)
    return 130
  except OSError as error:
    what = (error.filename, error.strerror or error)
    print(
      f'familial: {": ".join(map(str, filter(None, what)))}', file=sys.stderr
    )
    return 2


def _parse(
  command: command_lib.Command, argv: list[str]
) -> tuple[flags.FlagValues, list[str]]:
  """Parses flags and loads the config: what goes wrong in either is one line."""
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
  """Whether a ConfigDict raised it, for a key that it lacks."""
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
    f'  {name:<{width}}  {command.help}' for name, command in COMMANDS.items()
  ]
  return (
    'usage: familial COMMAND [--flags]\n\n'
    + '\n'.join(lines)
    + '\n\nfamilial COMMAND --help lists its flags.'
  )
