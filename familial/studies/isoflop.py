"""The IsoFLOP study of familial models: plan, train, fit, report."""

import os
import pathlib
import sys
import time
from typing import Any

from familial import errors
from familial import records
from familial.data import packing
from familial.report import page
from familial.studies import cells as cells_lib
from familial.studies import config as study_config
from familial.studies import plan as plan_lib
from familial.studies import summary
from familial.studies import sweep
from familial.training import config as train_config

Cells = list[train_config.RunConfig]


def run(
  study: study_config.StudyConfig,
  workdir: str | os.PathLike[str],
  *,
  workers: int = 1,
  plan_only: bool = False,
  tensorboard: bool = False,
  profile: bool = False,
) -> str:
  """Runs a study to its page, or goes on with one; returns its summary line.

  Args:
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
  cells = cells_lib.build(study)
  # What its runs gave stays as it is.
  records.open_run(workdir, study, free=('fit', 'layout'))
  plan, cells = _plan(study, cells, workdir, workers, not plan_only)
  print(plan_lib.text(plan), flush=True)
  if plan_only:
    return f'planned only; wrote {workdir / "plan.json"}'
  failed = sweep.execute(
    cells, workdir, workers=workers, tensorboard=tensorboard, profile=profile
  )
  for cell in failed:
    log = sweep.folder(workdir, cell) / 'error.log'
    why = (
      f'failed, see {log}'
      if log.exists()
      else 'not finished: its parent run failed, or its worker was killed'
    )
    print(f'{cell}: {why}', file=sys.stderr)
  with records.held(workdir, wait=True):  # Hosts that share it end together.
    line = summary.write(study, workdir, failed)
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
  study: study_config.StudyConfig,
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
  with records.held(workdir, wait=True):
    planned = records.read_own(path) if path.exists() else None
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
    if study.grid.seconds and not planned:
      cells = plan_lib.within(study.grid.seconds, cells, speed, workers)
    plan = plan_lib.make(study, cells, corpus, speed, workers)
    plan['begun'] = begin
    records.write_json(path, plan)
  return plan, cells
