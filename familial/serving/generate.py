"""Text generation for prompts, with a model of this process."""

from collections.abc import Sequence
import dataclasses
import time
from typing import Annotated
from typing import Any

import numpy as np

from familial.convert import load
from familial.convert import segments
from familial.core import errors
from familial.core import schema
from familial.core import text
from familial.data import tokenizers
from familial.serving import decoding
from familial.serving import engine as engine_lib
from familial.serving import sampling as sampling_lib
from familial.serving import speculation


@dataclasses.dataclass(frozen=True)
class Options:
  """Options of generation.

  Attributes:
    mode: exit, a fixed one; confidence, the first confident one; speculative,
      the last one with drafts of another.
    exit: exit of mode exit, and the last of the others; 0 for the model's last.
    draft_exit: exit that drafts in mode speculative.
    drafts: tokens drafted in a round.
    max_tokens: largest number of tokens to generate for a prompt.
    policy: how tokens are drawn, and which exit answers.
    slots: number of prompts at once.
  """

  mode: Annotated[str, schema.one_of('exit', 'confidence', 'speculative')] = (
    'exit'
  )
  exit: int = 0
  draft_exit: int = 1
  drafts: int = 3
  max_tokens: schema.Count = 64
  policy: sampling_lib.Policy = dataclasses.field(
    default_factory=sampling_lib.Policy
  )
  slots: schema.Count = 16

  def __post_init__(self) -> None:
    schema.check(self)


@text.brief
@dataclasses.dataclass(frozen=True)
class Generation:
  """Generated texts and their cost.

  Attributes:
    mode: mode of generation.
    texts: prompts with their continuations.
    completions: the same as tokens.
    exits: exits that the completions' indices refer to.
    seconds: time of generation, compilation included.
    drafting: counts of mode speculative.
  """

  mode: str
  texts: list[str]
  completions: list[decoding.Completion]
  exits: tuple[int, ...]
  seconds: float
  drafting: speculation.Drafting | None = None

  @property
  def tokens(self) -> int:
    """The number of generated tokens."""
    return sum(len(text.exits) for text in self.completions)

  @property
  def shares(self) -> dict[int, float]:
    """The share of the generated tokens by exit."""
    places = np.concatenate([text.exits for text in self.completions])
    return {
      exit_: float(np.mean(places == place))
      for place, exit_ in enumerate(self.exits)
    }

  def report(self) -> dict[str, Any]:
    """Returns the JSON object of `familial generate --out`."""
    values = {
      'texts': self.texts,
      'finish': [text.finish for text in self.completions],
      'mode': self.mode,
      'tokens': self.tokens,
      'seconds': self.seconds,
      'share': {f'exit_{exit_}': x for exit_, x in self.shares.items()},
    }
    if self.drafting:
      values |= dataclasses.asdict(self.drafting)
      values['acceptance'] = self.drafting.acceptance
    return values


def encode(
  tokenizer: tokenizers.Tokenizer, prompts: Sequence[str]
) -> list[list[int]]:
  """Returns each prompt's tokens: those of a document that begins with it.

  An empty prompt without a first token is one that follows the separator.

  Raises:
    UserError: for text that is not valid UTF-8, as a shell may pass it.
  """
  for prompt in prompts:
    try:
      prompt.encode('utf-8')
    except UnicodeEncodeError:
      raise errors.UserError(f'prompt: {prompt!r} is not valid UTF-8') from None
  return [
    [*tokenizer.start, *map(int, tokens)] or [tokenizer.separator]
    for tokens in tokenizer.encode(list(prompts))
  ]


def engines(
  model: load.Model, slots: int, cuts: Sequence[int], all_rows: bool
) -> list[engine_lib.Engine]:
  """Returns engines of a model's segments.

  Args:
    model: the family.
    slots: number of texts at once.
    cuts: the exits at the segments' ends.
    all_rows: whether a pass has all slots in every segment. Otherwise, from the
      second segment on, it has half of them, so that rows that left early save
      computation; fewer rows cost hardly less.
  """
  return [
    engine_lib.Engine(
      segment,
      slots,
      model.context,
      rows=0 if all_rows or segment.first else max(1, slots // 2),
    )
    for segment in segments.split(
      model.params, model.config.model, model.context, cuts
    )
  ]


def run(
  model: load.Model,
  prompts: Sequence[str],
  options: Options,
  follow: decoding.Follow = decoding.ignore,
) -> Generation:
  """Completes prompts.

  Args:
    model: the family.
    prompts: texts.
    options: mode, limits, and how tokens are drawn.
    follow: receives each text after each step that added to it.

  Raises:
    UserError: for an exit that does not exist, a draft exit that is not before
      it, or a prompt that does not fit or is not UTF-8.
  """
  shape = model.config.model
  last = options.exit or shape.granularity
  shape.submodel(last)  # Refuses an exit that does not exist.
  cuts = {
    'exit': (last,),
    'confidence': tuple(range(1, last + 1)),
    'speculative': (options.draft_exit, last),
  }[options.mode]
  errors.require(
    options.mode != 'speculative' or 0 < options.draft_exit < last,
    'draft_exit',
    options.draft_exit,
    f'from 1 to {last - 1}, before exit {last}, which verifies its drafts',
  )
  tokens = encode(model.tokenizer, prompts)
  decoding.check(tokens, model.context)
  stages = engines(
    model,
    min(options.slots, len(prompts)),
    cuts,
    all_rows=options.mode != 'confidence',
  )
  limits = decoding.Limits(
    model.context, options.max_tokens, model.tokenizer.stops
  )
  tick, drafting = time.monotonic(), None
  if options.mode == 'speculative':
    draft, deep = stages
    completions, drafting = speculation.speculate(
      draft, deep, tokens, limits, options.policy.sampling, options.drafts,
      follow,
    )  # fmt: skip
  else:
    completions = decoding.generate(
      stages, tokens, limits, options.policy, follow=follow
    )
  seconds = time.monotonic() - tick
  texts = [model.tokenizer.decode(text.tokens) for text in completions]
  return Generation(options.mode, texts, completions, cuts, seconds, drafting)
