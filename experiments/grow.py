"""Grows a finished run into a model of twice the depth, and trains it on.

`familial train --config=experiments/grow.py:FOLDER --workdir=runs/grown`, or
`familial expand --checkpoint=FOLDER --to=experiments/grow.py:FOLDER --out=OUT`
for the grown model alone. The old exits stay, so it is a family of which they are
members. Another depth needs its exits too (`--config.model.depth=6
--config.model.exits='(2,4,6)'`); a width its heads, key/value heads and MLP, and
`--config.growth.width=replicate`.

Data, batch and optimizer are the folder's, and the data go on where it stopped.
"""

import ml_collections

from familial.convert import load
from familial.core import errors


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """Returns the run that grows a folder's model.

  Args:
    arg: the folder; a relative one is below the current directory.

  Raises:
    UserError: if none is named, or it holds no model.
  """
  if not arg:
    raise errors.UserError('it needs a model, grow:FOLDER')
  config = load.template_of(arg)
  depth = 2 * config.model.depth
  config.model.update(depth=depth, exits=(*config.model.exits, depth))
  config.growth.depth = 'identity'
  return config
