"""Meshes of devices and the shardings of arrays over them."""

from collections.abc import Sequence
import math
from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from familial.core import errors
from familial.model import axes
from familial.training import config as train_config

Mesh = jax.sharding.Mesh


def mesh(
  config: train_config.RunConfig, devices: Sequence[Any] | None = None
) -> Mesh:
  """Returns a run's mesh with axes `data`, `fsdp` and `tensor`.

  If the layout leaves `data` open, it is the largest number of the remaining
  devices that divides both batches; with several processes it is all of them.

  Args:
    config: config of the run.
    devices: all devices; by default JAX's.

  Raises:
    UserError: if the layout does not fit the devices, the batches or the model.
  """
  layout, train, model = config.layout, config.train, config.model
  devices = jax.devices() if devices is None else devices
  processes = len({device.process_index for device in devices})
  for key, size, what, number in (
    ('tensor', layout.tensor, 'model.heads', model.heads),
    ('tensor', layout.tensor, 'model.kv_heads', model.kv_heads),
    ('tensor', layout.tensor, 'model.mlp_width', model.mlp_width),
    ('tensor', layout.tensor, 'model.vocab_size', model.vocab_size),
    ('fsdp', layout.fsdp, 'model.width', model.width),
    ('fsdp', layout.fsdp, 'train.batch_size', train.batch_size),
    ('fsdp', layout.fsdp, 'train.eval_batch_size', train.eval_batch_size),
  ):
    if number % size:
      raise errors.UserError(
        f'layout.{key}: {size} does not divide {what} {number}'
      )
  within = layout.fsdp * layout.tensor
  rows = math.gcd(train.batch_size, train.eval_batch_size) // layout.fsdp
  data = layout.data or math.gcd(rows, len(devices) // within)
  if processes > 1 and not layout.data:
    data = len(devices) // within
  if data * within > len(devices) or not data:
    raise errors.UserError(
      f'layout: {layout.data or 1} x {layout.fsdp} x {layout.tensor} devices '
      f'are asked for, and there are {len(devices)}'
    )
  if processes > 1 and data * within != len(devices):
    raise errors.UserError(
      f'layout: {data} x {layout.fsdp} x {layout.tensor} devices of '
      f'{len(devices)}: the {processes} processes need all of them'
    )
  if rows % data:
    raise errors.UserError(
      f'layout.data: {data} x fsdp {layout.fsdp} does not divide '
      f'train.batch_size {train.batch_size} and train.eval_batch_size '
      f'{train.eval_batch_size}'
    )
  if train.batch_size % (data * layout.fsdp * layout.microbatches):
    raise errors.UserError(
      f'layout.microbatches: {layout.microbatches} does not divide the '
      f'{train.batch_size // (data * layout.fsdp)} rows that a device has of '
      f'train.batch_size {train.batch_size}'
    )
  return _mesh(
    {'data': data, 'fsdp': layout.fsdp, 'tensor': layout.tensor}, devices
  )


def population(size: int, batch_size: int) -> Mesh:
  """Returns a mesh with axes `member` and `data` for K members.

  Devices are split among members first, because members exchange nothing.
  """
  count = len(jax.devices())
  beside = math.gcd(size, count)
  return _mesh(
    {'member': beside, 'data': math.gcd(batch_size, count // beside)},
    jax.devices(),
  )


def members(tree: Any, over: Mesh) -> Any:
  """Returns a tree whose arrays' first axis, K, is split over `member`.

  The arrays are on the host, or traced outputs of a program.
  """
  # Outputs of a program name no mesh axis of size 1. Inputs must not either, or
  # the program would be compiled twice.
  spec = PartitionSpec(*['member'][: over.shape['member'] - 1])
  return jax.device_put(tree, NamedSharding(over, spec))


def members_batches(tree: Any, over: Mesh) -> Any:
  """Returns batches [T, K, B, ..] split over `member` and `data`."""
  return jax.device_put(
    tree, NamedSharding(over, PartitionSpec(None, 'member', 'data'))
  )


def part(rows: int, over: Mesh) -> tuple[int, int]:
  """Returns (index, count): this process holds slice `index` of `count`.

  Processes that share a `tensor` axis hold the same slice of a batch's rows.

  Raises:
    UserError: if the rows of this process's devices are not contiguous.
  """
  sharding = NamedSharding(over, axes.spec(('batch',), over))
  indices = sharding.addressable_devices_indices_map((rows,)).values()
  slices = sorted({index[0].indices(rows)[:2] for index in indices if index})
  first, last = slices[0][0], slices[-1][1]
  size = sum(stop - start for start, stop in slices)
  if size != last - first or rows % size or first % size:
    raise errors.UserError(
      f'layout: the rows of process {jax.process_index()} are not one equal '
      'slice of a batch on these devices'
    )
  return first // size, rows // size


def whole(arrays: dict[str, np.ndarray], over: Mesh) -> dict[str, jax.Array]:
  """Returns rows that every process holds as arrays split over the devices."""
  sharding = NamedSharding(over, axes.spec(('batch',), over))
  return {name: _spread(value, sharding) for name, value in arrays.items()}


def batch(arrays: dict[str, np.ndarray], over: Mesh) -> dict[str, jax.Array]:
  """Returns this process's `part` of rows as arrays split over all devices."""
  sharding = NamedSharding(over, axes.spec(('batch',), over))
  return {
    name: jax.make_array_from_process_local_data(sharding, value)
    for name, value in arrays.items()
  }


def shardings(tree: Any, over: Mesh) -> Any:
  """Returns the sharding of each array of a state, or of its shapes."""
  return jax.tree.map(
    lambda spec: NamedSharding(over, spec), axes.specs(tree, over)
  )


def place(tree: Any, over: Mesh) -> Any:
  """Returns a state with the shardings of `shardings`.

  With several processes, an array is global or equal in all of them.
  """

  def put(leaf: jax.Array, to: NamedSharding) -> jax.Array:
    if to.is_fully_addressable or not leaf.is_fully_addressable:
      return jax.device_put(leaf, to)
    return _spread(np.asarray(leaf), to)

  return jax.tree.map(put, tree, shardings(tree, over))


def _spread(value: np.ndarray, to: NamedSharding) -> jax.Array:
  """Returns a global array of which each process places its part of `value`."""
  return jax.make_array_from_callback(value.shape, to, value.__getitem__)


def _mesh(shape: dict[str, int], devices: Sequence[Any]) -> Mesh:
  taken = np.array(devices[: math.prod(shape.values())])
  return Mesh(
    taken.reshape(tuple(shape.values())),
    tuple(shape),
    axis_types=(AxisType.Auto,) * len(shape),
  )
