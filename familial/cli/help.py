"""What `familial --help`, `COMMAND --help` and `COMMAND --help_config` print."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import shutil
import textwrap
import typing
from typing import Any
from typing import NamedTuple

from familial.cli import command as command_lib
from familial.core import errors
from familial.core import schema

CONFIG_KEYS = '--help_config'
_WIDEST = 100
_ANY = dict[str, Any]


class Entry(NamedTuple):
  """A subcommand that is not loaded yet: its help, and how to load it."""

  help: str
  load: Callable[[], Mapping[str, command_lib.Command]]
  examples: tuple[str, ...] = ()


def usage(commands: Mapping[str, Entry]) -> str:
  """Returns the list of the commands."""
  width = max(map(len, commands))
  lines = [
    f'  {name:<{width}}  {entry.help}' for name, entry in commands.items()
  ]
  return (
    'usage: familial COMMAND [--flags]\n\n'
    + '\n'.join(lines)
    + '\n\nfamilial COMMAND --help lists its flags;'
    f'\nfamilial COMMAND --config=FILE {CONFIG_KEYS} the keys of a config;'
    '\nfamilial completion bash, or zsh, a script for the shell;'
    '\nfamilial --version the version.'
  )


def of_command(name: str, entry: Entry, command: command_lib.Command) -> str:
  """Returns the flags of a command, those required first, and its examples."""
  required = [f for f in command.fields if command_lib.is_required(f)]
  others = [f for f in command.fields if not command_lib.is_required(f)]
  blocks = [f'familial {name}: {entry.help}']
  for head, fields in (('Required flags', required), ('Flags', others)):
    if fields:
      blocks.append('\n'.join([f'{head}:', *map(_flag, fields)]))
  if command.config_flags:
    blocks[-1] += '\n' + _item(
      CONFIG_KEYS, 'Print the keys of the config, with values and meaning.'
    )
  if entry.examples:
    blocks.append('\n'.join(['Examples:', *(f'  {e}' for e in entry.examples)]))
  return '\n\n'.join(blocks)


def of_config(command: command_lib.Command, arguments: Sequence[str]) -> str:
  """Returns the keys of the config that a command line names.

  Each key has the value of the config, the default where it is another, what is
  allowed, and the meaning.

  Raises:
    UserError: if the command has no config, or the line names none.
  """
  if not command.config_flags:
    raise errors.UserError(f'{CONFIG_KEYS}: this command has no config')
  flag = command.config_flags[0]
  config = command.read_config(arguments)
  if config is None:
    raise errors.UserError(f'{CONFIG_KEYS}: --{flag}=FILE names the config')
  return '\n'.join(_keys(_class_of(config), config, f'--{flag}.'))


def _flag(field: schema.Field) -> str:
  name = command_lib.flag_name(field.name)
  if field.type is bool:
    shown = f'--[no]{name}'
  else:
    shown = f'--{name}={_placeholder(field)}'
  default = command_lib.default_of(field)
  parts = [command_lib.help_of(field)]
  notes = (
    [f'default: {_shown(default)}'] if default not in (None, '', ()) else []
  )
  if field.allowed and not command_lib.names_of(field):
    notes.append(field.allowed)
  if notes:
    parts.append(f'({"; ".join(notes)})')
  return _item(shown, ' '.join(parts))


def _placeholder(field: schema.Field) -> str:
  """Returns what stands for a flag's value."""
  if names := command_lib.names_of(field):
    return '|'.join(names)
  if command_lib.FOLDER in field.metadata:
    return 'FOLDER'
  if command_lib.is_config(field):
    return 'FILE'
  kinds = {int: 'INTEGER', float: 'NUMBER', str: 'TEXT'}
  if field.type in kinds:
    return kinds[field.type]
  item = (*typing.get_args(field.type), str)[0]
  one = kinds.get(item, 'TEXT')
  return one if command_lib.REPEATED in field.metadata else f'{one},...'


def _item(head: str, text: str) -> str:
  """Returns a flag or key, and its text below it."""
  width = min(shutil.get_terminal_size().columns, _WIDEST)
  body = textwrap.fill(
    text,
    width,
    initial_indent=' ' * 6,
    subsequent_indent=' ' * 6,
    break_on_hyphens=False,
    break_long_words=False,
  )
  return f'  {head}\n{body}' if text else f'  {head}'


def _shown(value: Any) -> str:
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, tuple):
    return ','.join(map(str, value))
  return str(value)


def _class_of(config: Any) -> Any:
  """Returns the dataclass that a config is read into."""
  if 'kind' in config:
    from familial.studies import registry

    study = registry.of_config(config)
    assert study is not None
    return study.config_class
  if 'cells' in config:
    from familial.allocation import config as allocation_config

    return allocation_config.ReplayConfig
  from familial.training import config as train_config

  return train_config.RunConfig


def _keys(cls: Any, values: Any, prefix: str) -> Iterator[str]:
  """Yields each key of a section of a config, and those of its sections."""
  fields = {field.name: field for field in schema.describe(cls)}
  for key, value in values.items():
    field = fields.get(key)
    if field is None:  # `kind`, and the ratios of models.
      yield _item(f'{prefix}{key}={value!r}', '')
      continue
    section = _section(field)
    if section is None:
      plain = dict(value) if hasattr(value, 'items') else value
      named = plain if isinstance(plain, dict) else {}
      shown = [f'{prefix}{key}.{name}={named[name]!r}' for name in named]
      for head in shown or [f'{prefix}{key}={plain!r}']:
        yield _item(head, _meaning(field, plain))
    elif typing.get_origin(field.type) is dict and field.type != _ANY:
      for name, part in value.items():
        yield from _keys(section, part, f'{prefix}{key}.{name}.')
    else:
      yield from _keys(section, value, f'{prefix}{key}.')


def _meaning(field: schema.Field, value: Any) -> str:
  """Returns what a key means, its default where it has another, and bounds."""
  notes = [field.type_name, field.allowed]
  if not field.required and field.default != value:
    notes.insert(0, f'default: {field.default!r}')
  text = f'{field.description} ({"; ".join(filter(None, notes))})'
  return command_lib.sentence(text)


def _section(field: schema.Field) -> Any:
  """Returns the dataclass of a section, or of each of several; or None."""
  if field.type == _ANY:  # What all runs of a study share.
    from familial.model import config as model_config
    from familial.training import config as train_config

    classes: dict[str, Any] = {
      'model': model_config.ModelConfig,
      'train': train_config.TrainConfig,
    }
    return classes.get(field.name)
  for item in (field.type, *typing.get_args(field.type)[1:]):
    if dataclasses.is_dataclass(item):
      return item
  return None
