"""Checkpoints of a run: written in the background, whole or not at all."""

import logging
import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from familial import errors
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
