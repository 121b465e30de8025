"""Laws of other groups: each is recovered from noisy tables of its own."""

import functools

import numpy as np
import pytest

from familial.core import errors
from familial.laws import estimation
from familial.laws import forms
from familial.laws import library
from tests.laws import points

NOISE = 0.002


def sizes(rng, rows):
  return {
    'params': np.exp(rng.uniform(np.log(3e7), np.log(3e9), rows)),
    'tokens': np.exp(rng.uniform(np.log(1e9), np.log(3e11), rows)),
  }


DENSE = {'E': 1.7, 'A': 400.0, 'alpha': 0.34, 'B': 900.0, 'beta': 0.37}
# Columns beside sizes (None: instead of them), and constants as published, or near.
CASES = {
  'data_constrained': (
    lambda rng, rows: {'unique': 10 ** rng.uniform(8.5, 11, rows)},
    {**DENSE, 'R_D': 15.4, 'R_N': 5.3},
  ),
  'overtrained': (
    lambda rng, rows: {}, {'E': 1.7, 'a': 60.0, 'b': 90.0, 'eta': 0.12},
  ),
  'sparse': (
    lambda rng, rows: {'sparsity': rng.choice([0, 0.5, 0.75, 0.9, 0.95], rows)},
    {**DENSE, 'c': 0.3, 'lambda_': -0.4, 'd': 30.0, 'delta': 0.2, 'gamma': 0.3},
  ),
  'fine_grained': (
    lambda rng, rows: {'expert_ratio': rng.choice([1, 2, 4, 8, 16], rows)},
    {**DENSE, 'g': 150.0, 'gamma': 0.6},
  ),
  'learning_rate': (
    lambda rng, rows: {
      'lr': 10 ** rng.uniform(-4, -2, rows), 'batch': 10 ** rng.uniform(4.5, 7, rows)
    },
    {
      **DENSE, 'rate': 1.79, 'rate_N': -0.713, 'rate_D': 0.307, 'tokens': 0.58,
      'tokens_D': 0.571, 'bend_rate': 0.006, 'bend_batch': 0.004,
    },
  ),
  'precision': (
    lambda rng, rows: {'bits': rng.choice([3, 4, 6, 8, 12, 16], rows)},
    {**DENSE, 'gamma': 2.67},
  ),
  'vocabulary': (
    lambda rng, rows: {'vocab_params': 10 ** rng.uniform(6, 8.5, rows)},
    {
      'E': 1.7, 'c_params': 400.0, 'a_params': 0.34, 'c_vocab_params': 90.0,
      'a_vocab_params': 0.3, 'c_tokens': 900.0, 'a_tokens': 0.37,
    },
  ),
  'annealing': (
    lambda rng, rows: {
      'params': None, 'tokens': None,
      'lr_area': rng.uniform(1, 30, rows), 'annealing_area': rng.uniform(0, 0.4, rows),
    },
    {'E': 2.6, 'A': 0.6, 'alpha': 0.5, 'c': 0.5},
  ),
  'error_of_loss': (
    lambda rng, rows: {
      'params': None, 'tokens': None, 'task_loss': rng.uniform(1.8, 5, rows)
    },
    {'chance': 0.85, 'k': 2.1, 'gamma': 0.8},
  ),
  'sigmoid_of_loss': (
    lambda rng, rows: {
      'params': None, 'tokens': None, 'task_loss': rng.uniform(0.3, 2, rows)
    },
    {'best': 0.1, 'chance': 0.75, 'middle': 0.9, 'slope': 5.0},
  ),
  'mixture(web,code,books)': (
    lambda rng, rows: dict(
      zip(
        ('params', 'tokens', 'web', 'code', 'books'),
        (None, None, *rng.dirichlet(np.ones(3), rows).T),
        strict=True,
      )
    ),
    {'E': 1.9, 'k': 1.2, 't_code': -1.5, 't_books': 0.7},
  ),
  'u_shape(width)': (
    lambda rng, rows: {
      'params': None, 'tokens': None, 'width': 2 ** rng.uniform(6, 13, rows)
    },
    {'E': 2.0, 'A': 20.0, 'alpha': 0.6, 'B': 3e-4, 'beta': 0.8},
  ),
}  # fmt: skip


@functools.cache
def fitted(name, rows=300):
  """The fit of a noisy table, and the table without noise."""
  rng = np.random.default_rng(0)
  others, truth = CASES[name]
  columns = {**sizes(rng, rows), **others(rng, rows)}
  columns = {
    key: values for key, values in columns.items() if values is not None
  }
  form = forms.get(name)
  exact = form.predict(truth, columns)
  noise = np.exp(NOISE * rng.standard_normal(rows))
  table = points.table({**columns, 'loss': exact * noise})
  fit = estimation.fit(form, table, delta=np.inf, starts=256, sampling='latin')
  return fit, columns, exact


def test_every_law_of_the_library_has_a_case():
  assert set(library.LAWS) < set(CASES)


@pytest.mark.parametrize('name', CASES)
def test_a_law_is_recovered(name):
  fit, columns, exact = fitted(name)
  error = np.log(fit.predict(columns) / exact)
  free = len(fit.params)
  # The mean square of a fit's error is that of the noise by parameters over rows.
  assert np.sqrt(np.mean(error**2)) < 2 * NOISE * np.sqrt(free / len(exact))
  assert fit.converged


@pytest.mark.parametrize('name', CASES)
def test_its_constants_are_within_four_deviations(name):
  fit, _, _ = fitted(name)
  truth = CASES[name][1]
  of_form = {p.name: p for p in fit.form.parameters}
  for constant, sd in fit.sd.items():
    if not fit.identified[constant]:
      continue
    parameter = of_form[constant]
    off = parameter.coordinate_of(fit.params[constant])
    off -= parameter.coordinate_of(truth[constant])
    assert abs(off) < 4 * sd + 1e-9, constant
  assert sum(fit.identified.values()) > len(truth) / 2


def test_data_constrained_is_the_plain_law_of_unique_tokens():
  columns = sizes(np.random.default_rng(0), 20)
  form, plain = forms.get('data_constrained'), forms.get('chinchilla')
  many = {**columns, 'unique': columns['tokens'] * 10}
  values = {**DENSE, 'R_D': 15.0, 'R_N': 1e9}
  np.testing.assert_allclose(
    form.predict(values, many), plain.predict(DENSE, columns), rtol=1e-6
  )
  few = {**columns, 'unique': columns['tokens'] / 10}
  assert (form.predict(values, few) > plain.predict(DENSE, columns)).all()


def test_the_areas_of_a_schedule():
  lr = np.array([1.0, 1.0, 0.5, 0.0])
  first, second = library.annealing_areas(lr, decay=0.5)
  np.testing.assert_allclose(first, [1, 2, 2.5, 2.5])
  # m = 0, 0, 0.5, 0.75
  np.testing.assert_allclose(second, [0, 0, 0.5, 1.25])


def test_the_minimum_of_a_u_shape():
  form = forms.get('u_shape(width)')
  values = CASES['u_shape(width)'][1]
  best = form.derived['width_opt'](values)
  at = best * np.array([0.99, 1, 1.01])
  low, least, high = form.predict(values, {'width': at})
  assert least < min(low, high)


@pytest.mark.parametrize(
  'name', ('mixture(web)', 'mixture(web,web)', 'u_shape(a,b)')
)
def test_refuses_wrong_columns(name):
  with pytest.raises(errors.UserError):
    forms.get(name)
