"""User-defined laws: a Python function of columns and constants, in a file.

    from familial.laws.user_forms import positive, real

    def law(N, D, *, E=positive(0.1, 10), A=positive(1, 1e9), alpha=real(0, 2)):
      'L = E + A/N^alpha + 1/D'
      return E + A / N**alpha + 1 / D

`familial fit --form=FILE.py:law` fits it. Positional arguments are columns of
the table; keyword-only ones are constants, whose defaults give their range and
that of their starts. It returns the loss, one a row, written in operators or
jax.numpy; JAX differentiates it.
"""

from collections.abc import Callable
import dataclasses
import functools
import importlib.util
import inspect
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from familial.core import errors
from familial.laws import parametric

_POINTS = 5  # of the grid of starts, a constant


@dataclasses.dataclass(frozen=True)
class Constant:
  """The values that a constant may have, and the range of its starts."""

  low: float
  high: float
  transform: parametric.Transform

  def __post_init__(self) -> None:
    if not -math.inf < self.low < self.high < math.inf:
      raise errors.UserError(
        f'a constant from {self.low} to {self.high}: give two finite ends, the '
        'lower first'
      )

  def grid(self) -> tuple[float, ...]:
    """Coordinates of an even grid; of `within`, inside its bounds."""
    ends = np.array([self.low, self.high])
    if self.transform.prefix == 'logit_':
      share = np.arange(1, 2 * _POINTS, 2) / (2 * _POINTS)
      values = self.low + share * (self.high - self.low)
      return tuple(map(float, self.transform.to_coordinate(values)))
    low, high = map(float, self.transform.to_coordinate(ends))
    return tuple(map(float, np.linspace(low, high, _POINTS)))


def positive(low: float, high: float) -> Constant:
  """A constant above 0; starts are even in its logarithm, from low to high."""
  if not low > 0:
    raise errors.UserError(f'positive({low}, {high}): both must be above 0')
  return Constant(low, high, parametric.LOG)


def real(low: float, high: float) -> Constant:
  """Any number; starts are even from low to high."""
  return Constant(low, high, parametric.IDENTITY)


def within(low: float, high: float) -> Constant:
  """A number that stays between low and high."""
  return Constant(low, high, parametric.between(low, high))


@functools.cache  # Compiled programs are kept by the form's function.
def from_function(
  function: Callable[..., Any], name: str = ''
) -> parametric.Form:
  """The form of a function.

  Raises:
    UserError: if it has no columns, or a constant without a range.
  """
  label = name or getattr(function, '__name__', 'law')
  given = inspect.signature(function).parameters.values()
  columns = [p.name for p in given if p.kind is p.POSITIONAL_OR_KEYWORD]
  constants = {p.name: p.default for p in given if p.kind is p.KEYWORD_ONLY}
  if not columns or not constants or len(columns) + len(constants) < len(given):
    raise errors.UserError(
      f'form {label!r}: columns are positional arguments, constants follow a *, '
      'and there must be at least one of each'
    )
  for key, constant in constants.items():
    if not isinstance(constant, Constant):
      raise errors.UserError(
        f'form {label!r}: the default of {key} must say its range: '
        'positive(low, high), real(low, high) or within(low, high)'
      )
  symbols = tuple(parametric.SYMBOLS.get(column, column) for column in columns)
  transforms = {key: c.transform for key, c in constants.items()}

  def log_loss(p: parametric.Coordinates, table: parametric.Columns) -> Any:
    values = {
      key: transform.traced(p[transform.prefix + key])
      for key, transform in transforms.items()
    }
    arrays = [table[s] for s in symbols]
    try:
      loss = jnp.asarray(function(*arrays, **values))
    except Exception as error:  # It is anyone's code.
      line = str(error).strip().partition('\n')[0]
      if isinstance(error, jax.errors.TracerArrayConversionError):
        line = (
          'NumPy cannot be differentiated: import jax.numpy as jnp, use jnp'
        )
      raise errors.UserError(
        f'form {label!r}: {type(error).__name__}: {line}'
      ) from None
    rows = jnp.asarray(arrays[0])
    if loss.shape not in ((), rows.shape) or jnp.iscomplexobj(loss):
      raise errors.UserError(
        f'form {label!r}: its function returned {loss.dtype} of shape'
        f' {loss.shape}; one real number a row is needed, {rows.shape}'
      )
    # NumPy constants widen the dtype; the fit decides on the precision.
    return jnp.log(loss.astype(rows.dtype))

  return parametric.Form(
    name=label,
    equation=inspect.getdoc(function) or label,
    parameters=tuple(
      parametric.Parameter(key, constant.grid(), constant.transform)
      for key, constant in constants.items()
    ),
    columns=symbols,
    log_loss=log_loss,
  )


def load(path: str) -> parametric.Form:
  """The form of FILE.py:FUNCTION, or of the only function in FILE.py.

  Raises:
    UserError: if the file does not load or has no such function.
  """
  file, _, name = path.partition('.py')
  source = pathlib.Path(f'{file}.py')
  name = name.removeprefix(':')
  if not source.is_file():
    raise errors.UserError(f'form {path!r}: there is no file {str(source)!r}')
  spec = importlib.util.spec_from_file_location(f'form_{source.stem}', source)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except errors.UserError:
    raise
  except (Exception, SystemExit) as error:  # It is anyone's code.
    line = str(error).strip().partition('\n')[0]
    raise errors.UserError(
      f'form {path!r}: {type(error).__name__}: {line}'
    ) from None
  own = {
    key: value
    for key, value in vars(module).items()
    if inspect.isfunction(value)
    and value.__module__ == module.__name__
    and not key.startswith('_')
  }
  if not name and len(own) == 1:
    name = next(iter(own))
  if name not in own:
    raise errors.UserError(
      f'form {path!r}: name one of the functions of {source}: '
      f'{", ".join(own) or "it has none"}{errors.nearest(name, own)}'
    )
  return from_function(own[name], f'{source}:{name}')
