"""Laws of one's own: an entry of FORMS, in a file, or a sum of power laws."""

import textwrap

import jax.numpy as jnp
import numpy as np
import pytest

from familial import laws
from familial.core import errors
from familial.laws import estimation
from familial.laws import forms
from familial.laws import frontier
from familial.laws import levenberg_marquardt
from familial.laws import parametric
from familial.laws import row_kernel

CHINCHILLA = """
  def law(N, tokens, *, E=positive(0.3, 3), A=positive(1, 1e9),
          B=positive(1, 1e9), alpha=real(0, 2), beta=real(0, 2)):
    'L = E + A/N^alpha + B/D^beta'
    return E + A / N**alpha + B / tokens**beta
"""


@pytest.fixture
def write(tmp_path):
  """Writes a file of laws; returns its path."""

  def write(body, name='law.py'):
    path = tmp_path / name
    path.write_text(
      'import jax.numpy as jnp\nimport numpy as np\n'
      'from familial.laws.user_forms import positive, real, within\n'
      + textwrap.dedent(body)
    )
    return str(path)

  return write


def test_one_entry_adds_a_form(make, monkeypatch):
  form = parametric.Form(
    'power',
    'L = K / C^kappa',
    (
      parametric.Parameter('K', (0.0, 5.0), parametric.LOG),
      parametric.Parameter('kappa', (0.0, 0.1)),
    ),
    ('C',),
    lambda p, c: p['log_K'] - p['kappa'] * jnp.log(c['C']),
  )
  monkeypatch.setitem(forms.FORMS, form.name, form)
  table = make(noise=0.01)
  options = laws.Options(delta=10.0, resamples=20)
  fit = laws.fit('power', table, options).fit
  slope, intercept = np.polyfit(
    np.log(table.columns['C']), np.log(table.columns['loss']), 1
  )
  assert fit.params['kappa'] == pytest.approx(-slope, rel=1e-8)
  assert fit.params['K'] == pytest.approx(np.exp(intercept), rel=1e-8)
  assert fit.starts == 4  # the whole grid


def test_a_function_in_a_file_is_the_law_it_says(write, make):
  own, known = forms.get(write(CHINCHILLA)), forms.get('chinchilla')
  assert own.columns == known.columns == ('N', 'D')
  assert own.equation == 'L = E + A/N^alpha + B/D^beta'
  assert own.names == known.names
  table = make(noise=0.01)
  values = {'E': 1.2, 'A': 60, 'B': 900, 'alpha': 0.33, 'beta': 0.37}
  np.testing.assert_allclose(
    own.predict(values, table.columns),
    known.predict(values, table.columns),
    rtol=1e-12,
  )
  first, second = (estimation.fit(f, table, starts=300) for f in (own, known))
  assert first.objective == pytest.approx(second.objective, rel=1e-9)
  np.testing.assert_allclose(first.theta, second.theta, rtol=1e-6)
  for name, sd in second.sd.items():
    assert first.sd[name] == pytest.approx(sd, rel=1e-5)
  best = [
    frontier.optimum(f, first.theta[None], [1e12]).params[0, 0]
    for f in (own, known)
  ]
  assert best[0] == pytest.approx(best[1], rel=1e-9)


def test_a_law_that_sums_over_a_schedule_is_fitted_in_little_memory(
  write, make, monkeypatch
):
  """Arrays within a law count, and its optimum has rows that it may index."""
  path = write("""
    def law(N, tokens, *, E=positive(0.3, 3), A=positive(1, 1e9),
            B=positive(1, 1e9), alpha=real(0, 2), beta=real(0, 2)):
      'E + A/N^alpha + the mean of B/D^beta over knots that are about equal'
      knots = tokens[:, None] * jnp.linspace(0.9999, 1.0001, 20)
      return E + A / N**alpha + (B / knots**beta).mean(1)
  """)
  form, plain = forms.get(path), forms.get('chinchilla')
  assert row_kernel.inner(form.vector) == 20
  assert row_kernel.inner(plain.vector) == 1
  for rough in (False, True):
    few, many = (
      row_kernel.lanes(f.vector, 4096, rough=rough) for f in (form, plain)
    )
    assert few * 20 <= max(many, 20)
  monkeypatch.setattr(levenberg_marquardt, 'NUMBERS', 20 * 64 * 5)
  table = make('chinchilla', noise=0.002)
  found, same = (
    laws.fit(f, table, laws.Options(starts=8, resamples=2, profiles='none'))
    for f in (form, plain)
  )
  np.testing.assert_allclose(found.fit.theta, same.fit.theta, rtol=1e-3)
  [name] = [name for name in same.derived if name.startswith('N_opt')]
  assert found.derived[name].value == pytest.approx(
    same.derived[name].value, rel=1e-3
  )


def test_one_of_several_functions_is_named(write):
  path = write(CHINCHILLA + CHINCHILLA.replace('law', 'other'))
  assert forms.get(f'{path}:other').name == f'{path}:other'
  with pytest.raises(errors.UserError, match=r'law, other.*mean .other'):
    forms.get(f'{path}:othr')
  with pytest.raises(errors.UserError, match='law, other'):
    forms.get(path)
  helped = write(
    CHINCHILLA + '\n  def _helper(x):\n    return x\n', 'helped.py'
  )
  assert forms.get(helped).name == f'{helped}:law'


def test_constants_stay_within_their_bounds(write, make):
  body = """
    def law(C, *, E=positive(0.3, 3), A=positive(1, 1e9),
            alpha=within(0.34, 0.36)):
      return E + A / C**alpha
  """
  form = forms.get(write(body))
  table = make('power_of_compute', noise=0.003)  # alpha is 0.33
  fit = estimation.fit(form, table, starts=200)
  assert 0.34 <= fit.params['alpha'] <= 0.36
  free = estimation.fit(forms.get('power_of_compute'), table)
  assert free.objective < fit.objective
  assert fit.flags  # what lies on a bound is not identified
  alpha = form.parameters[2]
  values = alpha.transform.to_value(np.array(alpha.grid))
  assert ((values > 0.34) & (values < 0.36)).all()
  extreme = form.values(np.full(3, 1e3))
  assert extreme['alpha'] == pytest.approx(0.36, rel=1e-12)


def test_starts_span_the_range_that_is_given(write):
  E, _, _, alpha, _ = forms.get(write(CHINCHILLA)).parameters
  np.testing.assert_allclose(np.exp(E.grid), np.geomspace(0.3, 3, 5))
  np.testing.assert_allclose(alpha.grid, np.linspace(0, 2, 5))


@pytest.mark.parametrize(
  ('body', 'message'),
  [
    ('def law(N, *, E=)', 'SyntaxError'),
    ('import nothing_of_that_name', 'ModuleNotFoundError.*nothing_of'),
    ('raise SystemExit(3)', 'SystemExit: 3'),
    ('raise ValueError("one\\ntwo")', 'ValueError: one$'),
    ('x = 1', 'it has none'),
    ('def law(*, E=positive(1, 2)): return E', 'at least one of each'),
    ('def law(N): return N', 'at least one of each'),
    ('def law(N, *, E=positive(1, 2), **k): return E', 'at least one'),
    ('def law(N, *, E=1.0): return E', 'default of E must say its range'),
    ('def law(N, *, E=positive(-1, 2)): return E', r'positive\(-1, 2\)'),
    ('def law(N, *, E=real(2, 1)): return E', 'from 2 to 1.*lower first'),
    ('def law(N, *, E=within(0, np.inf)): return E', 'two finite ends'),
  ],
)
def test_files_that_are_no_law_are_one_line(write, body, message):
  with pytest.raises(errors.UserError, match=message) as error:
    forms.get(write(body))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('returned', 'message'),
  [
    ('jnp.nan * N', 'no finite prediction'),
    ('1 / 0', 'ZeroDivisionError'),
    ('E + N[:3]', r'shape \(3,\)'),
    ('E + N[:, None]', r'shape \(64, 1\)'),
    ('E + 1j * N', 'complex'),
    ('None', 'None is not'),
    ('np.exp(E) + N', 'TracerArrayConversionError'),
    ('E if E > 1 else N', 'TracerBoolConversionError'),
  ],
)
def test_functions_that_give_no_loss_are_one_line(
  write, make, returned, message
):
  body = f'def law(N, *, E=positive(1, 2)): return {returned}'
  with pytest.raises(errors.UserError, match=message) as error:
    estimation.fit(forms.get(write(body)), make())
  assert '\n' not in str(error.value)


@pytest.mark.slow
def test_precision_is_the_fitters_not_the_functions(write, make):
  """Constants of numpy and integers neither fail nor widen the search."""
  body = CHINCHILLA.replace('E + A', 'np.float64(1) * E + np.zeros(1)[0] + A')
  table = make(noise=0.01)
  fits = [
    estimation.fit(f, table, starts=200)
    for f in (forms.get(write(body)), forms.get('chinchilla'))
  ]
  assert fits[0].objective == pytest.approx(fits[1].objective, rel=1e-9)
  ones = 'def law(N, *, E=positive(1, 2)): return jnp.ones(N.shape, int)'
  fit = estimation.fit(forms.get(write(ones)), table)
  assert 'E not identified' in fit.flags


def test_a_sum_of_power_laws_is_named_by_its_columns(make):
  form = forms.get('width*depth+tokens')
  assert form.columns == ('width', 'depth', 'D')
  assert form.names == (
    'E', 'c_width_depth', 'a_width', 'a_depth', 'c_tokens', 'a_tokens'
  )  # fmt: skip
  table = make()
  values = dict(zip(form.names, (1.5, 7.0, 0.3, 0.2, 40.0, 0.25), strict=True))
  c = table.columns
  np.testing.assert_allclose(
    form.predict(values, c),
    1.5 + 7 / (c['width'] ** 0.3 * c['depth'] ** 0.2) + 40 / c['D'] ** 0.25,
    rtol=1e-12,
  )
  known = forms.get('width_depth_product')
  np.testing.assert_allclose(
    form.predict(values, c), known.predict(values, c), rtol=1e-12
  )
  dense, chinchilla = forms.get('params+tokens'), forms.get('chinchilla')
  values = (1.2, 60.0, 0.33, 900.0, 0.37)
  same = dict(zip(('E', 'A', 'alpha', 'B', 'beta'), values, strict=True))
  np.testing.assert_allclose(
    dense.predict(dict(zip(dense.names, values, strict=True)), c),
    chinchilla.predict(same, c),
    rtol=1e-12,
  )


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('tokens+tokens', 'one term only'),
    ('width*depth+width_depth', 'two constants have one name'),
    ('tokens+', 'unknown'),
    ('width tokens', 'unknown'),
    ('', 'unknown'),
  ],
)
def test_sums_that_are_none(name, message):
  with pytest.raises(errors.UserError, match=message):
    forms.get(name)


def test_the_loss_is_no_column_of_its_law(make):
  with pytest.raises(errors.UserError, match='other than the loss'):
    estimation.fit(forms.get('loss*params+tokens'), make())
