"""Held-out loss of every exit, its standard error, and agreement of two models."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
import functools
import math
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from familial.model import config as model_config
from familial.model import loss as model_loss
from familial.model import transformer

Array = jax.Array
LOGITS = 2**24  # logits in memory at once: 64 MiB of float32


def read_exit(
  params: transformer.Params,
  model: model_config.ModelConfig,
  exit_: int,
  state_BxLxD: Array,
  batch: Mapping[str, Array],
  read: Callable[[Array, Array], Any] = lambda logits_V, target: (),
) -> tuple[Array, Any]:
  """Returns an exit's cross-entropy of every token, given the trunk's states.

  This is the one pass from states to losses by token; the training loss
  (`model.loss`) sums over tokens and computes gradients in its pass. The logits
  of LOGITS / V positions are in memory at once. For use in a compiled function.

  Args:
    params: parameters; those of the trunk's segments are not used.
    model: shape of the model.
    exit_: exit, 1..G.
    state_BxLxD: the trunk's states at the exit's layer.
    batch: `targets_BxL` and, where documents are kept apart, `segments_BxL`.
    read: function of a position's logits [V] and target; its values come from
      the same pass.

  Returns:
    The cross-entropies [B, L] in nats, and the values of `read`, each [B, L].
  """
  targets_BxL = batch['targets_BxL']
  h_BxLxD = transformer.head_state(
    params, model, exit_, state_BxLxD, batch.get('segments_BxL')
  )
  w_DxV = transformer.unembedding(params, model, exit_)

  def one(position: tuple[Array, Array]) -> tuple[Array, Any]:
    h_D, target = position
    logits_V = transformer.read_out(h_D, w_DxV)
    nats = jax.nn.logsumexp(logits_V) - logits_V[target]
    return nats, read(logits_V, target)

  found = jax.lax.map(
    one,
    (h_BxLxD.reshape(-1, h_BxLxD.shape[-1]), targets_BxL.reshape(-1)),
    batch_size=min(max(1, LOGITS // model.vocab_size), targets_BxL.size),
  )
  nats_BxL, values = jax.tree.map(lambda x: x.reshape(targets_BxL.shape), found)
  return nats_BxL, values


def losses(
  params: transformer.Params,
  model: model_config.ModelConfig,
  batches: Iterable[dict[str, Array]],
) -> np.ndarray:
  """Returns each exit's mean token cross-entropy [G] in nats.

  Args:
    params: parameters of the model.
    model: config of the model.
    batches: batches of one shape; positions of weight 0 do not count. Sums are
      float32.
  """
  total, count = jnp.zeros(model.granularity, jnp.float32), jnp.float32(0)
  for batch in batches:
    total, count = _add(model, params, batch, total, count)
  return np.asarray(total / count)


class Member(NamedTuple):
  """One exit of a model.

  Attributes:
    params: parameters of the model.
    model: config of the model.
    exit_: number of the exit, 1..G.
  """

  params: transformer.Params
  model: model_config.ModelConfig
  exit_: int


AGREEMENT = ('kl', 'kl_back', 'js', 'top1')


def agreement(
  one: Member, other: Member, batches: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[float, float | None]]:
  """Returns how far two members' distributions of the next token agree.

  Args:
    one: the member with distribution p.
    other: the member with distribution q, over the same vocabulary.
    batches: batches as for `losses`.

  Returns:
    Means over the tokens that count, with standard errors (see `ratio`): `kl`,
    KL(p || q) in nats; `kl_back`, KL(q || p); `js`, the Jensen-Shannon
    divergence; `top1`, the share of positions with the same most likely token.
  """
  shapes = ((one.model, one.exit_), (other.model, other.exit_))
  sums, counts = [], []
  for batch in batches:
    sums.append(np.asarray(_agree(shapes, one.params, other.params, batch)))
    counts.append(np.sum(np.asarray(batch['weights_BxL']), 1, dtype=np.float64))
  total_WxM, count_W = np.concatenate(sums), np.concatenate(counts)
  return {
    name: ratio(total_WxM[:, column].astype(np.float64), count_W)
    for column, name in enumerate(AGREEMENT)
  }


def by_window(nats_WxL: np.ndarray, counted_WxL: np.ndarray) -> np.ndarray:
  """Returns each window's sum over the positions that count, [W], float64."""
  return np.asarray(
    np.sum(nats_WxL, axis=1, dtype=np.float64, where=counted_WxL)
  )


def ratio(
  above_W: np.ndarray, below_W: np.ndarray
) -> tuple[float, float | None]:
  """Returns the ratio of two sums over windows, and its standard error.

  The error is that of the ratio's linearisation, with windows (not tokens) as
  independent samples. It neglects the correlation between windows of one
  document.

  Args:
    above_W: each window's term of the numerator, such as its nats.
    below_W: each window's term of the denominator, such as its tokens.

  Returns:
    The ratio, and its standard error or None for fewer than two windows.
  """
  windows, total = len(above_W), float(below_W.sum())
  value = float(above_W.sum()) / total
  if windows < 2:
    return value, None
  square = float(np.sum((above_W - value * below_W) ** 2))
  return value, math.sqrt(square * windows / (windows - 1)) / total


@functools.partial(jax.jit, static_argnums=0)
def _add(
  model: model_config.ModelConfig,
  params: transformer.Params,
  batch: dict[str, Array],
  total: Array,
  count: Array,
) -> tuple[Array, Array]:
  tokens = jnp.sum(batch['weights_BxL'])
  none_G = jnp.zeros(model.granularity)
  losses_G = model_loss.exit_losses(params, model, batch, none_G)[1]
  return total + tokens * losses_G, count + tokens


@functools.partial(jax.jit, static_argnums=0)
def _agree(
  shapes: tuple[tuple[model_config.ModelConfig, int], ...],
  params: transformer.Params,
  others: transformer.Params,
  batch: dict[str, Array],
) -> Array:
  """Returns each window's sums of the four measures, [W, 4]."""
  hidden, matrices = [], []
  segments_BxL = batch.get('segments_BxL')
  for tree, (model, exit_) in zip((params, others), shapes, strict=True):
    states = transformer.exit_states(
      tree, model, batch['inputs_BxL'], segments_BxL
    )
    hidden.append(
      transformer.head_state(
        tree, model, exit_, states[exit_ - 1], segments_BxL
      )
    )
    matrices.append(transformer.unembedding(tree, model, exit_))

  def window(rows: tuple[Array, Array, Array]) -> Array:
    p_LxV, q_LxV = (
      jax.nn.log_softmax(transformer.read_out(h_LxD, w_DxV))
      for h_LxD, w_DxV in zip(rows[:2], matrices, strict=True)
    )
    middle_LxV = jnp.logaddexp(p_LxV, q_LxV) - math.log(2)

    def kl(a_LxV: Array, b_LxV: Array) -> Array:
      return jnp.sum(jnp.exp(a_LxV) * (a_LxV - b_LxV), axis=-1)

    same_L = jnp.argmax(p_LxV, -1) == jnp.argmax(q_LxV, -1)
    measures = (
      kl(p_LxV, q_LxV),
      kl(q_LxV, p_LxV),
      (kl(p_LxV, middle_LxV) + kl(q_LxV, middle_LxV)) / 2,
      same_L.astype(jnp.float32),
    )
    return jnp.stack([jnp.sum(each * rows[2]) for each in measures])

  # One window at a time: the distributions of all windows would not fit.
  return jax.lax.map(window, (*hidden, batch['weights_BxL']))
