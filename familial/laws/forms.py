"""The laws: loss as a function of size, data, shape and granularity.

Symbols as in the literature: N parameters, D training tokens, G exits, C
training FLOPs, L loss in nats per token. Everything is written for log L, as a
log-sum-exp of log terms, so that no term overflows and E may tend to 0.

A law that is not here is a sum of power laws, written as its columns
(`width*depth+tokens`, see `power_laws`), or a Python function in a file (see
`user_forms`). Derivatives are JAX's.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from familial import errors

# Columns of a table in full, and as the literature has them.
SYMBOLS = {'params': 'N', 'tokens': 'D', 'exits': 'G', 'flops': 'C'}

Coordinates = Mapping[str, Any]
Columns = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Transform:
  """How a parameter is optimised: `prefix` + name is the coordinate's name.

  `traced` is `to_value` inside a compiled program.
  """

  prefix: str
  to_coordinate: Callable[[Any], Any]
  to_value: Callable[[Any], Any]
  traced: Callable[[Any], Any]


def _exp(x: Any) -> Any:
  with np.errstate(over='ignore'):  # of a constant that nothing pins down
    return np.exp(x)


IDENTITY = Transform('', np.asarray, np.asarray, jnp.asarray)
LOG = Transform('log_', np.log, _exp, jnp.exp)  # keeps it positive


def between(low: float, high: float) -> Transform:
  """Keeps a parameter between two bounds, by a logit."""
  return Transform(
    'logit_',
    lambda value: special.logit((value - low) / (high - low)),
    lambda x: low + (high - low) * special.expit(x),
    lambda x: low + (high - low) * jax.nn.sigmoid(x),
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
  """The form of that name.

  Args:
    name: of FORMS; or columns joined by + and *, as power_laws takes them; or
      FILE.py or FILE.py:FUNCTION, as user_forms does.

  Raises:
    UserError: if there is none, naming the nearest.
  """
  if name in FORMS:
    return FORMS[name]
  if '.py' in name:
    from familial.laws import user_forms  # Which is written in terms of Form.

    return user_forms.load(name)
  if re.fullmatch(r'\w+([*+]\w+)+', name):
    return power_laws(name, tuple(t.split('*') for t in name.split('+')))
  raise errors.UserError(
    f'form {name!r} is unknown{errors.nearest(name, FORMS)}; there are'
    f' {", ".join(FORMS)}, sums of power laws such as width*depth+tokens, and'
    ' FILE.py:FUNCTION'
  )


def power_laws(
  name: str,
  terms: Sequence[Sequence[str]],
  fixed: Mapping[str, float] | None = None,
) -> Form:
  """L = E + the sum over terms of c / (x^a y^b ...).

  A term's constants are c_x_y, and a_x, a_y; the form of Hoffmann et al. (2022)
  is power_laws('', [['params'], ['tokens']]) under other names.

  Args:
    name: of the form.
    terms: each the columns that it multiplies, in a table's long names.
    fixed: exponents that are not fitted.
  """
  E, c, a = _DENSE[0], _DENSE[1], _DENSE[3]
  fixed = dict(fixed or {})
  used = [column for term in terms for column in term]
  if len(set(used)) < len(used):
    raise errors.UserError(f'form {name!r}: a column may be in one term only')
  coefficients = ['c_' + '_'.join(term) for term in terms]
  if len(set(coefficients)) < len(coefficients):
    raise errors.UserError(f'form {name!r}: two constants have one name')
  parameters = [E]
  for coefficient, term in zip(coefficients, terms, strict=True):
    parameters.append(dataclasses.replace(c, name=coefficient))
    parameters += [
      dataclasses.replace(a, name=f'a_{column}')
      for column in term
      if f'a_{column}' not in fixed
    ]
  symbols = {column: SYMBOLS.get(column, column) for column in used}
  exponents = {f'a_{column}' for column in used} - {*fixed}

  def log_loss(p: Coordinates, columns: Columns) -> Any:
    logs = [p['log_E']]
    for coefficient, term in zip(coefficients, terms, strict=True):
      log = p[f'log_{coefficient}']
      for column in term:
        key = f'a_{column}'
        exponent = p[key] if key in exponents else fixed[key]
        log = log - exponent * jnp.log(columns[symbols[column]])
      logs.append(log)
    return log_sum(*logs)

  text = ' + '.join(
    f'{coefficient}/('
    + ' '.join(
      f'{symbols[column]}^{fixed.get(f"a_{column}", f"a_{column}")}'
      for column in term
    )
    + ')'
    for coefficient, term in zip(coefficients, terms, strict=True)
  )
  return Form(
    name,
    f'L = E + {text}',
    tuple(parameters),
    tuple(symbols.values()),
    log_loss,
  )


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


def _kaplan(p: Coordinates, columns: Columns) -> Any:
  alpha_N, alpha_D = jnp.exp(p['log_alpha_N']), jnp.exp(p['log_alpha_D'])
  return alpha_D * log_sum(
    alpha_N / alpha_D * (p['log_N_c'] - jnp.log(columns['N'])),
    p['log_D_c'] - jnp.log(columns['D']),
  )


def _outer_exponent(p: Coordinates, columns: Columns) -> Any:
  return log_sum(p['log_E'], jnp.exp(p['log_outer']) * _reducible(p, columns))


def _power_of_compute(p: Coordinates, columns: Columns) -> Any:
  return log_sum(p['log_E'], _term(p['log_A'], p['alpha'], columns['C']))


_GAMMA = Parameter('gamma', _PENALTY_GRID, null=0.0)
_KAPLAN_SCALE = (10.0, 20.0, 30.0, 40.0)
_KAPLAN_EXPONENT = (-3.5, -2.5, -1.5, -0.5)

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
      (*_DENSE, _GAMMA),
      ('N', 'D', 'G'),
      _familial_total,
      _penalties('gamma'),
    ),
    Form(
      'familial_reducible',
      'L = E + (A/N^alpha + B/D^beta) G^gamma',
      (*_DENSE, _GAMMA),
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
    Form(
      'kaplan',
      'L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D',
      (
        Parameter('N_c', _KAPLAN_SCALE, LOG),
        Parameter('D_c', _KAPLAN_SCALE, LOG),
        Parameter('alpha_N', _KAPLAN_EXPONENT, LOG),
        Parameter('alpha_D', _KAPLAN_EXPONENT, LOG),
      ),
      ('N', 'D'),
      _kaplan,
    ),
    Form(
      'outer_exponent',
      'L = E + (A/N^alpha + B/D^beta)^outer',
      (*_DENSE, Parameter('outer', (-1.0, -0.5, 0.0), LOG)),
      ('N', 'D'),
      _outer_exponent,
    ),
    Form(
      'power_of_compute',
      'L = E + A/C^alpha',
      (_DENSE[0], _DENSE[1], _DENSE[3]),
      ('C',),
      _power_of_compute,
    ),
    power_laws('width_depth', (['width'], ['depth'], ['tokens'])),
    power_laws('width_depth_product', (['width', 'depth'], ['tokens'])),
    power_laws(
      'width_depth_inverse',
      (['width'], ['depth'], ['tokens']),
      fixed={'a_width': 1.0, 'a_depth': 1.0},
    ),
    power_laws(
      'width_depth_params', (['width'], ['depth'], ['params'], ['tokens'])
    ),
  )
}
