"""Checkpoints of a run: written in the background, complete or absent.

Orbax writes and numbers them. They are read with TensorStore itself, in full, in
part, or each device's share: on a damaged file Orbax's readers raise errors of
any type and print tracebacks of their threads.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import functools
import itertools
import logging
import os
import pathlib
import re
import shutil
import sys
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from familial.core import errors
from familial.core import storage
from familial.model import transformer
from familial.training import step as step_lib

POLICY = ocp.checkpoint_managers
# Bytes of a chunk of an array, the unit of reading.
_CHUNK = 2**24
# Bytes of a file of chunks that `fill` writes; memory holds it until it is full.
_FILE = 2**25


class DamagedError(errors.UserError):
  """A checkpoint, `path`, that cannot be read back."""

  def __init__(self, path: pathlib.Path, what: str):
    super().__init__(f'{path}: a damaged checkpoint: {what} cannot be read')
    self.path = path


class Checkpoints:
  """The last `keep` checkpoints of a run and the best of its evaluations.

  The best one has the lowest held-out loss of the last exit. A checkpoint that
  was not finished when the process died is ignored, and the one before it
  restored; the next process that writes removes the unfinished one.

  Raises:
    DamagedError: at construction, if the metrics of a checkpoint are damaged.
    UserError: at construction, if the folder cannot be made; by `save`, `wait`
      and `close`, if it cannot be written.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    keep: int = 1,
    *,
    read_only: bool = False,
    at_once: int = 96,
  ):
    """Opens a folder, made if missing.

    Args:
      folder: folder of the checkpoints.
      keep: number of the last checkpoints that stay.
      read_only: whether nothing may be written or removed.
      at_once: gigabytes written at once, more than the largest array; memory
        must hold them twice.
    """
    logging.getLogger('absl').setLevel(logging.CRITICAL)
    if not read_only:
      _silence_failed_writes()
    self._folder = pathlib.Path(folder).absolute()
    check_metrics(self._folder)
    best = POLICY.BestN(
      get_metric_fn=lambda metrics: metrics['loss'],
      reverse=True,
      n=1,
      keep_checkpoints_without_metrics=False,
    )
    options = ocp.CheckpointManagerOptions(
      preservation_policy=POLICY.AnyPreservationPolicy(
        [POLICY.LatestN(keep), best]
      ),
      # Without it Orbax writes no metrics.
      best_fn=lambda metrics: metrics['loss'],
      best_mode='min',
      enable_async_checkpointing=True,
      create=not read_only,
      cleanup_tmp_directories=not read_only,
      read_only=read_only,
    )
    handler = ocp.StandardCheckpointHandler(save_concurrent_gb=at_once)
    with self._writing():
      self._manager = ocp.CheckpointManager(
        self._folder, item_handlers={'state': handler}, options=options
      )

  def save(self, state: step_lib.State, loss: float | None = None) -> None:
    """Starts to save a state, with its held-out loss if it was evaluated."""
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    tree = state._asdict()
    chunks = jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=_CHUNK), tree)
    with self._writing():
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(tree, save_args=chunks)
        ),
        metrics=None if loss is None else {'loss': loss},
        custom_metadata={'schema': storage.SCHEMA},
      )

  def latest(self) -> int | None:
    """Returns the step of the last complete checkpoint, or None."""
    return self._manager.latest_step()

  def best(self) -> int | None:
    """Returns the step of the checkpoint of lowest loss, or None."""
    losses = {
      step: metrics['loss']
      for step in self._manager.all_steps()
      if (metrics := self._manager.metrics(step))
    }
    return min(losses, key=losses.__getitem__) if losses else None

  def restore(
    self, like: step_lib.State, step: int | None = None
  ) -> step_lib.State:
    """Returns the state of a step, the last one by default.

    Args:
      like: a state of the same shapes, types and shardings.
      step: step of the checkpoint.

    Raises:
      DamagedError: if it cannot be read.
      UserError: if it is missing, of another model shape or of another version.
    """
    step = self.latest() if step is None else step
    if step is None:
      raise errors.UserError(f'{self._folder}: holds no checkpoint')
    return step_lib.State(**_read(self._folder / str(step), like._asdict()))

  def reload(self) -> None:
    """Lists the checkpoints of the folder again."""
    self._manager.reload()

  def wait(self) -> None:
    """Waits until all saved states are on disk."""
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and releases the folder."""
    self.wait()
    with self._writing():
      self._manager.close()

  def _writing(self) -> contextlib.AbstractContextManager[None]:
    return _disk(self._folder)


@contextlib.contextmanager
def _disk(folder: pathlib.Path) -> Iterator[None]:
  """Converts errors of Orbax and TensorStore about a disk into UserErrors."""
  try:
    yield
  except Exception as error:  # TensorStore's, of any type, contain the number.
    number = re.search(r"\[os_error_code='(\d+)'\]", str(error))
    if number:
      raise storage.unwritten(folder, os.strerror(int(number[1]))) from None
    if isinstance(error, OSError):
      raise storage.unwritten(folder, error.strerror or str(error)) from None
    raise


def check_metrics(folder: pathlib.Path) -> None:
  """Raises DamagedError for the first checkpoint with damaged metrics."""
  for path in sorted(folder.glob('*/metrics/metrics')):
    if path.parents[1].name.isdecimal():
      try:
        storage.read_json(path)
      except errors.UserError:
        raise DamagedError(path.parents[1], 'its metrics') from None


def set_aside(folder: pathlib.Path, damage: DamagedError) -> None:
  """Renames a damaged checkpoint; a run continues from the last of the others.

  Args:
    folder: folder of a run's checkpoints.
    damage: the error that `restore` or `check_metrics` raised.

  Raises:
    UserError: if there is no other checkpoint.
  """
  others = [
    int(path.name)
    for path in folder.iterdir()
    if path.name.isdecimal() and path != damage.path
  ]
  if not others:
    raise errors.UserError(
      f'{damage}, and there is no other; once it is removed, the same command '
      'begins anew'
    )
  aside = damage.path.with_name(f'{damage.path.name}.damaged')
  with storage.writing(aside):
    if aside.exists():
      shutil.rmtree(aside)
    damage.path.rename(aside)
  print(
    f'familial: {damage}; it is {aside.name} now, and the run goes on from '
    f'step {max(others)}',
    file=sys.stderr,
  )


def steps(folder: str | os.PathLike[str]) -> dict[str, int]:
  """Returns the steps of the `last` and the `best` checkpoint of a folder.

  Raises:
    UserError: if there is none, or the metrics of one are damaged.
  """
  if not pathlib.Path(folder).is_dir():
    raise errors.UserError(f'{folder}: holds no checkpoint')
  checkpoints = Checkpoints(folder, read_only=True)
  try:
    last, best = checkpoints.latest(), checkpoints.best()
  finally:
    checkpoints.close()
  if last is None:
    raise errors.UserError(f'{folder}: holds no checkpoint')
  return {'last': last, 'best': last if best is None else best}


class _Zeros(np.ndarray):
  """Zeros of any shape that take no memory, and that Orbax does not copy."""

  def __deepcopy__(self, memo: Any) -> '_Zeros':
    return self


def zeros(leaf: Any) -> np.ndarray:
  """Returns zeros of an array's shape and type that take no memory."""
  zero = np.zeros((), leaf.dtype)
  return np.broadcast_to(zero, leaf.shape).view(_Zeros)


def fill(
  folder: str | os.PathLike[str], step: int, arrays: dict[str, Any]
) -> None:
  """Writes sections of a checkpoint of zeros; memory holds a chunk at a time.

  Orbax would hold all arrays once more while it writes them.

  Args:
    folder: folder of the checkpoints.
    step: step of the checkpoint.
    arrays: trees of arrays by section, such as `params`.

  Raises:
    UserError: if it cannot be written.
  """
  path = pathlib.Path(folder).absolute() / str(step) / 'state'
  leaf: Any
  for name, leaf in _names(arrays)[0]:
    with _disk(path):
      stored = tensorstore.open(_spec(path, name), write=True).result()
      source = leaf if isinstance(leaf, Stored) else np.asarray(leaf)
      for part in _chunks(stored):
        stored[part].write(source[part]).result()


def _chunks(stored: Any) -> Iterator[tuple[slice, ...]]:
  """Yields the parts of an array that are stored together."""
  chunk = stored.chunk_layout.write_chunk.shape or ()  # None of a scalar.
  axes = list(zip(stored.shape, chunk, strict=True))
  for corner in itertools.product(*(range(0, n, step) for n, step in axes)):
    yield tuple(
      slice(at, min(at + step, n))
      for at, (n, step) in zip(corner, axes, strict=True)
    )


class Stored:
  """An array of a checkpoint, of which what is asked for is read."""

  def __init__(self, folder: pathlib.Path, name: str, stored: Any, like: Any):
    self._folder, self._name, self._stored = folder, name, stored
    self.shape, self.dtype = tuple(like.shape), np.dtype(like.dtype)
    self.ndim, self.size = like.ndim, like.size
    self.nbytes = self.size * self.dtype.itemsize

  def __getitem__(self, index: Any) -> np.ndarray:
    try:
      return np.asarray(self._stored[index].read().result(), self.dtype)
    except Exception:  # Its type depends on the damage.
      raise DamagedError(self._folder, self._name) from None

  def __array__(
    self, dtype: Any = None, copy: bool | None = None
  ) -> np.ndarray:
    out = np.empty(self.shape, dtype or self.dtype)
    self.read(out)
    return out

  def read(self, out: np.ndarray) -> None:
    """Reads the array, a chunk at a time, into another one of its shape."""
    for part in _chunks(self._stored):
      out[part] = self[part]


def stored_params(
  folder: str | os.PathLike[str], step: int, like: transformer.Params
) -> transformer.Params:
  """Returns a checkpoint's parameters as `Stored` arrays; see `read_params`."""
  path = pathlib.Path(folder).absolute() / str(step)
  stored = _open(path, {'params': like})
  names, treedef = _names({'params': like})
  leaves = [Stored(path, name, stored[name], leaf) for name, leaf in names]
  params: transformer.Params = jax.tree_util.tree_unflatten(treedef, leaves)
  return params['params']


def read_params(
  folder: str | os.PathLike[str], step: int, like: transformer.Params
) -> transformer.Params:
  """Returns a checkpoint's parameters alone, on this process's first device.

  They may have been saved from any number of devices.

  Args:
    folder: folder of a run's checkpoints.
    step: step of the checkpoint.
    like: shapes of the parameters.

  Raises:
    UserError: if it is missing, damaged, or of another shape.
  """
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  wanted = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
    like,
  )
  path = pathlib.Path(folder).absolute() / str(step)
  return _read(path, {'params': wanted})['params']


def reader(
  folder: str | os.PathLike[str], step: int, like: dict[str, Any]
) -> Callable[[tuple[str, ...], tuple[np.ndarray, ...]], np.ndarray]:
  """Returns a function that reads single entries of a checkpoint's arrays.

  Its arguments are the path of an array and an index for each of its axes.

  Args:
    folder: folder of a run's checkpoints.
    step: step of the checkpoint.
    like: shapes of the sections that it must hold.

  Raises:
    UserError: if it is missing, damaged, or of another shape; also by the
      returned function, if an entry cannot be read.
  """
  path = pathlib.Path(folder).absolute() / str(step)
  stored = _open(path, like)

  def take(name: tuple[str, ...], index: tuple[np.ndarray, ...]) -> np.ndarray:
    key = '.'.join(name)
    # Each entry once, and contiguous entries as a slice: gathering is
    # TensorStore's slowest way to read.
    wanted: list[Any] = []
    repeats = []
    for each in index:
      entries, repeat = np.unique(each, return_inverse=True)
      if len(entries) and entries[-1] - entries[0] + 1 == len(entries):
        wanted.append(slice(int(entries[0]), int(entries[-1]) + 1))
      else:
        wanted.append(entries)
      repeats.append(repeat)
    try:
      values = np.asarray(stored[key].oindex[tuple(wanted)].read().result())
    except Exception:  # Its type depends on the damage.
      raise DamagedError(path, key) from None
    for axis, repeat in enumerate(repeats):
      if len(repeat) != values.shape[axis] or (np.diff(repeat) != 1).any():
        values = np.take(values, repeat, axis)
    return values

  return take


def _read(folder: pathlib.Path, like: dict[str, Any]) -> dict[str, Any]:
  """Returns sections of a checkpoint, such as `params`.

  Args:
    folder: folder of one checkpoint.
    like: arrays or shapes of each section; their shardings determine what this
      process reads.
  """
  stored = _open(folder, like)
  names, treedef = _names(like)
  arrays = [_array(folder, name, stored[name], leaf) for name, leaf in names]
  restored: dict[str, Any] = jax.tree_util.tree_unflatten(treedef, arrays)
  return restored


def _open(
  folder: pathlib.Path, like: dict[str, Any]
) -> dict[str, tensorstore.TensorStore]:
  """Opens the arrays of a checkpoint's sections, by name; checks their shapes."""
  path = folder / 'state'
  if not folder.is_dir():
    raise errors.UserError(f'{folder}: no such checkpoint')
  if not path.is_dir():
    raise DamagedError(folder, 'its state')
  storage.check_schema(folder, _metadata(folder))
  base = _database(path)
  needed = dict(_names(like)[0])
  what = 'its list of arrays'
  try:
    keys = tensorstore.KvStore.open(base).result().list().result()
    names = {key.decode().rpartition('/')[0] for key in keys}
    if not names:
      raise ValueError('it names none')
    stored = {}
    for name in sorted(n for n in names if n.partition('.')[0] in like):
      what = name
      stored[name] = tensorstore.open(_spec(path, name)).result()
  except Exception:  # Its type depends on the damage.
    raise DamagedError(folder, what) from None
  for name in sorted(stored.keys() | needed.keys()):
    was = tuple(stored[name].shape) if name in stored else 'missing'
    due = needed[name].shape if name in needed else 'nothing'
    if was != due:
      raise errors.UserError(
        f'{folder}: not a checkpoint of this model: {name} is {was}, and '
        f'{due} is what this model has there'
      )
  return stored


def _database(path: pathlib.Path) -> dict[str, Any]:
  """Returns the TensorStore spec of a checkpoint's arrays."""
  return {
    'driver': 'ocdbt', 'base': f'file://{path}/', 'target_data_file_size': _FILE,
  }  # fmt: skip


def _spec(path: pathlib.Path, name: str) -> dict[str, Any]:
  """Returns the TensorStore spec of one of a checkpoint's arrays."""
  return {
    'driver': 'zarr',
    'kvstore': {**_database(path), 'path': f'{name}/'},
    'fill_missing_data_reads': False,
  }


def _names(like: dict[str, Any]) -> tuple[list[tuple[str, Any]], Any]:
  """Returns (name in a checkpoint, array) for each array of some sections."""
  leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
  return [
    (jax.tree_util.keystr(at, simple=True, separator='.'), leaf)
    for at, leaf in leaves
  ], treedef


def _metadata(folder: pathlib.Path) -> dict[str, Any]:
  """Returns a checkpoint's own metadata; {} if it has none or it is damaged."""
  try:
    metadata = storage.read_json(folder / '_CHECKPOINT_METADATA')
    return dict(metadata['custom_metadata'])
  except (OSError, errors.UserError, LookupError, TypeError, ValueError):
    return {}


def _array(
  folder: pathlib.Path, name: str, stored: tensorstore.TensorStore, like: Any
) -> jax.Array:
  """Returns an array of which this process reads its devices' part."""

  def part(index: tuple[slice, ...] | None) -> np.ndarray:
    try:
      return np.asarray(stored[index].read().result(), like.dtype)
    except Exception:  # Its type depends on the damage.
      raise DamagedError(folder, name) from None

  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.make_array_from_callback(like.shape, like.sharding or here, part)


@functools.cache
def _silence_failed_writes() -> None:
  """Leaves the report of a failed write to `_writing` alone."""
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  hook = sys.unraisablehook

  def quiet(unraisable: Any) -> None:
    # TensorStore's, from a write that ends after another one has failed.
    if str(unraisable.exc_value) != 'Event loop is closed':
      hook(unraisable)

  sys.unraisablehook = quiet
