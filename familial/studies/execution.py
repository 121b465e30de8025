"""Studies that train runs: from a plan over the runs to `summary.json`."""

import abc
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import os
import pathlib
import sys
from typing import Any
from typing import TypeVar

import ml_collections

from familial.core import errors
from familial.core import progress_bar
from familial.core import run_folder
from familial.core import schema
from familial.core import storage
from familial.data import config as data_config
from familial.data import packing
from familial.model import config as model_config
from familial.studies import plan as plan_lib
from familial.studies import shapes
from familial.studies import study as study_lib
from familial.studies import sweep
from familial.training import config as train_config

Config = TypeVar('Config', bound=shapes.TrainedConfig)
Tables = TypeVar('Tables')
Runs = list[train_config.RunConfig]


class TrainedStudy(study_lib.Study[Config, Tables]):
  """A kind of study whose runs are trained as `familial train` does.

  Attributes:
    free: keys of the config that only the analysis reads.
    takes_more: whether a begun study takes more runs, whose results do not depend
      on which others there are.
    run_keys: keys of TrainConfig that the runs decide for themselves.
    train_defaults: defaults of TrainConfig that this kind changes.
  """

  free: tuple[str, ...] = ()
  takes_more: bool = True
  run_keys: tuple[str, ...] = ()
  train_defaults: Mapping[str, Any] = {}

  @abc.abstractmethod
  def runs(self, config: Config) -> Runs:
    """Returns the runs of a study; their names are unique."""

  def may_change(self, config: Config) -> tuple[str, ...]:
    """Returns the keys of a config that may change once there are runs."""
    del config
    return (*train_config.FREE, 'title', *self.free)

  def plan(self, config: Config, runs: Runs) -> Mapping[str, Any]:
    """Returns the entries of `plan.json` other than the runs and their cost."""
    del config, runs
    return {}

  def plan_lines(self, plan: Mapping[str, Any]) -> Iterable[str]:
    """Yields the lines of a printed plan other than the runs and their cost."""
    del plan
    return ()

  def affordable(
    self, config: Config, runs: Runs, speed: plan_lib.Speed, workers: int
  ) -> Runs:
    """Returns the runs that a limit of time leaves; all of them by default."""
    del config, speed, workers
    return runs

  def execute(
    self,
    config: Config,
    runs: Runs,
    workdir: pathlib.Path,
    options: sweep.Options,
  ) -> list[str]:
    """Trains the runs as `sweep.execute` does; returns those that failed."""
    del config
    return sweep.execute(runs, workdir, options)

  def fit(self, config: Config, results: study_lib.Results) -> Iterable[str]:
    """Fits laws to the rows and writes `fits/`; yields why one was not fitted."""
    del config, results
    return ()

  def template(self) -> ml_collections.ConfigDict:
    """Returns a config with every default; an experiment file sets the rest."""
    config = super().template()
    config.data = schema.defaults(data_config.DataConfig)
    config.model = {
      **schema.defaults(model_config.ModelConfig, shapes.SHAPE_KEYS),
      **shapes.RATIOS,
    }
    config.train = {
      **schema.defaults(train_config.TrainConfig, self.run_keys),
      **self.train_defaults,
    }
    return config

  def run(
    self,
    config: Config,
    workdir: str | os.PathLike[str],
    options: study_lib.Options = study_lib.Options(),
  ) -> study_lib.Outcome:
    """Trains what is missing, fits and analyses; see `Study.run`."""
    workdir = pathlib.Path(workdir)
    runs = self.runs(config)
    plan, runs = self._plan(config, runs, workdir, options)
    lines = [
      f'on {study_lib.machine()["devices"]}; laws and figures come after that '
      'time',
      *self.plan_lines(plan),
    ]
    print(plan_lib.text(plan, lines), flush=True)
    if options.plan_only:
      return study_lib.Outcome(
        f'planned only; wrote {workdir / study_lib.PLAN}', planned_only=True
      )
    failed = self.execute(config, runs, workdir, options)
    for cell in failed:
      log = sweep.folder(workdir, cell) / 'error.log'
      why = (
        f'failed, see {log}'
        if log.exists()
        else 'not finished: its parent run failed, or its worker was killed'
      )
      print(f'{cell}: {why}', file=sys.stderr)
    progress_bar.say('fitting laws and summarising ...')
    # Hosts that share the folder finish one after another.
    with storage.lock(workdir, wait=True):
      results = study_lib.read(workdir)
      summary = self.summarise(config, results, self.fit(config, results))
      study_lib.write_summary(workdir, summary)
    return study_lib.Outcome(summary.summary_line, tuple(failed), len(runs))

  def _plan(
    self,
    config: Config,
    runs: Runs,
    workdir: pathlib.Path,
    options: study_lib.Options,
  ) -> tuple[Mapping[str, Any], Runs]:
    """Checks the folder and returns the study's plan and the runs in it.

    The process that begins first decides on the corpus and the runs, for all
    hosts; another number of workers changes the expected time alone. A config with
    more runs adds them to the plan. Nothing is written before all is checked.
    """
    workers = options.workers
    self._check_folder(config, runs, workdir)
    corpus = packing.load(config.data)
    sweep.check(runs, corpus)
    path = workdir / study_lib.PLAN
    with storage.lock(workdir, wait=True):
      known = self._check_folder(config, runs, workdir)
      planned = storage.read_own(path) if known and path.exists() else None
      names: set[str] = set()
      if planned:
        first = planned['corpus']['fingerprint']
        if first != corpus.fingerprint:
          raise errors.UserError(
            f'{workdir} was planned on corpus {first}, not '
            f'{corpus.fingerprint}, which is what '
            f'data.corpus={config.data.corpus!r} gives here now; use another '
            'workdir, or that text'
          )
        names = {row['cell'] for row in planned['cells']}
        # The time allowed was too little for some of the runs known then.
        runs = [r for r in runs if r.cell in names or r.cell not in known]
        if planned['workers'] == workers and all(
          run.cell in names and _same(known.get(run.cell, run), run)
          for run in runs
        ):
          run_folder.write_config(workdir, config)
          return planned, runs
      print(
        'compiling and timing the narrowest and the widest model ...',
        flush=True,
      )
      speed = plan_lib.calibrate(runs, workers)
      if not names.issuperset(run.cell for run in runs):
        fitting = self.affordable(config, runs, speed, workers)
        names.update(run.cell for run in fitting)
        runs = [run for run in runs if run.cell in names]
      plan = {
        **plan_lib.make(self.kind, config, runs, corpus, speed, workers),
        **self.plan(config, runs),
        'begun': not options.plan_only,
      }
      if not (
        planned and options.plan_only
      ):  # What has begun goes on as it is.
        run_folder.write_config(workdir, config)
        storage.write_json(path, plan)
    return plan, runs

  def _check_folder(
    self, config: Config, runs: Runs, workdir: pathlib.Path
  ) -> Mapping[str, train_config.RunConfig]:
    """Returns the runs of the study that a folder holds; none if it is free.

    Raises:
      UserError: if it cannot be written, or a run that has begun would be another
        one by this config.
    """
    storage.check_writable(workdir)
    path, plan = workdir / 'config.json', workdir / study_lib.PLAN
    if not path.exists():
      return {}
    changes = list(
      run_folder.differences(workdir, config, self.may_change(config))
    )
    begun = sweep.begun(workdir)
    planned = storage.read_own(plan) if plan.exists() else {'begun': False}
    if not run_folder.is_of(workdir, config):
      run_folder.check_folder(workdir, config)  # Refuses it.
    if not begun and (changes or not planned.get('begun', True)):
      return {}  # Of a plan that was only looked at, or a start that failed.
    values = storage.read_own(path)
    values.pop('schema', None)
    was = {run.cell: run for run in self.runs(self.read_config(values))}
    now = {run.cell: run for run in runs}
    for key, before, after in changes:
      for cell in begun:
        if (
          self.takes_more
          and cell in now
          and _same(was.get(cell, now[cell]), now[cell])
        ):
          continue
        raise errors.UserError(
          f'{workdir} was made with {key} = {before!r}, not {after!r}, and its '
          f'run {cell} has begun; use another workdir, or that value'
        )
    return was


def _same(was: train_config.RunConfig, now: train_config.RunConfig) -> bool:
  """Whether two configs are those of one run, whose results are the same."""
  return not any(run_folder.compare(was, now, train_config.FREE))


def named_once(runs: Sequence[train_config.RunConfig]) -> Runs:
  """Returns runs without repetitions.

  Raises:
    UserError: if two different runs have one name.
  """
  named: dict[str, train_config.RunConfig] = {}
  for run in runs:
    if named.setdefault(run.cell, run) != run:
      raise errors.UserError(f'{run.cell}: two different cells of this name')
  return list(named.values())
