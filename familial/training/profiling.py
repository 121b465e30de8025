"""A profiler trace of a few steady steps, for xprof or Perfetto."""

from collections.abc import Iterator
import contextlib
import pathlib
import sys

import jax

from familial.training import processes

# Dispatches before the trace, of which the first compiles, and within it.
BEFORE, TRACED = 3, 5


class Trace:
  """Traces some dispatches of a run once, to its folder `profile`.

  Of several processes only process 0 is traced: all compute the same. A run does
  not end where its trace fails; a line says so.
  """

  def __init__(self, folder: pathlib.Path, wanted: bool):
    self._folder = folder / 'profile'
    self._due = wanted and processes.index() == 0
    self._running = False
    self._seen = 0

  def before(self) -> None:
    """Counts the dispatch that follows; starts or ends the trace."""
    self._seen += 1
    if self._due and self._seen > BEFORE:
      self._due = False
      with self._reporting():
        self._folder.mkdir(parents=True, exist_ok=True)
        jax.profiler.start_trace(self._folder)
        self._running = True
    elif self._seen > BEFORE + TRACED:
      self.end()

  def end(self) -> None:
    """Writes the trace if it is running: the work that follows is no step."""
    if self._running:
      self._running = False
      with self._reporting():
        jax.profiler.stop_trace()

  def close(self) -> None:
    """Writes the trace, or says that there were too few dispatches."""
    self.end()
    if self._due:
      self._report(f'fewer than {BEFORE + 1} dispatches were left')

  @contextlib.contextmanager
  def _reporting(self) -> Iterator[None]:
    try:
      yield
    except (OSError, RuntimeError) as error:
      self._report(str(error).splitlines()[0])

  def _report(self, why: str) -> None:
    print(f'familial: {self._folder}: no trace: {why}', file=sys.stderr)
