import numpy as np
import pytest

from familial.report import controls
from familial.report import figures
from familial.report import law_sections
from familial.report import results
from familial.report import style


def test_nothing_is_drawn_through_a_minimum_at_the_edge(study):
  for width, depth in ((80, 8), (128, 12), (160, 16)):
    study.run(2e11, width, depth, 1)
    study.run(3e13, width, depth, 1)
  found = results.read(study.workdir)
  minima = found.minima('final')
  small, large = minima[2e11, 1], minima[3e13, 1]
  assert not small.interior and large.interior
  assert small.n_opt == min(run.params_full for run in found.runs)
  figure = figures.isoflop(found.arm('grid'), minima, 'final')
  edge, fitted = figure.axes
  smooth = [len(line.get_xdata()) == 100 for line in edge.lines]
  assert not any(smooth)
  assert sum(len(line.get_xdata()) == 100 for line in fitted.lines) == 1


def test_slices_leave_each_point_its_residual(study):
  study.grid()
  study.fit('final', 'familial_total', 0.031, 0.0)
  found = results.read(study.workdir)
  law, table = found.fits['final', 'familial_total'], found.table('final')
  left = table.columns['loss'] / law.predict(table.columns)
  figure = figures.slices(table, law.predict, None, 'a title')
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
  (ax,) = figures.exits(curves).axes
  for line in ax.lines:
    for g in (1, 2, 4):
      if line.get_label() == style.name_of(g):
        assert line.get_color() == style.colour(g)


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


@pytest.mark.parametrize('finite', [True, False])
def test_infinite_leverage_is_drawn_at_the_top(finite):
  rows = [
    {'budget': 1e12, 'exits': 2, 'params_full': 1e5, 'leverage': None,
     'infinite': True},
    {'budget': 1e13, 'exits': 4, 'params_full': 1e5, 'leverage': None,
     'infinite': True},
  ]  # fmt: skip
  if finite:
    rows += [{**rows[0], 'leverage': 3.0, 'infinite': False}]
  (ax,) = controls.leverage(rows).axes
  arrows = [text for text in ax.texts if text.get_text() == '↑ 1']
  assert len(arrows) == 2
  low, high = ax.get_ylim()
  for arrow in arrows:
    height = arrow.get_position()[1]
    assert (3.0 if finite else 1.0) < height < high and low < 1


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
