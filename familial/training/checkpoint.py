"""Checkpoints of a run: written in the background, whole or not at all.

Orbax writes them and keeps count of them. They are read with TensorStore itself:
where a file is damaged, Orbax's readers raise what they like, and leave
tracebacks of their threads behind.
"""

import logging
import os
import pathlib
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


class Checkpoints:
  """The last `keep` checkpoints of a run and the best of its evaluations.

  Best is the lowest held-out loss of the last exit. A checkpoint that was not
  finished when the process died is ignored, and the one before it restored.

  Raises:
    UserError: at construction, if the metrics of one are damaged.
  """

  def __init__(self, folder: str | os.PathLike[str], keep: int):
    logging.getLogger('absl').setLevel(logging.ERROR)
    folder = pathlib.Path(folder).absolute()
    for path in folder.glob('*/metrics/metrics'):
      try:
        records.read_json(path)
      except errors.UserError:
        raise errors.UserError(
          f'{path.parents[1]}: a damaged checkpoint: its metrics cannot be read'
        ) from None
    self._manager = ocp.CheckpointManager(
      folder,
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
      ),
    )

  def save(self, state: step_lib.State, loss: float | None = None) -> None:
    """Starts to save a state; `loss` where it was just evaluated."""
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardSave(state._asdict())),
      metrics=None if loss is None else {'loss': loss},
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
      UserError: if it is missing, damaged, or of a model of another shape.
    """
    step = self.latest() if step is None else step
    if step is None:
      raise errors.UserError(f'{self._manager.directory}: holds no checkpoint')
    folder = pathlib.Path(self._manager.directory) / str(step)
    return step_lib.State(**_read(folder, like._asdict()))

  def wait(self) -> None:
    """Waits until what was saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, and lets go of the folder."""
    self.wait()
    self._manager.close()


def steps(folder: str | os.PathLike[str]) -> dict[str, int]:
  """Returns the steps of the `last` and the `best` checkpoint of a folder.

  Raises:
    UserError: if there is none, or the metrics of one are damaged.
  """
  if not pathlib.Path(folder).is_dir():
    raise errors.UserError(f'{folder}: holds no checkpoint')
  checkpoints = Checkpoints(folder, 1)
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


def _read(folder: pathlib.Path, like: dict[str, Any]) -> dict[str, Any]:
  """Returns sections of a checkpoint: shapes are checked before any number is
  read."""
  path = folder / 'state'
  if not path.is_dir():
    raise errors.UserError(f'{folder}: no such checkpoint')
  base = {'driver': 'ocdbt', 'base': f'file://{path}/'}
  leaves, treedef = jax.tree_util.tree_flatten_with_path(like)
  needed = {
    jax.tree_util.keystr(at, simple=True, separator='.'): leaf
    for at, leaf in leaves
  }
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
    raise _damaged(folder, what) from None
  for name in sorted(held.keys() | needed.keys()):
    was = tuple(held[name].shape) if name in held else 'missing'
    due = needed[name].shape if name in needed else 'nothing'
    if was != due:
      raise errors.UserError(
        f'{folder}: not a checkpoint of this model: {name} is {was}, and '
        f'{due} is what this model has there'
      )
  read = [_array(folder, name, held[name], needed[name]) for name in needed]
  restored: dict[str, Any] = jax.tree_util.tree_unflatten(treedef, read)
  return restored


def _array(
  folder: pathlib.Path, name: str, stored: tensorstore.TensorStore, like: Any
) -> jax.Array:
  """Returns an array of a checkpoint; a process reads its devices' part."""

  def part(index: tuple[slice, ...] | None) -> np.ndarray:
    try:
      return np.asarray(stored[index].read().result(), like.dtype)
    except Exception:  # Of any kind, by what is broken.
      raise _damaged(folder, name) from None

  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.make_array_from_callback(like.shape, like.sharding or here, part)


def _damaged(folder: pathlib.Path, what: str) -> errors.UserError:
  return errors.UserError(
    f'{folder}: a damaged checkpoint: {what} cannot be read'
  )
