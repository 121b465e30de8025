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
      **DENSE, 'V': 90.0, 'nu': 0.3,
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
def fitted(name, rows=120):
  """The fit of a noisy table; its form, columns and constants."""
  rng = np.random.default_rng(0)
  truth = CASES[name][1]
  form, columns = forms.get(name), drawn(name, rng, rows)
  noise = np.exp(NOISE * rng.standard_normal(rows))
  loss = form.predict(truth, columns) * noise
  table = points.table({**columns, 'loss': loss})
  return estimation.fit(form, table, delta=np.inf, starts=24, sampling='latin')


def drawn(name, rng, rows):
  columns = {**sizes(rng, rows), **CASES[name][0](rng, rows)}
  return {key: values for key, values in columns.items() if values is not None}


def test_every_law_of_the_library_has_a_case():
  assert set(library.LAWS) < set(CASES)


LONG = ('sparse', 'learning_rate', 'data_constrained')


@pytest.mark.parametrize(
  'name',
  [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in CASES],
)
def test_a_law_is_recovered(name):
  fit = fitted(name)
  truth = CASES[name][1]
  # Other rows of the same range. The mean square of a fit's error is that of the
  # noise by parameters over rows.
  columns = drawn(name, np.random.default_rng(1), 500)
  error = np.log(fit.predict(columns) / fit.form.predict(truth, columns))
  assert np.sqrt(np.mean(error**2)) < 3 * NOISE * np.sqrt(len(truth) / fit.rows)
  assert fit.converged and fit.rows == 120


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
