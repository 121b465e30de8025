"""A small study of width and depth, and rows that follow a law, untrained."""

import dataclasses

import numpy as np

from familial.core import run_folder
from familial.core import storage
from familial.studies import depth_law
from familial.studies import sweep
from familial.training import rows as rows_lib

LAW = {'c_width': 9.0, 'a_width': 0.8, 'c_depth': 1.2, 'a_depth': 0.5}
TRAIN = {
  'base_lr': 0.01, 'batch_size': 4, 'first_evaluation': 20, 'evaluations': 4,
}  # fmt: skip
RATE = 0.02  # by which losses at the other base rate are higher
TOKENS = 64  # of a step


def config(data, **changes):
  """Returns a study of three widths and three depths; `train` is updated."""
  values = depth_law.DEPTH.template().to_dict()
  values['train'] |= TRAIN | changes.pop('train', {})
  values |= {
    'title': 'tiny',
    'data': {**dataclasses.asdict(data), 'seq_len': 16},
    'widths': (8, 16, 32),
    'depths': (1, 2, 4),
    'tokens': 10_240,
    'seeds': (0, 1),
    'rates': (0.02,),
    'cutoffs': (0.0, 0.1),
    'fit': {'starts': 32, 'resamples': 50},
    **changes,
  }
  values['model']['base_width'] = 8
  return depth_law.DEPTH.read_config(values)


def loss_of(run, tokens):
  """Returns a run's loss, with noise of 0.2 % between seeds."""
  width, layers = run.model.width, run.model.depth
  noise = np.random.default_rng(width * layers + run.train.seed).normal()
  return (
    1.0 + 9 / width**0.8 + 1.2 / layers**0.5 + 40 / tokens**0.4
  ) * (1 + 0.002 * noise + RATE * (run.arm == 'rate'))  # fmt: skip


def write(study, workdir):
  """Writes the rows and the plan that a finished study would have left."""
  for run in depth_law.DEPTH.runs(study):
    folder = sweep.folder(workdir, run.cell)
    folder.mkdir(parents=True, exist_ok=True)
    for step in sorted(run.train.evaluated):
      status = 'finished' if step == run.train.steps else 'running'
      loss = loss_of(run, step * TOKENS)
      rows = rows_lib.of_evaluation(
        run, folder.name, 'f00d', step, 0.0, 0.1, [loss], 1.0, status
      )
      storage.append(folder / run_folder.ROWS, rows)
  plan = {'schema': 1, 'study': 'depth', 'title': study.title, 'cells': []}
  storage.write_json(workdir / 'plan.json', plan)
  return workdir
