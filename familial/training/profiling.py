"""A profiler's trace of a few steady steps, for xprof or Perfetto."""

import pathlib
import sys
from typing import Any

import jax

from familial import records
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
      with records.writing(self._folder):
        self._folder.mkdir(parents=True, exist_ok=True)
      self._due, self._under_way = False, True
      jax.profiler.start_trace(self._folder)
    elif self._seen > BEFORE + TRACED:
      self.end()

  def end(self) -> None:
    """Writes the trace, where one is under way: what follows is no step."""
    if self._under_way:
      self._under_way = False
      jax.profiler.stop_trace()
