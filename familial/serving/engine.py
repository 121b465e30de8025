"""An engine runs a segment over rows in slots that hold their caches.

A pass computes the next positions of some rows through the segment's layers,
attending to those rows' caches, and reads the exit. Rows need not be at the same
position, and a row's results do not depend on the other rows of the pass: every
pass has the same number of rows and one of a few lengths, with padding.

The trunk and a branch exit have separate caches: the branch is a layer that is
not part of the trunk.

Shapes: S slots, T rows of a pass, P positions of a pass, L positions of a
cache, Q positions read out (P or 1); the rest as in `transformer`.
"""

from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from familial.convert import segments
from familial.model import config as model_config
from familial.model import transformer
from familial.serving import forward
from familial.serving import sampling as sampling_lib

Array = jax.Array
_LENGTHS = (1, 4, 16, 64)  # positions of a pass: one program each


class Work(NamedTuple):
  """Positions of one row for an engine to compute.

  Attributes:
    slot: slot of the row, the same in all engines.
    start: first position; the engine holds those before it, and drops those
      from it on.
    length: number of positions.
    row: number of the row, for its draws.
  """

  slot: int
  start: int
  length: int
  row: int

  @property
  def end(self) -> int:
    """The position after the last one."""
    return self.start + self.length

  def after(self, count: int) -> 'Work':
    """Returns the positions after the first `count`."""
    return self._replace(start=self.start + count, length=self.length - count)


class Engine:
  """A segment with slots for rows.

  Attributes:
    segment: the segment.
    slots: number of rows it can hold.
    context: largest number of positions of a row.
    seen: number of positions that each slot's caches hold [S].
    states: the trunk's states at its end [S, L, D], the inputs of the next
      engine; None of a last segment.
  """

  def __init__(
    self,
    segment: segments.Segment,
    slots: int,
    context: int,
    *,
    rows: int = 0,
  ):
    """Allocates the caches.

    Args:
      segment: the segment to run.
      slots: number of rows to hold.
      context: largest number of positions of a row.
      rows: rows of a pass; 0 for all slots, which avoids gathering caches.
    """
    self.segment, self.slots, self.context = segment, slots, context
    self._whole = not 0 < rows < slots
    self._rows = slots if self._whole else rows
    self._lengths = [
      p for p in _LENGTHS if p <= forward.BEHIND or 4 * p <= context
    ]
    self._layers, self._rest = _laid_out(segment)
    self.reset()

  def reset(self) -> None:
    """Empties all slots by allocating new caches; the old ones are freed."""
    model = self.segment.model
    self.seen = np.zeros(self.slots, np.int32)
    self._cache: list[forward.Cache] = []
    self.states: Array | None = None
    # One more slot takes the rows that fill up a pass. Positions beyond the
    # context take the padding of a row's last pass.
    held = self.slots + (not self._whole)
    positions = self.context + self.slack
    cache = (held, model.kv_heads, positions, model.head_dim)
    depth = len(self._layers) + ('branch' in self._rest)
    self._cache = [
      (_zeros(cache, model), _zeros(cache, model)) for _ in range(depth)
    ]
    if not self.segment.last:
      self.states = _zeros((held, positions, model.width), model)

  @property
  def slack(self) -> int:
    """The largest number of positions of a pass."""
    return self._lengths[-1]

  @property
  def nbytes(self) -> int:
    """Bytes of the caches and states."""
    kept = jax.tree.leaves((self._cache, self.states))
    return sum(leaf.nbytes for leaf in kept)

  def run(
    self,
    work: Sequence[Work],
    inputs: Sequence[Any] | Array,
    policy: sampling_lib.Policy,
    wanted: Sequence[int] = (),
    stays: Sequence[int] = (),
  ) -> tuple[np.ndarray, np.ndarray]:
    """Computes positions of some rows, and predictions at the last of each.

    Args:
      work: positions, each row once.
      inputs: tokens [length] or states [length, D] of each row; or the `states`
        of the engine below, all of them.
      policy: how tokens are drawn, and the kind of confidence.
      wanted: not used here, where all states stay; see decoding.Stage.
      stays: number of each row's first positions whose states stay as they left
        the engines below; () for none.

    Returns:
      The token drawn and the confidence of each row, [rows].
    """
    del wanted
    tokens = np.zeros(len(work), np.int32)
    confidence = np.zeros(len(work), np.float32)
    behind = np.minimum(stays, forward.BEHIND).astype(np.int32)
    if stays:
      assert isinstance(inputs, jax.Array)
      self.fill(
        [
          w._replace(length=stay - forward.BEHIND)
          for w, stay in zip(work, stays, strict=True)
          if stay > forward.BEHIND
        ],
        inputs,
      )
      work = [w.after(stay) for w, stay in zip(work, stays, strict=True)]
    for indices, places, length, rows, x in self._filled(work, inputs):
      behind_T = None
      if stays:
        behind_T = rows.start_T.copy()
        behind_T[places] -= behind[indices]
      reading = self.step(rows, x, length, policy, behind_T)
      tokens[indices] = np.asarray(reading.tokens)[places, 0]
      confidence[indices] = np.asarray(reading.confidence)[places, 0]
    return tokens, confidence

  def fill(self, work: Sequence[Work], inputs: Array) -> None:
    """Takes in positions that left below, from the `states` of that engine.

    Each layer's keys and values are those of the states that they left with,
    which the next engine gets as well.
    """
    for _, _, length, rows, x in self._filled(work, inputs):
      self._cache, self.states = forward.propagate(
        self.segment.model, length, self._layers, self._rest, self._cache,
        self.states, x, self._placed(rows),
      )  # fmt: skip

  def step(
    self,
    rows: forward.Rows,
    x: Any,
    length: int,
    policy: sampling_lib.Policy,
    behind_T: np.ndarray | None = None,
  ) -> forward.Reading:
    """Runs one compiled pass; the caller keeps `seen`.

    Args:
      rows: rows of the pass, in the order of their slots where it has all.
      x: tokens [T, P], states [T, P, D], or the `states` of the engine below.
      length: P.
      policy: how tokens are drawn, and the kind of confidence.
      behind_T: first of some positions that stay; see forward.advance.
    """
    reading, self._cache, self.states = forward.advance(
      self.segment.model, policy.confidence, length, self._layers, self._rest,
      self._cache, self.states, x, self._placed(rows),
      sampling_lib.numbers(policy.sampling), behind_T,
    )  # fmt: skip
    return reading

  def _placed(self, rows: forward.Rows) -> forward.Rows:
    """Returns rows without slots where a pass has all of them."""
    return rows._replace(slot_T=None) if self._whole else rows

  def take(self, work: Sequence[Work]) -> list[np.ndarray]:
    """Returns the states [length, D] of some rows' positions, on the host."""
    found: list[list[np.ndarray]] = [[] for _ in work]
    for length, parts in self._passes(work):
      slot, start = np.zeros((2, self._rows), np.int32)
      for place, (_, part) in enumerate(parts):
        slot[place], start[place] = part.slot, part.start
      states = np.asarray(forward.cut(self.states, slot, start, length))
      for place, (index, part) in enumerate(parts):
        found[index].append(states[place, : part.length])
    return [np.concatenate(pieces) for pieces in found]

  def warm(self) -> None:
    """Compiles the programs of greedy decoding."""
    width = self.segment.model.width
    for length in self._lengths:
      work = [Work(0, 0, min(length, self.context), 0)]
      x: Any = np.zeros((work[0].length, width), np.float32)
      if self.segment.first:
        x = np.zeros(work[0].length, np.int32)
      self.run(work, [x], sampling_lib.Policy())
      if not self.segment.last:
        self.take(work)
    self.forget(0)

  def forget(self, slot: int) -> None:
    """Empties a slot, and sets its caches to zero."""
    self.seen[slot] = 0
    self._cache, self.states = forward.clear(self._cache, self.states, slot)

  def _filled(
    self, work: Sequence[Work], inputs: Sequence[Any] | Array
  ) -> Iterator[tuple[list[int], list[int], int, forward.Rows, Any]]:
    """Yields the arguments of each pass, and updates `seen`.

    Yields:
      Indices in `work`, their places in the pass, P, the rows and the inputs.
    """
    of_all = isinstance(inputs, jax.Array)
    for length, parts in self._passes(work):
      numbers = np.zeros((4, self._rows), np.int32)
      slot, start = numbers[:2]
      if self._whole:
        start[:] = self.seen  # Slots that are not of the pass: not read.
      else:
        slot[:] = self.slots
      x: Any = inputs
      if not of_all:
        like = np.asarray(inputs[0])
        x = np.zeros((self._rows, length, *like.shape[1:]), like.dtype)
      places: list[int] = []
      for index, part in parts:
        place = part.slot if self._whole else len(places)
        places.append(place)
        numbers[:, place] = part.slot, part.start, part.length - 1, part.row
        if not of_all:
          done = part.start - work[index].start
          x[place, : part.length] = inputs[index][done : done + part.length]
        self.seen[part.slot] = part.end
      rows = forward.Rows(*numbers)
      yield [index for index, _ in parts], places, length, rows, x

  def _passes(
    self, work: Sequence[Work]
  ) -> Iterator[tuple[int, list[tuple[int, Work]]]]:
    """Yields P, and the index and positions of each row, of each pass.

    A row's passes depend on its own number of positions alone.
    """
    left = list(enumerate(work))
    while left:
      by_length: dict[int, list[tuple[int, Work]]] = {}
      rest = []
      for index, w in left:
        length = next((p for p in self._lengths if p >= w.length), self.slack)
        now = min(length, w.length)
        by_length.setdefault(length, []).append((index, w._replace(length=now)))
        if w.length > now:
          rest.append((index, w.after(now)))
      for length, parts in by_length.items():
        for first in range(0, len(parts), self._rows):
          yield length, parts[first : first + self._rows]
      left = rest


def _laid_out(
  segment: segments.Segment,
) -> tuple[list[transformer.Params], transformer.Params]:
  """Returns the trunk's layers one by one, and all other parameters."""
  params, exit_ = segment.params, segment.exit
  names = [name for name in params if name.startswith('segment_')]
  layers = [
    jax.tree.map(lambda leaf, i=i: leaf[i], params[name])
    for name in sorted(names, key=lambda name: int(name.partition('_')[2]))
    for i in range(jax.tree.leaves(params[name])[0].shape[0])
  ]
  unembedding = transformer.unembedding(params, segment.model, exit_)
  # A copy: a transposed view would be laid out anew in each pass.
  rest = {**params[f'exit_{exit_}'], 'unembedding': jnp.array(unembedding)}
  if segment.first:
    rest['embedding'] = params['embedding']
  return jax.device_put((layers, rest), jax.devices()[0])


def _zeros(shape: tuple[int, ...], model: model_config.ModelConfig) -> Array:
  # Placed as a pass's results are: otherwise its program is compiled twice.
  return jax.device_put(jnp.zeros(shape, model.dtype), jax.devices()[0])
