"""The processes of one run: connection, joint decisions, and their end.

The environment connects them. `launch/local.py` sets ADDRESS, COUNT and INDEX;
where JAX detects them, on Slurm, TPU pods and GKE, COUNT is `auto`. Without COUNT
a process is alone.

All processes run the same program and must take the same branches. A value that
may differ between them (a clock, a signal, a file) is read by one process and
broadcast.
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
from jax.experimental import multihost_utils
import numpy as np

from familial.core import errors
from familial.training import jax_internals

ADDRESS = 'FAMILIAL_COORDINATOR'
COUNT = 'FAMILIAL_PROCESSES'
INDEX = 'FAMILIAL_PROCESS'
# Descriptor of a pipe to the supervisor: ALIVE every second, STEP every step.
PULSE = 'FAMILIAL_PULSE'
ALIVE, STEP = b'.', b's'
# Exit status of a process that lost another one; the command may be repeated.
LOST = 75
# Seconds: until all have started, until a silent process counts as lost, and
# between two exchanges of decisions.
_START, _HEARTBEAT = 300, 60
EXCHANGE = 1.0
# A process that waits for process 0 is ended by the heartbeats, never by this.
_FOREVER_MS = 7 * 24 * 3600 * 1000

P = ParamSpec('P')
T = TypeVar('T')
_calls = itertools.count()


@contextlib.contextmanager
def joined() -> Iterator[None]:
  """Connects this process to those of its run, if the environment says so.

  Enter it once, before JAX runs. With several processes, an exception other than
  errors.Interrupted is reported in a line and ends the process at once: cleaning
  up would wait for the others, which may wait for this one.

  Raises:
    UserError: if the environment is not as described above.
  """
  _join()
  try:
    yield
  except errors.Interrupted:
    raise  # All processes stop after the same step.
  except BaseException as error:
    if count() == 1:
      raise
    _exit(error)


def count() -> int:
  """Returns the number of processes of the run; starts no backend."""
  connected = jax.distributed.is_initialized()
  return jax_internals.num_processes() if connected else 1


def index() -> int:
  """Returns the index of this process."""
  return jax_internals.process_id() if count() > 1 else 0


def on_process_0(function: Callable[P, Any]) -> Callable[P, None]:
  """Returns a function that calls another one in process 0 only."""

  @functools.wraps(function)
  def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
    if index() == 0:
      function(*args, **kwargs)

  return wrapped


def broadcast_from_0(function: Callable[[], T]) -> T:
  """Calls a function in process 0 and returns its result in all processes.

  Args:
    function: its result must be a JSON value.

  Raises:
    UserError: in all processes, if the function raised one.
  """
  if count() == 1:
    return function()
  key, client = f'familial/{next(_calls)}', jax_internals.client()
  if index() == 0:
    try:
      message: dict[str, Any] = {'value': function()}
    except errors.UserError as error:
      message = {'error': str(error)}
    client.key_value_set(key, json.dumps(message))
  else:
    message = json.loads(client.blocking_key_value_get(key, _FOREVER_MS))
  if 'error' in message:
    raise errors.UserError(message['error'])
  value: T = message['value']
  return value


def barrier(name: str) -> None:
  """Waits for all processes, without a limit on the time."""
  if count() > 1:
    key = f'familial/{name}/{next(_calls)}'
    jax_internals.client().wait_at_barrier(key, _FOREVER_MS)


def any_of(flag: bool) -> bool:
  """Returns whether the flag is set in any process."""
  return bool(_gather(flag).any())


class Decisions:
  """When a run saves its state or stops: the same step in all processes.

  A single process decides after every step. Several exchange their wishes about
  once a second, because an exchange waits for the device; each exchange also
  fixes the step of the next one.
  """

  def __init__(
    self, step: int, stopping: Callable[[], bool], seconds: float
  ) -> None:
    """Starts the clock.

    Args:
      step: the step that the run continues from.
      stopping: returns whether this process was asked to stop.
      seconds: least time between two checkpoints, by process 0's clock.
    """
    self._stopping, self._seconds = stopping, seconds
    self._saved = self._asked = time.monotonic()
    self._step, self._next = step, step + 1

  def after(self, step: int, metrics: Any) -> tuple[bool, bool]:
    """Returns (stop, save).

    Args:
      step: the step dispatched last.
      metrics: its metrics; processes wait for them before an exchange, because
        two programs must not communicate at once.
    """
    _pulse(STEP)
    now = time.monotonic()
    stop, save = self._stopping(), now - self._saved > self._seconds
    if count() == 1:
      return stop, save
    if step < self._next:
      return False, False
    jax.block_until_ready(metrics)
    now = time.monotonic()
    rate = (step - self._step) / max(now - self._asked, 1e-3)
    found_Px3 = _gather(stop, save, max(1, int(rate * EXCHANGE)))
    self._step, self._asked = step, now
    self._next = step + int(found_Px3[0, 2])
    return bool(found_Px3[:, 0].any()), bool(found_Px3[0, 1])

  def saved(self) -> None:
    """Records that the state was saved."""
    self._saved = time.monotonic()


def _gather(*values: int) -> np.ndarray:
  """Returns every process's integers [P, n]."""
  own = np.array(values, np.int32)
  if count() == 1:
    return own[None]
  return np.asarray(multihost_utils.process_allgather(own))


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
  elif _one_per_node():
    # Otherwise JAX gives each task on Slurm a single device.
    explicit['local_device_ids'] = []
  # Its SIGTERM handler would replace the one that saves the state.
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


def _one_per_node() -> bool:
  """Whether this is a Slurm step with one process per node."""
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
  """Starts to signal the supervisor every second."""
  pipe = _number(PULSE, 0)
  fcntl.fcntl(pipe, fcntl.F_SETFL, os.O_NONBLOCK)

  def beat() -> None:
    while True:
      _pulse(ALIVE)
      time.sleep(1.0)

  threading.Thread(target=beat, daemon=True).start()


def _pulse(signal: bytes) -> None:
  pipe = os.environ.get(PULSE)
  if pipe is None:
    return
  try:
    os.write(int(pipe), signal)
  except BlockingIOError:
    pass  # The pipe is full: the supervisor has enough to read.
  except BrokenPipeError:
    os._exit(LOST)  # The supervisor is gone and cannot stop this process.


def _exit(error: BaseException) -> None:
  """Ends the process with a line, or with a traceback where it is a bug."""
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
  """Whether an exchange failed because another process is gone."""
  signs = ('Gloo', 'UNAVAILABLE:', 'DEADLINE_EXCEEDED:', 'ABORTED:')
  return any(sign in str(error) for sign in signs)


def _first_line(error: BaseException) -> str:
  return (str(error).splitlines() or [type(error).__name__])[0][:200]
