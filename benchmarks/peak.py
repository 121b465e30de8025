"""Peak memory of the loss and its gradient: python -m benchmarks.peak G.

Prints the bytes by which the resident set grows while the program runs; what
compiling took does not count.
"""

import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from familial.model import config as model_config
from familial.model import loss
from familial.model import transformer

_ROWS, _LENGTH, _CHUNK, _VOCAB = 8, 256, 32, 32_768


def main() -> None:
  program, params, batch = compiled(int(sys.argv[1]))
  jax.block_until_ready((params, batch))
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # Forgets the peak.
  before = _status('VmRSS')
  jax.block_until_ready(program(params, batch))
  print(_status('VmHWM') - before)


def compiled(
  granularity: int,
) -> tuple[jax.stages.Compiled, transformer.Params, dict[str, jax.Array]]:
  """Returns the gradient of a G-exit loss over 32k tokens, and its arguments."""
  config = model_config.ModelConfig(
    vocab_size=_VOCAB,
    width=64,
    depth=8,
    heads=2,
    kv_heads=2,
    mlp_width=176,
    exits=model_config.even_exits(8, granularity),
    loss_chunk=_CHUNK,
  )
  params = jax.jit(transformer.init, static_argnums=0)(
    config, jax.random.key(0)
  )
  tokens = jnp.asarray(
    np.random.default_rng(0).integers(0, _VOCAB, (_ROWS, _LENGTH))
  )
  batch = {
    'inputs_BxL': tokens,
    'targets_BxL': tokens,
    'weights_BxL': jnp.ones(tokens.shape),
  }
  weights_G = jnp.full(granularity, 1 / granularity)

  def total(params: transformer.Params, batch: dict[str, jax.Array]):
    return loss.exit_losses(params, config, batch, weights_G)

  gradient = jax.jit(jax.grad(total, has_aux=True))
  return gradient.lower(params, batch).compile(), params, batch


def _status(key: str) -> int:
  text = pathlib.Path('/proc/self/status').read_text()
  return int(re.search(rf'{key}:\s+(\d+) kB', text)[1]) * 1024


if __name__ == '__main__':
  main()
