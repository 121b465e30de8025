import types

import numpy as np
import pytest

from familial.core import run_folder
from familial.core import storage
from familial.plots import training as plots
from familial.training import optimizer
from familial.training import progress


class _Run(types.SimpleNamespace):
  """A run by identity, as the reporter tells runs apart."""

  __hash__ = object.__hash__
  __eq__ = object.__eq__


@pytest.fixture
def make(run_config, tmp_path):
  """Makes what a reporter needs of a run, and keeps the rows that it logs."""

  def run(name):
    config = run_config()
    rows = []
    return _Run(
      config=config,
      until=config.train.steps,
      start=0,
      folder=tmp_path / name,
      hyper=optimizer.hyper(config.train, config.model.exits),
      source=types.SimpleNamespace(tokens_per_step=256),
      log=lambda step, values: rows.append({'step': step, **values}),
      flush=lambda: None,
      rows=rows,
    )

  return run


def test_runs_that_advance_together_share_the_seconds(make, monkeypatch):
  clock = iter(np.arange(0.0, 1e3))
  monkeypatch.setattr(progress.time, 'monotonic', lambda: float(next(clock)))
  runs = [make(name) for name in 'ab']
  with progress.Reporter(runs, quiet=True) as reporter:
    for step in range(1, 4):
      reporter.update(
        1, {run: [progress.Observation(step, 3.0, 0.5)] for run in runs}
      )
  # The first update ends compilation; each of the other two takes a second.
  for run in runs:
    assert [row['step'] for row in run.rows] == [1, 2, 3]
    assert [row['seconds_per_step'] for row in run.rows] == [0.5] * 3
    assert [row['tokens_per_second'] for row in run.rows] == [256.0] * 3
    assert [row['tokens'] for row in run.rows] == [256, 512, 768]


def test_every_curve_is_drawn_of_the_rows_that_are_written(make, tmp_path):
  run = make('a')
  with progress.Reporter([run], quiet=True) as reporter:
    for step in range(1, 4):
      reporter.update(1, {run: [progress.Observation(step, 3.0, 0.5)]})
  (tmp_path / 'a').mkdir()
  storage.append(tmp_path / 'a' / run_folder.PROGRESS, run.rows)
  panels = plots.curves([tmp_path / 'a']).to_dict()['concat']
  assert [panel['layer'][0]['encoding']['y']['field'] for panel in panels] == [
    'loss', 'rate', 'gradient_norm', 'tokens_per_second'
  ]  # fmt: skip
