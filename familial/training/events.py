"""TensorBoard event files, which repeat the rows' numbers."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import os
import pathlib
import time
from typing import Any

from familial.core import errors

# Writes the named values of a step.
Scalars = Callable[[int, Mapping[str, float]], None]


def check(wanted: bool) -> None:
  """Raises a UserError if event files are wanted and cannot be written."""
  if wanted:
    _modules()


@contextlib.contextmanager
def writer(
  folder: str | os.PathLike[str], wanted: bool, start: int
) -> Iterator[Scalars]:
  """Yields a function that writes scalars to event files under FOLDER/events.

  Args:
    folder: folder of the run.
    wanted: False for a function that writes nothing.
    start: step that the run continues from; readers drop later events.
  """
  if not wanted:
    yield lambda step, values: None
    return
  event_pb2, summary_pb2, event_file_writer = _modules()
  backend = event_file_writer.EventFileWriter(
    str(pathlib.Path(folder) / 'events')
  )

  def add(step: int, **content: Any) -> None:
    backend.add_event(
      event_pb2.Event(wall_time=time.time(), step=step, **content)
    )

  def scalars(step: int, values: Mapping[str, float]) -> None:
    value = [
      summary_pb2.Summary.Value(tag=tag, simple_value=number)
      for tag, number in values.items()
    ]
    add(step, summary=summary_pb2.Summary(value=value))

  log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
  add(start + 1, session_log=log)
  try:
    yield scalars
  finally:
    backend.close()


def _modules() -> tuple[Any, Any, Any]:
  """Imports what writes event files; the refusal names the extra."""
  try:
    from tensorboard.compat.proto import event_pb2
    from tensorboard.compat.proto import summary_pb2
    from tensorboard.summary.writer import event_file_writer
  except ImportError:
    raise errors.UserError(
      "--tensorboard: needs the extra, pip install 'familial[tensorboard]'"
    ) from None
  return event_pb2, summary_pb2, event_file_writer
