"""The arrays of a grown model, computed part by part.

A part of a new array is computed from the parts of the old arrays that it depends
on. A device therefore holds only its own part of the grown model and reads only
the sources of that part from the parent.
"""

from collections.abc import Callable
import math
from typing import Any
import zlib

import jax
import numpy as np

from familial.expansion import maps
from familial.expansion import roles as roles_lib
from familial.model import transformer

Path = tuple[str, ...]
# Maps the path of a parent's array and an index for each of its axes to the entries.
Take = Callable[[Path, tuple[np.ndarray, ...]], np.ndarray]
_NOISE = (
  0.1  # Scale of `split` noise, in standard deviations of a fresh matrix.
)
_WRITERS = ('o', 'down')
_ALIGNMENT = 64  # Bytes.


def params(
  growth: maps.Growth, like: transformer.Params, take: Take, seed: int
) -> transformer.Params:
  """Returns the grown parameters.

  Args:
    growth: growth from the parent's model to this one.
    like: arrays or shapes of the grown model; with shardings, each process
      computes its own devices' parts alone.
    take: reads the parent's parameters.
    seed: seed of noise and of fresh entries.
  """
  return _tree(
    like,
    lambda path, index: Part(growth, path, index, take).values(seed),
  )


def moments(
  growth: maps.Growth, like: transformer.Params, take: Take, power: int
) -> transformer.Params:
  """Returns AdamW's moments of the grown model, grown from those of the parent.

  Copies of an output unit share its gradient in the proportions in which they are
  read; the mean of gradients scales with the share, the mean of squares with its
  square. These are the moments that the grown model's own gradients would have
  given if every copy of the residual stream is read equally (`split` even) and
  keys have all their former queries; otherwise the mean over the copies. Fresh
  and silent entries have moments 0.

  Args:
    growth: growth from the parent's model to this one.
    like: arrays or shapes as for `params`.
    take: reads the parent's moment.
    power: 1 for the mean of gradients, 2 for that of their squares.
  """
  return _tree(
    like,
    lambda path, index: Part(growth, path, index, take).moment(power),
  )


def reads(growth: maps.Growth, like: transformer.Params) -> int:
  """Returns the bytes of the parent's parameters that one device reads.

  Args:
    growth: growth from the parent's model.
    like: shapes of the grown model, with shardings.
  """
  total = 0

  def counted(path: Path, index: tuple[np.ndarray, ...]) -> np.ndarray:
    nonlocal total
    del path
    entries = math.prod(len(np.unique(each)) for each in index)
    total += entries * np.dtype(np.float32).itemsize
    return np.zeros([len(each) for each in index], np.float32)

  for path, leaf in jax.tree_util.tree_leaves_with_path(like):
    places = leaf.sharding.devices_indices_map(leaf.shape)
    index = _entries(next(iter(places.values())), leaf.shape)
    Part(growth, _names(path), index, counted).moment(1)
  return total


def _names(path: tuple[Any, ...]) -> Path:
  return tuple(str(key.key) for key in path)


def _entries(
  index: tuple[slice, ...] | None, shape: tuple[int, ...]
) -> tuple[np.ndarray, ...]:
  """Returns the indices of a part's entries along each axis."""
  slices = index or (slice(None),) * len(shape)
  return tuple(
    np.arange(*one.indices(size))
    for one, size in zip(slices, shape, strict=True)
  )


def _tree(
  like: Any, part: Callable[[Path, tuple[np.ndarray, ...]], np.ndarray]
) -> Any:
  """Returns a tree of arrays computed part by part."""

  def whole(path: tuple[Any, ...], leaf: Any) -> jax.Array:
    names = _names(path)

    def cut(index: tuple[slice, ...] | None) -> np.ndarray:
      indices = _entries(index, leaf.shape)
      if not names[0].startswith('segment_'):
        return np.ascontiguousarray(part(names, indices), leaf.dtype)
      # One layer at a time, so that only its sources are in memory.
      values = _aligned(tuple(len(each) for each in indices), leaf.dtype)
      for place, layer in enumerate(indices[0]):
        one = (np.array([layer]), *indices[1:])
        values[place] = part(names, one)[0]
      return values

    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    sharding = getattr(leaf, 'sharding', None) or here
    return jax.make_array_from_callback(leaf.shape, sharding, cut)

  return jax.tree_util.tree_map_with_path(whole, like)


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """Returns an empty array that JAX need not copy on CPU devices."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  raw = np.empty(size + _ALIGNMENT, np.uint8)
  first = -raw.ctypes.data % _ALIGNMENT
  return raw[first : first + size].view(dtype).reshape(shape)


class Part:
  """Some entries of an array of the grown model."""

  def __init__(
    self,
    growth: maps.Growth,
    path: Path,
    index: tuple[np.ndarray, ...],
    take: Take,
  ):
    self._growth, self._path, self._take = growth, path, take
    self._roles = roles_lib.of(growth, path)
    # Indices of layers, rows and columns; a gain has no rows, and only segments
    # have layers.
    self._layers: np.ndarray | None = None
    if path[0].startswith('segment_'):
      first = (0, *growth.now.exits)[int(path[0].removeprefix('segment_'))]
      self._layers, index = index[0] + first, index[1:]
    self._cols = index[-1]
    self._rows: np.ndarray | None = index[0] if len(index) == 2 else None

  def values(self, seed: int) -> np.ndarray:
    """Returns the parameters."""
    growth, roles = self._growth, self._roles
    values = self._read(aki=growth.config.width == 'aki')
    if roles.rows is not None and self._rows is not None:
      if roles.divided:
        shares = roles.rows.shares_N(growth.config.split)[self._rows]
        values = values * shares[:, None].astype(values.dtype)
        if growth.config.split == 'noise':
          values = values + self._noise(seed).astype(values.dtype)
      fresh = roles.rows.fresh_N[self._rows]
      if fresh.any():
        values[..., fresh, :] = self._drawn(seed)[..., fresh, :]
    if roles.cols is not None:
      fresh = roles.cols.fresh_N[self._cols]
      values[..., fresh] = 1 if self._path[-1] == 'gain' else 0
    return self._silenced(values * values.dtype.type(roles.scale))

  def moment(self, power: int) -> np.ndarray:
    """Returns AdamW's moment of gradients to a power."""
    growth, roles = self._growth, self._roles
    values = self._read(aki=False)
    ratio_N = np.full(len(self._cols), roles.ratio)
    if roles.cols is not None:
      ratio_N = ratio_N * roles.gradients_N()[self._cols]
      values[..., roles.cols.fresh_N[self._cols]] = 0
    elif roles.rows is not None:  # An unembedding: the vocabulary did not grow.
      copies = roles.rows.copies_N[self._rows]
      values = values / copies[:, None].astype(values.dtype) ** power
    if roles.rows is not None:
      values[..., roles.rows.fresh_N[self._rows], :] = 0
    values = values * (ratio_N**power).astype(values.dtype)
    if self._is_new_branch():
      values = np.zeros_like(values)
    if self._layers is not None:
      values[growth.silent_N[self._layers]] = 0
    if growth.config.state == 'asymmetric':
      values[self._is_copy(values.ndim)] = 0
    return values

  def _read(self, aki: bool) -> np.ndarray:
    """Returns the entries of the sources, [layers,] [rows,] columns."""
    roles = self._roles

    def old(axis: maps.Axis | None, index: np.ndarray) -> np.ndarray:
      return index if axis is None else axis.source_N[index]

    inner = [old(roles.cols, self._cols)]
    if self._rows is not None:
      inner.insert(0, old(roles.rows, self._rows))
    values = self._read_layers(inner, 0)
    if aki and roles.divided and roles.cols is not None:
      copied = roles.cols.copy_N[self._cols] > 0
      values[..., copied] = self._read_layers(inner, 1)[..., copied]
    return values

  def _read_layers(self, inner: list[np.ndarray], later: int) -> np.ndarray:
    """Returns entries of the source layers, or of `later` layers after them."""
    growth, path = self._growth, self._path
    if self._layers is None:
      return self._read_one(inner)
    source = growth.layers.source_N[self._layers]
    source = np.minimum(source + later, growth.was.depth - 1)
    return self._read_trunk(path[1:], source, inner)

  def _read_trunk(
    self, name: Path, layers: np.ndarray, inner: list[np.ndarray]
  ) -> np.ndarray:
    """Returns entries of the parent's layers with given numbers."""
    exits = self._growth.was.exits
    segment_N = np.searchsorted(exits, layers, side='right')
    values: np.ndarray | None = None
    for segment in np.unique(segment_N):
      here = segment_N == segment
      within = layers[here] - (0, *exits)[segment]
      got = self._take((f'segment_{segment}', *name), (within, *inner))
      if values is None:
        values = np.empty((len(layers), *got.shape[1:]), got.dtype)
      values[here] = got
    assert values is not None
    return values

  def _read_one(self, inner: list[np.ndarray]) -> np.ndarray:
    """Returns entries of an array outside the trunk."""
    growth, path, was = self._growth, self._path, self._growth.was
    if not path[0].startswith('exit_'):
      return self._take(path, tuple(inner))
    exit_ = growth.exit_source(int(path[0].removeprefix('exit_')))
    name = f'exit_{exit_}'
    if path[1] == 'branch' and not was.owns_layer(exit_):
      # The exit had no branch: a copy of its last layer whose output is zeroed.
      last = np.array([was.exits[exit_ - 1] - 1])
      return self._read_trunk(path[2:], last, inner)[0]
    if path[1] == 'unembedding' and not was.owns_unembedding(exit_):
      if not was.tied:
        return self._take(('unembedding',), tuple(inner))
      return self._take(('embedding',), (inner[1], inner[0])).T
    return self._take((name, *path[1:]), tuple(inner))

  def _silenced(self, values: np.ndarray) -> np.ndarray:
    """Returns entries with the output matrices of silent layers zeroed."""
    growth = self._growth
    if self._path[-2:-1] == () or self._path[-2] not in _WRITERS:
      return values
    if self._layers is not None:
      silent_N = growth.silent_N[self._layers]
      return np.where(silent_N[:, None, None], values.dtype.type(0), values)
    return np.zeros_like(values) if self._is_new_branch() else values

  def _is_new_branch(self) -> bool:
    """Whether the array belongs to a branch that the parent's exit lacks."""
    if 'branch' not in self._path:
      return False
    growth = self._growth
    exit_ = growth.exit_source(int(self._path[0].removeprefix('exit_')))
    return not growth.was.owns_layer(exit_)

  def _is_copy(self, dimensions: int) -> np.ndarray:
    """Returns which entries are not the first copy of their source."""
    roles = self._roles
    later = np.zeros(1, bool)
    if roles.cols is not None:
      later = later | (roles.cols.copy_N[self._cols] > 0)
    if roles.rows is not None:
      later = later | (roles.rows.copy_N[self._rows] > 0)[:, None]
    if self._layers is not None:
      copy = self._growth.layers.copy_N[self._layers] > 0
      later = later | copy.reshape(-1, *[1] * (dimensions - 1))
    shape = tuple(
      len(index)
      for index in (self._layers, self._rows, self._cols)
      if index is not None
    )
    return np.broadcast_to(later, shape)

  def _noise(self, seed: int) -> np.ndarray:
    """Returns noise that cancels within pairs of a source's copies."""
    rows = self._roles.rows
    assert rows is not None and self._rows is not None
    copy, copies = rows.copy_N[self._rows], rows.copies_N[self._rows]
    sign = np.where(copy % 2, -1, copy + 1 < copies)
    old = int(rows.source_N.max()) + 1
    size = sign * _NOISE / math.sqrt(old) / copies
    pairs = int(rows.copies_N.max() + 1) // 2
    entries = copy // 2 * old + rows.source_N[self._rows]
    drawn = self._normal([seed, 0], pairs * old)
    return drawn[..., entries, :] * size[:, None]

  def _drawn(self, seed: int) -> np.ndarray:
    """Returns fresh values of a matrix at the part's rows and columns."""
    rows, now = self._roles.rows, self._growth.now
    assert rows is not None and self._rows is not None
    size = len(rows.source_N) if self._roles.divided else now.base_width
    drawn = self._normal([seed, 1], len(rows.source_N))
    return drawn[..., self._rows, :] / math.sqrt(size)

  def _normal(self, seed: list[int], rows: int) -> np.ndarray:
    """Returns standard normal numbers, [layers,] rows, the part's columns.

    They depend on the position in the whole array and not on the part.
    """
    cols = self._roles.cols
    width = self._growth.now.vocab_size if cols is None else len(cols.source_N)
    name = zlib.crc32('/'.join(self._name()).encode())

    def one(layer: int) -> np.ndarray:
      rng = np.random.default_rng([*seed, name, layer])
      return rng.standard_normal((rows, width))[:, self._cols]

    if self._layers is None:
      return one(0)
    return np.stack([one(int(layer)) for layer in self._layers])

  def _name(self) -> Path:
    """Returns the array's name, independent of how exits cut the trunk."""
    return self._path[1:] if self._layers is not None else self._path
