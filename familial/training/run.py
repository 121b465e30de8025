"""A run: its folder, its data, and the files that it writes.

A run resumes from its config and its last checkpoint: a batch is a function of
(seed, step), an evaluation of the state, and rows after the checkpoint are
written again.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import functools
import os
import pathlib
import sys

import jax
import numpy as np

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.core import text
from familial.data import batches as batches_lib
from familial.data import packing
from familial.model import flops as flops_lib
from familial.training import checkpoint
from familial.training import compilation
from familial.training import config as train_config
from familial.training import evaluation
from familial.training import events
from familial.training import gradients
from familial.training import optimizer
from familial.training import processes
from familial.training import rows as rows_lib
from familial.training import sharding
from familial.training import step as step_lib
from familial.training import warm_start

# The files of a run are written by process 0.
_append = processes.on_process_0(storage.append)
_truncate = processes.on_process_0(run_folder.truncate)
_copy = processes.on_process_0(storage.write_bytes)
_print = processes.on_process_0(print)


def begin(
  config: train_config.RunConfig,
  folder: str | os.PathLike[str],
  *,
  several: bool = False,
) -> str:
  """Sets up the process and checks a run's folder; returns the run's status.

  A finished run whose config asks for more steps is `running`. Nothing is
  written: `Run` opens the folder when the text has been checked too.

  Args:
    config: config of the run.
    folder: folder of the run.
    several: whether several processes may train the run.

  Raises:
    UserError: if the folder or `init_from` belongs to another model.
  """
  compilation.prepare(config.data, several=several)
  folder = pathlib.Path(folder)

  def check() -> str:
    _check_folder(folder, config)
    status = run_folder.status(folder)
    more = status == 'finished' and _reached(folder) < config.train.steps
    return 'running' if more else status

  status = processes.broadcast_from_0(check)
  _lineage(folder, config)
  return status


def check(config: train_config.RunConfig, corpus: packing.Corpus) -> None:
  """Raises a UserError if a run cannot be trained on this text and machine."""
  mesh, train = sharding.mesh(config), config.train
  part = sharding.part(train.batch_size, mesh)
  batches_lib.Batches(corpus, config.data, train.batch_size, train.seed, *part)
  batches_lib.heldout(
    corpus, config.data, train.eval_batch_size, train.eval_batch_size
  )


class Run:
  """An unfinished run with its files open; a context.

  Attributes:
    config: its config.
    folder: its folder.
    mesh: mesh of the devices.
    hyper: arguments of its compiled step.
    source: training batches, by step.
    until: the step to reach.
    evaluations: the steps after which it is evaluated, `until` among them.
    start: the step that it continues from.
  """

  def __init__(
    self,
    config: train_config.RunConfig,
    folder: str | os.PathLike[str],
    corpus: packing.Corpus,
    tensorboard: bool,
    until: int | None = None,
  ):
    """Opens the files and prepares the data.

    Args:
      config: config of the run.
      folder: folder of the run, opened by `begin`.
      corpus: corpus of the run.
      tensorboard: whether to write event files too.
      until: the step to pause at, evaluated and saved; None for the end.
    """
    folder = pathlib.Path(folder)
    train = config.train
    events.check(tensorboard)
    lineage = _with_corpus(folder, config, corpus)
    self.config, self.folder = config, folder
    self.mesh = sharding.mesh(config)
    self.hyper = optimizer.hyper(train, config.model.exits)
    self.source = batches_lib.Batches(
      corpus,
      config.data,
      train.batch_size,
      train.seed,
      *sharding.part(train.batch_size, self.mesh),
      first=lineage.get('inherited_windows', 0),
    )
    self.until = train.steps if until is None else min(until, train.steps)
    self.evaluations = train.evaluated | {self.until}
    self._inherited = lineage['inherited_flops']
    self._corpus = corpus
    heldout = batches_lib.heldout(
      corpus, config.data, train.eval_tokens, train.eval_batch_size
    )
    self._heldout = [sharding.whole(batch, self.mesh) for batch in heldout]
    self._bytes_per_token = batches_lib.heldout_bytes_per_token(corpus, heldout)
    # No process writes before all have checked.
    processes.barrier('checked')
    processes.broadcast_from_0(lambda: _open(folder, config, lineage))
    if corpus.tokenizer_path:
      content = pathlib.Path(corpus.tokenizer_path).read_bytes()
      _copy(folder / run_folder.TOKENIZER, content)
    self._progress: list[storage.Row] = []
    with contextlib.ExitStack() as stack:
      processes.broadcast_from_0(
        lambda: _set_metrics_aside(folder / 'checkpoints')
      )
      self._checkpoints = checkpoint.Checkpoints(
        folder / 'checkpoints', train.keep
      )
      stack.callback(self._checkpoints.close)
      self._latest = processes.broadcast_from_0(self._checkpoints.latest)
      self.start = self._latest or 0
      first = processes.index() == 0
      self._scalars = stack.enter_context(
        events.writer(folder, tensorboard and first, self.start)
      )
      self._open = stack.pop_all()

  def __enter__(self) -> 'Run':
    return self

  def __exit__(
    self, kind: type[BaseException] | None, *exception: object
  ) -> None:
    # Closing waits for the other processes, which may not come after an error.
    if kind is None or processes.count() == 1:
      self._open.close()

  def describe(self) -> Iterator[str]:
    """Yields lines on what will be trained: model, text, steps and devices."""
    config, corpus = self.config, self._corpus
    model, steps = config.model, self.until - self.start
    sizes = ', '.join(
      text.amount(flops_lib.params(model, exit_))
      for exit_ in range(1, model.granularity + 1)
    )
    yield (
      f'{self.folder}: {model.width} wide, {model.depth} layers; '
      f'{text.count(model.granularity, "exit")} after '
      f'{", ".join(map(str, model.exits))} of {sizes} parameters, and '
      f'{text.amount(flops_lib.params_embedding(model, model.granularity))} of '
      'embeddings'
    )
    yield (
      f'corpus {corpus.name} ({corpus.fingerprint}): '
      f'{len(corpus.train.documents) - 1:,} documents of '
      f'{text.amount(len(corpus.train.tokens))} tokens, '
      f'{len(corpus.heldout.documents) - 1:,} of '
      f'{text.amount(len(corpus.heldout.tokens))} held out'
    )
    yield from corpus.notes
    tokens = steps * self.source.tokens_per_step
    flops = tokens * flops_lib.train(
      model, config.data.seq_len, config.train.trained
    )
    devices = self.mesh.devices.ravel()
    done = f' from step {self.start}' if self.start else ''
    yield (
      f'{steps:,} steps{done} of {self.source.tokens_per_step:,} tokens: '
      f'{text.amount(tokens)}, {tokens / self.source.epoch_tokens:.2f} epochs, '
      f'{flops:.3g} FLOPs, on {len(devices)} x {devices[0].device_kind}'
    )

  def state(self) -> step_lib.State:
    """Returns the state that the run starts or continues from.

    Rows that were written after that state are dropped.
    """
    train, model = self.config.train, self.config.model
    with jax.set_mesh(self.mesh):
      state = step_lib.init(
        model, train.trained, jax.random.key(train.seed), self.hyper
      )
    if train.init_from and self._latest is None:
      state = warm_start.graft(state, self.folder, self.config)
    state = self.place(state)
    state = self._restored(state)
    # A run killed between its last two writes lacks its last rows.
    done = self.start == self.until
    # The folder may have been renamed, and the steps may have become more.
    _truncate(
      self.folder / run_folder.ROWS,
      self.start - done,
      run=self.folder.absolute().name,
      status='running',
    )
    for extra in (run_folder.PROGRESS, run_folder.GRADIENTS):
      _truncate(self.folder / extra, self.start)
    if done:
      self._write(self.start, self._evaluate(state))
    return state

  def _restored(self, state: step_lib.State) -> step_lib.State:
    """Returns the last checkpoint that can be read, else the given state."""
    while self._latest is not None:
      damage = None
      try:
        restored = self._checkpoints.restore(state, self._latest)
      except checkpoint.DamagedError as error:
        damage = error
      # Each process reads a part.
      if not processes.any_of(damage is not None):
        return restored
      folder = self.folder.absolute() / 'checkpoints'
      damage = damage or checkpoint.DamagedError(
        folder / str(self._latest), 'what another process needs'
      )
      processes.broadcast_from_0(
        functools.partial(checkpoint.set_aside, folder, damage)
      )
      self._checkpoints.reload()
      self._latest = processes.broadcast_from_0(self._checkpoints.latest)
      self.start = self._latest or 0
    return state

  def place(self, state: step_lib.State) -> step_lib.State:
    """Returns a state with the shardings of the run's programs."""
    return sharding.place(state, self.mesh)

  def batches(self) -> Iterator[dict[str, jax.Array]]:
    """Yields the batches of the remaining steps, as global arrays."""
    steps = range(self.start, self.until)
    for _, batch in zip(
      steps, batches_lib.iterate(self.source, self.start), strict=False
    ):
      yield sharding.batch(batch, self.mesh)

  def save(self, state: step_lib.State, step: int) -> bool:
    """Saves the state after a step; evaluates it first if that is due.

    Args:
      state: the state; its training loss is known to be finite.
      step: steps done.

    Returns:
      Whether the held-out losses are finite; otherwise nothing is written.
    """
    self.flush()
    if step not in self.evaluations:
      self._checkpoints.save(state)
      return True
    losses = self._evaluate(state)
    if not np.isfinite(losses).all():
      return False
    if self.config.train.gradients:
      with jax.set_mesh(self.mesh):
        cosines = gradients.cosines(
          state.params, self.config.model, self._heldout[0]
        )
      path = self.folder / run_folder.GRADIENTS
      _append(path, [{'step': step, **row._asdict()} for row in cosines])
    # Rows are written before their checkpoint, so that resuming from it keeps
    # them. The rows of the last step declare the run done, so they are written
    # when the checkpoint is on disk.
    if step < self.until:
      self._write(step, losses)
      self._checkpoints.save(state, float(losses[-1]))
    else:
      self._checkpoints.save(state, float(losses[-1]))
      self._checkpoints.wait()
      self._write(step, losses)
    self._scalars(
      step, {f'heldout/exit_{i}': loss for i, loss in enumerate(losses, 1)}
    )
    return True

  def log(self, step: int, values: Mapping[str, float]) -> None:
    """Adds a row of finite numbers to `progress.jsonl`, written by `flush`."""
    self._progress.append({'step': step, **values})
    self._scalars(step, {f'train/{k}': v for k, v in values.items()})

  def flush(self) -> None:
    """Writes the rows that `log` has added."""
    if self._progress:
      _append(self.folder / run_folder.PROGRESS, self._progress)
      self._progress.clear()

  def diverge(self, step: int) -> str:
    """Records that the loss was not finite at a step; returns `diverged`."""
    self.flush()
    self._write(step, None)
    _print(
      f'{self.config.cell}: the loss is not finite at step {step}; '
      'recorded as diverged',
      file=sys.stderr,
    )
    return 'diverged'

  def _evaluate(self, state: step_lib.State) -> np.ndarray:
    """Returns each exit's held-out loss [G]."""
    with jax.set_mesh(self.mesh):
      return evaluation.losses(state.params, self.config.model, self._heldout)

  def _write(self, step: int, losses: np.ndarray | None) -> None:
    """Writes the rows of an evaluation; `losses` is None if the run diverged."""
    if losses is None:
      status = 'diverged'
    else:
      last = step == self.config.train.steps
      status = 'finished' if last else 'running'
    before = self.source.first * self.config.data.seq_len
    seen = before + step * self.source.tokens_per_step
    epochs = seen / self.source.epoch_tokens
    _append(
      self.folder / run_folder.ROWS,
      rows_lib.of_evaluation(
        self.config,
        self.folder.absolute().name,
        self._corpus.fingerprint,
        step,
        self._inherited,
        epochs,
        losses,
        self._bytes_per_token,
        status,
      ),
    )


def _set_metrics_aside(folder: pathlib.Path) -> None:
  """Renames checkpoints with damaged metrics, with which no folder opens."""
  while True:
    try:
      return checkpoint.check_metrics(folder.absolute())
    except checkpoint.DamagedError as damage:
      checkpoint.set_aside(folder.absolute(), damage)


def _check_folder(folder: pathlib.Path, config: train_config.RunConfig) -> None:
  """Raises a UserError if a folder cannot be written or holds another run.

  A run without a checkpoint has nothing to lose: its config may change.
  """
  if _is_unstarted(folder):
    storage.check_writable(folder)
    return
  path = folder / 'lineage.json'
  if path.exists() and 'expand' in storage.read_json(path):
    raise errors.UserError(
      f'{folder} holds a grown model; it is trained on in another workdir, with '
      'train.init_from'
    )
  run_folder.check_folder(folder, config, _free(folder, config))


def _free(
  folder: pathlib.Path, config: train_config.RunConfig
) -> tuple[str, ...]:
  """Returns the keys in which a config may differ from a folder's.

  Raises:
    UserError: if it asks for other steps than those that the folder's run took.
  """
  if not (folder / 'config.json').exists():
    return ()
  changes = dict.fromkeys(
    key for key, *_ in run_folder.differences(folder, config)
  )
  free: tuple[str, ...] = train_config.FREE
  if changes.keys() & {*train_config.LATER, 'train.init_from'}:
    values = storage.read_own(folder / 'config.json')
    values.pop('schema', None)
    was = train_config.read(values)
    if _name(was.train.init_from) == _name(config.train.init_from):
      free += ('train.init_from',)
    steps, exits = _reached(folder), config.model.exits
    if optimizer.same_steps(was.train, config.train, exits, steps):
      free += train_config.LATER
    elif 'train.steps' in changes:
      raise errors.UserError(
        f'{folder} has taken {steps} of {was.train.steps} steps, and '
        f'train.steps = {config.train.steps} with train.schedule = '
        f'{config.train.schedule!r} would have taken others: a run takes more '
        "steps if its schedule is 'constant', or 'wsd' before the decay; train it "
        f'on in another workdir, with --config=experiments/train_on.py:{folder}'
      )
  return free


def _name(init_from: str) -> str:
  return pathlib.PurePath(init_from).name


def _reached(folder: pathlib.Path) -> int:
  """Returns the last step of a run that is on disk."""
  checkpoints = (folder / 'checkpoints').glob('[0-9]*')
  steps = [int(path.name) for path in checkpoints if path.name.isdecimal()]
  return max(steps, default=0)


def _is_unstarted(folder: pathlib.Path) -> bool:
  """Whether a folder is that of a run which has neither rows nor checkpoints."""
  return (
    (folder / 'lineage.json').exists()
    and not (folder / run_folder.ROWS).exists()
    and not any((folder / 'checkpoints').glob('[0-9]*'))
  )


def _lineage(
  folder: pathlib.Path, config: train_config.RunConfig
) -> storage.Row:
  """Returns a run's lineage: its folder's, or that of its parent."""
  path = folder / 'lineage.json'
  # A run with a checkpoint of its own no longer needs its parent.
  if path.exists() and not _is_unstarted(folder):
    lineage: storage.Row = storage.read_json(path)
    return lineage
  return warm_start.lineage(folder, config)


def _with_corpus(
  folder: pathlib.Path,
  config: train_config.RunConfig,
  corpus: packing.Corpus,
) -> storage.Row:
  """Returns a run's lineage with its corpus; refuses a corpus of another run."""
  lineage = processes.broadcast_from_0(lambda: _lineage(folder, config))
  known = lineage.get('corpus')
  # Every process compares, because hosts may hold different texts.
  fingerprint = corpus.fingerprint
  first = processes.broadcast_from_0(lambda: known or fingerprint)
  if first != fingerprint:
    raise errors.UserError(
      f'{folder} was begun on corpus {first}, not {fingerprint}, which is what '
      'data.corpus gives here now; use another workdir, or that text; a model is '
      f'trained on other text with --config=experiments/train_on.py:{folder}'
    )
  if known is None:
    warm_start.check_tokenizer(folder, config, corpus)
    lineage = warm_start.on_corpus(lineage, fingerprint)
  return lineage


def _open(
  folder: pathlib.Path, config: train_config.RunConfig, lineage: storage.Row
) -> None:
  """Makes the folder of a run that is to begin, or opens that of a begun one."""
  if _is_unstarted(folder):
    for name in ('config.json', run_folder.TOKENIZER):
      (folder / name).unlink(missing_ok=True)
  path = folder / 'lineage.json'
  if not path.exists() or storage.read_json(path) != lineage:
    storage.write_json(path, lineage)
  run_folder.write_config(folder, config)
