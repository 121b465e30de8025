import gzip
import json

import numpy as np
import pytest

from familial.core import errors
from familial.laws import definitions
from familial.laws import parametric
from familial.laws import table as tables
from tests.laws import points


def by_run(table, column):
  return dict(zip(table.run.tolist(), table.columns[column], strict=True))


@pytest.mark.parametrize(
  ('loss', 'run', 'columns'),
  [
    ('final', 'ab', {'loss': [2.0, 2.5], 'N': [100, 50], 'D': [60, 60]}),
    ('mean', 'ab', {'loss': [2.5, 2.5], 'N': [100, 50], 'D': [60, 60]}),
    (
      'exit',
      'aab',
      {
        'loss': [3.0, 2.0, 2.5], 'N': [50, 100, 50], 'D': [120, 60, 60],
        'upstream': [0, 1, 0], 'downstream': [1, 0, 0],
        'flops_per_token': [5, 10, 10],
      },
    ),
  ],
)  # fmt: skip
def test_definitions_of_the_loss(rows, loss, run, columns):
  """By hand, in either order of the rows."""
  shared = {'C': [600.0] * len(run), 'G': [1 + (r == 'a') for r in run]}
  for given in (rows, rows[::-1]):
    table = tables.from_rows(given, loss)
    order = np.lexsort((table.columns['N'], table.run))
    assert ''.join(table.run[order]) == run
    for name, values in {**shared, **columns}.items():
      np.testing.assert_array_equal(table.columns[name][order], values, name)
    assert table.unit == ('run' if loss == 'exit' else 'row')
    assert table.dropped == 6 - len(run) - (loss != 'exit')
  every = tables.from_rows(rows, loss, rows_used='all')
  assert every.rows == 2 * table.rows


@pytest.mark.parametrize(
  'loss, wanted',
  [('final', {'a'}), ('mean', {'a'}), ('exit', {'a', 'b'})],
)
def test_twins_count_for_the_loss_of_each_exit_alone(rows, loss, wanted):
  """A shape at G = 1 alone would be read as a penalty of the other Gs."""
  rows = [{**r, 'arm': 'twin'} if r['run'] == 'b' else r for r in rows]
  table = tables.from_rows(rows, loss)
  assert set(table.run) == wanted
  assert table.filters['arms'] == list(definitions.arms_of(loss))
  assert set(tables.from_rows(rows, loss, arms=('twin',)).run) == {'b'}


@pytest.mark.parametrize(
  ('change', 'options', 'said'),
  [
    ({}, {'rows_used': 'lst'}, "did you mean 'last'"),
    ({'tokens_dense': None}, {'loss': 'exit'}, "no 'tokens_dense'"),
    ({'status': 'diverged'}, {}, 'no row is left'),
  ],
)
def test_rows_that_are_no_table(rows, change, options, said):
  with pytest.raises(errors.UserError, match=said):
    tables.from_rows([{**row, **change} for row in rows], **options)


def test_corpora_do_not_mix_unless_asked(rows):
  mixed = [{**r, 'corpus': r['run']} for r in rows]
  with pytest.raises(errors.UserError, match=r'2 corpora \(a, b\)'):
    tables.from_rows(mixed)
  assert tables.from_rows(mixed, mix_corpora=True).rows == 2


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


def test_reads_parquet(tmp_path):
  path = tmp_path / 'points.PARQUET'
  columns = {'Size': [1, 2, 4], 'D': [3.5, 2.5, 1.5], 'loss': [6.0, 5.0, 4.0]}
  path.write_bytes(points.parquet_bytes(columns))
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
  path = tmp_path / 'metrics.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)) + '\n')
  assert tables.read(tmp_path, cluster='G').unit == 'row'
  # The table has as many rows, in an order of its own.
  with pytest.raises(errors.UserError, match="cluster='status'"):
    tables.read(tmp_path, loss='exit', cluster='status')


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


def dialects():
  """The table of `points.columns` as other programs write it."""
  columns = points.columns(12)
  plain = points.text(columns)
  continental = plain.replace(',', ';').replace('.', ',')
  rows = [
    dict(zip(columns, row, strict=True))
    for row in zip(*(v.tolist() for v in columns.values()), strict=True)
  ]
  return {
    'a.csv': plain.encode(),
    'b.csv': b'\xef\xbb\xbf' + continental.encode(),
    'c.csv': plain.replace(',', '\t').replace('\n', '\r\n').encode(),
    'd.tsv': plain.replace(',', '\t').encode(),
    'e.csv': plain.replace(',', ' | ').encode(),
    'f.csv.gz': gzip.compress(plain.encode()),
    'g.tsv.gz': gzip.compress(plain.replace(',', '\t').encode()),
    'h.jsonl': '\n'.join(map(json.dumps, rows)).encode(),
    'i.json': json.dumps(rows, indent=1).encode(),
    'j.parquet': points.parquet_bytes(columns),
    'k.jsonl.gz': gzip.compress('\n'.join(map(json.dumps, rows)).encode()),
  }


@pytest.mark.parametrize('name', dialects())
def test_files_of_other_programs_hold_the_same_numbers(tmp_path, name):
  path = tmp_path / name
  path.write_bytes(dialects()[name])
  table = tables.read(path)
  for column, values in points.columns(12).items():
    symbol = parametric.SYMBOLS.get(column, column)
    np.testing.assert_array_equal(table.columns[symbol], values)
  assert not table.flags and not table.dropped
  assert ('dialect' in table.filters) == (name[0] in 'bcdeg')


def test_numbers_as_people_write_them(tmp_path):
  path = write_csv(
    tmp_path / 'points.csv',
    'params,tokens,loss',
    '70M,"22,500,000",3.5',
    '1.4B,7.4e9,3',
    '2T, 300k ,2.5',
  )
  table = tables.read(path)
  assert table.columns['N'].tolist() == [70e6, 1.4e9, 2e12]
  assert table.columns['D'].tolist() == [22.5e6, 7.4e9, 3e5]


def test_tabs_go_with_decimal_points(tmp_path):
  path = write_csv(
    tmp_path / 'a.tsv', 'params\tloss', '22,500\t3.245', '70,000\t2.875'
  )
  table = tables.read(path)
  assert table.columns['N'].tolist() == [22500, 70000]
  assert table.columns['loss'].tolist() == [3.245, 2.875]


def test_conditions_take_any_column_and_come_first(tmp_path):
  """Rows that a condition leaves out may hold what they like."""
  path = write_csv(
    tmp_path / 'points.csv',
    'Name,State,step,params,tokens,loss',
    'a,finished,1,1e8,1e9,3',
    'b,crashed,1,1e8,2e9,',
    'c,finished,0,1e8,0,nan',
    'm3,finished,1,1e8,4e9,2',
    'd,finished,1,1e8,3e9,2.5',
  )
  conditions = ('State==finished', 'step>0', 'Name!=m3')
  table = tables.read(path, where=conditions)
  assert table.columns['loss'].tolist() == [3, 2.5]
  assert table.filters == {'where': list(conditions)} and not table.flags
  assert table.dropped == 3
  assert table.where('Name==d').tolist() == [False, True]
  assert table.where('tokens<2e9').tolist() == [True, False]
  for condition in ('Name<b', 'State>=finished'):
    with pytest.raises(errors.UserError, match='is no number'):
      tables.read(path, where=(condition,))


def test_columns_that_a_form_does_not_need_do_not_block_it(tmp_path):
  path = write_csv(
    tmp_path / 'points.csv',
    'depth,budget,C,D,params,tokens,flops,loss',
    'd12,small,x,408,1e8,1e9,6e17,3',
    'd14,small,y,512,1e8,2e9,1.2e18,2.5',
  )
  table = tables.read(path, needs=['N', 'D'])
  assert {'N', 'D', 'C', 'loss'} == set(table.columns)
  assert table.columns['D'].tolist() == [1e9, 2e9]
  assert table.filters == {'unused': ['budget', 'depth']} and not table.dropped
  with pytest.raises(errors.UserError, match=r"'depth' .* is d12 in row 1"):
    tables.read(path, needs=['depth'])
  assert 'depth' not in tables.read(path, {'depth': ''}).mapping


def test_units(tmp_path):
  """Sizes of another unit are a flag, and `units` says which."""
  path = write_csv(
    tmp_path / 'points.csv',
    'params,tokens,flops,loss',
    '0.1,1,6e17,3',
    '0.1,2,1.2e18,2.5',
  )
  flags = tables.read(path).flags
  assert [f.split()[0] for f in flags] == ['params', 'tokens', 'flops']
  table = tables.read(path, units={'params': 1e9, 'tokens': 1e9})
  assert not table.flags
  assert table.columns['N'].tolist() == [1e8, 1e8]
  assert table.filters['units'] == {'params': 1e9, 'tokens': 1e9}
  derived = tables.read(path, {'tokens': ''}).flags
  assert len(derived) == 1 and 'params' in derived[0]


def test_the_last_row_of_each_run(tmp_path):
  path = write_csv(
    tmp_path / 'points.csv',
    'run,params,tokens,loss',
    'a,1e8,2e9,3',
    'b,1e8,1e9,4',
    'a,1e8,1e9,5',
    'b,1e8,1e9,3.5',
  )
  table = tables.read(path).last()
  assert by_run(table, 'loss') == {'a': 3.0, 'b': 3.5}
  assert table.filters['rows'] == 'last' and table.unit == 'row'


def test_numbers_of_either_comma(tmp_path):
  """A comma before three digits is read by what the other cells have."""
  for cells, loss, params in (
    (('3,25', '70,5M'), 3.25, 70.5e6),
    (('3,125', '41,034M'), 3.125, 41.034e6),
    (('3,125', '41.034'), None, None),
    (('3,1255', '41.034'), 3.1255, 41034),
    (('3.125', '41.034M'), 3.125, 41.034e6),
    (('3.25', '41,034'), 3.25, 41034),
    (('3,5', '1.234.567,5'), 3.5, 1234567.5),
    (('3.125', '1,234,567'), 3.125, 1234567),
    ((',5', '7,'), 0.5, 7),
  ):
    path = write_csv(tmp_path / 'a.csv', 'loss;params', ';'.join(cells))
    if loss is None:
      with pytest.raises(
        errors.UserError, match=r"'loss' and 41\.034 in column 'params'"
      ):
        tables.read(path)
      continue
    table = tables.read(path)
    assert table.columns['loss'] == [loss] and table.columns['N'] == [params]


def test_a_line_that_is_cut_off_is_flagged(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(b'\xef\xbb\xbf{"params": 1e6, "loss": 3}\n{"params": 1e')
  [flag] = tables.read(path).flags
  assert 'cut off' in flag
  path.write_bytes(b'\xef\xbb\xbf[{"params": 1e6, "loss": 3}]')
  assert tables.read(path.rename(tmp_path / 'a.json')).flags == ()


def test_a_row_without_a_run_is_a_run_by_itself(tmp_path):
  lines = ['a ,1e8,2e9,3', ',1e8,1e9,4', 'a,1e8,1e9,5', ' ,1e8,1e9,3.5']
  path = write_csv(tmp_path / 'a.csv', 'run,params,tokens,loss', *lines)
  for cluster in ('run', 'Run'):
    table = tables.read(path, cluster=cluster)
    assert table.clusters.tolist() == [0, 1, 0, 2]
    assert table.last().columns['loss'].tolist() == [3, 4, 3.5]
    assert any(flag.startswith('2 of 4 rows') for flag in table.flags)
    path = write_csv(path, 'Run,params,tokens,loss', *lines)
