import json

import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from familial.core import errors
from familial.laws import table as tables


def by_run(table, column):
  return dict(zip(table.run.tolist(), table.columns[column], strict=True))


def test_final_loss_of_the_last_evaluation(rows):
  table = tables.from_rows(rows)
  assert by_run(table, 'loss') == {'a': 2.0, 'b': 2.5}
  assert by_run(table, 'N') == {'a': 100.0, 'b': 50.0}
  assert by_run(table, 'D') == {'a': 60.0, 'b': 60.0}
  assert by_run(table, 'G') == {'a': 2.0, 'b': 1.0}
  assert by_run(table, 'C') == {'a': 600.0, 'b': 600.0}
  assert table.unit == 'row'
  assert table.dropped == 3


def test_exit_loss_takes_the_exits_own_size_and_dense_tokens(rows):
  table = tables.from_rows(rows, 'exit')
  assert table.run.tolist() == ['a', 'a', 'b']
  c = table.columns
  np.testing.assert_array_equal(c['loss'], [3.0, 2.0, 2.5])
  np.testing.assert_array_equal(c['N'], [50.0, 100.0, 50.0])
  np.testing.assert_array_equal(c['D'], [120.0, 60.0, 60.0])
  np.testing.assert_array_equal(c['upstream'], [0, 1, 0])
  np.testing.assert_array_equal(c['downstream'], [1, 0, 0])
  np.testing.assert_array_equal(c['flops_per_token'], [5.0, 10.0, 10.0])
  assert table.unit == 'run'
  np.testing.assert_array_equal(table.clusters, [0, 0, 1])


def test_rows_of_another_version_are_refused(rows, tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(''.join(json.dumps({**r, 'schema': 99}) + '\n' for r in rows))
  for read in (path, tmp_path):
    with pytest.raises(errors.UserError, match='schema 99 is not 1, the one'):
      tables.read(read)


def test_runs_that_say_nothing_are_left_out(rows):
  unfinished = [r for r in rows if r['run'] == 'b' or r['step'] < 6]
  assert tables.from_rows(unfinished).run.tolist() == ['b']
  half = [r for r in rows if (r['run'], r['step'], r['exit']) != ('a', 6, 2)]
  assert tables.from_rows(half).run.tolist() == ['b']
  diverged = [*rows, {**rows[3], 'step': 7, 'status': 'diverged', 'loss': None}]
  assert tables.from_rows(diverged).run.tolist() == ['b']
  assert tables.from_rows(diverged, rows_used='all').run.tolist() == ['b', 'b']


def test_an_evaluation_written_twice_counts_once(rows):
  twice = [*rows, {**rows[5], 'loss': 2.6}]
  assert by_run(tables.from_rows(twice), 'loss') == {'a': 2.0, 'b': 2.6}


def test_corpora_do_not_mix(rows):
  mixed = [{**r, 'corpus': r['run']} for r in rows]
  with pytest.raises(errors.UserError, match=r'2 corpora \(a, b\)'):
    tables.from_rows(mixed)
  assert tables.from_rows(mixed, mix_corpora=True).rows == 2


def test_row_order_is_kept_out_of_the_result(rows):
  forward, backward = tables.from_rows(rows), tables.from_rows(rows[::-1])
  assert by_run(forward, 'loss') == by_run(backward, 'loss')


def test_reads_a_folder_of_runs(rows, tmp_path):
  for run in 'ab':
    folder = tmp_path / 'cells' / run
    folder.mkdir(parents=True)
    lines = [json.dumps(r) for r in rows if r['run'] == run]
    # The second process is writing its next line just now.
    (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n{"run": "b"')
  table = tables.read(tmp_path, loss='mean')
  assert by_run(table, 'loss') == {'cells/a': 2.5, 'cells/b': 2.5}
  assert len(table.sha256) == 64
  one = tables.read(tmp_path / 'cells' / 'a' / 'metrics.jsonl')
  assert by_run(one, 'loss') == {'a': 2.0}


def test_studies_below_one_folder_keep_their_cells_of_one_name(rows, tmp_path):
  for study, loss in (('s0', 2.0), ('s1', 3.0)):
    folder = tmp_path / study / 'cells' / 'a'
    folder.mkdir(parents=True)
    lines = [json.dumps({**r, 'loss': loss}) for r in rows if r['run'] == 'a']
    (folder / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
  table = tables.read(tmp_path)
  assert by_run(table, 'loss') == {'s0/cells/a': 2.0, 's1/cells/a': 3.0}


def write_csv(path, *lines):
  path.write_text('\n'.join(lines) + '\n')
  return path


def test_reads_csv_by_a_mapping(tmp_path):
  path = write_csv(
    tmp_path / 'points.csv',
    'Model Size,Training FLOP,loss,group',
    '100,6000,3.5,x',
    '200,6000,3.0,x',
    '400,6000,9.0,y',
  )
  mapping = {'params': 'Model Size', 'flops': 'Training FLOP', 'run': 'group'}
  table = tables.read(path, mapping)
  np.testing.assert_allclose(table.columns['D'], [10.0, 5.0, 2.5])
  assert table.filters == {'tokens': 'flops / (6 params)'}
  assert table.unit == 'run'
  kept = tables.read(path, mapping).drop_highest(1)
  np.testing.assert_array_equal(kept.columns['loss'], [3.5, 3.0])
  assert (kept.dropped, kept.filters['drop_highest']) == (1, 1)


def test_bad_paths_and_options(tmp_path, rows):
  with pytest.raises(errors.UserError, match='does not exist'):
    tables.read(tmp_path / 'none.csv')
  with pytest.raises(errors.UserError, match=r'no metrics\.jsonl'):
    tables.read(tmp_path)
  with pytest.raises(errors.UserError, match=r'allowed are \.csv'):
    tables.read(write_csv(tmp_path / 'points.txt', 'N'))
  (tmp_path / 'points.jsonl').write_text('{"N": 1\n{"N": 2}\n')
  with pytest.raises(errors.UserError, match='line 1 is not JSON'):
    tables.read(tmp_path / 'points.jsonl')
  with pytest.raises(errors.UserError, match="did you mean 'final'"):
    tables.from_rows(rows, 'finale')
  with pytest.raises(errors.UserError, match="no 'tokens_dense'"):
    short = [{k: v for k, v in r.items() if k != 'tokens_dense'} for r in rows]
    tables.from_rows(short, 'exit')
  with pytest.raises(errors.UserError, match='no row is left'):
    tables.from_rows([])
  with pytest.raises(errors.UserError, match='drop_highest=2'):
    tables.from_rows(rows).drop_highest(2)


def test_reads_parquet(tmp_path):
  path = tmp_path / 'points.PARQUET'
  columns = {'Size': [1, 2, 4], 'D': [3.5, 2.5, 1.5], 'loss': [6.0, 5.0, 4.0]}
  parquet.write_table(pyarrow.table(columns), path)
  table = tables.read(path, {'params': 'Size'})
  np.testing.assert_array_equal(table.columns['N'], [1, 2, 4])
  np.testing.assert_array_equal(table.columns['D'], [3.5, 2.5, 1.5])
  assert table.columns['N'].dtype == np.float64
  assert table.mapping == {'params': 'Size', 'tokens': 'D', 'loss': 'loss'}
  as_csv = write_csv(
    tmp_path / 'points.csv', 'Size,D,loss', '1,3.5,6', '2,2.5,5', '4,1.5,4'
  )
  for name, values in tables.read(as_csv, {'N': 'Size'}).columns.items():
    np.testing.assert_array_equal(values, table.columns[name])


CLUSTERED = (
  'N,D,loss,model,run,budget', '1,2,3,a,x,5', '2,3,4,b,x,6', '3,4,5,a,y,5',
)  # fmt: skip


@pytest.mark.parametrize(
  ('cluster', 'groups', 'unit'),
  [
    ('run', [0, 0, 1], 'run'),
    ('row', [0, 1, 2], 'row'),
    ('model', [0, 1, 0], 'run'),  # a column of the file, in words
    ('budget', [0, 1, 0], 'run'),  # one of ours
    ('tokens', [0, 1, 2], 'row'),  # one of ours, by its long name
  ],
)
def test_cluster_says_what_belongs_together(tmp_path, cluster, groups, unit):
  path = write_csv(tmp_path / 'points.csv', *CLUSTERED)
  table = tables.read(path, cluster=cluster)
  np.testing.assert_array_equal(table.clusters, groups)
  assert table.unit == unit
  expected = {} if cluster == 'run' else {'cluster': cluster}
  assert table.filters == expected
  kept = table.take(np.array([False, True, True]))
  assert kept.rows == 2 and kept.filters == expected


def test_cluster_of_no_column(tmp_path, rows):
  path = write_csv(tmp_path / 'points.csv', *CLUSTERED)
  with pytest.raises(errors.UserError, match="did you mean 'model'"):
    tables.read(path, cluster='modle')
  folder = tmp_path / 'cells'
  folder.mkdir()
  lines = '\n'.join(map(json.dumps, rows))
  (folder / 'metrics.jsonl').write_text(lines + '\n')
  assert tables.read(folder, cluster='G').unit == 'row'
  # The table has as many rows, in an order of its own.
  with pytest.raises(errors.UserError, match="cluster='status'"):
    tables.read(folder, loss='exit', cluster='status')


def test_needs_are_columns_that_a_form_asks_for(tmp_path):
  path = write_csv(tmp_path / 'points.csv', 'N,C,loss,heads', '1,60,3,4')
  plain = tables.read(path)
  assert set(plain.columns) == {'N', 'C', 'D', 'loss'}
  table = tables.read(path, needs=['D', 'heads'])
  assert table.columns['heads'] == [4] and table.columns['D'] == [10]
  other = tables.read(path, {'kv': 'heads'}, needs=['kv'])
  assert other.columns['kv'] == [4]
  with pytest.raises(errors.UserError, match="'kv' is unknown"):
    tables.read(path, {'kv': 'heads'})
  with pytest.raises(errors.UserError, match=r"no column for head .*'heads'"):
    tables.read(path, needs=['head'])
  with pytest.raises(errors.UserError, match='no column for exits'):
    tables.read(path, needs=['N', 'G'])


def test_conditions(rows):
  table = tables.from_rows(rows)
  for condition, kept in (
    ('loss<=2', [True, False]), ('loss < 2', [False, False]),
    (' loss >2', [False, True]), ('exits!=1', [True, False]),
    ('G==1.0', [False, True]), ('params>=1e2', [True, False]),
    ('tokens<inf', [True, True]),
  ):  # fmt: skip
    np.testing.assert_array_equal(table.where(condition), kept)


def test_quotes_and_line_ends(tmp_path):
  path = tmp_path / 'points.csv'
  path.write_bytes(
    b'\xef\xbb\xbfN,"Loss, nats",note\r\n1,2,"two\nlines"\r\n\r\n3,4,\r\n'
  )
  records = tables.read(path, {'loss': 'Loss, nats'})
  np.testing.assert_array_equal(records.columns['loss'], [2, 4])
