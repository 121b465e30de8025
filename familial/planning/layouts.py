"""Layouts that a study could take on some devices, best first."""

import collections
from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses

from familial.core import errors
from familial.planning import chips
from familial.planning import roofline
from familial.training import config as train_config
from familial.training import sharding

Cells = Sequence[train_config.RunConfig]
# Beyond it, what a tensor axis sends is never worth what it saves.
_TENSOR = 16


@dataclasses.dataclass(frozen=True)
class Layout(train_config.LayoutConfig):
  """A layout of a study's steps on devices.

  Attributes:
    remat: as in `ModelConfig`.
  """

  remat: bool = False

  @property
  def mesh(self) -> dict[str, int]:
    """Sizes of the mesh's axes."""
    return {'data': self.data, 'fsdp': self.fsdp, 'tensor': self.tensor}

  @property
  def flags(self) -> str:
    """The flags that give a config this layout."""
    return (
      f'--config.layout.data={self.data} --config.layout.fsdp={self.fsdp} '
      f'--config.layout.tensor={self.tensor} '
      f'--config.layout.microbatches={self.microbatches} '
      f'--config.model.remat={self.remat}'
    )


def apply(
  config: train_config.RunConfig, layout: Layout
) -> train_config.RunConfig:
  """Returns a run in a layout."""
  return dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, remat=layout.remat),
    layout=train_config.LayoutConfig(
      layout.data, layout.fsdp, layout.tensor, layout.microbatches
    ),
  )


def ranked(
  cells: Cells, devices: Sequence[object], chip: chips.Chip
) -> list[Layout]:
  """Returns the layouts that all cells can take, best first.

  First those whose memory suffices by the roofline's arithmetic, by the time of
  all cells' steps if nothing overlapped; then the others, by memory.

  Raises:
    UserError: if there is none.
  """
  # Runs that differ in seeds and rates alone are of one step.
  steps: collections.Counter[train_config.RunConfig] = collections.Counter()
  for cell in cells:
    train = dataclasses.replace(
      cell.train, steps=1, warmup_steps=0, seed=0, base_lr=1.0
    )
    alike = dataclasses.replace(cell, cell='', arm='', budget=0.0, train=train)
    steps[alike] += cell.train.steps
  found = []
  for layout in _all(len(devices)):
    try:
      laid = {apply(cell, layout): count for cell, count in steps.items()}
      for cell in laid:
        sharding.mesh(cell, devices)
    except errors.UserError:
      continue
    works = {cell: roofline.work(cell, layout.mesh) for cell in laid}
    needs = max(work.memory for work in works.values())
    seconds = sum(
      count * roofline.times(works[cell], chip).apart
      for cell, count in laid.items()
    )
    full = needs > chip.memory
    found.append(((full, needs if full else seconds), layout))
  if not found:
    raise errors.UserError(
      f'--topology: no layout on {len(devices)} devices divides the batches, '
      'heads and widths of all cells'
    )
  return [layout for _, layout in sorted(found, key=lambda pair: pair[0])]


def memory(cells: Cells, layout: Layout) -> float:
  """Returns the bytes that a device needs, by the roofline's arithmetic, for
  whichever of the cells needs most."""
  return max(
    roofline.work(apply(cell, layout), layout.mesh).memory for cell in cells
  )


def _all(count: int) -> Iterator[Layout]:
  """Yields the layouts of all of some devices."""
  for tensor in _divisors(count):
    if tensor > _TENSOR:
      continue
    for fsdp in _divisors(count // tensor):
      for exponent in range(6):
        for remat in (False, True):
          yield Layout(
            count // tensor // fsdp, fsdp, tensor, 2**exponent, remat
          )


def _divisors(number: int) -> list[int]:
  return [size for size in range(1, number + 1) if number % size == 0]
