from matplotlib import image
import numpy as np
import pytest

from familial.plots import evaluation as plots
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


@pytest.mark.parametrize(
  ('exits', 'windows', 'names'),
  [
    (1, 6, {'reliability.png'}),
    (2, 1, {'reliability.png', 'thresholds.png'}),
    (16, 6, {'reliability.png', 'thresholds.png'}),
  ],
)
def test_an_evaluation_is_drawn(tmp_path, exits, windows, names):
  plots.draw(make(exits, windows), tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == names
  for name in names:
    assert image.imread(tmp_path / name)[..., :3].std() > 0.05


@pytest.mark.parametrize('exits', [1, 2])
def test_a_benchmark_is_drawn(tmp_path, exits):
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
  plots.save(plots.decoding(measured), tmp_path / 'decoding.png')
  assert image.imread(tmp_path / 'decoding.png')[..., :3].std() > 0.05
