import dataclasses
import math

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from familial.core import text as text_lib


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (0.033333, '0.0333'),
    (2.5, '2.50'),
    (-12.345, '−12.3'),
    (99999.4, '99999'),
    (0, '0'),
    (3.2e12, '3.2×10¹²'),
    (1.5e-7, '1.5×10⁻⁷'),
    (None, '–'),
    (math.nan, '–'),
    (math.inf, '∞'),
  ],
)
def test_number(value, text):
  assert text_lib.number(value) == text


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (53_500, '53.5 k'),
    (1e6, '1 M'),
    (999_999, '1 M'),
    (2.56e9, '2.56 B'),
    (100, '100'),
  ],
)
def test_amount(value, text):
  assert text_lib.amount(value).replace(text_lib.SPACE, ' ') == text


@pytest.mark.parametrize(
  ('estimate', 'text'),
  [
    ((0.03123, 0.0241, 0.0382), '0.031 [0.024, 0.038]'),
    ((-0.0012, -0.0104, 0.0082), '−0.001 [−0.010, 0.008]'),
    ((61.2, 53.3, 66.8), '61 [53, 67]'),
    ((-0.01, -2.1, 2.1), '0.0 [−2.1, 2.1]'),
    ((1.5, 1.5, 1.5), '1.50 [1.50, 1.50]'),
    ((0.5, None, None), '0.500 (no interval)'),
    ((0.5, None, 0.7), '0.500 [−∞, 0.700]'),
    ((0.5, 0.25, None), '0.500 [0.250, ∞]'),
    (
      (1.39e-23, 7.24e-33, 1.58e-10),
      '1.39×10⁻²³ [7.24×10⁻³³, 1.58×10⁻¹⁰]',
    ),
    ((None, 0.1, 0.2), '–'),
  ],
)
def test_estimate_has_the_digits_of_its_interval(estimate, text):
  assert text_lib.estimate(*estimate).replace(text_lib.SPACE, ' ') == text


@pytest.mark.parametrize(
  ('value', 'error', 'text'),
  [
    (1.9904, 0.0143, '1.990 ± 0.014'),
    (-88.123, 1.2, '−88.1 ± 1.2'),
    (0.5, None, '0.500'),
    (100.0, 0.0, '100'),
    (None, 0.1, '–'),
  ],
)
def test_give_or_take_has_the_digits_of_its_error(value, error, text):
  assert (
    text_lib.give_or_take(value, error).replace(text_lib.SPACE, ' ') == text
  )


def test_some_says_how_many_more():
  assert text_lib.some(['a', 'b', 'c'], most=2) == 'a, b and 1 more'
  assert text_lib.some(['a', 'b']) == 'a, b'


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(3.2, '3.2 s'), (600, '10 min'), (7380, '2 h 3 min'), (200_000, '2 d 7 h')],
)
def test_duration(seconds, text):
  assert text_lib.duration(seconds) == text


@pytest.mark.parametrize(
  ('shown', 'text'),
  [
    (text_lib.percent(0.0312), '+3.1 %'),
    (text_lib.percent(-0.0312, 3), '−3.12 %'),
    (text_lib.percent(None), '–'),
    (text_lib.signed(0.0), '0'),
    (text_lib.trimmed(2.50), '2.5'),
    (text_lib.count(1, 'run'), '1 run'),
    (text_lib.count(0, 'run'), '0 runs'),
  ],
)
def test_signs_shares_and_counts(shown, text):
  assert shown.replace(text_lib.SPACE, ' ') == text


def test_a_table_is_as_wide_as_its_cells():
  rows = [['a', '1'], ['long', '22']]
  assert text_lib.table(['x', 'n'], rows, align='l').split('\n') == [
    'x      n', 'a      1', 'long  22',
  ]  # fmt: skip


@text_lib.brief
@dataclasses.dataclass(frozen=True)
class Large:
  rows: tuple[dict[str, float], ...]
  array: np.ndarray
  named: dict[str, np.ndarray]
  words: str
  small: tuple[int, ...] = (1, 2)
  none: tuple[int, ...] = ()
  inner: object = None


@given(st.integers(0, 500), st.integers(0, 500))
def test_a_large_record_prints_as_a_screen(rows, size):
  large = Large(
    tuple({'loss': 1.0 / (i + 1)} for i in range(rows)),
    np.zeros((size, 3)),
    {f'name_{i}': np.arange(size) for i in range(rows)},
    'word\n' * size,
  )
  large = dataclasses.replace(large, inner=large)
  lines = repr(large).splitlines()
  parts = len(dataclasses.fields(Large))
  assert len(lines) == 1 + 2 * parts  # Its parts, and those of its part.
  assert max(map(len, lines)) < 140
  assert f'({size}, 3)' in lines[2] and '1, 2' in lines[5]
