"""Learning curves: what is known of them when, and what tables may hold."""

import dataclasses

import numpy as np
import pytest

from familial.allocation import curves
from familial.core import errors

HEADER = 'width,N,tokens,C,loss'


def write(tmp_path, rows, header=HEADER):
  path = tmp_path / 'curves.csv'
  path.write_text('\n'.join([header, *rows]) + '\n')
  return path


def read(path, **columns):
  mapping = {'params': 'N', 'flops': 'C', **columns}
  return curves.read(path, mapping, ['width'])


def about_curves(found):
  """Flags other than those of the tables' small numbers."""
  return [flag for flag in found.flags if 'curves' in flag]


GOOD = [
  *(f'8,10,{t},{6 * 10 * t},{loss}' for t, loss in ((1, 5), (2, 4), (4, 3))),
  *(f'16,40,{t},{6 * 40 * t},{loss}' for t, loss in ((1, 6), (2, 4), (4, 2))),
]


def test_a_curve_is_linear_in_log_compute_on_its_running_minimum():
  curve = curves.Curve(
    'a', np.array([1.0, 100.0, 1e4]), np.array([5.0, 3.0, 4.0])
  )
  at = curve.at(np.array([0.5, 1.0, 10.0, 100.0, 1e3, 1e9]))
  np.testing.assert_allclose(at, [np.inf, 5, 4, 3, 3, 3])
  assert (curve.end, curve.best) == (1e4, 3.0)


def test_what_is_cut_ends_there_and_knows_no_more():
  columns = {'N': np.full(3, 2.0), 'D': np.array([1.0, 10.0, 100.0])}
  curve = curves.Curve(
    'a', 12 * columns['D'], np.array([5.0, 3.0, 2.0]), columns, {}, 2400.0
  )
  cut = curve.cut(360.0)
  assert cut.end == 360.0 and not cut.diverged
  assert cut.at(1e9) == curve.at(360.0)
  np.testing.assert_allclose(cut.columns['D'], [1, 10, 30])
  np.testing.assert_allclose(cut.columns['N'], 2)
  assert curve.cut(120.0).flops.tolist() == [12, 120]
  # Before its first loss it was trained, and nothing is known.
  assert curve.cut(1.0).end == 1.0 and curve.cut(1.0).best == np.inf
  # Beyond its last loss it was trained on, to where it diverged and no further.
  assert curve.cut(2000.0).end == 2000.0 and not curve.cut(2000.0).diverged
  assert curve.cut(1e9).end == 2400.0 and curve.cut(1e9).diverged


def test_a_table_gives_its_curves_and_what_describes_them(tmp_path):
  found = read(write(tmp_path, GOOD))
  first, second = found.curves
  assert (first.name, second.name) == ('width 8', 'width 16')
  assert second.loss.tolist() == [6, 4, 2]
  assert second.columns['D'].tolist() == [1, 2, 4]
  assert second.features == {'width': 16.0, 'params': 40.0}
  assert not about_curves(found)
  # Compute follows from N and D where no column has it.
  rows = [row.rsplit(',', 2) for row in GOOD]
  path = write(
    tmp_path, [f'{a},{loss}' for a, _, loss in rows], 'width,N,tokens,loss'
  )
  again = curves.read(path, {'params': 'N'}, ['width'])
  assert [c.flops.tolist() for c in again.curves] == [
    c.flops.tolist() for c in found.curves
  ]


@pytest.mark.parametrize(
  ('rows', 'losses', 'flags'),
  [
    ([GOOD[2], *GOOD[:2], *GOOD[3:]], [5, 4, 3], ['not in order']),
    ([*GOOD, '8,10,4,240,2.5'], [5, 4, 2.5], ['several rows']),
    ([*GOOD, '99,10,1,60,2'], [5, 4, 3], ['fewer than two points']),
    # A loss that is not finite was not measured if others follow.
    ([*GOOD, '8,10,8,480,nan', '8,10,9,540,1'], [5, 4, 3, 1], ['not finite']),
    ([*GOOD, '8,10,8,480,', '8,10,9,540,1'], [5, 4, 3, 1], []),
    # At the end it ends the curve.
    ([*GOOD, '8,10,8,480,nan', '8,10,9,540,inf'], [5, 4, 3], ['end where']),
  ],
)
def test_irregular_rows_are_flags(tmp_path, rows, losses, flags):
  found = read(write(tmp_path, rows))
  first = found.curves[0]
  assert first.loss.tolist() == losses
  assert (first.diverged_at == 480.0) == (flags == ['end where'])
  for flag in flags:
    assert any(flag in each for each in found.flags), flag
  assert bool(about_curves(found)) == bool(flags)


@pytest.mark.parametrize(
  ('rows', 'header', 'what'),
  [
    ([GOOD[0]], HEADER, 'has 0 curves of two points or more'),
    (GOOD[:3], HEADER, 'has 1 curves of two points or more'),
  ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, rows, header, what):
  with pytest.raises(errors.UserError, match=what):
    read(write(tmp_path, rows, header))


@pytest.mark.parametrize(
  'row', ['8,10,0,0,9', '8,10,1,-60,9', '8,10,1,nan,9', '8,10,1,60,high']
)
def test_rows_without_a_number_are_left_out_and_counted(tmp_path, row):
  """Step 0 too, which has spent no compute."""
  found = read(write(tmp_path, [row, *GOOD]))
  assert found.curves[0].loss.tolist() == [5, 4, 3]
  assert any('1 of 7 rows left out' in flag for flag in found.flags)


def test_rows_of_no_curve_are_no_curve(tmp_path):
  rows = [*GOOD, ',10,8,480,1', ',40,8,1920,1']
  path = write(tmp_path, rows, HEADER.replace('width', 'lr'))
  found = curves.read(path, {'params': 'N', 'flops': 'C'}, ['lr'])
  assert [len(curve.flops) for curve in found.curves] == [3, 3]
  assert any('2 of 8 rows without lr' in flag for flag in found.flags)
  assert '2 of 4 curves had fewer than two points' in ' '.join(found.flags)


def test_few_rows_that_are_left_out_are_named_too(tmp_path):
  more = [f'8,10,{t},{60 * t},2' for t in range(5, 20)]
  found = read(write(tmp_path, [*GOOD, *more, '8,10,20,-,2']))
  assert '1 rows left out without a number in C' in found.flags


def test_what_tells_curves_apart_must_be_said_and_there(tmp_path):
  path = write(tmp_path, GOOD)
  with pytest.raises(errors.UserError, match=r'--curve: .* no column run'):
    curves.read(path, {'params': 'N', 'flops': 'C'})
  with pytest.raises(errors.UserError, match=r"'widht'.*'width'"):
    curves.read(path, {'params': 'N', 'flops': 'C'}, ['widht'])
  path = write(tmp_path, ['a,1', 'a,2', 'b,1', 'b,2'], 'run,loss')
  with pytest.raises(errors.UserError, match='no column flops'):
    curves.read(path)


def test_points_count_once_and_where_they_may():
  curve = curves.Curve(
    'a', np.array([6.0, 12.0]), np.array([3.0, 2.0]),
    {'N': np.ones(2), 'D': np.array([1.0, 2.0])},
  )  # fmt: skip
  other = dataclasses.replace(curve, name='b')
  table, weights = curves.rows([[curve, other], [curve.cut(9.0)]])
  assert table.rows == 5  # 6 and 12 of each, and a's 9.
  np.testing.assert_array_equal(weights.sum(axis=1), [4, 2])
  assert table.columns['D'][weights[1] > 0].tolist() == [1.0, 1.5]
  table, weights = curves.rows([[curve, other], [curve]], ('tokens>=2',))
  assert table.rows == 2 and weights.tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize('unit', [1, 100])
def test_accuracies_are_curves_of_the_error(tmp_path, unit):
  rows = [row.rsplit(',', 1)[0] for row in GOOD]
  accuracies = [0.1, 0.2, 0.4, 0.3, 0.5, 1.0]
  cells = [f'{r},{a * unit}' for r, a in zip(rows, accuracies, strict=True)]
  path = write(tmp_path, cells)
  found = curves.read(
    path, {'params': 'N', 'flops': 'C'}, ['width'], maximize=True
  )
  np.testing.assert_allclose(found.curves[0].loss, [0.9, 0.8, 0.6])
  np.testing.assert_allclose(found.curves[1].loss, [0.7, 0.5, 0.25])
  assert any(
    f.startswith('losses are errors, 1 - accuracy') for f in found.flags
  )
  assert any('percentages' in flag for flag in found.flags) == (unit == 100)
  assert any(
    flag.startswith('rows of a perfect accuracy: 1,') for flag in found.flags
  )
  with pytest.raises(errors.UserError, match='--maximize'):
    curves.read(
      write(tmp_path, [*cells[:-1], f'{rows[-1]},101']),
      {'params': 'N', 'flops': 'C'}, ['width'], maximize=True,
    )  # fmt: skip


def test_losses_that_are_taken_for_accuracies_are_a_flag(tmp_path):
  rows = [
    f'{width},{10 * width},{t},{60 * width * t},{4 - t / 10}'
    for width in (8, 16)
    for t in range(1, 21)
  ]
  found = curves.read(
    write(tmp_path, rows),
    {'params': 'N', 'flops': 'C'},
    ['width'],
    maximize=True,
  )
  assert any('are they losses?' in flag for flag in found.flags)


def test_runs_of_this_project_have_no_accuracies(tmp_path):
  path = write(tmp_path, ['a,0,10,1,2'], 'run,exit,params_full,flops,loss')
  with pytest.raises(errors.UserError, match="this project's runs"):
    curves.read(path, maximize=True)


def test_accuracies_that_are_taken_for_losses_are_a_flag(tmp_path):
  rows = [
    f'{width},{10 * width},{t},{60 * width * t},{t / 40}'
    for width in (8, 16)
    for t in range(1, 21)
  ]
  found = read(write(tmp_path, rows))
  assert any('--maximize' in flag for flag in found.flags)
