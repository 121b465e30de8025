"""A study of layers and exits whose networks are of known regimes."""

import dataclasses
import pathlib

from experiments import depth_regimes as experiment
from familial.analysis import probe
from familial.analysis import trajectories
from familial.core import storage
from familial.studies import depth_regimes
from familial.studies import study
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
    if (exits, seed) == (4, 1):  # This run has no probe.
      continue
    states = STATES[exits](run.model.depth, 8, 0.0, seed + 10 * exits)
    probe.write(
      probes.of_network(trajectories.of_states(states), seed, exits),
      folder / 'probes' / f'{run.cell}.json',
    )
  storage.append(
    folder / 'rows.jsonl',
    [
      {
        'schema': 1, 'run': run.cell, 'cell': run.cell, 'arm': run.arm,
        'status': 'finished', 'budget': run.budget, 'step': 1, 'exit': exit_,
        'width': 8, 'depth': run.model.depth, 'heads': 1, 'loss': 1.0,
        'exits': run.model.granularity, 'exit_layers': run.model.exits,
        'exit_kind': 'head', 'params_full': 1.0, 'tokens': 1, 'flops': 1.0,
        'epochs': 0.0, 'base_lr': 0.1, 'seed': run.train.seed,
      }
      for run in runs
      for exit_ in range(1, run.model.granularity + 1)
    ],
  )  # fmt: skip
  plan = {'study': 'depth_regimes', 'title': typed.title, 'cells': []}
  storage.write_json(folder / study.PLAN, {'schema': 1, **plan})
  summary = depth_regimes.REGIMES.summarise(typed, study.read(folder))
  summary = dataclasses.replace(summary, machine={'devices': '1 x test'})
  study.write_summary(folder, summary)
  return summary
