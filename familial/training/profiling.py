"""A profiler's trace of a few steady steps, for xprof or Perfetto."""

from collections.abc import Iterator
import contextlib
import pathlib
import sys
from typing import Any

import jax

from familial.training import processes

# Dispatches before it begins, of which the first compiles, and within it.
BEFORE, TRACED = 3, 5


class Trace:
  """Traces some dispatches of a run, once, or nothing; a context.

  It lies in the folder `profile` of the run. Of several processes the first
  alone is traced: all compute the same.
  """

  def __init__(self, folder: pathlib.Path, wanted: bool):
    self._folder = folder / 'profile'
    self._due = wanted and processes.index() == 0
    self._under_way = False
    self._seen = 0

  def __enter__(self) -> 'Trace':
    return self

  def __exit__(self, *exception: Any) -> None:
    self.end()
    if self._due:
      print(
        f'familial: {self._folder}: no trace, for fewer than {BEFORE + 1} '
        'dispatches were left',
        file=sys.stderr,
      )

  def before(self) -> None:
    """Takes note that a dispatch follows."""
    self._seen += 1
    if self._due and self._seen > BEFORE:
      self._due = False
      with self._said():
        self._folder.mkdir(parents=True, exist_ok=True)
        jax.profiler.start_trace(self._folder)
        self._under_way = True
    elif self._seen > BEFORE + TRACED:
      self.end()

  def end(self) -> None:
    """Writes the trace, where one is under way: what follows is no step."""
    if self._under_way:
      self._under_way = False
      with self._said():
        jax.profiler.stop_trace()

  @contextlib.contextmanager
  def _said(self) -> Iterator[None]:
    """Says in a line what a trace failed of: no run ends for want of one."""
    try:
      yield
    except (OSError, RuntimeError) as error:
      print(
        f'familial: {self._folder}: no trace: {str(error).splitlines()[0]}',
        file=sys.stderr,
      )
