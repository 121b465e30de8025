import dataclasses

import numpy as np
import pytest

from familial.core import estimate as estimate_lib
from familial.laws import estimation
from familial.laws import forms
from familial.laws import selection as selections
from familial.laws import table as tables


def fitted(table, *names):
  return [estimation.fit(forms.get(name), table, starts=32) for name in names]


def test_prefers_the_form_that_made_the_data(make):
  table = make('familial_total', noise=0.003, params={'gamma': 0.05})
  found = selections.select(
    fitted(table, 'dense_null', 'familial_total'), table
  )
  assert found.by_aic == found.by_bic == found.by_hold_out == 'familial_total'
  first, second = found.candidates
  assert (first.aic_behind, first.form) == (0, 'familial_total')
  assert second.aic_behind > 20
  assert second.aic - first.aic == pytest.approx(second.aic_behind)
  assert first.hold_out.rms < 0.5 * second.hold_out.rms
  assert (first.hold_out.rows, first.hold_out.rule) == (12, 'largest budget')


def test_a_constant_without_effect_costs_its_price(make):
  table = make('dense_null', noise=0.01)
  null, total = fitted(table, 'dense_null', 'familial_total')
  assert total.objective <= null.objective * (1 + 1e-9)
  assert total.aic - null.aic < 2 + 1e-6
  assert total.bic - null.bic > total.aic - null.aic


def test_the_largest_budget_is_told_from_flops(make):
  table = make()
  columns = {k: v for k, v in table.columns.items() if k != 'budget'}
  rng = np.random.default_rng(0)
  columns['C'] = columns['C'] * np.exp(0.005 * rng.standard_normal(36))
  by_flops = dataclasses.replace(table, columns=columns)
  held, rule = selections.largest_budget(by_flops)
  np.testing.assert_array_equal(held, table.columns['budget'] == 1.6e12)
  assert rule == 'largest group of C'
  columns['C'] = np.geomspace(1e9, 1e12, 36)
  held, rule = selections.largest_budget(by_flops)
  assert (held.sum(), rule) == (4, 'highest tenth of C')


def test_nothing_is_held_out_where_too_little_is_left(make):
  table = make(noise=0.01).take(np.arange(9))
  few = dataclasses.replace(
    table, columns={**table.columns, 'budget': np.repeat([1.0, 2.0], [4, 5])}
  )
  found = selections.select(fitted(few, 'chinchilla'), few)
  assert found.candidates[0].hold_out is None
  assert found.by_hold_out is None


def one_by_one(table, form, group):
  """Log errors of each group's rows under a fit to all the others."""
  left = []
  for g in np.unique(group):
    fit = estimation.fit(forms.get(form), table.take(group != g), starts=64)
    held = table.take(group == g).columns
    left.append(np.log(fit.predict(held) / held['loss']))
  return np.concatenate(left)


@pytest.mark.parametrize(
  ('kind', 'of', 'folds'),
  [
    ('by_budget', ['budget'], 3),
    pytest.param(
      'by_model', ['N', 'width', 'depth'], 18, marks=pytest.mark.slow
    ),
  ],
)
def test_cross_validation_is_that_of_refits_one_by_one(make, kind, of, folds):
  shapes = np.arange(36) // 2  # two runs of each model
  n = make().columns['N'][2 * shapes]
  table = make(
    noise=0.01, N=n, width=2.0 ** (5 + shapes % 3), depth=1.0 + shapes
  )
  [fit] = fitted(table, 'chinchilla')
  found = getattr(selections.select([fit], table).candidates[0], kind)
  names = np.stack([table.columns[c] for c in of], axis=1)
  group = np.unique(names, axis=0, return_inverse=True)[1].ravel()
  left = one_by_one(table, 'chinchilla', group)
  assert (found.folds, found.rows, found.converged) == (folds, 36, True)
  assert found.rms == pytest.approx(np.sqrt(np.mean(left**2)), rel=1e-4)
  assert found.bias == pytest.approx(np.mean(left), abs=1e-6)


def test_extrapolation_is_that_of_a_refit(make):
  table = make(noise=0.01)
  [fit] = fitted(table, 'chinchilla')
  found = selections.select([fit], table).candidates[0].hold_out
  group = table.columns['budget'] == 1.6e12
  refit = estimation.fit(forms.get('chinchilla'), table.take(~group))
  held = table.take(group).columns
  left = np.log(refit.predict(held) / held['loss'])
  assert (found.folds, found.rows) == (1, 12)
  assert found.rms == pytest.approx(np.sqrt(np.mean(left**2)), rel=1e-4)
  assert found.bias == pytest.approx(np.mean(left), abs=1e-6)


def test_what_was_held_stays_held_in_every_fold(make):
  table, held = make(noise=0.01), 0.12  # worse than starts at 0 would be
  without = table.columns['loss'] / table.columns['G'] ** held
  taken_out = dataclasses.replace(
    table, columns={**table.columns, 'loss': without}
  )
  fit = estimation.fit(
    forms.get('familial_total'), table, starts=64, fixed={'gamma': held}
  )
  [dense] = fitted(taken_out, 'dense_null')
  [free] = fitted(table, 'familial_total')
  budgets = table.columns['budget']
  first, second, third = (
    selections.cross_validation(f, t, budgets, '').rms
    for f, t in ((fit, table), (dense, taken_out), (free, table))
  )
  assert first == pytest.approx(second, rel=5e-3)  # E tends to 0 in a fold
  assert abs(third / second - 1) > 0.05


def test_groups_that_cannot_be_told_apart_are_not_left_out(make):
  table = make(noise=0.01)
  [fit] = fitted(table, 'chinchilla')
  assert selections.cross_validation(fit, table, None, '') is None
  assert selections.cross_validation(fit, table, np.zeros(36), '') is None
  mostly = np.where(np.arange(36) < 33, 0.0, 1.0)  # 3 rows would be left
  assert selections.cross_validation(fit, table, mostly, '') is None


def grid(form, params, noise=0.0, seed=0):
  """Four widths at four depths, three numbers of tokens each."""
  width, depth, tokens = (
    a.ravel()
    for a in np.meshgrid([16.0, 32, 64, 128], [2.0, 4, 8, 16], [1e6, 4e6, 2e7])
  )
  columns = {'width': width, 'depth': depth, 'D': tokens}
  columns['N'] = 12 * width**2 * depth
  loss = forms.get(form).predict(params, columns)
  error = noise * np.random.default_rng(seed).standard_normal(len(loss))
  run = [f'{w:g}x{d:g}' for w, d in zip(width, depth, strict=True)]
  return tables.Table({**columns, 'loss': loss * np.exp(error)}, np.array(run))


TOKENS = {'E': 1.0, 'c_tokens': 60.0, 'a_tokens': 0.3}
SPLIT = {
  **TOKENS,
  'c_width': 5.0,
  'a_width': 0.7,
  'c_depth': 1.5,
  'a_depth': 0.6,
}
PLANTED = {
  'width_depth': SPLIT,
  'width_depth_product': {
    **TOKENS, 'c_width_depth': 6.0, 'a_width': 0.5, 'a_depth': 0.3,
  },
  'width_depth_inverse': {**TOKENS, 'c_width': 10.0, 'c_depth': 1.5},
  'chinchilla': {'E': 1.0, 'A': 20.0, 'alpha': 0.3, 'B': 60.0, 'beta': 0.3},
}  # fmt: skip


def test_all_rows_of_a_shape_are_one_model():
  table = grid('chinchilla', PLANTED['chinchilla'])
  columns = {n: v for n, v in table.columns.items() if n != 'N'}
  for known in (table, dataclasses.replace(table, columns=columns)):
    group = selections.models(known)
    shapes = table.run[np.argsort(group, kind='stable')].reshape(16, 3)
    assert len(np.unique(group)) == 16 == len(np.unique(shapes[:, 0]))
    assert (shapes == shapes[:, :1]).all()


@pytest.mark.slow
def test_a_model_is_left_out_with_all_of_its_rows():
  table = grid('width_depth_inverse', PLANTED['width_depth_inverse'])
  one = table.run == '32x8'
  before, after = (
    selections.select(fitted(t, 'width_depth_inverse'), t)
    .candidates[0]
    .by_model
    for t in (
      table,
      dataclasses.replace(
        table,
        columns={
          **table.columns,
          'loss': np.where(one, 1.5, 1.0) * table.columns['loss'],
        },
      ),
    )
  )
  assert (before.folds, before.rows) == (16, 48)
  assert before.error.value < 1e-6
  # Had the fit seen a row of it, that would have moved the others' too.
  [fold] = np.unique(selections.models(table)[one])
  assert after.errors[fold] == pytest.approx(1 / 3, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('name', PLANTED)
def test_of_the_forms_of_width_and_depth_the_planted_one_wins(name):
  table = grid(name, PLANTED[name], 0.002)
  fits = {fit.form.name: fit for fit in fitted(table, *PLANTED)}
  found = selections.select(list(fits.values()), table)
  # Two hold another: the sum its inverse, the product (as good as) N.
  wider = {
    'width_depth_inverse': {'width_depth'},
    'chinchilla': {'width_depth_product'},
  }
  alike = {name, *wider.get(name, ())}
  assert found.by_aic in alike and found.by_model in alike
  best = next(c for c in found.candidates if c.form == found.by_model)
  for candidate in found.candidates:
    over = np.subtract(candidate.by_model.errors, best.by_model.errors)
    assert candidate.model_error_behind == (
      None if candidate is best else estimate_lib.Estimate.of(over)
    )
  [planted] = [c for c in found.candidates if c.form == name]
  assert planted.aic_behind < 4
  assert all(c.aic_behind > 20 for c in found.candidates if c.form not in alike)
  for constant, value in PLANTED[name].items():
    if constant.startswith(('a_', 'alpha', 'beta')):
      sd = fits[name].sd[constant]
      assert abs(fits[name].params[constant] - value) < 4 * sd < 0.4, constant
