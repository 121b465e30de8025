"""A fit in any units is the same fit, or a flag says that the units are odd."""

import numpy as np
import pytest

from familial.laws import forms
from familial.laws import inference
from familial.laws import table as tables
from tests.laws import points

OPTIONS = inference.Options(starts=8, resamples=0, profiles='none')
COLUMNS = [
  ('params', 'tokens', 'flops'),
  ('params', 'flops'),  # tokens = flops / (6 params)
  ('params', 'tokens'),
]


def fitted(columns):
  rows = zip(*(values.tolist() for values in columns.values()), strict=True)
  records = [dict(zip(columns, row, strict=True)) for row in rows]
  needs = forms.get('chinchilla').columns
  table = tables.from_records(records, {}, 'a.csv', '', needs)
  result = inference.fit('chinchilla', table, OPTIONS)
  [compute] = result.compute
  values = {k.partition('(')[0]: v.value for k, v in result.derived.items()}
  return compute, values, result


@pytest.mark.parametrize(
  'count', [6, pytest.param(300, marks=pytest.mark.slow)]
)
def test_the_optimum_scales_with_the_units(count):
  columns = points.columns()
  columns['flops'] = 6 * columns['params'] * columns['tokens']
  plain_compute, plain, _ = fitted(columns)
  rng, missed = np.random.default_rng(count), 0
  for number in range(count):
    scale = dict(zip(COLUMNS[0], 10 ** rng.uniform(-12, 3, 3), strict=True))
    names = COLUMNS[number % len(COLUMNS)]
    own = {name: columns[name] * scale[name] for name in names}
    compute, found, result = fitted({**own, 'loss': columns['loss']})
    if 'flops' not in names:
      scale['flops'] = scale['params'] * scale['tokens']
    if 'tokens' not in names:
      scale['tokens'] = scale['flops'] / scale['params']
    assert compute == pytest.approx(plain_compute * scale['flops'])
    expected = {
      'N_opt': plain['N_opt'] * scale['params'],
      'D_opt': plain['D_opt'] * scale['tokens'],
      'L_opt': plain['L_opt'],
      'a': plain['a'],
    }
    if {k: found[k] for k in expected} != pytest.approx(expected, rel=1e-3):
      assert any('--units' in flag for flag in result.flags), scale
      missed += 1  # The few starts are of the usual units.
  assert missed <= 0.05 * count
