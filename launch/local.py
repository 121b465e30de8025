"""Starts a command as several JAX processes on this host, and watches them.

  python launch/local.py --processes=4 -- familial train --config=... --workdir=...

Each gets its share of the cores and says every second that it is alive. What
process 0 prints is shown; of another one its last lines, where it failed. If one
ends in error, does not answer, or none finishes a step, all are stopped, and one
line says which and how. SIGTERM and Ctrl-C are passed on: the run saves and
stops; a second one kills it.

Exit status: 0, 130 after a stop, 124 where one did not answer, and otherwise
that of the process that failed (128 + its signal if one killed it).
"""

import argparse
from collections.abc import Sequence
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import IO

from familial.core import cores as cores_lib
from familial.training import processes

# Seconds: between two looks, and for those that lost another one to end alone.
_LOOK, _GRACE = 0.05, 3.0
_STOPPED = (0, 130, -signal.SIGTERM, -signal.SIGINT)
# How those end that were left alone: by themselves, or as JAX ends them.
_LEFT = (processes.LOST, -signal.SIGABRT)


@dataclasses.dataclass
class _Child:
  """A process, what it prints, and when it last said something.

  Attributes:
    index: of the process.
    process: itself.
    pipe: what it says of itself.
    printed: what it prints; None for process 0.
    heard: when it last said that it is alive; None before the first time.
    stepped: when it last finished a step.
  """

  index: int
  process: subprocess.Popen[bytes]
  pipe: int
  printed: IO[bytes] | None
  heard: float | None = None
  stepped: float | None = None

  def look(self) -> int | None:
    """Reads what it said; returns its status, None while it runs."""
    try:
      said = os.read(self.pipe, 2**16)
    except BlockingIOError:
      said = b''
    now = time.monotonic()
    if said:
      self.heard = now
    if processes.STEP in said:
      self.stepped = now
    return self.process.poll()

  def signal(self, number: int) -> None:
    """Sends a signal to it and to what it started."""
    if self.process.poll() is None:
      os.killpg(self.process.pid, number)


def main(argv: Sequence[str]) -> int:
  """Runs the command line; returns the exit status."""
  parser = argparse.ArgumentParser(
    prog='local.py', description=__doc__.partition('\n')[0]
  )
  parser.add_argument('--processes', type=_count, required=True)
  parser.add_argument(
    '--silence',
    type=float,
    default=60.0,
    help='seconds after which a process that says nothing is given up',
  )
  parser.add_argument(
    '--stall',
    type=float,
    default=1800.0,
    help='seconds without a step after which the run is given up',
  )
  parser.add_argument('command', nargs='+', help='after --')
  asked = parser.parse_args(argv)
  received: list[int] = []
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda n, _: received.append(n))
  children: list[_Child] = []
  try:
    _start(asked.command, asked.processes, children)
    status, line = _watch(children, asked.silence, asked.stall, received)
  except OSError as error:
    status, line = 2, f'{asked.command[0]}: {error.strerror}'
  finally:
    for child in children:
      child.signal(signal.SIGKILL)
      child.process.wait()
  if line:
    print(f'local.py: {line}', file=sys.stderr)
  return status


def _count(text: str) -> int:
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(f'{text!r} is not a number from 1 on')
  return int(text)


def _start(command: Sequence[str], count: int, children: list[_Child]) -> None:
  """Starts the processes, and adds each to `children`."""
  cores = cores_lib.available_cores()
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  for index in range(count):
    read, write = os.pipe()
    os.set_blocking(read, False)
    printed = tempfile.TemporaryFile() if index else None
    # The child has them from its first moment on.
    cores_lib.keep_to(cores[index::count] or cores)
    try:
      process = subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=printed,
        stderr=printed,
        env={
          **os.environ,
          processes.ADDRESS: f'127.0.0.1:{port}',
          processes.COUNT: str(count),
          processes.INDEX: str(index),
          processes.PULSE: str(write),
        },
        pass_fds=(write,),
        # Ctrl-C must reach it once, from here.
        start_new_session=True,
      )
    finally:
      os.close(write)
      cores_lib.keep_to(cores)
    children.append(_Child(index, process, read, printed))


def _watch(
  children: list[_Child],
  silence: float,
  stall: float,
  received: list[int],
) -> tuple[int, str]:
  """Returns the exit status and what there is to say, '' for nothing."""
  told = 0
  ended: float | None = None
  while True:
    statuses = [child.look() for child in children]
    now = time.monotonic()
    if len(received) > told:
      told = len(received)
      for child in children:
        child.signal(signal.SIGTERM if told == 1 else signal.SIGKILL)
      if told > 1:
        return 130, 'stopped at once; the run goes on from its last checkpoint'
    fine = _STOPPED if told else (0, 130)
    if any(status is not None and status not in fine for status in statuses):
      return _failed(children, fine)
    if None not in statuses:
      return max(130 * bool(status) for status in statuses), ''
    running = [c for c, s in zip(children, statuses, strict=True) if s is None]
    if len(running) < len(children) and ended is None:
      ended = now
    for child in running:
      if child.heard is not None and now - child.heard > silence:
        return 124, _said(children, child, f'did not answer for {silence:g} s')
      if ended is not None and now - ended > silence:
        return 124, _said(
          children, child, f'still ran {silence:g} s after another had ended'
        )
    steps = [child.stepped for child in running if child.stepped is not None]
    if steps and now - max(steps) > stall:
      return (
        124,
        f'no process finished a step for {stall:g} s; all were stopped',
      )
    time.sleep(_LOOK)


def _failed(children: list[_Child], fine: Sequence[int]) -> tuple[int, str]:
  """Says which process failed, and not those that it left alone."""
  until = time.monotonic() + _GRACE
  while time.monotonic() < until:
    if None not in [child.look() for child in children]:
      break
    time.sleep(_LOOK)
  failed = [
    child
    for child in children
    if child.process.poll() is not None and child.process.returncode not in fine
  ]
  first = min(failed, key=lambda child: child.process.returncode in _LEFT)
  status = first.process.returncode
  if first.printed:
    first.printed.seek(0)
    text = first.printed.read().decode(errors='replace').splitlines()
    for line in text[-20:]:
      print(f'[{first.index}] {line}', file=sys.stderr)
  if status < 0:
    how = f'was killed by {signal.Signals(-status).name}'
    return 128 - status, _said(children, first, how)
  return status, _said(children, first, f'ended with status {status}')


def _said(children: list[_Child], child: _Child, how: str) -> str:
  rest = '; the others were stopped' if len(children) > 1 else ''
  return f'process {child.index} of {len(children)} {how}{rest}'


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
