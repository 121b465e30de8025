"""Subcommands, and their flags: the fields of a frozen dataclass.

A flag has the name, type, default and bounds of its field, and the help of its
entry in the class's `Attributes:`. What a flag has beyond that stands in the
annotation: `Annotated[str, FOLDER]`.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import enum
import math
import typing
from typing import Annotated
from typing import Any
from typing import TypeVar

from absl import flags

from familial.core import errors
from familial.core import schema
from familial.data import config as data_config


class Mark(enum.Enum):
  """Marks of a field that say more of its flag than the type.

  FOLDER: must not be empty, as a shell's variable that is not set is.
  REPEATED: a tuple whose flag is repeated; other tuples are joined by commas.
  """

  FOLDER = enum.auto()
  REPEATED = enum.auto()


Filled = TypeVar('Filled')
FOLDER, REPEATED = Mark.FOLDER, Mark.REPEATED


@dataclasses.dataclass(frozen=True)
class ConfigFile:
  """Mark of a field whose flag names a config file.

  Attributes:
    default: FILE.py; None if there is none.
    required: whether a file must be named.
  """

  default: str | None = None
  required: bool = False


@dataclasses.dataclass(frozen=True)
class Overrides:
  """Mark of a field that holds the keys given of a section of a config, by name.

  Attributes:
    section: dataclass of the section; each of its fields is a flag `NAME.KEY`.
    without: keys that are no flags.
  """

  section: type
  without: tuple[str, ...] = ()


# The text that a model reads in place of its run's; its tokenizer stays.
TEXT = Overrides(data_config.DataConfig, ('tokenizer', 'vocab_size'))
Folder = Annotated[str, FOLDER]
Repeated = Annotated[tuple[str, ...], REPEATED]
Folders = Annotated[tuple[str, ...], REPEATED, FOLDER]
# Fields that are not flags: the names of the flags that were given, and the file
# that --config names.
GIVEN, CONFIG_FILE = 'given', 'config_file'
_CONFIG_HELP = (
  'Python file with a get_config(arg), as FILE.py or FILE.py:VARIANT; single '
  'values are overridden by --{name}.key=value.'
)


@dataclasses.dataclass(frozen=True)
class Command:
  """A subcommand.

  Attributes:
    flag_class: dataclass of its flags.
    run: takes an instance of it and returns the summary line.
  """

  flag_class: type
  run: Callable[[Any], str]

  def define(self, values: flags.FlagValues) -> None:
    """Declares the flags."""
    for field in schema.describe(self.flag_class):
      for override in _overrides(field):
        _define(override, values)
      if field.name not in (GIVEN, CONFIG_FILE) and not _overrides(field):
        _define(field, values)

  def call(self, values: flags.FlagValues) -> str:
    """Runs the command on parsed flags.

    Raises:
      UserError: if a value is not allowed.
    """
    found: dict[str, Any] = {}
    for field in schema.describe(self.flag_class):
      if field.name == GIVEN:
        found[GIVEN] = frozenset(n for n in values if values[n].present)
      elif overrides := _overrides(field):
        found[field.name] = {
          each.name.partition('.')[2]: values[each.name].value
          for each in overrides
          if values[each.name].present
        }
      elif field.name == CONFIG_FILE:
        from ml_collections import config_flags

        found[CONFIG_FILE] = config_flags.get_config_filename(values['config'])
      else:
        name = flag_name(field.name)
        found[field.name] = _value(field, name, values[name].value)
    return self.run(self.flag_class(**found))


def flag_name(field: str) -> str:
  """Returns a field's flag: a keyword such as `from_` has an underscore less."""
  return field.removesuffix('_')


def _overrides(field: schema.Field) -> list[schema.Field]:
  """Returns the flags of a field that holds overrides; [] for another one."""
  return [
    dataclasses.replace(each, name=f'{field.name}.{each.name}', default=None)
    for mark in field.metadata
    if isinstance(mark, Overrides)
    for each in schema.describe(mark.section)
    if each.name not in mark.without
  ]


def _define(field: schema.Field, values: flags.FlagValues) -> None:
  name, text = flag_name(field.name), _sentence(field.description)
  default = None if field.required else field.default
  bounds = [item for item in field.metadata if isinstance(item, schema.Bound)]
  names = [name for bound in bounds for name in bound.names]
  for mark in field.metadata:
    if isinstance(mark, ConfigFile):
      _define_config(name, mark, text, values)
      return
  if names:
    flags.DEFINE_enum(name, default, names, text, flag_values=values)
  elif field.type is bool:
    flags.DEFINE_bool(name, default, text, flag_values=values)
  elif field.type in (int, float):
    define: Any = (
      flags.DEFINE_integer if field.type is int else flags.DEFINE_float
    )
    least = max((b.least for b in bounds if b.least is not None), default=None)
    most = min((b.most for b in bounds if b.most is not None), default=None)
    define(name, default, text, least, most, flag_values=values)
  elif REPEATED in field.metadata:
    numbers = typing.get_args(field.type)[0] is float
    several: Any = (
      flags.DEFINE_multi_float if numbers else flags.DEFINE_multi_string
    )
    start = None if default is None else list(default)
    several(name, start, text, flag_values=values)
  elif field.type in (str, str | None):
    flags.DEFINE_string(name, default, text, flag_values=values)
  else:
    flags.DEFINE_list(name, list(default or ()), text, flag_values=values)
  if field.required:
    flags.mark_flag_as_required(name, flag_values=values)
  if FOLDER in field.metadata:
    flags.register_validator(
      name,
      lambda folder: (
        '' not in (folder if isinstance(folder, list) else [folder])
      ),
      message='it must name a folder',
      flag_values=values,
    )


def _define_config(
  name: str, mark: ConfigFile, text: str, values: flags.FlagValues
) -> None:
  from ml_collections import config_flags

  config_flags.DEFINE_config_file(
    name,
    mark.default,
    f'{text} {_CONFIG_HELP.format(name=name)}',
    lock_config=True,
    flag_values=values,
  )
  if mark.required:
    flags.mark_flag_as_required(name, flag_values=values)


def _sentence(text: str) -> str:
  return f'{text[:1].upper()}{text[1:]}'


def _value(field: schema.Field, name: str, value: Any) -> Any:
  """Returns a flag's value as its field has it."""
  if not isinstance(value, list):
    return value
  item = typing.get_args(field.type)[0]
  if item is str or REPEATED in field.metadata:
    return tuple(value)
  kind = {int: 'whole numbers', float: 'numbers'}[item]
  bounds = [mark for mark in field.metadata if isinstance(mark, schema.Bound)]
  try:
    numbers = tuple(map(item, value))
    if not all(bound.holds(x) for x in numbers for bound in bounds):
      raise ValueError
  except ValueError:
    allowed = ''.join(f' {bound.allowed}' for bound in bounds)
    raise errors.UserError(
      f'--{name}={",".join(value)!r}: {kind}{allowed}, joined by commas'
    ) from None
  return numbers


def fill(cls: type[Filled], given: Any, **values: Any) -> Filled:
  """Returns a dataclass from the flags that have its fields' names.

  Args:
    cls: the dataclass.
    given: flags.
    **values: of fields that are not flags, or that differ from them.
  """
  named = {
    field.name: getattr(given, field.name)
    for field in schema.describe(cls)
    if hasattr(given, field.name)
  }
  return cls(**{**named, **values})


def integers(flag: str, texts: tuple[str, ...]) -> tuple[int, ...]:
  """Returns the whole numbers that a flag lists."""
  try:
    return tuple(map(int, texts))
  except ValueError:
    raise errors.UserError(
      f'--{flag}={",".join(texts)!r}: whole numbers, joined by commas'
    ) from None


def numbers(flag: str, pairs: tuple[str, ...]) -> dict[str, float]:
  """Returns {'params': 1e9} for ('params=1e9',); see `mapping`.

  Raises:
    UserError: for a value that is not a number above 0.
  """
  found = {}
  for name, value in mapping(pairs, flag).items():
    try:
      found[name] = float(value)
    except ValueError:
      found[name] = math.nan
    if not 0 < found[name] < math.inf:
      raise errors.UserError(
        f'--{flag}: {name}={value} is not allowed; it must be a number above 0'
      )
  return found


def mapping(pairs: tuple[str, ...], flag: str = 'columns') -> Mapping[str, str]:
  """Returns {'params': 'Model Size'} for ('params=Model Size',).

  A text may hold several pairs, joined by commas.

  Raises:
    UserError: if a text is not of this form, or maps a name twice.
  """
  found: dict[str, str] = {}
  for pair in ','.join(pairs).split(','):
    ours, _, theirs = (part.strip() for part in pair.partition('='))
    if ours in found:
      raise errors.UserError(f'--{flag}: {ours!r} is mapped twice')
    if ours and '=' in pair:
      found[ours] = theirs
    elif pair.strip():
      raise errors.UserError(
        f"--{flag}: {pair!r} is not of the form 'ours=theirs'"
      )
  return found
