import dataclasses

import numpy as np
import pytest

from familial.core import errors
from familial.data import batches
from familial.data import config
from familial.data import packing

_CONFIG = config.DataConfig(seq_len=8)


def _corpus(tokens, heldout=None, separator=255):
  """A corpus of given tokens; it need not come from any text."""

  def packed(values):
    values = np.asarray(values, np.uint16)
    ends = np.flatnonzero(values == separator) + 1
    return packing.Packed(values, np.concatenate([[0], ends]), len(values))

  return packing.Corpus(
    name='made',
    fingerprint='0',
    train=packed(tokens),
    heldout=packed(tokens if heldout is None else heldout),
    vocab_size=256,
    separator=separator,
    tokenizer_path='',
  )


# Every token names its own position, so a window names itself.
_COUNTING = _corpus(np.arange(30 * 8 + 1), separator=60000)


def _line(windows):
  corpus = _corpus(np.arange(2), separator=60000)
  tokens = np.arange(windows * 8 + 1, dtype=np.uint32)
  train = dataclasses.replace(corpus.train, tokens=tokens)
  return dataclasses.replace(corpus, train=train)


def _equal(a, b):
  assert a.keys() == b.keys()
  for key in a:
    assert a[key].dtype == b[key].dtype
    np.testing.assert_array_equal(a[key], b[key])


def test_shapes_types_and_the_shift():
  batch = batches.Batches(_COUNTING, _CONFIG, 4, seed=0)[3]
  assert set(batch) == {'inputs_BxL', 'targets_BxL', 'weights_BxL'}
  assert {k: v.dtype for k, v in batch.items()} == {
    'inputs_BxL': np.int32,
    'targets_BxL': np.int32,
    'weights_BxL': np.float32,
  }
  assert all(v.shape == (4, 8) for v in batch.values())
  np.testing.assert_array_equal(batch['targets_BxL'], batch['inputs_BxL'] + 1)
  assert batch['weights_BxL'].min() == 1


def test_a_batch_depends_on_seed_and_step_alone():
  first = batches.Batches(_COUNTING, _CONFIG, 4, seed=7)
  forwards = [first[i] for i in range(20)]
  second = batches.Batches(_COUNTING, _CONFIG, 4, seed=7)
  for step in reversed(range(20)):
    _equal(second[step], forwards[step])
  other = batches.Batches(_COUNTING, _CONFIG, 4, seed=8)
  assert any(
    (other[i]['inputs_BxL'] != forwards[i]['inputs_BxL']).any()
    for i in range(3)
  )


def test_every_window_comes_once_an_epoch_in_another_order():
  # 4 does not divide 30: batches straddle epochs.
  made = batches.Batches(_COUNTING, _CONFIG, 4, seed=3)
  starts = np.concatenate([made[i]['inputs_BxL'][:, 0] for i in range(45)])
  epochs = starts.reshape(6, 30) // 8
  for order in epochs:
    assert sorted(order) == list(range(30))
  assert len({tuple(order) for order in epochs}) == 6
  assert (made.epoch_tokens, made.tokens_per_step) == (240, 32)


def test_adjacent_seeds_share_no_order_of_adjacent_epochs():
  first, second = (
    [
      tuple(
        batches.Batches(_COUNTING, _CONFIG, 30, seed)[epoch]['inputs_BxL'][:, 0]
      )
      for epoch in range(5)
    ]
    for seed in (3, 4)
  )
  assert not set(first) & set(second)


@pytest.mark.parametrize('windows', [2**12, 2**12 + 1])
def test_orders_of_small_and_large_corpora_are_permutations(windows):
  made = batches.Batches(_line(windows), _CONFIG, windows, seed=3)
  first, second = (made[i]['inputs_BxL'][:, 0] // 8 for i in range(2))
  assert sorted(first) == sorted(second) == list(range(windows))
  # Two random permutations agree in one place on average.
  assert (first == second).sum() < 10
  assert (first == np.arange(windows)).sum() < 10


@pytest.mark.parametrize('processes', [2, 4])
@pytest.mark.parametrize('mask', [False, True])
def test_slices_of_processes_make_up_the_batch(processes, mask):
  settings = dataclasses.replace(_CONFIG, document_mask=mask)
  whole = batches.Batches(_COUNTING, settings, 8, seed=2)
  parts = [
    batches.Batches(_COUNTING, settings, 8, 2, index, processes)
    for index in range(processes)
  ]
  for step in range(10):
    slices = [part[step] for part in parts]
    joined = {k: np.concatenate([s[k] for s in slices]) for k in slices[0]}
    _equal(joined, whole[step])
  assert parts[0].tokens_per_step == whole.tokens_per_step


def test_iterate_resumes_from_any_step():
  made = batches.Batches(_COUNTING, _CONFIG, 4, seed=5)
  for start in (0, 13):
    steps = batches.iterate(made, start)
    for step in range(start, start + 20):
      _equal(next(steps), made[step])


def test_document_masks_by_hand():
  # Documents abc|, d|, efgh... with 255 for |.
  tokens = [97, 98, 99, 255, 100, 255, 101, 102, 103]
  settings = dataclasses.replace(_CONFIG, document_mask=True)
  batch = batches.Batches(_corpus(tokens), settings, 1, seed=0)[0]
  # What ends a document belongs to it; what follows it is not predicted.
  np.testing.assert_array_equal(
    batch['segments_BxL'], [[0, 0, 0, 0, 1, 1, 2, 2]]
  )
  np.testing.assert_array_equal(
    batch['weights_BxL'], [[1, 1, 1, 0, 1, 0, 1, 1]]
  )
  assert batch['segments_BxL'].dtype == np.int32
  assert batch['weights_BxL'].dtype == np.float32


def test_segments_count_within_the_row():
  tokens = np.tile([1, 2, 255], 40)
  settings = dataclasses.replace(_CONFIG, document_mask=True)
  made = batches.Batches(_corpus(tokens), settings, 4, seed=0)
  heldout = batches.heldout(_corpus(tokens), settings, 64, batch_size=3)
  for batch in [*(made[step] for step in range(5)), *heldout]:
    assert (batch['segments_BxL'][:, 0] == 0).all()
    ends = batch['inputs_BxL'] == 255
    np.testing.assert_array_equal(
      np.diff(batch['segments_BxL'], axis=1), ends[:, :-1]
    )
    counted = batch['weights_BxL'].any(axis=1)
    np.testing.assert_array_equal(
      batch['weights_BxL'][counted], 1 - ends[counted]
    )


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    ({'batch_size': 31}, '30 windows of seq_len=8, fewer than batch_size=31'),
    ({'batch_size': 0}, 'batch_size=0'),
    ({'batch_size': 6, 'process_count': 4}, 'batch_size=6 .* 4 processes'),
  ],
)
def test_sizes_that_do_not_fit_are_refused(arguments, expected):
  with pytest.raises(errors.UserError, match=expected):
    batches.Batches(_COUNTING, _CONFIG, seed=0, **arguments)


def test_heldout_counts_exactly_the_tokens_asked_for():
  result = batches.heldout(_COUNTING, _CONFIG, tokens=100, batch_size=4)
  assert [b['inputs_BxL'].shape for b in result] == [(4, 8)] * 4
  targets = np.concatenate([b['targets_BxL'] for b in result])
  weights = np.concatenate([b['weights_BxL'] for b in result])
  assert weights.sum() == 100
  assert set(np.unique(weights)) == {0, 1}
  counted = targets[weights == 1]
  # In order, no target twice, and from the whole split.
  assert (np.diff(counted) > 0).all()
  assert counted.max() > 200


def test_heldout_is_all_there_is_when_more_is_asked_for():
  result = batches.heldout(_COUNTING, _CONFIG, tokens=10**6, batch_size=7)
  targets = np.concatenate([b['targets_BxL'] for b in result])
  weights = np.concatenate([b['weights_BxL'] for b in result])
  np.testing.assert_array_equal(targets[weights == 1], np.arange(1, 241))
  assert {b['inputs_BxL'].shape for b in result} == {(7, 8)}


@pytest.mark.parametrize('batch_size', [1, 3, 16])
def test_heldout_targets_do_not_depend_on_the_batch_size(batch_size):
  def targets(size):
    result = batches.heldout(_COUNTING, _CONFIG, tokens=77, batch_size=size)
    return np.concatenate(
      [b['targets_BxL'][b['weights_BxL'] == 1] for b in result]
    )

  np.testing.assert_array_equal(targets(batch_size), targets(4))


@pytest.mark.parametrize(('tokens', 'batch_size'), [(0, 1), (1, 0), (-5, 1)])
def test_heldout_needs_positive_sizes(tokens, batch_size):
  with pytest.raises(errors.UserError, match='at least 1'):
    batches.heldout(_COUNTING, _CONFIG, tokens, batch_size)


def test_a_heldout_split_below_one_window_is_refused():
  small = _corpus(np.arange(100), heldout=np.arange(8))
  with pytest.raises(errors.UserError, match='8 held-out tokens'):
    batches.heldout(small, _CONFIG, 10, 1)


def test_bytes_per_token_counts_the_evaluated_targets():
  tokens = [97, 98, 255, 99, 255, 100, 101, 102, 103]
  result = batches.heldout(_corpus(tokens), _CONFIG, 5, batch_size=2)
  # Targets 98, 255, 99, 255, 100: three bytes of text.
  assert batches.heldout_bytes_per_token(_corpus(tokens), result) == 3 / 5
