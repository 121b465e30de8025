"""The arrays of a checkpoint: read whole, in part, or each device's share.

They are read with TensorStore itself: where a file is damaged, Orbax's readers
raise what they like, and leave tracebacks of their threads behind.
"""

from collections.abc import Callable
import os
import pathlib
from typing import Any

import jax
import numpy as np
import tensorstore

from familial.core import errors
from familial.core import storage
from familial.model import transformer


class DamagedError(errors.UserError):
  """A checkpoint, `path`, that cannot be read back."""

  def __init__(self, path: pathlib.Path, what: str):
    super().__init__(f'{path}: a damaged checkpoint: {what} cannot be read')
    self.path = path


def read(folder: pathlib.Path, like: dict[str, Any]) -> dict[str, Any]:
  """Returns sections of a checkpoint, such as `params`.

  Args:
    folder: of the checkpoint itself.
    like: of the sections, arrays or shapes; those with shardings say what this
      process reads. Checked before any number is read.

  Raises:
    DamagedError: if it cannot be read.
    UserError: if it is missing, or of a model of another shape, or of another
      version.
  """
  held = _open(folder, like)
  names, treedef = _names(like)
  arrays = [_array(folder, name, held[name], leaf) for name, leaf in names]
  restored: dict[str, Any] = jax.tree_util.tree_unflatten(treedef, arrays)
  return restored


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
  found = read(pathlib.Path(folder).absolute() / str(step), {'params': wanted})
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
  storage.check_schema(folder, _metadata(folder))
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
    found = storage.read_json(folder / '_CHECKPOINT_METADATA')
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
