"""A live allocation: a budget that drives real training, round by round.

What a round decided is on disk before the next one begins, and its runs go on
from their checkpoints: a killed allocation goes on exactly where it was.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import json
import math
import os
import pathlib
from typing import Any

from familial.allocation import curves as curves_lib
from familial.allocation import optimal_design
from familial.allocation import policies
from familial.allocation import rounds as rounds_lib
from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.model import config as model_config
from familial.model import flops as flops_lib
from familial.studies import allocation_config
from familial.studies import allocation_summary
from familial.studies import cells as cells_lib
from familial.studies import plan as plan_lib
from familial.studies import running
from familial.studies import sweep
from familial.training import config as train_config

AllocationConfig = allocation_config.AllocationConfig
RunConfig = train_config.RunConfig
Cells = running.Cells
ARM = 'candidate'


def run(
  study: AllocationConfig, workdir: str | os.PathLike[str], **how: Any
) -> str:
  """Allocates to the last round, or goes on with one: see `running.run`."""
  kind = running.Kind(
    build=build,
    plan=plan,
    text=text,
    affordable=lambda study, cells, speed, workers: cells,
    execute=execute,
    summarise=allocation_summary.write,
    # The law decides nothing where the policy does not look for it.
    free=(
      'layout',
      'full',
      *(('law',) if study.policy != policies.LAW else ()),
    ),
  )
  return running.run(kind, study, workdir, **how)


def build(study: AllocationConfig) -> Cells:
  """Returns the candidates, each as a run to the horizon."""
  return [
    _candidate(study, shape, granularity)
    for shape in study.shapes
    for granularity in study.granularities
  ]


def _candidate(
  study: AllocationConfig, shape: tuple[int, int, int], granularity: int
) -> RunConfig:
  width, depth, _ = shape
  name = f'w{width}_d{depth}_g{granularity}'
  try:
    exits = model_config.even_exits(depth, granularity)
    model = cells_lib.model(study, shape, exits)
    batch_tokens = study.train['batch_size'] * study.data.seq_len
    step = batch_tokens * flops_lib.train(model, study.data.seq_len)
    steps = math.floor(study.horizon / step)
    # A policy without a bracket may give one candidate everything.
    first = len(_survivors(study)) * _count(study) or 1
    if steps < 1 or study.budget / first < step:
      raise errors.UserError(
        f'budget: {study.budget:g} FLOPs give it {study.budget / first:.3g} in'
        f' the first round, and horizon allows {study.horizon:.3g}; one step is'
        f' {step:.3g}'
      )
    train = cells_lib.make(
      train_config.TrainConfig,
      'train',
      allocation_config.RUN_KEYS,
      {
        **study.train,
        'steps': steps,
        'warmup_steps': round(study.warmup * steps),
      },
      study.train,
    )
    return RunConfig(
      cell=name,
      arm=ARM,
      budget=study.horizon,
      model=model,
      data=study.data,
      train=train,
      layout=study.layout,
    )
  except errors.UserError as error:
    raise errors.UserError(f'candidate {name}: {error}') from None


def _count(study: AllocationConfig) -> int:
  return len(study.shapes) * len(study.granularities)


def plan(
  study: AllocationConfig,
  cells: Cells,
  corpus: Any,
  speed: plan_lib.Speed,
  workers: int,
) -> dict[str, Any]:
  """Returns the plan of the whole grid, with what the allocation takes of it."""
  made = plan_lib.make('allocation', study, cells, corpus, speed, workers)
  survivors = _survivors(study)
  return {
    **made,
    'budget': study.budget,
    'policy': study.policy,
    'rounds': len(survivors) or optimal_design.ROUNDS,
    'survivors': list(survivors),
    'shares': [study.budget / (n * len(survivors)) for n in survivors],
    'full': study.full,
    'steady': study.steady,
  }


def text(made: dict[str, Any]) -> str:
  """Returns a plan as a person reads it, its rounds last."""
  return plan_lib.text(made, list(_lines(made)))


def _lines(made: dict[str, Any]) -> Iterator[str]:
  share = made['budget'] / made['flops']
  yield ''
  for number, (alive, flops) in enumerate(
    zip(made['survivors'], made['shares'], strict=True), start=1
  ):
    yield f'round {number}: {alive:>4} candidates, {flops:.3g} FLOPs each'
  if not made['survivors']:
    yield f'{made["rounds"]} rounds, of candidates as the law so far asks for'
  yield (
    f'{made["policy"]}: {made["budget"]:.3g} FLOPs, {share:.1%} of the whole grid,'
    f' about {share * made["seconds"]:.0f} s'
    + (', and then the rest of it' if made['full'] else '')
  )


def _survivors(study: AllocationConfig) -> tuple[int, ...]:
  return policies.get(study.policy).survivors(_count(study), study.eta)


def execute(
  study: AllocationConfig,
  cells: Cells,
  workdir: pathlib.Path,
  **how: Any,
) -> list[str]:
  """Allocates the budget; returns the candidates of the whole grid that failed.

  Raises:
    errors.Incomplete: if a candidate failed in a round, which then waits for it.
  """
  allocate(study, cells, workdir, **how)
  return sweep.execute(cells, workdir, **how) if study.full else []


def allocate(
  study: AllocationConfig, cells: Cells, workdir: pathlib.Path, **how: Any
) -> rounds_lib.Allocation:
  """Allocates the budget, as far as it is not yet; returns how."""
  # Whoever shares the folder waits, and finds the rounds decided.
  with storage.lock(workdir, wait=True):
    return _allocate(study, cells, workdir, **how)


def _allocate(
  study: AllocationConfig, cells: Cells, workdir: pathlib.Path, **how: Any
) -> rounds_lib.Allocation:
  path = workdir / allocation_summary.ROUNDS

  def note(rounds: list[rounds_lib.Round]) -> None:
    rows = [*storage.read_rows(path), dataclasses.asdict(rounds[0])]
    lines = [json.dumps({'schema': storage.SCHEMA, **row}) for row in rows]
    # The whole file at once: a half-written round was never decided.
    storage.write_text(path, '\n'.join([*lines, '']))
    print(_said(cells, rounds[0]), flush=True)

  [allocation] = policies.get(study.policy).allocate(
    [Live(study, cells, workdir, **how)],
    [study.budget],
    rounds_lib.Settings(
      study.eta,
      study.law,
      cells[0].train.seed,
      allocation_summary.decided(workdir),
      note,
    ),
  )
  return allocation


class Live:
  """Candidates that are trained.

  Attributes:
    names: of the candidates.
    features: of each.
  """

  def __init__(
    self,
    study: AllocationConfig,
    cells: Cells,
    workdir: pathlib.Path,
    **how: Any,
  ):
    """Takes the runs of a study, its folder, and how `sweep.execute` is to run."""
    self.names: Sequence[str] = [cell.cell for cell in cells]
    self.features: Sequence[Mapping[str, float]] = [
      {
        'params': float(flops_lib.params_full(cell.model)),
        'width': float(cell.model.width),
        'depth': float(cell.model.depth),
        'exits': float(cell.model.granularity),
      }
      for cell in cells
    ]
    self._study, self._cells, self._workdir = study, cells, workdir
    self._how = how

  def limit(self, candidate: int) -> float:
    """Returns the FLOPs of a run to the horizon, or to where its rate decays."""
    steps = self._cells[candidate].train.steps
    return self.step(candidate) * math.floor(self._study.steady * steps)

  def step(self, candidate: int) -> float:
    """Returns the FLOPs of a step."""
    cell = self._cells[candidate]
    return cells_lib.cost(cell) // cell.train.steps

  def point(self, candidate: int, flops: float) -> Mapping[str, float]:
    """Returns N, D and G after so many FLOPs."""
    cell = self._cells[candidate]
    per_token = flops_lib.train(cell.model, cell.data.seq_len)
    return {
      'N': float(flops_lib.params_full(cell.model)),
      'D': flops / per_token,
      'G': float(cell.model.granularity),
    }

  def advance(
    self, targets: Mapping[int, float]
  ) -> Mapping[int, curves_lib.Curve]:
    """Trains candidates on, together where their shapes agree.

    Raises:
      errors.Incomplete: if one failed.
    """
    until = {}
    for i, flops in targets.items():
      cell = self._cells[i]
      until[cell.cell] = min(int(flops // self.step(i)), cell.train.steps)
    failed = sweep.execute(self._cells, self._workdir, until=until, **self._how)
    if failed:
      raise errors.Incomplete(
        f'{len(failed)} of {len(until)} candidates failed '
        f'({", ".join(failed)}; see their error.log); the round waits for them,'
        ' and the same command tries them again'
      )
    return {i: self._curve(i, until[self._cells[i].cell]) for i in targets}

  def _curve(self, candidate: int, step: int) -> curves_lib.Curve:
    """What its evaluations up to a step say."""
    cell = self._cells[candidate]
    folder = sweep.folder(self._workdir, cell.cell)
    rows = [
      row
      for row in storage.read_rows(folder / run_folder.ROWS)
      if row['step'] <= step
    ]
    return curves_lib.of_run(
      cell.cell,
      rows,
      self._study.loss,
      self.features[candidate],
    )


def _said(cells: Cells, made: rounds_lib.Round) -> str:
  """A round in a line."""
  seen = [loss for loss in made.seen if loss is not None]
  best = f'{min(seen):.4f}' if seen else 'none'
  out = [cells[i].cell for i in made.alive if i not in made.kept]
  return (
    f'{len(made.alive)} candidates trained, best loss {best}; pruned:'
    f' {", ".join(out) or "none"}'
  )
