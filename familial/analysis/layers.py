"""Measures what the layers of a model do on batches of text, token by token.

Shapes: B rows of a batch, L positions, D width. States are the trunk's, before
any norm, under the causal mask that the model was trained with, in float32
whatever type it was trained in.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from familial.analysis import trajectories
from familial.core import errors
from familial.data import batches as batches_lib
from familial.model import config as model_config
from familial.model import transformer
from familial.training import evaluation

Array = jax.Array
GROUPS = 32  # of consecutive windows, for standard errors
CLASSES = 16  # of positions, the last one open
DEFINITIONS = {
  **trajectories.DEFINITIONS,
  'loss': (
    'cross-entropy in nats through the final norm and head; layer l from 0'
  ),
  'exit_loss': (
    "cross-entropy in nats through an exit's own norm, head and, of a branch, "
    'layer'
  ),
  'skip': 'loss without layer l less the loss with it',
  'swap': 'loss with layers l and l + 1 exchanged less the loss',
  'by_position': (
    'tokens that stopped early, by position in the window: the context that the '
    'mask allows where documents are not separated'
  ),
  'by_place': (
    'tokens that stopped early, by tokens since the last separator, of those with '
    'a separator in the window'
  ),
}


class Measurement(NamedTuple):
  """Statistics of a model's layers on text.

  Attributes:
    network: the quantities of DEFINITIONS by groups of windows.
    early: int64 [classes, 2] by name (`by_position`, `by_place`): tokens that
      stopped early, and tokens. Class k is positions 2^k - 1 .. 2^(k+1) - 2.
    tokens: number of tokens that count.
    windows: number of windows that hold them.
  """

  network: trajectories.NetworkStatistics
  early: dict[str, np.ndarray]
  tokens: int
  windows: int


def measure(
  params: transformer.Params,
  model: model_config.ModelConfig,
  batches: Sequence[batches_lib.Batch],
  separator: int,
) -> Measurement:
  """Measures a model's layers on batches, with one batch in memory at a time.

  Args:
    params: of the model.
    model: its config.
    batches: of one shape, as `batches.heldout` returns them.
    separator: the token that ends a document.

  Raises:
    UserError: for a model of one layer, or states or losses that are not finite.
  """
  if model.depth < 2:
    raise errors.UserError(
      'the model has 1 layer: a probe compares neighbours and needs at least 2'
    )
  model = dataclasses.replace(
    model, dtype='float32', attention='blocked', unroll=True, remat=False
  )
  layers = transformer.trunk(params, model.granularity)
  rest = {k: v for k, v in params.items() if not k.startswith('segment_')}
  windows = sum(int(b['weights_BxL'].any(axis=1).sum()) for b in batches)
  groups = min(GROUPS, windows)
  early: dict[str, np.ndarray] = {}
  network, row, tokens = None, 0, 0
  for batch in batches:
    numbers = np.minimum(row + np.arange(len(batch['inputs_BxL'])), windows - 1)
    # Some accelerators round the operands of a product to bfloat16 by default.
    with jax.default_matmul_precision('float32'):
      tally, classes = _measure_batch(model, separator, rest, layers, batch)
    network = trajectories.add(
      network, tally, numbers * groups // windows, groups, model.width
    )
    for name, counts in classes.items():
      early[name] = early.get(name, 0) + np.asarray(counts, np.int64)
    row += len(numbers)
    tokens += int((batch['weights_BxL'] > 0).sum())
  assert network is not None
  for name in ('norm', 'loss', 'skip', 'swap', 'exit_loss'):
    if trajectories.pool(network.moments[name]).count.min() < tokens:
      raise errors.UserError(
        f"the model's {name} is not finite for some tokens: it has diverged"
      )
  return Measurement(network, early, tokens, windows)


@functools.partial(jax.jit, static_argnums=0)
def _measure_batch(
  model: model_config.ModelConfig,
  separator: Array,
  params: transformer.Params,
  layers: transformer.Params,
  batch: dict[str, Array],
) -> tuple[trajectories.Tally, dict[str, Array]]:
  """Returns the statistics of a batch, and its early stops by class of position."""
  inputs = batch['inputs_BxL']
  documents = batch.get('segments_BxL')
  apply = _layer(model, layers, documents)
  x_BxLxD = params['embedding'][inputs].astype(jnp.float32)
  _, after = jax.lax.scan(
    lambda x, at: (apply(at, x),) * 2, x_BxLxD, jnp.arange(model.depth)
  )
  states = jnp.concatenate([x_BxLxD[None], after])
  values, settled = trajectories.measure(states)
  last = model.granularity

  def nats(exit_: int, x_BxLxD: Array) -> Array:
    return evaluation.read_exit(params, model, exit_, x_BxLxD, batch)[0]

  values['loss'] = jax.lax.map(lambda x: nats(last, x), states)
  loss_BxL = values['loss'][-1]
  early_exits = (nats(g, states[model.exits[g - 1]]) for g in range(1, last))
  values['exit_loss'] = jnp.stack([*early_exits, loss_BxL])

  def changed(change: tuple[Array, Array, Array]) -> Array:
    """Returns the added loss of a trunk that goes on from a state in an order."""
    at, start, order = change
    x_BxLxD = jax.lax.fori_loop(
      start, model.depth, lambda place, x: apply(order[place], x), states[at]
    )
    return nats(last, x_BxLxD) - loss_BxL

  costs = jax.lax.map(changed, _changes(model.depth))
  values['skip'] = costs[: model.depth]
  values['swap'] = costs[model.depth :]
  counted = batch['weights_BxL'] > 0
  early = (settled >= 0) & (settled <= int(trajectories.EARLY * model.depth))
  positions = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
  ends = jnp.where(inputs == separator, positions, -1)
  before = jax.lax.cummax(
    jnp.pad(ends, ((0, 0), (1, 0)), constant_values=-1)[:, :-1], axis=1
  )
  return trajectories.tally(values, settled, counted), {
    'by_position': _by_class(positions, early, counted),
    'by_place': _by_class(
      positions - before - 1, early, counted & (before >= 0)
    ),
  }


def _layer(
  model: model_config.ModelConfig,
  layers: transformer.Params,
  documents: Array | None,
) -> Any:
  """Returns a function of a layer's index and the states before it."""
  one = dataclasses.replace(model, depth=1, exits=(1,), exit_kind='head')

  def apply(at: Array, x_BxLxD: Array) -> Array:
    # Sliced where it is used, so that no second copy of all layers is made.
    layer = jax.tree.map(
      lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, at, 1), layers
    )
    return transformer.segment({'segment_0': layer}, one, 0, x_BxLxD, documents)

  return apply


def _changes(depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns each layer skipped, then each exchanged with the next.

  A change is the state to begin with, the place in the order to go on from, and
  the order of the layers.
  """
  order = np.tile(np.arange(depth), (2 * depth - 1, 1))
  swapped = np.arange(depth - 1)
  order[depth + swapped, swapped] += 1
  order[depth + swapped, swapped + 1] -= 1
  at = np.concatenate([np.arange(depth), swapped])
  return at, np.concatenate([np.arange(depth) + 1, swapped]), order


def _by_class(positions: Array, early: Array, counted: Array) -> Array:
  """Counts early stops and tokens by the logarithm of a position."""
  at = 31 - jax.lax.clz(jnp.maximum(positions, 0) + 1)
  at = jnp.minimum(at, CLASSES - 1)
  both = jnp.stack([early & counted, counted], axis=-1).astype(jnp.int32)
  return jnp.zeros((CLASSES, 2), jnp.int32).at[at].add(both)
