"""What the figures of a fitted law are computed from."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from familial.laws import fit_record
from familial.laws import frontier
from familial.laws import inference
from familial.laws import table as tables
from familial.plots import law
from familial.plots import theme
from tests.laws.conftest import drawn

pytestmark = pytest.mark.filterwarnings('error')
OPTIONS = inference.Options(starts=32, resamples=40)
ALWAYS = {'residuals', 'profiles', 'pairs'}
OWN = """
from familial.laws.user_forms import positive, real

def law(width, tokens, *, E=positive(0.3, 3), B=positive(1, 1e9), beta=real(0, 2)):
  'L = E + B/D^beta'
  return E + B / tokens**beta + 0 * width
"""


@functools.cache
def fitted(form='familial_total'):
  """The fit of a form to the small study; laws of shape to one of N and D."""
  known = form in ('chinchilla', 'familial_total')
  return inference.fit(
    form, drawn(form if known else 'chinchilla', 0.01), OPTIONS
  )


@functools.cache
def families():
  return tuple(law.families(fitted()))


def rows_of(chart):
  """The rows of all panels of a chart; reference lines have none."""
  found, left = [], [theme.specification(chart)]
  while left:
    part = left.pop(0)
    found += [row for row in part.get('data', {}).get('values', ()) if row]
    for key in ('concat', 'layer'):
      left += part.get(key, ())
    left += [part['spec']] if 'spec' in part else []
  return found


@pytest.mark.parametrize(
  ('form', 'named'),
  [
    ('chinchilla', {'isoflop', 'frontier', 'optimum'}),
    ('own', {'predicted'}),
  ],
)
def test_figures_of_each_form(form, named, tmp_path):
  if form == 'own':
    (tmp_path / 'own.py').write_text(OWN)
    form = str(tmp_path / 'own.py')
  charts = law.figures(fitted(form))
  assert set(charts) == ALWAYS | named
  for chart in charts.values():
    assert theme.specification(chart)['config']


def test_a_family_is_a_granularity_at_its_budgets():
  columns = fitted().table.columns
  for family, g in zip(families(), (1, 2, 4), strict=True):
    assert (family.of.exits, family.of.others) == (g, {'G': g})
    assert (columns['G'][family.of.rows] == g).all() and len(
      family.of.rows
    ) == 12
    assert [b.name for b in family.budgets] == pytest.approx(
      [1e11, 4e11, 1.6e12]
    )
    for budget in family.budgets:
      assert np.ptp(columns['C'][budget.rows]) == 0 and len(budget.rows) == 4
    models = family.of.columns(columns['N'][family.of.rows], 1e11)
    assert models['D'] == pytest.approx(
      1e11 / (6 * models['N'] * (1 + 0.1 * g)), rel=1e-6
    )


def test_optima_are_those_of_the_equation():
  params = fitted().fit.params
  A, B, a, b = (params[k] for k in ('A', 'B', 'alpha', 'beta'))
  for family in families():
    assert family.known
    assert family.grid[-1] == pytest.approx(1.6e13)  # A decade past the runs.
    compute = np.append([b.flops for b in family.budgets], family.grid)
    # Hoffmann et al. (2022), equation 4, of C = 6 (1 + 0.1 G) N D.
    dense = compute / (6 * (1 + 0.1 * family.of.exits))
    best = (a * A / (b * B) * dense**b) ** (1 / (a + b))
    assert family.optimum.params[0] == pytest.approx(best, rel=1e-5)
    along = family.along(family.optimum.params, 0.95)
    assert [row['C'] for row in along] == pytest.approx(family.grid)
    for row, value in zip(along, best[len(family.budgets) :], strict=True):
      assert row['value'] == pytest.approx(value, rel=1e-5)
      assert row['value_lo'] < row['value'] < row['value_hi']


def test_budgets_without_a_column_are_windows_of_compute():
  columns = dict(fitted().table.columns)
  budget = columns.pop('budget')
  columns['C'] = columns['C'] * (1 + 0.1 * (np.arange(36) // 3 % 2))
  columns['C'][0] = 1e9  # Of no budget.
  table = dataclasses.replace(fitted().table, columns=columns)
  found = law.families(dataclasses.replace(fitted(), table=table))
  # Four sizes of one G and C, without the one of another C: too few there.
  assert [len(family.budgets) for family in found] == [2, 3, 3]
  for family in found:
    for each in family.budgets:
      assert np.ptp(np.log(columns['C'][each.rows])) < np.log(1.25)
      assert len(set(budget[each.rows])) == 1 and len(each.rows) == 4


def test_curves_are_the_law_and_points_its_rows():
  found = fitted()
  columns = found.table.columns
  rows = rows_of(law.isoflop(found, families()))
  runs = {(r['panel'], r['N'], r['loss']) for r in rows if r['kind'] == 'run'}
  assert runs == {
    (f'G = {g:g}', n, loss)
    for g, n, loss in zip(
      columns['G'], columns['N'], columns['loss'], strict=True
    )
  }
  curve = [r for r in rows if r['kind'] == 'law' and r['panel'] == 'G = 2']
  n = np.array([row['N'] for row in curve])
  budget = np.repeat([1e11, 4e11, 1.6e12], len(n) // 3)
  expected = found.predict(
    {'N': n, 'D': budget / (6 * n * 1.2), 'G': np.full_like(n, 2)}
  )
  assert [row['loss'] for row in curve] == pytest.approx(expected, rel=1e-6)
  assert all(row['loss_lo'] < row['loss'] < row['loss_hi'] for row in curve)


def test_frontier_is_the_least_loss_of_the_law():
  rows = rows_of(law.loss_frontier(fitted(), families()))
  last = [r for r in rows if r['kind'] == 'law' and r['family'] == 'G = 1'][-1]
  best = frontier.optimum(
    fitted().fit.form,
    fitted().fit.theta[None],
    [1.6e13],
    frontier.TokenCost(1.1),
    {'G': 1},
  )
  assert last['C'] == pytest.approx(1.6e13)
  assert last['value'] == pytest.approx(best.loss[0, 0], rel=1e-5)


def test_residuals_are_those_of_the_law():
  found = fitted()
  columns = found.table.columns
  left = 100 * np.log(columns['loss'] / found.predict(columns))
  rows = rows_of(law.residuals(found))
  points = [row for row in rows if row.get('kind') == 'row']
  assert len(points) == 4 * 36  # Against N, D, G and the prediction.
  for place, name in enumerate('NDG'):
    here = points[36 * place : 36 * (place + 1)]
    assert [row['x'] for row in here] == pytest.approx(columns[name])
    assert [row['residual'] for row in here] == pytest.approx(left)


def test_large_tables_are_thinned_in_one_way():
  repeats = 300
  many = tables.Table(
    {n: np.tile(v, repeats) for n, v in fitted().table.columns.items()},
    np.array([str(i) for i in range(36 * repeats)]),
  )
  found = dataclasses.replace(fitted(), table=many)
  first, again = (
    [r['run'] for r in rows_of(law.residuals(found)) if r['kind'] == 'row']
    for _ in range(2)
  )
  assert first == again and len(first) < 4 * 36 * repeats / 5
  assert len(set(first)) == len(first) / 4


def test_flat_profiles_and_lost_resamples_are_drawn():
  found = fitted('chinchilla')
  flat = dataclasses.replace(
    found.profiles['A'],
    deviance=np.zeros_like(found.profiles['A'].values),
    lo=None,
    hi=None,
  )
  spread = fit_record.Resampled(np.nan, np.nan, np.nan, np.nan)
  empty = dataclasses.replace(
    found.bootstrap,
    samples={name: np.zeros(0) for name in found.fit.form.names},
    intervals=dict.fromkeys(found.fit.form.names, spread),
    failed=OPTIONS.resamples,
  )
  found = dataclasses.replace(
    found, profiles={**found.profiles, 'A': flat}, bootstrap=empty
  )
  charts = law.figures(found)
  assert 'pairs' not in charts and {'frontier', 'profiles'} <= set(charts)
  for row in rows_of(charts['profiles']):
    assert row['kind'] == 'profile' or row['value_lo'] is None
  for chart in charts.values():
    theme.specification(chart)


def test_profiles_and_the_bootstrap_s_intervals():
  found = fitted()
  profile, spread = found.profiles['alpha'], found.interval('alpha')
  rows = rows_of(law.profile_curves(found, [profile]))
  curve = [row for row in rows if row['kind'] == 'profile']
  kept = profile.deviance <= 4 * profile.cutoff
  assert [row['value'] for row in curve] == pytest.approx(profile.values[kept])
  [bar] = [row for row in rows if row['kind'] == 'bootstrap']
  assert (bar['value_lo'], bar['value_hi']) == (spread.lo, spread.hi)
  # Without an end it may go on for hundreds of decades.
  values = profile.values * 10.0 ** np.linspace(-290, 290, len(profile.values))
  flat = dataclasses.replace(profile, values=values, deviance=0 * values)
  rows = rows_of(law.profile_curves(found, [flat]))
  best = found.fit.params['alpha']
  for row in rows:
    for key in ('value', 'value_lo', 'value_hi'):
      assert best / 1e6 <= row.get(key, best) <= best * 1e6


def test_the_loss_is_called_what_it_is():
  """As --label and --unit say: on axes and tooltips."""
  for label, unit, shown in (
    ('', '', 'loss, nats per token (lower is better)'),
    ('', 'bits per byte', 'loss, bits per byte'),
    ('accuracy', '', 'accuracy'),
    ('accuracy', '%', 'accuracy, %'),
  ):
    with theme.loss_as(label, unit):
      assert theme.axis_title('loss') == shown
      text = json.dumps(theme.specification(law.predicted(fitted())))
    assert f'predicted {label or "loss"}' in text
    assert ('nats per token' in text) == (not label and not unit)
  assert theme.axis_title('loss') == 'loss, nats per token (lower is better)'
