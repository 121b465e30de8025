"""Small families, and their predictions without a cache."""

import functools

from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np

from familial.convert import segments
from familial.model import config as model_config
from familial.model import transformer
from familial.serving import engine as engine_lib
from familial.serving import sampling

VOCAB, CONTEXT = 23, 48


@functools.cache
def make(**changes):
  """Returns parameters, larger than at initialisation, and a shape: the exits
  differ, and are confident of some tokens only."""
  shape = {
    'vocab_size': VOCAB, 'width': 16, 'depth': 3, 'heads': 2, 'kv_heads': 1,
    'mlp_width': 24, 'exits': (1, 2, 3), 'base_width': 8, **changes,
  }  # fmt: skip
  config = model_config.ModelConfig(**shape)
  params = jax.jit(lambda key: transformer.init(config, key))(jax.random.key(1))
  return jax.tree.map(
    lambda leaf: 2 * leaf if leaf.ndim > 1 else leaf, params
  ), config


@strategies.composite
def shapes(draw):
  """Draws shapes of families."""
  depth = draw(strategies.integers(1, 4))
  exits = draw(strategies.sets(strategies.integers(1, depth)))
  kv_heads = draw(strategies.sampled_from([1, 2]))
  return {
    'depth': depth,
    'exits': tuple(sorted(exits | {depth})),
    'kv_heads': kv_heads,
    'heads': kv_heads * draw(strategies.sampled_from([1, 2])),
    'exit_kind': draw(strategies.sampled_from(['head', 'separate', 'branch'])),
    'branch_unembedding': draw(strategies.sampled_from(['shared', 'own'])),
    'tied': draw(strategies.booleans()),
    'base_width': draw(strategies.sampled_from([8, 16, 24])),
  }


class Family:
  """A family and its uncached forward pass."""

  context = CONTEXT

  def __init__(self, **changes):
    self.params, self.config = make(**changes)
    self._logits = jax.jit(
      lambda tokens: jnp.stack(
        transformer.logits(self.params, self.config, tokens)
      )
    )
    self._frozen = jax.jit(self._stay)

  def logits(self, tokens):
    """Returns the logits of each exit at each position [G, L, V]."""
    padded = np.zeros((1, CONTEXT), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(self._logits(padded))[:, 0, : len(tokens)]

  def frozen(self, tokens, left):
    """Returns the logits [G, L, V] of a pass in which positions that left keep
    their state, given the index [L] of the exit that each left at."""
    padded = np.zeros((2, CONTEXT), np.int32)
    padded[0, : len(tokens)], padded[1, : len(tokens)] = tokens, left
    return np.asarray(self._frozen(*padded))[:, : len(tokens)]

  def _stay(self, tokens_L, left_L):
    config, params, out = self.config, self.params, []
    x = params['embedding'][tokens_L[None]]
    for place in range(config.granularity):
      stay = (left_L < place)[None]
      x = transformer.segment(params, config, place, x, None, stay)
      h = transformer.head_state(params, config, place + 1, x)
      w = transformer.unembedding(params, config, place + 1)
      out.append(transformer.read_out(h, w)[0])
    return jnp.stack(out)

  def segments(self, *exits):
    return segments.split(self.params, self.config, CONTEXT, exits)

  def engines(self, slots, *exits, rows=0):
    return [
      engine_lib.Engine(segment, slots, CONTEXT, rows=rows)
      for segment in self.segments(*exits)
    ]


def uncached(family, prompt, policy, exits, limits):
  """Decodes by the definition: whole forward passes.

  With propagation, generated positions keep the state that they left with.
  """
  tokens, gave = list(prompt), []
  while len(gave) < limits.max_tokens and len(tokens) < CONTEXT:
    if policy.fill == 'propagate':
      left = [99] * (len(prompt) - 1) + gave + [99]
      logits = family.frozen(tokens, left)[:, -1]
    else:
      logits = family.logits(tokens)[:, -1]
    sure = [
      float(sampling.confidence(logits[e - 1], policy.confidence))
      for e in exits[:-1]
    ]
    place = int(np.argmax([*(c >= policy.threshold for c in sure), True]))
    tokens.append(int(np.argmax(logits[exits[place] - 1])))
    gave.append(place)
    if tokens[-1] in limits.stops:
      break
  return tokens, gave
