"""What `familial generate` does: text for prompts, and what it cost."""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import dataclasses
import time
from typing import Any

import numpy as np

from familial.convert import load
from familial.convert import segments
from familial.core import errors
from familial.data import tokenizers
from familial.relay import client
from familial.serving import decoding
from familial.serving import engine as tier_lib
from familial.serving import sampling as sampling_lib
from familial.serving import speculation

MODES = ('exit', 'confidence', 'speculative', 'relay')
_SLOTS = 16


@dataclasses.dataclass(frozen=True)
class Options:
  """How to generate.

  Attributes:
    mode: exit, always the same one; confidence, the first that is sure;
      speculative, the last one from another's drafts.
    exit: of mode exit, and the last of the others; 0 for the model's last.
    draft_exit: of mode speculative, whose drafts are read.
    drafts: tokens drafted a round.
    max_tokens: to generate at most.
    policy: how tokens are drawn, and when an exit is sure.
    slots: prompts at once.
  """

  mode: str = 'exit'
  exit: int = 0
  draft_exit: int = 1
  drafts: int = 3
  max_tokens: int = 64
  policy: sampling_lib.Policy = dataclasses.field(
    default_factory=sampling_lib.Policy
  )
  slots: int = _SLOTS

  def __post_init__(self) -> None:
    if self.mode not in MODES:
      raise errors.UserError(
        f'mode: {self.mode!r} is not one of {", ".join(MODES)}'
        f'{errors.nearest(self.mode, MODES)}'
      )
    for name in ('max_tokens', 'slots'):
      if getattr(self, name) < 1:
        raise errors.UserError(
          f'{name}: {getattr(self, name)} is not allowed; it must be at least 1'
        )


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of it.

  Attributes:
    texts: prompts and what follows them.
    completions: the same as tokens.
    report: mode; tokens generated and their seconds, the compilation of
      programs included; `share` of the tokens by exit; of speculative decoding
      the `acceptance` of drafts; of a relay, by hop, calls and bytes between
      the client and that server, sent and received, and the tokens `degraded`:
      given by an exit that was not sure, for the server of the next was gone or
      busy.
  """

  texts: list[str]
  completions: list[decoding.Completion]
  report: dict[str, Any]


def encode(tokenizer: tokenizers.Tokenizer, prompt: str) -> list[int]:
  """Returns a prompt's tokens: those of a document that begins with it.

  Raises:
    UserError: if it holds what UTF-8 cannot, as bytes of a shell that are none.
  """
  try:
    prompt.encode('utf-8')
  except UnicodeEncodeError:
    raise errors.UserError(f'prompt: {prompt!r} is not valid UTF-8') from None
  return [tokenizer.separator, *map(int, tokenizer.encode([prompt])[0])]


def tiers(
  model: load.Model, slots: int, cuts: Sequence[int], all_rows: bool
) -> list[tier_lib.Tier]:
  """Returns a model's segments, ready to decode with.

  Args:
    model: the family.
    slots: texts at once.
    cuts: the exits at their ends.
    all_rows: whether all rows go through all of them. Otherwise, from the second
      on, a pass has half of the slots: fewer rows cost hardly less, and rows that
      left early are to save something.
  """
  return [
    tier_lib.Tier(
      segment,
      slots,
      model.context,
      rows=0 if all_rows or segment.first else max(1, slots // 2),
    )
    for segment in segments.split(
      model.params, model.config.model, model.context, cuts
    )
  ]


def run(model: load.Model, prompts: Sequence[str], options: Options) -> Outcome:
  """Completes prompts with a model of this process.

  Args:
    model: the family.
    prompts: texts.
    options: mode exit, confidence or speculative, and the rest.

  Raises:
    UserError: for what is no exit, a draft exit that is not before it, or a
      prompt that does not fit or is not UTF-8.
  """
  shape = model.config.model
  last = options.exit or shape.granularity
  shape.submodel(last)  # Refuses what is no exit.
  cuts = {
    'exit': (last,),
    'confidence': tuple(range(1, last + 1)),
    'speculative': (options.draft_exit, last),
  }[options.mode]
  if options.mode == 'speculative' and not 0 < options.draft_exit < last:
    raise errors.UserError(
      f'draft_exit: {options.draft_exit} is not allowed; it must be from 1 to '
      f'{last - 1}, before exit {last}, which reads its drafts'
    )
  slots = min(options.slots, len(prompts))
  tokens = [encode(model.tokenizer, prompt) for prompt in prompts]
  decoding.check(tokens, model.context)
  stages = tiers(model, slots, cuts, options.mode != 'confidence')
  limits: dict[str, Any] = {
    'context': model.context,
    'max_tokens': options.max_tokens,
    'stop': model.tokenizer.separator,
  }
  tick = time.monotonic()
  more: dict[str, Any] = {}
  if options.mode == 'speculative':
    draft, deep = stages
    found, drafting = speculation.speculate(
      draft, deep, tokens, **limits, sampling=options.policy.sampling,
      drafts=options.drafts,
    )  # fmt: skip
    more = {
      **dataclasses.asdict(drafting),
      'acceptance': drafting.accepted / drafting.drafted,
    }
  else:
    found = decoding.generate(stages, tokens, **limits, policy=options.policy)
  seconds = time.monotonic() - tick
  return _outcome(found, model.tokenizer, options.mode, cuts, seconds, more)


def relay(
  tokenizer: tokenizers.Tokenizer,
  servers: Sequence[str],
  prompts: Sequence[str],
  options: Options,
  *,
  dtype: str = 'float32',
  say: Callable[[str], None] = lambda line: None,
) -> Outcome:
  """Completes prompts with a chain of servers, first to last.

  Args:
    tokenizer: of the model.
    servers: HOST:PORT of each segment's.
    prompts: texts.
    options: max_tokens and policy count.
    dtype: of the states on the way.
    say: is told in a line of a server that does not answer.

  Raises:
    UserError: if the first server does not answer, the servers are not a chain
      of one model with this tokenizer, states are to be propagated, or a prompt
      does not fit or is not UTF-8.
  """
  if options.policy.fill != 'defer':
    raise errors.UserError(
      f'fill: {options.policy.fill!r} is not allowed in mode relay; it must be '
      "'defer': what is handed on is taken in as it is"
    )
  tokens = [encode(tokenizer, prompt) for prompt in prompts]
  with contextlib.ExitStack() as stack:
    stages = client.connect(servers, dtype=dtype, say=say)
    for stage in stages:
      stack.callback(stage.close)
    context = min(stage.what['context'] for stage in stages)
    if stages[0].what['vocab_size'] != tokenizer.vocab_size:
      raise errors.UserError(
        f'{servers[0]}: serves a model of {stages[0].what["vocab_size"]} '
        f'tokens, and the tokenizer has {tokenizer.vocab_size}'
      )
    if stages[0].what['tokenizer'] != tokenizer.mark:
      raise errors.UserError(
        f'{servers[0]}: serves a model of tokenizer '
        f'{stages[0].what["tokenizer"]}, and the one here is {tokenizer.mark}'
      )
    tick = time.monotonic()
    found = decoding.generate(
      stages, tokens, context=context, max_tokens=options.max_tokens,
      stop=tokenizer.separator, policy=options.policy, say=say,
    )  # fmt: skip
    seconds = time.monotonic() - tick
    hops = [
      {
        'server': stage.address,
        'calls': len(stage.seconds),
        'positions': stage.positions,
        'bytes_sent': stage.sent,
        'bytes_received': stage.received,
        'milliseconds_median': 1e3 * float(np.median(stage.seconds or [0.0])),
      }
      for stage in stages
    ]
    cuts = tuple(stages[0].what['exits'])
  return _outcome(
    found,
    tokenizer,
    'relay',
    cuts,
    seconds,
    {'degraded': sum(text.degraded for text in found), 'hops': hops},
  )


def _outcome(
  found: list[decoding.Completion],
  tokenizer: tokenizers.Tokenizer,
  mode: str,
  cuts: Sequence[int],
  seconds: float,
  more: dict[str, Any],
) -> Outcome:
  gave = np.concatenate([completion.exits for completion in found])
  return Outcome(
    [tokenizer.decode(completion.tokens) for completion in found],
    found,
    {
      'mode': mode,
      'tokens': len(gave),
      'seconds': seconds,
      'share': {
        f'exit_{exit_}': float(np.mean(gave == place))
        for place, exit_ in enumerate(cuts)
      },
      **more,
    },
  )


def line(report: dict[str, Any]) -> str:
  """Returns a report in a line."""
  rate = report['tokens'] / report['seconds']
  parts = [
    f'{report["mode"]}: {report["tokens"]} tokens in {report["seconds"]:.2f} s '
    f'({rate:,.0f} tokens/s with compiling)',
    'by exit '
    + ', '.join(
      f'{name.removeprefix("exit_")}: {share:.0%}'
      for name, share in report['share'].items()
    ),
  ]
  if 'acceptance' in report:
    parts.append(f'{report["acceptance"]:.0%} of drafts accepted')
  parts += [
    f'{hop["server"]} {hop["positions"]} positions, '
    f'{hop["bytes_sent"] + hop["bytes_received"]} bytes both ways, '
    f'{hop["milliseconds_median"]:.1f} ms a call'
    for hop in report.get('hops', [])
  ]
  return '; '.join(parts)
