"""A study so small that its runs train in a second, and rows of a known law."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import pathlib
import types
from typing import Any

import pytest

from familial.core import run_folder
from familial.core import storage
from familial.data import config as data_config
from familial.studies import isoflop
from familial.studies import plan as plan_lib
from familial.studies import study
from familial.studies import sweep
from familial.training import config as train_config
from familial.training import rows as rows_lib

SPEED = plan_lib.Speed((8, 32), (1e9, 4e9), 3.0, 'cpu')


@pytest.fixture(scope='session')
def make_study(
  text_data: data_config.DataConfig,
) -> Callable[..., isoflop.Config]:
  """Makes studies; each argument updates a section of the config."""

  def make(**sections: Any) -> isoflop.Config:
    values: dict[str, Any] = {
      'title': 'tiny',
      'data': {**dataclasses.asdict(text_data), 'seq_len': 16},
      'model': {'base_width': 8},
      'train': {'base_lr': 0.01, 'eval_tokens': 256, 'eval_batch_size': 8},
      'rules': {
        'batch_tokens': 64,
        'at_budget': 4e8,
        'batch_exponent': 0.0,
        'beta2': 0.99,
      },
      'grid': {
        'budgets': (4e8,),
        'shapes': ((8, 2, 1),),
        'granularities': (1, 2),
      },
      'fit': {'starts': 8, 'resamples': 10},
      'assumed': {'E': 1.0, 'A': 30.0, 'B': 90.0, 'alpha': 0.4, 'beta': 0.4},
      'arms': {},
    }
    for name, changes in sections.items():
      values[name] = {**values.get(name, {}), **changes}
    return isoflop.ISOFLOP.read_config(values)

  return make


@pytest.fixture(scope='session')
def write_rows() -> Callable[..., pathlib.Path]:
  """Writes the rows that a run would have left."""

  def write(
    workdir: pathlib.Path,
    run: train_config.RunConfig,
    losses: Sequence[float] | None,
    inherited: float = 0.0,
  ) -> pathlib.Path:
    folder = sweep.folder(workdir, run.cell)
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_lib.of_evaluation(
      run,
      folder.name,
      'f00d',
      run.train.steps,
      inherited,
      0.1,
      losses,
      1.0,
      'diverged' if losses is None else 'finished',
    )
    storage.append(folder / run_folder.ROWS, rows)
    return folder

  return write


@pytest.fixture(scope='session')
def make_plan() -> Callable[..., dict[str, Any]]:
  """Makes the plan of a study's runs, on a corpus and a machine that are not."""

  def make(
    kind: study.Study[Any, Any],
    config: Any,
    tokens: int = 10**6,
    workers: int = 1,
  ) -> dict[str, Any]:
    split = types.SimpleNamespace(tokens=range(tokens), bytes=tokens)
    corpus = types.SimpleNamespace(
      name='made',
      fingerprint='f00d',
      train=split,
      heldout=split,
      vocab_size=256,
    )
    runs = kind.runs(config)
    return plan_lib.make(kind.kind, config, runs, corpus, SPEED, workers)

  return make


@pytest.fixture(scope='session')
def results_of(write_rows: Any) -> Callable[..., study.Results]:
  """Writes finished runs whose losses a function gives, and reads them."""

  def make(
    folder: pathlib.Path,
    runs: Iterable[train_config.RunConfig],
    losses_of: Callable[[train_config.RunConfig], Sequence[float]],
  ) -> study.Results:
    for run in runs:
      write_rows(folder, run, losses_of(run))
    return study.read(folder)

  return make


@pytest.fixture
def calibrated(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[int]]:
  """Sets the FLOP/s that calibrations find; returns the workers of each."""
  found: list[int] = []
  speed = [0.0]

  def calibrate(runs: Any, workers: int) -> plan_lib.Speed:
    found.append(workers)
    return plan_lib.Speed((8, 8), (speed[0], speed[0]), 0.0, 'cpu')

  def at(flops_per_second: float) -> list[int]:
    speed[0] = flops_per_second
    return found

  monkeypatch.setattr(plan_lib, 'calibrate', calibrate)
  return at


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, write_rows: Any) -> set[str]:
  """Replaces training: runs finish at once, but for those in the set returned."""
  failing: set[str] = set()

  def execute(runs: Any, workdir: pathlib.Path, options: Any) -> list[str]:
    del options
    for run in runs:
      folder = sweep.folder(workdir, run.cell)
      if run.cell not in failing and run_folder.status(folder) == 'new':
        write_rows(workdir, run, [2.0] * run.model.granularity)
    return [run.cell for run in runs if run.cell in failing]

  monkeypatch.setattr(sweep, 'execute', execute)
  return failing
