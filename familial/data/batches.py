"""Batches as a pure function of (seed, step).

A packed split is cut into windows of L + 1 tokens, L apart, so that every token
but the first is a target once. Positions are counted from the beginning of
the run, or of the run whose data it continues: position p is in epoch
p // windows, and a permutation of that epoch gives the window. There is no other
state, so a run resumes from its step alone, on any number of processes.
"""

from collections.abc import Iterator
import functools

import numpy as np

from familial.core import errors
from familial.data import config as config_lib
from familial.data import packing
from familial.data import tokenizers

# index_shuffle iterates over the 2**16 numbers of its smallest block until one is
# in range, which takes a millisecond for tens of windows. Up to this many windows
# are sorted by their index in a full block instead.
_SMALL = 2**12

Batch = dict[str, np.ndarray]


class Batches:
  """The training batches of a run, or one process's rows of them.

  Attributes:
    tokens_per_step: targets of one step, over all processes.
    epoch_tokens: targets of one pass over the corpus.
    first: position of the run's first window.
  """

  def __init__(
    self,
    corpus: packing.Corpus,
    config: config_lib.DataConfig,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    first: int = 0,
  ):
    """Checks the sizes and keeps references to the corpus.

    Args:
      corpus: the corpus of `config`.
      config: `seq_len` and `document_mask` are read.
      batch_size: rows of a step, over all processes.
      seed: seed of the permutations.
      process_index: which of the equal slices of rows to return.
      process_count: number of slices; concatenated they are the batch.
      first: position of the run's first window.

    Raises:
      UserError: if the corpus has fewer windows than a batch has rows, or the
        processes do not divide the batch.
    """
    from grain import experimental

    if batch_size < 1 or batch_size % process_count:
      raise errors.UserError(
        f'batch_size={batch_size} is not a positive multiple of the '
        f'{process_count} processes'
      )
    windows = (len(corpus.train.tokens) - 1) // config.seq_len
    if windows < batch_size:
      raise errors.UserError(
        f'corpus={corpus.name!r} has {windows} windows of '
        f'seq_len={config.seq_len}, fewer than batch_size={batch_size}; more '
        'text, a smaller train.batch_size or a shorter data.seq_len'
      )
    self.tokens_per_step = batch_size * config.seq_len
    self.epoch_tokens = windows * config.seq_len
    self.first = first
    self._corpus = corpus
    self._config = config
    self._batch_size = batch_size
    self._seed = seed
    self._windows = windows
    rows = batch_size // process_count
    self._rows = np.arange(rows * process_index, rows * (process_index + 1))
    self._shuffle = experimental.index_shuffle

  def __getitem__(self, step: int) -> Batch:
    """Returns this process's rows of the batch of a step, counted from 0.

    Keys: inputs_BxL and targets_BxL, int32; weights_BxL, float32, 0 where the
    loss does not count: where the target is a token that the tokenizer puts
    before each text; with document_mask also segments_BxL, int32, the number
    of the document within the row, and weight 0 where the target is the start
    of another document.
    """
    if step < 0:
      raise IndexError(f'step {step} is negative')
    positions = self.first + step * self._batch_size + self._rows
    windows = [self._window(int(p)) for p in positions]
    starts = np.array(windows, np.int64) * self._config.seq_len
    return _cut(self._corpus, self._corpus.train, self._config, starts)

  def _window(self, position: int) -> int:
    epoch, index = divmod(position, self._windows)
    seed = _epoch_seed(self._seed, epoch)
    if self._windows <= _SMALL:
      return _small_order(self._windows, seed)[index]
    return self._shuffle(
      index, max_index=self._windows - 1, seed=seed, rounds=4
    )


def iterate(batches: Batches, start_step: int = 0) -> Iterator[Batch]:
  """Yields the batches from `start_step` on, without end, prefetched."""
  import grain

  steps = grain.MapDataset.range(start_step, np.iinfo(np.int64).max)
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
  return iter(steps.map(batches.__getitem__).to_iter_dataset(options))


def heldout(
  corpus: packing.Corpus,
  config: config_lib.DataConfig,
  tokens: int,
  batch_size: int,
) -> list[Batch]:
  """Returns a fixed set of held-out targets as batches of equal shape.

  Its windows are spread evenly over the split, in order: consecutive windows
  would be a few documents and no sample of the corpus.

  Args:
    corpus: the corpus of `config`.
    config: `seq_len` and `document_mask` are read.
    tokens: targets with weight 1 before any document mask; all targets of the
      split if it has fewer.
    batch_size: rows of every batch; rows left over have weight 0.

  Raises:
    UserError: if there is no target, or `tokens` or `batch_size` is below 1.
  """
  if tokens < 1 or batch_size < 1:
    raise errors.UserError(
      f'held-out tokens={tokens} and batch_size={batch_size} are not both '
      'at least 1'
    )
  length = config.seq_len
  # Only whole windows, so that no shape depends on the corpus.
  available = (len(corpus.heldout.tokens) - 1) // length
  if not available:
    raise errors.UserError(
      f'corpus={corpus.name!r} has {len(corpus.heldout.tokens)} held-out '
      f'tokens, fewer than one window of seq_len={length}; more text, a larger '
      'data.heldout_percent or a shorter data.seq_len'
    )
  windows = min(-(-tokens // length), available)
  count = -(-windows // batch_size)
  numbers = np.arange(count * batch_size)
  # Rows past the end repeat the last window with weight 0.
  starts = np.minimum(numbers, windows - 1) * available // windows * length
  targets_BxL = numbers[:, None] * length + np.arange(length)
  counted_BxL = targets_BxL < min(tokens, windows * length)
  result = []
  for rows in np.split(numbers, count):
    batch = _cut(corpus, corpus.heldout, config, starts[rows])
    batch['weights_BxL'] *= counted_BxL[rows]
    result.append(batch)
  return result


def heldout_bytes_per_token(
  corpus: packing.Corpus, batches: list[Batch]
) -> float:
  """Returns UTF-8 bytes per target over the targets with weight 1.

  A separator has no bytes, and the first token of a document does not count the
  space that its tokenizer puts before a text. The loss per byte is the loss per
  token divided by this number.
  """
  tokenizer = tokenizers.load(corpus.tokenizer_path)
  lengths_V = tokenizer.byte_lengths()
  before = (corpus.separator, *corpus.start)[-1]
  size = 0.0
  for batch in batches:
    bytes_BxL = lengths_V[batch['targets_BxL']]
    first_BxL = (batch['inputs_BxL'] == before) & (bytes_BxL > 0)
    bytes_BxL = bytes_BxL - tokenizer.prefix * first_BxL
    size += float((bytes_BxL * batch['weights_BxL']).sum())
  return size / sum(float(b['weights_BxL'].sum()) for b in batches)


def _cut(
  corpus: packing.Corpus,
  split: packing.Packed,
  config: config_lib.DataConfig,
  starts: np.ndarray,
) -> Batch:
  """Returns the windows that begin at `starts` as a batch."""
  columns = np.arange(config.seq_len + 1)
  tokens = split.tokens[starts[:, None] + columns].astype(np.int32)
  inputs_BxL = np.ascontiguousarray(tokens[:, :-1])
  batch = {
    'inputs_BxL': inputs_BxL,
    'targets_BxL': np.ascontiguousarray(tokens[:, 1:]),
    'weights_BxL': np.ones(inputs_BxL.shape, np.float32),
  }
  if corpus.start:
    batch['weights_BxL'][np.isin(batch['targets_BxL'], corpus.start)] = 0
  if config.document_mask:
    # A separator is the last token of its document and occurs only there.
    ends_BxL = inputs_BxL == corpus.separator
    batch['weights_BxL'][ends_BxL] = 0
    batch['segments_BxL'] = np.cumsum(ends_BxL, axis=1, dtype=np.int32)
    batch['segments_BxL'] -= ends_BxL
  return batch


@functools.lru_cache(maxsize=4)
def _epoch_seed(seed: int, epoch: int) -> int:
  # Adjacent seeds and epochs must not share permutations.
  return int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0])


@functools.lru_cache(maxsize=4)
def _small_order(windows: int, seed: int) -> list[int]:
  from grain import experimental

  keys = [
    experimental.index_shuffle(i, max_index=2**16 - 1, seed=seed, rounds=4)
    for i in range(windows)
  ]
  return np.argsort(keys).tolist()
