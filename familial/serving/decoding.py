"""Text from a family: by one exit, or by the first that is sure.

The definition that decoding keeps to is the uncached forward pass: the token
at a position is what the exit that answers there says of all tokens before it.
A layer that a position skipped is not guessed at: the position waits, and is
taken in when a later position of its row goes that deep (deferred computation),
together with all others that wait. That is exact, and skips little in the end,
for sooner or later most rows go deep. State propagation, to be asked for,
computes no more than keys and values of such layers, from the state that the
position left with: it skips the layers for good, and is another function, whose
uncached definition is a pass in which a position that has left stays as it is.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import time
from typing import Any
from typing import Protocol

import numpy as np

from familial.core import errors
from familial.serving import engine as tier_lib
from familial.serving import sampling as sampling_lib

_PAUSE = 0.1  # seconds until a stage that was busy is asked again


@dataclasses.dataclass
class Completion:
  """What was generated for one prompt.

  Attributes:
    tokens: of the prompt and all that followed.
    prompt: how many were the prompt's.
    exits: the place among the stages, from 0, that gave each further token.
    degraded: how many of them were given by a stage that was not sure, for the
      next one was gone or had no place.
    stopped: whether it ended with the token that ends a text.
  """

  tokens: list[int]
  prompt: int
  exits: list[int] = dataclasses.field(default_factory=list)
  degraded: int = 0
  stopped: bool = False

  @property
  def generated(self) -> list[int]:
    """The tokens that followed the prompt."""
    return self.tokens[self.prompt :]

  def add(
    self, token: int, place: int, context: int, max_tokens: int, stop: int
  ) -> bool:
    """Adds a token; returns whether the text ends with it.

    Args:
      token: that follows.
      place: of the stage that gave it.
      context: positions a row may have.
      max_tokens: to generate at most.
      stop: the token that ends a text.
    """
    self.tokens.append(token)
    self.exits.append(place)
    self.stopped = token == stop
    full = len(self.tokens) >= context or len(self.generated) >= max_tokens
    return self.stopped or full


class Stage(Protocol):
  """What holds a segment: a Tier here, or a server elsewhere.

  Attributes:
    slots: rows it can hold.
    states: what the next stage takes as inputs.
  """

  slots: int
  states: Any

  def run(
    self,
    work: Sequence[tier_lib.Work],
    inputs: Any,
    policy: sampling_lib.Policy,
    wanted: Sequence[int],
    stays: Sequence[int] = (),
  ) -> tuple[np.ndarray, np.ndarray]:
    """Takes positions in; see Tier.run.

    Args:
      work: rows, each once.
      inputs: tokens of each row, or the states of the stage below.
      policy: how tokens are drawn; rows less sure than its threshold will go
        on to the next stage.
      wanted: of each row, the first position whose state that needs.
      stays: how many of each row's first positions stay as they left.
    """

  def forget(self, slot: int) -> None:
    """Empties a slot."""


class LostError(Exception):
  """A stage no longer holds what it should of some rows."""

  def __init__(self, slots: Sequence[int]):
    super().__init__(f'slots {list(slots)} are lost')
    self.slots = slots


class BusyError(Exception):
  """A stage has no place for some rows, and took no row of the call in.

  Attributes:
    slots: of the rows.
    patience: seconds that they can wait for one.
  """

  def __init__(self, name: str, slots: Sequence[int], patience: float):
    super().__init__(f'{name}: has no place for {len(slots)} rows')
    self.slots, self.patience = slots, patience


class DownError(Exception):
  """A stage is done with: it is gone, refuses, or makes no sense.

  Whatever the reason, which the message says, the chain ends before it.
  """


@dataclasses.dataclass
class _Row:
  """A text under way.

  Attributes:
    number: of its prompt, for its draws.
    text: what there is of it.
    answer: the next token so far, the place of the stage that gave it, and
      whether that was sure; None before the first stage.
    barred: the place of the stage that had no place for it; -1 for none.
    waits: whether it waits there.
    until: when it has waited for long enough: the stage before it answers.
    again: when it asks next.
  """

  number: int
  text: Completion
  answer: tuple[int, int, bool] | None = None
  barred: int = -1
  waits: bool = False
  until: float = 0.0
  again: float = 0.0


class _Rows:
  """Texts under way, in the slots of stages.

  Attributes:
    rows: by slot.
  """

  def __init__(
    self,
    stages: Sequence[Stage],
    policy: sampling_lib.Policy,
    say: Callable[[str], None],
  ):
    self.rows: dict[int, _Row] = {}
    self._stages, self._policy, self._say = stages, policy, say
    self._up = len(stages)
    slots = min(stage.slots for stage in stages)
    self._seen = np.zeros((len(stages), slots), np.int64)
    self._propagate = policy.fill == 'propagate'
    self._moved = time.monotonic()
    self._told: set[int] = set()

  def open(self, slot: int, number: int, text: Completion) -> None:
    """Begins a text."""
    self.rows[slot], self._seen[:, slot] = _Row(number, text), 0
    known = text.tokens[:-1]
    if self._propagate and known:
      # A prompt goes all the way: only what is generated leaves early.
      whole = tier_lib.Work(slot, 0, len(known), number)
      for place, stage in enumerate(self._stages):
        before = self._stages[place - 1].states if place else [known]
        stage.run([whole], before, self._policy, [0])
      self._seen[:, slot] = len(known)

  def end(self, slot: int) -> None:
    """Ends a text: its slots are empty, and others may have them."""
    del self.rows[slot]
    for stage in self._stages[: self._up]:
      stage.forget(slot)

  def step(self) -> dict[int, tuple[int, int]]:
    """Takes every row on, from stage to stage until one is sure of it.

    Returns:
      By slot, the token and the place of the stage that gave it, of rows that
      do not wait for a stage to have place.

    Raises:
      UserError: if the first stage is gone, or has no place for any row.
    """
    going = [slot for slot, row in self.rows.items() if not row.waits]
    for place in range(self._up):
      going += self._called(place)
      while going and place < self._up:
        try:
          going = self._pass(place, sorted(going))
          break
        except LostError as error:
          slots = error.slots
          for slot in slots:  # From its tokens on again, in the next round.
            self._seen[:, slot], self.rows[slot].answer = 0, None
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
    """Returns the slots of rows whose turn it is to ask a stage again."""
    now, found = time.monotonic(), []
    for slot, row in self.rows.items():
      if row.waits and row.barred == place and row.again <= now:
        row.waits = False
        found.append(slot)
    return found

  def _wait(self, place: int, error: BusyError) -> None:
    """Has rows wait that a stage has no place for, or not any longer."""
    now = time.monotonic()
    if not place and now - self._moved > error.patience:
      raise errors.UserError(f'{error}, for {error.patience:g} s')
    for slot in error.slots:
      row = self.rows[slot]
      if row.barred != place:
        row.barred, row.until = place, now + error.patience
      row.waits, row.again = True, now + _PAUSE
      if place and now >= row.until:
        row.waits, row.again = False, now + error.patience
        if place not in self._told:
          self._told.add(place)
          self._say(f'{error}; the exit before it answers them')

  def _pass(self, place: int, going: list[int]) -> list[int]:
    """Takes rows through a stage; returns the slots of those that go on."""
    stages, now = self._stages, time.monotonic()
    work, deeper = [], []
    for slot in going:
      row, start = self.rows[slot], int(self._seen[place, slot])
      length = len(row.text.tokens) - start
      work.append(tier_lib.Work(slot, start, length, row.number))
      barred = row.barred == place + 1 and now < row.again
      deeper.append(place + 1 < self._up and not barred)
    inputs: Any = [self.rows[w.slot].text.tokens[w.start :] for w in work]
    if place:
      inputs = stages[place - 1].states
    wanted = [
      int(self._seen[place + 1, w.slot]) if more else w.start + w.length
      for w, more in zip(work, deeper, strict=True)
    ]
    stays = [w.length - 1 for w in work] if self._propagate and place else []
    tokens, sure = stages[place].run(work, inputs, self._policy, wanted, stays)
    on = []
    for w, token, c, more in zip(work, tokens, sure, deeper, strict=True):
      row = self.rows[w.slot]
      self._seen[place, w.slot] = w.start + w.length
      last = place + 1 == len(stages)
      row.answer = int(token), place, last or bool(c >= self._policy.threshold)
      if row.barred == place:
        row.barred = -1
      if more and not row.answer[2]:
        on.append(w.slot)
    return on

  def _answers(self) -> dict[int, tuple[int, int]]:
    found = {}
    for slot, row in self.rows.items():
      if row.waits and row.barred >= self._up:
        row.waits = False
      if row.answer and not row.waits:
        token, place, sure = row.answer
        found[slot], row.answer = (token, place), None
        row.text.degraded += not sure
    if found:
      self._moved = time.monotonic()
    elif any(row.waits for row in self.rows.values()):
      time.sleep(_PAUSE)
    return found


def check(prompts: Sequence[Sequence[int]], context: int) -> None:
  """Refuses prompts that leave no room for a token.

  Args:
    prompts: tokens of each.
    context: positions a row may have.
  """
  for index, prompt in enumerate(prompts):
    if not prompt:
      raise errors.UserError(f'prompt {index} is empty')
    if len(prompt) >= context:
      raise errors.UserError(
        f'prompt {index} has {len(prompt)} tokens; the context of {context} '
        f'leaves room for prompts up to {context - 1}'
      )


def generate(
  stages: Sequence[Stage],
  prompts: Sequence[Sequence[int]],
  *,
  context: int,
  max_tokens: int,
  stop: int,
  policy: sampling_lib.Policy,
  say: Callable[[str], None] = lambda line: None,
) -> list[Completion]:
  """Completes prompts: each token by the first stage that is sure of it.

  Rows leave at different stages, and begin and end at different times; a slot
  that is free takes the next prompt. A row that a stage has no place for waits
  for one while others go on; in the end the stage before it answers, as it does
  for a stage that is gone.

  Args:
    stages: segments of a family, first to last; one alone is that exit.
    prompts: tokens of each.
    context: positions a row may have.
    max_tokens: to generate for each prompt at most.
    stop: the token that ends a text.
    policy: how tokens are drawn, and from which confidence on a stage's token
      is taken; the last stage is always believed.
    say: is told in a line when a stage can no longer be reached, or has had no
      place for too long.

  Raises:
    UserError: for a prompt that does not fit, or if the first stage is gone or
      has no place for any row.
  """
  check(prompts, context)
  found = [Completion(list(prompt), len(prompt)) for prompt in prompts]
  waiting = list(range(len(prompts)))[::-1]
  free = list(range(min(stage.slots for stage in stages)))[::-1]
  under_way = _Rows(stages, policy, say)
  rows = under_way.rows
  try:
    while waiting or rows:
      while waiting and free:
        slot, index = free.pop(), waiting.pop()
        under_way.open(slot, index, found[index])
      for slot, (token, place) in under_way.step().items():
        row = rows[slot].text
        if row.add(token, place, context, max_tokens, stop):
          under_way.end(slot)
          free.append(slot)
  finally:
    for slot in list(rows):
      under_way.end(slot)
  return found
