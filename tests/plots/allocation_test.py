"""What the figures of allocations show is what was done."""

from matplotlib import colors
import numpy as np
import pytest

from familial.allocation import curves
from familial.allocation import frontier
from familial.allocation import halving
from familial.allocation import policies
from familial.allocation import rounds
from familial.allocation import surrogate
from familial.allocation import synthetic
from familial.plots import allocation
from familial.plots import replay as replay_lib
from familial.plots import style
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


def lines(ax, label):
  return [line for line in ax.lines if line.get_label() == label]


def test_a_curve_is_solid_as_far_as_it_was_trained(grid, allocate):
  found = allocate('sh')
  course = allocation.Course('sh', grid, found.curves, found.rounds)
  [ax] = allocation.courses([course]).axes
  left = allocation.pruned(found.rounds)
  # 5, 2 and 1 train: one stays to the end.
  assert sorted(left.values()) == [1, 1, 1, 2]
  for label, some in {
    'pruned after round 1': [i for i in left if left[i] == 1],
    'pruned after round 2': [i for i in left if left[i] == 2],
    'not pruned': [i for i in range(5) if i not in left],
  }.items():
    drawn = sorted(line.get_xdata()[-1] for line in lines(ax, label))
    assert drawn == sorted(found.spent[i] for i in some)
  colours = {colors.to_hex(line.get_color()) for line in ax.lines}
  assert len(colours) == 4  # Pruned after 1 and 2, kept, not trained.
  whole = sorted(
    line.get_xdata()[-1] for line in lines(ax, 'not trained by it')
  )
  ends = [curve.end for curve in grid]
  assert whole == sorted(
    end for end, spent in zip(ends, found.spent, strict=True) if end > spent
  )
  crosses = [line for line in ax.lines if line.get_marker() == 'X']
  assert sorted(float(line.get_xdata()[0]) for line in crosses) == sorted(
    found.spent[i] for i in left
  )


def test_predictions_stand_beside_what_came_true(grid, allocate):
  found = allocate('sh_lmc')
  shown = allocation.predictions(found.rounds)
  course = allocation.Course('sh_lmc', grid, found.curves, found.rounds)
  ax = allocation.courses([course]).axes[1]
  bars = [line for line in ax.lines if len(line.get_xdata()) == 2]
  order = sorted(shown, key=lambda i: shown[i][1])
  assert order and [tuple(bar.get_ydata()) for bar in bars] == [
    shown[i][2:4] for i in order
  ]
  true = [line.get_ydata()[0] for line in lines(ax, 'what it came to')]
  assert true == [float(grid[i].at(shown[i][0])) for i in order]
  # The last round in which a survivor was ranked is the one that is shown.
  ranked = found.rounds[1]
  for k, i in enumerate(ranked.alive):
    assert shown[i][1:4] == ranked.predicted[k]


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
  [ax] = allocation.courses(
    [allocation.Course('law', grid, known, [one, none])]
  ).axes
  assert len(lines(ax, 'trained')) == 1
  assert len(lines(ax, 'not trained by it')) == 5


def test_lines_go_as_far_as_laws_are_asked(grid, allocate):
  found = allocate('sh')
  _, high = frontier.span(grid)
  shown = allocation.frontiers(grid, {'sh': found.curves}, 10 * high)
  [whole] = lines(shown.axes[0], allocation.WHOLE)
  flops = whole.get_xdata()
  assert flops[-1] == pytest.approx(high)
  assert whole.get_ydata() == pytest.approx(frontier.frontier(grid, flops))
  dashed = [
    line for line in shown.axes[0].lines if line.get_linestyle() == '--'
  ]
  assert len(dashed) == 2
  of_sh = frontier.line(found.curves, *frontier.span(found.curves))
  end = dashed[1].get_xdata()[-1], dashed[1].get_ydata()[-1]
  assert end == pytest.approx((10 * high, float(of_sh(10 * high))))


def estimate(value, half=0.001):
  ends = (None, None) if value is None else (value - half, value + half)
  return {'value': value, 'lo': ends[0], 'hi': ends[1]}


def cell(budget, gains, errors):
  return {
    'table': 'curves',
    'candidates': 4,
    'budget': budget,
    'policies': {
      name: {
        'gain': estimate(gain),
        'law_error': estimate(errors.get(name)),
        'line_error': estimate(0.2),
        'saving': estimate(1 - budget / 1e20),
        'spent': estimate(0.5 * budget),
      }
      for name, gain in gains.items()
    },
  }


def test_a_gain_far_below_the_others_is_told_not_drawn_to_scale():
  gains = {'sh': 0.0, 'oracle': 0.01, 'uniform': -0.3, 'law': -0.012}
  [ax] = replay_lib.gains([cell(1e19, gains, {})]).axes
  assert [text.get_text() for text in ax.texts] == ['−30.0 %']
  assert ax.get_xlim()[0] > -10
  names = [text.get_text() for text in ax.get_yticklabels()]
  assert names == ['oracle', 'law', 'uniform']
  [law] = [
    line for line in ax.lines if line.get_marker() == allocation.look('law')[1]
  ]
  assert (law.get_xdata()[0], law.get_ydata()[0]) == (pytest.approx(-1.2), 1)


def test_errors_are_drawn_against_what_was_spent():
  gains = {'sh': 0.0, 'oracle': 0.01}
  cells = [
    cell(2e19, gains, {'sh': 0.02}),
    cell(1e19, gains, {'sh': 0.05, 'oracle': 0.03}),
    {**cell(1e19, gains, {}), 'candidates': 8},
  ]
  [family] = replay_lib.families(cells)
  assert [each['budget'] for each in family] == [1e19, 2e19]
  law = replay_lib.law_errors(family, 10).axes[0]
  [sh] = lines(law, 'sh')
  assert sh.get_ydata() == pytest.approx([5, 2])
  assert sh.get_xdata() == pytest.approx([5, 10], rel=0.05)  # side by side
  assert law.get_xscale() == law.get_yscale() == 'log'


def test_every_policy_has_a_look_of_its_own():
  looks = {allocation.look(name) for name in policies.POLICIES}
  assert len(looks) == len(policies.POLICIES)
  assert style.OTHER not in looks
