"""Where arrays live: batches split over the devices, parameters on each."""

import math
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np


def mesh(*batch_sizes: int) -> jax.sharding.Mesh:
  """Returns a mesh of one axis `data`, as many devices as divide every batch.

  With several processes all devices take part, and each B must be a multiple.
  """
  devices = jax.devices()
  if jax.process_count() == 1:
    devices = devices[: math.gcd(*batch_sizes, len(devices))]
  return jax.sharding.Mesh(
    np.array(devices), ('data',), axis_types=(AxisType.Auto,)
  )


def population(size: int, batch_size: int) -> jax.sharding.Mesh:
  """Returns a mesh of axes `member` and `data` for K members.

  Members first: they exchange nothing.
  """
  devices = jax.devices()
  beside = math.gcd(size, len(devices))
  within = math.gcd(batch_size, len(devices) // beside)
  return jax.sharding.Mesh(
    np.array(devices[: beside * within]).reshape(beside, within),
    ('member', 'data'),
    axis_types=(AxisType.Auto,) * 2,
  )


def members(tree: Any, over: jax.sharding.Mesh) -> Any:
  """Returns a tree whose arrays' axis K, the first, is split over `member`.

  Of host arrays, or traced: then it says how a program's outputs lie.
  """
  # A program's outputs name no axis of one device, so neither do its inputs:
  # otherwise it would be compiled for either.
  spec = PartitionSpec(*['member'][: over.shape['member'] - 1])
  return jax.device_put(tree, NamedSharding(over, spec))


def members_batches(tree: Any, over: jax.sharding.Mesh) -> Any:
  """Returns batches [T, K, B, ..] split over `member` and `data`."""
  return jax.device_put(
    tree, NamedSharding(over, PartitionSpec(None, 'member', 'data'))
  )


def batch(
  arrays: dict[str, np.ndarray], over: jax.sharding.Mesh
) -> dict[str, jax.Array]:
  """Returns a process's rows as global arrays split over `data`."""
  sharding = NamedSharding(over, PartitionSpec('data'))
  return {
    name: jax.make_array_from_process_local_data(sharding, value)
    for name, value in arrays.items()
  }


def replicate(tree: Any, over: jax.sharding.Mesh) -> Any:
  """Returns a tree with every array whole on every device."""
  return jax.device_put(tree, NamedSharding(over, PartitionSpec()))
