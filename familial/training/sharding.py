"""Meshes of devices, and what lies where on them."""

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
  """Returns a run's mesh of axes `data`, `fsdp` and `tensor`.

  Where the layout leaves `data` open, it is as many of the devices that are
  left as divide both batches; with several processes all devices take part.

  Args:
    config: of the run.
    devices: all there are; by default JAX's.

  Raises:
    UserError: if this layout does not go with the devices, the batches or the
      model.
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
  """Returns a mesh of axes `member` and `data` for K members.

  Members first: they exchange nothing.
  """
  count = len(jax.devices())
  beside = math.gcd(size, count)
  return _mesh(
    {'member': beside, 'data': math.gcd(batch_size, count // beside)},
    jax.devices(),
  )


def members(tree: Any, over: Mesh) -> Any:
  """Returns a tree whose arrays' axis K, the first, is split over `member`.

  Of host arrays, or traced: then it says how a program's outputs lie.
  """
  # A program's outputs name no axis of one device, so neither do its inputs:
  # otherwise it would be compiled for either.
  spec = PartitionSpec(*['member'][: over.shape['member'] - 1])
  return jax.device_put(tree, NamedSharding(over, spec))


def members_batches(tree: Any, over: Mesh) -> Any:
  """Returns batches [T, K, B, ..] split over `member` and `data`."""
  return jax.device_put(
    tree, NamedSharding(over, PartitionSpec(None, 'member', 'data'))
  )


def part(rows: int, over: Mesh) -> tuple[int, int]:
  """Returns (index, count): this process has slice `index` of `count` of a
  batch's rows.

  Processes that share a `tensor` axis have the same slice.

  Raises:
    UserError: if its devices' rows do not lie side by side.
  """
  sharding = NamedSharding(over, axes.spec(('batch',), over))
  held = sharding.addressable_devices_indices_map((rows,)).values()
  mine = sorted({index[0].indices(rows)[:2] for index in held if index})
  first, last = mine[0][0], mine[-1][1]
  size = sum(stop - start for start, stop in mine)
  if size != last - first or rows % size or first % size:
    raise errors.UserError(
      f'layout: the rows of process {jax.process_index()} are not one equal '
      'slice of a batch on these devices'
    )
  return first // size, rows // size


def whole(arrays: dict[str, np.ndarray], over: Mesh) -> dict[str, jax.Array]:
  """Returns rows that every process holds, as `batch` does with its own."""
  sharding = NamedSharding(over, axes.spec(('batch',), over))
  return {name: _spread(value, sharding) for name, value in arrays.items()}


def batch(arrays: dict[str, np.ndarray], over: Mesh) -> dict[str, jax.Array]:
  """Returns rows, of which `part` is this process's, as global arrays split
  over the devices."""
  sharding = NamedSharding(over, axes.spec(('batch',), over))
  return {
    name: jax.make_array_from_process_local_data(sharding, value)
    for name, value in arrays.items()
  }


def shardings(tree: Any, over: Mesh) -> Any:
  """Returns where each array of a state lies; its leaves may be shapes."""
  return jax.tree.map(
    lambda spec: NamedSharding(over, spec), axes.specs(tree, over)
  )


def place(tree: Any, over: Mesh) -> Any:
  """Returns a state with each array where it belongs.

  With several processes, an array is global or the same in each of them.
  """

  def put(leaf: jax.Array, to: NamedSharding) -> jax.Array:
    if to.is_fully_addressable or not leaf.is_fully_addressable:
      return jax.device_put(leaf, to)
    return _spread(np.asarray(leaf), to)

  return jax.tree.map(put, tree, shardings(tree, over))


def _spread(value: np.ndarray, to: NamedSharding) -> jax.Array:
  """Returns an array that each process holds, of which each places its part."""
  return jax.make_array_from_callback(value.shape, to, value.__getitem__)


def _mesh(shape: dict[str, int], devices: Sequence[Any]) -> Mesh:
  taken = np.array(devices[: math.prod(shape.values())])
  return Mesh(
    taken.reshape(tuple(shape.values())),
    tuple(shape),
    axis_types=(AxisType.Auto,) * len(shape),
  )
