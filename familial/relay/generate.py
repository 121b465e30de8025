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
class Traffic:
  """Traffic between the client and one server.

  Attributes:
    server: address of the server.
    calls: number of calls.
    positions: number of positions that the server computed.
    bytes_sent, bytes_received: bytes of the calls.
    milliseconds_median: median time of a call.
  """

  server: str
  calls: int
  positions: int
  bytes_sent: int
  bytes_received: int
  milliseconds_median: float


@dataclasses.dataclass(frozen=True)
class Relayed(generate.Generation):
  """Generated texts, and the traffic with each server.

  Attributes:
    hops: traffic with each server, first to last.
  """

  hops: tuple[Traffic, ...] = ()

  @property
  def degraded(self) -> int:
    """The number of tokens of exits that were not confident, because the next
    server was gone or busy."""
    return sum(text.degraded for text in self.completions)

  def report(self) -> dict[str, Any]:
    """Returns the JSON object of `familial generate --out`."""
    hops = [dataclasses.asdict(hop) for hop in self.hops]
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
    if what.vocab_size != tokenizer.vocab_size:
      raise errors.UserError(
        f'{servers[0]}: serves a model of {what.vocab_size} tokens, and the '
        f'tokenizer has {tokenizer.vocab_size}'
      )
    if what.tokenizer != tokenizer.mark:
      raise errors.UserError(
        f'{servers[0]}: serves a model of tokenizer {what.tokenizer}, and the '
        f'one here is {tokenizer.mark}'
      )
    context = min(stage.what.context for stage in stages)
    limits = decoding.Limits(context, max_tokens, tokenizer.separator)
    tick = time.monotonic()
    completions = decoding.generate(stages, tokens, limits, policy, say)
    seconds = time.monotonic() - tick
    hops = tuple(
      Traffic(
        stage.address,
        len(stage.seconds),
        stage.positions,
        stage.sent,
        stage.received,
        1e3 * float(np.median(stage.seconds or [0.0])),
      )
      for stage in stages
    )
  return Relayed(
    'relay',
    [tokenizer.decode(text.tokens) for text in completions],
    completions,
    what.exits,
    seconds,
    hops=hops,
  )
