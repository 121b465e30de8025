"""Bytes that a device reads and makes when a model grows on a pod."""

from collections.abc import Sequence
import math
from typing import Any

import jax

from familial.expansion import config as growth_config
from familial.expansion import grown
from familial.expansion import maps
from familial.model import transformer
from familial.planning import compiled
from familial.training import config as train_config
from familial.training import sharding


def of(
  cell: train_config.RunConfig,
  cells: Sequence[train_config.RunConfig],
  devices: Sequence[Any],
) -> dict[str, Any] | None:
  """Returns how a run grows from another one of the plan; None if it does not.

  Args:
    cell: the run, as it is laid out.
    cells: of the plan, of which one may be its parent.
    devices: that it is laid out on.

  Returns:
    `parent`, its name; `exact_exits`, how many of its exits stay the same
    function; and in bytes what a device `reads` of it, what it `makes`, and the
    `whole` of the grown model, with the moments where they are carried.
  """
  parents = {f'../{parent.cell}': parent for parent in cells}
  parent = parents.get(cell.train.init_from)
  if parent is None or cell.growth == growth_config.NONE:
    return None
  planned = maps.plan(cell.growth, parent.model, cell.model)
  shapes = jax.eval_shape(
    lambda: transformer.init(cell.model, jax.random.key(0))
  )
  like = compiled.placed(
    shapes, sharding.shardings(shapes, sharding.mesh(cell, devices))
  )

  def part(leaf: jax.ShapeDtypeStruct) -> int:
    assert leaf.sharding is not None
    shape = leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize

  # The moments lie as the parameters do.
  trees = 1 if cell.growth.state == 'reset' else 3
  return {
    'parent': parent.cell,
    'exact_exits': len(planned.exact_exits()),
    'reads': trees * grown.reads(planned, like),
    'makes': trees * sum(map(part, jax.tree.leaves(like))),
    'whole': trees
    * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)),
  }
