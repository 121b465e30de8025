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
    free: sections of the config that may change once there are runs.
    run_keys: keys of TrainConfig that the runs decide for themselves.
    train_defaults: defaults of TrainConfig that this kind changes.
  """

  free: tuple[str, ...] = ('layout',)
  run_keys: tuple[str, ...] = ()
  train_defaults: Mapping[str, Any] = {}

  @abc.abstractmethod
  def runs(self, config: Config) -> Runs:
    """Returns the runs of a study; their names are unique."""

  def may_change(self, config: Config) -> tuple[str, ...]:
    """Returns the sections of a config that may change once there are runs."""
    del config
    return self.free

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
    run_folder.open_folder(workdir, config, free=self.may_change(config))
    plan, runs = self._plan(config, runs, workdir, options)
    lines = list(self.plan_lines(plan))
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
    """Returns the study's plan and the runs in it.

    The process that begins first decides on the corpus and the runs, for all
    hosts; another number of workers changes the expected time alone.
    """
    workers, begin = options.workers, not options.plan_only
    corpus = packing.load(config.data)
    path = workdir / study_lib.PLAN
    with storage.lock(workdir, wait=True):
      planned = storage.read_own(path) if path.exists() else None
      if planned and not planned.get('begun', True):
        planned = None  # By --plan_only, perhaps on another machine.
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
        runs = [run for run in runs if run.cell in names]
        if planned['workers'] == workers:
          return planned, runs
        begin = True
      print('calibrating on the narrowest and the widest model ...', flush=True)
      speed = plan_lib.calibrate(runs, workers)
      if not planned:
        runs = self.affordable(config, runs, speed, workers)
      plan = {
        **plan_lib.make(self.kind, config, runs, corpus, speed, workers),
        **self.plan(config, runs),
        'begun': begin,
      }
      storage.write_json(path, plan)
    return plan, runs


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
