import dataclasses
import json

import numpy as np
import pytest

from familial.core import errors
from familial.laws import fitting
from familial.laws import leverage
from familial.laws import record
from familial.laws import result as results

KEYS = set(
  'form equation loss_definition table rows dropped params objective delta starts'
  ' asymmetry followed basin_hit_rate converged condition_number identified flags bootstrap level'
  ' bootstrap_unit resamples resamples_failed sd covariance profile derived held_out aic bic seed seconds backend'
  ' versions schema design'.split()
)
FEW = results.Options(starts=32, resamples=100)
# Where it is not the intervals that count.
FEWER = dataclasses.replace(FEW, resamples=20, profile_all=False)


def read(path):
  def refuse(constant):
    raise AssertionError(f'{constant} in JSON')

  return json.loads(path.read_text(), parse_constant=refuse)


def test_one_form(make, tmp_path):
  table = make(noise=0.005)
  line = fitting.run(table, ['familial_total'], tmp_path, FEW)
  saved = read(tmp_path / 'fit.json')
  assert set(saved) == KEYS
  assert set(saved['params']) == {'E', 'A', 'B', 'alpha', 'beta', 'gamma'}
  assert set(saved['bootstrap']['gamma']) == {'sd', 'lo', 'hi'}
  np.testing.assert_allclose(
    np.sqrt(np.diag(saved['covariance'])), list(saved['sd'].values())
  )
  assert set(saved['table']) == {'path', 'sha256', 'columns', 'filters'}
  assert set(saved['seconds']) == {'compile', 'starts', 'bootstrap'}
  assert 0.0 in saved['profile']['gamma']['values']
  assert saved['derived']['2^gamma']['value'] == pytest.approx(
    2 ** saved['params']['gamma']
  )
  spread = saved['bootstrap']['gamma']
  assert (
    f'gamma {saved["params"]["gamma"]:.4g}'
    f' [{spread["lo"]:.4g}, {spread["hi"]:.4g}]'
  ) in line
  assert 'flags: none' in line
  assert '\n' not in line
  law = record.load(tmp_path / 'fit.json')
  left = np.log(law.predict(table.columns) / table.columns['loss'])
  assert np.abs(left).max() < 0.03
  assert len(law.samples['gamma']) == 100
  np.savez(tmp_path / record.SAMPLES, gamma=np.zeros(99))
  with pytest.raises(errors.UserError, match=r'bootstrap\.npz: cannot be read'):
    record.load(tmp_path / 'fit.json')
  text = (tmp_path / 'fit.json').read_text()
  (tmp_path / 'fit.json').write_text(
    text.replace('"resamples": 100,', '"resamples": null,')
  )
  with pytest.raises(errors.UserError, match='does not count its resamples'):
    record.load(tmp_path / 'fit.json')
  assert not [
    p for p in tmp_path.iterdir() if p.suffix not in ('.json', '.npz')
  ]


def test_several_forms(make, tmp_path):
  forms = ['familial_total', 'dense_null']
  line = fitting.run(make(noise=0.005), forms, tmp_path, FEWER)
  assert not (tmp_path / 'fit.json').exists()
  for form in forms:
    assert read(tmp_path / form / 'fit.json')['form'] == form
  selection = read(tmp_path / 'selection.json')
  assert selection['by_aic'] == 'familial_total'
  assert line.startswith('preferred: familial_total')
  assert line.endswith('selection.json')


def test_flags_and_open_intervals_reach_file_and_line(make, tmp_path):
  table = make(noise=0.005, G=np.full(36, 2.0))
  line = fitting.run(table, ['familial_total'], tmp_path, FEWER)
  saved = read(tmp_path / 'fit.json')
  assert saved['profile']['gamma']['lo'] is None
  assert saved['condition_number'] is None  # infinite
  assert not saved['identified']['gamma']
  for flag in saved['flags']:
    assert flag in line
  assert 'gamma not identified' in saved['flags']
  assert ' [-inf, inf], E ' in line


def test_leverage_of_rows_takes_the_saved_law(make, rows, tmp_path):
  fitting.run(make('chinchilla', noise=0.005), ['chinchilla'], tmp_path, FEWER)
  law = record.load(tmp_path / 'fit.json')
  [row] = leverage.of_rows(law, rows)
  assert (row['run'], row['exits'], row['budget']) == ('a', 2, 600.0)
  assert row['lo'] is None or row['lo'] <= (row['leverage'] or np.inf)


def test_bad_input(make, tmp_path):
  with pytest.raises(errors.UserError, match="did you mean 'familial_total'"):
    fitting.run(make(), ['familial_totl'], tmp_path)
  with pytest.raises(errors.UserError, match='no form'):
    fitting.run(make(), [], tmp_path)
  with pytest.raises(errors.UserError, match='cannot read'):
    record.load(tmp_path / 'fit.json')
  (tmp_path / 'fit.json').write_text('{}')
  with pytest.raises(errors.UserError, match=r'no fit\.json'):
    record.load(tmp_path / 'fit.json')
  known = dict.fromkeys('form params objective bootstrap flags'.split())
  record.write_json(tmp_path / 'fit.json', {**known, 'schema': 99})
  with pytest.raises(errors.UserError, match='schema 99 is not 1'):
    record.load(tmp_path / 'fit.json')


def test_held_out_rows_are_predicted_and_not_fitted(make):
  table = make('chinchilla', noise=0.01)
  conditions = ['budget>1e12', 'params>=3e5']
  found = results.fit('chinchilla', table, FEW, hold_out=conditions)
  c = table.columns
  held = (c['budget'] > 1e12) | (c['N'] >= 3e5)
  assert 0 < held.sum() < 36
  assert (found.fit.rows, found.held_out.rows) == (36 - held.sum(), held.sum())
  assert found.held_out.conditions == tuple(conditions)
  alone = results.fit('chinchilla', table.take(~held), FEW)
  assert alone.held_out is None
  np.testing.assert_array_equal(alone.fit.theta, found.fit.theta)
  out = table.take(held).columns
  left = np.log(alone.predict(out) / out['loss'])
  assert found.held_out.rms == pytest.approx(np.sqrt(np.mean(left**2)))
  assert found.held_out.bias == pytest.approx(np.mean(left))
  lo, hi = alone.predict_interval(out)
  inside = (lo <= out['loss']) & (out['loss'] <= hi)
  assert found.held_out.covered == pytest.approx(inside.mean())
  assert f'{held.sum()} held-out rows' in fitting.summary(found)
  with pytest.raises(errors.UserError, match='no row meets it'):
    results.fit('chinchilla', table, FEW, hold_out=['budget>1e20'])


def test_intervals_of_predictions_are_those_of_the_samples(make):
  found = results.fit('chinchilla', make('chinchilla', noise=0.01), FEW)
  at = {'N': np.array([1e5, 1e9]), 'D': np.array([1e6, 1e11])}
  s = found.bootstrap.samples
  losses = np.stack(
    [
      s['E'] + s['A'] / n ** s['alpha'] + s['B'] / d ** s['beta']
      for n, d in zip(at['N'], at['D'], strict=True)
    ]
  )
  lo, hi = found.predict_interval(at)
  np.testing.assert_allclose(lo, np.quantile(losses, 0.025, axis=1))
  np.testing.assert_allclose(hi, np.quantile(losses, 0.975, axis=1))
  assert ((lo <= found.predict(at)) & (found.predict(at) <= hi)).all()


def test_derived_intervals_are_those_of_the_samples(make):
  table = make('chinchilla', noise=0.01)
  without = {k: v for k, v in table.columns.items() if k != 'C'}
  table = dataclasses.replace(table, columns=without)  # so that C = 6 N D
  options = dataclasses.replace(FEW, compute=(1e12, 1e15))
  found = results.fit('chinchilla', table, options)

  def n_opt(p, compute):
    both = p['alpha'] + p['beta']
    scale = (p['alpha'] * p['A'] / (p['beta'] * p['B'])) ** (1 / both)
    return scale * (compute / 6) ** (p['beta'] / both)

  for compute in options.compute:
    at = f'(C={compute:.4g})'
    n = n_opt(found.bootstrap.samples, compute)
    best = n_opt(found.fit.params, compute)
    for name, value, samples in (
      ('N_opt', best, n),
      ('D_opt', compute / (6 * best), compute / (6 * n)),
      ('tokens_per_param', compute / (6 * best**2), compute / (6 * n**2)),
    ):
      middle, spread = found.derived[name + at]
      assert middle == pytest.approx(value, rel=1e-6)
      ends = np.quantile(samples, [0.025, 0.975])
      np.testing.assert_allclose([spread.lo, spread.hi], ends, rtol=1e-6)
      assert spread.sd == pytest.approx(np.std(samples, ddof=1), rel=1e-6)
    a, of_a = found.derived['a' + at]
    b, of_b = found.derived['b' + at]
    assert a + b == pytest.approx(1, rel=1e-9)
    assert of_a.lo == pytest.approx(1 - of_b.hi, rel=1e-6)


def test_gamma_derives_its_penalties_with_intervals(make):
  found = results.fit('familial_total', make(noise=0.01), FEW)
  value, spread = found.derived['4^gamma']
  assert value == pytest.approx(4 ** found.fit.params['gamma'])
  gamma = found.bootstrap.intervals['gamma']
  assert spread.lo == pytest.approx(4**gamma.lo, rel=1e-3)


def test_what_the_resamples_scatter_is_not_identified(make):
  found = results.fit('chinchilla', make('dense_null', noise=0.001), FEW)
  assert all(found.fit.identified.values()) and all(found.identified.values())
  rng = np.random.default_rng(0)
  wide = {
    **found.bootstrap.samples,
    'alpha': 0.33 + 3 * rng.standard_normal(100),
    'A': found.fit.params['A'] * np.exp(0.3 * rng.standard_normal(100)),
  }
  scattered = dataclasses.replace(
    found, bootstrap=dataclasses.replace(found.bootstrap, samples=wide)
  )
  assert not scattered.identified.pop('alpha')
  assert scattered.identified['A'] and scattered.identified['E']
  assert 'alpha not identified by the resamples' in scattered.flags
  assert not any('A not identified' in flag for flag in scattered.flags)


def test_an_open_profile_is_not_identified(make):
  found = results.fit('chinchilla', make('dense_null', noise=0.001), FEW)
  flat = dataclasses.replace(found.profiles['beta'], lo=None, hi=None)
  half = dataclasses.replace(found.profiles['E'], lo=None)
  opened = dataclasses.replace(
    found, profiles={**found.profiles, 'beta': flat, 'E': half}
  )
  assert not opened.identified['beta'] and opened.identified['E']
  assert opened.interval('beta') == (None, None)
  assert opened.interval('E') == (None, found.bootstrap.intervals['E'].hi)
