import dataclasses

import numpy as np
import pytest

from familial.laws import forms
from familial.laws import frontier
from tests.laws import points


@pytest.mark.parametrize('n_opt', [3e4, 1.5e6, 7e9])
@pytest.mark.parametrize('curvature', [0.003, 0.2])
def test_recovers_a_parabola_exactly(n_opt, curvature):
  params = n_opt * np.array([0.2, 0.5, 0.8, 2.0, 4.0])
  losses = 2.5 * np.exp(curvature * np.log(params / n_opt) ** 2)
  found = frontier.minimum(params, losses)
  assert found.interior and found.points == 5 and not found.flag
  np.testing.assert_allclose(found.n_opt, n_opt, rtol=1e-9)
  np.testing.assert_allclose(found.loss, 2.5, rtol=1e-12)
  np.testing.assert_allclose(found.curvature, curvature, rtol=1e-9)
  np.testing.assert_allclose(found.curve(params), losses, rtol=1e-12)


def test_order_and_repeats_do_not_matter():
  params = np.array([1e5, 2e5, 4e5, 8e5])
  losses = np.array([2.2, 2.0, 2.05, 2.3])
  there = frontier.minimum(params, losses)
  back = frontier.minimum(np.tile(params[::-1], 2), np.tile(losses[::-1], 2))
  np.testing.assert_allclose(there.n_opt, back.n_opt)
  assert back.points == 8


FOUR = [1e5, 2e5, 4e5, 8e5]


@pytest.mark.parametrize(
  ('params', 'losses', 'flag'),
  [
    (FOUR, [4.0, 3.0, 2.4, 2.0], frontier.AT_EDGE),
    (FOUR, [2.0, 2.1, 2.4, 3.0], frontier.AT_EDGE),
    (FOUR, [2.0, 2.5, 2.6, 2.1], frontier.NOT_CONVEX),
    (FOUR, [3.0, 3.0, 3.0, 3.0], frontier.NOT_CONVEX),
    (FOUR, [5 * n**-0.05 for n in FOUR], frontier.NOT_CONVEX),
    ([1e5], [3.0], frontier.TOO_FEW),
    ([1e5, 2e5, 1e5, 2e5], [3.0, 2.0, 2.5, 2.2], frontier.TOO_FEW),
  ],
)
def test_where_there_is_no_minimum_the_best_size_is_flagged(
  params, losses, flag
):
  found = frontier.minimum(params, losses)
  assert not found.interior and found.flag == flag
  assert found.points == len(params)
  assert found.loss == min(losses)
  assert found.n_opt == params[losses.index(min(losses))]


def test_optimum_is_the_closed_form_of_the_law_of_chinchilla(truth):
  form, compute = forms.get('chinchilla'), [1e12, 3e18, 5.76e23]
  laws = [
    {n: truth[n] for n in form.names},
    {'E': 1.82, 'A': 477.8, 'B': 2143.4, 'alpha': 0.347, 'beta': 0.367},
    {'E': 1e-12, 'A': 1e4, 'B': 10.0, 'alpha': 0.6, 'beta': 0.1},
  ]
  found = frontier.optimum(form, np.stack([*map(form.theta, laws)]), compute)
  for i, law in enumerate(laws):
    n, d = points.closed_form(law, compute)
    np.testing.assert_allclose(found.params[i], n, rtol=1e-9)
    np.testing.assert_allclose(found.tokens[i], d, rtol=1e-9)
    np.testing.assert_allclose(
      found.loss[i], form.predict(law, {'N': n, 'D': d}), rtol=1e-12
    )
    a = law['beta'] / (law['alpha'] + law['beta'])
    np.testing.assert_allclose(found.exponent[i], a, rtol=1e-9)
    np.testing.assert_allclose(found.token_exponent[i], 1 - a, rtol=1e-9)
  assert found.interior.all()


def test_granularity_leaves_the_optimum_where_it_is(truth):
  form = forms.get('familial_total')
  theta = form.theta({n: truth[n] for n in form.names})[None]
  one, four = (
    frontier.optimum(form, theta, [1e15], columns={'G': g}) for g in (1.0, 4.0)
  )
  np.testing.assert_allclose(one.params, four.params, rtol=1e-12)
  np.testing.assert_allclose(four.loss / one.loss, 4 ** truth['gamma'])


def with_cost(make, factor):
  """A table that counts FLOPs a token as 6 N times a factor of N."""
  table = make()
  per_token = 6 * table.columns['N'] * factor(table.columns['N'])
  columns = {**table.columns, 'flops_per_token': per_token}
  return dataclasses.replace(table, columns=columns)


def test_optimum_of_exact_flops_lies_on_the_budget_and_is_the_lowest(
  make, truth
):
  form = forms.get('chinchilla')
  factor = lambda n: 0.9 + 60 / np.sqrt(n)
  table = with_cost(make, factor)
  flops = frontier.cost_of(table, np.arange(36))
  sizes = np.geomspace(1e3, 1e7, 20001)
  np.testing.assert_allclose(flops(sizes), 6 * sizes * factor(sizes), rtol=1e-6)
  law = {n: truth[n] for n in form.names}
  found = frontier.optimum(form, form.theta(law)[None], [1e12], flops)
  n, d = found.params[0, 0], found.tokens[0, 0]
  assert d * 6 * n * factor(n) == pytest.approx(1e12, rel=1e-6)
  losses = form.predict(
    law, {'N': sizes, 'D': 1e12 / (6 * sizes * factor(sizes))}
  )
  best = int(np.argmin(losses))
  assert 0 < best < len(sizes) - 1
  assert n == pytest.approx(sizes[best], rel=1e-3)
  assert n > 1.02 * points.closed_form(law, 1e12)[0]  # what 6 N would say
  ends = [
    frontier.optimum(form, form.theta(law)[None], [c], flops)
    for c in (1e12 * np.exp(-0.05), 1e12 * np.exp(0.05))
  ]
  for key, slope in (('params', 'exponent'), ('tokens', 'token_exponent')):
    low, high = (getattr(end, key)[0, 0] for end in ends)
    assert getattr(found, slope)[0, 0] == pytest.approx(
      np.log(high / low) / 0.1, rel=1e-6
    )


def test_flops_are_6_n_where_the_table_says_no_other(make):
  table = make()
  plain = {k: v for k, v in table.columns.items() if k != 'C'}
  for columns in (plain, {**plain, 'C': 6 * plain['N'] * plain['D']}):
    same = dataclasses.replace(table, columns=columns)
    assert frontier.cost_of(same, np.arange(36))(5.0) == 30.0


@pytest.mark.parametrize('cost', [(1.0, 0.0), (0.0, 3.0), (1e-14, 2.0)])
def test_the_size_at_a_cost_is_its_inverse(cost):
  flops, sizes = frontier.TokenCost(*cost), np.geomspace(1e-6, 1e12, 9)
  np.testing.assert_allclose(flops.params_at(flops(sizes)), sizes, rtol=1e-9)


def test_a_law_without_a_minimum_has_none(truth):
  form = forms.get('chinchilla')
  law = {n: truth[n] for n in form.names}
  worse_with_size = form.theta({**law, 'alpha': -0.1})
  no_data = form.theta({**law, 'B': 1e-200})
  theta = np.stack([worse_with_size, no_data, form.theta(law)])
  found = frontier.optimum(form, theta, [1e12, 1e15])
  np.testing.assert_array_equal(
    found.interior, [[False] * 2, [False] * 2, [True] * 2]
  )
  for values in (
    found.params, found.tokens, found.loss, found.exponent, found.token_exponent
  ):  # fmt: skip
    assert np.isnan(values[:2]).all() and np.isfinite(values[2]).all()


def test_kaplan_has_a_minimum_of_its_own_exponents(truth):
  form = forms.get('kaplan')
  law = {'N_c': 8.8e13, 'D_c': 5.4e13, 'alpha_N': 0.076, 'alpha_D': 0.095}
  found = frontier.optimum(form, form.theta(law)[None], [1e18, 1e21])
  assert found.interior.all()
  # Of (N_c/N)^r + D_c/D, r = alpha_N / alpha_D: N grows as C^(1 / (1 + r)).
  r = 0.076 / 0.095
  np.testing.assert_allclose(found.exponent, 1 / (1 + r), rtol=1e-9)
  n = (r * 8.8e13**r / (6 * 5.4e13) * np.array([1e18, 1e21])) ** (1 / (1 + r))
  np.testing.assert_allclose(found.params[0], n, rtol=1e-9)
  # Where the optimum would be of less than one parameter, there is none.
  small = form.theta({**law, 'N_c': 1e-9})
  assert not frontier.optimum(form, small[None], [1e10]).interior.any()
