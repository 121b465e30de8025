"""Plans: the runs of a study and their cost."""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import process
import dataclasses
import math
import multiprocessing
import pathlib
from typing import Any

import numpy as np

from familial.core import cores as cores_lib
from familial.core import errors
from familial.core import storage
from familial.core import text as text_lib
from familial.model import config as model_config
from familial.model import flops as flops_lib
from familial.studies import populations
from familial.studies import shapes
from familial.training import config as train_config

Cells = Sequence[train_config.RunConfig]
MAX_EPOCHS = 4.0
_MAX_ERROR = 0.005
_CALIBRATION_STEPS = 5


@dataclasses.dataclass(frozen=True)
class Speed:
  """Speed of this machine on a study's narrowest and widest models.

  Attributes:
    widths: of the two.
    flops_per_second: of one worker, for each.
    compile_seconds: of one program.
    backend: that was timed.
  """

  widths: tuple[int, int]
  flops_per_second: tuple[float, float]
  compile_seconds: float
  backend: str

  def at(self, width: int) -> float:
    """Returns FLOP/s at a width, linear in the logarithms."""
    return float(
      np.exp(
        np.interp(
          math.log(width), np.log(self.widths), np.log(self.flops_per_second)
        )
      )
    )


def make(
  kind: str,
  study: shapes.TrainedConfig,
  cells: Cells,
  corpus: Any,
  speed: Speed,
  workers: int,
) -> dict[str, Any]:
  """Returns the plan as `plan.json` holds it.

  Args:
    kind: of the study: `isoflop` or `families`.
    study: its config.
    cells: all its runs.
    corpus: the packed corpus.
    speed: of one worker.
    workers: how many.
  """
  rows = [_row(cell, corpus, speed) for cell in cells]
  programs = _programs(cells, speed.backend, workers)
  return {
    'schema': storage.SCHEMA,
    'study': kind,
    'title': study.title,
    'corpus': {
      'name': corpus.name,
      'fingerprint': corpus.fingerprint,
      'train_tokens': len(corpus.train.tokens),
      'heldout_tokens': len(corpus.heldout.tokens),
      'train_bytes': corpus.train.bytes,
      'vocab_size': corpus.vocab_size,
      'tokenizer': study.data.tokenizer,
      'seq_len': study.data.seq_len,
    },
    'cells': rows,
    'flops': sum(row['flops'] for row in rows),
    'seconds': _total_seconds(rows, programs, speed, workers),
    'workers': workers,
    'speed': dataclasses.asdict(speed),
    'programs': programs,
    'warnings': _warnings(rows),
  }


def within(
  seconds: float, cells: Cells, speed: Speed, workers: int
) -> list[train_config.RunConfig]:
  """Returns the cells of the largest set of lower budgets that fits a time.

  Args:
    seconds: the limit.
    cells: of the study.
    speed: of one worker.
    workers: how many.

  Raises:
    UserError: if not even the grid's lowest budget fits.
  """
  lowest = min(cell.budget for cell in cells if cell.arm == 'grid')
  budgets = {cell.budget for cell in cells if cell.budget >= lowest}
  for top in sorted(budgets, reverse=True):
    affordable = [cell for cell in cells if cell.budget <= top]
    names = {cell.cell for cell in affordable}
    # Not without the run that it starts from.
    kept = [
      cell
      for cell in affordable
      if not cell.train.init_from
      or pathlib.Path(cell.train.init_from).name in names
    ]
    spent = [{'seconds': _seconds(cell, speed)} for cell in kept]
    total = _total_seconds(
      spent, _programs(kept, speed.backend, workers), speed, workers
    )
    if total <= seconds:
      return kept
  raise errors.UserError(
    f'grid.seconds: {seconds:g} is too little for the lowest budget, which '
    f'takes about {total:.0f} s here'
  )


def text(plan: Mapping[str, Any], more: Iterable[str] = ()) -> str:
  """Returns a plan as a table of its runs and its cost, then further lines."""
  rows = [
    (
      row['cell'],
      row['arm'],
      ','.join(map(str, row['exit_layers'])),
      text_lib.amount(row['params_full']),
      text_lib.amount(row['tokens']),
      str(row['steps']),
      str(row['batch_tokens']),
      f'{row["flops"]:.2e}',
      f'{row["epochs"]:.2f}',
      text_lib.duration(row['seconds']),
    )
    for row in plan['cells']
  ]
  head = 'cell arm exits N D steps batch C epochs time'.split()
  corpus, speed = plan['corpus'], plan['speed']['flops_per_second']
  return '\n'.join(
    [
      plan['title'],
      '',
      text_lib.table(head, rows, align='lll'),
      '',
      f'corpus {corpus["name"]} ({corpus["fingerprint"]}): '
      f'{text_lib.amount(corpus["train_tokens"])} training tokens, '
      f'{text_lib.amount(corpus["heldout_tokens"])} held out',
      f'{len(rows)} runs, {plan["flops"]:.3g} FLOPs, {plan["programs"]} programs '
      f'to compile; about {text_lib.duration(plan["seconds"])} with '
      f'{plan["workers"]} worker(s) at {speed[0] / 1e9:.3g} to '
      f'{speed[1] / 1e9:.3g} GFLOP/s each',
      *more,
      *(f'warning: {warning}' for warning in plan['warnings']),
    ]
  )


def calibrate(cells: Cells, workers: int) -> Speed:
  """Returns the speed of one worker, timing a few steps of two models.

  The programs it compiles are kept: the sweep does not compile them again.
  """
  by_size = sorted(
    cells,
    key=lambda cell: (cell.model.width, flops_lib.params_full(cell.model)),
  )
  cores = cores_lib.available_cores()
  share = cores[: max(1, len(cores) // workers)]
  spawn = multiprocessing.get_context('spawn')
  with futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
    calibration = pool.submit(_time_steps, [by_size[0], by_size[-1]], share)
    try:
      timed, backend = calibration.result()
    except process.BrokenProcessPool:
      raise errors.UserError(
        f'{by_size[-1].cell}: the process that timed its steps was killed, as '
        'for want of memory; a smaller model or batch is needed'
      ) from None
  return Speed(
    (by_size[0].model.width, by_size[-1].model.width),
    (timed[0][0], timed[1][0]),
    (timed[0][1] + timed[1][1]) / 2,
    backend,
  )


def _time_steps(
  cells: list[train_config.RunConfig], cores: list[int]
) -> tuple[list[tuple[float, float]], str]:
  cores_lib.keep_to(cores)
  import jax

  from familial.training import timing

  timed = [timing.measure(cell, _CALIBRATION_STEPS) for cell in cells]
  return timed, jax.default_backend()


def _row(
  cell: train_config.RunConfig, corpus: Any, speed: Speed
) -> dict[str, Any]:
  model, train = cell.model, cell.train
  tokens = shapes.tokens(cell)
  return {
    'cell': cell.cell,
    'arm': cell.arm,
    'budget': cell.budget,
    'width': model.width,
    'depth': model.depth,
    'exits': model.granularity,
    'exit_layers': list(model.exits),
    'exit_kind': model.exit_kind,
    'params_full': flops_lib.params_full(model),
    'tokens': tokens,
    'steps': train.steps,
    'batch_tokens': train.batch_size * cell.data.seq_len,
    'flops': shapes.cost(cell),
    'flops_6nd': flops_lib.six_nd(model, tokens),
    'epochs': tokens / len(corpus.train.tokens),
    'base_lr': train.base_lr,
    'seed': train.seed,
    'seconds': _seconds(cell, speed),
  }


def _seconds(cell: train_config.RunConfig, speed: Speed) -> float:
  """Returns the time of a run's steps and evaluations."""
  evaluation = (
    cell.train.evaluations
    * cell.train.eval_tokens
    * flops_lib.forward(cell.model, cell.data.seq_len)
  )
  return (shapes.cost(cell) + evaluation) / speed.at(cell.model.width)


def _programs(cells: Cells, backend: str, workers: int) -> int:
  """Returns how many there are to train, and one a model to evaluate."""
  training = {
    (
      model_config.union([cell.model for cell in group]),
      len(group),
      group[0].train.batch_size,
      group[0].train.trained,
    )
    for group in populations.groups(cells, backend, workers)
  }
  return len({cell.model for cell in cells}) + len(training)


def _total_seconds(
  rows: list[dict[str, Any]], programs: int, speed: Speed, workers: int
) -> float:
  """Returns the time of a whole study."""
  running = sum(row['seconds'] for row in rows)
  return (running + programs * speed.compile_seconds) / workers


def _warnings(rows: list[dict[str, Any]]) -> list[str]:
  found = []
  for row in rows:
    if row['epochs'] > MAX_EPOCHS:
      found.append(
        f'{row["cell"]}: {row["epochs"]:.1f} epochs; beyond '
        f'{MAX_EPOCHS:g} repeated text no longer counts as new'
      )
    error = row['flops'] / row['budget'] - 1
    if abs(error) > _MAX_ERROR:
      found.append(
        f'{row["cell"]}: {row["steps"]} steps cost {error:+.1%} of '
        'its budget; below 200 steps rounding shows'
      )
  return found
