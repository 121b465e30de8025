"""A law as a function of named constants, and how each is optimised.

Everything is written for log L, as a log-sum-exp of log terms, so that no term
overflows and E may tend to 0. Derivatives are JAX's.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from familial.core import errors

# Columns of a table in full, and as the literature has them.
SYMBOLS = {'params': 'N', 'tokens': 'D', 'exits': 'G', 'flops': 'C'}
LONG_NAMES = {symbol: name for name, symbol in SYMBOLS.items()}

Coordinates = Mapping[str, Any]
Columns = Mapping[str, Any]
Derived = Callable[[Mapping[str, Any]], Any]  # of the constants by name


@dataclasses.dataclass(frozen=True)
class Transform:
  """How a parameter is optimised: `prefix` + name is the coordinate's name.

  `traced` is `to_value` inside a compiled program. `bounds` are coordinates that
  stand for bounds of the value, as 0 of a positive one: exact ones, and the
  derivative of the value is 0 there, so that no optimiser leaves them.
  """

  prefix: str
  to_coordinate: Callable[[Any], Any]
  to_value: Callable[[Any], Any]
  traced: Callable[[Any], Any]
  bounds: tuple[float, ...] = ()


_FAR = 800.0  # exp(-_FAR) is 0 in float64, and 1 / (1 + exp(-_FAR)) is 1


def _exp(x: Any) -> Any:
  with np.errstate(over='ignore'):  # of a constant that nothing pins down
    return np.exp(x)


def _log(value: Any) -> Any:
  with np.errstate(divide='ignore'):  # of 0
    return np.maximum(np.log(value), -_FAR)


IDENTITY = Transform('', np.asarray, np.asarray, jnp.asarray)
LOG = Transform('log_', _log, _exp, jnp.exp, (-_FAR,))  # not below 0


def between(low: float, high: float) -> Transform:
  """Keeps a parameter between two bounds, by a logit."""
  return Transform(
    'logit_',
    lambda value: np.clip(
      special.logit((value - low) / (high - low)), -_FAR, _FAR
    ),
    lambda x: low + (high - low) * special.expit(x),
    lambda x: low + (high - low) * jax.nn.sigmoid(x),
    (-_FAR, _FAR),
  )


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One constant of a law.

  `grid` holds starting values of the *coordinate* (the logarithm, for LOG).
  `null` is the value at which the parameter has no effect, if that is a
  question worth asking of the data: its profile interval then includes it.
  `is_decay`: an exponent that a physical law has above 0.
  """

  name: str
  grid: tuple[float, ...]
  transform: Transform = IDENTITY
  null: float | None = None
  is_decay: bool = False

  @property
  def coordinate(self) -> str:
    """The name under which `Form.log_loss` receives it."""
    return self.transform.prefix + self.name

  def coordinate_of(self, value: float) -> float:
    """The coordinate of a value.

    Raises:
      UserError: if the parameter cannot have this value.
    """
    with np.errstate(invalid='ignore'):  # of a negative number
      x = float(self.transform.to_coordinate(value))
    if not np.isfinite(x):
      raise errors.UserError(f'{self.name}={value:g} is outside its range')
    return x


class VectorForm(NamedTuple):
  """A form as a function of the vector of its coordinates.

  It is the key of compiled programs: forms that share a function share them.
  """

  log_loss: Callable[[Coordinates, Columns], Any]
  coordinates: tuple[str, ...]
  columns: tuple[str, ...]

  def on(self, columns: Columns) -> Callable[[Any], jax.Array]:
    """Log loss on these columns, one a row, of coordinates [parameters]."""
    rows = jnp.shape(columns[self.columns[0]])

    def log_loss(theta: Any) -> jax.Array:
      p = {name: theta[i] for i, name in enumerate(self.coordinates)}
      return jnp.broadcast_to(self.log_loss(p, columns), rows)

    return log_loss


@dataclasses.dataclass(frozen=True)
class Form:
  """A law with named parameters.

  `log_loss(p, columns)` returns log L, one value a row, in jax.numpy: `p` maps
  coordinate names (`log_A`, `alpha`) to scalars, `columns` maps column names to
  arrays. `derived` maps a name to a function of the parameters' values.
  """

  name: str
  equation: str
  parameters: tuple[Parameter, ...]
  columns: tuple[str, ...]
  log_loss: Callable[[Coordinates, Columns], Any]
  derived: Mapping[str, Derived] = dataclasses.field(default_factory=dict)

  @property
  def names(self) -> tuple[str, ...]:
    """The parameters' names, in the order of their coordinates."""
    return tuple(p.name for p in self.parameters)

  @property
  def coordinates(self) -> tuple[str, ...]:
    """The coordinates' names, in order."""
    return tuple(p.coordinate for p in self.parameters)

  @property
  def vector(self) -> VectorForm:
    """The form as a function of the vector of its coordinates."""
    return VectorForm(self.log_loss, self.coordinates, self.columns)

  def index(self, name: str) -> int:
    """The place of a parameter.

    Raises:
      UserError: if there is none of that name.
    """
    if name not in self.names:
      raise errors.UserError(
        f'form {self.name!r} has no parameter {name!r}'
        f'{errors.nearest(name, self.names)}; it has {", ".join(self.names)}'
      )
    return self.names.index(name)

  def values(self, theta: np.ndarray) -> dict[str, np.ndarray]:
    """Coordinates [..., parameters] to values by name, each [...]."""
    return {
      p.name: p.transform.to_value(theta[..., i])
      for i, p in enumerate(self.parameters)
    }

  def coordinates_of(self, samples: Mapping[str, np.ndarray]) -> np.ndarray:
    """Values by name, each [n], to coordinates [n, parameters]."""
    return np.stack(
      [p.transform.to_coordinate(samples[p.name]) for p in self.parameters],
      axis=1,
    )

  def theta(self, values: Mapping[str, float]) -> np.ndarray:
    """Values by name to the vector of coordinates [parameters]."""
    missing = [n for n in self.names if n not in values]
    if missing:
      raise errors.UserError(
        f'form {self.name!r} needs a value for {", ".join(missing)}; it has'
        f' {", ".join(self.names)}'
      )
    return np.array(
      [p.transform.to_coordinate(values[p.name]) for p in self.parameters],
      dtype=np.float64,
    )

  def at_bounds(self, theta: np.ndarray) -> np.ndarray:
    """Which coordinates [..., parameters] stand for a bound, bool."""
    return np.stack(
      [
        np.isin(theta[..., i], p.transform.bounds)
        for i, p in enumerate(self.parameters)
      ],
      axis=-1,
    )

  def predict(
    self, values: Mapping[str, float], columns: Columns
  ) -> np.ndarray:
    """The loss that the law with these parameter values gives, one a row.

    Args:
      values: of the parameters, by name.
      columns: as `columns_of` takes them.
    """
    arrays = self.columns_of(columns)
    with jax.enable_x64(True):
      return np.asarray(jnp.exp(self.vector.on(arrays)(self.theta(values))))

  def columns_of(self, columns: Columns) -> dict[str, np.ndarray]:
    """The form's own columns by short names, in float64 and of one shape.

    Args:
      columns: N or params, D or tokens, and so on, as arrays or numbers: a
        mapping, or a data frame.

    Raises:
      UserError: if one is missing, or their shapes do not broadcast.
    """
    values = {}
    given = [str(name) for name in getattr(columns, 'columns', columns)]
    for name in self.columns:
      names = [n for n in (name, LONG_NAMES.get(name, name)) if n in given]
      if not names:
        raise errors.UserError(
          f'form {self.name!r} predicts from {", ".join(self.columns)};'
          f' {LONG_NAMES.get(name, name)} is missing'
          f'{errors.nearest(name, given)}; given are {", ".join(map(str, given))}'
        )
      values[name] = np.asarray(columns[names[0]], np.float64)
    try:
      shaped = np.broadcast_arrays(*values.values())
    except ValueError:
      shapes = ', '.join(f'{k} {v.shape}' for k, v in values.items())
      raise errors.UserError(
        f'form {self.name!r} predicts from columns of one shape, not {shapes}'
      ) from None
    return dict(zip(values, shaped, strict=True))


def log_sum(*terms: Any) -> Any:
  """Log of the sum of exp(term) over terms, each a scalar or one value a row.

  Not jax.nn.logsumexp of a stack: that takes three times as long on a CPU and
  twice as long to compile, and a fit does little else.
  """
  top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, terms))
  return top + jnp.log(sum(jnp.exp(term - top) for term in terms))
