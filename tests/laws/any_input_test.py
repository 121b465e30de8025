"""Whatever a table, a file or an argument is: a line or a flag says what is wrong."""

import warnings

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from familial.cli import command
from familial.core import errors
from familial.laws import forms
from familial.laws import parametric
from familial.laws import table as tables
from tests.laws import points

GENERATED = hypothesis.settings(
  deadline=None,
  derandomize=True,
  database=None,
  max_examples=5,
  suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


@st.composite
def laws(draw):
  number = lambda low, high: draw(st.floats(low, high))
  return {
    'E': number(0.5, 3), 'A': number(10, 1e4), 'B': number(10, 1e4),
    'alpha': number(0.1, 0.8), 'beta': number(0.1, 0.8),
  }  # fmt: skip


def spoiled(law, seed, **columns):
  """A table of the dense law in which some columns are replaced."""
  columns = {**points.columns(24, seed), **columns}
  inputs = {'N': columns['params'], 'D': columns['tokens']}
  noise = np.random.default_rng(seed).standard_normal(24)
  loss = forms.get('chinchilla').predict(law, inputs)
  return {**columns, 'loss': loss * np.exp(0.003 * noise)}


@GENERATED
@hypothesis.given(
  laws(),
  st.integers(0, 2**31),
  st.sampled_from(['params', 'tokens', 'both']),
  st.floats(1e2, 1e12),
)
def test_what_a_constant_column_hides_is_said(law, seed, constant, value):
  names = ('params', 'tokens') if constant == 'both' else (constant,)
  columns = spoiled(law, seed, **dict.fromkeys(names, np.full(24, value)))
  if constant == 'both':
    with pytest.raises(errors.UserError, match='24 rows are at 1'):
      points.law(columns)
    return
  fit = points.law(columns)
  symbol = parametric.SYMBOLS[constant]
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
  tokens = ratio * points.columns(24, seed)['params'] ** power
  columns = spoiled(law, seed, tokens=tokens)
  assert 'columns N and D are collinear' in points.law(columns).flags


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


@pytest.mark.parametrize(
  'examples', [3, pytest.param(50, marks=pytest.mark.slow)]
)
def test_any_table_gives_a_line_or_flags(fit, examples):
  given = hypothesis.settings(GENERATED, max_examples=examples)(
    ANY_TABLE(lambda rows, changes: check_any_table(fit, rows, changes))
  )
  given()


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
  st.binary(max_size=300), st.sampled_from(['csv', 'jsonl', 'json'])
)
def test_any_bytes_are_refused_in_a_line(tmp_path, content, suffix):
  path = tmp_path / f'points.{suffix}'
  path.write_bytes(content)
  with pytest.raises(errors.UserError) as error:
    tables.read(path)
  assert '\n' not in str(error.value)


@hypothesis.settings(GENERATED, max_examples=200)
@hypothesis.given(st.text(max_size=20))
def test_any_text_of_a_flag_is_taken_or_refused(text):
  table = tables.Table({'N': np.ones(2), 'loss': np.ones(2)}, np.arange(2))
  for function in (
    command.mapping, table.where, forms.get, lambda t: command.integers('f', (t,))
  ):  # fmt: skip
    try:
      function(text)
    except errors.UserError as error:
      assert '\n' not in str(error)
