import dataclasses

import numpy as np
import pytest

from familial.laws import estimate
from familial.laws import forms
from familial.laws import selection as selections


def fitted(table, *names):
  return [estimate.fit(forms.get(name), table, starts=32) for name in names]


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
  line = selections.summary(found)
  assert 'AIC lower by' in line
  assert 'best predicted by familial_total' in line


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
  assert selections.summary(found) == 'preferred: chinchilla'
