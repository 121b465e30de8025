"""The model once more, plainly, in whatever precision its parameters have.

In NumPy nothing is compiled, so that many shapes can be tried; in JAX it has
gradients.
"""

import numpy as np


def logits(params, model, tokens, xp=np):
  """Returns each exit's logits [B, L, V]."""
  x, start, found = params['embedding'][tokens], 0, []
  for exit_, stop in enumerate(model.exits, start=1):
    stack = params[f'segment_{exit_ - 1}']
    for layer in range(stop - start):
      x = _layer(_at(stack, layer), model, x, xp)
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


def _at(stack, layer):
  if isinstance(stack, dict):
    return {name: _at(leaf, layer) for name, leaf in stack.items()}
  return stack[layer]


def _norm(x, gain, eps, xp):
  return x / xp.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * gain


def _layer(w, model, x, xp):
  batch, length, _ = x.shape
  dim, group = model.head_dim, model.heads // model.kv_heads
  turns = np.outer(
    np.arange(length), model.rope_theta ** (-np.arange(0, dim, 2) / dim)
  )
  cos, sin = (turn(turns).astype(x.dtype) for turn in (np.cos, np.sin))

  def heads(y):
    return y.reshape(batch, length, -1, dim).swapaxes(1, 2)

  def rope(y):
    a, b = y[..., : dim // 2], y[..., dim // 2 :]
    return xp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

  h = _norm(x, w['attention_norm']['gain'], model.norm_eps, xp)
  q, k, v = (heads(h @ w['attention'][name]['kernel']) for name in 'qkv')
  k, v = (xp.repeat(y, group, axis=1) for y in (rope(k), v))
  scores = rope(q) @ k.swapaxes(2, 3) / np.sqrt(dim).astype(x.dtype)
  seen = np.tril(np.ones((length, length), bool))
  scores = xp.where(seen, scores, -np.inf)
  scores = xp.exp(scores - scores.max(axis=-1, keepdims=True))
  mixed = scores / scores.sum(axis=-1, keepdims=True) @ v
  mixed = mixed.swapaxes(1, 2).reshape(batch, length, -1)
  x = x + mixed @ w['attention']['o']['kernel']
  h = _norm(x, w['mlp_norm']['gain'], model.norm_eps, xp)
  gate = h @ w['mlp']['gate']['kernel']
  gate = gate / (1 + xp.exp(-gate))
  return x + gate * (h @ w['mlp']['up']['kernel']) @ w['mlp']['down']['kernel']
