"""The design for a law: by hand where that can be done, and what it may spend."""

import numpy as np
import pytest

from familial.allocation import config
from familial.allocation import curves
from familial.allocation import optimal_design
from familial.allocation import replay
from familial.allocation import rounds
from familial.allocation import synthetic
from familial.core import errors
from familial.laws import forms
from familial.laws import levenberg_marquardt

LAW = config.Law('chinchilla')
FORM = forms.get('chinchilla')
THETA = FORM.theta(synthetic.LAW)


def sources(count=2, candidates=6, **how):
  pool = synthetic.curves(12, **how).curves
  rng = np.random.default_rng(0)
  return [
    replay.KnownCurves(
      [pool[i] for i in rng.choice(12, candidates, replace=False)]
    )
    for _ in range(count)
  ]


def test_the_variance_is_that_of_the_normal_equations():
  rng = np.random.default_rng(0)
  root = rng.normal(size=(4, 7, 3)) * [1.0, 1e3, 1e-3]
  information = np.swapaxes(root, 1, 2) @ root
  directions = rng.normal(size=(2, 3))
  found = optimal_design.variance(information, directions)
  direct = [
    np.mean([c @ np.linalg.inv(each) @ c for c in directions])
    for each in information
  ]
  np.testing.assert_allclose(found, direct, rtol=1e-6)


def test_information_is_of_correlated_points():
  # J' S^-1 J with S as the module states it, built and inverted whole.
  [source] = sources(1, 3)
  levels = optimal_design.information(source, LAW, THETA)
  assert not levels.information_MxKxPxP[:, 0].any()
  limits = np.array([source.limit(i) for i in range(3)])
  for i, level in ((0, 3), (1, 12), (2, 1)):
    flops = levels.flops_MxK[i, 1 : level + 1]
    points = [source.point(i, c) for c in flops]
    columns = {k: np.array([p[k] for p in points]) for k in ('N', 'D')}
    jacobian = levenberg_marquardt.evaluate(FORM, columns, THETA[None])[1][0]
    sd = 0.005 * (limits.max() / flops) ** 0.5
    noise = np.diag(sd**2) + 0.01**2
    np.testing.assert_allclose(
      levels.information_MxKxPxP[i, level],
      jacobian.T @ np.linalg.inv(noise) @ jacobian,
      rtol=1e-7,
      atol=1e-7 * np.abs(levels.information_MxKxPxP[i, level]).max(),
    )


def test_the_best_move_removes_most_per_flop():
  rng = np.random.default_rng(1)
  root = rng.normal(size=(3, 2, 4, 3))
  steps = np.cumsum(np.swapaxes(root, 2, 3) @ root, axis=1)
  levels = optimal_design.Levels(
    np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 8.0], [0.0, 3.0, 9.0]]),
    np.pad(steps, ((0, 0), (1, 0), (0, 0), (0, 0))),
  )
  before, directions = np.eye(3), np.ones((1, 3))
  spent, at = np.array([0.0, 1.0, 0.0]), np.array([0, 1, 0])

  def gain(i, level):
    own = levels.information_MxKxPxP[i]
    after = before + own[level] - own[at[i]]
    removed = 3.0 - directions[0] @ np.linalg.inv(after) @ directions[0]
    return removed / (levels.flops_MxK[i, level] - spent[i])

  def best_move(left):
    return optimal_design.best_move(levels, before, directions, spent, at, left)

  # (2, 2) costs 9 of the 7 that are left, and (1, 1) is done.
  allowed = [(0, 1), (0, 2), (1, 2), (2, 1)]
  assert best_move(7.0) == max(allowed, key=lambda move: gain(*move))
  assert best_move(0.5) is None


def run(sources, budgets, law=LAW):
  return optimal_design.OptimalDesign().allocate(
    sources, budgets, rounds.Settings(law=law)
  )


@pytest.mark.slow
def test_each_draw_has_its_own_budget_and_does_not_depend_on_the_others():
  found = run(sources(2), [1e18, 3e18])
  assert [each.budget for each in found] == [1e18, 3e18]
  for each in found:
    assert 0.3 * each.budget < each.total <= each.budget
    assert each.total == pytest.approx(sum(each.spent))
    assert len(each.rounds) == optimal_design.ROUNDS
  [alone] = run(sources(2)[1:], [3e18])
  assert alone.spent == found[1].spent


@pytest.mark.slow
def test_a_candidate_that_diverged_gets_no_more():
  first, *others = synthetic.curves(6).curves
  short = curves.Curve(
    first.name, first.flops[:2], first.loss[:2],
    {key: values[:2] for key, values in first.columns.items()},
    first.features, float(first.flops[2]),
  )  # fmt: skip
  [found] = run([replay.KnownCurves([short, *others])], [1e19])
  assert found.spent[0] <= first.flops[2]
  trained = [0 in closed.alive for closed in found.rounds]
  assert any(trained) and not any(trained[trained.index(True) + 1 :])


@pytest.mark.parametrize('usable', [5, 0])
def test_candidates_without_a_point_are_left_alone(usable):
  nothing = np.zeros(0)
  gone = curves.Curve('gone', nothing, nothing, {}, {}, 1e9)
  pool = [*synthetic.curves(6).curves[:usable], *[gone] * (6 - usable)]
  ledger = rounds.Ledger(replay.KnownCurves(pool), 1e19)
  plan = optimal_design.plan(ledger, LAW, THETA, rounds_left=1)
  assert bool(plan) == bool(usable) and set(plan) <= set(range(usable))


def test_a_form_of_unknown_constants_is_refused():
  with pytest.raises(errors.UserError, match=r"law.form: 'kaplan'"):
    run(sources(1), [1e18], config.Law('kaplan'))
