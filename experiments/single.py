"""One familial model on the Python library's source: a start for your own.

`familial train --config=experiments/single.py --workdir=runs/single`
"""

import ml_collections

from familial import config as config_lib


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the run; there are no variants."""
  if arg:
    raise ValueError(f'variant {arg!r}: single has none')
  config = config_lib.run_template()
  config.data.update(corpus='python_source', seq_len=128)
  config.model.update(
    vocab_size=256,
    width=64,
    depth=8,
    heads=4,
    kv_heads=2,
    mlp_width=176,
    exits=(2, 4, 8),
    base_width=32,
  )
  config.train.update(
    steps=2000, batch_size=16, base_lr=1.3e-2, warmup_steps=100, evaluations=10
  )
  return config
