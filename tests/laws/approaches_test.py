"""Compute-optimal sizes by envelope, IsoFLOP curves and law."""

import dataclasses
import functools

import numpy as np
import pytest

from familial.laws import fit_record
from familial.laws import frontier
from familial.laws import inference
from tests.laws import points

# alpha and beta; their ratios go from 0.5 to 2.
LAWS = (
  (0.34, 0.68),
  (0.34, 0.5),
  (0.34, 0.37),
  (0.35, 0.35),
  (0.5, 0.34),
  (0.66, 0.33),
)
WIDTHS = (4, 16)  # largest over smallest size of a budget
OPTIONS = inference.Options(
  starts=64, resamples=200, profiles='none', delta=np.inf
)
FIRST, E = 1e18, 1.7


def law_of(alpha, beta):
  """The law whose optimum at `FIRST` is at 1.5e8, and E of 2.5 nats or so."""
  n, d = 1.5e8, FIRST / 6 / 1.5e8
  return {
    'E': E, 'A': 0.35 / alpha * n**alpha, 'B': 0.35 / beta * d**beta,
    'alpha': alpha, 'beta': beta,
  }  # fmt: skip


def sweep(law, width=4, noise=0.0, seed=0, budgets=6, sizes=7, off=None):
  """A sweep around the optima, and the optimum of each row's budget."""
  rng = np.random.default_rng(seed)
  compute = np.geomspace(FIRST, 3e20, budgets)
  best, _ = points.closed_form(law, compute)
  shift = rng.uniform(-0.15, 0.15, budgets) if off is None else off
  steps = np.linspace(-0.5, 0.5, sizes) * np.log(width)
  n = (np.log(best) + shift)[:, None] + steps
  n = np.exp(n).ravel()
  d = np.repeat(compute, sizes) / (6 * n)
  loss = law['E'] + law['A'] / n ** law['alpha'] + law['B'] / d ** law['beta']
  loss = loss * np.exp(noise * rng.standard_normal(len(n)))
  table = points.table({'params': n, 'tokens': d, 'loss': loss})
  return table, best


@functools.cache
def noisy():
  table, _ = sweep(law_of(0.34, 0.37), width=16, noise=0.005)
  return inference.fit('chinchilla', table, OPTIONS)


def by(result, approach):
  return [o for o in result.approaches.optima if o.approach == approach]


@pytest.mark.parametrize('width', WIDTHS)
@pytest.mark.parametrize(('alpha', 'beta'), LAWS)
def test_minima_of_exact_curves_are_the_optima(alpha, beta, width):
  table, best = sweep(law_of(alpha, beta), width)
  options = dataclasses.replace(OPTIONS, resamples=0)
  result = inference.fit('chinchilla', table, options)
  minima = result.approaches.minima
  assert [m.flag for m in minima] == [''] * 6
  assert [m.params.value for m in minima] == pytest.approx(best, rel=1e-4)
  [optimum] = by(result, 'isoflop')
  assert optimum.exponent.value == pytest.approx(
    beta / (alpha + beta), rel=1e-4
  )
  assert optimum.params.value == pytest.approx(best[-1], rel=1e-4)
  assert optimum.token_exponent.value == pytest.approx(
    alpha / (alpha + beta), rel=1e-4
  )
  for minimum, true in zip(minima, best, strict=True):
    bias = np.log(minimum.parabola / true)
    assert minimum.parabola_bias == pytest.approx(bias, abs=1e-5)
  assert not result.approaches.flags


def coverage(law, width, seeds):
  held = []
  for seed in seeds:
    table, best = sweep(law, width, 0.005, seed)
    result = inference.fit('chinchilla', table, OPTIONS)
    held += [
      true in minimum.params
      for minimum, true in zip(result.approaches.minima, best, strict=True)
    ]
  return held


def test_intervals_of_minima_hold_the_optimum():
  held = coverage(law_of(0.34, 0.5), 4, range(6))
  assert np.mean(held) > 0.85


@pytest.mark.slow
def test_a_thousand_intervals_of_minima_hold_the_optimum():
  held = []
  for alpha, beta in LAWS:
    for width in WIDTHS:
      first = 100 + len(held)  # No two tables have the same noise.
      held += coverage(law_of(alpha, beta), width, range(first, first + 14))
  assert len(held) == 1008
  assert 0.93 < np.mean(held) < 0.97


def test_the_approaches_agree_on_runs_of_a_law():
  result = noisy()
  [isoflop], [parametric] = by(result, 'isoflop'), by(result, 'parametric')
  true = 0.37 / 0.71
  assert true in isoflop.exponent and true in parametric.exponent
  assert isoflop.exponent.lo < parametric.exponent.value < isoflop.exponent.hi
  assert not result.approaches.flags
  assert 'several rows' in result.approaches.missing['envelope, G = 1']


def test_minima_off_a_line_widen_the_exponents_interval():
  table = noisy().table
  # The loss of every second budget falls with N more than the law says.
  budget = np.repeat(np.arange(6), 7)
  tilt = 0.03 * (budget % 2) * np.log(table.columns['N'] / 1e9)
  columns = {**table.columns, 'loss': table.columns['loss'] * np.exp(-tilt)}
  result = inference.fit(
    'chinchilla', dataclasses.replace(table, columns=columns), OPTIONS
  )
  [wide], [narrow] = by(result, 'isoflop'), by(noisy(), 'isoflop')
  assert wide.exponent.hi - wide.exponent.lo > 2 * (
    narrow.exponent.hi - narrow.exponent.lo
  )
  assert any('minima off' in flag for flag in result.approaches.flags)


def bent(table, strength):
  """A table whose curves bend more than the law, and its lowest sizes."""
  law = law_of(0.34, 0.37)
  logs = np.log(table.columns['N']).reshape(6, 7)
  centre = logs.mean(1)
  bend = strength * (logs - centre[:, None]) ** 2
  loss = table.columns['loss'] * np.exp(bend.ravel())
  lowest = []
  for middle, compute in zip(centre, np.geomspace(FIRST, 3e20, 6), strict=True):
    x = np.linspace(middle - 2, middle + 2, 40_001)
    n, d = np.exp(x), compute / (6 * np.exp(x))
    height = np.log(
      law['E'] + law['A'] / n ** law['alpha'] + law['B'] / d ** law['beta']
    )
    lowest.append(n[np.argmin(height + strength * (x - middle) ** 2)])
  columns = {**table.columns, 'loss': loss}
  return dataclasses.replace(table, columns=columns), np.array(lowest)


def test_curves_that_bend_more_have_a_curvature_of_their_own():
  changed, lowest = bent(noisy().table, 0.02)
  # The exponents of the law itself would follow the curves.
  fixed = {name: law_of(0.34, 0.37)[name] for name in ('E', 'alpha', 'beta')}
  options = dataclasses.replace(OPTIONS, fixed=fixed)
  result = inference.fit('chinchilla', changed, options)
  assert any('bend otherwise' in flag for flag in result.approaches.flags)
  off = [
    np.log(m.params.value / true)
    for m, true in zip(result.approaches.minima, lowest, strict=True)
  ]
  assert np.abs(off).max() < 0.12
  held = [
    true in m.params
    for m, true in zip(result.approaches.minima, lowest, strict=True)
  ]
  assert sum(held) >= 4


def test_rows_far_from_the_minimum_that_deviate_are_left_out():
  table, best = sweep(law_of(0.34, 0.37), width=16, noise=0.001, sizes=9)
  loss = table.columns['loss'].copy()
  loss[::9] *= 1.05  # The smallest model of each budget.
  changed = dataclasses.replace(table, columns={**table.columns, 'loss': loss})
  result = inference.fit('chinchilla', changed, OPTIONS)
  minima = result.approaches.minima
  assert all(m.left_out >= 1 and m.rows + m.left_out == 9 for m in minima)
  assert [m.params.value for m in minima] == pytest.approx(best, rel=0.1)


def test_a_minimum_outside_of_the_sizes_does_not_count():
  shift = np.array([0.0, 0.0, 2.0, 0.0, 0.0, 0.0])
  table, _ = sweep(law_of(0.35, 0.35), noise=0.001, off=shift)
  result = inference.fit('chinchilla', table, OPTIONS)
  flags = [minimum.flag for minimum in result.approaches.minima]
  assert flags == ['', '', frontier.AT_EDGE, '', '', '']
  assert not result.approaches.minima[2].params.bounded
  assert 0.5 in by(result, 'isoflop')[0].exponent


def test_all_budgets_have_a_minimum():
  table, best = sweep(law_of(0.34, 0.37), 8, noise=0.002, budgets=12)
  options = dataclasses.replace(OPTIONS, resamples=20)
  result = inference.fit('chinchilla', table, options)
  assert [m.params.value for m in result.approaches.minima] == pytest.approx(
    best, rel=0.15
  )


def test_exact_curves_give_no_false_alarm():
  table, _ = sweep(law_of(0.34, 0.37))
  result = inference.fit('chinchilla', table, OPTIONS)
  assert not result.approaches.flags


def test_is_read_back(tmp_path):
  noisy().save(tmp_path / 'fit.json')
  record = fit_record.load(tmp_path / 'fit.json').record
  assert record.approaches == noisy().approaches
  frames = noisy().tables()
  assert len(frames['minima']) == 6 and len(frames['optima']) == 2
  assert frames['optima']['exponent_lo'].null_count() == 0


def curves(sizes=8, noise=0.0):
  """Training curves of a law: a run of each size, 15 rows in D."""
  law = law_of(0.35, 0.35)
  rng = np.random.default_rng(0)
  n = np.repeat(np.geomspace(5e7, 5e9, sizes), 15)
  d = np.tile(np.geomspace(1e8, 5e11, 15), sizes)
  loss = law['E'] + law['A'] / n ** law['alpha'] + law['B'] / d ** law['beta']
  loss *= np.exp(noise * np.repeat(rng.standard_normal(sizes), 15))
  table = points.table({'params': n, 'tokens': d, 'loss': loss})
  return dataclasses.replace(
    table, run=np.repeat(np.arange(sizes).astype(str), 15)
  )


def test_the_envelope_of_curves_has_the_laws_exponent():
  options = dataclasses.replace(OPTIONS, resamples=50)
  result = inference.fit('chinchilla', curves(16), options)
  [envelope] = by(result, 'envelope')
  assert envelope.exponent.value == pytest.approx(0.5, abs=0.02)
  assert envelope.exponent.lo < envelope.exponent.value < envelope.exponent.hi
  n, _ = points.closed_form(law_of(0.35, 0.35), envelope.flops)
  assert envelope.params.value == pytest.approx(n, rel=0.1)


def test_an_envelope_needs_three_sizes_that_cross():
  options = dataclasses.replace(OPTIONS, resamples=0)
  result = inference.fit('chinchilla', curves(2), options)
  assert 'envelope' not in {o.approach for o in result.approaches.optima}
  assert '3 sizes' in result.approaches.missing['envelope, G = 1']


def test_forms_without_sizes_and_tokens_have_none():
  rng = np.random.default_rng(0)
  table = points.table(
    {'flops': rng.uniform(1, 9, 30), 'loss': rng.uniform(2, 3, 30)}
  )
  result = inference.fit(
    'power_of_compute', table, dataclasses.replace(OPTIONS, resamples=0)
  )
  assert result.approaches is None
