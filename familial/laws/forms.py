"""The laws: loss as a function of size, data and granularity.

Symbols as in the literature: N parameters, D training tokens, G exits, C
training FLOPs, L loss in nats per token. Everything is written for log L, as a
log-sum-exp of log terms, so that no term overflows and E may tend to 0.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from familial import errors

Coordinates = Mapping[str, Any]
Columns = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Transform:
  """How a parameter is optimised: `prefix` + name is the coordinate's name."""

  prefix: str
  to_coordinate: Callable[[Any], Any]
  to_value: Callable[[Any], Any]


IDENTITY = Transform('', np.asarray, np.asarray)
LOG = Transform('log_', np.log, np.exp)  # keeps the parameter positive


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
  derived: Mapping[str, Callable[[Mapping[str, Any]], Any]] = dataclasses.field(
    default_factory=dict
  )

  @property
  def names(self) -> tuple[str, ...]:
    """The parameters' names, in the order of their coordinates."""
    return tuple(p.name for p in self.parameters)

  @property
  def coordinates(self) -> tuple[str, ...]:
    """The coordinates' names, in order."""
    return tuple(p.coordinate for p in self.parameters)

  def values(self, theta: np.ndarray) -> dict[str, np.ndarray]:
    """Coordinates [..., parameters] to values by name, each [...]."""
    return {
      p.name: p.transform.to_value(theta[..., i])
      for i, p in enumerate(self.parameters)
    }

  def theta(self, values: Mapping[str, float]) -> np.ndarray:
    """Values by name to the vector of coordinates [parameters]."""
    missing = [n for n in self.names if n not in values]
    if missing:
      raise errors.UserError(
        f'form {self.name!r} needs a value for {", ".join(missing)}; it has'
        f' {", ".join(self.names)}'
      )
    with np.errstate(divide='ignore'):  # a stored E of 0 is log E = -inf
      return np.array(
        [p.transform.to_coordinate(values[p.name]) for p in self.parameters],
        dtype=np.float64,
      )

  def predict(
    self, values: Mapping[str, float], columns: Columns
  ) -> np.ndarray:
    """The loss that the law with these parameter values gives, one a row."""
    with jax.enable_x64(True):
      log_loss = self.log_loss(
        dict(zip(self.coordinates, self.theta(values), strict=True)),
        {name: jnp.asarray(columns[name]) for name in self.columns},
      )
      return np.asarray(jnp.exp(log_loss))


def get(name: str) -> Form:
  """The form of that name, or a UserError naming the nearest."""
  if name not in FORMS:
    raise errors.UserError(
      f'form {name!r} is unknown{errors.nearest(name, FORMS)}; there are'
      f' {", ".join(FORMS)}'
    )
  return FORMS[name]


def log_sum(*terms: Any) -> Any:
  """Log of the sum of exp(term) over terms, each a scalar or one value a row.

  Not jax.nn.logsumexp of a stack: that takes three times as long on a CPU and
  twice as long to compile, and a fit does little else.
  """
  top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, terms))
  return top + jnp.log(sum(jnp.exp(term - top) for term in terms))


def _term(log_coefficient: Any, exponent: Any, column: Any) -> Any:
  """Log of coefficient / column^exponent."""
  return log_coefficient - exponent * jnp.log(column)


def _reducible(p: Coordinates, columns: Columns) -> Any:
  return log_sum(
    _term(p['log_A'], p['alpha'], columns['N']),
    _term(p['log_B'], p['beta'], columns['D']),
  )


def _chinchilla(p: Coordinates, columns: Columns) -> Any:
  return log_sum(p['log_E'], _reducible(p, columns))


def _familial_total(p: Coordinates, columns: Columns) -> Any:
  return _chinchilla(p, columns) + p['gamma'] * jnp.log(columns['G'])


def _familial_reducible(p: Coordinates, columns: Columns) -> Any:
  penalty = p['gamma'] * jnp.log(columns['G'])
  return log_sum(p['log_E'], _reducible(p, columns) + penalty)


def _branch(p: Coordinates, columns: Columns) -> Any:
  return (
    _chinchilla(p, columns)
    + p['gamma_up'] * jnp.log1p(columns['upstream'])
    + p['gamma_down'] * jnp.log1p(columns['downstream'])
  )


# The grid of Hoffmann et al. (2022), as in Besiroglu et al. (2024).
_DENSE = (
  Parameter('E', (-1.0, -0.5, 0.0, 0.5, 1.0), LOG),
  Parameter('A', (0.0, 5.0, 10.0, 15.0, 20.0, 25.0), LOG),
  Parameter('B', (0.0, 5.0, 10.0, 15.0, 20.0, 25.0), LOG),
  Parameter('alpha', (0.0, 0.5, 1.0, 1.5, 2.0), is_decay=True),
  Parameter('beta', (0.0, 0.5, 1.0, 1.5, 2.0), is_decay=True),
)
_PENALTY_GRID = (-0.1, 0.0, 0.1)


def _penalties(
  parameter: str,
) -> dict[str, Callable[[Mapping[str, Any]], Any]]:
  """2^, 4^ and 8^parameter: what the exponent means for a loss."""
  return {
    f'{g}^{parameter}': functools.partial(_power, g, parameter)
    for g in (2, 4, 8)
  }


def _power(base: float, parameter: str, values: Mapping[str, Any]) -> Any:
  return float(base) ** values[parameter]


FORMS: dict[str, Form] = {
  form.name: form
  for form in (
    Form(
      'chinchilla',
      'L = E + A/N^alpha + B/D^beta',
      _DENSE,
      ('N', 'D'),
      _chinchilla,
    ),
    Form(
      'familial_total',
      'L = (E + A/N^alpha + B/D^beta) G^gamma',
      (*_DENSE, Parameter('gamma', _PENALTY_GRID, null=0.0)),
      ('N', 'D', 'G'),
      _familial_total,
      _penalties('gamma'),
    ),
    Form(
      'familial_reducible',
      'L = E + (A/N^alpha + B/D^beta) G^gamma',
      (*_DENSE, Parameter('gamma', _PENALTY_GRID, null=0.0)),
      ('N', 'D', 'G'),
      _familial_reducible,
      _penalties('gamma'),
    ),
    Form(
      'dense_null',
      'L = E + A/N^alpha + B/D^beta, whatever G (gamma = 0)',
      _DENSE,
      ('N', 'D'),
      _chinchilla,
    ),
    Form(
      'branch',
      'L = (E + A/N^alpha + B/D^beta) (1 + upstream)^gamma_up'
      ' (1 + downstream)^gamma_down',
      (
        *_DENSE,
        Parameter('gamma_up', _PENALTY_GRID, null=0.0),
        Parameter('gamma_down', _PENALTY_GRID, null=0.0),
      ),
      ('N', 'D', 'upstream', 'downstream'),
      _branch,
      {**_penalties('gamma_up'), **_penalties('gamma_down')},
    ),
  )
}
