"""A study of layers and exits whose networks are of known regimes."""

import dataclasses
import pathlib

from experiments import depth_regimes as experiment
from familial.analysis import probe
from familial.analysis import trajectories
from familial.core import storage
from familial.studies import depth_regimes
from familial.studies import study
from familial.training import rows as rows_lib
from tests.analysis import paths
from tests.analysis import probes

# Networks by G: dense ones average, those of two exits stop by token.
STATES = {1: paths.walk, 2: paths.stopping, 4: paths.walk}


def write(folder: pathlib.Path) -> study.Summary[depth_regimes.Tables]:
  """Writes plan, rows, probes and summary of a study; returns the summary."""
  config = experiment.get_config('test')
  config.granularities = tuple(STATES)
  typed = depth_regimes.REGIMES.read_config(config)
  runs = depth_regimes.REGIMES.runs(typed)
  for run in runs:
    exits, seed = run.model.granularity, run.train.seed
    if (exits, seed) != (4, 1):  # This run has no probe.
      states = STATES[exits](run.model.depth, 8, 0.0, seed + 10 * exits)
      probe.write(
        probes.of_network(trajectories.of_states(states), seed, exits),
        folder / 'probes' / f'{run.cell}.json',
      )
    losses = [1.0] * exits
    rows = rows_lib.of_evaluation(
      run, run.cell, 'f00d', 1, 0.0, 0.1, losses, 1.0, 'finished'
    )
    storage.append(folder / 'rows.jsonl', rows)
  plan = {'study': 'depth_regimes', 'title': typed.title, 'cells': []}
  storage.write_json(folder / study.PLAN, {'schema': 1, **plan})
  summary = depth_regimes.REGIMES.summarise(typed, study.read(folder))
  summary = dataclasses.replace(summary, machine={'devices': '1 x test'})
  study.write_summary(folder, summary)
  return summary
