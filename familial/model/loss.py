"""Cross-entropy at every exit, in chunks, with its gradient in the same pass.

The gradient of a mean cross-entropy follows from the logits, so the forward pass
computes both chunk by chunk and keeps neither logits nor probabilities. Memory is
the logits of one chunk, independent of the number of exits, and no product is
computed twice.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from familial.model import axes
from familial.model import config as model_config
from familial.model import transformer

Array = jax.Array


def exit_losses(
  params: transformer.Params,
  config: model_config.ModelConfig,
  batch: dict[str, Array],
  exit_weights_G: Array,
  trunk_frozen: bool = False,
) -> tuple[Array, Array]:
  """Returns the weighted loss and each exit's mean token cross-entropy, nats.

  Args:
    params: parameters of the model.
    config: config of the model.
    batch: `inputs_BxL`, `targets_BxL`, `weights_BxL` (0 where a target does not
      count) and, with a document mask, `segments_BxL`.
    exit_weights_G: weight of each exit in the total.
    trunk_frozen: whether no gradient enters the trunk.

  Returns:
    sum_g w_g loss_g, differentiable, and the losses [G], not differentiable.
  """
  segments = batch.get('segments_BxL')
  states = transformer.exit_states(
    params, config, batch['inputs_BxL'], segments
  )
  if trunk_frozen:
    states = [jax.lax.stop_gradient(state) for state in states]
  hidden = [
    transformer.head_state(params, config, exit_, state, segments)
    for exit_, state in enumerate(states, start=1)
  ]
  owners = tuple(
    exit_ if config.owns_unembedding(exit_) else 0
    for exit_ in range(1, config.granularity + 1)
  )
  matrices = {
    owner: transformer.unembedding(params, config, owner or config.granularity)
    for owner in set(owners)
  }
  counts = batch['weights_BxL']
  token_weights_BxL = counts / jnp.maximum(jnp.sum(counts), 1.0)
  return cross_entropies(
    hidden,
    matrices,
    batch['targets_BxL'],
    token_weights_BxL,
    exit_weights_G,
    owners,
    config.loss_chunk or batch['targets_BxL'].shape[1],
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def cross_entropies(
  hidden: list[Array],
  matrices: dict[int, Array],
  targets_BxL: Array,
  token_weights_BxL: Array,
  exit_weights_G: Array,
  owners: tuple[int, ...],
  chunk: int,
) -> tuple[Array, Array]:
  """Returns the weighted sum of the exits' cross-entropies, and each of them.

  Args:
    hidden: each exit's normalised states [B, L, D].
    matrices: the distinct unembeddings [D, V].
    targets_BxL: token ids.
    token_weights_BxL: weight of each position; they sum to 1 for a mean.
    exit_weights_G: weight of each exit in the sum.
    owners: key of each exit's matrix; exits that share a matrix accumulate its
      gradient in one buffer.
    chunk: positions per chunk, a divisor of L.
  """
  losses = []
  for h_BxLxD, owner in zip(hidden, owners, strict=True):

    def step(
      loss: Array,
      h: Array,
      targets: Array,
      weights: Array,
      w_DxV: Array = matrices[owner],
    ) -> tuple[Array, None]:
      logits, lse = _logits(h, w_DxV)
      return loss + _nats(logits, lse, targets, weights), None

    losses.append(
      _over_chunks(
        step, jnp.float32(0), chunk, h_BxLxD, targets_BxL, token_weights_BxL
      )[0]
    )
  losses_G = jnp.stack(losses)
  return jnp.sum(exit_weights_G * losses_G), losses_G


def _forward(
  hidden: list[Array],
  matrices: dict[int, Array],
  targets_BxL: Array,
  token_weights_BxL: Array,
  exit_weights_G: Array,
  owners: tuple[int, ...],
  chunk: int,
) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
  local = functools.partial(_gradients, owners=owners, chunk=chunk)
  mesh = jax.sharding.get_abstract_mesh()
  compute = local if mesh.empty else _by_device(local, mesh)
  dhidden, gradients, losses_G = compute(
    hidden, matrices, targets_BxL, token_weights_BxL, exit_weights_G
  )
  total = jnp.sum(exit_weights_G * losses_G)
  return (total, losses_G), (dhidden, gradients, losses_G)


def _by_device(
  compute: Callable[..., tuple[list[Array], dict[int, Array], Array]],
  mesh: jax.sharding.AbstractMesh,
) -> Callable[..., tuple[list[Array], dict[int, Array], Array]]:
  """Makes each device compute the gradients of its rows; they are summed once.

  Without it XLA sums the gradient of an unembedding over the devices for every
  chunk of every exit: with 8 chunks and 4 exits, most of a step's communication.
  """
  rows, vocab = axes.names('batch', mesh), axes.names('vocab', mesh)
  if not rows:
    return compute

  def split(matrices: dict[int, Array]) -> dict[int, Array]:
    if not vocab:
      return matrices
    over_vocab = axes.spec(('states', 'vocab'), mesh)
    return jax.lax.with_sharding_constraint(matrices, over_vocab)

  def local(
    hidden: list[Array], matrices: dict[int, Array], *others: Array
  ) -> tuple[list[Array], dict[int, Array], Array]:
    dhidden, gradients, losses_G = compute(hidden, split(matrices), *others)
    # No reduce-scatter: it would gather the vocabulary. XLA scatters the sum where
    # a device keeps only a part of it.
    return dhidden, *jax.lax.psum((split(gradients), losses_G), rows)

  by_row, whole = axes.spec(('batch',), mesh), PartitionSpec()
  return jax.shard_map(
    local,
    in_specs=(by_row, whole, by_row, by_row, whole),
    out_specs=(by_row, whole, whole),
    # XLA splits the axis of the vocabulary.
    axis_names=set(mesh.axis_names) - set(vocab),
    check_vma=False,
  )


def _gradients(
  hidden: list[Array],
  matrices: dict[int, Array],
  targets_BxL: Array,
  token_weights_BxL: Array,
  exit_weights_G: Array,
  owners: tuple[int, ...],
  chunk: int,
) -> tuple[list[Array], dict[int, Array], Array]:
  """Returns the gradients of states and matrices, and each exit's loss."""
  gradients = {
    owner: jnp.zeros(w_DxV.shape, jnp.float32)
    for owner, w_DxV in matrices.items()
  }
  losses, dhidden = [], []
  for index, (h_BxLxD, owner) in enumerate(zip(hidden, owners, strict=True)):

    def step(
      carry: tuple[Array, Array],
      h: Array,
      targets: Array,
      weights: Array,
      w_DxV: Array = matrices[owner],
      exit_weight: Array = exit_weights_G[index],
    ) -> tuple[tuple[Array, Array], Array]:
      loss, dw_DxV = carry
      logits, lse = _logits(h, w_DxV)
      loss += _nats(logits, lse, targets, weights)
      tokens = jnp.arange(logits.shape[-1])
      dlogits = (jnp.exp(logits - lse) - (tokens == targets[..., None])) * (
        exit_weight * weights[..., None]
      )
      flat = dlogits.reshape(-1, dlogits.shape[-1]).astype(h.dtype)
      dh = (flat @ w_DxV.T.astype(h.dtype)).reshape(h.shape)
      dw_DxV += jnp.matmul(
        h.reshape(-1, h.shape[-1]).T, flat, preferred_element_type=jnp.float32
      )
      return (loss, dw_DxV), dh

    (loss, gradients[owner]), dh_BxLxD = _over_chunks(
      step,
      (jnp.float32(0), gradients[owner]),
      chunk,
      h_BxLxD,
      targets_BxL,
      token_weights_BxL,
    )
    losses.append(loss)
    dhidden.append(dh_BxLxD)
  return dhidden, gradients, jnp.stack(losses)


def _backward(
  owners: tuple[int, ...],
  chunk: int,
  saved: tuple[Any, ...],
  cotangents: tuple[Array, Array],
) -> tuple[Any, ...]:
  del owners, chunk
  dhidden, gradients, losses_G = saved
  cotangent = cotangents[0]
  return (
    [(cotangent * dh).astype(dh.dtype) for dh in dhidden],
    {owner: cotangent * dw for owner, dw in gradients.items()},
    None,
    None,
    cotangent * losses_G,
  )


cross_entropies.defvjp(_forward, _backward)


def _logits(h_BxCxD: Array, w_DxV: Array) -> tuple[Array, Array]:
  """Returns float32 logits [B, C, V] and their log-sum-exp [B, C, 1]."""
  logits = jnp.matmul(
    h_BxCxD.reshape(-1, h_BxCxD.shape[-1]),
    w_DxV.astype(h_BxCxD.dtype),
    preferred_element_type=jnp.float32,
  )
  logits = logits.reshape(*h_BxCxD.shape[:-1], -1)
  top = jnp.max(logits, axis=-1, keepdims=True)
  return logits, top + jnp.log(
    jnp.sum(jnp.exp(logits - top), axis=-1, keepdims=True)
  )


def _nats(logits: Array, lse: Array, targets: Array, weights: Array) -> Array:
  hit = jnp.take_along_axis(logits, targets[..., None], axis=-1)
  return jnp.sum(weights * (lse - hit)[..., 0])


def _over_chunks(
  step: Callable[..., Any],
  carry: Any,
  chunk: int,
  h_BxLxD: Array,
  targets_BxL: Array,
  weights_BxL: Array,
) -> tuple[Any, Any]:
  """Folds `step` over chunks of positions; joins its outputs along them."""
  length = h_BxLxD.shape[1]
  if chunk == length:
    return step(carry, h_BxLxD, targets_BxL, weights_BxL)

  def body(carry: Any, start: Array) -> tuple[Any, Any]:
    return step(
      carry,
      *(
        jax.lax.dynamic_slice_in_dim(x, start, chunk, axis=1)
        for x in (h_BxLxD, targets_BxL, weights_BxL)
      ),
    )

  carry, out = jax.lax.scan(body, carry, jnp.arange(0, length, chunk))
  if out is not None:  # [chunks, B, C, D] to [B, L, D]
    out = jnp.moveaxis(out, 0, 1).reshape(h_BxLxD.shape)
  return carry, out
