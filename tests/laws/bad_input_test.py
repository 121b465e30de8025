"""What is wrong with a table, a form or a flag is one line, or a flag."""

import dataclasses
import json
import pathlib
import warnings

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pyarrow
from pyarrow import parquet
import pytest

from familial import errors
from familial import main
from familial.commands import laws as commands
from familial.laws import bootstrap as bootstraps
from familial.laws import estimate
from familial.laws import fitting
from familial.laws import forms
from familial.laws import result as results
from familial.laws import table as tables

FEW = results.Options(starts=16, resamples=50)
GENERATED = hypothesis.settings(
  deadline=None,
  derandomize=True,
  database=None,
  max_examples=10,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


def columns_of(rows=40, seed=0):
  """A table that nothing is wrong with."""
  rng = np.random.default_rng(seed)
  params = rng.permutation(np.geomspace(1e6, 1e9, rows))
  tokens = np.geomspace(1e8, 1e11, rows)
  loss = 1.7 + 400 / params**0.33 + 900 / tokens**0.36
  loss *= np.exp(0.003 * rng.standard_normal(rows))
  return {'params': params, 'tokens': tokens, 'loss': loss}


def text_of(columns):
  rows = zip(*columns.values(), strict=True)
  lines = [','.join(columns), *(','.join(map(str, row)) for row in rows)]
  return '\n'.join(lines) + '\n'


def records_of(columns):
  rows = zip(*(map(float, values) for values in columns.values()), strict=True)
  return [dict(zip(columns, row, strict=True)) for row in rows]


@pytest.fixture
def fit(tmp_path, capsys, monkeypatch):
  """Runs the command on a file's content; returns status, line and fit.json."""
  monkeypatch.setattr('familial.training.compilation.prepare', lambda: None)

  def run(content, *arguments, name='points.csv', form='chinchilla'):
    if isinstance(content, dict):
      content = text_of(content)
    if not isinstance(content, pathlib.Path):
      path = tmp_path / name
      content = content.encode() if isinstance(content, str) else content
      path.write_bytes(content)
      content = path
    out = tmp_path / 'out'
    (out / 'fit.json').unlink(missing_ok=True)
    status = main._main([
      'familial', 'fit', f'--table={content}', f'--out={out}', '--nodraw',
      '--starts=16', '--resamples=50', f'--form={form}', *arguments,
    ])  # fmt: skip
    printed = capsys.readouterr()
    if status == 0:
      return printed.out, json.loads((out / 'fit.json').read_text())
    assert status == 2 and not printed.out
    # Bars of what was under way are wiped by the carriage returns.
    line = printed.err.rpartition('\r')[2]
    assert line.startswith('familial: ') and line.count('\n') == 1
    assert 'Traceback' not in printed.err
    return line, None

  return run


@pytest.fixture
def refused(fit):
  def run(*arguments, **options):
    line, record = fit(*arguments, **options)
    assert record is None, line
    return line

  return run


def test_a_good_table_has_no_flags(fit):
  line, record = fit(columns_of())
  assert record['flags'] == [] and 'flags: none' in line
  assert all(record['identified'].values())


def parquet_of(columns):
  sink = pyarrow.BufferOutputStream()
  parquet.write_table(pyarrow.table(columns), sink)
  return sink.getvalue().to_pybytes()


GOOD = columns_of(12)
ROWS = records_of(GOOD)
PARQUET = parquet_of(GOOD)
RUBBISH = np.random.default_rng(0).bytes(500)


def jsonl(*records):
  return ''.join(json.dumps(r) + '\n' for r in records)


@pytest.mark.parametrize(
  ('name', 'content', 'said'),
  [
    ('a.csv', '', 'has no rows'),
    ('a.csv', '\n\n', 'has no rows'),
    ('a.csv', 'params,tokens,loss\n', 'has no rows'),
    ('a.csv', text_of(GOOD).replace(',', ';'), 'no column loss'),
    ('a.csv', text_of(GOOD).replace('tokens', 'tokns'), "mean 'tokns'"),
    ('a.csv', text_of(GOOD).replace('params', 'parms'), "mean 'parms'"),
    ('a.csv', text_of(GOOD).replace('loss', 'los'), "mean 'los'"),
    ('a.csv', text_of(GOOD).replace('loss', 'tokens'), "columns 'tokens'"),
    ('a.csv', text_of(GOOD) + '1e8,1e9\n', '2 cells in row 13'),
    ('a.csv', text_of(GOOD) + '1,000,2,3\n', '4 cells in row 13'),
    ('a.csv', text_of(GOOD) + '"1e8,1e9,3\n', 'not CSV'),
    ('a.csv', text_of(GOOD).replace('loss', 'löss').encode('latin-1'), 'UTF-8'),
    ('a.csv', text_of(GOOD).encode('utf-16'), 'UTF-8'),
    ('a.csv', RUBBISH, 'UTF-8'),
    ('a.jsonl', RUBBISH, 'not JSON'),
    ('a.parquet', RUBBISH, 'not Parquet'),
    ('a.parquet', b'', 'not Parquet'),
    ('a.parquet', PARQUET[: len(PARQUET) // 2], 'not Parquet'),
    ('a.parquet', PARQUET[:99] + PARQUET[-300:], 'not Parquet'),
    ('a.parquet', parquet_of({**GOOD, 'loss': [None] * 12}), 'is None in row'),
    ('a.parquet', parquet_of({**GOOD, 'loss': [[1.0]] * 12}), 'is [1.0] in'),
    ('a.parquet', parquet_of({**GOOD, 'loss': [True] * 12}), 'is True in row'),
    ('a.jsonl', '', 'has no rows'),
    ('a.jsonl', '[1, 2]\n' * 9, 'line 1 is not a JSON object'),
    ('a.jsonl', '3\n' * 9, 'line 1 is not a JSON object'),
    ('a.json', json.dumps(ROWS), 'one a line is needed'),
    ('a.jsonl', '{}\n{}\n', 'no column loss'),
    ('a.jsonl', '[' * 10**5 + '\n1\n', 'nested too deep'),
    ('a.jsonl', '{"loss": ' + '1' * 5000 + '}\n{}\n', 'too long'),
    ('a.jsonl', jsonl({**ROWS[0], 'params': 10**400}), 'params'),
    ('a.jsonl', jsonl(*ROWS, {'params': 1.0}), "'tokens' of"),
    ('a.jsonl', jsonl(*ROWS, {**ROWS[0], 'loss': np.nan}), 'is nan in row 13'),
    ('a.jsonl', jsonl(*ROWS, {**ROWS[0], 'loss': None}), 'is None in row 13'),
    ('a.jsonl', jsonl(*ROWS, {**ROWS[0], 'loss': True}), 'is True in row 13'),
    ('a.jsonl', jsonl(*ROWS, {**ROWS[0], 'loss': {}}), 'is {} in row 13'),
    ('a.txt', text_of(GOOD), 'allowed are .csv'),
  ],
)  # fmt: skip
def test_files_that_are_no_table(refused, name, content, said):
  assert said in refused(content, name=name)


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


@pytest.mark.parametrize('column', ['params', 'tokens', 'loss', 'weight'])
@pytest.mark.parametrize(
  'value', ['nan', 'inf', '-inf', '0', '-1', '1e31', '1e-31', '1e400', 'x', '']
)
def test_a_bad_number_names_its_column_and_row(refused, column, value):
  columns = {**GOOD, 'weight': np.ones(12)}
  columns[column] = [*columns[column][:3], value, *columns[column][4:]]
  line = refused(columns)
  assert f"'{column}'" in line and 'in row 4' in line and 'needed' in line


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (['--columns=params=a,params=b'], "'params' is mapped twice"),
    (['--columns=params=params,N=params'], "'params' is mapped twice"),
    (['--columns=params=params', '--columns=tokens=tokn'], "mean 'tokens'"),
    (['--columns=params='], "'params=' is not of the form"),
    (['--columns==params'], "'=params' is not of the form"),
    (['--columns=params'], "'params' is not of the form"),
    (['--columns=params=parms'], "mean 'params'"),
    (['--columns=parms=params'], "mean 'params'"),
    (['--compute=x'], "--compute='x'"),
    (['--compute=1e20,'], "--compute='1e20,'"),
    (['--compute=0'], "--compute='0'"),
    (['--compute=nan'], "--compute='nan'"),
    (['--compute=inf'], "--compute='inf'"),
    (['--where='], 'a condition is'),
    (['--where=tokens'], 'a condition is'),
    (['--where=tokens=1'], 'a condition is'),
    (['--where=tokns>1'], "mean 'tokens'"),
    (['--where=tokens>x'], "'x' is no number"),
    (['--where=tokens>nan'], "'nan' is no number"),
    (['--where=tokens>1e30'], 'no row is left'),
    (['--where=tokens<2e8'], 'more rows'),
    (['--hold_out=tokns>1'], "mean 'tokens'"),
    (['--hold_out=tokens>0'], 'no row is left'),
    (['--hold_out=tokens>1e30'], 'no row meets it'),
    (['--hold_out=tokens>2e8'], 'more rows'),
    (['--cluster=tokns'], "mean 'tokens'"),
    (['--cluster='], "cluster=''"),
    (['--cluster=all'], 'all of one run'),
    (['--drop_highest=40'], 'drop_highest=40'),
    (['--drop_highest=38'], 'more rows'),
    (['--delta=0'], 'delta=0'),
    (['--delta=nan'], 'delta=nan'),
    (['--delta=1e300'], 'delta=1e+300'),
    (['--asymmetry=0'], 'asymmetry=0'),
    (['--asymmetry=1e30'], 'asymmetry=1e+30'),
    (['--seed=-1'], '--seed=-1'),
    (['--resamples=1'], '--resamples=1'),
    (['--form=chinchila'], "mean 'chinchilla'"),
    (['--form='], "form '' is unknown"),
    (['--form=familial_total'], 'no column for exits'),
    (['--form=width*tokens+toknes'], 'no column for width'),
    (['--form=none.py'], "no file 'none.py'"),
  ],
)
def test_bad_flags(refused, arguments, said):
  columns = {**columns_of(), 'all': np.ones(40)}
  assert said in refused(columns, *arguments)


def test_spaces_around_names_are_no_part_of_them(fit):
  good = columns_of()
  spaced = {
    'Model Size': good['params'],
    ' Training FLOP': 6 * good['params'] * good['tokens'],
    'loss ': good['loss'],
  }
  mapping = '--columns= params = Model Size,flops=Training FLOP ,'
  line, record = fit(spaced, mapping)
  assert record['table']['columns']['params'] == 'Model Size'
  assert 'tokens = flops / (6 params)' in line
  _, again = fit(good)
  assert record['params'] == pytest.approx(again['params'], rel=1e-6)


def test_spaces_around_names_in_json(tmp_path):
  path = tmp_path / 'points.jsonl'
  path.write_text(jsonl({' params': 1, 'D ': 2, ' loss ': 3}))
  assert set(tables.read(path).columns) == {'N', 'D', 'loss'}


@pytest.mark.parametrize('rows', range(1, 6))
def test_fewer_rows_than_constants(refused, rows):
  few = {k: v[:rows] for k, v in GOOD.items()}
  assert 'more rows than that' in refused(few)


def test_hardly_more_rows_than_constants_promise_nothing(fit):
  columns = columns_of()
  four = {'flops': columns['params'][:4], 'loss': columns['loss'][:4]}
  line, record = fit(four, form='power_of_compute')
  assert not any(record['identified'].values())
  assert 'resamples failed' in line and 'too narrow: only 4 runs' in line
  assert 'alpha not identified by the resamples' in record['flags']


def test_rows_at_few_points_are_refused(refused):
  i = np.arange(40)
  copies = {k: v[i % 4] for k, v in columns_of().items()}
  assert '40 rows are at 4' in refused(copies)
  loss = copies['loss'] * np.exp(0.01 * np.sin(i))  # repeats, not copies
  assert '40 rows are at 4' in refused({**copies, 'loss': loss})


def test_runs_that_are_all_one_or_few(fit, refused):
  columns = columns_of()
  assert 'all of one run' in refused({**columns, 'run': ['a'] * 40})
  halves = ['a'] * 20 + ['b'] * 20
  line, record = fit({**columns, 'half': halves}, '--cluster=half')
  assert 'the intervals are too narrow: only 2 runs' in line
  assert record['bootstrap_unit'] == 'run'
  _, record = fit({**columns, 'run': halves}, '--cluster=row')
  assert record['flags'] == [] and record['bootstrap_unit'] == 'row'


def law_of(columns, form='chinchilla', **options):
  """The fit without a bootstrap, of columns in the literature's names."""
  names = {n: forms.SYMBOLS.get(n, n) for n in columns}
  arrays = {names[n]: np.asarray(v, float) for n, v in columns.items()}
  runs = np.arange(len(arrays['loss'])).astype(str)
  table = tables.Table(arrays, runs)
  return estimate.fit(forms.get(form), table, starts=16, **options)


def test_copies_of_rows_are_flagged_unless_of_one_run():
  i = np.repeat(np.arange(30), 2)
  columns = {k: v[i] for k, v in columns_of(30).items()}
  assert law_of(columns).flags == (
    'rows that are copies of rows of other runs: 30',
  )
  table = tables.Table(
    {'N': columns['params'], 'D': columns['tokens'], 'loss': columns['loss']},
    i.astype(str),
  )
  assert estimate.fit(forms.get('chinchilla'), table, starts=16).flags == ()


@pytest.mark.parametrize(
  ('column', 'value', 'flag'),
  [
    ('params', 1e30, 'column N jumps from 1e+09 to 1e+30'),
    ('params', 1e-30, 'column N jumps from 1e-30 to'),
    ('tokens', 1e30, 'column D jumps from 1e+11 to 1e+30'),
    ('loss', 1e30, 'rows off the law by more than a factor of 2: 1'),
    ('loss', 1e-30, 'rows off the law by more than a factor of 2: 1'),
    ('loss', 250.0, 'rows off the law by more than a factor of 2: 1'),
  ],
)
def test_a_value_of_another_unit_is_flagged(column, value, flag):
  columns = columns_of()
  columns[column][3] = value
  assert any(f.startswith(flag) for f in law_of(columns).flags)


@pytest.mark.parametrize('column', ['params', 'tokens', 'loss'])
@pytest.mark.parametrize('scale', [1e-20, 1e18])
def test_units_as_such_do_no_harm(column, scale):
  columns = columns_of()
  plain = law_of(columns)
  columns[column] = columns[column] * scale
  fit = law_of(columns)
  if fit.flags:  # The starts are of losses in nats.
    assert column == 'loss' and 'basin hit rate 0.0%' in fit.flags
    return
  assert fit.objective == pytest.approx(plain.objective, rel=1e-6)
  for name in ('alpha', 'beta'):
    assert fit.params[name] == pytest.approx(plain.params[name], rel=1e-4)


def test_a_loss_of_one_value_is_flagged(fit):
  _, record = fit({**columns_of(), 'loss': np.full(40, 3.0)})
  assert 'the loss takes one value' in record['flags']
  assert not any(record['identified'][n] for n in ('A', 'B', 'alpha', 'beta'))


def test_a_fit_without_residuals_is_no_alarm(fit):
  columns = columns_of()
  exact = (
    1.7 + 400 / columns['params'] ** 0.33 + 900 / columns['tokens'] ** 0.36
  )
  _, record = fit({**columns, 'loss': exact})
  assert record['flags'] == []
  assert record['params']['alpha'] == pytest.approx(0.33, rel=1e-6)
  assert record['profile']['alpha']['lo'] == pytest.approx(0.33, rel=1e-4)


def test_where_there_is_no_optimum_there_is_a_flag(fit):
  line, record = fit(columns_of(), '--compute=1,1e20')
  assert 'N_opt(C=1) does not exist: the law has no minimum there' in line
  assert record['derived']['N_opt(C=1)']['value'] is None
  assert record['derived']['N_opt(C=1e+20)']['lo'] > 0


def test_few_resamples_are_flagged(fit):
  line, _ = fit(columns_of(), '--resamples=2')
  assert '2 resamples are too few for 95% intervals' in line


def test_no_resample_left_is_no_traceback():
  columns = columns_of()
  table = tables.Table(
    {'N': columns['params'], 'D': columns['tokens'], 'loss': columns['loss']},
    np.arange(40).astype(str),
  )
  result = results.fit('chinchilla', table, FEW)
  empty = bootstraps.Bootstrap(
    intervals={
      n: bootstraps.Interval(np.nan, np.nan, np.nan)
      for n in result.fit.form.names
    },
    samples={n: np.zeros(0) for n in result.fit.form.names},
    level=0.95, unit='row', resamples=50, failed=50, flags=(), seconds=0.0,
  )  # fmt: skip
  without = dataclasses.replace(result, bootstrap=empty)
  assert not any(without.identified.values())
  assert 'alpha not identified by the resamples' in without.flags
  lo, hi = without.predict_interval(table.columns)
  assert np.isnan(lo).all() and np.isnan(hi).all() and lo.shape == (40,)
  assert 'alpha' in fitting.summary(without)


def test_a_constant_that_nothing_pins_down_may_be_infinite():
  values = forms.get('chinchilla').values(np.full((2, 5), 1e3))
  assert np.isinf(values['E']).all()
  assert (values['alpha'] == 1e3).all()


def test_a_form_of_the_library_without_columns():
  form = dataclasses.replace(forms.get('chinchilla'), columns=())
  with pytest.raises(errors.UserError, match='must have constants, and col'):
    estimate.fit(form, tables.Table({'loss': np.ones(9)}, np.arange(9)))


# Generated: the laws and the tables, good and bad.


@st.composite
def laws(draw):
  number = lambda low, high: draw(st.floats(low, high))
  return {
    'E': number(0.5, 3), 'A': number(10, 1e4), 'B': number(10, 1e4),
    'alpha': number(0.1, 0.8), 'beta': number(0.1, 0.8),
  }  # fmt: skip


@GENERATED
@hypothesis.given(
  laws(),
  st.integers(0, 2**31),
  st.sampled_from(['params', 'tokens', 'both']),
  st.floats(1e2, 1e12),
)
def test_what_a_constant_column_hides_is_said(law, seed, constant, value):
  columns = columns_of(24, seed)
  for name in ('params', 'tokens'):
    if constant in (name, 'both'):
      columns[name] = np.full(24, value)
  inputs = {'N': columns['params'], 'D': columns['tokens']}
  noise = np.random.default_rng(seed).standard_normal(24)
  columns['loss'] = forms.get('chinchilla').predict(law, inputs)
  columns['loss'] = columns['loss'] * np.exp(0.003 * noise)
  if constant == 'both':
    with pytest.raises(errors.UserError, match='24 rows are at 1'):
      law_of(columns)
    return
  fit = law_of(columns)
  symbol = forms.SYMBOLS[constant]
  assert f'column {symbol} takes one value' in fit.flags
  lost = ('A', 'alpha') if constant == 'params' else ('B', 'beta')
  assert not any(fit.identified[name] for name in lost)
  assert not fit.condition_number < 1e10


@GENERATED
@hypothesis.given(
  laws(), st.integers(0, 2**31), st.floats(1e-3, 1e4), st.floats(-2, 2)
)
def test_collinear_columns_are_said(law, seed, ratio, power):
  hypothesis.assume(abs(power) > 0.05)
  columns = columns_of(24, seed)
  columns['tokens'] = ratio * columns['params'] ** power
  inputs = {'N': columns['params'], 'D': columns['tokens']}
  noise = np.random.default_rng(seed).standard_normal(24)
  columns['loss'] = forms.get('chinchilla').predict(law, inputs)
  columns['loss'] = columns['loss'] * np.exp(0.003 * noise)
  assert 'columns N and D are collinear' in law_of(columns).flags


CELLS = st.one_of(
  st.floats(0.5, 9),
  st.sampled_from(['nan', 'inf', '0', '-3', '1e30', '1e-30', '1e99', 'x', '']),
  st.floats(1e-29, 1e29),
)


ANY_TABLE = hypothesis.given(
  st.lists(
    st.tuples(st.floats(1e15, 1e22), st.floats(1, 5)), min_size=0, max_size=14
  ),
  st.lists(st.tuples(st.integers(0, 13), st.integers(0, 1), CELLS), max_size=2),
)


@hypothesis.settings(GENERATED, max_examples=5)
@ANY_TABLE
def test_any_table_gives_a_line_or_flags(fit, rows, changes):
  check_any_table(fit, rows, changes)


@pytest.mark.slow
@hypothesis.settings(GENERATED, max_examples=50)
@ANY_TABLE
def test_any_of_many_tables_gives_a_line_or_flags(fit, rows, changes):
  check_any_table(fit, rows, changes)


def check_any_table(fit, rows, changes):
  cells = [list(row) for row in rows]
  for row, column, value in changes:
    if row < len(cells):
      cells[row][column] = value
  text = 'flops,loss\n' + ''.join(f'{c},{loss}\n' for c, loss in cells)
  with warnings.catch_warnings():
    warnings.simplefilter('error', RuntimeWarning)
    line, record = fit(text, form='power_of_compute')
  if record is None:
    return
  values = np.array(cells, float)
  assert len(values) > 3 and len(np.unique(values[:, 0])) >= 3
  for flag in record['flags']:
    assert flag in line
  if len(values) < 10:  # of few rows, never a word alone
    assert record['flags']
  for name, spread in record['bootstrap'].items():
    sure = record['identified'][name] and not record['flags']
    assert not sure or spread['lo'] < spread['hi'] < np.inf


@hypothesis.settings(GENERATED, max_examples=200)
@hypothesis.given(
  st.binary(max_size=300), st.sampled_from(['csv', 'jsonl', 'parquet'])
)
def test_any_bytes_are_refused_in_a_line(tmp_path, content, suffix):
  path = tmp_path / f'points.{suffix}'
  path.write_bytes(content)
  with pytest.raises(errors.UserError) as error:
    tables.read(path)
  assert '\n' not in str(error.value)


@hypothesis.settings(GENERATED, max_examples=200)
@hypothesis.given(st.integers(0, len(PARQUET) - 1), st.integers(0, 255))
def test_a_damaged_parquet_file_is_read_or_refused(tmp_path, place, byte):
  path = tmp_path / 'points.parquet'
  path.write_bytes(PARQUET[:place] + bytes([byte]) + PARQUET[place + 1 :])
  try:
    table = tables.read(path)
  except errors.UserError as error:
    assert '\n' not in str(error)
  else:
    assert np.isfinite(table.columns['loss']).all()


@hypothesis.settings(GENERATED, max_examples=200)
@hypothesis.given(st.text(max_size=20))
def test_any_text_of_a_flag_is_taken_or_refused(text):
  table = tables.Table({'N': np.ones(2), 'loss': np.ones(2)}, np.arange(2))
  for function in (
    commands._mapping, table.where, forms.get, lambda t: commands._numbers('c', [t])
  ):  # fmt: skip
    try:
      function(text)
    except errors.UserError as error:
      assert '\n' not in str(error)
