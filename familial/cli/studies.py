"""`familial run`, `train`, `plan` and `report`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import sys
from typing import Annotated
from typing import Any

from etils import epy

from familial.cli import command
from familial.cli import output_folder
from familial.cli.command import Command
from familial.cli.command import ConfigFile
from familial.cli.command import Folder
from familial.core import errors
from familial.core import progress_bar
from familial.core import run_folder
from familial.core import schema
from familial.core import storage

# Imported when a command runs, not when its flags are read.
with epy.lazy_imports():
  from familial.planning import pod
  from familial.planning import summary as plan_summary
  from familial.report import page
  from familial.report import plan_page
  from familial.studies import execution
  from familial.studies import registry
  from familial.studies import study as study_lib
  from familial.training import config as train_config
  from familial.training import loop
  from familial.training import processes

_SINGLE = 'experiments/single.py'


@dataclasses.dataclass(frozen=True)
class Run:
  """Flags of `familial run`.

  Attributes:
    config: study to run.
    workdir: folder of the study; made if missing.
    workers: number of processes on this host that train runs side by side, each
      on its share of the cores.
    plan_only: stop after the plan.
    tensorboard: write TensorBoard event files too; needs the extra `tensorboard`.
    profile: write a profiler's trace of a few steps, once a start, to the run's
      folder `profile`.
  """

  config: Annotated[Any, ConfigFile('experiments/quickstart.py')]
  workdir: Folder
  workers: schema.Count = 1
  plan_only: bool = False
  tensorboard: bool = False
  profile: bool = False


def _run(given: Run) -> str:
  study = registry.of_config(given.config)
  if study is None:
    raise errors.UserError(
      '--config: this is not a study; a run is for familial train, and a replay '
      'for familial allocate'
    )
  options = command.fill(study_lib.Options, given)
  return run_study(study, given.config, given.workdir, options)


def run_study(
  study: study_lib.Study[Any, Any],
  config: Any,
  workdir: str,
  options: study_lib.Options | None = None,
) -> str:
  """Runs a study and writes its page; returns the summary line.

  Raises:
    Incomplete: if runs failed; the others are analysed.
  """
  outcome = study.run(
    study.read_config(config), workdir, options or study_lib.Options()
  )
  if outcome.planned_only:
    return outcome.line
  progress_bar.say('drawing figures and writing the page ...')
  with storage.lock(workdir, wait=True):
    path = page.write(workdir)
  line = f'{outcome.line}\n{path}'
  if outcome.failed:
    print(line)
    raise errors.Incomplete(
      f'{len(outcome.failed)} of {outcome.total} cells failed; the same command '
      'tries them again'
    )
  return line


@dataclasses.dataclass(frozen=True)
class Train:
  """Flags of `familial train`.

  Attributes:
    config: run to train.
    workdir: folder of the run; made if missing.
    tensorboard: write TensorBoard event files too; needs the extra `tensorboard`.
    profile: write a profiler's trace of a few steps, once a start, to the run's
      folder `profile`.
  """

  config: Annotated[Any, ConfigFile(_SINGLE)]
  workdir: Folder
  tensorboard: bool = False
  profile: bool = False


def _train(given: Train) -> str:
  if 'kind' in given.config:
    raise errors.UserError(
      "--config: this is a study's, for familial run; familial train takes one "
      f"run's, such as {_SINGLE}"
    )
  run = train_config.read(given.config)
  with processes.joined(), contextlib.ExitStack() as stack:
    # Process 0 holds the folder for the whole run.
    lock = storage.lock(given.workdir)
    if not processes.broadcast_from_0(lambda: stack.enter_context(lock)):
      raise errors.UserError(
        f'--workdir={given.workdir}: another process is training there'
      )
    loop.run(
      run,
      given.workdir,
      tensorboard=given.tensorboard,
      profile=given.profile,
      announce=True,
    )
    outcome = run_folder.outcome(given.workdir)
  return f'{given.workdir}: {outcome}'


@dataclasses.dataclass(frozen=True)
class Plan:
  """Flags of `familial plan`.

  Attributes:
    config: study or run to plan.
    topology: TPUs such as v5p:4x4x8, which need not be here (extra `tpu`), or
      `here`, the devices of this host. The layout and rematerialisation are
      chosen by the plan, whatever the config says.
    out: folder of the plan, runs/plan_CONFIG_TOPOLOGY by default. Programs
      compiled for it before are not compiled again.
    workers: number of processes that compile side by side.
    overwrite: replace the plan of another config or topology in the folder.
    json: write plan.json to the standard output too, and the tables to the
      standard error.
  """

  config: Annotated[Any, ConfigFile('experiments/familial_law.py:paper')]
  topology: str
  out: str | None = None
  workers: schema.Count = 1
  overwrite: bool = False
  json: bool = False
  config_file: str = ''


def _plan(given: Plan) -> str:
  study = registry.of_config(given.config)
  if study is None:
    title, runs = 'One run', [train_config.read(given.config)]
  elif not isinstance(study, execution.TrainedStudy):
    raise errors.UserError(
      f'--config: a study of kind {study.kind} is not planned for a pod; '
      'familial run --plan_only says what it costs'
    )
  else:
    config = study.read_config(given.config)
    title, runs = config.title, study.runs(config)
  name = pathlib.Path(given.config_file).name.replace('.py', '')
  default = f'runs/plan_{name}_{given.topology}'.replace(':', '_')
  with output_folder.claimed(given.out or default, 'plan', given) as folder:
    plan = pod.make(title, runs, given.topology, folder, given.workers)
    page_path = plan_page.write(folder, plan)
  shown = sys.stderr if given.json else sys.stdout
  print(plan_summary.text(plan), file=shown, flush=True)
  line = f'{plan_summary.headline(plan)}; wrote {page_path}'
  if not given.json:
    return line
  print(line, file=shown)
  return json.dumps(plan)


@dataclasses.dataclass(frozen=True)
class Report:
  """Flags of `familial report`.

  Attributes:
    workdir: folder of a study or a run.
  """

  workdir: Folder


def _report(given: Report) -> str:
  return f'wrote {page.write(given.workdir)}'


COMMANDS = {
  'run': Command(Run, _run),
  'train': Command(Train, _train),
  'plan': Command(Plan, _plan),
  'report': Command(Report, _report),
}
