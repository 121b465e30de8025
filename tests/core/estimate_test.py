import math

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import stats

from familial.core import estimate as estimate_lib
from familial.core import text
from familial.core.estimate import Estimate

NUMBERS = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)


def ends(estimate):
  return estimate.value, estimate.lo, estimate.hi


@hypothesis.given(st.lists(NUMBERS, min_size=2, max_size=8))
def test_mean_has_student_s_interval(values):
  found = Estimate.of(iter(values))
  half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
  wanted = np.mean(values) + half * np.array([0, -1, 1])
  assert ends(found) == pytest.approx(wanted, rel=1e-9, abs=1e-6)


def test_one_value_has_no_interval():
  assert Estimate.of([2.0]) == Estimate(2.0) == Estimate.around(2.0, None)
  assert Estimate.around(2.0, 0.5) == Estimate(2.0, 1.5, 2.5)
  assert not Estimate(2.0).bounded and not Estimate(2.0, 1.0).bounded
  assert Estimate(2.0, 1.0, 3.0).bounded


@pytest.mark.parametrize('level', [0.9, 0.95])
@pytest.mark.parametrize('degrees', [1, 2, 30])
def test_quantile_is_student_s(degrees, level):
  wanted = stats.t.ppf((1 + level) / 2, degrees)
  assert estimate_lib.quantile(degrees, level) == pytest.approx(wanted)


def test_slope_has_the_interval_of_least_squares():
  rng = np.random.default_rng(0)
  for count in (3, 4, 20):
    x = rng.normal(size=count)
    y = 0.5 * x + rng.normal(size=count)
    fit = stats.linregress(x, y)
    half = stats.t.ppf(0.975, count - 2) * fit.stderr
    wanted = fit.slope, fit.slope - half, fit.slope + half
    assert ends(Estimate.slope(x, y)) == pytest.approx(wanted)


def test_intervals_hold_the_mean_as_often_as_they_say():
  rng = np.random.default_rng(0)
  held = [1.0 in Estimate.of(rng.normal(1.0, 2.0, 4)) for _ in range(2000)]
  assert np.mean(held) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize('function', [math.exp, lambda x: -x])
def test_map_keeps_the_order_of_the_ends(function):
  found = Estimate(1.0, 0.5, 2.0).map(function)
  assert ends(found) == (
    function(1.0), *sorted((function(0.5), function(2.0)))
  )  # fmt: skip
  assert Estimate(1.0, 0.5).map(function).lo == function(0.5)
  assert Estimate(1.0).map(function) == Estimate(function(1.0))


def test_within_clips_the_ends():
  assert Estimate(0.9, 0.7, 1.1).within(0, 1) == Estimate(0.9, 0.7, 1.0)
  assert Estimate(0.1, -0.2).within(0, 1) == Estimate(0.1, 0.0)


@pytest.mark.parametrize(
  ('lo', 'hi', 'sign'),
  [
    (0.1, 0.3, 'higher'),
    (0.1, None, 'higher'),
    (-0.3, -0.1, 'lower'),
    (None, -0.1, 'lower'),
    (-0.1, 0.3, 'n.s.'),
    (0.0, 0.3, 'n.s.'),
    (-0.3, 0.0, 'n.s.'),
    (None, None, 'n.s.'),
  ],
)
def test_sign_needs_an_interval_that_excludes_0(lo, hi, sign):
  assert Estimate(0.2, lo, hi).sign == sign


def test_only_a_known_interval_holds_a_value():
  assert 1.0 in Estimate(1.0, 1.0, 2.0) and 2.0 in Estimate(1.0, 1.0, 2.0)
  assert 0.99 not in Estimate(1.0, 1.0, 2.0)
  assert 1.0 not in Estimate(1.0) and 1.0 not in Estimate(1.0, 0.0)


@pytest.mark.parametrize(
  ('spec', 'shown'),
  [
    ('', '0.031 [0.024, 0.038]'),
    ('%', '3.1 [2.4, 3.8] %'),
    ('.3', '0.0312 [0.0241, 0.0382]'),
    ('.1%', '3 [2, 4] %'),
  ],
)
def test_format_is_to_the_digits_of_the_interval(spec, shown):
  made = Estimate(0.03123, 0.02412, 0.03821)
  assert format(made, spec).replace(text.SPACE, ' ') == shown
  assert str(made) == f'{made}'
