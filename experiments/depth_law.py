"""Loss over width and depth: every width at every depth, on the same tokens.

In published sweeps deep models are wide models, and a law of both cannot tell
which of the two it was. Here shapes are a full grid, trained at a constant rate,
so that every evaluation is a point of the law: width, depth and tokens are
uncorrelated. The corners of the grid are trained with another seed and at other
rates, too.

Variants:
  test   a minute on two cores: does every part work
  cpu    20 minutes on two cores: 8 to 48 wide, 2 to 16 layers
  gpu    128 to 1024 wide, 4 to 32 layers: an hour of one modern GPU; not yet run
  paper  512 to 4096 wide, 8 to 64 layers on C4, for a pod (`familial plan`)
"""

import ml_collections

from familial.core import errors
from familial.studies import depth_law
from familial.studies import shapes


def get_config(arg: str = 'cpu') -> ml_collections.ConfigDict:
  """Returns a variant's study."""
  variants = {'test': _test, 'cpu': _cpu, 'gpu': _gpu, 'paper': _paper}
  errors.require_one_of('variant', arg, variants)
  config = depth_law.DEPTH.template()
  config.title = 'Loss over width and depth'
  config.data.update(corpus='python_source', seq_len=128)
  config.model.base_width = 32
  # The best constant rate is lower than a cosine schedule's 1.3e-2.
  config.train.update(base_lr=8e-3, beta2=0.99, keep=1)
  variants[arg](config)
  return config


def _test(config: ml_collections.ConfigDict) -> None:
  config.title += ' (test)'
  config.data.seq_len = 32
  config.widths, config.depths = (8, 16, 24), (1, 2, 3)
  config.tokens = 50_000
  config.train.update(
    batch_size=4, first_evaluation=40, evaluations=4, eval_tokens=2048
  )
  config.seeds, config.rates = (0, 1), (1.6e-2,)
  config.cutoffs = (0.0, 0.2)
  config.fit.update(starts=64, resamples=100)


def _cpu(config: ml_collections.ConfigDict) -> None:
  config.title += ', 8 to 48 wide, 2 to 16 layers'
  config.widths, config.depths = (8, 16, 32, 48), (2, 4, 8, 16)
  config.tokens = 640_000
  # Seven points a run, from an eighth of its tokens on.
  config.train.update(
    batch_size=4, first_evaluation=156, evaluations=7, eval_tokens=65_536
  )
  config.seeds, config.rates = (0, 1), (4e-3, 1.6e-2)
  config.fit.update(starts=512, resamples=1000)


def _gpu(config: ml_collections.ConfigDict) -> None:
  config.title += ', 128 to 1024 wide, 4 to 32 layers'
  shapes.on_gpu(config)
  config.model.base_width = 128
  config.widths, config.depths = (128, 256, 512, 1024), (4, 8, 16, 32)
  config.head_width = 64
  config.tokens = 40_000_000
  config.train.update(
    base_lr=4e-3, batch_size=64, beta2=0.98, first_evaluation=305,
    evaluations=7,
  )  # fmt: skip
  config.seeds, config.rates = (0, 1), (2e-3, 8e-3)


def _paper(config: ml_collections.ConfigDict) -> None:
  config.title += ', 512 to 4096 wide, 8 to 64 layers on C4'
  shapes.at_scale(config)
  config.widths, config.depths = (512, 1024, 2048, 4096), (8, 16, 32, 64)
  config.head_width = 128
  config.tokens = 100_000_000_000
  config.train.update(
    base_lr=4e-3, batch_size=512, beta2=0.95, first_evaluation=11_921,
    evaluations=7,
  )  # fmt: skip
  config.rates = (2e-3, 8e-3)
