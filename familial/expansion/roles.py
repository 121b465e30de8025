"""The grown axes of each array of a model, and how its values scale."""

import dataclasses

import numpy as np

from familial.expansion import maps


@dataclasses.dataclass(frozen=True, eq=False)
class Roles:
  """The roles of an array's axes; None for an axis that does not grow.

  Attributes:
    rows: the input axis.
    cols: the output axis; for a gain, its only axis.
    divided: whether copies among the rows share their source's values.
    scale: factor of the values.
    ratio: ratio of the gradient to that of the source, apart from copies among
      `cols`.
    read_N: share of the source's gradient that each column has; None for equal
      shares among copies.
  """

  rows: maps.Axis | None
  cols: maps.Axis | None
  divided: bool = False
  scale: float = 1.0
  ratio: float = 1.0
  read_N: np.ndarray | None = None

  def gradients_N(self) -> np.ndarray:
    """Returns the share of its source's gradient that each column has."""
    assert self.cols is not None
    return 1 / self.cols.copies_N if self.read_N is None else self.read_N


def of(growth: maps.Growth, path: tuple[str, ...]) -> Roles:
  """Returns the roles of the axes of an array, given its path."""
  width, size = growth.width, growth.was.head_dim
  of_exit = path[0].startswith('exit_')
  if path[-1] == 'embedding':
    return Roles(None, width)
  if path[-1] == 'unembedding':
    return Roles(width, None)
  if path[-1] == 'gain':
    # The logit scale depends on the width; see `maps`.
    inverse = of_exit and 'branch' not in path
    eta = 1 / growth.eta if inverse else growth.eta
    return Roles(None, width, scale=eta, ratio=1 / eta)
  heads, kv_heads = growth.heads.spread(size), growth.kv_heads.spread(size)
  rows, cols = {
    'q': (width, heads),
    'k': (width, kv_heads),
    'v': (width, kv_heads),
    'o': (heads, width),
    'gate': (width, growth.mlp),
    'up': (width, growth.mlp),
    'down': (growth.mlp, width),
  }[path[-2]]
  split = growth.config.split
  heads_H = growth.heads.shares_N(split)
  # The gradient of a key comes from the queries of its group.
  group = growth.was.heads // growth.was.kv_heads
  kv_K = heads_H.reshape(growth.now.kv_heads, -1).sum(1) / group
  read_N = {
    'q': np.repeat(heads_H, size),
    'k': np.repeat(kv_K, size),
    'v': np.repeat(kv_K, size),
    'gate': growth.mlp.shares_N(split),
    'up': growth.mlp.shares_N(split),
  }.get(path[-2])
  return Roles(rows, cols, divided=True, read_N=read_N)
