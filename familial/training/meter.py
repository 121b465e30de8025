"""What a run under way shows and hears: its progress, and signals to stop."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import signal
import sys
import time

import numpy as np
import tqdm

from familial.model import flops as flops_lib
from familial.training import processes
from familial.training import run as job_lib

_PROGRESS_SECONDS = 5.0


class Meter:
  """The progress bar and `progress.jsonl`: speed without compiles or saves."""

  def __init__(self, jobs: Sequence[job_lib.Job], quiet: bool):
    """Starts a bar over all steps of runs that advance together."""
    first = jobs[0].config.cell
    self._bar = tqdm.tqdm(
      total=sum(job.until for job in jobs),
      initial=sum(job.start for job in jobs),
      desc=first if len(jobs) == 1 else f'{first} and {len(jobs) - 1} more',
      unit='step',
      disable=quiet or processes.index() > 0,
      leave=False,
      file=sys.stderr,
    )
    self._since: float | None = None
    self._steps = 0
    self._seconds = 0.0
    # Of all that pass, what is each run's: those that advance together share.
    self._own = dict.fromkeys(jobs, 0.0)
    self._written = time.monotonic()

  def __enter__(self) -> 'Meter':
    return self

  def __exit__(self, *exception: object) -> None:
    self._bar.close()

  def pause(self) -> None:
    """Leaves out of the speed what happens until the next update."""
    self._since = None

  def update(
    self, count: int, latest: Mapping[job_lib.Job, tuple[int, float, float]]
  ) -> None:
    """Takes what was done.

    Args:
      count: steps that each of the runs took.
      latest: their last step, its deepest exit's loss and its gradient's norm.
    """
    now = time.monotonic()
    if self._since is not None:
      self._steps += count
      self._seconds += now - self._since
      for job in latest:
        self._own[job] += (now - self._since) / len(latest)
    self._since = now
    self._bar.update(count * len(latest))
    due = now - self._written > _PROGRESS_SECONDS
    if due:
      self._written = now
    if not self._steps:
      return
    speed = self._steps / self._seconds
    tokens = flops = 0.0
    for job, (step, loss, norm) in latest.items():
      config = job.config
      if not due and step < job.until:
        continue
      per_step = config.train.batch_size * config.data.seq_len
      tokens += speed * per_step
      values = {
        'loss': loss,
        'gradient_norm': norm,
        'tokens_per_second': speed * per_step,
        'seconds_per_step': self._own[job] / self._steps,
        'flops_per_second': speed
        * per_step
        * flops_lib.train(
          config.model, config.data.seq_len, config.train.trained
        ),
      }
      flops += values['flops_per_second']
      if np.isfinite(list(values.values())).all():
        job.progress(step, values)
    if due:
      self._bar.set_postfix_str(
        f'loss {loss:.3f}, {tokens:,.0f} tokens/s, {flops / 1e9:.1f} GFLOP/s'
      )


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
  """Yields a function that tells whether SIGTERM or SIGINT has arrived."""
  received: list[int] = []
  known = (signal.SIGTERM, signal.SIGINT)
  try:
    old = {
      number: signal.signal(number, lambda n, _: received.append(n))
      for number in known
    }
  except ValueError:  # Not the main thread: signals are its business.
    yield lambda: False
    return
  try:
    yield lambda: bool(received)
  finally:
    for number, handler in old.items():
      signal.signal(number, handler)
