"""Runs a sweep's cells, in one process or in several that share the folder.

Who runs a cell holds a lock on its folder; the system lets go of it when the
process dies, so a cell is never trained twice at once and never lost. What is
finished or diverged is never trained again; what was cut off goes on from its
checkpoint.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import dataclasses
import multiprocessing
from multiprocessing import queues
import os
import pathlib
import signal
import sys
import time
import traceback
from typing import Any

from familial.core import cores as cores_lib
from familial.core import errors
from familial.core import progress_bar
from familial.core import run_folder
from familial.core import storage
from familial.model import config as model_config
from familial.studies import populations
from familial.studies import shapes
from familial.training import config as train_config

Cells = Sequence[train_config.RunConfig]
Until = Mapping[str, int]
_ATTEMPTS = 2
_RESTARTS = 3


@dataclasses.dataclass(frozen=True)
class Options:
  """How a sweep trains its runs.

  Attributes:
    workers: number of processes on this host that train runs side by side, each
      on its share of the cores.
    tensorboard: write TensorBoard event files too; needs the extra `tensorboard`.
    profile: write a profiler's trace of a few steps, once a start, to the run's
      folder `profile`.
  """

  workers: int = 1
  tensorboard: bool = False
  profile: bool = False


def folder(workdir: str | os.PathLike[str], cell: str) -> pathlib.Path:
  """Returns a cell's run folder."""
  return pathlib.Path(workdir) / 'cells' / cell


def begun(workdir: str | os.PathLike[str]) -> list[str]:
  """Returns the names of the runs that have rows or a checkpoint."""
  cells = pathlib.Path(workdir) / 'cells'
  rows = cells.glob(f'*/{run_folder.ROWS}')
  checkpoints = cells.glob('*/checkpoints/[0-9]*')
  return sorted(
    {path.parent.name for path in rows}
    | {path.parents[1].name for path in checkpoints}
  )


def check(cells: Cells, corpus: Any) -> None:
  """Raises a UserError if a cell cannot be trained on this text and machine."""
  from familial.training import run  # Brings JAX.

  checked = set()
  for cell in cells:
    train = cell.train
    what = (
      cell.model, cell.layout, train.batch_size, train.eval_batch_size,
      train.eval_tokens,
    )  # fmt: skip
    if what not in checked:
      checked.add(what)
      with errors.within(cell.cell):
        run.check(cell, corpus)


def execute(
  cells: Cells,
  workdir: str | os.PathLike[str],
  options: Options = Options(),
  *,
  until: Until | None = None,
) -> list[str]:
  """Trains the cells that are not done yet; returns those that failed.

  Args:
    cells: of the study.
    workdir: of the study.
    options: how to train.
    until: the step that each named cell is to reach, where it pauses; the
      others stay as they are. None for all cells to their ends.

  Raises:
    UserError: if a cell cannot be trained here; the other workers stop.
    errors.Interrupted: on SIGTERM or SIGINT, once every cell under way is
      saved.
  """
  if until is None:
    until = _ends(cells)
  if _left(cells, workdir, until):
    if options.workers == 1:
      work(cells, workdir, options, until=until)
    else:
      _supervise(cells, workdir, options, until)
  return _left(cells, workdir, until)


def _ends(cells: Cells) -> Until:
  """Returns the last step of each cell."""
  return {cell.cell: cell.train.steps for cell in cells}


def _left(
  cells: Cells, workdir: str | os.PathLike[str], until: Until
) -> list[str]:
  """Returns the cells that are not done: see `execute` for the arguments."""
  return [cell.cell for cell in cells if not _done(cell, workdir, until)]


def _done(
  cell: train_config.RunConfig,
  workdir: str | os.PathLike[str],
  until: Until,
) -> bool:
  """Whether a cell has ended, or is where it is to pause."""
  if cell.cell not in until:
    return True
  run = folder(workdir, cell.cell)
  if run_folder.status(run) in run_folder.DONE:
    return True
  rows = storage.read_rows(run / run_folder.ROWS)
  whole = [row['step'] for row in rows if row['exit'] == row['exits']]
  return bool(whole) and whole[-1] >= until[cell.cell]


def work(
  cells: Cells,
  workdir: str | os.PathLike[str],
  options: Options = Options(),
  *,
  until: Until | None = None,
  quiet: bool = False,
) -> None:
  """Takes cells, group after group, until none is left to take.

  Cells of one shape are trained together where that pays. Those of a group that
  raises are each tried once more, alone, then left to the next call; the
  traceback is in `error.log` of their folders.

  Args:
    cells: of the study.
    workdir: of the study.
    options: `workers` is the number of processes like this one.
    until: as of `execute`.
    quiet: no progress bar.
  """
  # These bring JAX: workers set cores first.
  import jax

  from familial.data import packing
  from familial.training import loop
  from familial.training import population

  if until is None:
    until = _ends(cells)
  corpora: dict[object, packing.Corpus] = {}
  attempts = dict.fromkeys((cell.cell for cell in cells), 0)

  groups = populations.groups(cells, jax.default_backend(), options.workers)

  def train(mine: Cells, group: Cells) -> None:
    """Trains cells of a group, whose folders are held."""
    data = mine[0].data
    if data not in corpora:
      corpora[data] = packing.load(data)
    folders = [folder(workdir, cell.cell) for cell in mine]
    steps = [until[cell.cell] for cell in mine]
    others = f' and {len(mine) - 1} more' if len(mine) > 1 else ''
    progress_bar.log(f'training {mine[0].cell}{others}')
    how: dict[str, Any] = {
      'quiet': quiet,
      'tensorboard': options.tensorboard,
      'profile': options.profile,
    }
    try:
      if len(group) == 1:
        loop.run(mine[0], folders[0], corpora[data], until=steps[0], **how)
      else:
        model = model_config.union([cell.model for cell in group])
        population.run(
          mine, folders, corpora[data], model=model, until=steps, **how
        )
      for run in folders:
        (run / 'error.log').unlink(missing_ok=True)
    except (errors.UserError, errors.Interrupted):
      raise
    except Exception as error:  # Whatever it was, the sweep goes on.
      for cell, run in zip(mine, folders, strict=True):
        storage.write_text(run / 'error.log', traceback.format_exc())
        print(
          f'{cell.cell}: {type(error).__name__}: {error} '
          f'(attempt {attempts[cell.cell]} of {_ATTEMPTS})',
          file=sys.stderr,
        )

  while True:
    waiting = progressed = False
    ready = []
    for cell in cells:
      run = folder(workdir, cell.cell)
      if attempts[cell.cell] >= _ATTEMPTS or _done(cell, workdir, until):
        continue
      # By name: the run's own folder may not be there yet for '..' to leave.
      parent = pathlib.Path(os.path.normpath(run / cell.train.init_from))
      if not cell.train.init_from or run_folder.status(parent) == 'finished':
        ready.append(cell)
      # One that diverged, or failed too often, is not waited for.
      elif (
        run_folder.status(parent) not in run_folder.DONE
        and attempts.get(parent.name, _ATTEMPTS) < _ATTEMPTS
      ):
        waiting = True
    fresh = [cell.cell for cell in ready if not attempts[cell.cell]]
    again = [cell for cell in ready if attempts[cell.cell]]
    rounds = [
      (group, [cell for cell in group if cell.cell in fresh])
      for group in groups
    ] + [([cell], [cell]) for cell in again]
    for group, due in rounds:
      with contextlib.ExitStack() as stack:
        mine = [
          cell
          for cell in due
          if stack.enter_context(storage.lock(folder(workdir, cell.cell)))
          and not _done(cell, workdir, until)
        ]
        waiting = waiting or len(mine) < len(due)
        if mine:
          progressed = True
          for cell in mine:
            attempts[cell.cell] += 1
          train(mine, group)
    if not progressed and not waiting:
      return
    if not progressed:
      time.sleep(0.5)


def _supervise(
  cells: Cells,
  workdir: str | os.PathLike[str],
  options: Options,
  until: Until,
) -> None:
  """Starts workers, shows the sweep's progress, replaces those that die."""
  from familial.training import progress  # Brings JAX, as above.

  # Workers may share a GPU, of which each process would reserve most.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  context = multiprocessing.get_context('spawn')
  cores = cores_lib.available_cores()
  refusals = context.SimpleQueue()

  def start(index: int) -> multiprocessing.process.BaseProcess:
    share = cores[index :: options.workers] or cores
    process = context.Process(
      target=_worker,
      args=(list(cells), str(workdir), options, until, share, refusals),
    )
    process.start()
    return process

  processes: list[multiprocessing.process.BaseProcess] = []
  restarts = _RESTARTS
  told: set[int] = set()
  # Before the first worker starts: a signal would leave it without a parent.
  with progress.stop_signals(quiet=True) as signalled:
    try:
      for index in range(options.workers):
        processes.append(start(index))
      with flops_bar('sweep', sum(_cost(cell, until) for cell in cells)) as bar:
        while True:
          # Looked at before the dead are replaced: all may have died at once.
          alive = any(process.is_alive() for process in processes)
          stopping = signalled() or not refusals.empty()
          if stopping and not told:
            print(
              f'\nfamilial: stopping; {len(processes)} workers save their runs '
              'after the step under way and its evaluation, if one is due',
              file=sys.stderr,
              flush=True,
            )
          bar.n = sum(_spent(cell, workdir) for cell in cells) / 1e9
          done = len(cells) - len(_left(cells, workdir, until))
          begins = '' if done or bar.n else ', compiling'
          bar.set_postfix_str(f'{done} of {len(cells)} cells{begins}')
          for index, process in enumerate(processes):
            if stopping and index not in told:
              told.add(index)
              process.terminate()
            elif process.exitcode and not stopping and restarts:
              restarts -= 1
              print(
                f'a worker ended with status {process.exitcode}; another '
                'takes its place',
                file=sys.stderr,
              )
              processes[index] = start(index)
              alive = True
          if not alive:
            break
          time.sleep(1.0)
    finally:
      for process in processes:
        if process.is_alive():
          process.terminate()
        process.join()
  if signalled():
    raise errors.Interrupted(
      'stopped; every cell under way is saved, and the '
      'same command goes on from there'
    )
  if not refusals.empty():
    raise errors.UserError(refusals.get())


def flops_bar(name: str, flops: float) -> Any:
  """Returns a progress bar of training FLOPs, in units of 1e9."""
  return progress_bar.start(
    total=flops / 1e9,
    unit='GFLOP',
    unit_scale=True,
    desc=name,
    bar_format='{desc}: {percentage:3.0f}% |{bar}|'
    ' {elapsed} < {remaining}{postfix}',
  )


def _worker(
  cells: Cells,
  workdir: str,
  options: Options,
  until: Until,
  cores: list[int],
  refusals: queues.SimpleQueue[str],
) -> None:
  # Ctrl-C reaches the whole group: a run under way saves and stops by itself,
  # and between runs the supervisor says so.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  # Before JAX makes its thread pool, whose size follows from this.
  cores_lib.keep_to(cores)
  try:
    work(cells, workdir, options, until=until, quiet=True)
  except errors.Interrupted:
    sys.exit(0)
  except errors.UserError as error:
    refusals.put(str(error))


def _cost(cell: train_config.RunConfig, until: Until) -> float:
  """Returns a cell's FLOPs to where it is to go."""
  return until.get(cell.cell, 0) / cell.train.steps * shapes.cost(cell)


def _spent(
  cell: train_config.RunConfig, workdir: str | os.PathLike[str]
) -> float:
  """Returns a cell's FLOPs so far, as its progress file says."""
  run = folder(workdir, cell.cell)
  if run_folder.status(run) in run_folder.DONE:
    return shapes.cost(cell)
  rows = storage.read_rows(run / run_folder.PROGRESS)
  return (
    rows[-1]['step'] / cell.train.steps * shapes.cost(cell) if rows else 0.0
  )
