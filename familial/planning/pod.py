"""The plan for a pod: which layout, what fits, how fast at best, how long.

A bound is no forecast: it is the time of a step's products, traffic with memory
and traffic on links at the datasheet's full speed, whichever is longest. Where
the devices are here, a step is measured, and its ratio to its own bound says
what to expect of the others.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures import process
import contextlib
import dataclasses
import hashlib
from importlib import metadata
import math
import multiprocessing
import os
import pathlib
import signal
import sys
from typing import Any

import jax

from familial.core import errors
from familial.core import progress_bar
from familial.core import storage
from familial.model import flops as flops_lib
from familial.planning import chips
from familial.planning import compiled
from familial.planning import growth
from familial.planning import layouts
from familial.planning import roofline
from familial.training import config as train_config
from familial.training import timing

RunConfig = train_config.RunConfig
Compile = Callable[[Sequence[RunConfig]], list[compiled.Program]]
# Layouts that are compiled, and that are while none of them fits.
_TRIED, _MOST = 3, 8
_MEASURED_STEPS = 5


def make(
  title: str,
  cells: Sequence[RunConfig],
  topology: str,
  folder: pathlib.Path,
  workers: int,
) -> dict[str, Any]:
  """Writes the plan of some runs as `plan.json`, and returns it.

  Layouts are ranked by arithmetic; the best three are compiled for the run that
  needs most memory, and of those that fit that of the least time, with the bytes
  that the compiled program sends, is recommended. In it, of the runs that differ
  in depth, exits and length alone, the largest is compiled: the others need no
  more.

  Args:
    title: of the study.
    cells: its runs.
    topology: as `chips.devices` takes it.
    folder: for plan.json and for what the compiler said of each program, which
      it is asked once.
    workers: processes that compile side by side.

  Raises:
    UserError: if there is no such topology, or no layout for it.
  """
  if topology != chips.HERE:  # A TPU is compiled for, not used.
    jax.config.update('jax_platforms', 'cpu')
  devices = chips.devices(topology)
  chip = chips.of(devices, topology)
  kinds = _kinds(cells)
  largest = [kind[0] for kind in kinds]
  ranked = layouts.ranked(cells, devices, chip)
  with _compiler(topology, folder, workers) as compile_all:
    tried = _try(ranked, largest, chip, compile_all)
    chosen = min(tried, key=lambda layout: _cost(layout, *tried[layout], chip))
    laid = [[layouts.apply(cell, chosen) for cell in kind] for kind in kinds]
    print(
      f'{topology}: compiling {len(laid)} programs as {chosen.flags} ...',
      file=sys.stderr,
      flush=True,
    )
    found = {}
    for kind, program in zip(
      laid, compile_all([kind[0] for kind in laid]), strict=True
    ):
      # Where the largest does not fit, the others are asked one by one.
      others = [] if program.fits else compile_all(kind[1:])
      for i, cell in enumerate(kind):
        of = (kind[i], others[i - 1]) if i and others else (kind[0], program)
        found[cell.cell] = _row(cell, of[0].cell, of[1], chosen, chip)
  rows = [
    {
      **found[cell.cell],
      'growth': growth.of(layouts.apply(cell, chosen), cells, devices),
    }
    for cell in cells
  ]
  plan = {
    'schema': storage.SCHEMA,
    'title': title,
    'topology': topology,
    'devices': len(devices),
    'chip': dataclasses.asdict(chip),
    'layouts': [
      {**_tried(cell, layout, chip), **dataclasses.asdict(program)}
      for layout, (cell, program) in tried.items()
    ],
    'recommended': {**dataclasses.asdict(chosen), 'flags': chosen.flags},
    'fits': all(row['fits'] for row in rows),
    'flops': sum(row['flops'] for row in rows),
    'device_hours': sum(row['device_hours'] for row in rows),
    'measured': (
      _measured(tried[chosen][0], chosen, chip)
      if topology == chips.HERE and tried[chosen][1].fits
      else None
    ),
    'cells': rows,
    'versions': _versions(),
  }
  storage.write_json(folder / 'plan.json', plan)
  return plan


def _kinds(cells: Sequence[RunConfig]) -> list[list[RunConfig]]:
  """Returns runs of which the first needs as much memory as the others, together.

  Their steps differ in depth and exits alone, and it has no fewer of either.
  """

  def key(cell: RunConfig) -> Any:
    model = dataclasses.replace(cell.model, depth=1, exits=(1,))
    train = cell.train
    batches = train.batch_size, train.eval_batch_size, train.trained
    return model, batches, cell.data, cell.layout

  def size(cell: RunConfig) -> tuple[int, int]:
    return cell.model.depth, cell.model.granularity

  kinds: list[list[RunConfig]] = []
  for cell in sorted(cells, key=size, reverse=True):
    for kind in kinds:
      first = kind[0]
      if key(first) == key(cell) and size(first)[1] >= size(cell)[1]:
        kind.append(cell)
        break
    else:
      kinds.append([cell])
  return kinds


def _try(
  ranked: list[layouts.Layout],
  cells: list[RunConfig],
  chip: chips.Chip,
  compile_all: Compile,
) -> dict[layouts.Layout, tuple[RunConfig, compiled.Program]]:
  """Compiles the best layouts until enough of them, or one that fits, is seen."""
  tried: dict[layouts.Layout, tuple[RunConfig, compiled.Program]] = {}
  short = 1.0  # What programs need, over what arithmetic says.
  while len(tried) < min(_MOST, len(ranked)):
    left = [layout for layout in ranked if layout not in tried]
    hopeful = [
      layout
      for layout in left
      if short * layouts.memory(cells, layout) <= chip.memory
    ]
    fitting = any(program.fits for _, program in tried.values())
    if tried and (fitting or not hopeful):
      break
    next_ = (hopeful or left)[: 1 if tried else _TRIED]
    hungry = [layouts.apply(_hungriest(cells, at), at) for at in next_]
    for layout, cell, program in zip(
      next_, hungry, compile_all(hungry), strict=True
    ):
      tried[layout] = cell, program
      short = max(short, program.memory / layouts.memory([cell], layout))
  return tried


def _cost(
  layout: layouts.Layout,
  cell: RunConfig,
  program: compiled.Program,
  chip: chips.Chip,
) -> tuple[bool, float]:
  """Returns the sort key of a layout; the lowest is chosen.

  Layouts that fit come first, by the seconds of a step without overlap; then
  the others, by the memory that they need.
  """
  if not program.fits:
    return True, program.memory
  work = roofline.work(cell, layout.mesh)
  if program.sent is not None:
    work = dataclasses.replace(work, sent=program.sent)
  return False, roofline.times(work, chip).apart


def _hungriest(cells: list[RunConfig], layout: layouts.Layout) -> RunConfig:
  return max(cells, key=lambda cell: layouts.memory([cell], layout))


@contextlib.contextmanager
def _compiler(
  topology: str, folder: pathlib.Path, workers: int
) -> Iterator[Compile]:
  """Yields a function that compiles runs' steps, each program once."""
  if topology == chips.HERE:  # Other processes would want the devices too.
    yield lambda cells: [_program(cell, topology, folder) for cell in cells]
    return
  pool = futures.ProcessPoolExecutor(
    workers,
    mp_context=multiprocessing.get_context('spawn'),
    # A compiler keeps gigabytes of what it compiled.
    max_tasks_per_child=1,
    # A signal to the group is not theirs: libtpu answers it with a stack trace.
    initializer=os.setpgrp,
  )

  def compile_all(cells: Sequence[RunConfig]) -> list[compiled.Program]:
    try:
      asked = [pool.submit(_program, cell, topology, folder) for cell in cells]
      bar = progress_bar.start(
        asked, desc='compiling', unit='program', leave=False
      )
      return [each.result() for each in bar]
    except process.BrokenProcessPool:
      raise errors.UserError(
        'the process that compiled was killed, as for want of memory; use '
        'fewer --workers'
      ) from None

  def stop(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise errors.Interrupted(
      'stopped; the programs compiled so far are kept, and the same command '
      'goes on from there'
    )

  before = signal.signal(signal.SIGTERM, stop)
  try:
    yield compile_all
  except BaseException:
    for worker in multiprocessing.active_children():
      worker.kill()  # What it writes, it writes whole.
    raise
  finally:
    pool.shutdown(cancel_futures=True)
    signal.signal(signal.SIGTERM, before)


def _program(
  cell: RunConfig, topology: str, folder: pathlib.Path
) -> compiled.Program:
  """Returns a run's compiled step, as an earlier call wrote it or anew."""
  if topology != chips.HERE:
    jax.config.update('jax_platforms', 'cpu')
  devices = chips.devices(topology)
  lowered = compiled.lower(cell, devices)
  asked = (devices[0].device_kind, topology, _versions(), lowered.as_text())
  name = hashlib.sha256(repr(asked).encode()).hexdigest()[:16]
  path = folder / 'programs' / f'{name}.json'
  if path.exists():
    known = storage.read_own(path)
    return compiled.Program(**known['program'])
  found = compiled.compile_(cell, lowered)
  if found.memory > chips.of(devices, topology).memory:  # No compiler of a GPU
    found = dataclasses.replace(found, fits=False)  # looks at that.
  storage.write_json(
    path, {'schema': storage.SCHEMA, 'program': dataclasses.asdict(found)}
  )
  return found


def _tried(
  cell: RunConfig, layout: layouts.Layout, chip: chips.Chip
) -> dict[str, Any]:
  work = roofline.work(cell, layout.mesh)
  return {
    **dataclasses.asdict(layout),
    'cell': cell.cell,
    'estimated_memory': work.memory,
    'estimated_sent': work.sent,
    'bound_seconds': roofline.times(work, chip).bound,
  }


def _row(
  cell: RunConfig,
  of: str,
  program: compiled.Program,
  layout: layouts.Layout,
  chip: chips.Chip,
) -> dict[str, Any]:
  """Returns a run's entry in the plan.

  Args:
    cell: the run.
    of: the one whose program was compiled.
    program: that one's.
    layout: of both.
    chip: of each device.
  """
  model, train, length = cell.model, cell.train, cell.data.seq_len
  devices = math.prod(layout.mesh.values())
  tokens = train.batch_size * length
  times = roofline.times(roofline.work(cell, layout.mesh), chip)
  step_flops = tokens * flops_lib.train(model, length, train.trained)
  evaluations = (
    train.evaluations * train.eval_tokens * flops_lib.forward(model, length)
  )
  seconds = train.steps * times.bound + evaluations / (devices * chip.flops)
  alone = of == cell.cell
  return {
    'cell': cell.cell,
    'width': model.width,
    'depth': model.depth,
    'exits': model.granularity,
    'params_full': flops_lib.params_full(model),
    'params_embedding': flops_lib.params_embedding(model, model.granularity),
    'batch_size': train.batch_size,
    'steps': train.steps,
    'fits': program.fits,
    'memory': program.memory,
    'compiled': of,
    'flops': train.steps * step_flops,
    'step_flops': step_flops,
    'step_flops_compiler': program.flops if alone else None,
    'sent_compiler': program.sent if alone else None,
    'times': dataclasses.asdict(times),
    'bound_seconds': times.bound,
    'limit': times.limit,
    'utilisation_bound': step_flops / (devices * chip.flops * times.bound),
    'seconds': seconds,
    'device_hours': seconds * devices / 3600,
  }


def _measured(
  cell: RunConfig, layout: layouts.Layout, chip: chips.Chip
) -> dict[str, Any]:
  """Times a run's step on the devices of this host, beside its bound."""
  try:
    speed, _ = timing.measure(cell, _MEASURED_STEPS)
  except jax.errors.JaxRuntimeError as error:
    raise errors.UserError(
      f'{cell.cell}: its step was compiled but not run: '
      f'{str(error).splitlines()[0]}'
    ) from None
  tokens = cell.train.batch_size * cell.data.seq_len
  flops = tokens * flops_lib.train(
    cell.model, cell.data.seq_len, cell.train.trained
  )
  devices = math.prod(layout.mesh.values())
  bound = roofline.times(roofline.work(cell, layout.mesh), chip).bound
  return {
    'cell': cell.cell,
    'step_seconds': flops / speed,
    'bound_seconds': bound,
    'over_bound': flops / speed / bound,
    'utilisation': speed / (devices * chip.flops),
  }


def _versions() -> dict[str, str | None]:
  found: dict[str, str | None] = {}
  for package in ('jax', 'jaxlib', 'libtpu'):
    try:
      found[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
      found[package] = None
  return found
