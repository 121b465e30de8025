"""What is wrong with a table, a form or a flag is one line, or a flag."""

import gzip
import json
import signal
import subprocess

import numpy as np
import pytest

from familial.core import errors
from familial.laws import parametric
from familial.laws import table as tables
from tests.laws import points


def records_of(columns):
  rows = zip(*(map(float, values) for values in columns.values()), strict=True)
  return [dict(zip(columns, row, strict=True)) for row in rows]


@pytest.fixture
def refused(fit):
  def run(*arguments, **options):
    line, record = fit(*arguments, **options)
    assert record is None, line
    return line

  return run


@pytest.fixture
def unread(tmp_path):
  """Returns the line in which a table of a content is refused."""

  def read(content, name='a.csv'):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(errors.UserError) as error:
      tables.read(path, needs=['N', 'D'])
    assert '\n' not in str(error.value)
    return str(error.value)

  return read


GOOD = points.columns(12)
ROWS = records_of(GOOD)
PARQUET = points.parquet_bytes(GOOD)
RUBBISH = np.random.default_rng(0).bytes(500)


def jsonl(*records):
  return ''.join(json.dumps(r) + '\n' for r in records)


@pytest.mark.parametrize(
  ('name', 'content', 'said'),
  [
    ('a.csv', '', 'has no rows'),
    ('a.csv', 'params,tokens,loss\n', 'has no rows'),
    ('a.csv', points.text(GOOD).replace('tokens', 'tokns'), "mean 'tokns'"),
    ('a.csv', points.text(GOOD).replace('params', 'parms'), "mean 'parms'"),
    ('a.csv', points.text(GOOD).replace('loss', 'los'), "mean 'los'"),
    ('a.csv', points.text(GOOD).replace('loss', 'tokens'), "columns 'tokens'"),
    ('a.csv', points.text(GOOD) + '1,000,2,3\n', '4 cells in row 13'),
    ('a.csv', points.text(GOOD) + '"1e8,1e9,3\n', 'not CSV'),
    ('a.csv', points.text(GOOD).replace('loss', 'löss').encode('latin-1'),
     'UTF-8'),
    ('a.csv', points.text(GOOD).encode('utf-16'), 'UTF-8'),
    ('a.csv', RUBBISH, 'UTF-8'),
    ('a.jsonl', RUBBISH, 'not JSON'),
    ('a.parquet', RUBBISH, 'not Parquet'),
    ('a.parquet', b'', 'not Parquet'),
    ('a.parquet', PARQUET[: len(PARQUET) // 2], 'not Parquet'),
    ('a.parquet', PARQUET[:99] + PARQUET[-300:], 'not Parquet'),
    ('a.parquet', points.parquet_bytes({**GOOD, 'loss': [None] * 12}),
     'is None in row'),
    ('a.parquet', points.parquet_bytes({**GOOD, 'loss': [[1.0]] * 12}),
     'is [1.0] in'),
    ('a.parquet', points.parquet_bytes({**GOOD, 'loss': [True] * 12}),
     'is True in row'),
    ('a.jsonl', '', 'has no rows'),
    ('a.jsonl', '[1, 2]\n' * 9, 'line 1 is not a JSON object'),
    ('a.json', '[1, 2]', 'item 1 of the array is not a JSON object'),
    ('a.json', '[{"loss": 1}', 'not JSON'),
    ('a.csv.gz', RUBBISH, 'not a compressed text'),
    ('a.csv.zst', RUBBISH, 'not a compressed text'),
    ('a.csv.gz', gzip.compress(points.text(GOOD).encode())[:-9],
     'not a compressed text'),
    ('a.parquet', PARQUET[:14] + b'\1' + PARQUET[15:], 'not Parquet'),
    ('a.jsonl', b'{"loss": "\xff"}\n{"loss": 1}\n', 'UTF-8'),
    ('a.json', '[{"loss": 1, " loss": 2}]', "several columns 'loss'"),
    ('a.json', '[{"loss": 1, "%s": 2}]' % ('x' * 999), '200 characters'),
    ('a.json', '[{"loss": "a\\nb"}]', 'is a b in row 1'),
    ('a.json', '[{"loss": "%s"}]' % ('x' * 999), 'xxx... in row 1'),
    ('a.csv', 'params,tokens,loss,run\n1e6,1e8,3,' + 'x' * 9999, 'a name of 9999'),
    ('a.csv', 'params;loss\n22,500;3.125\n70,000;2.875\n', "22,500 in column 'params' and 3.125 in column 'loss'"),
    ('a.csv', 'params,tokens,loss\n100,200,"3,125"\n200,300,"2,875"\n', "column 'loss' may"),
    ('a.jsonl', 'params tokens loss', 'line 1 is not JSON'),
    ('a.jsonl', '{}\n{}\n', 'no column loss'),
    ('a.jsonl', '[' * 10**5 + '\n1\n', 'nested too deep'),
    ('a.jsonl', '{"loss": ' + '1' * 5000 + '}\n{}\n', 'too long'),
    ('a.jsonl', jsonl({**ROWS[0], 'params': 10**400}), 'params'),
  ],
)  # fmt: skip
def test_files_that_are_no_table(unread, name, content, said):
  assert said in unread(content, name)


def test_a_reader_killed_for_memory_is_no_damage(unread, monkeypatch):
  killed = subprocess.CompletedProcess([], -signal.SIGKILL, b'', b'')
  monkeypatch.setattr(subprocess, 'run', lambda *a, **k: killed)
  assert 'memory' in unread(PARQUET, 'a.parquet')


def test_folders_without_runs(refused, tmp_path):
  folder = tmp_path / 'runs.csv'  # named like a file
  folder.mkdir()
  assert 'no metrics.jsonl' in refused(folder)
  metrics = folder / 'metrics.jsonl'
  for content, said in (
    (b'', 'no rows'), (b'{"a": 1}\n', 'no column loss'), (RUBBISH, 'not JSON')
  ):  # fmt: skip
    metrics.write_bytes(content)
    assert said in refused(folder)
  assert 'does not exist' in refused(tmp_path / 'none')


BAD = 'nan inf -inf 0 -1 1e31 1e-31 1e400 x - null'.split() + ['']


@pytest.mark.parametrize('column', ['params', 'tokens', 'loss', 'weight'])
def test_rows_without_a_number_are_left_out_and_counted(tmp_path, column):
  columns = {**GOOD, 'weight': np.ones(12)}
  path = tmp_path / 'a.csv'
  for value in BAD:
    for count in (1, 2):  # Two of twelve are more than a tenth.
      spoiled = [*columns[column][:3], *[value] * count]
      spoiled += [*columns[column][3 + count :]]
      path.write_text(points.text({**columns, column: spoiled}))
      table = tables.read(path, needs=['N', 'D'])
      numbers = list(range(4, 4 + count))
      assert table.filters['left_out'] == {column: numbers}
      assert (table.rows, table.dropped) == (12 - count, count)
      kept = np.delete(columns[column], np.array(numbers) - 1)
      symbol = parametric.SYMBOLS.get(column, column)
      np.testing.assert_array_equal(table.columns[symbol], kept)
      left_out = [flag for flag in table.flags if 'left out' in flag]
      assert len(left_out) == (count == 2)


@pytest.mark.parametrize('column', ['params', 'tokens', 'loss', 'weight'])
def test_a_column_without_a_number_names_its_first_row(unread, column):
  for value in BAD:
    line = unread(points.text({**GOOD, column: [value] * 12}))
    assert f"'{column}'" in line and 'in row 1;' in line and 'needed' in line


@pytest.mark.parametrize('value', [None, True, {}, [1.0], 'x', 10**400])
def test_json_cells_that_are_no_number_leave_their_rows_out(tmp_path, value):
  path = tmp_path / 'a.jsonl'
  path.write_text(jsonl(*ROWS, {**ROWS[0], 'loss': value}))
  assert tables.read(path, needs=['N', 'D']).filters['left_out'] == {
    'loss': [13]
  }
  path.write_text(jsonl(*ROWS, {'params': 1.0, 'loss': 2.0}))
  assert tables.read(path, needs=['N', 'D']).filters['left_out'] == {
    'tokens': [13]
  }


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (['--columns=params=params,N=params'], "'params' is mapped twice"),
    (['--columns=params=params', '--columns=tokens=tokn'], "mean 'tokens'"),
    (['--columns=parms=params'], "mean 'params'"),
    (['--compute=1e20,'], "--compute: '1e20,' is not allowed"),
    (['--where=tokens=1'], 'a condition is'),
    (['--where=tokns>1'], "mean 'tokens'"),
    (['--where=tokens>x'], "'x' is no number"),
    (['--where=tokens>nan'], "'nan' is no number"),
    (['--units=params=x'], "--units=params: 'x' is not allowed"),
    (['--units=exits=10'], "units='exits'"),
    (['--loss=mean'], "this project's runs"),
    (['--rows=last'], 'no column run'),
    (['--where=tokens>1e30'], 'no row is left'),
    (['--where=tokens<2e8'], 'more rows'),
    (['--hold_out=tokns>1'], "mean 'tokens'"),
    (['--hold_out=tokens>0'], 'no row is left'),
    (['--hold_out=tokens>1e30'], 'no row meets it'),
    (['--hold_out=tokens>2e8'], 'more rows'),
    (['--cluster=tokns'], "mean 'tokens'"),
    (['--cluster=all'], 'all of one run'),
    (['--drop_highest=38'], 'more rows'),
    (['--delta=0'], 'delta=0'),
    (['--delta=nan'], 'delta=nan'),
    (['--delta=1e300'], 'delta=1e+300'),
    (['--asymmetry=0'], 'asymmetry=0'),
    (['--asymmetry=1e30'], 'asymmetry=1e+30'),
    (['--form='], "form '' is unknown"),
    (['--form=familial_total'], 'no column for exits'),
    (['--form=width*tokens+toknes'], 'no column for width'),
  ],
)
def test_bad_flags(refused, arguments, said):
  columns = {**points.columns(), 'all': np.ones(40)}
  assert said in refused(columns, *arguments)


def test_a_good_table_has_no_flags_and_spaces_are_no_part_of_names(fit):
  good = points.columns()
  spaced = {
    'Model Size': good['params'],
    ' Training FLOP': 6 * good['params'] * good['tokens'],
    'loss ': good['loss'],
  }
  mapping = '--columns= params = Model Size,flops=Training FLOP ,'
  line, record = fit(spaced, mapping)
  assert record['table']['columns']['params'] == 'Model Size'
  assert 'tokens = flops / (6 params)' in line
  line, again = fit(good)
  assert again['flags'] == [] and 'flags: none' in line
  assert all(again['identified'].values())
  assert record['params'] == pytest.approx(again['params'], rel=1e-6)


def test_hardly_more_rows_than_constants_promise_nothing(fit):
  columns = points.columns()
  four = {'flops': columns['params'][:4], 'loss': columns['loss'][:4]}
  line, record = fit(four, form='power_of_compute')
  assert not any(record['identified'].values())
  assert 'resamples failed' in line and 'too narrow: only 4 runs' in line
  assert 'alpha not identified by the resamples' in record['flags']


def test_rows_at_few_points_are_refused(refused):
  i = np.arange(40)
  copies = {k: v[i % 4] for k, v in points.columns().items()}
  assert '40 rows are at 4' in refused(copies)
  loss = copies['loss'] * np.exp(0.01 * np.sin(i))  # repeats, not copies
  assert '40 rows are at 4' in refused({**copies, 'loss': loss})


def test_runs_that_are_all_one_or_few(fit, refused):
  columns = points.columns()
  assert 'all of one run' in refused({**columns, 'run': ['a'] * 40})
  halves = ['a'] * 20 + ['b'] * 20
  line, record = fit({**columns, 'half': halves}, '--cluster=half')
  assert 'the intervals are too narrow: only 2 runs' in line
  assert record['bootstrap_unit'] == 'run'
  _, record = fit({**columns, 'run': halves}, '--cluster=row')
  assert record['flags'] == [] and record['bootstrap_unit'] == 'row'


@pytest.mark.parametrize('column', ['params', 'tokens', 'loss'])
@pytest.mark.parametrize('scale', [1e-20, 1e18])
def test_units_as_such_do_no_harm(column, scale):
  columns = points.columns()
  plain = points.law(columns)
  columns[column] = columns[column] * scale
  fit = points.law(columns)
  if fit.flags:  # The starts are of losses in nats.
    assert column == 'loss' and 'basin hit rate 0.0%' in fit.flags
    return
  assert fit.objective == pytest.approx(plain.objective, rel=1e-6)
  for name in ('alpha', 'beta'):
    assert fit.params[name] == pytest.approx(plain.params[name], rel=1e-4)


def test_a_loss_of_one_value_is_flagged(fit):
  _, record = fit({**points.columns(), 'loss': np.full(40, 3.0)})
  assert 'the loss takes one value' in record['flags']
  assert not any(record['identified'][n] for n in ('A', 'B', 'alpha', 'beta'))


def test_a_fit_without_residuals_is_no_alarm(fit):
  columns = points.columns()
  exact = (
    1.7 + 400 / columns['params'] ** 0.33 + 900 / columns['tokens'] ** 0.36
  )
  _, record = fit({**columns, 'loss': exact})
  assert record['flags'] == []
  assert record['params']['alpha'] == pytest.approx(0.33, rel=1e-6)
  assert record['profile']['alpha']['lo'] == pytest.approx(0.33, rel=1e-4)


def test_no_optimum_and_few_resamples_are_flagged(fit):
  line, record = fit(points.columns(), '--compute=1,1e20', '--resamples=2')
  assert '2 resamples are too few for 95% intervals' in line
  assert 'N_opt(C=1) does not exist: the law has no minimum there' in line
  assert record['derived']['N_opt(C=1)']['value'] is None
  assert record['derived']['N_opt(C=1e+20)']['lo'] > 0
