import dataclasses

from matplotlib import image
from matplotlib.backends import backend_agg
import numpy as np
import pytest

from familial.plots import evaluation as evaluation_lib
from familial.serving import benchmark
from familial.serving import evaluate
from familial.serving import sampling
from familial.serving import thresholds


def make(exits, windows=6):
  rng = np.random.default_rng(0)
  size = (exits, windows, 20)
  readings = thresholds.Readings(
    exits=tuple(range(1, exits + 1)),
    layers=tuple(range(2, 2 * exits + 1, 2)),
    nats_GxWxL=rng.exponential(size=size),
    correct_GxWxL=rng.random(size) < 0.5,
    confidences={
      kind: rng.random(size).astype(np.float32) for kind in sampling.CONFIDENCES
    },
    counted_WxL=np.ones(size[1:], bool),
    documents_WxL=np.zeros(size[1:], int),
  )
  bins = thresholds.reliability(
    rng.random(20 * windows) * 0.7, rng.random(20 * windows) < 0.5
  )
  curves = {}
  if exits > 1:
    curves = {k: thresholds.curve(readings, k) for k in sampling.CONFIDENCES}
  return evaluate.Evaluation(
    run='run', step=10, corpus='', tokens=20 * windows, windows=windows,
    context=20, bytes_per_token=1.0, depth=2 * exits,
    exits=tuple(
      evaluate.Score(i, 2 * i, 1000 * i, 1.0, 0.1, 1.0, 0.5, 0.1, bins)
      for i in range(1, exits + 1)
    ),
    curves=curves,
    chosen={k: thresholds.threshold_for(c) for k, c in curves.items()},
    oracle=thresholds.oracle(readings) if curves else None,
  )  # fmt: skip


@pytest.fixture(scope='module')
def evaluation():
  return make(3)


def line(ax, name):
  return next(one for one in ax.lines if one.get_label() == name)


def test_files_are_pictures_with_something_on_them(evaluation, tmp_path):
  evaluation_lib.draw(evaluation, tmp_path / 'out')
  names = sorted(path.name for path in (tmp_path / 'out').iterdir())
  assert names == ['reliability.png', 'thresholds.png']
  for name in names:
    assert image.imread(tmp_path / 'out' / name)[..., :3].std() > 0.05


def test_a_single_exit_has_no_thresholds_to_draw(tmp_path):
  evaluation_lib.draw(make(1), tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ['reliability.png']


def test_curves_are_the_outcomes(evaluation):
  axes = evaluation_lib.curves(evaluation).axes
  assert len(axes) == 9
  for column, (kind, outcomes) in enumerate(evaluation.curves.items()):
    loss_ax, share_ax, layers_ax = axes[column::3]
    x, y = loss_ax.lines[0].get_data()
    np.testing.assert_array_equal(x, [o.threshold for o in outcomes])
    np.testing.assert_allclose(y, [100 * o.increase for o in outcomes])
    band = loss_ax.collections[0].get_datalim(loss_ax.transData).intervaly
    np.testing.assert_allclose(
      band,
      [
        100 * min(o.increase_low for o in outcomes),
        100 * max(o.increase_high for o in outcomes),
      ],
    )
    assert len(share_ax.collections) == 3
    # The lowest part of the stack is the first exit's.
    top = share_ax.collections[0].get_paths()[0].vertices
    for outcome in outcomes[1:-1]:
      at = np.isclose(top[:, 0], outcome.threshold, atol=1e-12)
      np.testing.assert_allclose(top[at, 1].max(), 100 * outcome.shares[0])
    for name, key in (
      ('up to the exit', 'layers'),
      ('with deferred', 'layers_deferred'),
    ):
      np.testing.assert_allclose(
        line(layers_ax, name).get_ydata(), [getattr(o, key) for o in outcomes]
      )
    for ax in (loss_ax, share_ax, layers_ax):
      chosen = line(ax, 'at most 1 % worse').get_xdata()
      assert set(chosen) == {evaluation.chosen[kind].threshold}


def test_reliability_is_that_of_the_bins(evaluation):
  axes = evaluation_lib.reliability(evaluation).axes
  assert len(axes) == 3
  for ax, score in zip(axes, evaluation.exits, strict=True):
    assert ax.get_title(loc='left').startswith(f'exit {score.exit}, ')
    x, y = line(ax, 'accuracy').get_data()
    np.testing.assert_array_equal(
      x, np.array([b.confidence for b in score.bins], float)
    )
    np.testing.assert_array_equal(
      y, np.array([b.accuracy for b in score.bins], float)
    )
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(sum(heights), 1)


@pytest.mark.parametrize('exits', [3, 16])
def test_nothing_lies_outside_of_a_figure(exits):
  for figure in (
    evaluation_lib.curves(make(exits)),
    evaluation_lib.reliability(make(exits)),
  ):
    canvas = backend_agg.FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    texts = [*figure.legends, *(ax.yaxis.label for ax in figure.axes)]
    for text in texts:
      box = text.get_window_extent(renderer)
      assert box.x0 >= 0 and box.y0 >= 0
      assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


def test_a_single_window_is_drawn_without_a_band():
  axes = evaluation_lib.curves(make(2, windows=1)).axes
  assert not axes[0].collections


@pytest.mark.parametrize('exits', [1, 2])
def test_hops_are_drawn_where_there_are_any(exits):
  speeds = [
    benchmark.Speed('exit', f'exit {i + 1}', rows, 10, 2.0 + i)
    for rows in (1, 16) for i in range(exits)
  ]  # fmt: skip
  hops = [
    benchmark.Hop(dtype, to, size * to, 1.0, 0.0, 0.0)
    for dtype, size in (('float32', 400), ('int8', 100)) for to in (1, 2)
  ] * (exits > 1)  # fmt: skip
  made = benchmark.Decoding('run', 1, 8, tuple(speeds), tuple(hops))
  axes = evaluation_lib.decoding(made).axes
  rates = [[bar.get_width() for bar in ax.patches] for ax in axes[:2]]
  assert rates == [[10 / (2.0 + i) for i in range(exits)][::-1]] * 2
  heights = [[bar.get_height() for bar in ax.patches] for ax in axes[2:]]
  assert heights == [[400, 800, 100, 200]] * (exits > 1)


def test_every_axis_says_what_it_is(evaluation):
  axes = evaluation_lib.curves(evaluation).axes
  assert [ax.get_ylabel() for ax in axes[::3]] == [
    'loss increase, %', 'tokens, %', 'layers per token',
  ]  # fmt: skip
  assert {ax.get_xlabel() for ax in axes[6:]} == {'threshold'}
  one = dataclasses.replace(evaluation, exits=evaluation.exits[:1])
  (ax,) = evaluation_lib.reliability(one).axes
  assert (ax.get_xlabel(), ax.get_ylabel()) == ('largest probability', 'share')
