"""One run, from its config to its last row; resumable at any moment.

Order of a (re)start: open the folder, compile, restore the last checkpoint if
there is one, drop later rows, go on.
"""

from collections.abc import Callable
import os

import jax
import numpy as np

from familial.core import errors
from familial.core import run_folder
from familial.data import packing
from familial.training import config as train_config
from familial.training import meter as meter_lib
from familial.training import processes
from familial.training import profiling
from familial.training import run as job_lib
from familial.training import step as step_lib


def run(
  config: train_config.RunConfig,
  folder: str | os.PathLike[str],
  corpus: packing.Corpus | None = None,
  *,
  until: int | None = None,
  quiet: bool = False,
  tensorboard: bool = False,
  profile: bool = False,
  on_step: Callable[[int], None] = lambda step: None,
) -> str:
  """Trains a run to its end and returns `finished` or `diverged`.

  Or as far as `until`, and returns `running`.

  Args:
    config: of the run.
    folder: of the run; made, or gone on with if it is this config's.
    corpus: where it is loaded already.
    until: the step to pause at, evaluated and saved; None for the end.
    quiet: no progress bar.
    tensorboard: write event files too.
    profile: write a trace of a few steps too.
    on_step: called after each step.

  Raises:
    errors.Interrupted: on SIGTERM or SIGINT, once the state is saved; in all
      processes of the run, whichever was told.
    UserError: if the folder or `init_from` is another model's, or this host
      cannot train it.
  """
  status = job_lib.begin(config, folder, several=True)
  if status in run_folder.DONE:
    return status
  corpus = corpus or packing.load(config.data)
  # Packing may take hours; an exchange of programs waits for minutes at most.
  processes.meet('packed')
  model, train = config.model, config.train
  with (
    job_lib.Job(config, folder, corpus, tensorboard, until) as job,
    meter_lib.stop_signals() as stopping,
    meter_lib.Meter([job], quiet) as meter,
    profiling.Trace(job.folder, profile) as trace,
    jax.set_mesh(job.mesh),
  ):
    state = job.state()

    def take(step: int, metrics: step_lib.Metrics) -> bool:
      """Fetches a step's metrics; returns whether its losses are finite."""
      losses = np.asarray(metrics.losses_G)
      norm = float(metrics.gradient_norm)
      meter.update(1, {job: (step, float(losses[-1]), norm)})
      return bool(np.isfinite(losses).all())

    decisions = processes.Decisions(
      job.start, stopping, train.checkpoint_seconds
    )
    pending: step_lib.Metrics | None = None
    step = job.start
    for step, batch in enumerate(job.batches(), start=job.start + 1):
      trace.before()
      state, metrics = step_lib.train(
        model,
        train.trained,
        state,
        batch,
        job.hyper,
        config.layout.microbatches,
      )
      # One step late: the device computes this one while the host reads the
      # last one's metrics.
      if pending is not None and not take(step - 1, pending):
        return job.diverge(step - 1)
      pending = metrics
      stop, late = decisions.after(step, metrics)
      if step in job.evaluations or stop or late:
        pending = None
        finite = take(step, metrics)
        trace.end()
        if not finite or not job.keep(state, step):
          return job.diverge(step)
        decisions.saved()
        meter.pause()
      on_step(step)
      if stop:
        break
    # Also one that came during the last step: who asked for a stop wants the
    # next run not to begin.
    interrupted = processes.any_of(stopping())
  if interrupted:
    raise errors.Interrupted(
      f'{folder}: stopped after step {step} and saved; '
      'the same command goes on from there'
    )
  return processes.by_first(lambda: run_folder.status(folder))
