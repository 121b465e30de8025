"""Numbers as a person writes them: three digits, units, intervals."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import math
from typing import Any
from typing import TypeVar

T = TypeVar('T')

_SUPERSCRIPTS = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')
MINUS = '−'
_ITEMS, _CHARACTERS = 8, 110  # of what stands in a line
_WIDE = 100  # ends of an interval so far apart have digits of their own
_LEAST = 1e-7  # width of an interval that eight places show
SPACE = '\u00a0'  # a number and its unit stay on one line


def number(value: float | None, digits: int = 3) -> str:
  """Returns a value in `digits` significant digits, or a dash for none."""
  if value is None or math.isnan(value):
    return '–'
  if math.isinf(value):
    return '∞' if value > 0 else f'{MINUS}∞'
  if value == 0:
    return '0'
  if not 1e-4 <= abs(value) < 1e5:
    return scientific(value, digits)
  places = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
  return f'{value:.{places}f}'.replace('-', MINUS)


def scientific(value: float | None, digits: int = 3) -> str:
  """Returns a value as 1.23×10⁴."""
  if value is None or not math.isfinite(value) or value == 0:
    return number(value)
  mantissa, exponent = f'{value:.{digits - 1}e}'.split('e')
  if '.' in mantissa:
    mantissa = mantissa.rstrip('0').rstrip('.')
  power = str(int(exponent)).translate(_SUPERSCRIPTS)
  return f'{mantissa}×10{power}'.replace('-', MINUS)


def amount(value: float | None, digits: int = 3) -> str:
  """Returns a count with k, M or B, as parameters and tokens are written."""
  if value is None or not math.isfinite(value):
    return number(value)
  for size, unit in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= size * (1 - 0.5 * 10.0**-digits):
      return f'{trimmed(value / size, digits)}{SPACE}{unit}'
  return trimmed(value, digits)


def signed(value: float | None, digits: int = 3) -> str:
  """Returns a value with its sign."""
  text = number(value, digits)
  return f'+{text}' if value is not None and value > 0 else text


def percent(fraction: float | None, digits: int = 2) -> str:
  """Returns a fraction as a signed percentage."""
  if fraction is None:
    return '–'
  return f'{signed(100 * fraction, digits)}{SPACE}%'


def estimate(
  value: float | None,
  low: float | None,
  high: float | None,
  *,
  digits: int = 2,
) -> str:
  """Returns a value and its interval, to `digits` digits of the interval's width."""
  if value is None:
    return '–'
  if low is None and high is None:
    return f'{number(value)} (no interval)'
  if low is None or high is None:
    return f'{number(value)} {interval(low, high)}'
  if low > 0 and high > _WIDE * low:
    return f'{number(value)} [{number(low)},{SPACE}{number(high)}]'
  return f'{_placed(value, low, high, digits)} {interval(low, high, digits)}'


def give_or_take(value: float | None, error: float | None) -> str:
  """Returns a value ± its standard error, to two digits of the error."""
  if value is None or not error:
    return number(value)
  places = min(max(1 - math.floor(math.log10(error)), 0), 8)
  shown = f'{value:.{places}f}{SPACE}±{SPACE}{error:.{places}f}'
  return shown.replace('-', MINUS)


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
  """Returns [low, high]; an unknown end is shown as infinite."""
  if low is None or high is None:
    ends = [
      f'{MINUS}∞' if low is None else number(low),
      '∞' if high is None else number(high),
    ]
  else:
    ends = [_placed(end, low, high, digits) for end in (low, high)]
  return f'[{ends[0]},{SPACE}{ends[1]}]'


def duration(seconds: float | None) -> str:
  """Returns a time in its two largest units."""
  if seconds is None or not math.isfinite(seconds):
    return '–'
  if seconds < 60:
    return f'{number(seconds, 2)} s'
  minutes = round(seconds / 60)
  if minutes < 60:
    return f'{minutes} min'
  hours, minutes = divmod(minutes, 60)
  if hours < 48:
    return f'{hours} h {minutes} min'
  return f'{hours // 24} d {hours % 24} h'


def table(
  head: Sequence[str], rows: Iterable[Sequence[str]], align: str = 'l'
) -> str:
  """Returns a table for a terminal.

  Args:
    head: names of the columns.
    rows: cells of each row.
    align: `l` or `r` for each column; columns beyond its end are right-aligned.
  """
  every = [tuple(head), *map(tuple, rows)]
  widths = [max(map(len, column)) for column in zip(*every, strict=True)]
  sides = align.ljust(len(widths), 'r')
  return '\n'.join(
    '  '.join(
      cell.ljust(width) if side == 'l' else cell.rjust(width)
      for cell, width, side in zip(row, widths, sides, strict=True)
    ).rstrip()
    for row in every
  )


def count(number_of: int, noun: str, plural: str = '') -> str:
  """Returns `1 run`, `2 runs`."""
  return f'{number_of} {noun if number_of == 1 else plural or noun + "s"}'


def some(parts: Sequence[str], most: int = 6) -> str:
  """Returns the first of some names, and how many more there are."""
  more = len(parts) - most
  shown = ', '.join(parts[:most])
  return f'{shown} and {more} more' if more > 0 else shown


def trimmed(value: float, digits: int = 3) -> str:
  """Returns a number without zeros at its end."""
  text = number(value, digits)
  return text.rstrip('0').rstrip('.') if '.' in text else text


def brief(cls: type[T]) -> type[T]:
  """Has `print` of a dataclass show a line for each field, however large it is."""
  cls.__repr__ = _brief  # type: ignore[method-assign]
  return cls


def _brief(record: Any, indent: str = '') -> str:
  lines = [type(record).__name__]
  for field in dataclasses.fields(record):
    value = getattr(record, field.name)
    shown = _in_a_line(value)
    if not indent and getattr(type(value), '__repr__', None) is _brief:
      shown = _brief(value, '  ')  # The parts of a result, but not theirs.
    lines.append(f'  {indent}{field.name}: {shown}')
  return '\n'.join(lines)


def _in_a_line(value: Any) -> str:
  """Returns a value, or what it is if it is no number or short text."""
  if hasattr(value, 'shape') and hasattr(value, 'dtype') and value.shape:
    return f'{value.dtype} array of shape {tuple(value.shape)}'
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    of = vars(value)
    if not {'value', 'lo', 'hi'} <= of.keys():
      return type(value).__name__
    middle, low, high = (_in_a_line(of[key]) for key in ('value', 'lo', 'hi'))
    return f'{middle} [{low}, {high}]'
  if isinstance(value, Mapping | list | tuple | set | frozenset):
    items = list(itertools.islice(value, _ITEMS + 1))
    several = len(value) > _ITEMS
    if isinstance(value, Mapping):
      names = ', '.join(map(str, items))
      shown = ', '.join(f'{key}: {_in_a_line(value[key])}' for key in items)
    else:
      names = type(items[0]).__name__ if items else ''
      shown = ', '.join(map(_in_a_line, items))
    if not several and len(shown) <= _CHARACTERS:
      return shown or 'none'
    shown = f'{len(value)}: {names}'
  elif isinstance(value, float):
    shown = f'{value:.6g}'
  else:
    shown = ' '.join(str(value).split())
  return shown if len(shown) <= _CHARACTERS else f'{shown[:_CHARACTERS]}...'


def _placed(value: float, low: float, high: float, digits: int) -> str:
  """Returns a value to `digits` digits of its interval's width."""
  width = high - low
  if not _LEAST < width < math.inf or max(abs(low), abs(high)) >= 1e5:
    return number(value)
  places = min(max(digits - 1 - math.floor(math.log10(width)), 0), 8)
  return f'{value:z.{places}f}'.replace('-', MINUS)
