import numpy as np
import pytest

from familial.core import errors
from familial.laws import forms
from familial.laws import power_analysis


def simulated(columns, truth, noise=0.01, **options):
  return power_analysis.simulate(
    forms.get('familial_total'),
    columns,
    options.pop('run', np.arange(36)),
    {k: v for k, v in truth.items() if 'gamma_' not in k},
    noise,
    **options,
  )


def test_the_interval_is_what_repeats_show(columns, truth):
  found = simulated(columns, truth)
  assert (found.rows, found.runs, found.simulations) == (36, 36, 200)
  # Half a 95 % interval is Student's 2.04 deviations.
  assert 0.7 < found.half_width / (2.04 * found.sd) < 1.5
  assert found.share_excluding_zero > 0.95


def test_grows_with_noise_and_loses_the_effect(columns, truth):
  small, large = (
    simulated(columns, truth, noise, simulations=100) for noise in (0.005, 0.05)
  )
  assert 7 < large.half_width / small.half_width < 13
  assert large.share_excluding_zero < 0.7
  nothing = simulated(columns, {**truth, 'gamma': 0.0}, simulations=200)
  assert nothing.share_excluding_zero < 0.12


def test_rows_of_one_run_add_nothing(columns, truth):
  runs = np.arange(32)  # As many rows as one compiled program has.
  once, twice = (
    simulated(
      {name: values[run] for name, values in columns.items()},
      truth,
      run=run,
      simulations=100,
    )
    for run in (runs, np.repeat(runs, 2))
  )
  assert (twice.rows, twice.runs) == (64, 32)
  assert twice.sd == pytest.approx(once.sd, rel=1e-3)


def test_a_plan_that_cannot_tell_says_so(columns, truth):
  found = simulated({**columns, 'G': np.ones(36)}, truth, simulations=4)
  assert found.half_width == np.inf
  assert found.share_excluding_zero == 0
  few = {name: values[:5] for name, values in columns.items()}
  assert simulated(few, truth, run=np.arange(5)).half_width == np.inf


def test_bad_input(columns, truth):
  with pytest.raises(errors.UserError, match='noise=0'):
    simulated(columns, truth, 0)
