import types

import numpy as np
import pytest

from familial.core import errors
from familial.laws import forms
from familial.laws import result as results
from familial.laws import scan as scans

OPTIONS = results.Options(starts=16, resamples=20)


def test_each_cut_is_a_fit_to_what_is_left(make, monkeypatch):
  table, form = make(), forms.get('chinchilla')
  loss = np.sort(table.columns['loss'])
  asked = []

  def fit(form, kept, options):
    asked.append((kept, options))
    found = types.SimpleNamespace(params={'E': float(kept.rows)}, objective=0.5)
    return types.SimpleNamespace(
      fit=found, flags=('a flag',), interval=lambda name: (1.0, None)
    )

  monkeypatch.setattr(scans.results, 'fit', fit)
  found = scans.scan(form, table, [0, 1, 7], OPTIONS)
  for cut, (kept, options), count in zip(found, asked, (0, 1, 7), strict=True):
    assert not options.profile_all and options.starts == 16
    np.testing.assert_array_equal(
      np.sort(kept.columns['loss']), loss[: 36 - count]
    )
    assert (cut.dropped, cut.rows, cut.below) == (
      count, 36 - count, loss[35 - count],
    )  # fmt: skip
    assert cut.params == {'E': {'value': 36.0 - count, 'lo': 1.0, 'hi': None}}
    assert (cut.objective, cut.flags) == (0.5, ('a flag',))


@pytest.mark.slow
def test_without_a_cut_it_is_the_plain_fit(make):
  table, form = (
    make('power_of_compute', noise=0.01),
    forms.get('power_of_compute'),
  )
  [found] = scans.scan(form, table, [0], OPTIONS)
  plain = results.fit(form, table, OPTIONS)
  assert {n: p['value'] for n, p in found.params.items()} == plain.fit.params
  assert (found.dropped, found.rows) == (0, 36)
  assert found.below == table.columns['loss'].max()
  for name, param in found.params.items():
    spread = plain.bootstrap.intervals[name]
    assert (param['lo'], param['hi']) == (spread.lo, spread.hi)


@pytest.mark.slow
def test_what_bends_a_law_is_cut_away(make):
  form = forms.get('power_of_compute')
  table = make('power_of_compute')
  loss = table.columns['loss']
  highest = np.argsort(loss)[-5:]
  bent = loss.copy()
  bent[highest] *= np.linspace(1.2, 1.6, 5)
  table.columns['loss'] = bent
  options = results.Options(starts=16, resamples=20, delta=np.inf)
  all_, cut = scans.scan(form, table, [0, 5], options)
  assert cut.rows == 31 and cut.below <= loss.max()
  assert cut.params['alpha']['value'] == pytest.approx(0.33, abs=1e-5)
  assert abs(all_.params['alpha']['value'] - 0.33) > 0.05
  record = scans.to_json(form, [all_, cut])
  assert [row['dropped'] for row in record['cutoffs']] == [0, 5]


def test_more_than_there_is_cannot_be_cut(make):
  form = forms.get('power_of_compute')
  with pytest.raises(
    errors.UserError, match='drop_highest=36: allowed is 0 to'
  ):
    scans.scan(form, make(), [36], OPTIONS)
