"""Trains a model on: an import, an export, or a finished run.

`familial train --config=experiments/train_on.py:FOLDER --workdir=runs/on`

Model, tokenizer and windows are the folder's; so are the corpus, the batch and
the optimizer, with a tenth of the rate, where it was trained here. Of what an
import was trained on nothing is known: name your text (`data.corpus`,
`data.path`), and a shorter `data.seq_len` where its context is long.
`--config.train.trained=exits` trains its new exits alone, on a frozen trunk.
"""

import pathlib

import ml_collections

from familial.convert import load
from familial.core import errors
from familial.core import storage


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the run that goes on from a folder's model.

  Args:
    arg: the folder; a relative one is below the current directory.

  Raises:
    UserError: if none is named, or it holds no model.
  """
  if not arg:
    raise errors.UserError('it needs a model, train_on:FOLDER')
  config = load.template_of(arg)
  if 'import' in storage.read_json(pathlib.Path(arg) / 'lineage.json'):
    config.train.update(batch_size=16, base_lr=1e-4)
  else:
    config.train.update(base_lr=config.train.base_lr / 10, weighting_end='')
  config.train.update(steps=1000, warmup_steps=50, evaluations=10)
  return config
