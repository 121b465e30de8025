"""A run's training step, compiled for devices that need not be here."""

from collections.abc import Sequence
import dataclasses
import re
import time
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from familial.core import errors
from familial.model import axes
from familial.planning import collectives
from familial.training import config as train_config
from familial.training import optimizer
from familial.training import sharding
from familial.training import step as step_lib

# How the compilers say that a device's memory is too small.
_FULL = re.compile(
  r'[Uu]sed ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm'
  r'|temporaries \(([\d.]+)([KMGT])\) exceeds available HBM'
)
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled step, as its compiler describes it.

  Attributes:
    fits: whether a device has the memory.
    memory: most bytes of a device that it needs at once; at least, where it does
      not fit.
    sent: bytes that each device sends to others in a step, on a ring; None
      where the compiler does not give the program's text.
    flops: of a step, of all devices, as XLA counts what is written: with norms,
      softmax and optimizer, without what is computed again.
    seconds: that compiling took.
  """

  fits: bool
  memory: float
  sent: float | None
  flops: float
  seconds: float


def lower(
  config: train_config.RunConfig, devices: Sequence[Any]
) -> jax.stages.Lowered:
  """Returns the training step of a run, as it is given to the compiler.

  Raises:
    UserError: if the layout does not go with the devices, or they lack what the
      model needs.
  """
  model, train = config.model, config.train
  mesh = sharding.mesh(config, devices)
  h = optimizer.hyper(train, model.exits)
  # Before the mesh is set: these devices cannot compute a key.
  key = jax.random.key(train.seed)
  with jax.set_mesh(mesh):
    state = jax.eval_shape(
      lambda key: step_lib.init(model, train.trained, key, h), key
    )
    traced = step_lib.train.trace(
      model,
      train.trained,
      placed(state, sharding.shardings(state, mesh)),
      placed(
        batch(config, train.batch_size),
        NamedSharding(mesh, axes.spec(('batch',), mesh)),
      ),
      placed(h, NamedSharding(mesh, PartitionSpec())),
      config.layout.microbatches,
    )
    return traced.lower(lowering_platforms=(_platform(devices),))


def compile_(
  config: train_config.RunConfig, lowered: jax.stages.Lowered
) -> Program:
  """Compiles the lowered step of a run.

  Raises:
    UserError: if it refuses the step for another reason than memory.
  """
  start = time.monotonic()
  try:
    program = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    full = _FULL.search(str(error))
    if not full:
      raise errors.UserError(
        f'{config.cell}: the compiler refuses this step: '
        f'{str(error).splitlines()[0]}'
      ) from None
    number, unit = filter(None, full.groups())
    used = float(number) * _UNITS[unit]
    return Program(False, used, None, flops(config), time.monotonic() - start)
  seconds = time.monotonic() - start
  needs: Any = program.memory_analysis()
  # Not every compiler says the peak; temporaries alone count twice what takes
  # turns in the same place.
  memory = needs.peak_memory_in_bytes or (
    needs.argument_size_in_bytes
    + needs.output_size_in_bytes
    - needs.alias_size_in_bytes
    + needs.temp_size_in_bytes
  )
  return Program(True, float(memory), _sent(program), flops(config), seconds)


def flops(config: train_config.RunConfig) -> float:
  """Returns the FLOPs of a run's step as XLA counts them before it compiles.

  The step is written so that XLA sees all of it: layers one after another, no
  chunks, attention's whole square. Norms, softmax and the optimizer count.
  """
  model, train = config.model, config.train
  model = dataclasses.replace(
    model, attention='plain', unroll=True, remat=False, loss_chunk=0
  )
  h = optimizer.hyper(train, model.exits)
  state = jax.eval_shape(
    lambda: step_lib.init(model, train.trained, jax.random.key(0), h)
  )

  def counted(rows: int) -> float:
    step = step_lib.train.lower(
      model, train.trained, state, batch(config, rows), h, 1
    )
    found: Any = step.cost_analysis()
    return float(found['flops'])

  # Each row costs the same; the optimizer's share is there once.
  one, two = counted(1), counted(2)
  return one + (train.batch_size - 1) * (two - one)


def batch(
  config: train_config.RunConfig, rows: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes of a training batch of some rows."""
  shape = (rows, config.data.seq_len)
  found = {
    'inputs_BxL': jax.ShapeDtypeStruct(shape, np.int32),
    'targets_BxL': jax.ShapeDtypeStruct(shape, np.int32),
    'weights_BxL': jax.ShapeDtypeStruct(shape, np.float32),
  }
  if config.data.document_mask:
    found['segments_BxL'] = jax.ShapeDtypeStruct(shape, np.int32)
  return found


def placed(tree: Any, where: Any) -> Any:
  """Returns a tree's shapes with where each lies: one place, or a tree."""
  if isinstance(where, NamedSharding):
    where = jax.tree.map(lambda leaf: where, tree)
  return jax.tree.map(
    lambda leaf, at: jax.ShapeDtypeStruct(
      np.shape(leaf), leaf.dtype, sharding=at
    ),
    tree,
    where,
  )


def _platform(devices: Sequence[Any]) -> str:
  platform: str = devices[0].platform
  return 'cuda' if platform == 'gpu' else platform


def _sent(program: jax.stages.Compiled) -> float | None:
  try:
    text = program.as_text()
  except jax.errors.JaxRuntimeError:  # Too long for the compiler to give.
    return None
  found = collectives.of(text or '')
  return sum(each.sent * each.count for each in found)
