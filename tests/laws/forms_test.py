import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.core import errors
from familial.laws import forms
from familial.laws import parametric


def dense(c, p):
  a = p['A'] / c['N'] ** p['alpha']
  return a + p['B'] / c['D'] ** p['beta']


def tokens(c, p):
  return p['E'] + p['c_tokens'] / c['D'] ** p['a_tokens']


def split(c, p):
  width = p['c_width'] / c['width'] ** p.get('a_width', 1.0)
  return width + p['c_depth'] / c['depth'] ** p.get('a_depth', 1.0)


EQUATIONS = {
  'chinchilla': lambda c, p: p['E'] + dense(c, p),
  'dense_null': lambda c, p: p['E'] + dense(c, p),
  'familial_total': lambda c, p: (p['E'] + dense(c, p)) * c['G'] ** p['gamma'],
  'familial_reducible': lambda c, p: (
    p['E'] + dense(c, p) * c['G'] ** p['gamma']
  ),
  'branch': lambda c, p: (
    (p['E'] + dense(c, p))
    * (1 + c['upstream']) ** p['gamma_up']
    * (1 + c['downstream']) ** p['gamma_down']
  ),
  'kaplan': lambda c, p: (
    ((p['N_c'] / c['N']) ** (p['alpha_N'] / p['alpha_D']) + p['D_c'] / c['D'])
    ** p['alpha_D']
  ),
  'outer_exponent': lambda c, p: p['E'] + dense(c, p) ** p['outer'],
  'power_of_compute': lambda c, p: p['E'] + p['A'] / c['C'] ** p['alpha'],
  'width_depth': lambda c, p: tokens(c, p) + split(c, p),
  'width_depth_inverse': lambda c, p: tokens(c, p) + split(c, p),
  'width_depth_product': lambda c, p: (
    tokens(c, p)
    + p['c_width_depth']
    / c['width'] ** p['a_width']
    / c['depth'] ** p['a_depth']
  ),
  'width_depth_params': lambda c, p: (
    tokens(c, p) + split(c, p) + p['c_params'] / c['N'] ** p['a_params']
  ),
}


@pytest.mark.parametrize('name', forms.FORMS)
def test_predicts_its_equation(name, columns):
  form = forms.get(name)
  rng = np.random.default_rng(1)
  for _ in range(5):
    p = {
      q.name: rng.uniform(-0.2, 0.6)
      if q.transform is parametric.IDENTITY
      else np.exp(rng.uniform(-1, 6) if q.name[0].isupper() else -1)
      for q in form.parameters
    }
    wanted = EQUATIONS[name](columns, p)
    np.testing.assert_allclose(form.predict(p, columns), wanted, rtol=1e-11)


def test_every_equation_is_checked():
  assert set(EQUATIONS) == set(forms.FORMS)


def test_no_irreducible_loss(columns, truth):
  form = forms.get('chinchilla')
  without = form.predict({**truth, 'E': 0.0}, columns)
  tiny = form.predict({**truth, 'E': 1e-300}, columns)
  np.testing.assert_allclose(without, tiny, rtol=1e-15)
  assert np.isfinite(without).all()


def test_log_sum_agrees_with_logsumexp_and_does_not_overflow():
  a, b = jnp.array([-900.0, 0.0, 700.0]), jnp.array([-901.0, 1.0, -700.0])
  wanted = jax.nn.logsumexp(jnp.stack([a, b]), axis=0)
  np.testing.assert_allclose(parametric.log_sum(a, b), wanted, rtol=1e-6)
  slope = jax.grad(lambda x: parametric.log_sum(x, b[0]))(a[0])
  np.testing.assert_allclose(slope, 1 / (1 + np.exp(-1)), rtol=1e-5)


def test_what_an_exponent_means(truth):
  derived = forms.get('familial_total').derived
  assert derived['4^gamma'](truth) == pytest.approx(4**0.033)


def test_errors_name_the_nearest():
  with pytest.raises(errors.UserError, match="did you mean 'chinchilla'"):
    forms.get('chincilla')
  with pytest.raises(errors.UserError, match="did you mean 'beta'"):
    forms.get('chinchilla').index('bet')
  with pytest.raises(errors.UserError, match='beta'):
    forms.get('chinchilla').theta({'E': 1, 'A': 1, 'B': 1, 'alpha': 1})


def test_dense_is_the_null_of_both_families(columns, truth):
  dense = forms.get('chinchilla').predict(truth, columns)
  for name in ('familial_total', 'familial_reducible'):
    form = forms.get(name)
    at_null = form.predict({**truth, 'gamma': 0.0}, columns)
    np.testing.assert_allclose(at_null, dense, rtol=1e-14)
    alone = {**columns, 'G': np.ones(len(dense))}
    np.testing.assert_allclose(form.predict(truth, alone), dense, rtol=1e-14)
