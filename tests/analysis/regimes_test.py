import dataclasses

import numpy as np
import pytest

from familial.analysis import middle
from familial.analysis import regimes
from familial.analysis import trajectories
from familial.core import errors
from familial.core import estimate
from tests.analysis import paths

KINDS = {
  'smooth': paths.flow,
  'ensemble': paths.walk,
  'compositional': paths.stopping,
}
EVERY = [
  (kind, depth, width, noise)
  for kind in KINDS
  for depth in (4, 5, 6, 12, 48)
  for width in (8, 32, 256)
  for noise in (0.0, 0.3)
]
FAST = [(4, 8, 0.3), (12, 8, 0.3)]


def network(kind, depth, width=32, noise=0.0, seed=0):
  return trajectories.of_states(
    KINDS[kind](depth, width, noise, seed, tokens=320), 16
  )


@pytest.fixture(scope='module')
def twelve():
  """A network of 12 layers of each kind; few programs are compiled."""
  return {kind: network(kind, 12, 8, 0.3) for kind in KINDS}


@pytest.mark.parametrize(
  ('kind', 'depth', 'width', 'noise'),
  [
    pytest.param(*case, marks=() if case[1:] in FAST else pytest.mark.slow)
    for case in EVERY
  ],
)
def test_known_regimes_are_named(kind, depth, width, noise):
  answer = regimes.classify([network(kind, depth, width, noise)])
  assert answer.regime == kind
  assert answer.strength > 0.9 and answer.agreement > 0.95
  for item in answer.evidence:
    assert item.value.lo <= item.value.value + 1e-9 or item.name == 'departure'


def test_every_depth_from_four_on_has_middle_neighbours():
  for depth in range(middle.LEAST_DEPTH, 40):
    where = trajectories.middle_layers(depth, depth - 1)
    assert where.start >= 1 and where.start < where.stop <= depth - 2


def test_in_between_is_undecided():
  # A flow in which each step is two thirds noise: cosines of a third.
  answer = regimes.classify([network('smooth', 12, 8, noise=1.4)])
  assert answer.regime == 'undecided'
  assert answer.strength < 0.5
  assert max(answer.scores, key=answer.scores.get) in ('smooth', 'ensemble')


def test_layers_that_are_idle_for_all_are_not_compositional():
  states = paths.walk(12, 8, tokens=320)
  for last, some in ((6, slice(0, 160)), (7, slice(160, 320))):
    here = states[last, some]
    states[last:, some] = here + 0.01 * (states[last:, some] - here)
  answer = regimes.classify([trajectories.of_states(states, 16)])
  assert answer.regime == 'undecided'
  assert any('idle' in note for note in answer.notes)
  evidence = {each.name: each for each in answer.evidence}
  assert evidence['early'].value.value > 0.95
  assert 0.03 < evidence['stop_spread'].value.value < 0.1
  assert evidence['stop_spread'].fits == {'compositional': 0.0}


def test_layers_that_do_nothing_say_nothing():
  states = np.ones((13, 320, 8), np.float32)
  answer = regimes.classify([trajectories.of_states(states, 16)])
  assert answer.regime == 'undecided'
  assert any('nothing to tell' in note for note in answer.notes)


@pytest.mark.parametrize('kind', ['smooth', 'ensemble'])
def test_steps_fall_as_one_over_depth(kind, twelve):
  found = [network(kind, 4, 8), network(kind, 6, 8), twelve[kind]]
  answer = regimes.classify(found)
  assert (answer.regime, answer.depths) == (kind, (4, 6, 12))
  evidence = {each.name: each for each in answer.evidence}
  slope = evidence['angle_exponent']
  assert slope.value.value == pytest.approx(-1, abs=0.1)
  assert slope.value.lo < slope.value.value < slope.value.hi
  assert slope.fits == {'smooth': 1.0, 'ensemble': 1.0}
  assert middle.angle_exponent(found[:2]) is None


def test_steps_that_do_not_fall_so_count_against_it():
  found = [
    trajectories.of_states(paths.walk(d, 8, tokens=320, power=0.2), 16)
    for d in (4, 6, 12)
  ]
  answer = regimes.classify(found)
  assert answer.regime == 'undecided'
  least = min(answer.evidence, key=lambda e: e.fits.get('ensemble', 1))
  assert least.name == 'angle_exponent'


def test_the_losses_exponent_counts(twelve):
  found = [twelve['ensemble']]
  one = regimes.classify(found, estimate.Estimate(1.0, 0.8, 1.2))
  assert one.regime == 'ensemble' and one.strength > 0.9
  three = regimes.classify(found, estimate.Estimate(3.0, 2.8, 3.2))
  assert three.regime == 'undecided'


def test_power_laws_are_fitted_with_their_interval():
  depths = [4, 8, 16, 32]
  exact = middle.power(depths, [3 * d**-1.2 for d in depths])
  assert exact.value == pytest.approx(-1.2)
  assert exact.hi - exact.lo < 1e-6
  rng = np.random.default_rng(0)
  held = 0
  for _ in range(400):
    noisy = np.array(depths) ** -1.0 * np.exp(0.1 * rng.normal(size=4))
    slope = middle.power(depths, noisy)
    held += slope.lo <= -1 <= slope.hi
  assert 0.92 < held / 400 < 0.98
  assert middle.power([4, 8, 8], [1, 2, 3]) is None
  assert middle.power([4, 8, 16], [1, 0, 1]) is None


def test_shallow_networks_are_refused_in_a_line():
  with pytest.raises(errors.UserError, match=r'depths: \[3\].*at least 4'):
    regimes.classify(
      [trajectories.NetworkStatistics(8, {}, {}, np.ones((2, 4), np.int64))]
    )


def test_what_all_tokens_share_is_no_flow():
  """Steps along one direction, of which random ones are a third in length."""
  found = trajectories.of_states(paths.walk(12, 8, 3.0, tokens=320), 16)
  value = middle.statistics(found)
  assert value['drift'] > 0.6 and abs(value['alignment']) < 0.1
  assert regimes.classify([found]).scores['smooth'] == 0
  # A flow remains one in a frame that drifts.
  drifting = paths.flow(12, 8, tokens=320)
  drifting += np.linspace(0, 1, 13, dtype=np.float32)[:, None, None]
  found = trajectories.of_states(drifting, 16)
  assert middle.statistics(found)['drift'] > 0.3
  assert regimes.classify([found]).regime == 'smooth'


def test_unknown_directions_are_no_agreement():
  """Correlations of changing sign are no averaging, whatever their mean is."""
  states = np.asarray(paths.flow(12, 8, tokens=320))
  updates = np.diff(states, axis=0)
  flip = np.random.default_rng(0).choice([-1, 1], (12, 320, 1))
  states = np.concatenate(
    [states[:1], states[0] + np.cumsum(updates * flip, axis=0)]
  )
  answer = regimes.classify(
    [trajectories.of_states(states.astype(np.float32), 16)]
  )
  value = {item.name: item.value.value for item in answer.evidence}
  assert abs(value['alignment']) < 0.1 and value['departure'] > 0.6
  assert answer.scores['ensemble'] < 0.1


def test_early_is_by_three_quarters_of_the_layers(twelve):
  settled = np.zeros((16, 13), np.int64)
  settled[:, 8:12] = 1  # A token each at layers 8 to 11, of every group.
  found = middle.statistics(
    dataclasses.replace(twelve['ensemble'], settled=settled)
  )
  assert found['early'] == 0.5
  assert found['stop_spread'] == pytest.approx(np.std([8, 9, 10, 11]) / 12)


def test_depth_that_nobody_uses_is_not_compositional():
  states = paths.stopping(12, 8, tokens=320)
  states[5:] = states[5]
  answer = regimes.classify([trajectories.of_states(states, 16)])
  assert answer.regime == 'undecided'
  assert any('idle' in note for note in answer.notes)
