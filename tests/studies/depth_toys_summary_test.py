import dataclasses

import numpy as np
import pytest

from familial.studies import depth_toys_cohort
from familial.studies import depth_toys_summary as summary
from tests.analysis.toys_small import SHAPE
from tests.analysis.toys_small import asked


@pytest.mark.parametrize(('share', 'sign'), [(0.0, 0), (0.5, 1)])
def test_a_planted_exponent_is_found(share, sign):
  rng = np.random.default_rng(0)
  depths = np.array([3, 4, 6, 8, 12, 16])
  clean = depths**-2.0
  loss = (clean + share / (1 - share) * clean[-1]) * np.exp(
    rng.normal(0, 0.01, (3, 6))
  )
  found = summary.exponents(depths, loss)
  lo, hi = found['curvature']['lo'], found['curvature']['hi']
  if sign:
    assert lo > 0 and found['exponent']['hi'] < 1.9
    assert found['floor']['value'] == pytest.approx(2.0, abs=0.15)
    assert found['floor']['share'] == pytest.approx(share, abs=0.1)
    assert found['shallow']['value'] > found['deep']['value'] + 0.5
  else:
    assert lo < 0 < hi
    assert found['exponent']['lo'] < 2 < found['exponent']['hi']
    assert found['exponent']['value'] == pytest.approx(2.0, abs=0.03)


def test_averaging_is_of_exponent_one_far_from_the_teacher_s_depth():
  assert summary.averaging([2, 4, 8], 10**6) == pytest.approx(1, abs=1e-4)
  assert summary.averaging([2, 4, 8], 32) == pytest.approx(1.16, abs=0.01)
  assert summary.averaging([2, 4, 8], 8) is None


def test_losses_that_are_not_there_count_for_none():
  loss = np.array([[1.0, 0.5, 0.25], [np.nan] * 3, [1.0, 0.5, 0.25]])
  found = summary.exponents([1, 2, 4], loss)['exponent']
  assert found['value'] == pytest.approx(1.0)
  assert found['by_teacher'][1] is None
  assert summary.estimate([np.nan])['value'] is None


def curve(exponent, depths, stages=1, temperature=None, **changes):
  loss = [
    [scale * depth**-exponent for depth in depths] for scale in (1.0, 2.0, 3.0)
  ]
  return {
    'study': 'two' if stages == 2 else 'one',
    'teacher': 'tied',
    'temperature': temperature,
    'head': 'none',
    'stages': stages,
    'one_layer': False,
    'steps': 10,
    'teacher_depth': 64,
    'depths': depths,
    'averaging': None,
    'loss': [loss],
    **summary.exponents(depths, np.array(loss)),
    **changes,
  }


def test_two_stages_are_beside_one_at_equal_cost_and_depth():
  two, one = curve(3.0, [1, 2, 4], 2), curve(2.0, [2, 4, 6, 8])
  others = curve(1.0, [2, 4, 8], 1, 0.5), curve(1.0, [2, 4, 8], steps=5)
  cost, depth = summary._pairs([one, two, *others])
  assert (cost['equal'], depth['equal']) == ('cost', 'depth')
  assert (cost['depths'], depth['depths']) == ([1, 2, 4], [2, 4])
  for found in (cost, depth):
    assert found['exponent']['value'] == pytest.approx(3)
    assert found['base_exponent']['value'] == pytest.approx(2)
    assert found['difference']['value'] == pytest.approx(1)
  # Depth 2 at cost 4, in the middle of the depths: 2^-3 over 4^-2.
  assert cost['log_ratio']['value'] == pytest.approx(np.log(2))
  assert depth['log_ratio']['value'] == pytest.approx(-np.log(8) / 2)
  verdict = {
    'study': 'two',
    'teacher': 'tied',
    'temperature': None,
    'text': 'x',
  }
  rows = summary.table(
    {'curves': [one, two], 'pairs': [cost, depth], 'regimes': [verdict]}
  )
  assert [line[0] for line in rows[1:]] == ['one', 'two'] + 2 * ['two - one']
  assert rows[2][4].startswith('3.0') and rows[2][5:] == ['–', 'x']
  assert rows[1][-1] == '–'


def test_layers_are_beside_a_single_one_of_as_many_units():
  deep = curve(2.0, [2, 4, 8])
  wide = curve(0.5, [2, 4, 8], study='wide', one_layer=True)
  [row] = summary._pairs([wide, deep])
  assert (row['study'], row['base'], row['equal']) == ('one', 'wide', 'units')
  assert row['difference']['value'] == pytest.approx(1.5)
  asked_ = asked(one_layer=True)
  for depth in (1, 3):
    params = depth_toys_cohort.students(asked_, 'only', depth)
    assert params['in'].shape[1:] == (1, SHAPE.width, depth * SHAPE.hidden)
    assert params['out'].shape[1:] == (1, depth * SHAPE.hidden, SHAPE.width)


def test_the_last_test_counts():
  members = [
    {'teacher': 'tied', 'number': i, 'temperature': None} for i in range(2)
  ]
  study = dataclasses.replace(
    asked().studies['only'], depths=(4, 1, 2), teachers=('tied',)
  )
  depths = np.array(study.depths, float)
  loss_CxDxM = np.stack(
    [np.stack([depths**-power] * 2, axis=1) for power in (3.0, 1.0)]
  )
  [found] = summary._curves(
    'only', study,
    {'members': members, 'steps': [1, 2], 'loss': loss_CxDxM.tolist(),
     'error': (0 * loss_CxDxM).tolist()},
  )  # fmt: skip
  assert found['exponent']['value'] == pytest.approx(1)
  values = [row['value'] for row in found['evolution']]
  assert values == pytest.approx([3, 1])
