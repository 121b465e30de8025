import dataclasses

import numpy as np
import pytest

from familial.core import errors
from familial.serving import decoding
from familial.serving import sampling
from tests.serving.families import CONTEXT

STOP = 7
GREEDY = sampling.Sampling()
LIMITS = {'context': CONTEXT, 'max_tokens': 14, 'stop': STOP}


def uncached(family, prompt, threshold, exits, kind='max_prob', most=14):
  """What the definition says: exits and tokens by whole forward passes."""
  tokens, gave = list(prompt), []
  while len(gave) < most and len(tokens) < CONTEXT:
    logits = family.logits(tokens)[:, -1]
    sure = [sampling.confidence(logits[e - 1], kind) for e in exits[:-1]]
    place = int(np.argmax([*(float(c) >= threshold for c in sure), True]))
    tokens.append(int(np.argmax(logits[exits[place] - 1])))
    gave.append(place)
    if tokens[-1] == STOP:
      break
  return tokens, gave


def assert_is(found, expected):
  assert [(c.tokens, c.exits) for c in found] == expected


@pytest.mark.parametrize(
  ('exit_', 'kind'),
  [
    (1, 'branch'),
    (3, 'head'),
    pytest.param(1, 'head', marks=pytest.mark.slow),
    pytest.param(3, 'branch', marks=pytest.mark.slow),
  ],
)
def test_one_exit_says_what_the_uncached_pass_does(
  family, prompts, exit_, kind
):
  made = family(exit_kind=kind)
  tiers = made.tiers(3, exit_)  # Fewer slots than prompts.
  found = decoding.generate(tiers, prompts, **LIMITS, policy=sampling.Policy())
  assert_is(found, [uncached(made, p, 2.0, [exit_]) for p in prompts])
  assert any(c.stopped for c in found) and not all(c.stopped for c in found)


@pytest.mark.parametrize(
  ('kind', 'threshold', 'rows'),
  [
    ('max_prob', 0.3, 0),
    pytest.param('gap', 0.15, 2, marks=pytest.mark.slow),
    pytest.param('entropy', 0.3, 2, marks=pytest.mark.slow),
    pytest.param('max_prob', 0.3, 2, marks=pytest.mark.slow),
    pytest.param('gap', 0.15, 0, marks=pytest.mark.slow),
    pytest.param('entropy', 0.3, 0, marks=pytest.mark.slow),
  ],
)
def test_each_token_is_of_the_first_exit_that_is_sure(
  family, prompts, kind, threshold, rows
):
  made = family(exit_kind='branch')
  tiers = made.tiers(3, 1, 2, 3, rows=rows)
  policy = sampling.Policy(confidence=kind, threshold=threshold)
  found = decoding.generate(tiers, prompts, **LIMITS, policy=policy)
  assert_is(
    found, [uncached(made, p, threshold, [1, 2, 3], kind) for p in prompts]
  )
  gave = np.concatenate([c.exits for c in found])
  assert set(gave) == {0, 1, 2}
  # The same without neighbours.
  alone = [
    decoding.generate(tiers, [p], **LIMITS, policy=policy)[0] for p in prompts
  ]
  assert alone == found


def propagated(family, prompt, threshold, most=14):
  """The definition: in each pass, a position that has left stays as it is."""
  tokens, gave = list(prompt), []
  while len(gave) < most and len(tokens) < CONTEXT:
    # Prompts go all the way; what was generated left where it was answered.
    left = [99] * (len(prompt) - 1) + gave + [99]
    logits = family.frozen(tokens, left)[:, -1]
    sure = [float(sampling.confidence(row, 'max_prob')) for row in logits]
    place = int(np.argmax([*(c >= threshold for c in sure[:-1]), True]))
    tokens.append(int(np.argmax(logits[place])))
    gave.append(place)
    if tokens[-1] == STOP:
      break
  return tokens, gave


@pytest.mark.parametrize(
  'kind', [pytest.param('head', marks=pytest.mark.slow), 'branch']
)
def test_a_state_that_is_propagated_skips_the_layers(family, prompts, kind):
  made = family(exit_kind=kind)
  policy = sampling.Policy(threshold=0.3, fill='propagate')
  tiers = made.tiers(3, 1, 2, 3)
  found = decoding.generate(tiers, prompts, **LIMITS, policy=policy)
  assert_is(found, [propagated(made, p, 0.3) for p in prompts])
  assert any(2 in c.exits[c.exits.index(0) :] for c in found if 0 in c.exits)


def test_draws_depend_on_row_and_position_alone(family, prompts):
  made = family()
  policy = sampling.Policy(sampling.Sampling(temperature=1.0, seed=5))
  few, many = made.tiers(2, 3), made.tiers(5, 3)
  found = decoding.generate(few, prompts, **LIMITS, policy=policy)
  assert found == decoding.generate(many, prompts, **LIMITS, policy=policy)
  other = dataclasses.replace(policy, sampling=sampling.Sampling(1.0, seed=6))
  assert found != decoding.generate(many, prompts, **LIMITS, policy=other)


def test_a_row_ends_at_the_context(family):
  made = family()
  prompt = list(range(5)) * 9
  [row] = decoding.generate(
    made.tiers(3, 3), [prompt], context=CONTEXT, max_tokens=99, stop=-1,
    policy=sampling.Policy(),
  )  # fmt: skip
  assert len(row.tokens) == CONTEXT


class Flaky:
  """A stage that loses rows, or goes away, at some of its calls."""

  def __init__(self, stage, lose=(), down=None):
    self.stage, self.lose, self.down, self.calls = stage, lose, down, 0
    self.slots = stage.slots

  @property
  def states(self):
    return self.stage.states

  def run(self, work, inputs, policy, wanted, stays=()):
    self.calls += 1
    if self.down is not None and self.calls >= self.down:
      raise decoding.DownError('cloud:1: gone')
    lost = [w.slot for w in work if w.start > self.stage.seen[w.slot]]
    if self.calls in self.lose:
      for slot in {w.slot for w in work[:2]}:
        self.stage.forget(slot)
      lost = [w.slot for w in work if w.start > self.stage.seen[w.slot]]
    if lost:
      raise decoding.LostError(lost)
    return self.stage.run(work, inputs, policy, wanted)

  def forget(self, slot):
    self.stage.forget(slot)


@pytest.mark.parametrize('place', [0, 1, 2])
def test_what_a_stage_loses_is_begun_again(family, prompts, place):
  made = family(exit_kind='branch')
  tiers = made.tiers(3, 1, 2, 3)
  policy = sampling.Policy(threshold=0.3)
  expected = decoding.generate(tiers, prompts, **LIMITS, policy=policy)
  tiers[place] = Flaky(tiers[place], lose=(2, 3, 7, 9))
  found = decoding.generate(tiers, prompts, **LIMITS, policy=policy)
  assert found == expected
  assert tiers[place].calls > 9


def test_without_the_last_stage_the_one_before_it_answers(family, prompts):
  made = family(exit_kind='branch')
  tiers = made.tiers(3, 1, 2, 3)
  policy = sampling.Policy(threshold=0.3)
  said = []
  stages = [*tiers[:2], Flaky(tiers[2], down=1)]
  found = decoding.generate(
    stages, prompts, **LIMITS, policy=policy, say=said.append
  )
  assert_is(found, [uncached(made, p, 0.3, [1, 2]) for p in prompts])
  [line] = said
  assert 'cloud:1: gone' in line and 'before it' in line
  with pytest.raises(errors.UserError, match='cloud:1: gone'):
    decoding.generate(
      [Flaky(tiers[0], down=3)], prompts, **LIMITS, policy=policy
    )


def test_prompts_that_do_not_fit(family):
  tiers = family().tiers(1, 3)
  for prompt, said in (([], 'is empty'), ([1] * CONTEXT, 'up to 47')):
    with pytest.raises(errors.UserError, match=f'prompt 1 .*{said}'):
      decoding.generate(
        tiers, [[1], prompt], **LIMITS, policy=sampling.Policy()
      )
