"""The law from a fraction of the runs, replayed: policies on known curves.

`familial allocate --config=experiments/allocation.py:nanogpt --out=OUT
--config.table=FOLDER/nanogpt_curves/curves.csv`

Variants:
  test       seconds: synthetic curves, few draws
  synthetic  curves of a known law, clean and with three kinds of noise
  other_law  noisy ones of another law, which policy `law` does not expect
  nanogpt    30 nanoGPT curves, 5 widths x 6 depths, of a table that is not part of
             this project (N, tokens, C, val_loss at 11 points each)
  savings    the same curves, at budgets that save less and less: what the law
             that was fitted to a fraction is worth
"""

import ml_collections

from familial.allocation import config as allocation_config
from familial.core import errors

PETA = 1e15
ENSEMBLES = (
  'sh_ensemble_power_law',
  'sh_ensemble_exponential',
  'sh_ensemble_mmf',
)


def get_config(arg: str = 'synthetic') -> ml_collections.ConfigDict:
  """Returns a variant's replay."""
  variants = {
    'test': _test,
    'synthetic': _synthetic,
    'other_law': _other_law,
    'nanogpt': _nanogpt,
    'savings': _savings,
  }
  errors.require_one_of('variant', arg, variants)
  config = allocation_config.template()
  config.title = 'Policies on known curves'
  config.policies = ('uniform', 'sh_lmc', *ENSEMBLES, 'law')
  variants[arg](config)
  return config


def _test(config: ml_collections.ConfigDict) -> None:
  config.title += ' (test)'
  config.cells = ((4, 1e3 * PETA),)
  config.curves, config.draws = 8, 3
  config.policies = ('uniform', 'sh_lmc', 'sh_ensemble_power_law')


def _synthetic(config: ml_collections.ConfigDict) -> None:
  config.title += ': synthetic'
  config.cells = ((10, 1e3 * PETA), (20, 1e4 * PETA), (5, 1e4 * PETA))
  config.noises = ('clean', 'white', 'brownian', 'ornstein_uhlenbeck')
  # The curves are power laws: of the families this one. Policy `law` expects
  # their very constants: what it can do is seen with other_law.
  config.policies = ('uniform', 'sh_lmc', 'sh_ensemble_power_law')


def _other_law(config: ml_collections.ConfigDict) -> None:
  config.title += ': synthetic, of another law'
  config.cells = ((10, 1e3 * PETA),)
  config.noises = ('white',)  # Clean curves give their law to whoever asks.
  config.policies = ('uniform', 'sh_ensemble_power_law', 'law')
  # Size matters less and tokens more than in Hoffmann et al.'s.
  config.constants.update(E=1.0, A=60.0, B=5000.0, alpha=0.25, beta=0.5)


def _nanogpt(config: ml_collections.ConfigDict) -> None:
  config.title += ': nanoGPT'
  config.columns = {
    'params': 'N',
    'tokens': 'tokens',
    'flops': 'C',
    'loss': 'val_loss',
  }
  config.curve = ('n_embd', 'n_layer')
  config.cells = (
    (20, 1e4 * PETA),
    (20, 1e5 * PETA),
    (5, 1e4 * PETA),
    (5, 1e5 * PETA),
  )
  # Before, the rate warms up and a plateau at 5.4 nats is left.
  config.law.where = ('tokens>=1e9',)


def _savings(config: ml_collections.ConfigDict) -> None:
  _nanogpt(config)
  config.title += ', budgets by saving'
  config.cells = tuple((20, x * PETA) for x in (1e4, 2e4, 4e4, 8e4, 1.6e5))
  config.policies = ('uniform', 'sh_ensemble_power_law', 'law')
