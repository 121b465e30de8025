"""The model once more, plainly, in whatever precision its parameters have.

In NumPy nothing is compiled, so that many shapes can be tried. In JAX it has
gradients, and its logits are the model's bit for bit, for it rounds as the model
does: queries are scaled rather than scores, and the softmax's sum divides what it
weighs.
"""

import functools

import jax
import numpy as np

from familial.model import transformer


def shapes(model):
  """Returns the shapes of a model's parameters."""
  return jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))


@functools.cache
def params(model):
  """Returns parameters with gains that are not 1, so that a lost one shows."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key == 'gain':
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    scale = 0.25 if path[-1].key == 'kernel' else 0.18
    return rng.normal(0, scale, leaf.shape).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes(model))


def logits(params, model, tokens, xp=np):
  """Returns each exit's logits [B, L, V]."""
  x, start, found = params['embedding'][tokens], 0, []
  for exit_, stop in enumerate(model.exits, start=1):
    stack = params[f'segment_{exit_ - 1}']
    for layer in range(stop - start):
      x = _layer(
        jax.tree.map(lambda leaf, i=layer: leaf[i], stack), model, x, xp
      )
    start, head, at = stop, params[f'exit_{exit_}'], x
    if 'branch' in head:
      at = _layer(head['branch'], model, at, xp)
    gain = head['norm']['gain'] * (model.base_width / model.width)
    shared = params.get('unembedding', params['embedding'].T)
    matrix = head.get('unembedding', shared)
    found.append(_norm(at, gain, model.norm_eps, xp) @ matrix)
  return found


def loss(params, model, tokens, xp=np):
  """Returns the mean over exits of the mean cross-entropy of the next token."""
  total = 0.0
  for out in logits(params, model, tokens[:, :-1], xp):
    out = out - out.max(axis=-1, keepdims=True)
    nats = xp.log(xp.exp(out).sum(axis=-1))
    total += (
      nats - xp.take_along_axis(out, tokens[:, 1:, None], -1)[..., 0]
    ).mean()
  return total / model.granularity


def _norm(x, gain, eps, xp):
  mean_square = (x * x).mean(axis=-1, keepdims=True)
  return x * (1 / xp.sqrt(mean_square + eps)) * gain


def _layer(w, model, x, xp):
  batch, length, _ = x.shape
  dim, groups = model.head_dim, model.kv_heads
  turns = np.outer(
    np.arange(length), model.rope_theta ** (-np.arange(0, dim, 2) / dim)
  )
  cos, sin = (turn(turns).astype(x.dtype) for turn in (np.cos, np.sin))

  def heads(y):
    return y.reshape(batch, length, -1, dim).swapaxes(1, 2)

  def rope(y):
    a, b = y[..., : dim // 2], y[..., dim // 2 :]
    return xp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

  def grouped(y, size):
    return y.reshape(batch, groups, -1, size)

  h = _norm(x, w['attention_norm']['gain'], model.norm_eps, xp)
  q, k, v = (heads(h @ w['attention'][name]['kernel']) for name in 'qkv')
  q = grouped(rope(q), dim) / np.sqrt(dim).astype(x.dtype)
  scores = q @ rope(k).swapaxes(2, 3)
  scores = scores.reshape(batch, model.heads, length, length)
  seen = np.tril(np.ones((length, length), bool))
  scores = xp.where(seen, scores, -np.inf)
  scores = xp.exp(scores - scores.max(axis=-1, keepdims=True))
  total = grouped(scores.sum(axis=-1), 1)
  mixed = grouped(scores, length) @ v / total
  mixed = mixed.reshape(batch, model.heads, length, dim).swapaxes(1, 2)
  x = x + mixed.reshape(batch, length, -1) @ w['attention']['o']['kernel']
  h = _norm(x, w['mlp_norm']['gain'], model.norm_eps, xp)
  gate = h @ w['mlp']['gate']['kernel']
  gate = gate * (1 / (1 + xp.exp(-gate)))
  return x + gate * (h @ w['mlp']['up']['kernel']) @ w['mlp']['down']['kernel']
