import numpy as np
import pytest

from familial.laws import frontier


@pytest.mark.parametrize('n_opt', [3e4, 1.5e6, 7e9])
@pytest.mark.parametrize('curvature', [0.003, 0.2])
def test_recovers_a_parabola_exactly(n_opt, curvature):
  params = n_opt * np.array([0.2, 0.5, 0.8, 2.0, 4.0])
  losses = 2.5 * np.exp(curvature * np.log(params / n_opt) ** 2)
  found = frontier.minimum(params, losses)
  assert found.interior and found.points == 5 and not found.flag
  np.testing.assert_allclose(found.n_opt, n_opt, rtol=1e-9)
  np.testing.assert_allclose(found.loss, 2.5, rtol=1e-12)
  np.testing.assert_allclose(found.curvature, curvature, rtol=1e-9)
  np.testing.assert_allclose(found.curve(params), losses, rtol=1e-12)


def test_order_and_repeats_do_not_matter():
  params = np.array([1e5, 2e5, 4e5, 8e5])
  losses = np.array([2.2, 2.0, 2.05, 2.3])
  there = frontier.minimum(params, losses)
  back = frontier.minimum(np.tile(params[::-1], 2), np.tile(losses[::-1], 2))
  np.testing.assert_allclose(there.n_opt, back.n_opt)
  assert back.points == 8


@pytest.mark.parametrize(
  ('losses', 'best'), [([4.0, 3.0, 2.4, 2.0], 8e5), ([2.0, 2.1, 2.4, 3.0], 1e5)]
)
def test_minimum_at_the_edge_is_flagged_not_fitted(losses, best):
  found = frontier.minimum([1e5, 2e5, 4e5, 8e5], losses)
  assert not found.interior and found.flag == frontier.AT_EDGE
  assert found.n_opt == best and found.loss == min(losses)


@pytest.mark.parametrize('losses', [[2.0, 2.5, 2.6, 2.1], [3.0, 3.0, 3.0, 3.0]])
def test_curve_that_does_not_bend_upwards_is_flagged(losses):
  found = frontier.minimum([1e5, 2e5, 4e5, 8e5], losses)
  assert not found.interior and found.flag == frontier.NOT_CONVEX


def test_straight_line_is_flagged():
  params = np.geomspace(1e5, 1e6, 5)
  found = frontier.minimum(params, 5 * params**-0.05)
  assert not found.interior and found.flag == frontier.NOT_CONVEX


@pytest.mark.parametrize('params', [[1e5], [1e5, 2e5], [1e5, 2e5, 1e5, 2e5]])
def test_fewer_than_three_sizes_are_flagged(params):
  found = frontier.minimum(params, np.linspace(3, 2, len(params)))
  assert not found.interior and found.flag == frontier.TOO_FEW
  assert found.points == len(params)
