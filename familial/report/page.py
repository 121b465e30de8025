"""Pages of studies and runs: which template shows which folder."""

import os
import pathlib
from typing import Any

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.plots import allocation
from familial.plots import depth_law
from familial.plots import families
from familial.plots import isoflop
from familial.plots import regimes
from familial.plots import toys
from familial.plots import training
from familial.report import render
from familial.studies import registry
from familial.studies import study as study_lib

# Figures by the name that templates use.
PLOTS = {
  'isoflop': isoflop,
  'families': families,
  'depth_law': depth_law,
  'regimes': regimes,
  'allocation': allocation,
  'toys': toys,
  'training': training,
}


def write(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes `report/index.html` and `report/figures`; returns the page's path.

  Args:
    workdir: folder of a study or of a single run. A study's summary is read from
      `summary.json`; where an earlier version wrote it, or there is none, it is
      computed from the runs, and nothing but the report is written.

  Raises:
    UserError: if the folder holds neither a plan nor rows.
  """
  workdir = pathlib.Path(workdir)
  is_run = (workdir / run_folder.ROWS).exists()
  if is_run and not (workdir / study_lib.PLAN).exists():
    return _run(workdir)
  results = study_lib.read(workdir)
  study = registry.of_plan(results.plan)
  return render.write(
    workdir / 'report',
    study.kind,
    title=results.plan.get('title') or f'Study: {study.kind}',
    results=results,
    summary=summary_of(study, workdir, results),
    curves=training.curves(results.run_folders()),
    plots=PLOTS,
    links=_files(workdir),
  )


def summary_of(
  study: study_lib.Study[Any, Any],
  folder: pathlib.Path,
  results: study_lib.Results | None = None,
) -> study_lib.Summary[Any]:
  """Returns a study's summary, computed where the folder has none of its runs.

  An earlier version left no tables, and runs may have been removed since.

  Args:
    study: kind of the study.
    folder: of the study; nothing is written to it.
    results: of the folder, by which its `summary.json` is checked.

  Raises:
    UserError: if the folder is of another kind, damaged, or has neither tables
      nor a config to compute them by.
  """
  path = folder / study_lib.SUMMARY
  if path.exists() and 'tables' in storage.read_own(path):
    summary = study.read_summary(folder)
    count = (
      len(results.finished) if results else 0
    )  # 0 for studies without runs.
    if count in (0, summary.cost.finished):
      return summary
  config = folder / 'config.json'
  if not config.exists():
    raise errors.UserError(
      f'{path}: has no tables, and there is no config.json to compute them by'
    )
  results = results or study_lib.read(folder)
  kind = registry.of_plan(results.plan).kind
  if kind != study.kind:
    raise errors.UserError(
      f'{folder}: of a study of kind {kind!r}, not {study.kind!r}'
    )
  values = storage.read_own(config)
  values.pop('schema', None)
  return study.summarise(study.read_config(values), results)


def _run(folder: pathlib.Path) -> pathlib.Path:
  rows = storage.read_rows(folder / run_folder.ROWS)
  return render.write(
    folder / 'report',
    'run',
    title=f'Run {folder.name}',
    rows=rows,
    outcome=run_folder.outcome(folder),
    losses=training.losses(rows),
    curves=training.curves([folder]),
    config=(folder / 'config.json').read_text('utf-8'),
    links=_files(folder),
  )


def _files(folder: pathlib.Path) -> list[str]:
  """Returns the result files of a folder, relative to it."""
  patterns = ('*.json', '*.jsonl', 'fits/**/*.json')
  found = {path for pattern in patterns for path in folder.glob(pattern)}
  return sorted(str(path.relative_to(folder)) for path in found)
