"""Predictions of laws that were read back, and their optima."""

import dataclasses

import numpy as np
import pytest
from scipy import optimize

from familial.core import errors
from familial.laws import fit_record
from familial.laws import forecast
from familial.laws import inference
from tests.laws import points

OPTIONS = inference.Options(starts=32, resamples=100, profiles='none')


def read(folder, form, table, hold_out=('params>3e8',)):
  result = inference.fit(form, table, OPTIONS, hold_out=hold_out)
  path = folder / form / 'fit.json'
  path.parent.mkdir(parents=True)
  result.save(path)
  return fit_record.load(path)


@pytest.fixture(scope='module')
def laws(tmp_path_factory):
  folder = tmp_path_factory.mktemp('laws')
  table = points.table(points.columns())
  return [read(folder, form, table) for form in ('chinchilla', 'kaplan')]


def test_is_the_laws_prediction_with_both_intervals(laws):
  at = {'params': 2e8, 'tokens': 5e9}
  [found] = forecast.at_columns(laws[:1], at)
  assert found.loss.value == pytest.approx(float(laws[0].predict(at)))
  for kind, e in (('mean', found.loss), ('run', found.run)):
    ends = laws[0].predict_interval(at, kind)
    assert (e.lo, e.hi) == pytest.approx(tuple(map(float, ends)))
  assert found.run.hi - found.run.lo > found.loss.hi - found.loss.lo
  assert found.columns == at and found.flops is None


def test_the_optimum_is_the_closed_form(laws):
  found = forecast.at_flops(laws[0], 1e19, {})
  n, d = points.closed_form(laws[0].params, 1e19)
  assert found.params.value == pytest.approx(n, rel=1e-6)
  assert found.tokens.value == pytest.approx(d, rel=1e-6)
  assert found.params.lo < n < found.params.hi
  [there] = forecast.at_columns(
    laws[:1], {'params': found.params.value, 'tokens': found.tokens.value}
  )
  assert (found.loss, found.run) == (there.loss, there.run)


@pytest.mark.parametrize('served', (1e9, 1e11))
def test_the_optimum_with_serving_is_the_lowest_loss_of_the_budget(
  laws, served
):
  flops, law = 1e19, laws[0]

  def loss(log_n):
    n = np.exp(log_n)
    return float(law.predict({'N': n, 'D': (flops / n - 2 * served) / 6}))

  most = np.log(flops / (2 * served))
  best = optimize.minimize_scalar(
    loss, bounds=(most - 15, most - 1e-3), method='bounded',
    options={'xatol': 1e-9},
  )  # fmt: skip
  found = forecast.at_flops(law, flops, {}, serve_tokens=served)
  assert found.loss.value == pytest.approx(best.fun, rel=1e-9)
  assert found.params.value == pytest.approx(np.exp(best.x), rel=1e-3)
  n, d = found.params.value, found.tokens.value
  assert 6 * n * d + 2 * n * served == pytest.approx(flops)
  alone = forecast.at_flops(law, flops, {})
  assert (
    n < alone.params.value and d / n > alone.tokens.value / alone.params.value
  )


def test_the_optimum_counts_flops_as_the_fit_did(make, tmp_path):
  table = make('familial_total', noise=0.003)
  columns = dict(table.columns)
  columns['C'] = columns['C'] * 1.3  # Not 6 N D.
  table = dataclasses.replace(table, columns=columns)
  result = inference.fit('familial_total', table, OPTIONS)
  result.save(tmp_path / 'fit.json')
  law = fit_record.load(tmp_path / 'fit.json')
  [flops] = result.compute
  found = forecast.at_flops(law, flops, {'exits': 2.0})
  of_fit = result.derived[f'N_opt(G = 2, C={flops:.4g})']
  assert found.params.value == pytest.approx(of_fit.value, rel=1e-6)
  assert found.params.lo == pytest.approx(of_fit.lo, rel=1e-6)


def test_an_average_is_weighted_by_held_out_rows(laws):
  at = {'params': 2e8, 'tokens': 5e9}
  *each, mean = forecast.at_columns(laws, at)
  squares = [law.record.held_out.rms**-2 for law in laws]
  assert list(mean.weights.values()) == pytest.approx(
    np.array(squares) / sum(squares)
  )
  logs = [np.log(f.loss.value) for f in each]
  assert np.log(mean.loss.value) == pytest.approx(
    np.average(logs, weights=squares)
  )
  assert min(f.loss.lo for f in each) <= mean.loss.lo < mean.loss.value
  assert mean.loss.value < mean.loss.hi <= max(f.loss.hi for f in each)


def test_an_average_of_one_law_twice_is_refused(laws):
  with pytest.raises(errors.UserError, match='different laws'):
    forecast.at_columns([laws[0], laws[0]], {'params': 2e8, 'tokens': 5e9})


def test_an_average_needs_held_out_rows(laws, tmp_path):
  table = points.table(points.columns())
  bare = read(tmp_path, 'chinchilla', table, hold_out=())
  with pytest.raises(errors.UserError, match='hold_out'):
    forecast.at_columns([bare, laws[1]], {'params': 2e8, 'tokens': 5e9})


@pytest.mark.parametrize(
  ('at', 'named'),
  [
    ({'params': 1e8}, 'tokens is missing'),
    ({'params': -1.0, 'tokens': 1e9}, 'params=-1'),
    ({'params': np.inf, 'tokens': 1e9}, 'params=inf'),
  ],
)
def test_refuses_points_that_are_none(laws, at, named):
  with pytest.raises(errors.UserError, match=named):
    forecast.at_columns(laws[:1], at)


def test_a_law_without_sizes_has_no_optimum(tmp_path):
  columns = points.columns()
  table = points.table(
    {
      'flops': 6 * columns['params'] * columns['tokens'],
      'loss': columns['loss'],
    }
  )
  law = read(tmp_path, 'power_of_compute', table, hold_out=())
  with pytest.raises(errors.UserError, match='has no optimum'):
    forecast.at_flops(law, 1e19, {})


def test_the_command_predicts(familial, laws, tmp_path):
  table = points.table(points.columns())
  read(tmp_path, 'chinchilla', table)
  path = f'--fit={tmp_path / "chinchilla" / "fit.json"}'
  status, out, _ = familial('predict', path, '--at=params=2e8,tokens=5e9')
  [expected] = forecast.at_columns(laws[:1], {'params': 2e8, 'tokens': 5e9})
  assert status == 0 and f'loss {expected.loss.value:.4f}' in out
  status, out, _ = familial('predict', path, '--at=flops=1e19', '--json')
  assert status == 0 and '"params"' in out
  status, _, err = familial(
    'predict', path, '--at=params=2e8,tokens=5e9', '--serve_tokens=1e9'
  )
  assert status == 2 and '--serve_tokens=1e+09' in err
