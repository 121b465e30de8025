"""The law of familial models L(N, D, G): strict IsoFLOP sweeps with exits.

Variants:
  test   seconds on two cores: does every part work
  cpu    two hours on two cores: 1.5 decades of compute
  gpu    twenty minutes on one modern GPU: three decades and more
  paper  C4, 1e19 to 1e21 FLOPs: for a pod (`familial plan`). A study trains each
         run in one process so far, its batch split over that host's devices
  rates  base rates over width, depth and horizon: does one serve them all?
"""

import ml_collections

from familial.core import errors
from familial.studies import isoflop
from familial.studies import shapes


def get_config(arg: str = 'cpu') -> ml_collections.ConfigDict:
  """Returns a variant's study."""
  variants = {
    'test': _test,
    'cpu': _cpu,
    'gpu': _gpu,
    'paper': _paper,
    'rates': _rates,
  }
  errors.require_one_of('variant', arg, variants)
  config = _base()
  variants[arg](config)
  return config


def _base() -> ml_collections.ConfigDict:
  config = isoflop.ISOFLOP.template()
  config.title = 'The law of familial models'
  config.data.update(corpus='python_source', seq_len=128)
  config.model.base_width = 32
  config.train.update(base_lr=1.3e-2, evaluations=4, keep=1)
  config.rules.update(batch_tokens=512, at_budget=1e11, beta2=0.99)
  config.grid.granularities = (1, 2, 4, 8)
  config.fit.update(starts=512, resamples=2000)
  # From a first pass of `cpu`: the noise is the scatter about the law, of which
  # seeds are the smaller part. Only the plan's power rests on it.
  config.assumed.update(E=0.2, A=8.0, B=27.0, alpha=0.21, beta=0.25, noise=0.02)
  return config


def _test(config: ml_collections.ConfigDict) -> None:
  config.title += ' (test)'
  config.grid.budgets = (1e8, 2e8, 4e8)
  config.grid.shapes = ((8, 2, 1), (16, 2, 1))
  config.grid.granularities = (1, 2)
  config.data.seq_len = 32
  config.rules.batch_tokens = 128
  config.rules.at_budget = 1e8
  config.rules.batch_exponent = 0.0
  config.train.eval_tokens = 2048
  config.train.evaluations = 2
  one = {'budgets': (1e8,), 'shapes': (1,), 'granularities': (2,)}
  config.arms = {
    'seed': {**one, 'granularities': (1, 2), 'values': (1,)},
    'twin': one,
    'weighting': {**one, 'values': ('final_one', 'linear')},
    'frozen': {**one, 'values': ('separate',)},
    'branch': {**one, 'values': ((1, 2),)},
  }
  config.fit.starts, config.fit.resamples = 64, 100


def _cpu(config: ml_collections.ConfigDict) -> None:
  config.title += ', 1e11 to 3.2e12 FLOPs on two cores'
  config.grid.budgets = (1e11, 3.2e11, 1e12, 3.2e12)
  # Deep enough for eight exits; at each budget the sizes around its optimum.
  config.grid.shapes = (
    (8, 8, 1),
    (12, 8, 1),
    (16, 8, 1),
    (24, 8, 2),
    (32, 8, 2),
    (48, 8, 3),
  )
  config.grid.shapes_of = (
    (0, 1, 2, 3),
    (0, 1, 2, 3, 4),
    (1, 2, 3, 4),
    (2, 3, 4, 5),
  )
  every, middle = (3.2e11,), {'budgets': (3.2e11,), 'shapes': (3,)}
  config.arms = {
    'seed': {
      'budgets': every,
      'shapes': (2, 4),
      'granularities': (1, 4),
      'values': (1, 2),
    },
    'twin': {'budgets': every, 'shapes': (2, 4), 'granularities': (2, 4, 8)},
    'weighting': {
      **middle,
      'granularities': (2, 4, 8),
      'values': ('final_one', 'linear'),
    },
    'frozen': {
      **middle,
      'granularities': (4,),
      'values': ('separate', 'branch'),
    },
    # The frozen arm's kinds, trained jointly.
    'kind': {
      **middle,
      'granularities': (4,),
      'values': ('separate', 'branch'),
    },
    'gradients': {**middle, 'granularities': (4,), 'values': (12,)},
    # Exit 4 with none, one or three exits below it and one to three above.
    'branch': {
      **middle,
      'values': (
        (2, 4, 8),
        (1, 2, 4, 8),
        (1, 2, 3, 4, 8),
        (4, 6, 8),
        (4, 6, 7, 8),
        (4, 5, 6, 7, 8),
      ),
    },
  }


def _gpu(config: ml_collections.ConfigDict) -> None:
  config.title += ', 1e12 to 1e16 FLOPs on one GPU'
  # As many tokens of context a unit of width as `cpu` has: the fits carry over.
  shapes.on_gpu(config)
  config.model.loss_chunk = 0
  # The calibrated speed decides which of the top levels are in. With 5 s to
  # compile a program, 3e13 FLOP/s give three decades, 1e14 three and a half; the
  # twelve runs at 1e16 need nearly 3e14, or more seconds.
  config.grid.budgets = (1e12, 1e13, 1e14, 1e15, 3.2e15, 1e16)
  config.grid.seconds = 1200.0
  config.grid.shapes = (
    (24, 8, 1),
    (32, 8, 2),
    (48, 8, 2),
    (64, 8, 2),
    (96, 8, 3),
    (128, 12, 4),
    (160, 12, 5),
    (192, 12, 6),
    (256, 12, 8),
    (384, 12, 12),
  )
  # Three a budget: at every G, each is one more program to compile.
  config.grid.shapes_of = (
    (0, 1, 2),
    (1, 2, 3),
    (3, 4, 5),
    (4, 5, 7),
    (5, 7, 8),
    (6, 8, 9),
  )
  # Goes on where the batches of `cpu` end. At 1e16 beta2 is 0.92.
  config.rules.update(batch_tokens=2048, at_budget=3.2e12, beta2=0.995)
  one = {'budgets': (1e14,), 'shapes': (3, 4)}
  config.arms = {
    'seed': {**one, 'granularities': (1, 4), 'values': (1, 2)},
    'twin': {**one, 'granularities': (4,)},
  }


def _paper(config: ml_collections.ConfigDict) -> None:
  config.title += ', 1e19 to 1e21 FLOPs on C4'
  shapes.at_scale(config)
  config.grid.budgets = (1e19, 1e20, 1e21)
  config.grid.shapes = (
    (768, 16, 12),
    (1024, 16, 16),
    (1536, 24, 12),
    (2048, 24, 16),
    (3072, 32, 24),
    (4096, 32, 32),
  )
  config.grid.shapes_of = ((0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5))
  config.rules.update(
    batch_tokens=524_288, at_budget=1e19, beta2=0.98, warmup=0.01
  )
  # Chinchilla's law as Besiroglu et al. (2024) fitted it again.
  config.assumed.update(E=1.82, A=482.0, B=2085.4, alpha=0.348, beta=0.366)
  config.arms = {
    'seed': {
      'budgets': (1e19,),
      'shapes': (0, 2),
      'granularities': (1, 4),
      'values': (1, 2),
    },
    'twin': {'budgets': (1e19, 1e20), 'shapes': (1, 2), 'granularities': (4,)},
  }


def _rates(config: ml_collections.ConfigDict) -> None:
  config.title = 'Base rates over width, depth and horizon'
  config.train.evaluations = 1
  config.grid.budgets, config.grid.granularities = (1e11,), (2,)
  config.grid.shapes = ((16, 8, 1), (48, 8, 3), (32, 4, 2), (32, 12, 2))
  config.arms = {
    'rate': {
      'budgets': (1e11, 5e11),
      'shapes': (0, 1, 2, 3),
      'granularities': (2,),
      'values': (2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2),
    }
  }
