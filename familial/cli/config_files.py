"""Config files: found by path or by packaged name, run, and overridden.

`--config=FILE.py:VARIANT` runs `get_config('VARIANT')` of the file, and each
`--config.key=value` sets one value of what it returns.
"""

from collections.abc import Callable
from collections.abc import Sequence
import importlib.util
import inspect
import pathlib
import re
import sys
from typing import Any

from absl import flags

import familial
from familial.core import errors

_PACKAGE = pathlib.Path(familial.__path__[0])
# A flag, and no negative number.
_FLAG = re.compile(r'-{1,2}[a-zA-Z]')
_KINDS = {
  int: 'a whole number',
  float: 'a number',
  bool: 'True or False',
  str: 'text',
  tuple: 'a tuple, as (1,2) or (3,)',
}


def folder() -> pathlib.Path:
  """Returns the folder of the packaged experiments."""
  installed = _PACKAGE / 'experiments'
  # In a checkout they stand beside the package.
  return installed if installed.exists() else _PACKAGE.parent / 'experiments'


def names() -> list[str]:
  """Returns the names of the packaged experiments."""
  paths = sorted(folder().glob('*.py'))
  return [path.stem for path in paths if path.stem != '__init__']


def find(name: str) -> pathlib.Path:
  """Returns a config's file: a path as it stands, or a packaged experiment's.

  Args:
    name: `FILE.py`, or `quickstart` or `experiments/quickstart.py` of the
      packaged ones.

  Raises:
    UserError: if there is no such file.
  """
  path = pathlib.Path(name)
  if path.is_file():
    return path
  stem = path.name.removesuffix('.py')
  if str(path.parent) in ('.', 'experiments') and stem in names():
    return folder() / f'{stem}.py'
  raise errors.UserError(
    f'there is no such file, and the packaged experiments are '
    f'{", ".join(names())}{errors.nearest(stem, names())}'
  )


def split(
  arguments: Sequence[str], configs: Sequence[str]
) -> tuple[list[str], dict[str, list[str]]]:
  """Returns the arguments without configs' overrides, and these by config."""
  plain: list[str] = []
  overrides: dict[str, list[str]] = {name: [] for name in configs}
  override = re.compile(rf'-{{1,2}}(?:no)?({"|".join(configs) or "$."})\.')
  rest = list(arguments)
  while rest:
    argument = rest.pop(0)
    found = override.match(argument)
    if not found:
      plain.append(argument)
      continue
    overrides[found[1]].append(argument)
    if '=' not in argument and rest and not _FLAG.match(rest[0]):
      overrides[found[1]].append(rest.pop(0))
  return plain, overrides


def load(flag: str, text: str | None, overrides: Sequence[str]) -> Any:
  """Returns the config that a flag names, locked; None where it names none.

  Args:
    flag: name of the flag.
    text: its value, `FILE.py` or `FILE.py:VARIANT`.
    overrides: arguments of the form `--FLAG.key=value`.

  Raises:
    UserError: if there is no such file or variant, if the file cannot be run,
      or if an override is not of a key and of its type.
  """
  if text is None:
    if overrides:
      raise errors.UserError(
        f'{overrides[0]}: of a config, and --{flag} names none'
      )
    return None
  name, _, variant = text.partition(':')
  with errors.within(f'--{flag}={text}'):
    config = _run(find(name), [variant] if variant else [], f'{flag}_config')
  _override(flag, config, overrides)
  config.lock()
  return config


def parse(
  values: flags.FlagValues,
  arguments: Sequence[str],
  allowed: Callable[[str, str], str],
  absent: Callable[[], errors.UserError] | None = None,
) -> None:
  """Parses arguments, all of which must be flags.

  Args:
    values: the flags.
    arguments: what follows the command.
    allowed: says what a flag must be, from its name and the value given.
    absent: returns the error for flags whose validators fail.

  Raises:
    UserError: for the first argument that is not allowed.
  """
  try:
    rest = values(['familial', *arguments])[1:]
  except flags.UnrecognizedFlagError as error:
    raise errors.UserError(
      f'--{error.flagname}: unknown flag'
      f'{errors.nearest(error.flagname, list(values))}'
    ) from None
  except flags.IllegalFlagValueError as error:
    reason = error.__context__
    if absent is not None and reason is None:
      raise absent() from None
    # 'flag --NAME=VALUE: REASON', as absl says it.
    given = str(error).removesuffix(f': {reason}').removeprefix('flag ')
    name, _, value = given.removeprefix('--').partition('=')
    raise errors.not_allowed(f'--{name}', value, allowed(name, value)) from None
  except flags.Error as error:
    flag, missing, last = str(error).rpartition('Missing value for flag ')
    text = f'{last}: needs a value' if missing else f'{flag}{last}'
    raise errors.UserError(text) from None
  except ValueError as error:  # --noflag=value
    raise errors.UserError(str(error)) from None
  if rest:
    raise errors.UserError(f'{rest[0]}: only flags are taken, --NAME=VALUE')


def _run(path: pathlib.Path, variant: list[str], name: str) -> Any:
  """Returns what a file's get_config returns."""
  spec = importlib.util.spec_from_file_location(name, path)
  if spec is None or spec.loader is None:
    raise errors.UserError('it is not a Python file, FILE.py')
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # Where its classes look for their names.
  try:
    spec.loader.exec_module(module)
    get_config = getattr(module, 'get_config', None)
    if get_config is None:
      raise errors.UserError('it has no function get_config(arg)')
    try:
      inspect.signature(get_config).bind(*variant)
    except TypeError:
      raise errors.UserError(
        'it has no variants'
        if variant
        else 'it needs a variant, FILE.py:VARIANT'
      ) from None
    config = get_config(*variant)
  except errors.UserError:
    raise
  except Exception as error:  # A config file is anyone's code.
    words = ' '.join(str(error).split())
    raise errors.UserError(f'{type(error).__name__}: {words}') from None
  if not hasattr(config, 'lock'):
    raise errors.UserError(
      f'get_config returns no ConfigDict, but {type(config).__name__}'
    )
  return config


def _override(flag: str, config: Any, overrides: Sequence[str]) -> None:
  """Sets values of a config by arguments of the form --FLAG.key=value."""
  from ml_collections import config_flags

  if not overrides:
    return
  kinds: dict[str, str] = {}
  for argument in overrides:
    found = re.match(rf'-{{1,2}}(?:no)?{flag}\.([^=]*)', argument)
    if found:
      kinds[f'{flag}.{found[1]}'] = _kind_at(flag, config, found[1])
  values = flags.FlagValues()
  config_flags.DEFINE_config_dict(
    flag,
    config,
    lock_config=False,
    flag_values=values,
    sys_argv=['familial', *overrides],
  )
  parse(values, overrides, lambda name, value: kinds[name])


def _kind_at(flag: str, config: Any, key: str) -> str:
  """Says what the value of a key must be.

  Raises:
    UserError: if the config has no such key.
  """
  value, parts = config, key.split('.')
  for depth, part in enumerate(parts):
    name, _, index = part.partition('[')
    known = list(value) if hasattr(value, 'keys') else []
    if name not in known:
      raise errors.UserError(
        f'--{flag}.{".".join(parts[: depth + 1])}: unknown key'
        f'{errors.nearest(name, known)}'
      )
    value = None if index else value[name]
  return _KINDS.get(type(value), 'of the type of the value that it replaces')
