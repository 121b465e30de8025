"""Runs in processes of their own, and what runs left in their folders."""

import os
import pickle
import subprocess
import sys

import jax
import numpy as np

from familial.core import run_folder
from familial.training import checkpoint
from familial.training import optimizer
from familial.training import step as step_lib


def start(program, value, path, *arguments, eight=False):
  """Starts a program that reads a pickled value, on eight devices if asked.

  Args:
    program: text of the program; its first argument is the file of the value.
    value: what it reads.
    path: file of the value.
    *arguments: more arguments of the program.
    eight: whether the process has eight devices.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(pickle.dumps(value))
  flags = os.environ.get('XLA_FLAGS', '')
  if eight:
    flags = f'{flags} --xla_force_host_platform_device_count=8'
  return subprocess.Popen(
    [sys.executable, '-c', program, str(path), *map(str, arguments)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, 'XLA_FLAGS': flags},
  )


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
