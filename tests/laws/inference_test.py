"""A law's intervals and derived numbers, and the files that hold them."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from familial.core import errors
from familial.core import schema
from familial.laws import estimation
from familial.laws import fit_record
from familial.laws import forms
from familial.laws import inference
from familial.laws import prediction
from familial.laws import selection as selections
from familial.laws import sensitivity
from familial.plots import law as law_plots
from tests.laws import points

KEYS = set(
  'form equation loss_definition table rows dropped params objective delta starts'
  ' asymmetry followed basin_hit_rate converged condition_number identified flags'
  ' bootstrap level bootstrap_unit resamples resamples_failed sd covariance profile'
  ' derived held_out aic bic seed seconds backend versions schema design'
  ' residual_scale degrees span approaches'.split()
)
FEW = inference.Options(starts=32, resamples=100)
# Where it is not the intervals that count.
FEWER = dataclasses.replace(FEW, resamples=20, profiles='some')


def read(path):
  def refuse(constant):
    raise AssertionError(f'{constant} in JSON')

  return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(scope='module')
def dense(request):
  """The dense law fitted to the small study."""
  from tests.laws import conftest

  return inference.fit('chinchilla', conftest.drawn('chinchilla', 0.001), FEW)


def test_one_form(make, tmp_path):
  table = make(noise=0.005)
  fits = selections.compare(table, ['familial_total'], tmp_path, FEW)
  saved = read(tmp_path / 'fit.json')
  assert set(saved) == KEYS
  assert set(saved['params']) == {'E', 'A', 'B', 'alpha', 'beta', 'gamma'}
  assert set(saved['bootstrap']['gamma']) == {'sd', 'lo', 'hi'}
  assert set(saved['derived']['2^gamma']) == {'value', 'sd', 'lo', 'hi'}
  np.testing.assert_allclose(
    np.sqrt(np.diag(saved['covariance'])), list(saved['sd'].values())
  )
  [result] = fits.results.values()
  shown = str(result).splitlines()
  assert result.fit.form.equation in shown[0]
  assert [line.split()[0] for line in shown[1:7]] == list(result.fit.form.names)
  penalty = result.derived['4^gamma']
  assert penalty.value == pytest.approx(4 ** result.fit.params['gamma'])
  samples = 4 ** result.bootstrap.samples['gamma']
  np.testing.assert_allclose(
    [penalty.lo, penalty.hi], np.quantile(samples, [0.025, 0.975])
  )
  assert set(saved['table']) == {'path', 'sha256', 'columns', 'filters'}
  assert set(saved['seconds']) == {'compile', 'starts', 'bootstrap'}
  assert 0.0 in saved['profile']['gamma']['values']
  law = fit_record.load(tmp_path / 'fit.json')
  assert fit_record.plain(law.record.to_json()) == saved
  np.testing.assert_array_equal(
    law.predict(table.columns), result.predict(table.columns)
  )
  assert len(law.samples['gamma']) == 100
  assert {p.name for p in tmp_path.iterdir()} == {'fit.json', 'bootstrap.npz'}
  np.savez(tmp_path / fit_record.SAMPLES, gamma=np.zeros(99))
  with pytest.raises(errors.UserError, match=r'bootstrap\.npz: cannot be read'):
    fit_record.load(tmp_path / 'fit.json')
  uncounted = {**saved, 'resamples': None}
  (tmp_path / 'fit.json').write_text(json.dumps(uncounted))
  with pytest.raises(errors.UserError, match='does not count its resamples'):
    fit_record.load(tmp_path / 'fit.json')


def test_several_forms(make, tmp_path):
  names = ['familial_total', 'dense_null']
  fits = selections.compare(make(noise=0.005), names, tmp_path, FEWER, scan=[3])
  assert not (tmp_path / 'fit.json').exists()
  for name in names:
    assert read(tmp_path / name / 'fit.json')['form'] == name
    scan = read(tmp_path / name / 'scan.json')
    assert [cutoff['dropped'] for cutoff in scan['cutoffs']] == [3]
    path = tmp_path / name / 'scan.json'
    read_back = schema.read_json(sensitivity.Scan, path)
    assert read_back == fits.scans[tmp_path / name]
  saved = read(tmp_path / 'selection.json')
  assert saved['by_aic'] == fits.selection.by_aic == 'familial_total'
  assert fits.selection == schema.read_json(
    selections.Selection, tmp_path / 'selection.json'
  )
  frames = fits.selection.tables()
  assert frames['candidates']['form'].to_list() == names
  best = fits.selection.candidates[0].by_budget.error
  rows = frames['hold_outs'].rows_by_key(['form', 'kind'], named=True)
  [row] = rows['familial_total', 'by_budget']
  assert (row['error'], row['error_lo']) == (best.value, best.lo)
  assert len(rows) == 4


def test_open_intervals_are_null_and_flagged(make, tmp_path):
  table = make(noise=0.005, G=np.full(36, 2.0))
  fits = selections.compare(table, ['familial_total'], tmp_path, FEWER)
  saved = read(tmp_path / 'fit.json')
  assert saved['profile']['gamma']['lo'] is None
  assert saved['condition_number'] is None  # infinite
  assert not saved['identified']['gamma']
  assert 'gamma not identified' in saved['flags']
  open_ = fits.results[tmp_path].interval('gamma')
  assert (open_.lo, open_.hi) == (None, None)


def test_bad_input(make, tmp_path):
  path = tmp_path / 'fit.json'
  with pytest.raises(errors.UserError, match='no form'):
    selections.compare(make(), [], tmp_path)
  known = dict.fromkeys('form params objective bootstrap flags'.split())
  for content, said in (
    (None, 'cannot be read'),
    ('[', 'not valid JSON'),
    ('{}', r'no fit\.json'),
    (json.dumps({**known, 'form': 'law.py:law'}), 'is not run'),
    (json.dumps({**known, 'bootstrap': {}, 'form': 3}), 'form: '),
  ):
    if content is not None:
      path.write_text(content)
    with pytest.raises(errors.UserError, match=said) as error:
      fit_record.load(path)
    assert '\n' not in str(error.value)


def test_held_out_rows_are_predicted_and_not_fitted(make):
  table = make('chinchilla', noise=0.01)
  conditions = ['budget>1e12', 'params>=3e5']
  found = inference.fit('chinchilla', table, FEWER, hold_out=conditions)
  c = table.columns
  held = (c['budget'] > 1e12) | (c['N'] >= 3e5)
  assert 0 < held.sum() < 36
  assert (found.fit.rows, found.held_out.rows) == (36 - held.sum(), held.sum())
  assert found.held_out.conditions == tuple(conditions)
  alone = inference.fit('chinchilla', table.take(~held), FEWER)
  assert alone.held_out is None
  np.testing.assert_array_equal(alone.fit.theta, found.fit.theta)
  out = table.take(held).columns
  left = np.log(alone.predict(out) / out['loss'])
  assert found.held_out.rms == pytest.approx(np.sqrt(np.mean(left**2)))
  assert found.held_out.bias == pytest.approx(np.mean(left))
  frame = found.tables()['held_out_rows']
  assert frame.height == held.sum()
  for kind, covered in (
    ('mean', found.held_out.covered),
    ('run', found.held_out.covered_run),
  ):
    lo, hi = alone.predict_interval(out, kind)
    inside = (lo <= out['loss']) & (out['loss'] <= hi)
    assert covered == pytest.approx(inside.mean())
    np.testing.assert_array_equal(frame[f'{kind}_lo'], lo)
  assert found.tables()['held_out']['rows'].to_list() == [held.sum()]
  with pytest.raises(errors.UserError, match='no row meets it'):
    inference.fit('chinchilla', table, FEWER, hold_out=['budget>1e20'])


def test_held_out_rows_off_the_law_are_a_flag(make):
  table = make('chinchilla', noise=0.002)
  off = table.columns['budget'] > 1e12
  table.columns['loss'][off] *= 1.05
  options = inference.Options(starts=32, resamples=200, profiles='none')
  found = inference.fit('chinchilla', table, options, hold_out=['budget>1e12'])
  assert found.held_out.covered_run < 0.5
  assert any('prediction intervals of a run' in flag for flag in found.flags)


def on_a_line(rows=24):
  columns = points.columns(rows)
  columns['tokens'] = 20 * columns['params']
  columns['loss'] = 1.7 + 400 / columns['params'] ** 0.33
  columns['loss'] += 900 / columns['tokens'] ** 0.36
  rng = np.random.default_rng(1)
  columns['loss'] *= np.exp(0.001 * rng.standard_normal(rows))
  return points.table(columns)


def test_a_law_of_rows_on_a_line_is_known_on_the_line_only(tmp_path):
  options = dataclasses.replace(FEWER, profiles='all')
  found = inference.fit(
    'chinchilla', on_a_line(), options, hold_out=['params>5e8']
  )
  assert set(found.profiles) == {'E'}
  for name in ('A', 'B', 'alpha', 'beta'):
    assert not found.identified[name]
    assert found.interval(name).lo is None and found.interval(name).hi is None
    assert found.bootstrap.intervals[name].lo is None
  assert found.bootstrap.intervals['E'].bounded
  for name, derived in found.derived.items():
    assert derived.lo is None and derived.hi is None, name
  assert not any(
    family.optimum.params.shape[0] > 1 for family in law_plots.families(found)
  )
  at = {'N': np.full(3, 1e8), 'D': [2e9, 2.1e9, 1e9]}
  found.save(tmp_path / 'fit.json')
  for law in (found, fit_record.load(tmp_path / 'fit.json')):
    for kind in prediction.KINDS:
      lo, hi = law.predict_interval(at, kind)
      assert (np.isfinite(lo) == [True, False, False]).all()
      assert (np.isfinite(hi) == np.isfinite(lo)).all()
  assert found.held_out.unknown == 0  # They lie on the line too.


def test_the_line_of_rounded_counts_goes_on():
  table = on_a_line()
  table.columns['D'] = np.array([float(f'{d:.3g}') for d in table.columns['D']])
  span = inference.fit('chinchilla', table, FEWER).fit.span
  n = np.array([1e3, 1e8, 1e13])
  assert span.holds({'N': n, 'D': 20 * n}).all()
  assert not span.holds({'N': n, 'D': 22 * n}).any()


def test_held_out_rows_off_the_line_are_counted(tmp_path):
  table = on_a_line()
  far = table.columns['N'] > 5e8
  table.columns['D'][far] *= 2
  found = inference.fit('chinchilla', table, FEWER, hold_out=['params>5e8'])
  assert found.held_out.unknown == found.held_out.rows == far.sum()
  assert found.held_out.covered is None and found.held_out.covered_run is None
  found.save(tmp_path / 'fit.json')
  assert (
    fit_record.load(tmp_path / 'fit.json').record.held_out == found.held_out
  )
  assert any(
    flag.endswith(f'outside of what the fitted rows span: {far.sum()}')
    for flag in found.flags
  )


def test_held_out_rows_without_resamples_have_no_coverage(make):
  options = dataclasses.replace(FEWER, resamples=0)
  table = make('chinchilla', noise=0.01)
  middle = f'params>{np.median(table.columns["N"])}'
  found = inference.fit('chinchilla', table, options, hold_out=[middle])
  assert found.held_out.covered is None and found.held_out.covered_run is None
  assert not found.held_out.unknown and not found.held_out.flags(0.95)


@pytest.mark.parametrize('name', ('alpha', 'B'))
def test_a_given_constant_of_one_column_gives_intervals_off_the_line(name):
  value = {'alpha': 0.33, 'B': 900.0}[name]
  options = dataclasses.replace(FEWER, fixed={name: value})
  found = inference.fit('chinchilla', on_a_line(), options)
  assert not found.fit.span.confounded and not len(found.fit.span.missing)
  lo, hi = found.predict_interval({'N': 1e8, 'D': 1e10})
  assert np.isfinite(lo) and np.isfinite(hi)


def test_a_given_constant_of_all_columns_gives_none(make):
  table = make('familial_total', noise=0.001)
  table.columns['D'] = 20 * table.columns['N']
  options = dataclasses.replace(FEWER, fixed={'gamma': 0.05})
  span = inference.fit('familial_total', table, options).fit.span
  assert span.lacks('N', 'D') and not span.lacks('G')
  assert {'alpha', 'beta'} <= set(span.confounded)


def test_a_line_of_half_a_per_cent_is_a_line():
  table = on_a_line()
  rng = np.random.default_rng(0)
  table.columns['D'] *= np.exp(rng.uniform(-0.005, 0.005, table.rows))
  span = inference.fit('chinchilla', table, FEWER).fit.span
  assert span.lacks('N') and span.lacks('D')
  assert span.holds(table.columns).all()
  assert not span.holds({'N': 1e8, 'D': 2.5e9})


def test_columns_of_one_value_do_not_confound_those_of_a_line():
  table = on_a_line()
  rng = np.random.default_rng(0)
  exits = 2.0 ** rng.integers(0, 3, table.rows)
  spread = np.exp(rng.uniform(-1, 1, table.rows))
  spans = []
  for of_line, of_exits in ((True, True), (True, False), (False, True)):
    columns = {**table.columns, 'G': np.full(table.rows, 2.0)}
    if not of_line:
      columns['D'] = columns['D'] * spread
    if not of_exits:
      columns['G'] = exits
    changed = dataclasses.replace(table, columns=columns)
    spans.append(inference.fit('familial_total', changed, FEWER).fit.span)
  both, line, one = spans
  assert both.confounded == line.confounded and not one.confounded
  assert len(both.missing) == len(line.missing) + len(one.missing) == 2
  assert one.lacks('G') and not one.lacks('N', 'D')


@pytest.mark.parametrize('shape', ((), (1,), (3,), (2, 3), (0,)))
def test_intervals_have_the_shape_of_the_columns(make, tmp_path, shape):
  found = inference.fit('chinchilla', make('chinchilla', noise=0.01), FEWER)
  found.save(tmp_path / 'fit.json')
  at = {'N': np.full(shape, 1e8), 'D': 2e9}
  expected, _ = found.predict_interval({'N': [1e8], 'D': [2e9]})
  for law in (found, fit_record.load(tmp_path / 'fit.json')):
    lo, hi = law.predict_interval(at)
    assert np.shape(law.predict(at)) == lo.shape == hi.shape == shape
    np.testing.assert_allclose(lo, np.full(shape, expected[0]), rtol=1e-12)
  with pytest.raises(errors.UserError, match='one shape'):
    found.predict({'N': [1e8, 1e9], 'D': [1e9, 2e9, 3e9]})


def test_a_law_of_one_count_of_exits_is_known_at_that_count_only(make):
  table = make('familial_total', noise=0.003)
  table.columns['G'][:] = 2.0
  found = inference.fit('familial_total', table, FEWER)
  at = {'N': [1e6, 1e6], 'D': [1e8, 1e8], 'G': [2, 4]}
  lo, _ = found.predict_interval(at)
  assert np.isfinite(lo[0]) and np.isnan(lo[1])
  assert not found.fit.span.lacks('N', 'D') and found.fit.span.lacks('G')


def test_a_law_read_back_predicts_as_the_fresh_one(make, tmp_path):
  options = dataclasses.replace(FEWER, resamples=50)
  found = inference.fit('chinchilla', make('chinchilla', noise=0.01), options)
  found.save(tmp_path / 'fit.json')
  law = fit_record.load(tmp_path / 'fit.json')
  at = {'N': np.array([1e5, 1e9]), 'D': np.array([1e6, 1e11])}
  np.testing.assert_array_equal(law.predict(at), found.predict(at))
  for kind in ('mean', 'run'):
    np.testing.assert_allclose(
      law.predict_interval(at, kind),
      found.predict_interval(at, kind),
      rtol=1e-12,
    )
  values = read(tmp_path / 'fit.json')
  del values['residual_scale']  # As earlier versions wrote it.
  np.savez(tmp_path / fit_record.SAMPLES, **found.bootstrap.samples)
  (tmp_path / 'fit.json').write_text(json.dumps(values))
  earlier = fit_record.load(tmp_path / 'fit.json')
  np.testing.assert_allclose(
    earlier.predict_interval(at), found.predict_interval(at), rtol=1e-12
  )
  with pytest.raises(errors.UserError, match='those of a run'):
    earlier.predict_interval(at, 'run')


def test_constants_that_are_fixed(make):
  """In the fit, in every resample, and in folds of the selection."""
  table = make('chinchilla', noise=0.005)
  options = dataclasses.replace(
    FEWER, profiles='all', fixed={'E': 1.2, 'alpha': 0.33}
  )
  found = inference.fit('chinchilla', table, options)
  assert found.fit.params['E'] == pytest.approx(1.2, rel=1e-12)
  assert found.fit.params['alpha'] == 0.33
  assert set(found.profiles) == {'A', 'B', 'beta'}
  for name, value in options.fixed.items():
    np.testing.assert_allclose(found.bootstrap.samples[name], value, rtol=1e-12)
  assert found.fit.fixed.keys() == options.fixed.keys()
  zero = dataclasses.replace(options, fixed={'E': 0.0})
  without = inference.fit('chinchilla', table, zero)
  assert without.fit.params['E'] == 0 and 'E may be 0' not in without.flags
  for fixed, said in (
    ({'E': -1.0}, 'E=-1 is outside its range'),
    ({'gamma': 0.1}, "no parameter 'gamma'"),
    (dict.fromkeys(found.fit.form.names, 1.0), 'every constant'),
  ):
    with pytest.raises(errors.UserError, match=said):
      inference.fit('chinchilla', table, inference.Options(fixed=fixed))


def test_forms_fix_the_constants_that_they_have(make, tmp_path):
  options = dataclasses.replace(FEWER, fixed={'gamma': 0.03})
  names = ['familial_total', 'chinchilla']
  fits = selections.compare(make(noise=0.005), names, tmp_path, options)
  counts = {c.form: c.parameters for c in fits.selection.candidates}
  assert counts == {'familial_total': 5, 'chinchilla': 5}
  wrong = dataclasses.replace(FEWER, fixed={'gama': 0.03})
  with pytest.raises(errors.UserError, match="did you mean 'gamma'"):
    selections.compare(make(noise=0.005), names, tmp_path, wrong)


def test_without_resamples_intervals_are_those_of_the_profiles(make):
  options = inference.Options(starts=32, resamples=0)
  found = inference.fit('chinchilla', make('chinchilla', noise=0.01), options)
  assert all(found.identified.values())
  for name, profile in found.profiles.items():
    ends = found.interval(name)
    assert (ends.lo, ends.hi) == (profile.lo, profile.hi)
  assert np.isnan(found.predict_interval({'N': [1e6], 'D': [1e8]})).all()
  neither = dataclasses.replace(options, profiles='none')
  assert not inference.fit('chinchilla', found.table, neither).profiles


def test_data_without_noise_are_no_alarm(make):
  """Residuals of rounding, and of the size of a table's last digits."""
  for noise in (0.0, 1e-12, 1e-9):
    found = inference.fit('chinchilla', make('chinchilla', noise=noise), FEW)
    assert found.flags == () and found.bootstrap.failed <= 2, noise
    assert all(found.identified.values())


def test_a_better_optimum_that_is_found_later_becomes_the_fit(dense):
  best, table = dense.fit, dense.table
  problem = best.problem(table, np.ones((1, 36)))
  worse = best.theta + 0.1
  stuck = dataclasses.replace(
    best,
    theta=worse,
    objective=problem.objective(worse[None], np.zeros(1, int))[0],
  )
  near = best.theta + 0.01 * np.array([[1, 1, -1, 1, 1], [1, -1, 1, 1, -1]])
  found = estimation.improved(stuck, table, near)
  assert found.objective == pytest.approx(best.objective, rel=1e-9)
  np.testing.assert_allclose(found.theta, best.theta, rtol=1e-5)
  assert found.basin_hit_rate == 0.0
  np.testing.assert_array_equal(found.others[0], worse)
  assert estimation.improved(best, table, near) is best


def test_intervals_of_predictions_are_those_of_the_samples(dense):
  at = {'N': np.array([1e5, 1e9]), 'D': np.array([1e6, 1e11])}
  s = dense.bootstrap.samples
  losses = np.stack(
    [
      s['E'] + s['A'] / n ** s['alpha'] + s['B'] / d ** s['beta']
      for n, d in zip(at['N'], at['D'], strict=True)
    ]
  )
  lo, hi = dense.predict_interval(at)
  tail = stats.norm.sf(stats.t.ppf(0.975, 36 - 5))
  np.testing.assert_allclose(lo, np.quantile(losses, tail, axis=1))
  np.testing.assert_allclose(hi, np.quantile(losses, 1 - tail, axis=1))
  widths = [
    np.subtract(*dense.predict_interval(dense.table.columns, kind)).mean()
    for kind in ('run', 'mean')
  ]
  assert widths[0] < 1.5 * widths[1] < 0  # Low end - high end.
  assert ((lo <= dense.predict(at)) & (dense.predict(at) <= hi)).all()


def test_derived_intervals_are_those_of_the_samples(make):
  table = make('chinchilla', noise=0.01)
  without = {k: v for k, v in table.columns.items() if k != 'C'}
  table = dataclasses.replace(table, columns=without)  # so that C = 6 N D
  options = dataclasses.replace(FEW, compute=(1e12, 1e15), profiles='some')
  found = inference.fit('chinchilla', table, options)

  for compute in options.compute:
    at = f'(C={compute:.4g})'
    n, d = points.closed_form(found.bootstrap.samples, compute)
    best, tokens = points.closed_form(found.fit.params, compute)
    for name, value, samples in (
      ('N_opt', best, n),
      ('D_opt', tokens, d),
      ('tokens_per_param', tokens / best, d / n),
    ):
      derived = found.derived[name + at]
      assert derived.value == pytest.approx(value, rel=1e-6)
      ends = np.quantile(samples, [0.025, 0.975])
      np.testing.assert_allclose([derived.lo, derived.hi], ends, rtol=1e-6)
      assert derived.sd == pytest.approx(np.std(samples, ddof=1), rel=1e-6)
    a, b = found.derived['a' + at], found.derived['b' + at]
    assert a.value + b.value == pytest.approx(1, rel=1e-9)
    assert a.lo == pytest.approx(1 - b.hi, rel=1e-6)


def test_resamples_and_open_profiles_decide_what_is_identified(dense):
  found = dense
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
  assert [n for n, known in scattered.identified.items() if not known] == [
    'alpha'
  ]
  assert 'alpha not identified by the resamples' in scattered.flags
  flat = dataclasses.replace(found.profiles['beta'], lo=None, hi=None)
  half = dataclasses.replace(found.profiles['E'], lo=None)
  opened = dataclasses.replace(
    found, profiles={**found.profiles, 'beta': flat, 'E': half}
  )
  assert not opened.identified['beta'] and opened.identified['E']
  spread, ends = found.bootstrap.intervals['E'], opened.interval('E')
  assert (ends.value, ends.lo, ends.hi) == (spread.value, None, spread.hi)


def test_without_a_resample_nothing_is_identified(dense):
  nan = fit_record.Resampled(np.nan, np.nan, np.nan, np.nan)
  empty = dataclasses.replace(
    dense.bootstrap,
    intervals=dict.fromkeys(dense.fit.form.names, nan),
    samples={n: np.zeros(0) for n in dense.fit.form.names},
    failed=100,
  )
  without = dataclasses.replace(dense, bootstrap=empty)
  assert not any(without.identified.values())
  assert 'alpha not identified by the resamples' in without.flags
  lo, hi = without.predict_interval(dense.table.columns)
  assert np.isnan(lo).all() and np.isnan(hi).all() and lo.shape == (36,)
  assert without.tables()['resamples'].height == 0


def test_tables_hold_the_results_numbers(dense):
  frames = dense.tables()
  constants = {row['name']: row for row in frames['constants'].to_dicts()}
  assert set(constants) == set(dense.fit.params)
  for name, row in constants.items():
    ends, profile = dense.interval(name), dense.profiles[name]
    assert (row['value'], row['lo'], row['hi']) == (
      ends.value, ends.lo, ends.hi,
    )  # fmt: skip
    assert (row['profile_lo'], row['profile_hi']) == (profile.lo, profile.hi)
    assert row['identified'] == dense.identified[name]
  rows = frames['rows']
  np.testing.assert_array_equal(
    rows['prediction'], dense.predict(dense.table.columns)
  )
  np.testing.assert_allclose(
    rows['residual'], np.log(rows['loss'] / rows['prediction'])
  )
  assert frames['profiles'].height == sum(
    len(p.values) for p in dense.profiles.values()
  )
  np.testing.assert_array_equal(
    frames['resamples']['alpha'], dense.bootstrap.samples['alpha']
  )
  assert set(frames['derived']['name']) == set(dense.derived)
  assert frames['held_out'].is_empty()


def test_without_rows_of_high_loss_what_bends_a_law_is_gone(make):
  form, table = forms.get('power_of_compute'), make('power_of_compute')
  loss = table.columns['loss']
  highest = np.argsort(loss)[-5:]
  bent = loss.copy()
  bent[highest] *= np.linspace(1.2, 1.6, 5)
  table.columns['loss'] = bent
  options = dataclasses.replace(FEWER, delta=np.inf)
  scan = sensitivity.scan(form, table, [0, 5], options)
  whole, cut = scan.cutoffs
  assert (whole.dropped, whole.rows, whole.below) == (0, 36, bent.max())
  plain = inference.fit(form, table, options)
  assert whole.params == {name: plain.interval(name) for name in form.names}
  assert cut.rows == 31 and cut.below <= loss.max()
  assert cut.params['alpha'].value == pytest.approx(0.33, abs=1e-5)
  assert abs(whole.params['alpha'].value - 0.33) > 0.05
  with pytest.raises(
    errors.UserError, match='drop_highest=36: allowed is 0 to'
  ):
    sensitivity.scan(form, table, [36], options)


def test_a_held_constant_counts_in_the_aic(make):
  form, table = forms.get('chinchilla'), make('chinchilla', noise=0.01)
  free = inference.fit(form, table, FEWER)
  values = [free.fit.params['E'], 0.5]
  at_optimum, far = sensitivity.hold(form, table, 'E', values, FEWER)
  assert at_optimum.objective == pytest.approx(free.fit.objective, rel=1e-9)
  assert at_optimum.aic == pytest.approx(free.fit.aic, abs=1e-6)
  assert (far.value, far.params['E']) == (0.5, 0.5)
  assert far.objective > at_optimum.objective and far.aic > at_optimum.aic
