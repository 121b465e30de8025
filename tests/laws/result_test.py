import json

import numpy as np
import pytest

from familial import errors
from familial.laws import leverage
from familial.laws import result as results

KEYS = set(
  'form equation loss_definition table rows dropped params objective delta starts'
  ' asymmetry followed basin_hit_rate converged condition_number identified flags bootstrap level'
  ' bootstrap_unit resamples resamples_failed sd profile derived held_out aic bic seed seconds backend'
  ' versions'.split()
)
FEW = results.Options(starts=32, resamples=100)


def read(path):
  def refuse(constant):
    raise AssertionError(f'{constant} in JSON')

  return json.loads(path.read_text(), parse_constant=refuse)


def test_one_form(make, tmp_path):
  table = make(noise=0.005)
  line = results.run(table, ['familial_total'], tmp_path, FEW)
  record = read(tmp_path / 'fit.json')
  assert set(record) == KEYS
  assert set(record['params']) == {'E', 'A', 'B', 'alpha', 'beta', 'gamma'}
  assert set(record['bootstrap']['gamma']) == {'sd', 'lo', 'hi'}
  assert set(record['table']) == {'path', 'sha256', 'columns', 'filters'}
  assert set(record['seconds']) == {'compile', 'starts', 'bootstrap'}
  assert 0.0 in record['profile']['gamma']['values']
  assert record['derived']['2^gamma']['value'] == pytest.approx(
    2 ** record['params']['gamma']
  )
  spread = record['bootstrap']['gamma']
  assert (
    f'gamma {record["params"]["gamma"]:.4g}'
    f' [{spread["lo"]:.4g}, {spread["hi"]:.4g}]'
  ) in line
  assert 'flags: none' in line
  assert '\n' not in line
  law = results.load(tmp_path / 'fit.json')
  left = np.log(law.predict(table.columns) / table.columns['loss'])
  assert np.abs(left).max() < 0.03
  assert len(law.samples['gamma']) == 100
  assert not [
    p for p in tmp_path.iterdir() if p.suffix not in ('.json', '.npz')
  ]


def test_several_forms(make, tmp_path):
  forms = ['familial_total', 'dense_null']
  line = results.run(make(noise=0.005), forms, tmp_path, FEW)
  assert not (tmp_path / 'fit.json').exists()
  for form in forms:
    assert read(tmp_path / form / 'fit.json')['form'] == form
  selection = read(tmp_path / 'selection.json')
  assert selection['by_aic'] == 'familial_total'
  assert line.startswith('preferred: familial_total')
  assert line.endswith('selection.json')


def test_flags_and_open_intervals_reach_file_and_line(make, tmp_path):
  table = make(noise=0.005, G=np.full(36, 2.0))
  line = results.run(table, ['familial_total'], tmp_path, FEW)
  record = read(tmp_path / 'fit.json')
  assert record['profile']['gamma']['lo'] is None
  assert record['condition_number'] is None  # infinite
  assert not record['identified']['gamma']
  for flag in record['flags']:
    assert flag in line
  assert 'gamma not identified' in record['flags']
  assert ' [-inf, inf], E ' in line


def test_leverage_of_rows_takes_the_saved_law(make, rows, tmp_path):
  results.run(make(noise=0.005), ['chinchilla'], tmp_path, FEW)
  law = results.load(tmp_path / 'fit.json')
  [record] = leverage.of_rows(law, rows)
  assert (record['run'], record['exits'], record['budget']) == ('a', 2, 600.0)
  assert record['lo'] is None or record['lo'] <= (record['leverage'] or np.inf)


def test_bad_input(make, tmp_path):
  with pytest.raises(errors.UserError, match="did you mean 'familial_total'"):
    results.run(make(), ['familial_totl'], tmp_path)
  with pytest.raises(errors.UserError, match='no form'):
    results.run(make(), [], tmp_path)
  with pytest.raises(errors.UserError, match='cannot read'):
    results.load(tmp_path / 'fit.json')
  (tmp_path / 'fit.json').write_text('{}')
  with pytest.raises(errors.UserError, match=r'no fit\.json'):
    results.load(tmp_path / 'fit.json')
