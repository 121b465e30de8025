"""Time and memory of a training step on a device, by arithmetic.

It takes microseconds, so that layouts can be compared by the hundred; what is
chosen is then compiled. Products are counted; bytes are what a good compiler
moves and sends.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
from typing import Any

import jax

from familial.model import axes
from familial.model import config as model_config
from familial.model import flops as flops_lib
from familial.model import transformer
from familial.planning import chips
from familial.training import config as train_config
from familial.training import step as step_lib

_MOMENTS = 2


@dataclasses.dataclass(frozen=True)
class Work:
  """Work of one device in a training step.

  Attributes:
    flops: of its products: the model's, those computed again where activations
      are not kept, and without what attention skips of its square: a quarter in
      blocks, half in a fused kernel.
    moved: bytes to and from its memory: weights read in each pass, the
      optimizer's state read and written, each activation and logit written and
      read once where it is made and used.
    sent: bytes to other devices, each collective on a ring: weights gathered in
      each pass, gradients reduced for each part of a batch, states summed over
      `tensor`.
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
    """Seconds of a step in which all three overlap."""
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
  """Returns the work of a device in a training step.

  Args:
    config: of the run.
    mesh: sizes of `data`, `fsdp` and `tensor`.
  """
  model, train, layout = config.model, config.train, config.layout
  data, fsdp, tensor = (mesh[name] for name in ('data', 'fsdp', 'tensor'))
  length, parts = config.data.seq_len, layout.microbatches
  tokens = train.batch_size * length / (data * fsdp)
  item = 2 if model.dtype == 'bfloat16' else 4
  again = int(model.remat)
  # Layers with a backward pass, and those of a frozen trunk.
  branches = sum(map(model.owns_layer, range(1, model.granularity + 1)))
  learning, frozen = model.depth + branches, 0
  if train.trained == 'exits':
    learning, frozen = branches, model.exits[-2]
  passes = frozen + (3 + again) * learning
  all_, learned = (
    _parameters(model, trained, fsdp, tensor)
    for trained in ('all', train.trained)
  )

  # What is computed again needs no `down`: nothing depends on its product.
  recomputed = flops_lib.layer_forward(model, length) - 2 * (
    model.width * model.mlp_width
  )
  square = 4 * length * model.width
  skipped = {'plain': 0, 'blocked': 1 / 4, 'fused': 1 / 2}[model.attention]
  products = (
    flops_lib.train(model, length, train.trained)
    + again * learning * recomputed
    - skipped * passes * square
  )
  # Numbers a token leaves behind in a layer: as wide as the residual stream,
  # and those that `tensor` splits.
  whole = 4 * model.width
  split = (
    2 * model.width + 2 * model.kv_heads * model.head_dim + 3 * model.mlp_width
  ) / tensor
  logits = model.granularity * tokens * model.vocab_size / tensor * 4
  moved = (
    2 * (2 + _MOMENTS) * 4 * learned.held
    + (2 + again) * parts * item * all_.gathered
    + 2 * passes * tokens * (whole + split) * item
    + 2 * logits
  )
  # The unembeddings' gradients are summed for themselves, in float32.
  exits = 4 * learned.unembeddings
  sent = (
    _ring(fsdp) * (2 + again) * parts * item * all_.gathered
    + _ring(fsdp) * parts * item * (learned.gathered - learned.unembeddings)
    + 2 * _ring(data) * parts * 4 * (learned.held - learned.unembeddings / fsdp)
    + 2 * _ring(data * fsdp) * parts * exits
    + 2
    * _ring(tensor)
    * (2 * frozen + (4 + again) * learning + model.granularity + 1)
    * tokens
    * model.width
    * item
  )

  rows = tokens / length / parts
  part = rows * length
  # Compiled for v5e, a layer keeps twice what its products take: float32 beside
  # bfloat16.
  kept = learning * (model.width if model.remat else 2 * (whole + split))
  chunk = model.loss_chunk or length
  memory = (
    4 * all_.held
    + 4 * _MOMENTS * learned.held
    + 4 * (1 + (parts > 1)) * learned.held
    + part * item * (kept + 2 * (whole + split))
    + part * item * 2 * model.granularity * model.width
    + rows * chunk * model.vocab_size / tensor * 4 * 3
    + model.vocab_size * model.width / tensor * (4 + item)
    + (4 + item) * learned.unembeddings
  )
  if model.attention != 'fused':
    memory += rows * model.heads / tensor * length**2 * 4 * 2
  return Work(products * tokens / tensor, moved, sent, memory)


def _ring(size: int) -> float:
  """Share of an array that each of n devices sends to have it gathered."""
  return (size - 1) / size


@dataclasses.dataclass(frozen=True)
class _Parameters:
  """Numbers of a device: held; while all are gathered; of unembeddings then."""

  held: float
  gathered: float
  unembeddings: float


@functools.cache
def _parameters(
  model: model_config.ModelConfig, trained: str, fsdp: int, tensor: int
) -> _Parameters:
  """Returns the parameters of which `trained` has some or all learn."""
  mesh = jax.sharding.AbstractMesh((fsdp, tensor), ('fsdp', 'tensor'))
  shapes, _ = step_lib.partition(_shapes(model), trained)
  held = gathered = unembeddings = 0.0
  for (path, leaf), spec in zip(
    jax.tree_util.tree_leaves_with_path(shapes),
    jax.tree.leaves(axes.specs(shapes, mesh)),
    strict=True,
  ):
    size = math.prod(leaf.shape)
    whole = size / (tensor if 'tensor' in spec else 1)
    held += size / math.prod(mesh.shape[name] for name in spec if name)
    gathered += whole
    name = path[-1].key
    # Exits may have their own beside an embedding that is read out for others.
    if name == 'unembedding' or (model.tied and name == 'embedding'):
      unembeddings += whole
  return _Parameters(held, gathered, unembeddings)


@functools.cache
def _shapes(model: model_config.ModelConfig) -> Any:
  return jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
