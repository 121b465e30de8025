"""A Llama-compatible pre-norm decoder whose layers come in segments with exits.

Shapes: B batch, L sequence length, D width, H query heads, K key/value heads,
E head dimension, F MLP width, V vocabulary, G exits, N layers of a segment.

Parameters are a plain dict:
  embedding [V, D]
  segment_0 .. segment_{G-1}: the layers between two exits, stacked on axis 0
  exit_1 .. exit_G: {norm [D]}, and by kind {unembedding [D, V]}, {branch: layer}
  unembedding [D, V], unless tied to the embedding
"""

from collections.abc import Callable
import math
from typing import Any
from typing import cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from familial.model import attention
from familial.model import axes
from familial.model import config as model_config

ModelConfig = model_config.ModelConfig
Array = jax.Array
Params = dict[str, Any]
# Maps queries [B, H, L, E], keys and values [B, K, L, E], before any rotation, to
# the output of attention [B, H, L, E].
Attend = Callable[[Array, Array, Array], Array]


class Norm(nn.Module):
  """RMSNorm with a gain, computed in float32 and returned in the input's type."""

  eps: float

  @nn.compact
  def __call__(self, x_BxLxD: Array) -> Array:
    """Returns the normalised states."""
    gain_D = self.param('gain', nn.initializers.ones, (x_BxLxD.shape[-1],))
    x32_BxLxD = x_BxLxD.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32_BxLxD), axis=-1, keepdims=True)
    normed_BxLxD = x32_BxLxD * jax.lax.rsqrt(mean_square + self.eps)
    return (normed_BxLxD * gain_D).astype(x_BxLxD.dtype)


class Linear(nn.Module):
  """A matrix product without bias."""

  features: int

  @nn.compact
  def __call__(self, x_BxLxD: Array) -> Array:
    """Returns x @ kernel."""
    fan_in = x_BxLxD.shape[-1]
    # Modules declare shapes; `init` below draws the values.
    kernel = self.param(
      'kernel', nn.initializers.zeros, (fan_in, self.features)
    )
    # Two-dimensional operands: on CPU, XLA's batched product is 10 to 18 %
    # slower than the same product flattened.
    flat = x_BxLxD.reshape(-1, fan_in) @ kernel.astype(x_BxLxD.dtype)
    return flat.reshape(*x_BxLxD.shape[:-1], self.features)


class Attention(nn.Module):
  """Grouped-query attention: the projections around a given `Attend`."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BxLxD: Array, attend: Attend) -> Array:
    """Returns attention's update of the residual stream."""
    config = self.config
    kv_width = config.kv_heads * config.head_dim
    q_BxHxLxE = _heads(Linear(config.width, name='q')(x_BxLxD), config.heads)
    k_BxKxLxE = _heads(Linear(kv_width, name='k')(x_BxLxD), config.kv_heads)
    v_BxKxLxE = _heads(Linear(kv_width, name='v')(x_BxLxD), config.kv_heads)
    out_BxHxLxE = attend(q_BxHxLxE, k_BxKxLxE, v_BxKxLxE)
    out_BxLxD = out_BxHxLxE.swapaxes(1, 2).reshape(x_BxLxD.shape)
    return Linear(config.width, name='o')(out_BxLxD)


class Mlp(nn.Module):
  """SwiGLU."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BxLxD: Array) -> Array:
    """Returns the MLP's update of the residual stream."""
    config = self.config
    gate_BxLxF = Linear(config.mlp_width, name='gate')(x_BxLxD)
    up_BxLxF = Linear(config.mlp_width, name='up')(x_BxLxD)
    return Linear(config.width, name='down')(nn.silu(gate_BxLxF) * up_BxLxF)


class Layer(nn.Module):
  """One decoder layer."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BxLxD: Array, attend: Attend) -> Array:
    """Returns the states after the layer."""
    config = self.config
    normed_BxLxD = Norm(config.norm_eps, name='attention_norm')(x_BxLxD)
    x_BxLxD += Attention(config, name='attention')(normed_BxLxD, attend)
    normed_BxLxD = Norm(config.norm_eps, name='mlp_norm')(x_BxLxD)
    return x_BxLxD + Mlp(config, name='mlp')(normed_BxLxD)


def init(config: ModelConfig, key: Array) -> Params:
  """Returns fresh float32 parameters.

  Matrices are normal with variance 1 / fan-in; the variance of those that write to
  the residual stream (`o`, `down`) is divided by 2 x depth, so that the stream's
  stays of order one. Embeddings have variance 1 / base_width. Each part has a key
  of its own and each layer one by its position in the trunk, so that the trunk of
  a seed does not depend on the exits.
  """
  embedding_key, unembedding_key, trunk_key, exits_key = jax.random.split(
    key, 4
  )
  params: Params = {
    'embedding': _normal(
      embedding_key, (config.vocab_size, config.width), config
    )
  }
  params |= cut(
    _init_layers(config, jax.random.split(trunk_key, config.depth)),
    config.exits,
  )
  unembedding = (config.width, config.vocab_size)
  for exit_ in range(1, config.granularity + 1):
    branch_key, own_key = jax.random.split(jax.random.fold_in(exits_key, exit_))
    head: Params = {'norm': {'gain': jnp.ones(config.width)}}
    if config.owns_layer(exit_):
      branch = _init_layers(config, branch_key[None])
      head['branch'] = jax.tree.map(lambda leaf: leaf[0], branch)
    if config.owns_unembedding(exit_):
      head['unembedding'] = _normal(own_key, unembedding, config)
    params[f'exit_{exit_}'] = head
  if not config.tied:
    params['unembedding'] = _normal(unembedding_key, unembedding, config)
  return params


def cut(layers: Params, exits: tuple[int, ...]) -> Params:
  """Returns `segment_0`, ... of a trunk's layers, stacked on axis 0."""
  starts = (0,) + exits[:-1]
  return {
    f'segment_{index}': jax.tree.map(
      lambda leaf, a=start, b=stop: leaf[a:b], layers
    )
    for index, (start, stop) in enumerate(zip(starts, exits, strict=True))
  }


def trunk(params: Params, exit_: int) -> Params:
  """Returns the layers up to exit 1..G, stacked on axis 0."""
  segments = [params[f'segment_{index}'] for index in range(exit_)]
  return jax.tree.map(lambda *parts: jnp.concatenate(parts), *segments)


def exit_states(
  params: Params,
  config: ModelConfig,
  inputs_BxL: Array,
  segments_BxL: Array | None = None,
) -> list[Array]:
  """Returns the trunk's state [B, L, D] after each segment, before any norm."""
  # Gathered before the look-up: from here on rows are split, not widths.
  embedding_VxD = axes.constrain(params['embedding'], 'vocab', 'states')
  x_BxLxD = embedding_VxD[inputs_BxL].astype(config.dtype)
  x_BxLxD = axes.constrain(x_BxLxD, 'batch', 'positions', 'states')
  states = []
  for index in range(config.granularity):
    x_BxLxD = segment(params, config, index, x_BxLxD, segments_BxL)
    states.append(x_BxLxD)
  return states


def segment(
  params: Params,
  config: ModelConfig,
  index: int,
  x_BxLxD: Array,
  segments_BxL: Array | None = None,
  stay_BxL: Array | None = None,
) -> Array:
  """Returns the trunk's state after segment 0..G-1, given the state before it.

  The layers are unrolled, or one scanned layer.

  Args:
    params: parameters of the model.
    config: config of the model.
    index: number of the segment.
    x_BxLxD: states before the segment.
    segments_BxL: documents that attention must not cross, or None.
    stay_BxL: positions that are read but not changed, or None.
  """
  apply, stacked = _apply_layer(config), params[f'segment_{index}']

  def one(x_BxLxD: Array, layer: Params) -> Array:
    new_BxLxD = apply(layer, x_BxLxD, segments_BxL)
    new_BxLxD = axes.constrain(new_BxLxD, 'batch', 'positions', 'states')
    if stay_BxL is None:
      return new_BxLxD
    return jnp.where(stay_BxL[..., None], x_BxLxD, new_BxLxD)

  if config.unroll:
    leaves, tree = jax.tree.flatten(stacked)
    depth = leaves[0].shape[0]
    # The transpose of a split is one concatenation; that of indexing would add up
    # `depth` padded gradients of the whole stack.
    split = [jax.lax.split(leaf, [1] * depth) for leaf in leaves]
    for layer in range(depth):
      x_BxLxD = one(
        x_BxLxD, jax.tree.unflatten(tree, [s[layer][0] for s in split])
      )
    return x_BxLxD
  return jax.lax.scan(lambda x, layer: (one(x, layer), None), x_BxLxD, stacked)[
    0
  ]


def head_state(
  params: Params,
  config: ModelConfig,
  exit_: int,
  x_BxLxD: Array,
  segments_BxL: Array | None = None,
) -> Array:
  """Returns the states that exit 1..G unembeds, given the trunk's at its layer.

  The logit scale base_width / width is folded into the norm's gain, so that a
  stand-alone model needs no scale.
  """
  head = params[f'exit_{exit_}']
  if config.owns_layer(exit_):
    x_BxLxD = _apply_layer(config)(head['branch'], x_BxLxD, segments_BxL)
  return head_norm(head, config, x_BxLxD)


def head_norm(head: Params, config: ModelConfig, x_BxLxD: Array) -> Array:
  """Returns the normalised states of an exit, with the logit scale applied."""
  gain_D = head['norm']['gain'] * (config.base_width / config.width)
  norm = Norm(config.norm_eps)
  return cast(Array, norm.apply({'params': {'gain': gain_D}}, x_BxLxD))


def read_out(h_BxLxD: Array, w_DxV: Array) -> Array:
  """Returns the float32 logits [B, L, V] of normalised states."""
  return jnp.matmul(
    h_BxLxD, w_DxV.astype(h_BxLxD.dtype), preferred_element_type=jnp.float32
  )


def unembedding(params: Params, config: ModelConfig, exit_: int) -> Array:
  """Returns the unembedding matrix [D, V] of exit 1..G."""
  if config.owns_unembedding(exit_):
    return params[f'exit_{exit_}']['unembedding']
  return params['embedding'].T if config.tied else params['unembedding']


def logits(
  params: Params,
  config: ModelConfig,
  inputs_BxL: Array,
  segments_BxL: Array | None = None,
) -> list[Array]:
  """Returns each exit's float32 logits [B, L, V]."""
  states = exit_states(params, config, inputs_BxL, segments_BxL)
  out = []
  for exit_, x_BxLxD in enumerate(states, start=1):
    h_BxLxD = head_state(params, config, exit_, x_BxLxD, segments_BxL)
    out.append(read_out(h_BxLxD, unembedding(params, config, exit_)))
  return out


def _heads(x_BxLxD: Array, heads: int) -> Array:
  """Splits the last axis into heads: [B, L, H E] to [B, H, L, E]."""
  batch, length, width = x_BxLxD.shape
  return x_BxLxD.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


def _normal(key: Array, shape: tuple[int, ...], config: ModelConfig) -> Array:
  return jax.random.normal(key, shape) / math.sqrt(config.base_width)


def _init_layers(config: ModelConfig, keys: Array) -> Params:
  """Returns layers stacked on axis 0, one per key.

  The values of a layer are slices of one draw, which compiles in 0.6 s for 8
  layers on CPU; one draw per leaf takes 5 s.
  """
  shapes = jax.eval_shape(
    lambda key, x: Layer(config).init(key, x, lambda q, k, v: q),
    keys[0],
    jnp.zeros((1, 2, config.width)),
  )['params']
  kernels = sum(
    shape.size
    for path, shape in jax.tree_util.tree_leaves_with_path(shapes)
    if path[-1].key == 'kernel'
  )
  drawn = jax.vmap(lambda key: jax.random.normal(key, (kernels,)))(keys)
  used = 0

  def take(path: tuple[Any, ...], shape: jax.ShapeDtypeStruct) -> Array:
    nonlocal used
    stacked = (keys.shape[0], *shape.shape)
    if path[-1].key == 'gain':
      return jnp.ones(stacked)
    used += shape.size
    fan_in = shape.shape[0] * (
      2 * config.depth if path[-2].key in ('o', 'down') else 1
    )
    return drawn[:, used - shape.size : used].reshape(stacked) / math.sqrt(
      fan_in
    )

  return jax.tree_util.tree_map_with_path(take, shapes)


def _apply_layer(config: ModelConfig) -> Callable[..., Array]:
  def apply(
    params: Params, x_BxLxD: Array, segments_BxL: Array | None
  ) -> Array:
    rotary = attention.rotary(
      config.rope_theta, config.head_dim, x_BxLxD.shape[1]
    )

    def attend(q_BxHxLxE: Array, k_BxKxLxE: Array, v_BxKxLxE: Array) -> Array:
      return attention.causal(
        attention.rotate(q_BxHxLxE, *rotary),
        attention.rotate(k_BxKxLxE, *rotary),
        v_BxKxLxE,
        segments_BxL,
        config.attention,
      )

    return cast(Array, Layer(config).apply({'params': params}, x_BxLxD, attend))

  return jax.checkpoint(apply) if config.remat else apply
