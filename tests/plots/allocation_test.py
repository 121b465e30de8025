"""The figures of allocations show what was done."""

import dataclasses
import math

import numpy as np
import pytest

from familial.allocation import comparison
from familial.allocation import curves
from familial.allocation import envelope
from familial.allocation import halving
from familial.allocation import policies
from familial.allocation import rounds
from familial.allocation import surrogate
from familial.allocation import synthetic
from familial.core.estimate import Estimate
from familial.plots import allocation
from familial.plots import theme
from tests.allocation import replays

BUDGET = 1e18


def certain(observed, keys):
  """A surrogate that expects nine tenths of the last loss."""
  last = observed.loss_SxMxT[:, :, -1]
  return halving.Prediction(0.9 * last, 0.8 * last, 0.95 * last)


@pytest.fixture
def grid():
  return list(synthetic.curves(5).curves)


@pytest.fixture
def allocate(grid):
  named = {'sh_lmc': policies.SuccessiveHalving(surrogate.ranked_by(certain))}
  return lambda name: replays.allocate(named.get(name, name), [grid], BUDGET)[0]


def course(title, grid, allocation_):
  ranking = list(rounds.ranking(allocation_.rounds, grid))
  return allocation.Course(title, grid, allocation_.curves, ranking)


def panels(chart):
  """Returns the rows of each panel of a concatenation."""
  spec = theme.specification(chart)
  datasets = spec.get('datasets', {})
  found = [panel.get('data', spec.get('data')) for panel in spec['concat']]
  return [
    datasets[data['name']] if 'name' in data else data['values']
    for data in found
  ]


def test_a_curve_is_solid_as_far_as_it_was_trained(grid, allocate):
  found = allocate('sh')
  shown = course('sh', grid, found)
  # 5, 2 and 1 train: one stays to the end.
  assert sorted(shown.pruned.values()) == [1, 1, 1, 2]
  [rows] = panels(allocation.courses([shown]))
  last = {}
  for row in rows:
    end = last.setdefault(row['kind'], {})
    end[row['cell']] = max(end.get(row['cell'], 0.0), row['flops'])
  spent = dict(zip([c.name for c in grid], found.spent, strict=True))
  assert last['trained'] == spent
  assert last['rest'] == {curve.name: curve.end for curve in grid}
  assert last['end'] == {cell: spent[cell] for cell in shown.pruned}
  fates = {row['cell']: row['fate'] for row in rows}
  assert len(set(fates.values())) == 3


def test_predictions_are_beside_what_came_true(grid, allocate):
  found = allocate('sh_lmc')
  _, rows = panels(allocation.courses([course('sh_lmc', grid, found)]))
  assert rows
  curve = {each.name: each for each in grid}
  for row in rows:
    assert row['reached'] == float(curve[row['cell']].at(row['end']))
    assert row['predicted_lo'] < row['predicted'] < row['predicted_hi']
  assert rows == sorted(rows, key=lambda row: row['predicted'])
  # The last round in which a survivor was ranked is the one that is shown.
  ranked = found.rounds[1]
  by_cell = {row['cell']: row for row in rows}
  for k, i in enumerate(ranked.alive):
    assert by_cell[grid[i].name]['predicted'] == ranked.predicted[k][0]


def test_a_policy_that_trains_nobody_in_a_round_is_drawn(grid):
  nothing = np.zeros(0)
  known = [
    grid[0].cut(1e17),
    *(curves.Curve(c.name, nothing, nothing) for c in grid[1:]),
  ]
  one = rounds.Round(
    (0,), 1e17, (1e17,), (known[0].best,), (None,), (1e17,), None, (0,)
  )
  none = rounds.Round((), 1e17, (), (), (), (), None, ())
  ranking = list(rounds.ranking([one, none], grid))
  shown = allocation.Course('law', grid, known, ranking)
  [rows] = panels(allocation.courses([shown]))
  assert {r['cell'] for r in rows if r['kind'] == 'trained'} == {grid[0].name}


def test_lines_go_as_far_as_laws_are_asked(grid, allocate):
  found = allocate('sh')
  _, high = envelope.span(grid)
  shown = allocation.frontiers(grid, {'sh': found.curves}, 10 * high)
  rows = panels(shown)[0]
  whole = [
    row
    for row in rows
    if (row['policy'], row['kind']) == (allocation.WHOLE, 'frontier')
  ]
  assert whole[-1]['flops'] == pytest.approx(high)
  flops = np.array([row['flops'] for row in whole])
  assert [row['loss'] for row in whole] == pytest.approx(
    envelope.frontier(grid, flops)
  )
  [end] = [
    row
    for row in rows
    if (row['policy'], row['kind']) == ('sh', 'line')
    and row['flops'] > 9.99 * high
  ]
  of_sh = envelope.line(found.curves, *envelope.span(found.curves))
  assert end['loss'] == pytest.approx(float(of_sh(10 * high)))


def summary(budget, gains, errors=None):
  """A cell of a replay with given gains and errors of laws."""
  unknown = Estimate(math.nan)
  same = dict.fromkeys(
    [f.name for f in dataclasses.fields(comparison.PolicySummary)], unknown
  )
  calibration = comparison.Calibration(1, 7, Estimate(0.5), 0.1, 0.2, 0.1, 0.3)
  return comparison.CellSummary(
    table='curves',
    source={'path': 'curves.csv', 'sha256': ''},
    flags=(),
    curves=4,
    candidates=4,
    budget=budget,
    eta=2,
    rounds=(4, 2, 1),
    draws=10,
    policies={
      name: comparison.PolicySummary(
        **{
          **same,
          'gain': Estimate.around(gain, 0.001),
          'law_error': Estimate.around((errors or {}).get(name, math.nan), 0.001),
          'line_error': Estimate.around(0.2, 0.001),
          'saving': Estimate(1 - budget / 1e20),
          'spent': Estimate(0.5 * budget),
          'line_fits': 10,
          'law_fits': 10,
        }
      )
      for name, gain in gains.items()
    },
    calibration={'sh_lmc': (calibration,)},
    seconds={},
  )  # fmt: skip


def test_a_gain_far_below_the_others_is_at_the_edge_with_its_value():
  gains = {'sh': 0.0, 'oracle': 0.01, 'uniform': -0.3, 'law': -0.012}
  [rows] = panels(allocation.gains([summary(1e19, gains)]))
  by_policy = {row['policy']: row for row in rows}
  assert list(by_policy) == ['uniform', 'law', 'oracle']
  assert by_policy['uniform']['off'] and by_policy['uniform']['value'] == -30
  assert by_policy['uniform']['gain'] > -10
  assert by_policy['law']['gain'] == pytest.approx(-1.2)
  assert not by_policy['law']['off']


def test_errors_are_drawn_against_what_was_spent():
  gains = {'sh': 0.0, 'oracle': 0.01}
  cells = [
    summary(2e19, gains, {'sh': 0.02}),
    summary(1e19, gains, {'sh': 0.05, 'oracle': 0.03}),
    dataclasses.replace(summary(1e19, gains), candidates=8),
  ]
  [family] = allocation.families(cells)
  assert [each.budget for each in family] == [1e19, 2e19]
  rows = panels(allocation.law_errors(family, 10))[0]
  of_sh = [row for row in rows if row['policy'] == 'sh']
  assert [row['error'] for row in of_sh] == pytest.approx([5, 2])
  # Side by side.
  assert [row['spent'] for row in of_sh] == pytest.approx([5, 10], rel=0.05)


def test_every_figure_of_a_replay_is_drawn(tmp_path):
  cells = [summary(1e19, {'sh': 0.0, 'oracle': 0.01, 'sh_lmc': math.nan})]
  for draw in (
    allocation.heat,
    allocation.gains,
    allocation.coverage,
    allocation.prediction_errors,
  ):
    theme.save(draw(cells), tmp_path / f'{draw.__name__}.png')
    assert (tmp_path / f'{draw.__name__}.png').stat().st_size > 5000


def test_every_policy_has_a_look_of_its_own():
  series = allocation.look(policies.POLICIES)
  scales = [each.to_dict()['scale'] for each in (series.colour, series.shape)]
  for scale in scales:
    assert scale['domain'] == list(policies.POLICIES)
  looks = zip(*(scale['range'] for scale in scales), strict=True)
  assert len(set(looks)) == len(policies.POLICIES)
