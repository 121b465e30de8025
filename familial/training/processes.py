"""The processes of one run: how they meet, decide alike, and end together.

They find each other by the environment. `launch/local.py` sets ADDRESS, COUNT
and INDEX; where JAX knows them itself, on Slurm, TPU pods and GKE, COUNT is
`auto`. Without COUNT a process is alone.

What each computes is the same program, so all take the same way through the
code. What could tell them apart, a clock, a signal or a file, one of them looks
at and tells the others.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import fcntl
import functools
import itertools
import json
import os
import sys
import threading
import time
import traceback
from typing import Any
from typing import ParamSpec
from typing import TypeVar

import jax
from jax._src import distributed  # Its store of keys has no public name.
from jax.experimental import multihost_utils
import numpy as np

from familial.core import errors

ADDRESS = 'FAMILIAL_COORDINATOR'
COUNT = 'FAMILIAL_PROCESSES'
INDEX = 'FAMILIAL_PROCESS'
# The descriptor of a pipe to a supervisor: ALIVE every second, STEP by step.
PULSE = 'FAMILIAL_PULSE'
ALIVE, STEP = b'.', b's'
# Exit status of a process that another one left alone: try again.
LOST = 75
# Seconds: until all have started, until one that says nothing is given up, and
# between two exchanges about what to do next.
_START, _HEARTBEAT, _EXCHANGE = 300, 60, 1.0
# One that waits for process 0 is ended by the heartbeats, never by this.
_FOREVER_MS = 7 * 24 * 3600 * 1000

P = ParamSpec('P')
T = TypeVar('T')
_calls = itertools.count()


@contextlib.contextmanager
def joined() -> Iterator[None]:
  """Makes this process one of a run's, where the environment says so.

  Enter it once, before JAX runs. As one of several, what raises inside, but for
  errors.Interrupted, says so in a line and ends the process at once: cleaning up
  would wait for the others, which may wait for this one.

  Raises:
    UserError: if the environment is not as described above.
  """
  _join()
  try:
    yield
  except errors.Interrupted:
    raise  # All stop after the same step.
  except BaseException as error:
    if count() == 1:
      raise
    _leave(error)


def count() -> int:
  """Returns how many processes the run has; starts no backend."""
  joined = jax.distributed.is_initialized()
  return distributed.global_state.num_processes or 1 if joined else 1


def index() -> int:
  """Returns which of them this is."""
  return distributed.global_state.process_id if count() > 1 else 0


def only_first(do: Callable[P, Any]) -> Callable[P, None]:
  """Returns a function that does this in process 0 and nothing in others."""

  @functools.wraps(do)
  def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
    if index() == 0:
      do(*args, **kwargs)

  return wrapped


def by_first(do: Callable[[], T]) -> T:
  """Returns what process 0 gets, in all; the others wait until it has it.

  Args:
    do: called in process 0 alone; gives what JSON can hold.

  Raises:
    UserError: in all, if it raised one there.
  """
  if count() == 1:
    return do()
  key, client = f'familial/{next(_calls)}', _client()
  if index() == 0:
    try:
      said: dict[str, Any] = {'value': do()}
    except errors.UserError as error:
      said = {'refused': str(error)}
    client.key_value_set(key, json.dumps(said))
  else:
    said = json.loads(client.blocking_key_value_get(key, _FOREVER_MS))
  if 'refused' in said:
    raise errors.UserError(said['refused'])
  value: T = said['value']
  return value


def meet(name: str) -> None:
  """Waits until all processes are here, however long one works before."""
  if count() > 1:
    key = f'familial/{name}/{next(_calls)}'
    _client().wait_at_barrier(key, _FOREVER_MS)


def any_of(flag: bool) -> bool:
  """Returns whether the flag is set in any process."""
  return bool(_gather(flag).any())


class Decisions:
  """Whether a run saves its state or stops, decided alike in all processes.

  One process decides anew after every step. Several ask each other about once a
  second, for an exchange waits for the device: at each they agree on the step
  of the next.
  """

  def __init__(
    self, step: int, stopping: Callable[[], bool], seconds: float
  ) -> None:
    """Begins to count.

    Args:
      step: that the run goes on from.
      stopping: whether this process was asked to stop.
      seconds: least time between two checkpoints, by process 0's clock.
    """
    self._stopping, self._seconds = stopping, seconds
    self._saved = self._asked = time.monotonic()
    self._step, self._next = step, step + 1

  def after(self, step: int, metrics: Any) -> tuple[bool, bool]:
    """Returns (stop, save).

    Args:
      step: that was dispatched last.
      metrics: of it; waited for where processes ask each other, because two
        programs must not exchange at once.
    """
    _say(STEP)
    now = time.monotonic()
    stop, save = self._stopping(), now - self._saved > self._seconds
    if count() == 1:
      return stop, save
    if step < self._next:
      return False, False
    jax.block_until_ready(metrics)
    now = time.monotonic()
    rate = (step - self._step) / max(now - self._asked, 1e-3)
    found_Px3 = _gather(stop, save, max(1, int(rate * _EXCHANGE)))
    self._step, self._asked = step, now
    self._next = step + int(found_Px3[0, 2])
    return bool(found_Px3[:, 0].any()), bool(found_Px3[0, 1])

  def saved(self) -> None:
    """Takes note that the state was saved."""
    self._saved = time.monotonic()


def _client() -> Any:
  return distributed.global_state.client


def _gather(*values: int) -> np.ndarray:
  """Returns every process's integers [P, n]."""
  mine = np.array(values, np.int32)
  if count() == 1:
    return mine[None]
  return np.asarray(multihost_utils.process_allgather(mine))


def _join() -> None:
  asked = os.environ.get(COUNT, '')
  if not asked or jax.distributed.is_initialized():
    return
  explicit: dict[str, Any] = {}
  if asked != 'auto':
    explicit = {
      'coordinator_address': os.environ.get(ADDRESS, ''),
      'num_processes': _number(COUNT, 1),
      'process_id': _number(INDEX, 0),
    }
    if ':' not in explicit['coordinator_address']:
      raise errors.UserError(
        f'{ADDRESS}: {explicit["coordinator_address"]!r} is not HOST:PORT'
      )
    if explicit['process_id'] >= explicit['num_processes']:
      raise errors.UserError(
        f'{INDEX}: {explicit["process_id"]} is not below {COUNT} {asked}'
      )
    explicit['cluster_detection_method'] = 'deactivate'
  elif _one_a_node():
    # Else JAX gives each task on Slurm one device, and no task the others.
    explicit['local_device_ids'] = []
  # Its handler of SIGTERM would replace ours, which saves.
  jax.config.update('jax_enable_preemption_service', False)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  if PULSE in os.environ:
    _begin_pulse()
  try:
    jax.distributed.initialize(
      **explicit,
      initialization_timeout=_START,
      heartbeat_timeout_seconds=_HEARTBEAT,
      shutdown_timeout_seconds=_HEARTBEAT,
    )
  except (RuntimeError, ValueError) as error:
    raise errors.UserError(
      f'{COUNT}={asked}: the processes of this run did not meet: '
      f'{_first_line(error)}'
    ) from None


def _one_a_node() -> bool:
  """Whether this is a step on Slurm with one process on each node."""
  nodes = os.environ.get('SLURM_STEP_NUM_NODES', '')
  return bool(nodes) and nodes == os.environ.get('SLURM_STEP_NUM_TASKS')


def _number(name: str, least: int) -> int:
  text = os.environ.get(name, '')
  if not text.isdecimal() or int(text) < least:
    raise errors.UserError(
      f'{name}: {text!r} is not a number from {least} on'
      + (", or 'auto'" if name == COUNT else '')
    )
  return int(text)


def _begin_pulse() -> None:
  """Tells the supervisor every second that this process is alive."""
  pipe = _number(PULSE, 0)
  fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_NONBLOCK)

  def beat() -> None:
    while True:
      _say(ALIVE)
      time.sleep(1.0)

  threading.Thread(target=beat, daemon=True).start()


def _say(what: bytes) -> None:
  pipe = os.environ.get(PULSE)
  if pipe is None:
    return
  try:
    os.write(int(pipe), what)
  except BlockingIOError:
    pass  # The supervisor sleeps, and has enough to read.
  except BrokenPipeError:
    os._exit(LOST)  # It is gone, and nobody would stop this process.


def _leave(error: BaseException) -> None:
  """Says why in a line, or a traceback where it is a bug, and ends."""
  status = 1
  if isinstance(error, errors.UserError):
    status, text = 2, f'familial: {error}'
  elif isinstance(error, OSError):
    status = 2
    text = f'familial: {error.filename or ""}: {error.strerror or error}'
  elif isinstance(error, KeyboardInterrupt):
    status, text = 130, 'familial: interrupted'
  elif isinstance(error, SystemExit):
    status, text = 1, f'familial: {error}'
  elif _lost_another(error):
    status, text = (
      LOST,
      (
        f'familial: process {index()} of {count()} lost another one, and stops: '
        f'{_first_line(error)}; the same command goes on from the last checkpoint'
      ),
    )
  else:
    text = ''.join(traceback.format_exception(error)).rstrip()
  print(text, file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(status)


def _lost_another(error: BaseException) -> bool:
  """Whether an exchange failed because the other side is gone."""
  signs = ('Gloo', 'UNAVAILABLE:', 'DEADLINE_EXCEEDED:', 'ABORTED:')
  return any(sign in str(error) for sign in signs)


def _first_line(error: BaseException) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0][:200]
