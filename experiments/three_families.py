"""Four deployable sizes, in three ways, at the same total compute.

By exits: one model, whose layers l, 2l, 4l and 8l have exits. By growth: each
size grown in depth from the last, whose old last layers stay as exits, so that
the last model is the family. One by one: four models. And as a second arm, a
chain and separate models that differ in width instead.

Variants:
  test   seconds on two cores: does every part work
  cpu    three quarters of an hour on two cores
  gpu    a hundred times the compute, for one GPU
  paper  up to 7B parameters on C4, to be planned for a pod (`familial plan`)
"""

import ml_collections

from familial.core import errors
from familial.studies import families
from familial.studies import shapes


def get_config(arg: str = 'cpu') -> ml_collections.ConfigDict:
  """Returns a variant's study."""
  variants = {'test': _test, 'cpu': _cpu, 'gpu': _gpu, 'paper': _paper}
  errors.require_one_of('variant', arg, variants)
  config = families.FAMILIES.template()
  config.title = 'Three ways to a family'
  config.equal = 'total'
  config.data.update(corpus='python_source', seq_len=128)
  config.model.base_width = 32
  config.train.update(
    base_lr=1.3e-2, beta2=0.99, batch_size=4, evaluations=4, keep=1
  )
  variants[arg](config)
  return config


def _ways(
  config: ml_collections.ConfigDict, wide: tuple[tuple[int, int, int], ...]
) -> None:
  """Sets the ways, given sizes that differ in width."""
  against = {'against': ('separate',)}
  deeper = {'kind': 'chain', 'growth': {'depth': 'identity'}, **against}
  wider = {'width': 'replicate', 'split': 'uneven'}
  config.ways = {
    'separate': {'kind': 'separate'},
    # Does it matter how separate models share the compute?
    'separate_alike': {'kind': 'separate', 'alike': True, **against},
    'exits': {'kind': 'exits', 'against': ('separate', 'separate_alike')},
    'chain_exits': {
      **deeper,
      'keep_exits': True,
      'against': ('separate', 'exits', 'chain'),
    },
    'chain': deeper,
    'separate_wide': {'kind': 'separate', 'sizes': wide, **against},
    'chain_wide': {
      'kind': 'chain',
      'sizes': wide,
      'growth': wider,
      'against': ('separate_wide',),
    },
  }


def _test(config: ml_collections.ConfigDict) -> None:
  config.title += ' (test)'
  config.sizes = ((16, 1, 2), (16, 2, 2), (16, 4, 2))
  config.budgets = (4e8, 1e9)
  config.data.seq_len = 32
  config.train.update(eval_tokens=2048, evaluations=1)
  _ways(config, ((8, 4, 1), (16, 4, 2), (24, 4, 3)))


def _cpu(config: ml_collections.ConfigDict) -> None:
  config.title += ', 2.5e11 and 1e12 FLOPs each on two cores'
  config.sizes = ((32, 1, 8), (32, 2, 8), (32, 4, 8), (32, 8, 8))
  config.budgets = (2.5e11, 1e12)
  config.seeds = (0, 1)
  # 1.1, 1, 1.1 and 1 times the parameters.
  _ways(config, ((12, 8, 3), (16, 8, 4), (24, 8, 6), (32, 8, 8)))


def _gpu(config: ml_collections.ConfigDict) -> None:
  config.title += ', 1e14 and 4e14 FLOPs each on one GPU'
  shapes.on_gpu(config)
  config.sizes = ((128, 2, 8), (128, 4, 8), (128, 8, 8), (128, 16, 8))
  config.budgets = (1e14, 4e14)
  config.seeds = (0, 1, 2)
  config.train.update(batch_size=32, beta2=0.98)
  _ways(config, ((48, 16, 3), (64, 16, 4), (96, 16, 6), (128, 16, 8)))


def _paper(config: ml_collections.ConfigDict) -> None:
  config.title += ', 0.8B to 6.6B parameters on C4'
  shapes.at_scale(config)
  config.sizes = ((4096, 4, 32), (4096, 8, 32), (4096, 16, 32), (4096, 32, 32))
  config.budgets = (6e21,)
  config.warmup = 0.01
  config.train.update(base_lr=4e-3, batch_size=1024, beta2=0.95, evaluations=20)
  _ways(
    config, ((1536, 32, 12), (2048, 32, 16), (2816, 32, 22), (4096, 32, 32))
  )
