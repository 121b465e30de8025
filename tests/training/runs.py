"""What runs left in their folders."""

import jax
import numpy as np

from familial.core import run_folder
from familial.training import checkpoint
from familial.training import optimizer
from familial.training import step as step_lib


def rows(folder):
  """Returns the rows of a run as bytes."""
  return (folder / run_folder.ROWS).read_bytes()


def state(config, folder):
  """Returns a run's last checkpoint."""
  model, trained = config.model, config.train.trained
  like = jax.eval_shape(
    lambda: step_lib.init(
      model, trained, jax.random.key(0),
      optimizer.hyper(config.train, model.exits),
    )
  )  # fmt: skip
  like = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape,
      leaf.dtype,
      sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
    ),
    like,
  )
  checkpoints = checkpoint.Checkpoints(folder / 'checkpoints', 1)
  found = checkpoints.restore(like)
  checkpoints.close()
  return found


def same(config, folder, expected):
  """Whether a run has the rows and the last state of another, to the bit."""
  assert rows(folder) == rows(expected)
  jax.tree.map(
    np.testing.assert_array_equal,
    state(config, folder),
    state(config, expected),
  )
