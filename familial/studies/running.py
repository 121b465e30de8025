"""A study from its plan to its page: what all kinds of studies have in common."""

from collections.abc import Callable
import os
import pathlib
import sys
import time
from typing import Any
from typing import NamedTuple

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.data import packing
from familial.report import page
from familial.studies import plan as plan_lib
from familial.studies import sweep
from familial.training import config as train_config

Cells = list[train_config.RunConfig]


class Kind(NamedTuple):
  """What a kind of study does in its own way.

  Attributes:
    build: the runs of a study.
    plan: the study, its runs, the corpus, the speed of a worker and their number
      to what `plan.json` holds.
    text: a plan as a person reads it.
    affordable: like `plan` without the corpus, to the runs that a limit of time
      leaves.
    summarise: the study, its folder and the runs that failed to a line, with
      `summary.json` written.
    free: sections of the config that may change once runs are there.
    execute: the study, its runs, its folder and how `sweep.execute` is to run
      them to the runs that failed.
  """

  build: Callable[[Any], Cells]
  plan: Callable[[Any, Cells, Any, plan_lib.Speed, int], dict[str, Any]]
  text: Callable[[dict[str, Any]], str]
  affordable: Callable[[Any, Cells, plan_lib.Speed, int], Cells]
  summarise: Callable[[Any, pathlib.Path, list[str]], str]
  free: tuple[str, ...]
  execute: Callable[..., list[str]] = lambda study, *args, **how: sweep.execute(
    *args, **how
  )


def run(
  kind: Kind,
  study: Any,
  workdir: str | os.PathLike[str],
  *,
  workers: int = 1,
  plan_only: bool = False,
  tensorboard: bool = False,
  profile: bool = False,
) -> str:
  """Runs a study to its page, or goes on with one; returns its summary line.

  Args:
    kind: of the study.
    study: what to do.
    workdir: where; everything the study leaves is below it.
    workers: processes that train cells side by side on this host.
    plan_only: print the plan and stop.
    tensorboard: write event files too.
    profile: write a trace of a few steps of each run too.

  Raises:
    UserError: if the workdir is another study's or another corpus's, or a cell
      cannot be.
    errors.Incomplete: if cells failed; the others are fitted and reported.
    errors.Interrupted: on SIGTERM or SIGINT, with everything saved.
  """
  start = time.monotonic()
  workdir = pathlib.Path(workdir)
  cells = kind.build(study)
  # What its runs gave stays as it is.
  run_folder.open_folder(workdir, study, free=kind.free)
  plan, cells = _plan(kind, study, cells, workdir, workers, not plan_only)
  print(kind.text(plan), flush=True)
  if plan_only:
    return f'planned only; wrote {workdir / "plan.json"}'
  failed = kind.execute(
    study,
    cells,
    workdir,
    workers=workers,
    tensorboard=tensorboard,
    profile=profile,
  )
  for cell in failed:
    log = sweep.folder(workdir, cell) / 'error.log'
    why = (
      f'failed, see {log}'
      if log.exists()
      else 'not finished: its parent run failed, or its worker was killed'
    )
    print(f'{cell}: {why}', file=sys.stderr)
  with storage.lock(workdir, wait=True):  # Hosts that share it end together.
    line = kind.summarise(study, workdir, failed)
    path = page.write(workdir)
  minutes = (time.monotonic() - start) / 60
  found = f'{line}\n{path} ({minutes:.1f} min)'
  if failed:
    print(found)
    raise errors.Incomplete(
      f'{len(failed)} of {len(cells)} cells failed; the same command tries '
      'them again'
    )
  return found


def _plan(
  kind: Kind,
  study: Any,
  cells: Cells,
  workdir: pathlib.Path,
  workers: int,
  begin: bool,
) -> tuple[dict[str, Any], Cells]:
  """Returns the study's plan and the cells in it.

  Whoever begins first decides on the corpus and the cells, for all hosts and for
  good; another number of workers changes the expected time alone.
  """
  corpus = packing.load(study.data)
  path = workdir / 'plan.json'
  with storage.lock(workdir, wait=True):
    planned = storage.read_own(path) if path.exists() else None
    if planned and not planned.get('begun', True):
      planned = None  # It was only looked at, perhaps on another machine.
    if planned:
      first = planned['corpus']['fingerprint']
      if first != corpus.fingerprint:
        raise errors.UserError(
          f'{workdir} was planned on corpus {first}, not {corpus.fingerprint}, '
          f'which is what data.corpus={study.data.corpus!r} gives here now; '
          'use another workdir, or that text'
        )
      names = {row['cell'] for row in planned['cells']}
      cells = [cell for cell in cells if cell.cell in names]
      if planned['workers'] == workers:
        return planned, cells
      begin = True
    print('calibrating on the narrowest and the widest model ...', flush=True)
    speed = plan_lib.calibrate(cells, workers)
    if not planned:
      cells = kind.affordable(study, cells, speed, workers)
    plan = kind.plan(study, cells, corpus, speed, workers)
    plan['begun'] = begin
    storage.write_json(path, plan)
  return plan, cells
