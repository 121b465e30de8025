"""A small study of families, and rows that follow a law, with no run trained."""

import dataclasses
import math

import numpy as np

from familial.core import storage
from familial.studies import families
from familial.training import rows as rows_lib

# Log loss over that of `separate`, by way.
WORSE = {'separate': 0.0, 'chain': -0.02, 'exits': 0.05}
SLOPE = 0.1  # of log loss over log C


def values(data, **changes):
  """Returns the config's values; `train` is updated, others are replaced."""
  train = {
    'batch_size': 4,
    'base_lr': 0.01,
    'eval_tokens': 500,
    'eval_batch_size': 8,
  }
  return {
    'title': 'Families',
    'data': dataclasses.asdict(data),
    'model': {'base_width': 16},
    'sizes': ((8, 1, 1), (8, 2, 1)),
    'budgets': (1e9,),
    'ways': {
      'separate': {'kind': 'separate'},
      'chain': {
        'kind': 'chain', 'against': ('separate',), 'growth': {'depth': 'identity'},
      },
      'exits': {'kind': 'exits', 'against': ('separate',)},
    },
    **changes,
    'train': {**train, **changes.get('train', {})},
  }  # fmt: skip


def config(data, **changes):
  return families.FAMILIES.read_config(values(data, **changes))


def write(study, folder, without=()):
  """Writes FOLDER/rows.jsonl: noise is 1e-3, the same for a seed and a budget.

  Args:
    study: config.
    folder: to write in.
    without: names of runs that have no rows.
  """
  rng = np.random.default_rng(0)
  written = set(without)
  for place, family in families.families(study).items():
    noise = rng.normal(scale=1e-3)
    for run, stage in zip(family.runs, family.stages, strict=True):
      if run.cell in written:
        continue
      written.add(run.cell)
      fall = 1 - SLOPE * math.log(place.budget / 1e9) + noise
      losses = [
        math.exp(fall - 0.1 * layer + WORSE[place.way])
        for layer in run.model.exits
      ]
      rows = rows_lib.of_evaluation(
        run, run.cell, 'f00d', run.train.steps, stage.total - stage.flops, 0.1,
        losses, 1.0, 'finished',
      )  # fmt: skip
      storage.append(folder / 'rows.jsonl', rows)
