"""A family by model expansion: train small, grow, keep every size.

A chain of four sizes, each about twice the last, by depth and then by widths of
which one does not divide the next; its twins trained alone to the same FLOPs;
both with rates that follow the width and with one rate for all; and the chain
once more with operators that change the function (arXiv 2504.00623 uses those).

Variants:
  test       seconds on two cores: does every part work
  cpu        half an hour on two cores
  operators  a quarter of an hour on two cores: one change to the chain at a time
  gpu        a hundred times the compute, for one GPU
  paper      1B to 8B parameters on C4, to be planned for a pod (`familial plan`)
"""

import ml_collections

from familial.core import errors
from familial.studies import families
from familial.studies import shapes


def get_config(arg: str = 'cpu') -> ml_collections.ConfigDict:
  """Returns a variant's study."""
  variants = {
    'test': _test,
    'cpu': _cpu,
    'operators': _operators,
    'gpu': _gpu,
    'paper': _paper,
  }
  errors.require_one_of('variant', arg, variants)
  config = families.FAMILIES.template()
  config.title = 'A family by model expansion'
  config.data.update(corpus='python_source', seq_len=128)
  config.model.base_width = 32
  config.train.update(
    base_lr=1.3e-2, beta2=0.99, batch_size=4, evaluations=4, keep=1
  )
  exact = {'width': 'replicate', 'split': 'uneven', 'depth': 'identity'}
  chain = {'kind': 'chain', 'against': ('separate',), 'growth': exact}
  config.ways = {
    'separate': {'kind': 'separate'},
    'chain': chain,
    'chain_inexact': {**chain, 'growth': {'width': 'aki', 'depth': 'stack'}},
  }
  variants[arg](config)
  return config


def _one_rate(config: ml_collections.ConfigDict, width: int) -> None:
  """Adds the arm in which the matrices of all sizes have one rate."""
  for name, against in (
    ('separate', ('separate',)),
    ('chain', ('separate_one_rate', 'chain')),
  ):
    way = {**config.ways[name].to_dict(), 'against': against}
    config.ways[f'{name}_one_rate'] = {**way, 'rate_width': width}


def _test(config: ml_collections.ConfigDict) -> None:
  config.title += ' (test)'
  config.sizes = ((8, 1, 1), (8, 2, 1), (16, 2, 2))
  config.budgets = (4e8, 8e8)
  config.data.seq_len = 32
  config.train.update(eval_tokens=2048, evaluations=1)
  _one_rate(config, 11)


def _cpu(config: ml_collections.ConfigDict) -> None:
  config.title += ', 2.5e11 and 1e12 FLOPs on two cores'
  # 1 : 2 : 4.5 : 8 in parameters.
  config.sizes = ((16, 4, 2), (16, 8, 2), (24, 8, 3), (32, 8, 4))
  config.budgets = (2.5e11, 1e12)
  config.seeds = (0, 1)
  _one_rate(config, 23)  # Between the widths.


def _operators(config: ml_collections.ConfigDict) -> None:
  _cpu(config)
  config.title = 'A family by model expansion: one operator changed at a time'
  config.budgets = (4e11,)
  chain = config.ways['chain'].to_dict()
  ways = {'separate': {'kind': 'separate'}, 'chain': chain}
  for key, values in {
    'width': ('aki',),
    'split': ('even', 'noise'),
    'depth': ('stack', 'interleave', 'last', 'middle'),
    'state': ('carry', 'asymmetric'),
  }.items():
    for value in values:
      growth = {**chain['growth'], key: value}
      ways[f'{key}_{value}'] = {**chain, 'growth': growth}
  config.ways = ways


def _gpu(config: ml_collections.ConfigDict) -> None:
  config.title += ', 1e14 and 4e14 FLOPs on one GPU'
  shapes.on_gpu(config)
  config.sizes = ((64, 6, 2), (64, 12, 2), (96, 12, 3), (128, 12, 4))
  config.budgets = (1e14, 4e14)
  config.seeds = (0, 1)
  config.train.update(batch_size=32, beta2=0.98)
  _one_rate(config, 90)


def _paper(config: ml_collections.ConfigDict) -> None:
  config.title += ', 1B to 8B parameters on C4'
  shapes.at_scale(config)
  # 1.0, 2.0, 3.9 and 8.1 billion parameters; the last one has 20 tokens each.
  config.sizes = (
    (2048, 20, 16),
    (2048, 40, 16),
    (2816, 40, 22),
    (4096, 40, 32),
  )
  config.budgets = (9.3e21,)
  config.seeds = (0, 1)
  config.warmup = 0.01
  config.train.update(base_lr=4e-3, batch_size=1024, beta2=0.95, evaluations=20)
  _one_rate(config, 2896)
