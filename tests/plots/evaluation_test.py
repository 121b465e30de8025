"""What the figures of an evaluation and of a benchmark are drawn from."""

import numpy as np
import pytest

from familial.plots import evaluation as plots
from familial.plots import theme
from familial.serving import benchmark
from familial.serving import evaluate
from familial.serving import sampling
from familial.serving import thresholds

pytestmark = pytest.mark.filterwarnings('error')


def made(exits, windows):
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


@pytest.mark.parametrize(('exits', 'windows'), [(1, 6), (2, 1), (16, 6)])
def test_an_evaluation_is_drawn_whole(exits, windows):
  evaluation = made(exits, windows)
  spec = theme.specification(plots.reliability(evaluation))
  rows = spec['data']['values']
  assert len({row['panel'] for row in rows}) == exits
  assert sum(row['share'] for row in rows) == pytest.approx(exits)
  if exits == 1:
    return
  panels = theme.specification(plots.thresholds(evaluation))['concat']
  assert len(panels) == 3 * len(sampling.CONFIDENCES)
  for losses, shares, layers in zip(*(iter(panels),) * 3, strict=True):
    by_threshold = {}
    for row in shares['data']['values']:
      at = by_threshold.setdefault(row['threshold'], [])
      at.append(row['share'])
    assert all(sum(each) == pytest.approx(1) for each in by_threshold.values())
    assert len(layers['data']['values']) == 2 * len(by_threshold)
    # A single window has no interval.
    known = [row['increase_lo'] is not None for row in losses['data']['values']]
    assert all(known) if windows > 1 else not any(known)


@pytest.mark.parametrize('exits', [1, 2])
def test_a_benchmark_is_drawn_whole(exits):
  speeds = tuple(
    benchmark.Speed('exit', f'exit {i + 1}', rows, 10, 2.0 + i)
    for rows in (1, 16)
    for i in range(exits)
  )
  hops = tuple(
    benchmark.Hop(dtype, to, 400 * to, 1.0, 0.0, 0.0)
    for dtype in ('float32', 'int8')
    for to in (1, 2)
  )
  measured = benchmark.Decoding('run', 1, 8, speeds, hops if exits > 1 else ())
  panels = theme.specification(plots.decoding(measured))['concat']
  assert len(panels) == 2 + (exits > 1)
  for panel in panels[:2]:
    rates = [row['rate'] for row in panel['data']['values']]
    assert rates == [5.0, 10 / 3][:exits]
