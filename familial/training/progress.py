"""Progress reporting and SIGTERM/SIGINT handling."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import os
import signal
import time
from typing import NamedTuple

import numpy as np

from familial.core import progress_bar
from familial.core import text
from familial.model import flops as flops_lib
from familial.training import optimizer
from familial.training import processes
from familial.training import profiling
from familial.training import run as run_lib

# Seconds between two writes of `progress.jsonl`, and the least number of its rows
# over a whole run of as many steps.
_SECONDS, _ROWS = 5.0, 64


class Observation(NamedTuple):
  """A training step: its number, the deepest exit's loss, the gradient's norm."""

  step: int
  loss: float
  gradient_norm: float


class Reporter:
  """The progress bar, `progress.jsonl` and a profiler trace; a context.

  Speeds leave out compilation, evaluation and saving.
  """

  def __init__(
    self,
    runs: Sequence[run_lib.Run],
    quiet: bool,
    profile: bool = False,
    announce: bool = False,
  ):
    """Starts a bar over all steps of runs that advance together.

    Args:
      runs: the runs.
      quiet: whether to show no bar.
      profile: whether to trace some dispatches, to the first run's folder.
      announce: whether to say that a program is compiled, and how long the rest
        takes once steps were timed.
    """
    first = runs[0].config.cell
    self._bar = progress_bar.start(
      total=sum(run.until for run in runs),
      initial=sum(run.start for run in runs),
      desc=first if len(runs) == 1 else f'{first} and {len(runs) - 1} more',
      unit='step',
      disable=quiet or processes.index() > 0,
      leave=False,
    )
    self._announce = announce and processes.index() == 0
    self._trace = profiling.Trace(runs[0].folder, profile)
    self._since: float | None = None
    self._begun = self._compiled = False
    self._steps = 0
    self._seconds = 0.0
    # Each run's share of the seconds: runs that advance together share them.
    self._own = dict.fromkeys(runs, 0.0)
    self._unwritten: list[tuple[run_lib.Run, Observation]] = []
    self._written = time.monotonic()

  def __enter__(self) -> 'Reporter':
    return self

  def __exit__(self, *exception: object) -> None:
    self._trace.close()
    self._bar.close()

  def before_dispatch(self) -> None:
    """Starts the clock again after a pause, and the trace if it is due."""
    self._trace.before()
    if not self._begun:
      self._begun = True
      self._bar.set_postfix_str('compiling')
      if self._announce:
        progress_bar.say('compiling ...')
    if self._since is None and self._compiled:
      self._since = time.monotonic()

  def pause(self) -> None:
    """Leaves out of speed and trace what happens until the next update."""
    self._trace.end()
    self._since = None

  def update(
    self, count: int, observed: Mapping[run_lib.Run, Sequence[Observation]]
  ) -> None:
    """Reports steps of the runs.

    Args:
      count: steps that each of the runs took.
      observed: these steps by run, in order.
    """
    now = time.monotonic()
    if self._since is not None:
      self._steps += count
      self._seconds += now - self._since
      for run in observed:
        self._own[run] += (now - self._since) / len(observed)
    self._since = now
    self._compiled = True
    self._bar.update(count * len(observed))
    due = now - self._written > _SECONDS
    for run, steps in observed.items():
      every = max(1, run.config.train.steps // _ROWS)
      self._unwritten += [
        (run, each)
        for each in steps
        if each.step % every == 0
        or each.step == run.until
        or (due and each is steps[-1])
      ]
    if not self._steps:
      return  # Compilation is not timed: the rows wait for a speed.
    self._log()
    if due and observed:
      self._written = now
      tokens = flops = 0.0
      for run in observed:
        run.flush()
        tokens += self._tokens_per_second(run)
        flops += self._tokens_per_second(run) * _flops_per_token(run)
      if self._announce:
        self._announce = False
        left = (self._bar.total - self._bar.n) * self._seconds / self._steps
        progress_bar.say(
          f'about {text.duration(left)} left, evaluations apart, at '
          f'{tokens:,.0f} tokens/s and {flops / 1e9:.1f} GFLOP/s'
        )
      self._bar.set_postfix_str(
        f'loss {[*observed.values()][-1][-1].loss:.3f}, {tokens:,.0f} tokens/s, '
        f'{flops / 1e9:.1f} GFLOP/s'
      )

  def _log(self) -> None:
    """Adds the rows of the observations to the runs."""
    for run, (step, loss, norm) in self._unwritten:
      rate = float(optimizer.schedule(step - 1, run.hyper, np))
      values = {
        'tokens': step * run.source.tokens_per_step,
        'loss': loss,
        'gradient_norm': norm,
        'rate': run.config.train.base_lr * rate,
        'tokens_per_second': self._tokens_per_second(run),
        'seconds_per_step': self._own[run] / self._steps,
        'flops_per_second': self._tokens_per_second(run)
        * _flops_per_token(run),
      }
      if np.isfinite(list(values.values())).all():
        run.log(step, values)
    self._unwritten.clear()

  def _tokens_per_second(self, run: run_lib.Run) -> float:
    return self._steps / self._seconds * run.source.tokens_per_step


def _flops_per_token(run: run_lib.Run) -> int:
  config = run.config
  return flops_lib.train(
    config.model, config.data.seq_len, config.train.trained
  )


@contextlib.contextmanager
def stop_signals(quiet: bool = False) -> Iterator[Callable[[], bool]]:
  """Yields a function that returns whether SIGTERM or SIGINT has arrived.

  The first signal is answered at once, with the longest time between two calls of
  the function so far: a step, or an evaluation and a checkpoint with it.

  Args:
    quiet: whether another process answers.
  """
  received: list[int] = []
  calls: list[float] = []
  longest = 0.0

  def stopping() -> bool:
    nonlocal longest
    calls.append(time.monotonic())
    if len(calls) > 1:
      longest = max(longest, calls[-1] - calls.pop(0))
    return bool(received)

  def receive(number: int, frame: object) -> None:
    if not received and not quiet and processes.index() == 0:
      when = (
        f'within about {text.duration(longest)}'
        if longest
        else 'when it is compiled and done'
      )
      line = f'\nfamilial: stopping; this step is saved {when}\n'
      os.write(2, line.encode())  # A print may be under way.
    received.append(number)

  try:
    handlers = {
      number: signal.signal(number, receive)
      for number in (signal.SIGTERM, signal.SIGINT)
    }
  except ValueError:  # Only the main thread can handle signals.
    yield lambda: False
    return
  try:
    yield stopping
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)
