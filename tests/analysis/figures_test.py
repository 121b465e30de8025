"""The figures of toys and layers do not show what the numbers do not say."""

import pytest

from familial.plots import regimes
from familial.plots import toys

LOSS = [[[8.0, 4.0, 2.0, 1.0], [9.0, 4.5, 2.2, 1.1]]]


def estimate(value, reach=0.1):
  return {'value': value, 'lo': value - reach, 'hi': value + reach}


def curve(temperature=None, teacher='tied', study='only', **changes):
  return {
    'study': study, 'teacher': teacher, 'temperature': temperature,
    'depths': [1, 2, 4, 8], 'loss': LOSS, 'exponent': estimate(1.25),
    'curvature': estimate(0.1), 'deep': estimate(1.0),
    'evolution': [{'steps': s, **estimate(s / 100)} for s in (10, 50, 100)],
    **changes,
  }  # fmt: skip


@pytest.mark.parametrize(
  ('changes', 'bent'),
  [
    ({}, False),
    ({'curvature': estimate(1.2)}, True),
    ({'curvature': estimate(-1.2)}, True),
    ({'curvature': estimate(1.2, reach=2.0)}, False),
    ({'curvature': estimate(0.8)}, False),
    ({'curvature': {'value': 1.2, 'lo': None, 'hi': None}}, False),
    ({'deep': estimate(-0.2)}, True),
  ],
)
def test_a_line_of_what_is_no_power_law_has_no_number(changes, bent):
  assert toys.bent(curve(**changes)) == bent
  [ax] = toys.losses([curve(**changes)]).axes
  [line] = [each for each in ax.lines if each.get_linestyle() in ('-', '--')]
  assert line.get_linestyle() == ('--' if bent else '-')
  assert any('1.25' in text.get_text() for text in ax.texts) == (not bent)


def styles(ax):
  """Of what has points, how they are joined."""
  lines = [each.lines[0] for each in ax.containers]
  return [line.get_linestyle() for line in lines if len(line.get_xdata())]


def test_two_temperatures_are_no_line_and_panels_are_of_one_height():
  curves = [
    *(curve(t, exponent=estimate(t)) for t in (0.5, 1.0)),
    *(curve(t, study='other', exponent=estimate(2 + t)) for t in (1, 2, 3)),
  ]
  figure = toys.temperatures(curves)
  assert [styles(ax) for ax in figure.axes] == [['None'], ['-']]
  first, second = (ax.get_ylim() for ax in figure.axes)
  assert first == second and first[0] < 0.5 and first[1] > 5
  first, second = (
    ax.get_ylim() for ax in toys.evolution(
      [curve(1.0), curve(1.0, study='other', evolution=[
        {'steps': s, **estimate(s / 10)} for s in (10, 50, 100)
      ])]
    ).axes
  )  # fmt: skip
  assert first == second


def group(costs):
  rows = [{'layer': n, 'mean': cost} for n, cost in enumerate(costs, 1)]
  return {
    'depth': len(rows), 'exits': 1,
    'layers': dict.fromkeys(regimes.LAYERS, rows),
  }  # fmt: skip


@pytest.mark.parametrize(
  ('costs', 'shown'),
  [
    ([2.0, 0.2, 0.004], [0, 0.001, 0.01, 0.1, 1]),
    ([0.02, 0.004, -0.005], [-0.001, 0, 0.001, 0.01, 0.1]),
  ],
)
def test_the_cost_of_a_layer_is_seen_from_zero(costs, shown):
  ax = regimes.layers([group(costs)]).axes[-1]
  low, high = ax.get_ylim()
  ticks = [tick for tick in ax.get_yticks() if low <= tick <= high]
  assert ticks == pytest.approx(shown)
  assert low < min(0, *costs) and high > max(costs)
  assert f'{shown[-1]:g}' in [text.get_text() for text in ax.get_yticklabels()]
