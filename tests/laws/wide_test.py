"""Wide tables hold the numbers of the long ones."""

import csv
import io

import numpy as np
import pytest

from familial.allocation import curves
from familial.cli import command
from familial.core import errors
from familial.laws import table as tables
from familial.laws import wide as wide_lib
from tests.laws import points

WANDB = {'loss': '* - val_loss'}


def write(path, rows):
  sink = io.StringIO()
  csv.writer(sink).writerows(rows)
  path.write_text(sink.getvalue())
  return path


def wandb(path, runs=4, steps=6):
  """What wandb exports of runs of different lengths that log every other step."""
  header, loss = ['Step'], {}
  for i in range(runs):
    name = f'run{i} - val_loss'
    header += [f'run{i} - _step', f'run{i} - _step__MIN']
    header += [name, f'{name}__MIN', f'{name}__MAX']
    loss[f'run{i}'] = {
      step: 2 + 1 / (step + i) for step in range(1 + i % 2, steps - i // 2, 2)
    }
  rows = []
  for step in range(1, steps):
    cells = [step]
    for own in loss.values():
      value = own.get(step, '')
      cells += [step, step, value, value, value]
    rows.append(cells)
  return write(path, [header, *rows]), loss


def test_a_column_for_each_run(tmp_path):
  path, loss = wandb(tmp_path / 'a.csv')
  table = tables.read(
    path, {'tokens': 'Step'}, wide=WANDB, units={'tokens': 1e6}
  )
  assert list(dict.fromkeys(table.run)) == list(loss)
  for run, own in loss.items():
    mine = table.run == run
    np.testing.assert_array_equal(table.columns['loss'][mine], [*own.values()])
    np.testing.assert_array_equal(
      table.columns['D'][mine], 1e6 * np.array([*own])
    )
  assert set(table.labels) == {'Step', 'run', 'loss'}
  blank = 4 * 5 - table.rows
  assert table.filters['wide'] == (
    f"4 runs from 4 columns '* - val_loss' ({blank} blank cells)"
  )
  assert not table.dropped and not table.flags and table.unit == 'run'
  known = curves.read(path, {'flops': 'Step'}, wide=WANDB)
  assert [c.loss.tolist() for c in known.curves] == [
    list(own.values()) for own in loss.values() if len(own) > 1
  ]


def test_a_cell_that_is_no_number_is_left_out_and_counted(tmp_path):
  path, _ = wandb(tmp_path / 'a.csv')
  path.write_text(path.read_text().replace('3.0,3.0,3.0', 'oops,3.0,3.0'))
  table = tables.read(path, {'tokens': 'Step'}, wide=WANDB)
  assert table.filters['left_out'] == {'loss': [1]} and table.dropped == 1


def test_a_column_for_each_number(tmp_path):
  """Rows are sizes and columns budgets: the table of the law, in any layout."""
  sizes, budgets = ['70M', '160M', '1.4B'], ['1e18', '3e19', '2e20']
  loss = np.arange(9).reshape(3, 3) + 2.0
  path = write(
    tmp_path / 'a.csv',
    [
      ['params', *(f'{b} FLOPs' for b in budgets), 'best FLOPs'],
      *([s, *row, 'x'] for s, row in zip(sizes, loss.tolist(), strict=True)),
    ],
  )
  table = tables.read(path, wide={'loss': '{flops} FLOPs'})
  np.testing.assert_array_equal(table.columns['loss'], loss.T.ravel())
  np.testing.assert_array_equal(
    table.columns['C'], np.repeat([1e18, 3e19, 2e20], 3)
  )
  np.testing.assert_array_equal(table.columns['N'], 3 * [70e6, 160e6, 1.4e9])
  assert table.unit == 'row'
  both = ['step', 'n70M d1B', 'n1.4B d3e9']
  path = write(tmp_path / 'b.csv', [both, [1, 3.0, 2.5]])
  table = tables.read(path, wide={'loss': 'n{params} d{tokens}'})
  assert table.columns['N'].tolist() == [70e6, 1.4e9]
  assert table.columns['D'].tolist() == [1e9, 3e9]


def test_several_quantities_of_each_run(tmp_path):
  header = ['loss/a', 'loss/b', 'tokens/a', 'tokens/b', 'note']
  rows = [[3, 4, 100, 200, 'x'], [2, '', 300, 400, 'y']]
  path = write(tmp_path / 'a.csv', [header, *rows])
  table = tables.read(path, wide={'loss': 'loss/*', 'tokens': 'tokens/*'})
  assert table.columns['loss'].tolist() == [3, 2, 4]
  assert table.columns['D'].tolist() == [100, 300, 200]
  assert table.run.tolist() == ['a', 'a', 'b']
  assert table.labels['note'].tolist() == ['x', 'y', 'x']


@pytest.mark.parametrize(
  ('wide', 'said'),
  [
    ({'loss': 'val_loss'}, r"loss='val_loss' .* one \* "),
    ({'loss': '* - * - val_loss'}, r'must have one \* '),
    ({'loss': '* - train_loss'}, 'no column .* it has Step, run0 - _step'),
    ({'loss': '{params} - val_loss'}, 'no column'),
    ({'loss': '* - val_loss', 'tokens': '* - tokens'}, 'of run0, run2, run3 '),
    ({'loss': '* - val_loss', 'tokens': '{run} - _step'}, None),
    ({'loss': '* - val_loss', 'Step': '* - _step'}, 'a column Step beside'),
    ({'los': '* - val_loss'}, 'no column loss'),
    ({'tokens': '* - tokens'}, 'no column loss'),
  ],
)
def test_patterns_that_do_not_fit(tmp_path, wide, said):
  path, _ = wandb(tmp_path / 'a.csv')
  lines = path.read_text().splitlines()
  if wide.get('tokens') == '* - tokens':
    lines = [lines[0] + ',run1 - tokens', *(line + ',8' for line in lines[1:])]
  path.write_text('\n'.join(lines))
  if said is None:
    assert tables.read(path, wide=wide).columns['D'].max() == 5
    return
  with pytest.raises(errors.UserError, match=said):
    tables.read(path, wide=wide)


def test_sizes_that_no_column_has_are_asked_for(tmp_path):
  path, _ = wandb(tmp_path / 'a.csv')
  columns, needs = {'tokens': 'Step'}, ['N', 'D']
  with pytest.raises(errors.UserError, match=r'for params.* for each run'):
    tables.read(path, columns, wide=WANDB, needs=needs)
  path.write_text(path.read_text().replace('run', '7'))
  table = tables.read(
    path, columns, wide={'loss': '{params} - val_loss'}, needs=needs
  )
  assert set(table.columns['N']) == {70, 71, 72, 73}


def test_a_column_is_of_a_run_where_each_run_has_it(tmp_path):
  header = ['Model Size', 'Model loss', 'b loss', 'Model step', 'b step']
  path = write(tmp_path / 'a.csv', [header, [8, 3, 4, 1, 1]])
  with pytest.raises(errors.UserError, match="'Model Size'"):
    tables.read(path, wide={'loss': '* loss'})
  header[0] = 'Size'
  path = write(tmp_path / 'a.csv', [header, [8, 3, 4, 1, 1]])
  table = tables.read(path, {'params': 'Size'}, wide={'loss': '* loss'})
  assert set(table.labels) == {'Size', 'run', 'loss'}
  header = ['Model Size', 'Model loss']  # One run: its rows are all its own.
  path = write(tmp_path / 'a.csv', [header, [8, 3]])
  table = tables.read(path, {'params': 'Model Size'}, wide={'loss': '* loss'})
  assert table.columns['N'].tolist() == [8]


def test_the_label_of_runs_is_what_their_columns_hold():
  assert wide_lib.label('* - accuracy') == 'accuracy'
  assert wide_lib.label('eval/acc *') == 'eval/acc'
  assert not wide_lib.label('{flops} FLOPs')


@pytest.mark.slow
def test_the_command_says_what_it_understood(fit):
  columns = points.columns()
  wide = {
    'params': columns['params'], 'tokens': columns['tokens'],
    'a - loss': [*columns['loss'][:20], *[''] * 20],
    'b - loss': [*[''] * 20, *columns['loss'][20:]],
  }  # fmt: skip
  line, record = fit(wide, '--wide=loss=* - loss', '--cluster=row')
  assert "2 runs from 2 columns '* - loss' (40 blank cells)" in line
  _, plain = fit(columns)
  assert record['params'] == plain['params'] and record['rows'] == 40


def test_line_breaks_in_the_name_of_a_loss(tmp_path):
  rows = [
    ['flops', 'val  loss', 'run'],
    *([c, 4 - c, r] for r in 'ab' for c in (1, 2)),
  ]
  path = write(tmp_path / 'a.csv', rows)
  known = curves.read(path, {'loss': 'val \n loss'})
  assert known.curves[0].loss.tolist() == [3, 2]


def test_a_comma_in_the_name_of_a_column():
  names = command.mapping((r'params=Size\, M,loss=l',))
  assert names == {'params': 'Size, M', 'loss': 'l'}
