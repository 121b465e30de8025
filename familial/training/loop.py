"""Training of a single run, resumable at any moment.

Order of a start: open the folder, compile, restore the last checkpoint if there
is one, drop later rows, continue.
"""

from collections.abc import Callable
import os

import jax
import numpy as np

from familial.core import errors
from familial.core import run_folder
from familial.data import packing
from familial.training import config as train_config
from familial.training import processes
from familial.training import progress
from familial.training import run as run_lib
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
  announce: bool = False,
  on_step: Callable[[int], None] = lambda step: None,
) -> str:
  """Trains a run and returns its status.

  Args:
    config: config of the run.
    folder: folder of the run; created, or continued if it has this config.
    corpus: corpus of the run if it is loaded already.
    until: the step to pause at, evaluated and saved; None for the end.
    quiet: whether to show no progress bar.
    tensorboard: whether to write event files too.
    profile: whether to write a trace of a few steps too.
    announce: whether to print what is trained before, and how long it takes once
      the first steps were timed.
    on_step: called after each step.

  Returns:
    `finished` or `diverged`; `running` after a pause.

  Raises:
    errors.Interrupted: on SIGTERM or SIGINT in any process, in all processes,
      once the state is saved.
    UserError: if the folder or `init_from` belongs to another model, or this
      host cannot train the run.
  """
  status = run_lib.begin(config, folder, several=True)
  if status in run_folder.DONE:
    return status
  corpus = corpus or packing.load(config.data)
  # Packing may take hours, while collectives time out after minutes.
  processes.barrier('packed')
  model, train = config.model, config.train
  with (
    run_lib.Run(config, folder, corpus, tensorboard, until) as current,
    progress.stop_signals(quiet) as stopping,
    progress.Reporter([current], quiet, profile, announce) as reporter,
    jax.set_mesh(current.mesh),
  ):
    state = current.state()
    if announce and processes.index() == 0:
      print(*current.describe(), sep='\n', flush=True)

    def report(step: int, metrics: step_lib.Metrics) -> bool:
      """Fetches a step's metrics; returns whether its losses are finite."""
      losses_G = np.asarray(metrics.losses_G)
      norm = float(metrics.gradient_norm)
      observed = progress.Observation(step, float(losses_G[-1]), norm)
      reporter.update(1, {current: [observed]})
      return bool(np.isfinite(losses_G).all())

    decisions = processes.Decisions(
      current.start, stopping, train.checkpoint_seconds
    )
    pending: step_lib.Metrics | None = None
    step = current.start
    for step, batch in enumerate(current.batches(), start=current.start + 1):
      reporter.before_dispatch()
      state, metrics = step_lib.train(
        model,
        train.trained,
        state,
        batch,
        current.hyper,
        config.layout.microbatches,
      )
      # One step late: the device computes this step while the host reads the
      # metrics of the last one.
      if pending is not None and not report(step - 1, pending):
        return current.diverge(step - 1)
      pending = metrics
      stop, save = decisions.after(step, metrics)
      if step in current.evaluations or stop or save:
        pending = None
        finite = report(step, metrics)
        reporter.pause()
        if not finite or not current.save(state, step):
          return current.diverge(step)
        decisions.saved()
      on_step(step)
      if stop:
        break
    # A signal during the last step counts too: the next run must not begin.
    interrupted = processes.any_of(stopping())
  if interrupted:
    raise errors.Interrupted(
      f'{folder}: stopped after step {step} and saved; '
      'the same command goes on from there'
    )
  return processes.broadcast_from_0(lambda: run_folder.status(folder))
