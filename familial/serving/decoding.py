"""Decoding with a chain of stages: a fixed exit, or the first confident one.

Decoding is defined by the uncached forward pass: the token after a position is
the prediction, from all tokens before it, of the exit that answers there. With
deferred computation a layer that a position skipped is not guessed: the position
waits, and is computed together with all others that wait once a later position
of its row needs the layer. This is exact, and skips few layers in the end,
because most rows go deep sooner or later. State propagation computes only keys
and values of skipped layers, from the state that the position left with. It
skips these layers permanently, so its output differs from the full model's; it
is defined by a pass in which the states of positions that left do not change.
"""

import collections
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import time
from typing import Any
from typing import NamedTuple
from typing import Protocol

import numpy as np

from familial.core import errors
from familial.serving import engine as engine_lib
from familial.serving import sampling as sampling_lib

_PAUSE = 0.1  # seconds until a busy stage is asked again


class Limits(NamedTuple):
  """When a text ends.

  Attributes:
    context: largest number of positions of a row.
    max_tokens: largest number of tokens to generate for a prompt.
    stops: tokens that end a text.
  """

  context: int
  max_tokens: int
  stops: Collection[int] = ()


@dataclasses.dataclass
class Completion:
  """A prompt and its continuation.

  Attributes:
    tokens: tokens of both.
    prompt: number of tokens of the prompt.
    exits: index of the stage that gave each generated token.
    degraded: number of tokens given by a stage that was not confident, because
      the next one was gone or busy.
    finish: why the text ended: `stop` (a stop token), `length` (max_tokens) or
      `context`; '' before it has.
  """

  tokens: list[int]
  prompt: int
  exits: list[int] = dataclasses.field(default_factory=list)
  degraded: int = 0
  finish: str = ''

  @property
  def generated(self) -> list[int]:
    """The tokens after the prompt."""
    return self.tokens[self.prompt :]

  def add(self, token: int, place: int, limits: Limits) -> bool:
    """Adds a token given by a stage; returns whether the text ends with it."""
    self.tokens.append(token)
    self.exits.append(place)
    if token in limits.stops:
      self.finish = 'stop'
    elif len(self.exits) >= limits.max_tokens:
      self.finish = 'length'
    elif len(self.tokens) >= limits.context:
      self.finish = 'context'
    return bool(self.finish)


# Receives the number of a prompt and its text, after each step that added to it.
Follow = Callable[[int, Completion], None]


def ignore(number: int, text: Completion) -> None:
  """Follows no text."""


class Decoder(Protocol):
  """A mode of decoding: it continues texts that it holds in slots.

  Attributes:
    slots: number of texts it can hold.
  """

  slots: int

  def open(self, texts: Mapping[int, tuple[int, Completion]]) -> None:
    """Begins texts: by slot, the number of the prompt and the text."""

  def step(self) -> Mapping[int, Iterable[tuple[int, int]]]:
    """Returns by slot the next tokens, each with the stage that gave it.

    The caller adds them to the texts; after the end of a text it ignores them.
    """

  def close(self, slot: int) -> None:
    """Ends a text and empties its slot."""


def complete(
  decoder: Decoder,
  prompts: Sequence[Sequence[int]],
  limits: Limits,
  follow: Follow = ignore,
) -> list[Completion]:
  """Completes prompts; a free slot takes the next one.

  Raises:
    UserError: for a prompt that leaves no room for a token.
  """
  check(prompts, limits.context)
  texts = [Completion(list(prompt), len(prompt)) for prompt in prompts]
  waiting = collections.deque(enumerate(texts))
  free = list(range(decoder.slots))[::-1]
  rows: dict[int, tuple[int, Completion]] = {}
  try:
    while waiting or rows:
      count = min(len(free), len(waiting))
      fresh = {free.pop(): waiting.popleft() for _ in range(count)}
      rows |= fresh
      decoder.open(fresh)
      for slot, tokens in decoder.step().items():
        number, text = rows[slot]
        ended = any(text.add(token, place, limits) for token, place in tokens)
        follow(number, text)
        if ended:
          del rows[slot]
          decoder.close(slot)
          free.append(slot)
  finally:
    for slot in rows:
      decoder.close(slot)
  return texts


def check(prompts: Sequence[Sequence[int]], context: int) -> None:
  """Refuses prompts that are empty or leave no room for a token."""
  for index, prompt in enumerate(prompts):
    if not prompt:
      raise errors.UserError(f'prompt {index} is empty')
    if len(prompt) >= context:
      raise errors.UserError(
        f'prompt {index} has {len(prompt)} tokens; the context of {context} '
        f'leaves room for prompts up to {context - 1}'
      )


class Stage(Protocol):
  """A segment in use: an Engine of this process, or a server's.

  Attributes:
    slots: number of rows it can hold.
    states: inputs of the next stage.
  """

  slots: int
  states: Any

  def run(
    self,
    work: Sequence[engine_lib.Work],
    inputs: Any,
    policy: sampling_lib.Policy,
    wanted: Sequence[int],
    stays: Sequence[int] = (),
  ) -> tuple[np.ndarray, np.ndarray]:
    """Computes positions, and predictions at each row's last; see Engine.run.

    Rows with a confidence below the policy's threshold go on to the next stage;
    `wanted` is each row's first position whose state that stage needs.
    """

  def forget(self, slot: int) -> None:
    """Empties a slot."""


class LostError(Exception):
  """A stage no longer holds the earlier positions of some slots."""

  def __init__(self, slots: Sequence[int]):
    super().__init__(f'slots {list(slots)} are lost')
    self.slots = slots


class BusyError(Exception):
  """A stage has no place for some rows, and computed no row of the call.

  Attributes:
    slots: slots of these rows.
    patience: seconds that they can wait for a place.
  """

  def __init__(self, name: str, slots: Sequence[int], patience: float):
    super().__init__(f'{name}: has no place for {len(slots)} rows')
    self.slots, self.patience = slots, patience


class DownError(Exception):
  """A stage cannot be used any more: the chain ends before it."""


def generate(
  stages: Sequence[Stage],
  prompts: Sequence[Sequence[int]],
  limits: Limits,
  policy: sampling_lib.Policy,
  say: Callable[[str], None] = lambda line: None,
  follow: Follow = ignore,
) -> list[Completion]:
  """Completes prompts: each token by the first confident stage.

  Rows leave at different stages, and begin and end at different times. A row
  waits for a busy stage while others go on; after its patience the stage before
  it answers, as it does for all rows of a stage that is gone.

  Args:
    stages: consecutive segments of a family; a single one is a fixed exit.
    prompts: tokens of each prompt.
    limits: when a text ends.
    policy: how tokens are drawn, and the threshold of confidence; the last stage
      always answers.
    say: receives a line when a stage is gone, or busy for too long.
    follow: receives each text after each step that added to it.

  Raises:
    UserError: for a prompt that does not fit, or if the first stage is gone or
      has no place for any row.
  """
  return complete(Cascade(stages, policy, say), prompts, limits, follow)


@dataclasses.dataclass
class _Row:
  """A text in a slot.

  Attributes:
    number: number of its prompt, for its draws.
    text: the text.
    answer: the next token so far, the stage that gave it, and whether that was
      confident; None before the first stage.
    barred: the stage that had no place for it; -1 for none.
    waits: whether it waits for that stage.
    until: time when its patience ends, and the stage before answers.
    again: time when it asks that stage again.
  """

  number: int
  text: Completion
  answer: tuple[int, int, bool] | None = None
  barred: int = -1
  waits: bool = False
  until: float = 0.0
  again: float = 0.0


class Cascade:
  """Decodes each token by the first confident stage; see `generate`."""

  def __init__(
    self,
    stages: Sequence[Stage],
    policy: sampling_lib.Policy,
    say: Callable[[str], None] = lambda line: None,
  ):
    self.slots = min(stage.slots for stage in stages)
    self._stages, self._policy, self._say = stages, policy, say
    self._rows: dict[int, _Row] = {}
    self._up = len(stages)
    self._seen = np.zeros((len(stages), self.slots), np.int64)
    self._propagate = policy.fill == 'propagate'
    self._moved = time.monotonic()
    self._told: set[int] = set()

  def open(self, texts: Mapping[int, tuple[int, Completion]]) -> None:
    """Begins texts; with propagation, prompts go through all stages."""
    for slot, (number, text) in texts.items():
      self._rows[slot], self._seen[:, slot] = _Row(number, text), 0
    if self._propagate:
      work = [
        engine_lib.Work(slot, 0, len(text.tokens) - 1, number)
        for slot, (number, text) in texts.items()
        if len(text.tokens) > 1
      ]
      inputs: Any = [self._rows[w.slot].text.tokens[:-1] for w in work]
      for stage in self._stages:
        stage.run(work, inputs, self._policy, [0] * len(work))
        inputs = stage.states
      for w in work:
        self._seen[:, w.slot] = w.length

  def close(self, slot: int) -> None:
    """Ends a text; its slots are empty."""
    del self._rows[slot]
    for stage in self._stages[: self._up]:
      stage.forget(slot)

  def step(self) -> dict[int, list[tuple[int, int]]]:
    """Takes each row from stage to stage until one is confident.

    Returns:
      By slot the next token and the stage that gave it, of rows that do not
      wait.

    Raises:
      UserError: if the first stage is gone, or has no place for any row.
    """
    going = [slot for slot, row in self._rows.items() if not row.waits]
    for place in range(self._up):
      going += self._called(place)
      while going and place < self._up:
        try:
          going = self._pass(place, sorted(going))
          break
        except LostError as error:
          slots = error.slots
          for slot in slots:  # The next round begins with all its tokens.
            self._seen[:, slot], self._rows[slot].answer = 0, None
        except BusyError as error:
          slots = error.slots
          self._wait(place, error)
        except DownError as error:
          if not place:
            raise errors.UserError(str(error)) from None
          self._say(f'{error}; going on with the exits before it')
          self._up, slots = place, going
        going = [slot for slot in going if slot not in slots]
    return self._answers()

  def _called(self, place: int) -> list[int]:
    """Returns the slots of rows that ask a busy stage again now."""
    now, found = time.monotonic(), []
    for slot, row in self._rows.items():
      if row.waits and row.barred == place and row.again <= now:
        row.waits = False
        found.append(slot)
    return found

  def _wait(self, place: int, error: BusyError) -> None:
    """Makes rows wait for a busy stage while their patience lasts."""
    now = time.monotonic()
    if not place and now - self._moved > error.patience:
      raise errors.UserError(f'{error}, for {error.patience:g} s')
    for slot in error.slots:
      row = self._rows[slot]
      if row.barred != place:
        row.barred, row.until = place, now + error.patience
      row.waits, row.again = True, now + _PAUSE
      if place and now >= row.until:
        row.waits, row.again = False, now + error.patience
        if place not in self._told:
          self._told.add(place)
          self._say(f'{error}; the exit before it answers them')

  def _pass(self, place: int, going: list[int]) -> list[int]:
    """Runs a stage on rows; returns the slots of those that go on."""
    now = time.monotonic()
    work, deeper = [], []
    for slot in going:
      row, start = self._rows[slot], int(self._seen[place, slot])
      length = len(row.text.tokens) - start
      work.append(engine_lib.Work(slot, start, length, row.number))
      barred = row.barred == place + 1 and now < row.again
      deeper.append(place + 1 < self._up and not barred)
    inputs: Any = [self._rows[w.slot].text.tokens[w.start :] for w in work]
    if place:
      inputs = self._stages[place - 1].states
    wanted = [
      int(self._seen[place + 1, w.slot]) if more else w.end
      for w, more in zip(work, deeper, strict=True)
    ]
    stays = [w.length - 1 for w in work] if self._propagate and place else []
    found = self._stages[place].run(work, inputs, self._policy, wanted, stays)
    last, on = place + 1 == len(self._stages), []
    for w, token, sure, more in zip(work, *found, deeper, strict=True):
      row = self._rows[w.slot]
      self._seen[place, w.slot] = w.end
      answers = last or bool(sure >= self._policy.threshold)
      row.answer = int(token), place, answers
      if row.barred == place:
        row.barred = -1
      if more and not answers:
        on.append(w.slot)
    return on

  def _answers(self) -> dict[int, list[tuple[int, int]]]:
    """Returns the answers of rows that do not wait; pauses if all wait."""
    found = {}
    for slot, row in self._rows.items():
      if row.waits and row.barred >= self._up:
        row.waits = False
      if row.answer and not row.waits:
        token, place, sure = row.answer
        found[slot], row.answer = [(token, place)], None
        row.text.degraded += not sure
    if found:
      self._moved = time.monotonic()
    elif any(row.waits for row in self._rows.values()):
      time.sleep(_PAUSE)
    return found
