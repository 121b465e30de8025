"""The search among starts, against searches without its shortcuts and SciPy."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from familial.laws import estimation
from familial.laws import forms
from familial.laws import levenberg_marquardt
from familial.laws import multistart as starts_lib
from familial.laws import parametric
from familial.laws import screening
from familial.laws import table as tables

FORM = forms.get('chinchilla')
OTHER = {'E': 0.6, 'A': 200.0, 'B': 300.0, 'alpha': 0.42, 'beta': 0.28}


@pytest.fixture
def two_laws(make):
  """Rows of two laws, most of the one."""
  one, other = make(noise=0.004), make(noise=0.004, params=OTHER, seed=1)
  of_other = np.arange(36) % 9 < 4
  loss = np.where(of_other, other.columns['loss'], one.columns['loss'])
  return dataclasses.replace(one, columns={**one.columns, 'loss': loss})


@pytest.fixture
def starts():
  """More than are followed to the end, in no order."""
  grid = starts_lib.draw(FORM, 700, 3).block(0, 700)
  return np.random.default_rng(0).permutation(grid)


def problem_of(table, weights=None):
  weights = np.ones((1, table.rows)) if weights is None else weights
  return levenberg_marquardt.Problem(
    FORM, table.columns, np.log(table.columns['loss']), weights, 1e-3, 1.0,
    np.ones(5, bool),
  )  # fmt: skip


def test_size_of_blocks_does_not_matter(two_laws, monkeypatch):
  first = estimation.fit(FORM, two_laws, starts=700)
  monkeypatch.setattr(starts_lib, 'BLOCK', 100)
  second = estimation.fit(FORM, two_laws, starts=700)
  np.testing.assert_array_equal(first.theta, second.theta)
  np.testing.assert_array_equal(first.others, second.others)
  assert first.basin_hit_rate == second.basin_hit_rate


def _log_loss_of_wells(p, columns):
  mu = p['mu']
  tilt = columns['tilt']  # of 1: least at -1.04, then at 0.96
  slope = mu**4 - 2 * mu**2 + 0.3 * tilt * mu
  return p['log_K'] + slope * jnp.log(columns['N'] / 1e5)


# A law whose exponent has two minima, of which the data want the lower.
WELLS = parametric.Form(
  'wells',
  'L = K (N / 1e5)^s(mu)',
  (
    parametric.Parameter('K', tuple(np.linspace(-2, 4, 30)), parametric.LOG),
    parametric.Parameter('mu', tuple(np.linspace(-1.8, 1.8, 40))),
  ),
  ('N', 'tilt'),
  _log_loss_of_wells,
)


def in_wells(make, tilt):
  """The problem of rows in the well at -1.035 of tilt 1, or mirrored."""
  n = make().columns['N'][: len(tilt)]
  noise = 0.02 * np.random.default_rng(0).standard_normal(len(tilt))
  return levenberg_marquardt.Problem(
    WELLS, {'N': n, 'tilt': tilt}, np.log(3 * (n / 1e5) ** -2.0) + noise,
    np.ones((1, len(tilt))), 1e-3, 1.0, np.ones(2, bool),
  )  # fmt: skip


def test_thinned_finds_the_optimum_and_the_rate_of_all(make):
  problem = in_wells(make, np.ones(35))  # an even number's median is a range
  columns = {**problem.columns, 'loss': np.exp(problem.target)}
  table = tables.Table(columns, np.arange(35).astype(str))
  every = estimation.fit(WELLS, table, starts=1200, thin=False)
  assert every.followed == every.starts == 1200
  assert every.params['mu'] == pytest.approx(-1.035, abs=0.01)
  assert every.others[0, 1] == pytest.approx(0.96, abs=0.01)
  assert 0.4 < every.basin_hit_rate < 0.6
  thinned = [
    estimation.fit(WELLS, table, starts=1200, seed=seed) for seed in range(4)
  ]
  for fit in thinned:
    assert fit.followed == screening.FOLLOWED + screening.AUDITED
    assert fit.objective == pytest.approx(every.objective, rel=1e-9)
    np.testing.assert_allclose(fit.theta, every.theta, rtol=1e-6)
  # The share among those that went on because they were best would be 1.
  rate = np.mean([fit.basin_hit_rate for fit in thinned])
  deviation = np.sqrt(0.25 / (4 * screening.AUDITED))
  assert abs(rate - every.basin_hit_rate) < 4 * deviation


def test_grid_is_drawn_without_repeats():
  drawn = starts_lib.draw(FORM, 500, 0)
  theta = drawn.block(0, 500)
  assert len(np.unique(theta, axis=0)) == drawn.count == 500
  for parameter, values in zip(FORM.parameters, theta.T, strict=True):
    assert set(values) == set(parameter.grid)
  np.testing.assert_array_equal(theta[70:90], drawn.block(70, 90))
  assert not np.array_equal(theta, starts_lib.draw(FORM, 500, 1).block(0, 500))
  every = starts_lib.draw(FORM, 10**6, 0)
  assert every.count == 5**3 * 6**2
  assert len(np.unique(every.block(0, every.count), axis=0)) == every.count


def test_latin_hypercubes_fill_every_stratum(monkeypatch):
  monkeypatch.setattr(starts_lib, 'BLOCK', 64)
  drawn = starts_lib.draw(FORM, 150, 0, 'latin')
  theta = drawn.block(0, 150)
  low = np.array([min(p.grid) for p in FORM.parameters])
  high = np.array([max(p.grid) for p in FORM.parameters])
  for first, last in ((0, 64), (64, 128), (128, 150)):
    share = (theta[first:last] - low) / (high - low)
    size = last - first
    stratum = np.sort(np.floor(share * size), axis=0)
    np.testing.assert_array_equal(stratum, np.tile(np.arange(size), (5, 1)).T)
  for first, last in ((0, 1), (10, 50), (60, 130), (128, 150)):
    np.testing.assert_array_equal(theta[first:last], drawn.block(first, last))
  assert not np.array_equal(theta[:64], theta[64:128])


@pytest.mark.parametrize('sampling', ['grid', 'latin'])
def test_starts_at_places_are_those_of_the_whole(monkeypatch, sampling):
  monkeypatch.setattr(starts_lib, 'BLOCK', 64)
  drawn = starts_lib.draw(FORM, 150, 0, sampling)
  for places in ([3], [0, 63, 64, 100, 149], range(150)):
    index = np.array(places)
    np.testing.assert_array_equal(drawn.at(index), drawn.block(0, 150)[index])


def test_screening_in_blocks_keeps_the_same_starts(two_laws, monkeypatch):
  weights = np.random.default_rng(0).multinomial(36, np.full(36, 1 / 36), 3)
  problem = problem_of(two_laws, weights.astype(float))
  drawn = starts_lib.draw(FORM, 500, 0)
  whole = screening.screened(problem, drawn, 40)
  objective = problem.objective(whole.theta, whole.group)
  np.testing.assert_allclose(whole.objective, objective, rtol=1e-12)
  every = problem.objective(drawn.block(0, 500), np.ones(500, int))
  np.testing.assert_allclose(
    np.sort(whole.objective[whole.group == 1]), np.sort(every)[:40], rtol=1e-12
  )
  monkeypatch.setattr(levenberg_marquardt, 'NUMBERS', 36 * 7)
  parts = screening.screened(problem, drawn, 40)
  np.testing.assert_array_equal(parts.theta, whole.theta)
  np.testing.assert_array_equal(parts.group, whole.group)


@pytest.mark.parametrize(('thin', 'count'), [(True, 400), (False, 100)])
def test_groups_agree_with_fits_of_their_own(two_laws, starts, thin, count):
  rng = np.random.default_rng(0)
  weights = rng.multinomial(36, np.full(36, 1 / 36), size=4).astype(float)
  starts = starts[:count]
  ends = screening.search_groups(
    problem_of(two_laws, weights), starts_lib.of_array(starts),
    np.zeros((0, 5)), thin=thin,
  )  # fmt: skip
  for i, counts in enumerate(weights):
    rows = two_laws.take(np.repeat(np.arange(36), counts.astype(int)))
    own = estimation.fit(FORM, rows, starts=starts)
    assert ends.objective[i] == pytest.approx(own.objective, rel=1e-7)
    np.testing.assert_allclose(  # not the constants: E may tend to 0
      levenberg_marquardt.predict(
        FORM, two_laws.columns, ends.theta[i : i + 1]
      )[0],
      levenberg_marquardt.predict(FORM, two_laws.columns, own.theta[None])[0],
      atol=1e-5,
    )


def test_groups_are_thinned_each_by_its_own_rows(make):
  first = np.arange(34) % 2 == 0
  problem = dataclasses.replace(
    in_wells(make, np.where(first, 1.0, -1.0)),
    weights=np.stack([first, ~first]) * 1.0,
  )
  starts = starts_lib.draw(WELLS, 1200, 0)
  ends = screening.search_groups(problem, starts, np.zeros((0, 2)))
  np.testing.assert_allclose(ends.theta[:, 1], [-1.035, 1.035], atol=0.01)


def test_groups_keep_the_better_of_what_they_are_given(two_laws):
  best = estimation.fit(FORM, two_laws, starts=300)
  far = starts_lib.of_array(best.theta[None] + 3)
  problem = problem_of(two_laws)
  with_it = screening.search_groups(problem, far, best.theta[None])
  assert with_it.objective[0] == pytest.approx(best.objective, rel=1e-9)
  only = screening.search_groups(problem, far, np.zeros((0, 5)))
  assert only.objective[0] >= with_it.objective[0]


def test_a_good_start_is_found_wherever_it_is(make, monkeypatch):
  monkeypatch.setattr(starts_lib, 'BLOCK', 100)
  problem = in_wells(make, np.ones(35))
  theta = np.random.default_rng(1).uniform([0, 0.7], [2, 1.2], (700, 2))
  for place in (3, 350, 699):
    some = theta.copy()
    some[place] = 1.0, -1.1
    starts = starts_lib.Starts(700, lambda first, last, s=some: s[first:last])
    for seed in range(3):  # of which few audit that start
      done = []
      ends, audited = screening.search(
        problem, starts, seed, advance=done.append
      )
      assert ends.theta[np.argmin(ends.objective), 1] < 0
      assert audited.sum() == screening.AUDITED
      assert sum(done) == 700


def test_objective_is_the_sum_that_is_promised(make):
  table = make(noise=0.05)
  rng = np.random.default_rng(0)
  weights = rng.uniform(0.5, 2, (2, 36))
  problem = dataclasses.replace(
    problem_of(table, weights), delta=0.03, asymmetry=4.0
  )
  law = {'E': 1.2, 'A': 60, 'B': 900, 'alpha': 0.33, 'beta': 0.37}
  theta = FORM.theta(law)
  left = np.log(FORM.predict(law, table.columns)) - problem.target
  expected = 0.0
  for r, w in zip(left, weights[1], strict=True):
    huber = r**2 / 2 if abs(r) <= 0.03 else 0.03 * (abs(r) - 0.015)
    expected += w * huber * (4.0 if r > 0 else 1.0)
  assert (abs(left) > 0.03).any() and (abs(left) < 0.03).any()
  found = problem.objective(np.stack([theta, theta]), np.array([1, 0]))
  assert found[0] == pytest.approx(expected, rel=1e-12)
  assert found[1] != found[0]
