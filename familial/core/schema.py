"""From a config file's ConfigDict to frozen dataclasses.

This happens once, at the edge: no other code sees a ConfigDict. An unknown key, a
missing one and a value of the wrong type are refused in one line.
"""

from collections.abc import Mapping
import dataclasses
import typing
from typing import Any

from familial.core import errors


def build(cls: Any, config: Mapping[str, Any], **sections: Any) -> Any:
  """Returns a config of a class, with sections of classes of their own."""
  values = plain(config)
  for name, of in sections.items():
    values[name] = section(of, values.get(name, {}), name)
  return section(cls, values, '')


def section(cls: Any, values: Mapping[str, Any], name: str) -> Any:
  """Returns a dataclass built from a section of a config.

  Args:
    cls: the dataclass; its annotations are checked.
    values: of its fields; those with a default may be missing.
    name: of the section, for the errors.
  """
  fields = {field.name: field for field in dataclasses.fields(cls)}
  hints = typing.get_type_hints(cls)
  prefix = f'{name}.' if name else ''
  checked = {}
  for key, value in values.items():
    if key not in fields:
      raise errors.UserError(
        f'{prefix}{key}: unknown key{errors.nearest(key, fields)}'
      )
    checked[key] = _check(value, hints[key], prefix + key)
  for key, field in fields.items():
    if (
      key not in checked
      and field.default is dataclasses.MISSING
      and field.default_factory is dataclasses.MISSING
    ):
      raise errors.UserError(f'{prefix}{key}: is missing')
  return cls(**checked)


def plain(value: Any) -> Any:
  """Returns dicts and tuples for ConfigDicts and lists, all the way down."""
  if hasattr(value, 'items'):
    return {key: plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(plain(item) for item in value)
  return value


def defaults(cls: Any, without: tuple[str, ...] = ()) -> dict[str, Any]:
  """Returns the defaults of a dataclass by field; fields without one are left out."""
  return {
    field.name: field.default
    for field in dataclasses.fields(cls)
    if field.name not in without and field.default is not dataclasses.MISSING
  }


def _check(value: Any, hint: Any, key: str) -> Any:
  """Returns a value as its annotation has it; ints serve as floats."""
  origin = typing.get_origin(hint)
  if origin is tuple:
    if not isinstance(value, tuple):
      raise errors.UserError(f'{key}: {value!r} is not a tuple')
    item = typing.get_args(hint)[0]
    return tuple(_check(v, item, f'{key}[{i}]') for i, v in enumerate(value))
  kind = origin or hint
  if kind is Any or not isinstance(kind, type):
    return value
  if kind is float and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if kind is int and isinstance(value, float) and value.is_integer():
    return int(value)
  if not isinstance(value, kind) or (
    isinstance(value, bool) and kind is not bool
  ):
    raise errors.UserError(f'{key}: {value!r} is not of type {kind.__name__}')
  return value
