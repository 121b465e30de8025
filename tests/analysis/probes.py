"""Probes of networks whose states are known, without a model."""

import numpy as np

from familial.analysis import layers
from familial.analysis import probe
from familial.analysis import trajectories


def of_network(
  network: trajectories.NetworkStatistics, seed: int = 0, exits: int = 1
) -> probe.Probe:
  """Returns the probe of a network; its losses are 0."""
  depth, tokens = network.depth, int(network.settled.sum())
  ends = tuple(range(depth - exits + 1, depth + 1))
  by_layer = {'loss': depth + 1, 'skip': depth, 'swap': depth - 1}
  groups = len(network.settled)
  zeros = {
    name: trajectories.Moments(
      *(np.ones((groups, n)) * x for x in (2.0, 0.0, 0.0))
    )
    for name, n in (by_layer | {'exit_loss': exits}).items()
  }
  bins = dict(network.bins)
  bins['loss'] = np.ones((depth + 1, 2000), int)
  whole = trajectories.NetworkStatistics(
    network.width, {**network.moments, **zeros}, bins, network.settled
  )
  early = np.array([[0, 1], [1, 2], [1, 4]])
  measurement = layers.Measurement(
    whole, {'by_position': early, 'by_place': early[:2]}, tokens, groups
  )
  return probe.of_measurement(
    measurement,
    probe.ProbedModel(
      run=f'd{depth}_g{exits}_seed{seed}',
      step=1,
      cell='',
      arm='',
      budget=0.0,
      tokens_trained=0,
      seed=seed,
      base_lr=0.1,
      width=network.width,
      depth=depth,
      heads=1,
      mlp_width=8,
      vocab=8,
      exits=ends,
      exit_kind='head',
      weighting='uniform',
      corpus='',
      fingerprint='',
      context=8,
      document_mask=False,
      lineage={},
    ),
  )
