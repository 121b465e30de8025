"""One familial model: a start for your own.

`familial train --config=experiments/single.py --workdir=runs/single`

Variants:
  (none)  on the Python library's source, minutes on two cores
  1b      1.1B parameters, four exits, C4: one GPU or a small pod
  8b      8B parameters in Llama 3's shape, four exits, C4: to be planned for a
          pod (`familial plan --topology=v5p:4x4x8`)
"""

import ml_collections

from familial.core import errors
from familial.training import config as train_config


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns a variant's run."""
  variants = {'': _small, '1b': _1b, '8b': _8b}
  errors.require_one_of('variant', arg, variants)
  config = train_config.template()
  variants[arg](config)
  return config


def _small(config: ml_collections.ConfigDict) -> None:
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


def _large(config: ml_collections.ConfigDict) -> None:
  """Sets what the large models share; twenty tokens a parameter."""
  config.data.update(
    corpus='c4/en', tokenizer='bpe', vocab_size=32_768, seq_len=2048
  )
  config.model.update(
    vocab_size=32_768,
    tied=False,
    base_width=1024,
    dtype='bfloat16',
    attention='fused',
    unroll=False,
    remat=True,
    loss_chunk=256,
  )
  config.train.update(
    base_lr=4e-3,
    warmup_steps=1000,
    evaluations=20,
    eval_tokens=8_388_608,
    eval_batch_size=256,
    checkpoint_seconds=900.0,
  )


def _1b(config: ml_collections.ConfigDict) -> None:
  _large(config)
  config.model.update(
    width=2048,
    depth=20,
    heads=16,
    kv_heads=8,
    mlp_width=5632,
    exits=(5, 10, 15, 20),
  )
  config.train.update(steps=40_000, batch_size=256)


def _8b(config: ml_collections.ConfigDict) -> None:
  _large(config)
  config.data.vocab_size = config.model.vocab_size = 131_072
  config.model.update(
    width=4096,
    depth=32,
    heads=32,
    kv_heads=8,
    mlp_width=14_336,
    exits=(8, 16, 24, 32),
  )
  config.train.update(steps=80_000, batch_size=1024)
