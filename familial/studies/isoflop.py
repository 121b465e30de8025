"""The IsoFLOP study of familial models: plan, train, fit, report."""

import os
import pathlib
import sys
import time

from familial import records
from familial.data import packing
from familial.report import page
from familial.studies import cells as cells_lib
from familial.studies import config as study_config
from familial.studies import plan as plan_lib
from familial.studies import summary
from familial.studies import sweep
from familial.training import config as train_config


def run(
  study: study_config.StudyConfig,
  workdir: str | os.PathLike[str],
  *,
  workers: int = 1,
  plan_only: bool = False,
  tensorboard: bool = False,
) -> str:
  """Runs a study to its page, or goes on with one; returns its summary line.

  Args:
    study: what to do.
    workdir: where; everything the study leaves is below it.
    workers: processes that train cells side by side on this host.
    plan_only: print the plan and stop.
    tensorboard: write event files too.

  Raises:
    UserError: if the workdir is another study's, or a cell cannot be.
    errors.Interrupted: on SIGTERM or SIGINT, with everything saved.
  """
  start = time.monotonic()
  workdir = pathlib.Path(workdir)
  cells = cells_lib.build(study)
  records.open_run(workdir, study)
  corpus = packing.load(study.data)
  speed = _speed(cells, workdir / 'plan.json', workers)
  if study.grid.seconds:
    cells = plan_lib.within(study.grid.seconds, cells, speed, workers)
  plan = plan_lib.make(study, cells, corpus, speed, workers)
  records.write_json(workdir / 'plan.json', plan)
  print(plan_lib.text(plan), flush=True)
  if plan_only:
    return f'planned only; wrote {workdir / "plan.json"}'
  failed = sweep.execute(
    cells, workdir, workers=workers, tensorboard=tensorboard
  )
  for cell in failed:
    log = sweep.folder(workdir, cell) / 'error.log'
    why = f'failed, see {log}' if log.exists() else 'its parent run failed'
    print(f'{cell}: {why}; the same command tries again', file=sys.stderr)
  line = summary.write(study, workdir, failed)
  path = page.write(workdir)
  minutes = (time.monotonic() - start) / 60
  return f'{line}\n{path} ({minutes:.1f} min)'


def _speed(
  cells: list[train_config.RunConfig], plan: pathlib.Path, workers: int
) -> plan_lib.Speed:
  """Measures the speed; a study that goes on keeps what its plan holds."""
  if not plan.exists():
    print('calibrating on the narrowest and the widest model ...', flush=True)
    return plan_lib.calibrate(cells, workers)
  saved = records.read_json(plan)['speed']
  return plan_lib.Speed(
    tuple(saved['widths']),
    tuple(saved['flops_per_second']),
    saved['compile_seconds'],
  )
