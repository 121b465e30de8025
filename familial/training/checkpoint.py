"""Checkpoints of a run: written in the background, whole or not at all.

Orbax writes them and keeps count of them; `checkpoint_arrays` reads them.
"""

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
import orbax.checkpoint as ocp

from familial.core import errors
from familial.core import storage
from familial.training import checkpoint_arrays
from familial.training import step as step_lib

POLICY = ocp.checkpoint_managers
# Bytes of a piece of an array, the least that is read or packed at once.
_CHUNK = 2**24


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
        custom_metadata={'schema': storage.SCHEMA},
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
    return step_lib.State(
      **checkpoint_arrays.read(self._folder / str(step), like._asdict())
    )

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
        raise storage.unwritten(
          self._folder, os.strerror(int(number[1]))
        ) from None
      if isinstance(error, OSError):
        raise storage.unwritten(
          self._folder, error.strerror or str(error)
        ) from None
      raise


def check_metrics(folder: pathlib.Path) -> None:
  """Raises DamagedError for the first checkpoint with damaged metrics."""
  for path in sorted(folder.glob('*/metrics/metrics')):
    if path.parents[1].name.isdecimal():
      try:
        storage.read_json(path)
      except errors.UserError:
        raise checkpoint_arrays.DamagedError(
          path.parents[1], 'its metrics'
        ) from None


def set_aside(
  folder: pathlib.Path, damage: checkpoint_arrays.DamagedError
) -> None:
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
