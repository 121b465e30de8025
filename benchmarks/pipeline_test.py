"""How much of a step's time goes into making its batch."""

import itertools
import time

import jax
import numpy as np
import pytest

from benchmarks import clock
from familial.data import batches as batches_lib
from familial.data import config as data_config
from familial.data import packing
from familial.training import config as train_config
from familial.training import sharding

pytestmark = pytest.mark.bench

_SEPARATOR = 255
_COUNT = 300


@pytest.mark.parametrize('document_mask', [False, True])
@pytest.mark.parametrize(
  ('width', 'depth', 'rows'), [(16, 8, 4), (64, 4, 16), (128, 6, 16)]
)
def test_share_of_a_step(width, depth, rows, document_mask):
  config = data_config.DataConfig(seq_len=128, document_mask=document_mask)
  source = batches_lib.Batches(_corpus(), config, rows, seed=0)
  trainer = clock.Trainer(
    clock.model(width, depth, 1),
    train_config.TrainConfig(steps=1000, batch_size=rows, base_lr=1e-3),
    source[0],
  )
  step = clock.fastest({'step': trainer.step}, rounds=12)['step']
  # The loop's own path, without a step to hide behind: batches made by the
  # prefetching thread, handed over and put on the device.
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ('data',))
  seconds = np.inf
  for _ in range(3):
    stream = batches_lib.iterate(source)
    next(stream)
    start = time.perf_counter()
    for batch in itertools.islice(stream, _COUNT):
      jax.block_until_ready(sharding.batch(batch, mesh))
    seconds = min(seconds, (time.perf_counter() - start) / _COUNT)
  share = seconds / step
  print(
    f'\nwidth {width}, {depth} layers, {rows} x 128'
    f'{", document mask" if document_mask else ""}: batch '
    f'{seconds * 1e6:.0f} us, step {step * 1e3:.1f} ms, share {share:.1%} '
    '(5 % or less)'
  )
  assert share < 0.5


def _corpus() -> packing.Corpus:
  """Returns random bytes in documents of about 5000."""
  tokens = np.random.default_rng(0).integers(0, 255, 2**22).astype(np.uint16)
  tokens[::5003] = _SEPARATOR
  tokens[-1] = _SEPARATOR
  ends = np.flatnonzero(tokens == _SEPARATOR) + 1
  split = packing.Packed(tokens, np.concatenate([[0], ends]), len(tokens))
  return packing.Corpus(
    name='random',
    fingerprint='0',
    train=split,
    heldout=split,
    vocab_size=256,
    separator=_SEPARATOR,
    tokenizer_path='',
  )
