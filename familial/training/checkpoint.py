"""Checkpoints of a run: written in the background, whole or not at all.

Orbax writes them and keeps count of them. They are read with TensorStore itself:
where a file is damaged, Orbax's readers raise what they like, and leave
tracebacks of their threads behind.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import functools
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

from familial import errors
from familial import records
from familial.model import transformer
from familial.training import step as step_lib

POLICY = ocp.checkpoint_managers
# Bytes of a piece of an array, the least that is read or packed at once.
_CHUNK = 2**24


class DamagedError(errors.UserError):
  """A checkpoint, `path`, that cannot be read back."""

  def __init__(self, path: pathlib.Path, what: str):
    super().__init__(f'{path}: a damaged checkpoint: {what} cannot be read')
    self.path = path


class Checkpoints:
  """The last `keep` checkpoints of a run and the best of its evaluations.

  Best is the lowest held-out loss of the last exit. A checkpoint that was not
  finished when the process died is ignored, and the one before it restored; who
  writes removes what is left of it.

  Raises:
    DamagedError: at construction, if the metrics of one are damaged.
    UserError: at construction, if the folder cannot be made; by what saves and
      waits, if it cannot be written.
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
      folder: of the checkpoints.
      keep: how many of the last stay.
      read_only: nothing is written or removed.
      at_once: gigabytes that may be written at once, for which there must be
        room in memory twice; more than the largest array.
    """
    logging.getLogger('absl').setLevel(logging.CRITICAL)
    if not read_only:
      _hush()
    self._folder = pathlib.Path(folder).absolute()
    check_metrics(self._folder)
    with self._writing():
      self._manager = self._open(keep, read_only, at_once)

  def _open(
    self, keep: int, read_only: bool, at_once: int
  ) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      self._folder,
      item_handlers={
        'state': ocp.StandardCheckpointHandler(save_concurrent_gb=at_once)
      },
      options=ocp.CheckpointManagerOptions(
        preservation_policy=POLICY.AnyPreservationPolicy(
          [
            POLICY.LatestN(keep),
            POLICY.BestN(
              get_metric_fn=lambda metrics: metrics['loss'],
              reverse=True,
              n=1,
              keep_checkpoints_without_metrics=False,
            ),
          ]
        ),
        # Not only for the policy: without it no metric is written.
        best_fn=lambda metrics: metrics['loss'],
        best_mode='min',
        enable_async_checkpointing=True,
        create=not read_only,
        cleanup_tmp_directories=not read_only,
        read_only=read_only,
      ),
    )

  def save(self, state: step_lib.State, loss: float | None = None) -> None:
    """Starts to save a state; `loss` where it was just evaluated."""
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
        custom_metadata={'schema': records.SCHEMA},
      )

  def latest(self) -> int | None:
    """Returns the step of the last whole checkpoint, or None."""
    return self._manager.latest_step()

  def best(self) -> int | None:
    """Returns the step of the checkpoint of lowest loss, or None."""
    found = {
      step: metrics['loss']
      for step in self._manager.all_steps()
      if (metrics := self._manager.metrics(step))
    }
    return min(found, key=found.__getitem__) if found else None

  def restore(
    self, like: step_lib.State, step: int | None = None
  ) -> step_lib.State:
    """Returns the state of a step, the last one by default.

    Args:
      like: a state of the same shapes, types and shardings.
      step: of the checkpoint.

    Raises:
      DamagedError: if it cannot be read.
      UserError: if it is missing, or of a model of another shape, or of another
        version.
    """
    step = self.latest() if step is None else step
    if step is None:
      raise errors.UserError(f'{self._folder}: holds no checkpoint')
    return step_lib.State(**_read(self._folder / str(step), like._asdict()))

  def reload(self) -> None:
    """Looks again at which checkpoints there are."""
    self._manager.reload()

  def wait(self) -> None:
    """Waits until what was saved is on disk."""
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and lets go of the folder."""
    self.wait()
    with self._writing():
      self._manager.close()

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Makes what Orbax and TensorStore say of a disk one line."""
    try:
      yield
    except Exception as error:  # Of any kind; TensorStore's name the number.
      number = re.search(r"\[os_error_code='(\d+)'\]", str(error))
      if number:
        raise records.unwritten(
          self._folder, os.strerror(int(number[1]))
        ) from None
      if isinstance(error, OSError):
        raise records.unwritten(
          self._folder, error.strerror or str(error)
        ) from None
      raise


def check_metrics(folder: pathlib.Path) -> None:
  """Raises DamagedError for the first checkpoint with damaged metrics."""
  for path in sorted(folder.glob('*/metrics/metrics')):
    if path.parents[1].name.isdecimal():
      try:
        records.read_json(path)
      except errors.UserError:
        raise DamagedError(path.parents[1], 'its metrics') from None


def set_aside(folder: pathlib.Path, damage: DamagedError) -> None:
  """Renames a damaged checkpoint: a run goes on from the last of the others.

  Args:
    folder: of a run's checkpoints.
    damage: of one of them, which `restore` or `check_metrics` raised.

  Raises:
    UserError: if there is no other: the run would begin anew.
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
  with records.writing(aside):
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


def read_params(
  folder: str | os.PathLike[str], step: int, like: transformer.Params
) -> transformer.Params:
  """Returns a checkpoint's parameters alone, on this process's first device.

  They may have been saved from any number of devices.

  Args:
    folder: of a run's checkpoints.
    step: of the checkpoint.
    like: their shapes; checked before anything is read.

  Raises:
    UserError: if it is missing, damaged, or of another shape.
  """
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  wanted = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
    like,
  )
  found = _read(pathlib.Path(folder).absolute() / str(step), {'params': wanted})
  return found['params']


def reader(
  folder: str | os.PathLike[str], step: int, like: dict[str, Any]
) -> Callable[[tuple[str, ...], tuple[np.ndarray, ...]], np.ndarray]:
  """Returns what reads entries of a checkpoint's arrays and nothing beside them.

  It takes an array's path and, for each of its axes, the entries wanted.

  Args:
    folder: of a run's checkpoints.
    step: of the checkpoint.
    like: the sections that it must hold, as shapes.

  Raises:
    UserError: if it is missing, damaged, or of another shape; so may what is
      returned, where an entry cannot be read.
  """
  path = pathlib.Path(folder).absolute() / str(step)
  held = _open(path, like)

  def take(name: tuple[str, ...], index: tuple[np.ndarray, ...]) -> np.ndarray:
    key = '.'.join(name)
    # Each entry once, and where they lie side by side as one piece: gathering is
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
      found = np.asarray(held[key].oindex[tuple(wanted)].read().result())
    except Exception:  # Of any kind, by what is broken.
      raise DamagedError(path, key) from None
    for axis, repeat in enumerate(repeats):
      if len(repeat) != found.shape[axis] or (np.diff(repeat) != 1).any():
        found = np.take(found, repeat, axis)
    return found

  return take


def _read(folder: pathlib.Path, like: dict[str, Any]) -> dict[str, Any]:
  """Returns sections of a checkpoint: shapes are checked before any number is
  read."""
  held = _open(folder, like)
  names, treedef = _names(like)
  read = [_array(folder, name, held[name], leaf) for name, leaf in names]
  restored: dict[str, Any] = jax.tree_util.tree_unflatten(treedef, read)
  return restored


def _open(
  folder: pathlib.Path, like: dict[str, Any]
) -> dict[str, tensorstore.TensorStore]:
  """Returns the arrays of a checkpoint's sections, by name, once their shapes
  are seen to be those."""
  path = folder / 'state'
  if not folder.is_dir():
    raise errors.UserError(f'{folder}: no such checkpoint')
  if not path.is_dir():
    raise DamagedError(folder, 'its state')
  records.check_schema(folder, _metadata(folder))
  base = {'driver': 'ocdbt', 'base': f'file://{path}/'}
  needed = dict(_names(like)[0])
  what = 'its list of arrays'
  try:
    keys = tensorstore.KvStore.open(base).result().list().result()
    names = {key.decode().rpartition('/')[0] for key in keys}
    if not names:
      raise ValueError('it names none')
    held = {}
    for name in sorted(n for n in names if n.partition('.')[0] in like):
      what = name
      held[name] = tensorstore.open(
        {
          'driver': 'zarr',
          'kvstore': {**base, 'path': f'{name}/'},
          'fill_missing_data_reads': False,
        }
      ).result()
  except Exception:  # Of any kind, by what is broken.
    raise DamagedError(folder, what) from None
  for name in sorted(held.keys() | needed.keys()):
    was = tuple(held[name].shape) if name in held else 'missing'
    due = needed[name].shape if name in needed else 'nothing'
    if was != due:
      raise errors.UserError(
        f'{folder}: not a checkpoint of this model: {name} is {was}, and '
        f'{due} is what this model has there'
      )
  return held


def _names(like: dict[str, Any]) -> tuple[list[tuple[str, Any]], Any]:
  """Returns the arrays of some sections with their names in a checkpoint."""
  leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
  return [
    (jax.tree_util.keystr(at, simple=True, separator='.'), leaf)
    for at, leaf in leaves
  ], treedef


def _metadata(folder: pathlib.Path) -> dict[str, Any]:
  """Returns what a checkpoint was saved with; {} by those that had nothing, or
  where that is all that is lost."""
  try:
    found = records.read_json(folder / '_CHECKPOINT_METADATA')
    return dict(found['custom_metadata'])
  except (OSError, errors.UserError, LookupError, TypeError, ValueError):
    return {}


def _array(
  folder: pathlib.Path, name: str, stored: tensorstore.TensorStore, like: Any
) -> jax.Array:
  """Returns an array of a checkpoint; a process reads its devices' part."""

  def part(index: tuple[slice, ...] | None) -> np.ndarray:
    try:
      return np.asarray(stored[index].read().result(), like.dtype)
    except Exception:  # Of any kind, by what is broken.
      raise DamagedError(folder, name) from None

  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.make_array_from_callback(like.shape, like.sharding or here, part)


@functools.cache
def _hush() -> None:
  """Has nothing said, from now on, but what `_writing` makes of a failure."""
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  hook = sys.unraisablehook

  def quiet(unraisable: Any) -> None:
    # TensorStore's, of a write that ends after another one has failed.
    if str(unraisable.exc_value) != 'Event loop is closed':
      hook(unraisable)

  sys.unraisablehook = quiet
