"""What the axes of each array of a model are, when the model grows."""

import dataclasses

import numpy as np

from familial.expansion import maps


@dataclasses.dataclass(frozen=True, eq=False)
class Roles:
  """What the axes of an array are: of units, or all as they were.

  Attributes:
    rows: the axis that the array reads, or None.
    cols: the axis that it writes; of a gain, the one it lies along.
    divided: whether copies among the rows share what their source had.
    scale: of its values.
    ratio: of its gradient to that of its source, but for copies among `cols`.
    read_N: of a column's gradient, the share of its source's; None for equal
      shares among copies.
  """

  rows: maps.Axis | None
  cols: maps.Axis | None
  divided: bool = False
  scale: float = 1.0
  ratio: float = 1.0
  read_N: np.ndarray | None = None

  def gradients_N(self) -> np.ndarray:
    """Returns what a column's gradient is of its source's."""
    assert self.cols is not None
    return 1 / self.cols.copies_N if self.read_N is None else self.read_N


def of(growth: maps.Growth, path: tuple[str, ...]) -> Roles:
  """Returns what the axes of an array of a model are."""
  width, size = growth.width, growth.was.head_dim
  of_exit = path[0].startswith('exit_')
  if path[-1] == 'embedding':
    return Roles(None, width)
  if path[-1] == 'unembedding':
    return Roles(width, None)
  if path[-1] == 'gain':
    # The logits' own scale is the width's; see `maps`.
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
  # A key's gradient comes by the queries of its group.
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
