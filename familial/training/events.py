"""TensorBoard event files, which repeat the rows' numbers."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import os
import pathlib
import time
from typing import Any

from familial.core import errors


class Writer:
  """Writes scalars to a backend, or nothing without one."""

  def __init__(self, backend: Any = None):
    self._backend = backend

  def start(self, step: int) -> None:
    """Makes readers drop events of later steps by earlier processes."""
    from tensorboard.compat.proto import event_pb2

    log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(step + 1, session_log=log)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes the named values of a step."""
    if self._backend is None:
      return
    from tensorboard.compat.proto import summary_pb2

    summary = summary_pb2.Summary(
      value=[
        summary_pb2.Summary.Value(tag=tag, simple_value=value)
        for tag, value in values.items()
      ]
    )
    self._add(step, summary=summary)

  def _add(self, step: int, **content: Any) -> None:
    from tensorboard.compat.proto import event_pb2

    self._backend.add_event(
      event_pb2.Event(wall_time=time.time(), step=step, **content)
    )


@contextlib.contextmanager
def writer(
  folder: str | os.PathLike[str], wanted: bool, start: int
) -> Iterator[Writer]:
  """Yields a writer of event files under FOLDER/events.

  Args:
    folder: folder of the run.
    wanted: False for a writer that writes nothing.
    start: step that the run continues from; readers drop later events.
  """
  if not wanted:
    yield Writer()
    return
  try:
    from tensorboard.summary.writer import event_file_writer
  except ImportError:
    raise errors.UserError(
      "--tensorboard: needs the extra, pip install 'familial[tensorboard]'"
    ) from None
  backend = event_file_writer.EventFileWriter(
    str(pathlib.Path(folder) / 'events')
  )
  scalars = Writer(backend)
  scalars.start(start)
  try:
    yield scalars
  finally:
    backend.close()
