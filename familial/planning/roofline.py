"""What a training step costs a device at least, and the memory it needs.

All of it is arithmetic on shapes, in microseconds, so that layouts can be
compared by the hundred; what is chosen is then compiled.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any

import jax

from familial import flops as flops_lib
from familial.model import axes
from familial.model import config as model_config
from familial.model import transformer
from familial.planning import chips
from familial.training import config as train_config

_MOMENTS = 2


@dataclasses.dataclass(frozen=True)
class Work:
  """What one device does in a training step.

  Attributes:
    flops: of its products: the model's, layers computed again where activations
      are not kept, and without the half of attention's square that a fused
      kernel skips.
    moved: bytes to and from its memory: weights read in each pass, the
      optimizer's state read and written, each activation and logit written and
      read once where it is made and used.
    sent: bytes to other devices, each collective on a ring: weights gathered in
      each pass, gradients reduced, states summed over `tensor`.
    memory: bytes that it needs, roughly.
  """

  flops: float
  moved: float
  sent: float
  memory: float


@dataclasses.dataclass(frozen=True)
class Times:
  """Seconds that a step's parts take at a chip's full speed."""

  compute: float
  memory: float
  links: float

  @property
  def bound(self) -> float:
    """Seconds of a step in which all three overlap: none is shorter."""
    return max(self.compute, self.memory, self.links)

  @property
  def apart(self) -> float:
    """Seconds of a step in which nothing overlaps."""
    return self.compute + self.memory + self.links

  @property
  def limit(self) -> str:
    """Returns which of the three the bound is."""
    found = dataclasses.asdict(self)
    return max(found, key=found.__getitem__)


def times(work: Work, chip: chips.Chip) -> Times:
  """Returns the seconds of a step's parts."""
  return Times(
    work.flops / chip.flops,
    work.moved / chip.memory_speed,
    work.sent / chip.link_speed,
  )


def work(config: train_config.RunConfig, mesh: Mapping[str, int]) -> Work:
  """Returns what a device does in a step of a run.

  Args:
    config: of the run.
    mesh: sizes of `data`, `fsdp` and `tensor`.
  """
  model, layout = config.model, config.layout
  data, fsdp, tensor = (mesh[name] for name in ('data', 'fsdp', 'tensor'))
  length = config.data.seq_len
  tokens = config.train.batch_size * length / (data * fsdp)
  item = 2 if model.dtype == 'bfloat16' else 4
  passes, again = 2 + model.remat, int(model.remat)
  layers = model.depth + sum(
    model.kind_of(exit_) == 'branch'
    for exit_ in range(1, model.granularity + 1)
  )
  gathered, held = _parameters(model, fsdp, tensor)

  square = 4 * length * model.width * layers
  forward = layers * flops_lib.layer_forward(model, length)
  products = (
    flops_lib.train(model, length, config.train.trained)
    + again * forward
    - (model.attention == 'fused') * (3 + again) * square / 2
  )
  # Numbers a token leaves behind in a layer: as wide as the residual stream,
  # and those that `tensor` splits.
  whole = 4 * model.width
  split = (
    2 * model.width + 2 * model.kv_heads * model.head_dim + 3 * model.mlp_width
  ) / tensor
  logits = model.granularity * tokens * model.vocab_size / tensor * 4
  moved = (
    (2 * (2 + _MOMENTS)) * 4 * held
    + passes * layout.microbatches * item * gathered
    + 2 * (passes + 1) * tokens * layers * (whole + split) * item
    + 2 * logits
  )
  sent = (
    _ring(fsdp) * (passes + 1) * layout.microbatches * item * gathered
    + 2 * _ring(data) * layout.microbatches * 4 * held
    + 2
    * _ring(tensor)
    * (layers * (4 + again) + model.granularity + 1)
    * tokens
    * model.width
    * item
  )

  rows = tokens / length / layout.microbatches
  part = rows * length
  # Compiled for v5e, a layer keeps twice what its products take: float32 beside
  # bfloat16.
  kept = layers * (model.width if model.remat else 2 * (whole + split))
  chunk = model.loss_chunk or length
  memory = (
    (1 + _MOMENTS) * 4 * held
    + 4 * (held + (layout.microbatches > 1) * held)
    + part * item * (kept + 2 * (whole + split))
    + part * item * 2 * model.granularity * model.width
    + rows * chunk * model.vocab_size / tensor * 4 * 3
    + 2 * model.vocab_size * model.width / tensor * (4 + item)
  )
  if model.attention != 'fused':
    memory += rows * model.heads / tensor * length**2 * 4 * 2
  return Work(products * tokens / tensor, moved, sent, memory)


def _ring(size: int) -> float:
  """Share of an array that each of n devices sends to have it gathered."""
  return (size - 1) / size


@functools.cache
def _parameters(
  model: model_config.ModelConfig, fsdp: int, tensor: int
) -> tuple[float, float]:
  """Returns the parameters of a device (while a layer is used, in between)."""
  mesh = jax.sharding.AbstractMesh((fsdp, tensor), ('fsdp', 'tensor'))
  shapes = _shapes(model)
  gathered = held = 0.0
  for leaf, spec in zip(
    jax.tree.leaves(shapes),
    jax.tree.leaves(axes.specs(shapes, mesh)),
    strict=True,
  ):
    size = math.prod(leaf.shape)
    held += size / math.prod(mesh.shape[name] for name in spec if name)
    gathered += size / (tensor if 'tensor' in spec else 1)
  return gathered, held


@functools.cache
def _shapes(model: model_config.ModelConfig) -> Any:
  return jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
