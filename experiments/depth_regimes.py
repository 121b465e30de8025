"""Whether exits change what layers do: models that differ in their exits alone.

Dense networks of this size average: the updates of neighbouring layers are nearly
orthogonal. Exits ask early layers for answers. The question is whether they push a
network towards composition, where steps and stops depend on the input.

Variants:
  test  seconds on two cores, a smoke test of every part
  cpu   20 minutes on two cores: 8 layers, G = 1, 2, 4 and 8, four seeds
  gpu   12 to 24 layers, 512 wide, for one GPU
"""

import ml_collections

from familial.core import errors
from familial.studies import depth_regimes
from familial.studies import shapes


def get_config(arg: str = 'cpu') -> ml_collections.ConfigDict:
  """Returns a variant's config."""
  variants = {'test': _test, 'cpu': _cpu, 'gpu': _gpu}
  errors.require_one_of('variant', arg, variants)
  config = depth_regimes.REGIMES.template()
  config.title = 'What layers do, with exits and without'
  config.data.update(corpus='python_source', seq_len=128)
  config.model.base_width = 32
  config.train.update(
    base_lr=1.3e-2, beta2=0.99, batch_size=8, eval_tokens=65_536, keep=1
  )
  variants[arg](config)
  return config


def _test(config: ml_collections.ConfigDict) -> None:
  config.title += ' (test)'
  config.data.seq_len = 32
  config.width, config.depths = 8, (4,)
  config.granularities, config.seeds = (1, 2), (0, 1)
  config.tokens, config.probe_tokens = 8_000, 2048
  config.train.update(batch_size=4, eval_tokens=2048)


def _cpu(config: ml_collections.ConfigDict) -> None:
  config.title += ', 8 layers'
  config.width, config.depths = 32, (8,)
  config.granularities = (1, 2, 4, 8)
  config.tokens = 800_000


def _gpu(config: ml_collections.ConfigDict) -> None:
  config.title += ', 12 and 24 layers, 512 wide'
  shapes.on_gpu(config)
  config.model.base_width = 128
  config.width, config.depths, config.head_width = 512, (12, 24), 64
  config.granularities = (1, 3, 12)
  config.tokens, config.probe_tokens = 100_000_000, 262_144
  config.train.update(base_lr=4e-3, batch_size=64, beta2=0.98)
