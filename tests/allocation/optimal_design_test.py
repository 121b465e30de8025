"""The design for a law: by hand where that can be done, and what it may spend."""

import numpy as np
import pytest

from familial.allocation import config
from familial.allocation import curves
from familial.allocation import ledger
from familial.allocation import optimal_design
from familial.allocation import replay
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
    replay.Replay([pool[i] for i in rng.choice(12, candidates, replace=False)])
    for _ in range(count)
  ]


def test_the_variance_is_that_of_the_normal_equations():
  rng = np.random.default_rng(0)
  root = rng.normal(size=(4, 7, 3)) * [1.0, 1e3, 1e-3]
  information = np.swapaxes(root, 1, 2) @ root
  directions = rng.normal(size=(2, 3))
  found = optimal_design._variance(information, directions)
  direct = [
    np.mean([c @ np.linalg.inv(each) @ c for c in directions])
    for each in information
  ]
  np.testing.assert_allclose(found, direct, rtol=1e-6)


def test_information_is_of_correlated_points():
  # J' S^-1 J with S as the module states it, built and inverted whole.
  [source] = sources(1, 3)
  options = optimal_design._options(source, 3, FORM, LAW, THETA)
  limits = np.array([source.limit(i) for i in range(3)])
  for i, level in ((0, 2), (1, 11), (2, 0)):
    flops = options.flops_MxK[i, : level + 1]
    points = [source.point(i, c) for c in flops]
    columns = {k: np.array([p[k] for p in points]) for k in ('N', 'D')}
    jacobian = levenberg_marquardt.evaluate(FORM, columns, THETA[None])[1][0]
    sd = 0.005 * (limits.max() / flops) ** 0.5
    noise = np.diag(sd**2) + 0.01**2
    np.testing.assert_allclose(
      options.information_MxKxPxP[i, level],
      jacobian.T @ np.linalg.inv(noise) @ jacobian,
      rtol=1e-7,
      atol=1e-7 * np.abs(options.information_MxKxPxP[i, level]).max(),
    )


def test_the_best_move_removes_most_a_flop():
  rng = np.random.default_rng(1)
  root = rng.normal(size=(3, 2, 4, 3))
  steps = np.swapaxes(root, 2, 3) @ root
  options = optimal_design._Options(
    np.array([[1.0, 2.0], [1.0, 8.0], [3.0, 9.0]]), np.cumsum(steps, axis=1)
  )
  before, directions = np.eye(3), np.ones((1, 3))
  spent, at, left = np.array([0.0, 1.0, 0.0]), np.array([-1, 0, -1]), 7.0

  def gain(i, level):
    known = options.information_MxKxPxP[i, at[i]] if at[i] >= 0 else 0.0
    after = before + options.information_MxKxPxP[i, level] - known
    removed = 3.0 - directions[0] @ np.linalg.inv(after) @ directions[0]
    return removed / (options.flops_MxK[i, level] - spent[i])

  # (2, 1) costs 9 of the 7 that are left, and (1, 0) is done.
  allowed = [(0, 0), (0, 1), (1, 1), (2, 0)]
  best = max(allowed, key=lambda move: gain(*move))
  assert (
    optimal_design._best_move(options, before, directions, spent, at, left)
    == best
  )
  assert (
    optimal_design._best_move(options, before, directions, spent, at, 0.5)
    is None
  )


@pytest.mark.slow
def test_each_draw_has_its_own_budget_and_never_spends_more():
  found = optimal_design.run(sources(2), [1e18, 3e18], LAW)
  assert [each.budget for each in found] == [1e18, 3e18]
  for each in found:
    assert 0.3 * each.budget < each.total <= each.budget
    assert each.total == pytest.approx(sum(each.spent))
    assert len(each.rounds) == optimal_design.ROUNDS


@pytest.mark.slow  # Each number of draws is a program.
def test_a_draw_does_not_depend_on_the_others():
  both = optimal_design.run(sources(2), [1e18, 3e18], LAW)
  [alone] = optimal_design.run(sources(2)[1:], [3e18], LAW)
  assert alone.spent == both[1].spent


@pytest.mark.slow
def test_a_candidate_that_diverged_gets_no_more():
  [source] = sources(1)
  first = source._curves[0]
  source._curves[0] = curves.Curve(
    first.name, first.flops[:2], first.loss[:2],
    {key: values[:2] for key, values in first.columns.items()},
    first.features, float(first.flops[2]),
  )  # fmt: skip
  [found] = optimal_design.run([source], [1e19], LAW)
  assert found.spent[0] <= first.flops[2]
  trained = [0 in made.alive for made in found.rounds]
  assert any(trained) and not any(trained[trained.index(True) + 1 :])


def test_candidates_without_a_point_are_left_alone():
  [source] = sources(1)
  nothing = np.zeros(0)
  source._curves[2] = curves.Curve('gone', nothing, nothing, {}, {}, 1e9)
  plan = optimal_design._plan(
    source,
    ledger.Ledger(1e19, 6),
    {},
    FORM,
    LAW,
    THETA,
    optimal_design.ROUNDS - 1,
  )
  assert plan and 2 not in plan
  for i in range(6):
    source._curves[i] = source._curves[2]
  assert not optimal_design._plan(
    source, ledger.Ledger(1e19, 6), {}, FORM, LAW, THETA, 0
  )


def test_a_form_of_unknown_constants_is_refused():
  with pytest.raises(errors.UserError, match=r"law.form: 'kaplan'"):
    optimal_design.run(sources(1), [1e18], config.Law('kaplan'))
