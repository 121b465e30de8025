"""Text generation for prompts, with the servers of a relay."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import time
from typing import Any

import numpy as np

from familial.core import errors
from familial.data import tokenizers
from familial.relay import client
from familial.serving import decoding
from familial.serving import generate
from familial.serving import sampling as sampling_lib


@dataclasses.dataclass(frozen=True)
class Relayed(generate.Generation):
  """Generated texts, and the traffic with each server.

  Attributes:
    stages: the servers, first to last, with what was sent and received.
  """

  stages: tuple[client.Remote, ...] = ()

  @property
  def degraded(self) -> int:
    """The number of tokens of exits that were not confident, because the next
    server was gone or busy."""
    return sum(text.degraded for text in self.completions)

  def report(self) -> dict[str, Any]:
    """Returns the JSON object of `familial generate --out`."""
    hops = [
      {
        'server': stage.address,
        'calls': len(stage.seconds),
        'positions': stage.positions,
        'bytes_sent': stage.sent,
        'bytes_received': stage.received,
        'milliseconds_median': 1e3 * float(np.median(stage.seconds or [0.0])),
      }
      for stage in self.stages
    ]
    return {**super().report(), 'degraded': self.degraded, 'hops': hops}


def run(
  tokenizer: tokenizers.Tokenizer,
  servers: Sequence[str],
  prompts: Sequence[str],
  policy: sampling_lib.Policy,
  max_tokens: int,
  *,
  dtype: str = 'float32',
  say: Callable[[str], None] = lambda line: None,
  follow: decoding.Follow = decoding.ignore,
) -> Relayed:
  """Completes prompts with a chain of servers.

  Args:
    tokenizer: tokenizer of the model.
    servers: HOST:PORT of each segment's server, first to last.
    prompts: texts.
    policy: how tokens are drawn, and which exit answers.
    max_tokens: largest number of tokens to generate for a prompt.
    dtype: type of the states in messages.
    say: receives a line if a server does not answer.
    follow: receives each text after each step that added to it.

  Raises:
    UserError: if the first server does not answer, the servers are not a chain
      of one model with this tokenizer, states are to be propagated, or a prompt
      does not fit or is not UTF-8.
  """
  if policy.fill != 'defer':
    raise errors.UserError(
      f'fill: {policy.fill!r} is not allowed in mode relay; it must be '
      "'defer': servers compute all positions that they are sent"
    )
  errors.require(max_tokens >= 1, 'max_tokens', max_tokens, 'at least 1')
  tokens = generate.encode(tokenizer, prompts)
  with client.connect(servers, dtype=dtype, say=say) as stages:
    what = stages[0].what
    theirs = what.tokenizer, what.vocab_size
    ours = tokenizer.mark, tokenizer.vocab_size
    if theirs != ours:
      raise errors.UserError(
        f'{servers[0]}: serves a model of tokenizer {theirs[0]} with {theirs[1]} '
        f'tokens, and the one here is {ours[0]} with {ours[1]}'
      )
    context = min(stage.what.context for stage in stages)
    limits = decoding.Limits(context, max_tokens, tokenizer.stops)
    tick = time.monotonic()
    completions = decoding.generate(stages, tokens, limits, policy, say, follow)
    seconds = time.monotonic() - tick
  return Relayed(
    'relay',
    [tokenizer.decode(text.tokens) for text in completions],
    completions,
    what.exits,
    seconds,
    stages=tuple(stages),
  )
