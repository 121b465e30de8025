import numpy as np
import pytest

from familial.plots import isoflop
from familial.plots import style
from familial.report import controls
from familial.report import law_sections
from familial.report import results


def test_nothing_is_drawn_through_a_minimum_at_the_edge(study):
  for width, depth in ((80, 8), (128, 12), (160, 16)):
    study.run(2e11, width, depth, 1)
    study.run(3e13, width, depth, 1)
  found = results.read(study.workdir)
  minima = found.minima('final')
  small, large = minima[2e11, 1], minima[3e13, 1]
  assert not small.interior and large.interior
  assert small.n_opt == min(run.params_full for run in found.runs)
  figure = isoflop.isoflop(found.arm('grid'), minima, 'final')
  edge, fitted = figure.axes
  smooth = [len(line.get_xdata()) == 100 for line in edge.lines]
  assert not any(smooth)
  assert sum(len(line.get_xdata()) == 100 for line in fitted.lines) == 1


def test_slices_leave_each_point_its_residual(study):
  study.grid()
  study.fit('final', 'familial_total', 0.031, 0.0)
  found = results.read(study.workdir)
  law, table = (
    found.fits['final', 'familial_total'],
    found.table('final', 'familial_total'),
  )
  left = table.columns['loss'] / law.predict(table.columns)
  figure = isoflop.slices(table, law.predict, None, 'a title')
  for name, ax in zip('ND', figure.axes[:2], strict=True):
    (line,) = [li for li in ax.lines if li.get_label() == 'fitted law']
    points = np.concatenate([c.get_offsets() for c in ax.collections])
    on_line = np.interp(
      np.log(points[:, 0]), np.log(line.get_xdata()), line.get_ydata()
    )
    assert sorted(points[:, 0]) == pytest.approx(sorted(table.columns[name]))
    np.testing.assert_allclose(
      sorted(points[:, 1] / on_line), sorted(left), rtol=2e-3
    )


def test_a_granularity_keeps_its_colour(study):
  for exits in (1, 2, 4):
    study.run(1e12, 80, 8, exits)
  found = results.read(study.workdir)
  curves = law_sections.exit_curves(found)
  (ax,) = isoflop.exits(curves).axes
  shown = {line.get_label(): line.get_color() for line in ax.lines}
  for g in (1, 2, 4):
    assert shown[style.name_of(g)] == style.colour(g)
  assert len(set(shown.values())) == 3


def test_exits_are_shown_at_the_shape_with_twins(study):
  for shape in ((48, 8), (80, 8), (128, 12)):
    for exits in (1, 2):
      study.run(1e12, *shape, exits)
  study.summary(twins={'rows': [
    {'budget': 1e12, 'width': 128, 'depth': 12, 'exits': 2, 'exit': 1,
     'layer': 6, 'loss_exit': 3.0, 'loss_twin': 2.9, 'log_ratio': 0.03}
  ]})  # fmt: skip
  (curve,) = law_sections.exit_curves(results.read(study.workdir))
  assert (curve.width, curve.depth) == (128, 12)
  assert list(curve.by_g) == [1, 2]
  assert list(curve.twins) == [(6, 2.9)]


def test_the_budget_with_twins_is_shown_among_four(study):
  """Evenly chosen, three of four budgets would leave out the second."""
  study.fill()
  found = results.read(study.workdir)
  assert len(found.budgets) == 4
  curves = law_sections.exit_curves(found)
  assert [curve.budget for curve in curves] == [2e11, 6e11, 5e12]
  assert sorted(layer for layer, _ in curves[1].twins) == [2, 4, 6, 8]
  assert not curves[0].twins and not curves[2].twins


def test_a_table_holds_the_rows_of_its_own_fit(study):
  study.fill()
  found = results.read(study.workdir)
  total = found.table('exit', 'familial_total')
  branch = found.table('exit', 'branch')
  assert branch.rows == total.rows + 2  # The two exits of one run.
  twins = (total.columns['G'] == 1) & (total.columns['depth'] != 8)
  assert set(total.columns['depth'][twins]) >= {2, 6}
  assert 6 not in found.table('final', 'familial_total').columns['depth']


def test_residuals_show_layers_where_there_are_several(study):
  study.fill()
  found = results.read(study.workdir)
  law = found.fits['exit', 'familial_total']
  table = found.table('exit', 'familial_total')
  figure = isoflop.residuals(table, law.predict, 0.01, 'a title')
  assert [ax.get_xlabel().split()[0] for ax in figure.axes] == [
    'parameters', 'tokens', 'exits', 'layer',
  ]  # fmt: skip
  dense = table.columns['G'] == 1
  for ax in figure.axes:
    (hollow,) = [c for c in ax.collections if c.get_label() == 'hollow: dense']
    assert len(hollow.get_offsets()) == dense.sum()
  flat = table.take(table.columns['layer'] == 8)
  assert len(isoflop.residuals(flat, law.predict, None, 'a title').axes) == 3


LEVERAGE = {'run': 'a', 'budget': 1e12, 'exits': 2, 'leverage': None,
            'lo': None, 'hi': None, 'infinite': True}  # fmt: skip


@pytest.mark.parametrize('finite', [True, False])
def test_infinite_leverage_is_drawn_at_the_top(finite):
  rows = [LEVERAGE, {**LEVERAGE, 'budget': 1e13, 'exits': 4}]
  if finite:
    rows += [{**LEVERAGE, 'leverage': 3.0, 'infinite': False}]
  (ax,) = controls.leverage(rows).axes
  arrows = [text for text in ax.texts if text.get_text() == '↑ 1']
  assert len(arrows) == 2
  low, high = ax.get_ylim()
  for arrow in arrows:
    height = arrow.get_position()[1]
    assert (3.0 if finite else 1.0) < height < high and low < 1


def test_intervals_of_leverage_are_drawn():
  point = {**LEVERAGE, 'leverage': 3.0, 'lo': 2.0, 'infinite': False}
  rows = [{**point, 'hi': 4.0}, {**point, 'run': 'b', 'hi': None}]
  (ax,) = controls.leverage(rows).axes
  ends = [list(line.get_ydata()) for line in ax.lines]
  assert [2.0, 4.0] in ends
  (endless,) = [end for end in ends if end[0] == 2.0 and end[1] != 4.0]
  assert endless[1] > ax.get_ylim()[1]  # Leaves the figure.


def test_frozen_exits_say_what_both_cost():
  row = {'exit_kind': 'branch', 'width': 8, 'depth': 4, 'exits': 2, 'exit': 1,
         'layer': 2, 'loss': 2.0, 'loss_joint': 1.9, 'flops': 4e11,
         'budget_joint': 3.2e11}  # fmt: skip
  (ax,) = controls.frozen([row]).axes
  title = ax.get_title(loc='left')
  assert 'C = 4×10¹¹ (jointly 3.2×10¹¹), branch' in title


@pytest.mark.parametrize(
  'values', [(1e5, 1e5), (1e5, 1.3e5), (3e4, 4e6), (1e3, 1e12), (0.9, 1.1)]
)
def test_log_axes_have_a_few_round_ticks(values):
  _, (ax,) = style.panels(1, 'a title')
  ax.plot(values, [1, 2])
  style.log_axis(ax.xaxis, values)
  ticks = ax.xaxis.get_majorticklocs()
  low, high = ax.get_xlim()
  assert low < min(values) <= max(values) < high
  assert 1 <= len(ticks) <= 6
  assert all(low <= tick <= high for tick in ticks)
