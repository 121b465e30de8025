"""TensorBoard event files, an extra beside the rows."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import os
import pathlib
from typing import Any

from familial import errors


class Writer:
  """Writes scalars, or nothing where no events were asked for."""

  def __init__(self, backend: Any = None):
    self._backend = backend

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes named values of a step."""
    if self._backend is None:
      return
    from tensorboard.compat.proto import event_pb2
    from tensorboard.compat.proto import summary_pb2

    summary = summary_pb2.Summary(
      value=[
        summary_pb2.Summary.Value(tag=tag, simple_value=value)
        for tag, value in values.items()
      ]
    )
    self._backend.add_event(event_pb2.Event(step=step, summary=summary))


@contextlib.contextmanager
def writer(folder: str | os.PathLike[str], wanted: bool) -> Iterator[Writer]:
  """Yields a writer of event files under FOLDER/events."""
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
  try:
    yield Writer(backend)
  finally:
    backend.close()
