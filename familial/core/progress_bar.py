"""Progress bars on a terminal; elsewhere, such as in a log, a line a minute."""

import sys
import time
from typing import Any

import tqdm

_SECONDS = 60.0  # Between two lines.
_LINE = '{desc}: {percentage:.0f} % ({n_fmt} of {total_fmt} {unit}), '
_COUNT = '{desc}: {n_fmt} {unit}, '
_TIMES = '{elapsed} so far, {remaining} left{postfix}'


class _Lines(tqdm.tqdm):
  """Progress as lines; nothing is printed of what takes less than a minute."""

  def __init__(self, *args: Any, **kwargs: Any):
    self._printed = time.monotonic()
    super().__init__(*args, **kwargs)

  def display(self, msg: str | None = None, pos: int | None = None) -> None:
    """Prints a line, unless one was printed within the last minute."""
    del pos
    now = time.monotonic()
    if msg is None and now - self._printed >= _SECONDS:
      self._printed = now
      print(self, file=self.fp, flush=True)


def start(iterable: Any = None, **options: Any) -> Any:
  """Returns a tqdm bar on stderr; one of lines if stderr is no terminal.

  Args:
    iterable: what it yields, if anything.
    **options: as of tqdm.
  """
  if sys.stderr.isatty():
    return tqdm.tqdm(iterable, **options)
  total = options.get('total', getattr(iterable, '__len__', None))
  form = (_COUNT if total is None else _LINE) + _TIMES
  return _Lines(
    iterable,
    **{**options, 'bar_format': form, 'leave': False, 'file': sys.stderr},
  )


def say(line: str) -> None:
  """Prints a line to stderr, above the bars that are shown there."""
  if sys.stderr.isatty():
    tqdm.tqdm.write(line, file=sys.stderr)
  else:
    print(line, file=sys.stderr, flush=True)


def log(line: str) -> None:
  """Prints a line to stderr where no bars are shown, such as in a log."""
  if not sys.stderr.isatty():
    say(line)
