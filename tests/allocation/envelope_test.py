"""Frontiers, lines and the area between them, against what they must be."""

import numpy as np
import pytest

from familial.allocation import curves
from familial.allocation import envelope


def power(name, level, slope, low=1.0, high=1e4, points=200):
  """A curve with ln L = level + slope ln C."""
  flops = np.geomspace(low, high, points)
  return curves.Curve(name, flops, np.exp(level + slope * np.log(flops)))


def test_the_frontier_is_the_best_of_all_curves():
  both = [power('a', 1.0, -0.1), power('b', 2.0, -0.3)]
  flops = np.geomspace(1, 1e4, 7)
  best = np.minimum(
    np.exp(1 - 0.1 * np.log(flops)), np.exp(2 - 0.3 * np.log(flops))
  )
  np.testing.assert_allclose(envelope.frontier(both, flops), best, rtol=1e-4)


def test_the_nearest_point_of_a_curve_may_be_another_compute():
  curve = curves.Curve('a', np.array([1.0, 100.0]), np.array([3.0, 2.0]))
  flops = np.array([5.0, 20.0])
  assert envelope.frontier([curve], flops, 'nearest').tolist() == [3.0, 2.0]
  between = envelope.frontier([curve], flops)
  assert 2.0 < between[1] < between[0] < 3.0


@pytest.mark.parametrize('match', envelope.MATCHES)
def test_a_line_through_a_power_law_is_that_law(match):
  found = envelope.line([power('a', 1.5, -0.07)], 10.0, 1e3, match)
  assert found.slope == pytest.approx(-0.07, abs=5e-4)
  assert found.level == pytest.approx(1.5, abs=5e-3)
  assert float(found(100.0)) == pytest.approx(
    np.exp(1.5 - 0.07 * np.log(100)), rel=1e-3
  )


def test_an_irreducible_term_is_found_and_a_line_is_not_that():
  flops = np.geomspace(1e3, 3e5, 400)
  curve = curves.Curve('a', flops, 2.0 + 7.0 * flops**-0.3)
  found, nearest = envelope.describe([curve])
  assert (found.match, nearest.match) == envelope.MATCHES
  assert found.E == pytest.approx(2.0, rel=1e-3)
  assert found.A == pytest.approx(7.0, rel=1e-2)
  assert found.alpha == pytest.approx(0.3, rel=1e-2)
  assert found.residual_E < 1e-5 < 1e-3 < found.residual


def test_the_area_between_lines_is_the_integral():
  rng = np.random.default_rng(0)
  for _ in range(50):
    a, b = (envelope.Line(*rng.normal(size=2)) for _ in range(2))
    low, high = np.exp(np.sort(rng.normal(size=2) * 3))
    x = np.linspace(np.log(low), np.log(high), 20001)
    gap = np.abs((a.slope - b.slope) * x + a.level - b.level)
    integral = np.trapezoid(gap, x)
    assert envelope.area(a, b, low, high) == pytest.approx(integral, rel=1e-4)
  assert envelope.area(a, a, low, high) == 0.0
  # One per cent apart over a factor e.
  shifted = a._replace(level=a.level + 0.01)
  assert envelope.area(a, shifted, 1.0, np.e) == pytest.approx(0.01)
