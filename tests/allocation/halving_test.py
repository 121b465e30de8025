"""Successive Halving's rules, worked by hand, and its bound."""

import math

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from familial.allocation import curves
from familial.allocation import halving
from familial.allocation import policies
from familial.allocation import replay
from familial.allocation import rounds
from familial.core import errors
from tests.allocation import replays


def curve(name, losses, step=1.0, diverged_at=None):
  flops = step * np.arange(1, len(losses) + 1)
  columns = {'N': np.ones(len(losses)), 'D': flops / 6}
  return curves.Curve(
    name, flops, np.array(losses, float), columns, {}, diverged_at
  )


def line(name, level, points=64):
  """A curve that is flat, so that only its level matters."""
  return curve(name, [level] * points)


def allocate(name, grid, budget, eta=2, **settings):
  return replays.allocate(name, [grid], budget, eta=eta, **settings)[0]


@pytest.mark.parametrize(
  ('candidates', 'eta', 'counts'),
  [
    (5, 2, (5, 2, 1)),
    (8, 2, (8, 4, 2)),
    (9, 2, (9, 4, 2, 1)),
    (20, 2, (20, 10, 5, 2, 1)),
    (20, 3, (20, 6, 2)),
    (20, 20, (20,)),
    (20, 21, (20,)),
    # log(125) / log(5) is 3.0000000000000004 in floating point.
    (125, 5, (125, 25, 5)),
    (2, 2, (2,)),
  ],
)
def test_rounds_are_counted_in_whole_numbers(candidates, eta, counts):
  assert halving.survivors(candidates, eta) == counts


def test_a_bracket_worked_by_hand():
  # 3 rounds of 5, 2 and 1 for B = 30: shares 2, 5, 10.
  grid = [line('abcde'[i], level) for i, level in enumerate((5, 1, 4, 2, 3))]
  found = allocate('sh', grid, 30.0)
  assert [r.share for r in found.rounds] == [2.0, 5.0, 10.0]
  assert [r.alive for r in found.rounds] == [(0, 1, 2, 3, 4), (1, 3), (1,)]
  assert found.rounds[1].kept == (1,)
  np.testing.assert_allclose(found.spent, [2, 17, 2, 7, 2], rtol=1e-12)
  assert found.total <= 30.0


def test_what_a_curve_that_ends_leaves_is_not_spent():
  grid = [line('short', 1.0, points=3), line('b', 2.0), line('c', 3.0)]
  found = allocate('sh', grid, 18.0)  # Shares of 3 and 9.
  assert found.spent == pytest.approx((3, 3, 3))
  assert found.rounds[1].alive == (0,)
  assert found.total == pytest.approx(9.0)


def test_survivors_of_one_score_are_the_first():
  grid = [line(name, 1.0) for name in 'abcdef']
  assert allocate('sh', grid, 36.0).rounds[0].kept == (0, 1, 2)


def test_one_round_equals_uniform():
  grid = [line(str(i), 1.0 + i) for i in range(6)]
  one = allocate('sh', grid, 60.0, eta=6)
  uniform = allocate('uniform', grid, 60.0)
  assert one.spent == uniform.spent
  assert len(one.rounds) == 1


def test_what_diverged_is_kept_by_nobody_however_good_it_was():
  grid = [
    curve('nan', [0.5, 0.4], diverged_at=2.5),
    line('b', 2.0),
    line('c', 3.0),
    line('d', 4.0),
  ]
  found = allocate('sh', grid, 40.0)  # Shares of 5 and 10.
  assert found.rounds[0].kept == (1, 2)
  assert found.rounds[0].score[0] is None
  assert found.spent[0] == 2.5  # Where it diverged.
  assert found.best == 0.4  # It was seen.


def test_what_has_shown_no_loss_yet_goes_first():
  late = curves.Curve('late', np.array([50.0, 60]), np.array([0.1, 0.1]))
  found = allocate('sh', [late, line('b', 2.0)], 4.0, eta=2)
  assert found.rounds[0].seen == (None, 2.0)
  # Two candidates make one round at eta = 2, four make two.
  found = allocate('sh', [late, *[line(n, 2.0) for n in 'bcd']], 8.0)
  assert 0 not in found.rounds[0].kept
  assert found.spent[0] == 1.0  # Trained, though nothing was seen of it.


@pytest.mark.parametrize(
  ('candidates', 'budget', 'eta', 'what'),
  [
    (1, 1.0, 2, 'candidates: 1 is not allowed'),
    (3, math.nan, 2, 'budget: nan'),
    (3, 1.0, 1, 'eta: 1 is not allowed; it must be at least 2'),
  ],
)
def test_what_cannot_be_allocated_is_one_line(candidates, budget, eta, what):
  grid = [line(str(i), 1.0) for i in range(candidates)]
  with pytest.raises(errors.UserError, match=what):
    allocate('sh', grid, budget, eta)


def test_the_ledger_gives_nothing_back_and_never_exceeds():
  ledger = rounds.Ledger(replay.KnownCurves([line('a', 1.0)] * 2), 10.0)
  ledger.charge({0: 4.0})
  with pytest.raises(ValueError, match='candidate 0: 3 FLOPs, after 4'):
    ledger.charge({0: 3.0})
  with pytest.raises(ValueError, match='exceed the budget'):
    ledger.charge({1: 6.1})
  assert ledger.total == 4.0


@st.composite
def grids(draw):
  """Candidates whose losses jump about, of several lengths."""
  count = draw(st.integers(2, 12))
  loss = st.floats(0.5, 10.0)
  return [
    curve(
      str(i),
      draw(st.lists(loss, min_size=2, max_size=12)),
      step=draw(st.floats(0.1, 3.0)),
    )
    for i in range(count)
  ]


@hypothesis.given(grids(), st.floats(1.0, 200.0), st.integers(2, 4))
@hypothesis.settings(max_examples=100, deadline=None)
def test_no_policy_of_a_bracket_beats_the_oracle(grid, budget, eta):
  rng = np.random.default_rng(0)

  def any_rank(survey, seed):
    return halving.Ranking(rng.uniform(size=survey.alive_SxM.shape))

  bound = allocate('oracle', grid, budget, eta)
  wild = policies.SuccessiveHalving(any_rank)
  for found in (*(allocate(p, grid, budget, eta) for p in (wild, 'sh')), bound):
    assert found.best >= bound.best
    assert found.total <= budget
    for i, whole in enumerate(grid):
      assert found.spent[i] <= whole.end
      assert found.curves[i].best >= whole.best


def test_decisions_that_stand_are_not_made_again():
  grid = [line(str(i), 1.0 + i) for i in range(8)]
  whole = allocate('sh', grid, 80.0)
  heard = []
  worst = policies.SuccessiveHalving(
    lambda survey, seed: halving.Ranking(-survey.seen_SxM)
  )
  again = allocate(
    worst, grid, 80.0, decided=whole.rounds[:1], on_round=heard.append
  )
  assert again.rounds[0] == whole.rounds[0]
  assert again.rounds[1].alive == whole.rounds[1].alive == (0, 1, 2, 3)
  assert again.rounds[1].kept == (2, 3)  # By another rank than before.
  assert len(heard) == 2
