"""A familial IsoFLOP sweep that two cores finish in minutes.

Three budgets, four sizes, one, two and four exits: 36 models, and eight with other
seeds, 44 in all; their law, and a page. `familial_law.py` holds the studies that
this one is a sketch of.
"""

import ml_collections

from familial.studies import isoflop


def get_config() -> ml_collections.ConfigDict:
  """Returns the study; there are no variants."""
  config = isoflop.ISOFLOP.template()
  config.title = 'Quick start: a familial sweep in minutes'
  config.data.update(corpus='python_source', seq_len=64)
  config.model.base_width = 32
  config.train.update(base_lr=1.3e-2, eval_tokens=32_768, keep=1)
  config.rules.update(batch_tokens=512, at_budget=6e10, beta2=0.99)
  config.grid.budgets = (2e10, 6e10, 1.8e11)
  config.grid.shapes = ((8, 4, 1), (12, 4, 1), (16, 4, 1), (32, 4, 2))
  config.grid.granularities = (1, 2, 4)
  config.arms = {
    'seed': {
      'budgets': (2e10,),
      'shapes': (1, 2),
      'granularities': (1, 4),
      'values': (1, 2),
    }
  }
  config.fit.resamples = 500
  config.assumed.update(E=0.2, A=8.0, B=27.0, alpha=0.21, beta=0.25, noise=0.02)
  return config
