"""One schema for configs and files: what a frozen dataclass's annotations allow.

A config or a record is a standard frozen dataclass. The bounds of its fields stand
in their annotations, and their descriptions in the `Attributes:` section of its
docstring:

    @dataclasses.dataclass(frozen=True)
    class Fit:
      '''How the law is fitted.

      Attributes:
        starts: number of multi-start initialisations.
        loss: which loss is fitted.
      '''

      starts: schema.Count = 256
      loss: Annotated[str, schema.one_of('final', 'mean')] = 'final'

      def __post_init__(self) -> None:
        schema.check(self, 'fit')
        # ... what concerns several fields.

`check` refuses values out of bounds when the program constructs one; `read` also
refuses unknown and missing keys and wrong types when one comes from a config or a
file. `defaults` and `describe` give templates, flags and documentation.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import inspect
import math
import os
import re
import types
import typing
from typing import Annotated
from typing import Any
from typing import TypeVar

from familial.core import errors
from familial.core import storage

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Bound:
  """A condition on a value, as metadata of an `Annotated` type.

  Attributes:
    holds: whether a value of the annotated type is allowed.
    allowed: the text that follows "it must be" in a refusal.
    names: the values allowed, where they are names; a refusal suggests one.
    least: the least number allowed, if there is one.
    most: the largest number allowed, if there is one.
  """

  holds: Callable[[Any], bool]
  allowed: str
  names: tuple[str, ...] = ()
  least: float | None = None
  most: float | None = None

  def text(self, value: Any) -> str:
    """Describes the allowed values in the message that refuses one."""
    return self.allowed + errors.nearest(str(value), self.names)

  def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
    import pydantic_core

    def validate(value: Any) -> Any:
      if self.holds(value):
        return value
      text = {'text': self.text(value)}
      raise pydantic_core.PydanticCustomError('bound', '{text}', text)

    return pydantic_core.core_schema.no_info_after_validator_function(
      validate, handler(source)
    )


def at_least(least: float) -> Bound:
  """Returns the bound of numbers from `least` on."""
  return Bound(lambda x: x >= least, f'at least {least}', least=least)


def above(limit: float) -> Bound:
  """Returns the bound of numbers greater than `limit`."""
  return Bound(lambda x: x > limit, f'above {limit}')


def at_most(most: float) -> Bound:
  """Returns the bound of numbers up to `most`."""
  return Bound(lambda x: x <= most, f'at most {most}', most=most)


def below(limit: float) -> Bound:
  """Returns the bound of numbers less than `limit`."""
  return Bound(lambda x: x < limit, f'below {limit}')


def within(least: float, most: float) -> Bound:
  """Returns the bound of numbers in [least, most]."""
  allowed = f'within {least} to {most}'
  return Bound(lambda x: least <= x <= most, allowed, (), least, most)


def one_of(*names: str) -> Bound:
  """Returns the bound of some names."""
  allowed = 'one of ' + ', '.join(map(repr, names))
  return Bound(lambda x: x in names, allowed, names)


def key_of(registry: Mapping[str, Any], *others: str) -> Bound:
  """Returns the bound of the names in a registry, those added later included."""
  known = one_of(*others, *registry)
  return dataclasses.replace(
    known, holds=lambda x: x in others or x in registry
  )


FINITE = Bound(math.isfinite, 'finite')
NOT_EMPTY = Bound(lambda x: len(x) > 0, 'of at least one item')
UNIQUE = Bound(
  lambda x: len(set(x)) == len(x) > 0, 'at least one, and no two alike'
)

Count = Annotated[int, at_least(1)]
Index = Annotated[int, at_least(0)]
Positive = Annotated[float, above(0), FINITE]
NonNegative = Annotated[float, at_least(0), FINITE]
Finite = Annotated[float, FINITE]
Fraction = Annotated[float, within(0, 1)]
OpenFraction = Annotated[float, above(0), below(1)]


def check(record: Any, section: str = '') -> None:
  """Checks the annotated bounds of all fields of a dataclass; no types.

  Args:
    record: the instance, in its `__post_init__`.
    section: name of its section in the config, for the refusal.

  Raises:
    UserError: if a value is out of bounds.
  """
  prefix = f'{section}.' if section else ''
  for key, hint in _hints(type(record)).items():
    _check(getattr(record, key), hint, prefix + key)


def read(cls: type[T], values: Mapping[str, Any], where: str = '') -> T:
  """Returns a dataclass built from a ConfigDict or a JSON object.

  Types are strict, but for what configs may write either way: lists are tuples,
  ints are floats, and whole floats (1e6) are ints.

  Args:
    cls: the dataclass; fields may be dataclasses, dicts and tuples of them.
    values: the values of its fields; those with a default may be missing.
    where: the dotted key of `values` in the whole config, for the refusal.

  Raises:
    UserError: for the first unknown key, or else for the first value that is
      missing, of the wrong type or out of bounds. What a `__post_init__` raises
      passes through unchanged.
  """
  import pydantic_core

  validator = _validator(typing.cast(Any, cls))
  try:
    return typing.cast(T, validator.validate_python(_plain(values)))
  except pydantic_core.ValidationError as error:
    raise _refusal(cls, where, error.errors(include_url=False)) from None


def read_json(cls: type[T], path: str | os.PathLike[str]) -> T:
  """Returns the record in a JSON file that `write_json` wrote.

  Raises:
    UserError: if the file is damaged, of another schema number, or not of this
      class; the line names the file and the key.
  """
  values = storage.read_own(path)
  values.pop('schema', None)
  with errors.within(path):
    return read(cls, values)


def write_json(path: str | os.PathLike[str], record: Any) -> None:
  """Writes a dataclass as JSON with the schema number, atomically.

  Raises:
    ValueError: if it holds NaN or an infinity; a missing number is None.
  """
  values = {'schema': storage.SCHEMA, **dataclasses.asdict(record)}
  storage.write_json(path, values)


def defaults(cls: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
  """Returns the default values of a dataclass by field, sections as dicts.

  Fields without a default are left out, and so are those of `without`.
  """
  values: dict[str, Any] = {}
  for field in describe(cls):
    if field.name in without:
      continue
    section = dataclasses.is_dataclass(field.type)
    if not field.required:
      default = field.default
      values[field.name] = dataclasses.asdict(default) if section else default
    elif section:
      values[field.name] = defaults(field.type)
  return values


@dataclasses.dataclass(frozen=True)
class Field:
  """One key of a config, for flags and documentation.

  Attributes:
    name: the key.
    type: the annotated type without bounds.
    default: the default value; `dataclasses.MISSING` where it has none.
    allowed: what its bounds allow; '' where every value of the type is.
    description: its text in the `Attributes:` section of the class.
    metadata: what its annotation has beside the type: bounds and marks.
  """

  name: str
  type: Any
  default: Any
  allowed: str
  description: str
  metadata: tuple[Any, ...] = ()

  @property
  def required(self) -> bool:
    """Whether the key has no default."""
    return self.default is dataclasses.MISSING

  @property
  def type_name(self) -> str:
    """The type as text: `int`, `tuple[float, ...]`."""
    if isinstance(self.type, type) and not typing.get_args(self.type):
      return self.type.__name__
    return re.sub(r'\b(\w+\.)+', '', str(self.type))


def describe(cls: Any) -> tuple[Field, ...]:
  """Returns the type, default, bounds and description of each field."""
  texts: dict[str, str] = {}
  for base in reversed(cls.__mro__):
    texts |= _attributes(base.__doc__ or '')
  plain = typing.get_type_hints(cls)
  hints = _hints(cls)
  found = []
  for field in dataclasses.fields(cls):
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
      default = field.default_factory()
    allowed = _allowed(hints[field.name])
    text = texts.get(field.name, '')
    metadata = getattr(hints[field.name], '__metadata__', ())
    found.append(
      Field(
        field.name, plain[field.name], default, allowed, text, tuple(metadata)
      )
    )
  return tuple(found)


def _allowed(hint: Any) -> str:
  """Returns the text of a type's bounds, and of those of its items."""
  bare, bounds = _split(hint)
  texts = [bound.allowed for bound in bounds]
  origin = typing.get_origin(bare)
  is_tuple = origin is tuple
  if is_tuple or (isinstance(origin, type) and issubclass(origin, Mapping)):
    if each := _allowed(_item(bare, 0 if is_tuple else '')):
      texts.append(f'each {each}')
  return ' and '.join(texts)


def _attributes(doc: str) -> dict[str, str]:
  """Returns the entries of the `Attributes:` section of a docstring."""
  section = inspect.cleandoc(doc).partition('\nAttributes:\n')[2]
  section = re.split(r'\n\S', section)[0]  # Another section ends it.
  entries = re.split(r'(?:^|\n)  (\w+): ', section)[1:]
  return {
    name: ' '.join(text.split())
    for name, text in zip(entries[::2], entries[1::2], strict=True)
  }


def _plain(value: Any) -> Any:
  """Returns dicts and tuples for ConfigDicts and lists, all the way down."""
  if hasattr(value, 'items'):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(_plain(item) for item in value)
  return value


# The annotations of a class by field, with their bounds.
_hints: Callable[[Any], dict[str, Any]] = functools.cache(
  functools.partial(typing.get_type_hints, include_extras=True)
)


def _split(hint: Any) -> tuple[Any, list[Bound]]:
  """Returns a type without bounds and `| None`, and its bounds."""
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    rest = [arg for arg in typing.get_args(hint) if arg is not types.NoneType]
    hint = rest[0] if len(rest) == 1 else hint
  if typing.get_origin(hint) is not Annotated:
    return hint, []
  bare, *metadata = typing.get_args(hint)
  return bare, [bound for bound in metadata if isinstance(bound, Bound)]


def _item(hint: Any, key: str | int) -> Any:
  """Returns the type of what stands at a key or an index in a type."""
  hint = _split(hint)[0]
  if dataclasses.is_dataclass(hint):
    return _hints(hint)[str(key)]
  arguments = typing.get_args(hint)
  if not isinstance(key, int):
    return arguments[1]
  return arguments[0 if Ellipsis in arguments else min(key, len(arguments) - 1)]


def _check(value: Any, hint: Any, key: str) -> None:
  if value is None and types.NoneType in typing.get_args(hint):
    return
  bare, bounds = _split(hint)
  for bound in bounds:
    errors.require(bound.holds(value), key, value, bound.text(value))
  arguments = typing.get_args(bare)
  if isinstance(value, tuple) and arguments:
    for i, item in enumerate(value):
      _check(item, _item(bare, i), f'{key}[{i}]')
  elif isinstance(value, Mapping) and arguments:
    for name, item in value.items():
      _check(item, _item(bare, name), f'{key}.{name}')


@functools.cache
def _validator(cls: Any) -> Any:
  import pydantic
  import pydantic_core

  return pydantic_core.SchemaValidator(
    _strict(pydantic.TypeAdapter(cls).core_schema)
  )


def _strict(node: Any) -> Any:
  """Returns pydantic's schema of a dataclass with strict types and known keys.

  Pydantic's own strict mode accepts no dict for a dataclass and no 1e6 for an int.
  """
  from pydantic_core import core_schema

  if isinstance(node, list):
    return [_strict(item) for item in node]
  if not isinstance(node, dict):
    return node
  node = {
    key: item if key == 'default' else _strict(item)
    for key, item in node.items()
  }
  if node.get('type') == 'dataclass':
    config = {'strict': True, 'extra_fields_behavior': 'forbid'}
    return {**node, 'config': config, 'strict': False}
  if node.get('type') == 'int':
    return core_schema.no_info_before_validator_function(_whole, node)
  return node


def _whole(value: Any) -> Any:
  """Returns a whole float as an int, and anything else as it is."""
  if isinstance(value, float) and value.is_integer():
    return int(value)
  return value


def _refusal(cls: Any, where: str, found: list[Any]) -> errors.UserError:
  """Returns one line for pydantic's errors: the first unknown key, or the first."""
  unknown = [e for e in found if e['type'] == 'unexpected_keyword_argument']
  first = (unknown or found)[0]
  kind, loc = first['type'], first['loc']
  raised = first.get('ctx', {}).get('error')
  if isinstance(raised, errors.UserError):  # By a __post_init__.
    return raised
  short = kind == 'missing' and isinstance(loc[-1], int)  # An item of a tuple.
  loc = loc[:-1] if short else loc
  parts = [f'[{k}]' if isinstance(k, int) else f'.{k}' for k in loc]
  key = (where + ''.join(parts)).removeprefix('.')
  if unknown:
    names = _hints(_type_at(cls, loc[:-1]))
    nearest = errors.nearest(str(loc[-1]), names)
    return errors.UserError(f'{key}: unknown key{nearest}')
  if kind == 'missing' and not short:
    return errors.UserError(f'{key}: is missing')
  allowed = first['msg'].removeprefix('Input should be ')
  if short or kind == 'too_long':
    allowed = f'of length {len(typing.get_args(_type_at(cls, loc)))}'
  return errors.not_allowed(key, first['input'], allowed)


def _type_at(cls: Any, loc: tuple[str | int, ...]) -> Any:
  """Returns the type at a path of keys and indices in a dataclass."""
  return _split(functools.reduce(_item, loc, cls))[0]
