"""The laws: loss as a function of size, data, shape and granularity.

Symbols as in the literature: N parameters, D training tokens, G exits, C
training FLOPs, L loss in nats per token. A further form is a sum of power laws,
written as its columns (`width*depth+tokens`, see `power_laws`), a Python
function in a file (see `user_forms`), or one more entry of `FORMS`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import re
from typing import Any

import jax.numpy as jnp

from familial.core import errors
from familial.laws import library
from familial.laws import parametric
from familial.laws import user_forms

Columns = parametric.Columns
Coordinates = parametric.Coordinates
Parameter = parametric.Parameter

# The grid of Hoffmann et al. (2022), as in Besiroglu et al. (2024).
_E = Parameter('E', (-1.0, -0.5, 0.0, 0.5, 1.0), parametric.LOG)
_A = Parameter('A', (0.0, 5.0, 10.0, 15.0, 20.0, 25.0), parametric.LOG)
_ALPHA = Parameter('alpha', (0.0, 0.5, 1.0, 1.5, 2.0), is_decay=True)
_DENSE = (
  _E,
  _A,
  dataclasses.replace(_A, name='B'),
  _ALPHA,
  dataclasses.replace(_ALPHA, name='beta'),
)
_GAMMA = Parameter('gamma', (-0.1, 0.0, 0.1), null=0.0)
_KAPLAN_SCALE = (10.0, 20.0, 30.0, 40.0)
_KAPLAN_EXPONENT = (-3.5, -2.5, -1.5, -0.5)


def get(name: str | Callable[..., Any] | parametric.Form) -> parametric.Form:
  """The form of that name, or of a function.

  Args:
    name: of FORMS or of the library; or columns joined by + and *, as power_laws takes them; or
      mixture(A,B,...) or u_shape(A) of columns; or FILE.py or FILE.py:FUNCTION, as
      user_forms does; or a function, as `user_forms.from_function` takes it; a form
      is returned as it is.

  Raises:
    UserError: if there is none, naming the nearest.
  """
  if isinstance(name, parametric.Form):
    return name
  if callable(name):
    return user_forms.from_function(name)
  named = {**FORMS, **library.LAWS}
  if name in named:
    return named[name]
  if '.py' in name:
    return user_forms.load(name)
  if match := re.fullmatch(r'(mixture|u_shape)\(([\w, ]+)\)', name):
    columns = [column.strip() for column in match[2].split(',')]
    if match[1] == 'mixture':
      return library.mixture(columns)
    if len(columns) == 1:
      return library.u_shape(columns[0])
  if re.fullmatch(r'\w+([*+]\w+)+', name):
    return power_laws(name, tuple(t.split('*') for t in name.split('+')))
  raise errors.UserError(
    f'form {name!r} is unknown{errors.nearest(name, named)}; there are'
    f' {", ".join(named)}, sums of power laws such as width*depth+tokens,'
    ' mixture(COLUMN,COLUMN,...), u_shape(COLUMN), and FILE.py:FUNCTION'
  )


def power_laws(
  name: str,
  terms: Sequence[Sequence[str]],
  fixed: Mapping[str, float] | None = None,
) -> parametric.Form:
  """L = E + the sum over terms of c / (x^a y^b ...).

  A term's constants are c_x_y, and a_x, a_y; the form of Hoffmann et al. (2022)
  is power_laws('', [['params'], ['tokens']]) under other names.

  Args:
    name: of the form.
    terms: each the columns that it multiplies, in a table's long names.
    fixed: exponents that are not fitted.
  """
  fixed = dict(fixed or {})
  used = [column for term in terms for column in term]
  if len(set(used)) < len(used):
    raise errors.UserError(f'form {name!r}: a column may be in one term only')
  by_coefficient = {'c_' + '_'.join(term): term for term in terms}
  if len(by_coefficient) < len(terms):
    raise errors.UserError(f'form {name!r}: two constants have one name')
  parameters = [_E]
  for coefficient, term in by_coefficient.items():
    parameters.append(dataclasses.replace(_A, name=coefficient))
    parameters += [
      dataclasses.replace(_ALPHA, name=f'a_{column}')
      for column in term
      if f'a_{column}' not in fixed
    ]
  symbols = {column: parametric.SYMBOLS.get(column, column) for column in used}

  def log_loss(p: Coordinates, columns: Columns) -> Any:
    logs = [p['log_E']]
    for coefficient, term in by_coefficient.items():
      log = p[f'log_{coefficient}']
      for column in term:
        key = f'a_{column}'
        exponent = fixed[key] if key in fixed else p[key]
        log = log - exponent * jnp.log(columns[symbols[column]])
      logs.append(log)
    return parametric.log_sum(*logs)

  def power(column: str) -> str:
    return f'{symbols[column]}^{fixed.get(f"a_{column}", f"a_{column}")}'

  equation = 'L = E' + ''.join(
    f' + {coefficient}/({" ".join(map(power, term))})'
    for coefficient, term in by_coefficient.items()
  )
  return parametric.Form(
    name, equation, tuple(parameters), tuple(symbols.values()), log_loss
  )


def _reducible(p: Coordinates, columns: Columns) -> Any:
  return parametric.log_sum(
    p['log_A'] - p['alpha'] * jnp.log(columns['N']),
    p['log_B'] - p['beta'] * jnp.log(columns['D']),
  )


def _chinchilla(p: Coordinates, columns: Columns) -> Any:
  return parametric.log_sum(p['log_E'], _reducible(p, columns))


def _familial_total(p: Coordinates, columns: Columns) -> Any:
  return _chinchilla(p, columns) + p['gamma'] * jnp.log(columns['G'])


def _familial_reducible(p: Coordinates, columns: Columns) -> Any:
  penalty = p['gamma'] * jnp.log(columns['G'])
  return parametric.log_sum(p['log_E'], _reducible(p, columns) + penalty)


def _branch(p: Coordinates, columns: Columns) -> Any:
  return (
    _chinchilla(p, columns)
    + p['gamma_up'] * jnp.log1p(columns['upstream'])
    + p['gamma_down'] * jnp.log1p(columns['downstream'])
  )


def _kaplan(p: Coordinates, columns: Columns) -> Any:
  alpha_N, alpha_D = jnp.exp(p['log_alpha_N']), jnp.exp(p['log_alpha_D'])
  return alpha_D * parametric.log_sum(
    alpha_N / alpha_D * (p['log_N_c'] - jnp.log(columns['N'])),
    p['log_D_c'] - jnp.log(columns['D']),
  )


def _outer_exponent(p: Coordinates, columns: Columns) -> Any:
  return parametric.log_sum(
    p['log_E'], jnp.exp(p['log_outer']) * _reducible(p, columns)
  )


def _power_of_compute(p: Coordinates, columns: Columns) -> Any:
  return parametric.log_sum(
    p['log_E'], p['log_A'] - p['alpha'] * jnp.log(columns['C'])
  )


def _powers(*exponents: str) -> dict[str, parametric.Derived]:
  """2^, 4^ and 8^ each exponent: the factor on the loss at these G."""

  def power(base: int, name: str) -> parametric.Derived:
    return lambda values: float(base) ** values[name]

  return {
    f'{base}^{name}': power(base, name)
    for name in exponents
    for base in (2, 4, 8)
  }


FORMS: dict[str, parametric.Form] = {
  form.name: form
  for form in (
    # Hoffmann et al. (2022), equation 2.
    parametric.Form(
      'chinchilla',
      'L = E + A/N^alpha + B/D^beta',
      _DENSE,
      ('N', 'D'),
      _chinchilla,
    ),
    parametric.Form(
      'familial_total',
      'L = (E + A/N^alpha + B/D^beta) G^gamma',
      (*_DENSE, _GAMMA),
      ('N', 'D', 'G'),
      _familial_total,
      _powers('gamma'),
    ),
    parametric.Form(
      'familial_reducible',
      'L = E + (A/N^alpha + B/D^beta) G^gamma',
      (*_DENSE, _GAMMA),
      ('N', 'D', 'G'),
      _familial_reducible,
      _powers('gamma'),
    ),
    parametric.Form(
      'dense_null',
      'L = E + A/N^alpha + B/D^beta, whatever G (gamma = 0)',
      _DENSE,
      ('N', 'D'),
      _chinchilla,
    ),
    parametric.Form(
      'branch',
      'L = (E + A/N^alpha + B/D^beta) (1 + upstream)^gamma_up'
      ' (1 + downstream)^gamma_down',
      (
        *_DENSE,
        dataclasses.replace(_GAMMA, name='gamma_up'),
        dataclasses.replace(_GAMMA, name='gamma_down'),
      ),
      ('N', 'D', 'upstream', 'downstream'),
      _branch,
      _powers('gamma_up', 'gamma_down'),
    ),
    # Kaplan et al. (2020), equation 1.5.
    parametric.Form(
      'kaplan',
      'L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D',
      (
        Parameter('N_c', _KAPLAN_SCALE, parametric.LOG),
        Parameter('D_c', _KAPLAN_SCALE, parametric.LOG),
        Parameter('alpha_N', _KAPLAN_EXPONENT, parametric.LOG, is_decay=True),
        Parameter('alpha_D', _KAPLAN_EXPONENT, parametric.LOG, is_decay=True),
      ),
      ('N', 'D'),
      _kaplan,
    ),
    parametric.Form(
      'outer_exponent',
      'L = E + (A/N^alpha + B/D^beta)^outer',
      (*_DENSE, Parameter('outer', (-1.0, -0.5, 0.0), parametric.LOG)),
      ('N', 'D'),
      _outer_exponent,
    ),
    parametric.Form(
      'power_of_compute',
      'L = E + A/C^alpha',
      (_E, _A, _ALPHA),
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
