"""The laws: loss as a function of size, data, shape and granularity.

Symbols as in the literature: N parameters, D training tokens, G exits, C
training FLOPs, L loss in nats per token.

A law that is not here is a sum of power laws, written as its columns
(`width*depth+tokens`, see `power_laws`), or a Python function in a file (see
`user_forms`). What a form consists of is in `parametric`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import functools
import re
from typing import Any

import jax.numpy as jnp

from familial.core import errors
from familial.laws import parametric
from familial.laws import user_forms


def get(name: str) -> parametric.Form:
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
) -> parametric.Form:
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
  symbols = {column: parametric.SYMBOLS.get(column, column) for column in used}
  exponents = {f'a_{column}' for column in used} - {*fixed}

  def log_loss(p: parametric.Coordinates, columns: parametric.Columns) -> Any:
    logs = [p['log_E']]
    for coefficient, term in zip(coefficients, terms, strict=True):
      log = p[f'log_{coefficient}']
      for column in term:
        key = f'a_{column}'
        exponent = p[key] if key in exponents else fixed[key]
        log = log - exponent * jnp.log(columns[symbols[column]])
      logs.append(log)
    return parametric.log_sum(*logs)

  text = ' + '.join(
    f'{coefficient}/('
    + ' '.join(
      f'{symbols[column]}^{fixed.get(f"a_{column}", f"a_{column}")}'
      for column in term
    )
    + ')'
    for coefficient, term in zip(coefficients, terms, strict=True)
  )
  return parametric.Form(
    name,
    f'L = E + {text}',
    tuple(parameters),
    tuple(symbols.values()),
    log_loss,
  )


def _term(log_coefficient: Any, exponent: Any, column: Any) -> Any:
  """Log of coefficient / column^exponent."""
  return log_coefficient - exponent * jnp.log(column)


def _reducible(p: parametric.Coordinates, columns: parametric.Columns) -> Any:
  return parametric.log_sum(
    _term(p['log_A'], p['alpha'], columns['N']),
    _term(p['log_B'], p['beta'], columns['D']),
  )


def _chinchilla(p: parametric.Coordinates, columns: parametric.Columns) -> Any:
  return parametric.log_sum(p['log_E'], _reducible(p, columns))


def _familial_total(
  p: parametric.Coordinates, columns: parametric.Columns
) -> Any:
  return _chinchilla(p, columns) + p['gamma'] * jnp.log(columns['G'])


def _familial_reducible(
  p: parametric.Coordinates, columns: parametric.Columns
) -> Any:
  penalty = p['gamma'] * jnp.log(columns['G'])
  return parametric.log_sum(p['log_E'], _reducible(p, columns) + penalty)


def _branch(p: parametric.Coordinates, columns: parametric.Columns) -> Any:
  return (
    _chinchilla(p, columns)
    + p['gamma_up'] * jnp.log1p(columns['upstream'])
    + p['gamma_down'] * jnp.log1p(columns['downstream'])
  )


# The grid of Hoffmann et al. (2022), as in Besiroglu et al. (2024).
_DENSE = (
  parametric.Parameter('E', (-1.0, -0.5, 0.0, 0.5, 1.0), parametric.LOG),
  parametric.Parameter('A', (0.0, 5.0, 10.0, 15.0, 20.0, 25.0), parametric.LOG),
  parametric.Parameter('B', (0.0, 5.0, 10.0, 15.0, 20.0, 25.0), parametric.LOG),
  parametric.Parameter('alpha', (0.0, 0.5, 1.0, 1.5, 2.0), is_decay=True),
  parametric.Parameter('beta', (0.0, 0.5, 1.0, 1.5, 2.0), is_decay=True),
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


def _kaplan(p: parametric.Coordinates, columns: parametric.Columns) -> Any:
  alpha_N, alpha_D = jnp.exp(p['log_alpha_N']), jnp.exp(p['log_alpha_D'])
  return alpha_D * parametric.log_sum(
    alpha_N / alpha_D * (p['log_N_c'] - jnp.log(columns['N'])),
    p['log_D_c'] - jnp.log(columns['D']),
  )


def _outer_exponent(
  p: parametric.Coordinates, columns: parametric.Columns
) -> Any:
  return parametric.log_sum(
    p['log_E'], jnp.exp(p['log_outer']) * _reducible(p, columns)
  )


def _power_of_compute(
  p: parametric.Coordinates, columns: parametric.Columns
) -> Any:
  return parametric.log_sum(
    p['log_E'], _term(p['log_A'], p['alpha'], columns['C'])
  )


_GAMMA = parametric.Parameter('gamma', _PENALTY_GRID, null=0.0)
_KAPLAN_SCALE = (10.0, 20.0, 30.0, 40.0)
_KAPLAN_EXPONENT = (-3.5, -2.5, -1.5, -0.5)

FORMS: dict[str, parametric.Form] = {
  form.name: form
  for form in (
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
      _penalties('gamma'),
    ),
    parametric.Form(
      'familial_reducible',
      'L = E + (A/N^alpha + B/D^beta) G^gamma',
      (*_DENSE, _GAMMA),
      ('N', 'D', 'G'),
      _familial_reducible,
      _penalties('gamma'),
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
        parametric.Parameter('gamma_up', _PENALTY_GRID, null=0.0),
        parametric.Parameter('gamma_down', _PENALTY_GRID, null=0.0),
      ),
      ('N', 'D', 'upstream', 'downstream'),
      _branch,
      {**_penalties('gamma_up'), **_penalties('gamma_down')},
    ),
    parametric.Form(
      'kaplan',
      'L = ((N_c/N)^(alpha_N/alpha_D) + D_c/D)^alpha_D',
      (
        parametric.Parameter('N_c', _KAPLAN_SCALE, parametric.LOG),
        parametric.Parameter('D_c', _KAPLAN_SCALE, parametric.LOG),
        parametric.Parameter('alpha_N', _KAPLAN_EXPONENT, parametric.LOG),
        parametric.Parameter('alpha_D', _KAPLAN_EXPONENT, parametric.LOG),
      ),
      ('N', 'D'),
      _kaplan,
    ),
    parametric.Form(
      'outer_exponent',
      'L = E + (A/N^alpha + B/D^beta)^outer',
      (
        *_DENSE,
        parametric.Parameter('outer', (-1.0, -0.5, 0.0), parametric.LOG),
      ),
      ('N', 'D'),
      _outer_exponent,
    ),
    parametric.Form(
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
