"""Which regime the layers of toy students are in, by how their states move.

The exponent of the loss is left out of the evidence, so that the two can be held
against each other.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses

import jax

from familial.analysis import middle
from familial.analysis import regimes
from familial.analysis import toys
from familial.analysis import trajectories
from familial.core import storage

_INPUTS = 2048


def rows(
  by_depth: Mapping[int, toys.Params], stages: int, seed: int
) -> Iterator[storage.Row]:
  """Yields what the states say: of all depths together, then of the deepest.

  Nothing for depths that are all below `middle.LEAST_DEPTH`.

  Args:
    by_depth: students of one teacher that differ in depth.
    stages: of their layers.
    seed: of the inputs N(0, I).
  """
  depths = sorted(by_depth)
  if depths[-1] < middle.LEAST_DEPTH:
    return
  width = by_depth[depths[0]]['in'].shape[1]
  x_BxD = jax.random.normal(jax.random.key(seed), (_INPUTS, width))
  every = [
    trajectories.summarise(toys.states(by_depth[depth], x_BxD, stages))
    for depth in depths
  ]
  for networks in (every, every[-1:]):
    answer = regimes.classify(networks)
    row = dataclasses.asdict(answer)
    row['evidence'] = {each.pop('name'): each for each in row['evidence']}
    yield {**row, 'text': regimes.text(answer)}
