import dataclasses

from matplotlib import image
import numpy as np
import pytest

from familial.laws import fit_record
from familial.laws import frontier
from familial.laws import inference
from familial.laws import table as tables
from familial.plots import law as law_lib
from familial.plots import law_compute
from familial.plots import law_families
from familial.plots import law_parts

pytestmark = pytest.mark.filterwarnings('error')
FEW = inference.Options(starts=32, resamples=100)
ALWAYS = {'residuals', 'profiles', 'pairs'}
_FITTED = {}
_OF_G = {}


@pytest.fixture
def fitted(make):
  """The fit of a form to the small study, once a form."""

  def fitted(form):
    if form not in _FITTED:
      _FITTED[form] = inference.fit(form, make(form, 0.01), FEW)
    return _FITTED[form]

  return fitted


def of_g(found):
  """The granularities of a fit, once a fit: each compiles its optimum."""
  if id(found) not in _OF_G:
    _OF_G[id(found)] = law_families.families(found)
  return _OF_G[id(found)]


@pytest.mark.parametrize(
  ('form', 'budget', 'named'),
  [
    ('chinchilla', None, {'isoflop', 'frontier', 'optimum'}),
    pytest.param(
      'chinchilla', 4e11, {'frontier', 'optimum'}, marks=pytest.mark.slow
    ),
    ('power_of_compute', None, {'predicted'}),
  ],
)
def test_files_of_each_form(fitted, tmp_path, form, budget, named):
  found = fitted(form)
  if budget:
    one = found.table.take(found.table.columns['budget'] == budget)
    found = dataclasses.replace(found, table=one)
  paths = law_lib.draw(found, tmp_path)
  assert {path.stem for path in paths} == ALWAYS | named
  assert set(paths) == set(tmp_path.iterdir())
  for path in paths:
    height, width, _ = image.imread(path).shape
    assert min(height, width) > 500
    assert np.ptp(image.imread(path)) > 0.5  # not a blank page


@pytest.mark.slow
def test_isoflop_curves_hold_the_rows_of_their_granularity(fitted):
  found = fitted('familial_total')
  columns = found.table.columns
  families = of_g(found)
  figure = law_compute.isoflop(found, families)
  assert [ax.get_title(loc='left') for ax in figure.axes] == [
    'G = 1',
    'G = 2',
    'G = 4',
  ]
  for ax, g in zip(figure.axes, (1, 2, 4), strict=True):
    here = columns['G'] == g
    assert points_of(ax) == pairs_of(columns['N'][here], columns['loss'][here])
    curve = next(line for line in ax.lines if len(line.get_xdata()) > 9)
    n = curve.get_xdata()
    law = found.predict(
      {'N': n, 'D': 1e11 / (6 * n * (1 + 0.1 * g)), 'G': np.full_like(n, g)}
    )
    np.testing.assert_allclose(curve.get_ydata(), law, rtol=1e-6)


def test_isoflop_marks_are_the_optimum_and_interior_minima(fitted):
  found = fitted('familial_total')
  columns, params = found.table.columns, found.fit.params
  bend = 0.1 * np.log(columns['N'] / 8e4) ** 2
  falls = columns['N'] ** -0.1  # has its minimum at no size
  loss = np.where(columns['budget'] > 1e12, falls, 3 * np.exp(bend))
  table = dataclasses.replace(found.table, columns={**columns, 'loss': loss})
  bent = dataclasses.replace(found, table=table)
  family = of_g(found)[0]
  budgets = tuple(
    law_families._budgets(table, law_families._groups(table), family.rows)
  )
  family = dataclasses.replace(family, budgets=budgets)
  (ax,) = law_compute.isoflop(bent, [family]).axes
  assert marks(ax, 'D') == [pytest.approx((8e4, 3.0))] * 2
  stars = marks(ax, '*')
  for budget in (1e11, 4e11, 1.6e12):
    # Hoffmann et al. (2022), equation 4, of C = 6.6 N D.
    A, B, a, b = (params[k] for k in ('A', 'B', 'alpha', 'beta'))
    best = ((a * A / (b * B)) * (budget / 6.6) ** b) ** (1 / (a + b))
    assert stars.pop(0)[0] == pytest.approx(best, rel=1e-5)
  assert not stars


def test_frontier_reaches_a_decade_past_the_runs(fitted):
  found = fitted('familial_total')
  columns = found.table.columns
  family = of_g(found)[0]
  ax = law_compute.loss_frontier(found, [family]).axes[0]
  here = columns['G'] == 1
  assert points_of(ax) == pairs_of(columns['C'][here], columns['loss'][here])
  inside, beyond = ax.lines[:2]
  assert inside.get_xdata()[-1] == pytest.approx(1.6e12)
  assert beyond.get_linestyle() == '--'
  assert beyond.get_xdata()[-1] == pytest.approx(1.6e13)
  best = frontier.optimum(
    found.fit.form,
    found.fit.theta[None],
    [1.6e13],
    frontier.TokenCost(1.1),
    {'G': 1},
  )
  assert beyond.get_ydata()[-1] == pytest.approx(best.loss[0, 0], rel=1e-5)


def test_optima_agree_with_what_the_fit_derived(fitted):
  found = fitted('chinchilla')
  columns = {k: v for k, v in found.table.columns.items() if k != 'C'}
  table = dataclasses.replace(found.table, columns=columns)  # so C = 6 N D
  found = dataclasses.replace(found, table=table)
  (family,) = law_families.families(found)
  figure = law_compute.optimum(found, [family])
  cost = found.table.cost.max()
  best = frontier.optimum(found.fit.form, found.fit.theta[None], [cost])
  for ax, value in zip(
    figure.axes,
    (best.params, best.tokens, best.tokens / best.params),
    strict=True,
  ):
    line = ax.lines[0]
    assert line.get_xdata()[-1] == pytest.approx(cost)
    assert line.get_ydata()[-1] == pytest.approx(value[0, 0], rel=1e-6)


def test_budgets_without_a_column_are_windows_of_compute(fitted):
  found = fitted('familial_total')
  columns = dict(found.table.columns)
  del columns['budget']
  columns['C'] = columns['C'] * (1 + 0.1 * (np.arange(36) % 2))
  columns['C'][0] = 1e9  # of no budget
  groups = law_families._groups(
    dataclasses.replace(found.table, columns=columns)
  )
  assert sorted(group.sum() for group in groups) == [1, 11, 12, 12]
  for group in groups:
    assert np.ptp(np.log(columns['C'][group])) < np.log(1.25)
    assert len(set(found.table.columns['budget'][group])) == 1


def test_residuals_are_those_of_the_law(fitted):
  found = fitted('familial_total')
  columns = found.table.columns
  left = 100 * np.log(columns['loss'] / found.predict(columns))
  figure = law_lib.residuals(found)
  assert [ax.get_xlabel() for ax in figure.axes] == [
    'parameters N',
    'tokens D',
    'exits G',
    'predicted loss, nats per token',
  ]
  for ax, name in zip(figure.axes, 'NDG', strict=False):
    assert points_of(ax) == pairs_of(columns[name], left)
  scale = figure.legends[0].get_texts()[0].get_text()
  assert f'{100 * found.fit.scale:.2g} %' in scale


def test_flat_profile_and_unidentified_floor(fitted, tmp_path):
  found = fitted('chinchilla')
  flat = dataclasses.replace(
    found.profiles['A'],
    deviance=np.zeros_like(found.profiles['A'].values),
    lo=None,
    hi=None,
  )
  found = dataclasses.replace(found, profiles={**found.profiles, 'A': flat})
  samples = found.bootstrap.samples
  zeros = np.where(np.arange(len(samples['E'])) % 2, 0.0, samples['E'])
  found = dataclasses.replace(
    found,
    bootstrap=dataclasses.replace(
      found.bootstrap, samples={**samples, 'E': zeros}
    ),
  )
  assert len(law_lib.draw(found, tmp_path)) == 6
  figure = law_lib.profile_curves(found)
  arrows = {
    ax.get_title(loc='left').split(' = ')[0]: marks(ax, '<')
    for ax in figure.axes
  }
  assert arrows['A'] and not arrows['α']
  note = law_lib.pairs(found).legends[0].get_title().get_text()
  assert f'{(zeros == 0).sum()} with a parameter of 0' in note


def test_profile_holds_curve_cutoff_and_both_intervals(fitted):
  found = fitted('familial_total')
  ax = law_lib.profile_curves(found).axes[3]
  profile, spread = found.profiles['alpha'], found.bootstrap.intervals['alpha']
  lines = {line.get_label(): line for line in ax.lines}
  np.testing.assert_array_equal(lines['deviance'].get_xdata(), profile.values)
  assert lines['cut-off'].get_ydata()[0] == profile.cutoff
  assert [*lines['interval by the profile'].get_xdata()] == [
    profile.lo,
    profile.hi,
  ]
  assert [*lines['interval by the bootstrap'].get_xdata()] == [
    spread.lo,
    spread.hi,
  ]


def test_no_resample_left(fitted, tmp_path):
  found = fitted('chinchilla')
  spread = fit_record.Resampled(np.nan, np.nan, np.nan, np.nan)
  empty = dataclasses.replace(
    found.bootstrap,
    samples={name: np.zeros(0) for name in found.fit.form.names},
    intervals=dict.fromkeys(found.fit.form.names, spread),
    failed=100,
  )
  paths = law_lib.draw(dataclasses.replace(found, bootstrap=empty), tmp_path)
  assert 'pairs' not in {path.stem for path in paths}
  assert 'frontier' in {path.stem for path in paths}


def test_large_tables_are_thinned_and_say_so(fitted):
  found = fitted('familial_total')
  repeats = 300
  many = tables.Table(
    {n: np.tile(v, repeats) for n, v in found.table.columns.items()},
    np.array([str(i) for i in range(36 * repeats)]),
  )
  found = dataclasses.replace(found, table=many)
  first, again = (law_lib.residuals(found) for _ in range(2))
  assert len(points_of(first.axes[0], unique=False)) == law_parts.POINTS
  assert points_of(first.axes[0]) == points_of(again.axes[0])
  note = first.legends[0].get_title().get_text()
  assert '2,000 of 10,800 rows are drawn' in note


def points_of(ax, unique=True):
  """The scattered points of a panel, rounded."""
  points = [
    (float(f'{x:.9g}'), float(f'{y:.9g}'))
    for cloud in ax.collections
    if cloud.get_offsets().size and not hasattr(cloud, 'get_data')
    for x, y in cloud.get_offsets()
    if (x, y) != (0, 0)
  ]
  return sorted(set(points)) if unique else points


def pairs_of(x, y):
  return sorted(
    {(float(f'{a:.9g}'), float(f'{b:.9g}')) for a, b in zip(x, y, strict=True)}
  )


def marks(ax, marker):
  return [
    (line.get_xdata()[0], line.get_ydata()[0])
    for line in ax.lines
    if line.get_marker() == marker and len(line.get_xdata())
  ]
