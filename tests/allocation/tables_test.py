"""On real curves: what replays of arXiv 2605.17234 give, and the frontier."""

import os
import pathlib

import numpy as np
import pytest

from experiments import allocation
from familial.allocation import config
from familial.allocation import config as allocation_config
from familial.allocation import curves
from familial.allocation import frontier
from familial.allocation import policies
from familial.allocation import replay

LAW = config.Law()


@pytest.fixture(scope='module')
def pool():
  asked = allocation_config.read(allocation.get_config('nanogpt'))
  folder = pathlib.Path(os.environ['FAMILIAL_TABLES']) / 'nanogpt_curves'
  return curves.read(folder / 'curves.csv', asked.columns, asked.curve)


@pytest.mark.tables
def test_the_frontier_is_the_published_line(pool):
  assert len(pool.curves) == 30 and pool.flags == ()
  line = frontier.line(pool.curves, *frontier.span(pool.curves))
  assert line.slope == pytest.approx(-0.0551, abs=2e-4)
  assert line.level == pytest.approx(3.492, abs=0.01)


@pytest.mark.tables
@pytest.mark.parametrize(
  ('candidates', 'budget', 'loss', 'uniform', 'oracle'),
  [
    (20, 1e19, 3.22, -13.0, 2.04),
    (20, 1e20, 2.97, -4.0, 6.95),
    (5, 1e19, 3.11, -6.4, 1.02),
    (5, 1e20, 2.90, 1.9, 4.42),
  ],
)
def test_replays_give_the_known_figures(
  pool, candidates, budget, loss, uniform, oracle
):
  rng = np.random.default_rng(0)
  sources = [
    replay.Replay(
      [pool.curves[i] for i in rng.choice(30, candidates, replace=False)]
    )
    for _ in range(200)
  ]
  best = {
    name: np.array(
      [
        found.best
        for found in policies.allocate(name, sources, budget, 2, LAW, 0)
      ]
    )
    for name in ('sh', 'uniform', 'oracle')
  }
  gain = {
    name: 100 * np.mean((best['sh'] - mine) / best['sh'])
    for name, mine in best.items()
  }
  assert best['sh'].mean() == pytest.approx(loss, abs=0.03)
  # Four standard errors of 200 draws.
  assert gain['uniform'] == pytest.approx(uniform, abs=0.7)
  assert gain['oracle'] == pytest.approx(oracle, abs=0.5)
  assert (best['oracle'] <= best['sh']).all()
