"""Subcommands, and their flags: the fields of a frozen dataclass.

A flag has the name, type, default and bounds of its field, and the help of its
entry in the class's `Attributes:`. What a flag has beyond that stands in the
annotation: `Annotated[str, FOLDER]`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import enum
import math
import re
import typing
from typing import Annotated
from typing import Any
from typing import TypeVar

from absl import flags

from familial.cli import config_files
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
TEXT = Overrides(
  data_config.DataConfig, ('tokenizer', 'separator', 'vocab_size')
)
Folder = Annotated[str, FOLDER]
Repeated = Annotated[tuple[str, ...], REPEATED]
Folders = Annotated[tuple[str, ...], REPEATED, FOLDER]
# Fields that are not flags: the names of the flags that were given, and the file
# that --config names.
GIVEN, CONFIG_FILE = 'given', 'config_file'
_CONFIG_HELP = (
  'A packaged name, as quickstart, or a Python file with a get_config(arg), as '
  'FILE.py; both with :VARIANT where there are some. Single values are '
  'overridden by --{name}.key=value.'
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

  @property
  def fields(self) -> list[schema.Field]:
    """The fields that are flags."""
    return [
      flag
      for field in schema.describe(self.flag_class)
      if field.name not in (GIVEN, CONFIG_FILE)
      for flag in _overrides(field) or [field]
    ]

  @property
  def config_flags(self) -> list[str]:
    """Names of the flags that name config files."""
    return [flag_name(f.name) for f in self.fields if is_config(f)]

  def define(self, values: flags.FlagValues) -> None:
    """Declares the flags."""
    for field in self.fields:
      _define(field, values)

  def read(self, arguments: Sequence[str]) -> Any:
    """Returns the instance of the flag class that a command line asks for.

    Configs are loaded last: a mistake in a flag is told before their imports.

    Raises:
      UserError: for the first argument that is not allowed.
    """
    values = flags.FlagValues()
    self.define(values)
    plain, overrides = config_files.split(
      values.read_flags_from_files(list(arguments)), self.config_flags
    )
    fields = {flag_name(field.name): field for field in self.fields}
    config_files.parse(
      values,
      plain,
      lambda name, value: _allowed(fields[name], value),
      lambda: _absent(values, fields),
    )
    found: dict[str, Any] = {}
    for field in schema.describe(self.flag_class):
      if field.name in (GIVEN, CONFIG_FILE):
        continue
      if several := _overrides(field):
        found[field.name] = {
          each.name.partition('.')[2]: values[each.name].value
          for each in several
          if values[each.name].present
        }
      else:
        name = flag_name(field.name)
        found[field.name] = _value(field, name, values[name].value)
    for name in self.config_flags:
      found[name] = config_files.load(name, found[name], overrides[name])
    known = {field.name for field in schema.describe(self.flag_class)}
    if GIVEN in known:
      found[GIVEN] = frozenset(n for n in values if values[n].present)
    if CONFIG_FILE in known:
      found[CONFIG_FILE] = values['config'].value
    return self.flag_class(**found)

  def read_config(self, arguments: Sequence[str]) -> Any:
    """Returns the config of a command line whatever its other flags are."""
    flag = self.config_flags[0]
    plain, overrides = config_files.split(arguments, [flag])
    values = flags.FlagValues()
    values.set_gnu_getopt(True)
    fields = {flag_name(field.name): field for field in self.fields}
    flags.DEFINE_string(flag, default_of(fields[flag]), '', flag_values=values)
    values(['familial', *plain], known_only=True)
    return config_files.load(flag, values[flag].value, overrides[flag])


def _absent(
  values: flags.FlagValues, fields: Mapping[str, schema.Field]
) -> errors.UserError:
  """Returns the error for flags that are required, or must not be empty."""
  missing = [
    f'--{name}'
    for name, field in fields.items()
    if is_required(field) and values[name].value in (None, [])
  ]
  if missing:
    are = 'is' if len(missing) == 1 else 'are'
    first = fields[missing[0].removeprefix('--')].description
    return errors.UserError(f'{" and ".join(missing)}: {are} missing; {first}')
  empty = next(
    name
    for name, field in fields.items()
    if FOLDER in field.metadata and not _names_folders(values[name].value)
  )
  return errors.UserError(f'--{empty}=: is empty; it must name a folder')


def is_required(field: schema.Field) -> bool:
  """Whether a flag must be given."""
  mark = _config_file(field)
  return field.required if mark is None else mark.required


def is_config(field: schema.Field) -> bool:
  """Whether a flag names a config file."""
  return _config_file(field) is not None


def help_of(field: schema.Field) -> str:
  """Returns a flag's meaning."""
  text = sentence(field.description)
  if is_config(field):
    text += ' ' + _CONFIG_HELP.format(name=flag_name(field.name))
  return text


def _config_file(field: schema.Field) -> ConfigFile | None:
  marks = [mark for mark in field.metadata if isinstance(mark, ConfigFile)]
  return marks[0] if marks else None


def default_of(field: schema.Field) -> Any:
  """Returns a flag's default; None where it has none."""
  mark = _config_file(field)
  if mark is not None:
    return mark.default
  return None if field.required else field.default


def names_of(field: schema.Field) -> tuple[str, ...]:
  """Returns the names that a flag allows; () where they are not listed."""
  bounds = [item for item in field.metadata if isinstance(item, schema.Bound)]
  return tuple(name for bound in bounds for name in bound.names)


def _allowed(field: schema.Field, given: str) -> str:
  """Says what a flag's value must be, when it is not."""
  item = field.type
  if REPEATED in field.metadata:
    item = typing.get_args(field.type)[0]
  kind = {int: 'a whole number', float: 'a number', bool: 'true or false'}
  allowed = ', '.join(filter(None, (kind.get(item, ''), field.allowed)))
  return allowed + errors.nearest(given, names_of(field))


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
  name, text = flag_name(field.name), help_of(field)
  default = default_of(field)
  bounds = [item for item in field.metadata if isinstance(item, schema.Bound)]
  if is_config(field):
    flags.DEFINE(_ConfigName(), name, default, text, flag_values=values)
  elif names := names_of(field):
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
  if is_required(field):
    flags.mark_flag_as_required(name, flag_values=values)
  if FOLDER in field.metadata:
    flags.register_validator(name, _names_folders, flag_values=values)


class _ConfigName(flags.ArgumentParser):
  """The name of a config file, which is loaded when all flags are read."""

  def flag_type(self) -> str:
    """The type as absl names it."""
    return 'config object'


def _names_folders(value: str | list[str] | None) -> bool:
  return '' not in (value if isinstance(value, list) else [value])


def sentence(text: str) -> str:
  """Returns a description with a capital."""
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
    allowed = ', '.join([kind, *(bound.allowed for bound in bounds)])
    raise errors.not_allowed(
      f'--{name}', ','.join(value), f'{allowed}, joined by commas'
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
    raise errors.not_allowed(
      f'--{flag}', ','.join(texts), 'whole numbers, joined by commas'
    ) from None


def numbers(flag: str, pairs: tuple[str, ...]) -> dict[str, float]:
  """Returns {'params': 1e9} for ('params=1e9',); see `mapping`.

  Raises:
    UserError: for a value that is not a finite number.
  """
  found = {}
  for name, value in mapping(pairs, flag).items():
    try:
      found[name] = float(value)
    except ValueError:
      found[name] = math.nan
    if not math.isfinite(found[name]):
      raise errors.not_allowed(f'--{flag}={name}', value, 'a number')
  return found


def mapping(pairs: tuple[str, ...], flag: str = 'columns') -> Mapping[str, str]:
  """Returns {'params': 'Model Size'} for ('params=Model Size',).

  A text may hold several pairs, joined by commas; a comma that belongs to a name
  has a backslash before it.

  Raises:
    UserError: if a text is not of this form, or maps a name twice.
  """
  names: dict[str, str] = {}
  for pair in re.split(r'(?<!\\),', ','.join(pairs)):
    ours, _, theirs = (
      part.strip().replace('\\,', ',') for part in pair.partition('=')
    )
    if ours in names:
      raise errors.UserError(f'--{flag}: {ours!r} is mapped twice')
    if ours and '=' in pair:
      names[ours] = theirs
    elif pair.strip():
      raise errors.UserError(
        f"--{flag}: {pair!r} is not of the form 'ours=theirs'; a comma in a"
        ' name is written \\,'
      )
  return names
