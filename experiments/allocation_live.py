"""The law from a fraction of the runs, live: a budget drives real training.

`familial allocate --config=experiments/allocation_live.py:cpu --out=runs/live`, or
`familial run --config=... --workdir=runs/live --workers=2`. Shapes with and without
exits are trained as the policy decides, and with `full` the rest of the grid
afterwards: the law of the allocation beside the law of the whole grid.

Variants:
  test   seconds on two cores: does every part work
  cpu    a quarter of an hour on two cores: 18 candidates, then the whole grid
  gpu    a hundred times the compute, for one GPU
  paper  0.1B to 1B parameters on C4, to be planned for a pod (`familial plan`)
"""

import ml_collections

from familial.core import errors
from familial.studies import live_allocation
from familial.studies import shapes


def get_config(arg: str = 'cpu') -> ml_collections.ConfigDict:
  """Returns a variant's study."""
  variants = {'test': _test, 'cpu': _cpu, 'gpu': _gpu, 'paper': _paper}
  errors.require_one_of('variant', arg, variants)
  config = live_allocation.LIVE.template()
  config.title = 'A law from a fraction of the runs, live'
  config.data.update(corpus='python_source', seq_len=128)
  config.model.base_width = 32
  config.train.update(
    base_lr=1.3e-2,
    beta2=0.99,
    batch_size=4,
    first_evaluation=4,
    evaluations=16,
    eval_tokens=16_384,
    keep=1,
  )
  config.full = True
  variants[arg](config)
  return config


def _test(config: ml_collections.ConfigDict) -> None:
  config.title += ' (test)'
  config.shapes = ((8, 2, 1), (12, 2, 1), (16, 2, 2))
  config.granularities = (1, 2)
  config.data.seq_len = 32
  config.train.update(
    eval_tokens=2048, first_evaluation=4, evaluations=8, checkpoint_seconds=0.0
  )
  config.horizon, config.budget = 4e8, 1e9
  config.policy = 'sh'


def _cpu(config: ml_collections.ConfigDict) -> None:
  config.title += ', 18 candidates of at most 2.5e11 FLOPs on two cores'
  config.shapes = (
    (8, 4, 1),
    (12, 4, 1),
    (16, 4, 2),
    (24, 4, 2),
    (32, 4, 2),
    (16, 8, 2),
  )
  config.granularities = (1, 2, 4)
  config.horizon = 2.5e11
  config.budget = 4.5e11
  config.policy = 'sh_ensemble_power_law'
  # Of the first steps, in which the rate warms up, no law speaks.
  config.law.where = ('tokens>=1e5',)


def _gpu(config: ml_collections.ConfigDict) -> None:
  _cpu(config)
  config.title = 'A law from a fraction of the runs, live, on one GPU'
  shapes.on_gpu(config)
  config.shapes = tuple((4 * w, d, h) for w, d, h in config.shapes)
  config.train.update(batch_size=32, beta2=0.98)
  config.horizon, config.budget = 2.5e14, 4.5e14
  config.law.where = ('tokens>=3e6',)


def _paper(config: ml_collections.ConfigDict) -> None:
  config.title += ', 0.1B to 1B parameters on C4'
  shapes.at_scale(config)
  config.shapes = (
    (768, 12, 6),
    (1024, 12, 8),
    (1024, 24, 8),
    (1536, 16, 12),
    (1536, 24, 12),
    (2048, 20, 16),
  )
  config.granularities = (1, 2, 4)
  config.horizon = 2e20
  config.budget = 3.6e20
  config.train.update(
    base_lr=4e-3,
    batch_size=256,
    beta2=0.95,
    first_evaluation=256,
    evaluations=24,
  )
  config.law.where = ('tokens>=1e9',)
