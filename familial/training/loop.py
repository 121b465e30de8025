"""One run, from its config to its last row; resumable at any moment.

What a run needs to go on is its config and its last checkpoint: a batch is a
function of (seed, step), the evaluation of the state alone, and rows after the
checkpoint are written again. Order of a (re)start: open the folder, compile,
restore the last checkpoint if there is one, drop later rows, go on.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import os
import pathlib
import shutil
import signal
import sys
import time
from typing import Any

import jax
import numpy as np
import tqdm

from familial import errors
from familial import evaluation
from familial import flops as flops_lib
from familial import records
from familial.analysis import gradients
from familial.data import batches as batches_lib
from familial.data import packing
from familial.model import attention
from familial.training import checkpoint
from familial.training import compilation
from familial.training import config as train_config
from familial.training import events
from familial.training import optimizer
from familial.training import parents
from familial.training import sharding
from familial.training import step as step_lib

_PROGRESS_SECONDS = 5.0


def run(
  config: train_config.RunConfig,
  folder: str | os.PathLike[str],
  corpus: packing.Corpus | None = None,
  *,
  quiet: bool = False,
  tensorboard: bool = False,
  on_step: Callable[[int], None] = lambda step: None,
) -> str:
  """Trains a run to its end and returns `finished` or `diverged`.

  Args:
    config: of the run.
    folder: of the run; made, or gone on with if it is this config's.
    corpus: where it is loaded already.
    quiet: no progress bar.
    tensorboard: write event files too.
    on_step: called after each step.

  Raises:
    errors.Interrupted: on SIGTERM or SIGINT, once the state is saved.
    UserError: if the folder or `init_from` is another model's, or this host
      cannot train it.
  """
  compilation.prepare(config.data)
  attention.check(config.model.attention)
  folder = pathlib.Path(folder)
  records.open_run(folder, config, parents.lineage(folder, config))
  if (status := records.status(folder)) in ('finished', 'diverged'):
    return status
  corpus = corpus or packing.load(config.data)
  lineage = _check_corpus(folder, corpus.fingerprint)
  if corpus.tokenizer_path:
    shutil.copyfile(corpus.tokenizer_path, folder / 'tokenizer.json')
  job = _Job(config, folder, corpus, lineage['inherited_flops'])
  checkpoints = checkpoint.Checkpoints(
    folder / 'checkpoints', config.train.keep
  )
  with contextlib.ExitStack() as stack:
    stack.callback(checkpoints.close)
    state = job.initial_state()
    if checkpoints.latest() is not None:
      state = checkpoints.restore(state)
    start = int(state.step)
    done = start == config.train.steps  # Killed between the last two writes.
    records.truncate(folder / records.ROWS, start - done)
    for extra in (records.PROGRESS, records.GRADIENTS):
      records.truncate(folder / extra, start)
    stopping = stack.enter_context(_stop_signals())
    meter = stack.enter_context(_Meter(job, start, quiet))
    writer = stack.enter_context(events.writer(folder, tensorboard, start))
    if done:
      job.write(start, job.evaluate(state))
    saved = time.monotonic()
    pending: step_lib.Metrics | None = None
    step = start
    for step, batch in enumerate(job.batches(start), start=start + 1):
      state, metrics = step_lib.train(
        config.model, config.train.trained, state, batch, job.hyper
      )
      # One step late: the device computes this one while the host reads the
      # last one's metrics.
      if pending is not None and not meter.update(step - 1, pending, writer):
        return job.diverge(step - 1)
      pending = metrics
      stop, evaluating = stopping(), step in job.evaluations
      late = time.monotonic() - saved > config.train.checkpoint_seconds
      if evaluating or stop or late:
        # Nothing is saved before its loss is seen to be finite.
        if not meter.update(step, metrics, writer):
          return job.diverge(step)
        pending = None
        if evaluating:
          losses = job.evaluate(state)
          if not np.isfinite(losses).all():
            return job.diverge(step)
          job.compare_gradients(state, step)
          # Rows before their checkpoint: resuming from it keeps them. The last
          # ones say `finished`, so they come when it is safely on disk.
          if step < config.train.steps:
            job.write(step, losses)
            checkpoints.save(state, float(losses[-1]))
          else:
            checkpoints.save(state, float(losses[-1]))
            checkpoints.wait()
            job.write(step, losses)
          writer.scalars(
            step,
            {f'heldout/exit_{i}': loss for i, loss in enumerate(losses, 1)},
          )
        else:
          checkpoints.save(state)
        saved = time.monotonic()
        meter.pause()
      on_step(step)
      if stop:
        break
    # Also one that came during the last step: who asked for a stop wants the
    # next run not to begin.
    if stopping():
      checkpoints.close()
      raise errors.Interrupted(
        f'{folder}: stopped after step {step} and saved; '
        'the same command goes on from there'
      )
  return records.status(folder)


class _Job:
  """What stays the same during a run."""

  def __init__(
    self,
    config: train_config.RunConfig,
    folder: pathlib.Path,
    corpus: packing.Corpus,
    inherited: float,
  ):
    train = config.train
    self.config, self.folder, self.corpus = config, folder, corpus
    self.inherited = inherited
    self.hyper = optimizer.hyper(train, config.model.exits)
    self.mesh = sharding.mesh(train.batch_size, train.eval_batch_size)
    self.evaluations = {
      round(train.steps * i / train.evaluations)
      for i in range(1, train.evaluations + 1)
    }
    self._source = batches_lib.Batches(
      corpus,
      config.data,
      train.batch_size,
      train.seed,
      jax.process_index(),
      jax.process_count(),
    )
    heldout = batches_lib.heldout(
      corpus, config.data, train.eval_tokens, train.eval_batch_size
    )
    self._heldout = [sharding.batch(batch, self.mesh) for batch in heldout]
    self._bytes_per_token = batches_lib.heldout_bytes_per_token(corpus, heldout)

  def initial_state(self) -> step_lib.State:
    train, model = self.config.train, self.config.model
    state = step_lib.init(
      model, train.trained, jax.random.key(train.seed), self.hyper
    )
    if train.init_from:
      state = state._replace(
        params=parents.graft(state.params, self.folder, self.config)
      )
    return sharding.replicate(state, self.mesh)

  def batches(self, start: int) -> Iterator[dict[str, Any]]:
    steps = range(start, self.config.train.steps)
    for _, batch in zip(
      steps, batches_lib.iterate(self._source, start), strict=False
    ):
      yield sharding.batch(batch, self.mesh)

  def evaluate(self, state: step_lib.State) -> np.ndarray:
    """Returns each exit's held-out loss [G]."""
    return evaluation.losses(state.params, self.config.model, self._heldout)

  def compare_gradients(self, state: step_lib.State, step: int) -> None:
    """Writes the cosines of the exits' gradients, where they were asked for."""
    if self.config.train.gradients:
      found = gradients.cosines(
        state.params, self.config.model, self._heldout[0]
      )
      path = self.folder / records.GRADIENTS
      records.append(path, [{'step': step, **row} for row in found])

  def write(self, step: int, losses: np.ndarray | None) -> None:
    """Writes the rows of an evaluation; None for a run that diverged."""
    if losses is None:
      status = 'diverged'
    else:
      last = step == self.config.train.steps
      status = 'finished' if last else 'running'
    epochs = step * self._source.tokens_per_step / self._source.epoch_tokens
    records.append(
      self.folder / records.ROWS,
      records.evaluation_rows(
        self.config,
        self.folder.name,
        self.corpus.fingerprint,
        step,
        self.inherited,
        epochs,
        losses,
        self._bytes_per_token,
        status,
      ),
    )

  def diverge(self, step: int) -> str:
    """Records that a loss was not finite; returns `diverged`."""
    self.write(step, None)
    print(
      f'{self.config.cell}: the loss is not finite at step {step}; '
      'recorded as diverged',
      file=sys.stderr,
    )
    return 'diverged'


class _Meter:
  """The progress bar and `progress.jsonl`: speed without compiles or saves."""

  def __init__(self, job: _Job, start: int, quiet: bool):
    config = job.config
    self._tokens = config.train.batch_size * config.data.seq_len
    self._flops = self._tokens * flops_lib.train(
      config.model, config.data.seq_len, config.train.trained
    )
    self._path = job.folder / records.PROGRESS
    self._bar = tqdm.tqdm(
      total=config.train.steps,
      initial=start,
      desc=config.cell,
      unit='step',
      disable=quiet,
      leave=False,
      file=sys.stderr,
    )
    self._since: float | None = None
    self._steps = 0
    self._seconds = 0.0
    self._written = time.monotonic()

  def __enter__(self) -> '_Meter':
    return self

  def __exit__(self, *unused: object) -> None:
    self._bar.close()

  def pause(self) -> None:
    """Leaves out of the speed what happens until the next update."""
    self._since = None

  def update(
    self, step: int, metrics: step_lib.Metrics, writer: events.Writer
  ) -> bool:
    """Takes a step's metrics; returns whether its losses are finite."""
    losses = np.asarray(metrics.losses_G)
    now = time.monotonic()
    if self._since is not None:
      self._steps += 1
      self._seconds += now - self._since
    self._since = now
    self._bar.update(1)
    due = now - self._written > _PROGRESS_SECONDS
    if self._steps and (due or step == self._bar.total):
      self._written = now
      speed = self._steps / self._seconds
      values = {
        'loss': float(losses[-1]),
        'gradient_norm': float(metrics.gradient_norm),
        'tokens_per_second': speed * self._tokens,
        'flops_per_second': speed * self._flops,
      }
      self._bar.set_postfix_str(
        f'loss {values["loss"]:.3f}, {values["tokens_per_second"]:,.0f} '
        f'tokens/s, {values["flops_per_second"] / 1e9:.1f} GFLOP/s'
      )
      if np.isfinite(list(values.values())).all():
        records.append(self._path, [{'step': step, **values}])
        writer.scalars(step, {f'train/{k}': v for k, v in values.items()})
    return bool(np.isfinite(losses).all())


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
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


def _check_corpus(folder: pathlib.Path, fingerprint: str) -> records.Row:
  """Returns a run's lineage with its corpus noted; refuses another corpus."""
  path = folder / 'lineage.json'
  lineage = records.read_json(path)
  if 'corpus' not in lineage:
    lineage['corpus'] = fingerprint
    records.write_json(path, lineage)
  elif lineage['corpus'] != fingerprint:
    raise errors.UserError(
      f'{folder} was begun on corpus {lineage["corpus"]}, not {fingerprint}, '
      'which is what data.corpus gives here now; use another workdir, or that '
      'text'
    )
  return lineage
