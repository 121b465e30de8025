"""Checkpoints of a run: written in the background, whole or not at all."""

import logging
import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from familial import errors
from familial.model import transformer
from familial.training import step as step_lib

POLICY = ocp.checkpoint_managers


class Checkpoints:
  """The last `keep` checkpoints of a run and the best of its evaluations.

  Best is the lowest held-out loss of the last exit. A checkpoint that was not
  finished when the process died is ignored, and the one before it restored.
  """

  def __init__(self, folder: str | os.PathLike[str], keep: int):
    logging.getLogger('absl').setLevel(logging.ERROR)
    self._manager = ocp.CheckpointManager(
      pathlib.Path(folder).absolute(),
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
      UserError: if there is none, or it holds a model of another shape.
    """
    step = self.latest() if step is None else step
    if step is None:
      raise errors.UserError(f'{self._manager.directory}: holds no checkpoint')
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like._asdict())
    try:
      restored: Any = self._manager.restore(
        step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
      )
    except (ValueError, KeyError) as error:
      reason = str(error).strip().split('\n', maxsplit=1)[0][:200]
      raise errors.UserError(
        f'{self._manager.directory}/{step}: not a checkpoint of this model '
        f'({reason})'
      ) from None
    return step_lib.State(**restored['state'])

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
    UserError: if there is none.
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
  path = pathlib.Path(folder).absolute() / str(step) / 'state'
  if not path.is_dir():
    raise errors.UserError(f'{path.parent}: no such checkpoint')
  device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  wanted = {
    'params': jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=device
      ),
      like,
    )
  }
  logging.getLogger('absl').setLevel(logging.ERROR)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    try:
      found: Any = reader.metadata(path).item_metadata.tree['params']
      was, needed = (
        {
          jax.tree_util.keystr(at, simple=True, separator='.'): leaf.shape
          for at, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (found, like)
      )
      for name in sorted(was.keys() | needed.keys()):
        if was.get(name) != needed.get(name):
          raise errors.UserError(
            f'{path.parent}: {name} is {was.get(name, "missing")}, and '
            f'{needed.get(name, "nothing")} is what this model has there'
          )
      restored: Any = reader.restore(
        path,
        args=ocp.args.PyTreeRestore(
          item=wanted,
          restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
          partial_restore=True,
        ),
      )
    except (ValueError, KeyError, TypeError, OSError, AttributeError) as error:
      reason = str(error).strip().split('\n', maxsplit=1)[0][:200]
      raise errors.UserError(
        f'{path.parent}: a damaged checkpoint ({reason})'
      ) from None
  return restored['params']
