"""What each axis of an array is, and which axis of a mesh it is split over.

A mesh has axes `data`, `fsdp` and `tensor` (or `member` and `data`). Rows of a
batch are split over `data` and `fsdp`; parameters over `fsdp` along the width
(fully sharded: gathered layer by layer where they are used) and over `tensor`
along heads, MLP and vocabulary. Both tables are looked up strictly: a parameter
or an axis that they lack is an error, not something silently copied to every
device.
"""

from typing import Any

import jax
from jax.sharding import PartitionSpec

Array = jax.Array
_LAYER = {
  ('attention_norm', 'gain'): ('gain',),
  ('attention', 'q', 'kernel'): ('width', 'heads'),
  ('attention', 'k', 'kernel'): ('width', 'kv_heads'),
  ('attention', 'v', 'kernel'): ('width', 'kv_heads'),
  ('attention', 'o', 'kernel'): ('heads', 'width'),
  ('mlp_norm', 'gain'): ('gain',),
  ('mlp', 'gate', 'kernel'): ('width', 'mlp'),
  ('mlp', 'up', 'kernel'): ('width', 'mlp'),
  ('mlp', 'down', 'kernel'): ('mlp', 'width'),
}
_PARAMETERS = {
  ('embedding',): ('vocab', 'width'),
  ('unembedding',): ('width', 'vocab'),
  ('exit', 'norm', 'gain'): ('gain',),
  ('exit', 'unembedding'): ('width', 'vocab'),
  **{('exit', 'branch', *name): axes for name, axes in _LAYER.items()},
  **{('segment', *name): ('layers', *axes) for name, axes in _LAYER.items()},
}
_RULES: dict[str, tuple[str, ...]] = {
  'batch': ('data', 'fsdp'),
  'parts': (),
  'positions': (),
  'states': (),  # The width of activations.
  'width': ('fsdp',),
  'heads': ('tensor',),
  'kv_heads': ('tensor',),
  'mlp': ('tensor',),
  'vocab': ('tensor',),
  'layers': (),
  'gain': (),
}


def of(name: tuple[str, ...]) -> tuple[str, ...]:
  """Returns the axes of a parameter, given the keys that lead to it.

  Raises:
    KeyError: if there is no such parameter.
  """
  room = name[0].rstrip('0123456789').removesuffix('_')
  return _PARAMETERS[(room, *name[1:])]


def names(
  axis: str, mesh: jax.sharding.AbstractMesh | jax.sharding.Mesh
) -> tuple[str, ...]:
  """Returns the axes of a mesh that an axis of an array is split over.

  Raises:
    KeyError: if an axis is unknown.
  """
  # Mesh axes of one device are left out: a program's outputs do not name them,
  # and what it is given must look like what it returned.
  return tuple(name for name in _RULES[axis] if mesh.shape.get(name, 1) > 1)


def spec(
  axes: tuple[str, ...], mesh: jax.sharding.AbstractMesh | jax.sharding.Mesh
) -> PartitionSpec:
  """Returns how an array of these axes is split over a mesh.

  Raises:
    KeyError: if an axis is unknown.
  """
  split = [names(axis, mesh) for axis in axes]
  while split and not split[-1]:
    split.pop()
  return PartitionSpec(
    *(over[0] if len(over) == 1 else over or None for over in split)
  )


def specs(
  tree: Any, mesh: jax.sharding.AbstractMesh | jax.sharding.Mesh
) -> Any:
  """Returns how each array of a tree is split: parameters, and what is like
  them in an optimizer's state; the rest is whole everywhere."""

  def one(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
    del leaf
    name = tuple(
      key.key for key in path if isinstance(key, jax.tree_util.DictKey)
    )
    return spec(of(name), mesh) if name else PartitionSpec()

  return jax.tree_util.tree_map_with_path(one, tree)


def constrain(x: Array, *axes: str) -> Array:
  """Has an array lie as its axes say, where a mesh is set; else returns it."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(axes, mesh))


def constrain_tree(tree: Any) -> Any:
  """Has a tree's arrays lie as `specs` says, where a mesh is set."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return tree
  return jax.lax.with_sharding_constraint(tree, specs(tree, mesh))
