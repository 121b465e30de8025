"""Which cells of a sweep train together, as one population."""

from collections.abc import Sequence
import math

from familial.model import config as model_config
from familial.model import flops as flops_lib
from familial.training import config as train_config

Cells = Sequence[train_config.RunConfig]
# What a dispatched step should be worth: members are added up to this, for
# beyond it they win nothing and take memory.
_STEP_FLOPS = {'cpu': 1e10, 'gpu': 3e12, 'tpu': 3e12}
# How much a population may compute for each FLOP that its members need: it
# computes every exit for each of them, and as many steps as the longest takes.
_WASTE = 1.1


def groups(
  cells: Cells, backend: str, workers: int = 1
) -> list[list[train_config.RunConfig]]:
  """Returns cells in groups that `population.run` takes, in their order.

  Args:
    cells: of a sweep.
    backend: `cpu`, `gpu` or `tpu`.
    workers: processes among which the groups are shared: none goes without.
  """
  most = math.ceil(len(cells) / workers)
  alike: dict[object, list[train_config.RunConfig]] = {}
  for cell in sorted(cells, key=lambda cell: cell.train.steps):
    train = cell.train
    key = (
      model_config.common(cell.model),
      cell.data,
      train.trained,
      train.batch_size,
      train.checkpoint_seconds,
      cell.layout,
    )
    alike.setdefault(key, []).append(cell)
  found: list[list[train_config.RunConfig]] = []
  for bucket in alike.values():
    group: list[train_config.RunConfig] = []
    for cell in bucket:
      if len(group) == most or not _pays([*group, cell], backend):
        found.append(group)
        group = []
      group.append(cell)
    found.append(group)
  order = {cell.cell: place for place, cell in enumerate(cells)}
  return sorted(
    filter(None, found), key=lambda group: min(order[c.cell] for c in group)
  )


def _pays(group: Cells, backend: str) -> bool:
  """Whether cells are better trained together than some of them apart."""
  if len(group) == 1:
    return True
  if group[0].layout != train_config.LayoutConfig():
    return False  # What needs a layout fills its devices alone.
  shared = model_config.union([cell.model for cell in group])
  step = len(group) * _step(group[0], shared)
  spent = step * max(cell.train.steps for cell in group)
  needed = sum(cell.train.steps * _step(cell, cell.model) for cell in group)
  return step <= _STEP_FLOPS[backend] and spent <= _WASTE * needed


def _step(
  cell: train_config.RunConfig, model: model_config.ModelConfig
) -> float:
  """Returns the FLOPs of a cell's step with this model."""
  tokens = cell.train.batch_size * cell.data.seq_len
  return tokens * flops_lib.train(model, cell.data.seq_len, cell.train.trained)
