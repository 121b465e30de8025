"""Logical axes of every array, and the mesh axes that they are split over.

A mesh has axes `data`, `fsdp` and `tensor` (or `member` and `data`). Rows of a
batch are split over `data` and `fsdp`; parameters over `fsdp` along the width
(fully sharded: gathered layer by layer where they are used) and over `tensor`
along heads, MLP and vocabulary. A parameter or an axis that the tables lack is an
error; it is never silently replicated.
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
  """Returns the axes of a parameter, given its path of keys.

  Raises:
    KeyError: if there is no such parameter.
  """
  part = name[0].rstrip('0123456789').removesuffix('_')
  return _PARAMETERS[(part, *name[1:])]


def names(
  axis: str, mesh: jax.sharding.AbstractMesh | jax.sharding.Mesh
) -> tuple[str, ...]:
  """Returns the axes of a mesh that an axis of an array is split over.

  Raises:
    KeyError: if an axis is unknown.
  """
  # Mesh axes of size 1 are left out: outputs of a program do not name them, and
  # the next call's inputs must have the same sharding.
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
  """Returns the partition of each array of parameters or an optimizer's state.

  Arrays that are not shaped like a parameter are replicated.
  """

  def one(path: tuple[Any, ...], leaf: Any) -> PartitionSpec:
    del leaf
    name = tuple(
      key.key for key in path if isinstance(key, jax.tree_util.DictKey)
    )
    return spec(of(name), mesh) if name else PartitionSpec()

  return jax.tree_util.tree_map_with_path(one, tree)


def constrain(x: Array, *axes: str) -> Array:
  """Constrains an array's sharding by its axes; without a mesh does nothing."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  return jax.lax.with_sharding_constraint(x, spec(axes, mesh))


def constrain_tree(tree: Any) -> Any:
  """Constrains a tree's shardings by `specs`; without a mesh does nothing."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return tree
  return jax.lax.with_sharding_constraint(tree, specs(tree, mesh))
