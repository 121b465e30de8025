import dataclasses

import numpy as np
import pytest

from familial.core import errors
from familial.serving import decoding
from familial.serving import sampling
from tests.serving.families import CONTEXT
from tests.serving.families import uncached

LIMITS = decoding.Limits(CONTEXT, 14, stops=(7,))
POLICY = sampling.Policy(threshold=0.3)


def assert_uncached(found, family, prompts, policy, exits=(1, 2, 3)):
  expected = [uncached(family, p, policy, exits, LIMITS) for p in prompts]
  assert [(c.tokens, c.exits) for c in found] == expected


@pytest.mark.parametrize(
  ('exit_', 'kind'),
  [
    (1, 'branch'),
    (3, 'head'),
  ],
)
def test_a_fixed_exit_equals_the_uncached_pass(family, prompts, exit_, kind):
  made, policy = family(exit_kind=kind), sampling.Policy()
  engines = made.engines(3, exit_)  # Fewer slots than prompts.
  found = decoding.generate(engines, prompts, LIMITS, policy)
  assert_uncached(found, made, prompts, policy, [exit_])
  assert {c.finish for c in found} == {'stop', 'length'}


@pytest.mark.parametrize(
  ('kind', 'threshold', 'rows'),
  [
    ('max_prob', 0.3, 0),
    pytest.param('gap', 0.15, 2, marks=pytest.mark.slow),
    pytest.param('entropy', 0.3, 0, marks=pytest.mark.slow),
  ],
)
def test_each_token_is_of_the_first_confident_exit(
  family, prompts, kind, threshold, rows
):
  made = family(exit_kind='branch')
  engines = made.engines(3, 1, 2, 3, rows=rows)
  policy = sampling.Policy(confidence=kind, threshold=threshold)
  found = decoding.generate(engines, prompts, LIMITS, policy)
  assert_uncached(found, made, prompts, policy)
  assert set(np.concatenate([c.exits for c in found])) == {0, 1, 2}
  for prompt, beside in zip(prompts, found, strict=True):
    assert decoding.generate(engines, [prompt], LIMITS, policy) == [beside]


def test_propagated_states_skip_the_layers(family, prompts):
  made = family(exit_kind='branch')
  policy = dataclasses.replace(POLICY, fill='propagate')
  found = decoding.generate(made.engines(3, 1, 2, 3), prompts, LIMITS, policy)
  assert_uncached(found, made, prompts, policy)
  assert any(2 in c.exits[c.exits.index(0) :] for c in found if 0 in c.exits)


def test_draws_depend_on_row_and_position_alone(family, prompts):
  made = family(exit_kind='branch')
  few, many = made.engines(3, 1), made.engines(5, 1)
  one, same, other = (
    decoding.generate(
      engines,
      prompts,
      LIMITS,
      sampling.Policy(sampling.Sampling(temperature=1.0, seed=seed)),
    )
    for engines, seed in ((few, 5), (many, 5), (many, 6))
  )
  assert one == same != other


def test_a_row_ends_at_the_context(family):
  prompt, limits = list(range(5)) * 9, decoding.Limits(CONTEXT, 99)
  [row] = decoding.generate(
    family(exit_kind='branch').engines(3, 1),
    [prompt],
    limits,
    sampling.Policy(),
  )
  assert len(row.tokens) == CONTEXT


class Flaky:
  """A stage that loses rows, or goes away, at some of its calls."""

  def __init__(self, stage, lose=(), down=None):
    self.stage, self.lose, self.down, self.calls = stage, lose, down, 0
    self.slots, self.forget = stage.slots, stage.forget

  @property
  def states(self):
    return self.stage.states

  def run(self, work, inputs, policy, wanted, stays=()):
    self.calls += 1
    if self.down is not None and self.calls >= self.down:
      raise decoding.DownError('cloud:1: gone')
    if self.calls in self.lose:
      for w in work[:2]:
        self.stage.forget(w.slot)
    lost = [w.slot for w in work if w.start > self.stage.seen[w.slot]]
    if lost:
      raise decoding.LostError(lost)
    return self.stage.run(work, inputs, policy, wanted)


@pytest.mark.parametrize('place', [0, 1, 2])
def test_rows_that_a_stage_loses_begin_again(family, prompts, place):
  engines = family(exit_kind='branch').engines(3, 1, 2, 3)
  expected = decoding.generate(engines, prompts, LIMITS, POLICY)
  engines[place] = Flaky(engines[place], lose=(2, 3, 7, 9))
  assert decoding.generate(engines, prompts, LIMITS, POLICY) == expected
  assert engines[place].calls > 9


def test_without_the_last_stage_the_one_before_answers(family, prompts):
  made, said = family(exit_kind='branch'), []
  first, middle, last = made.engines(3, 1, 2, 3)
  stages = [first, middle, Flaky(last, down=1)]
  found = decoding.generate(stages, prompts, LIMITS, POLICY, said.append)
  assert_uncached(found, made, prompts, POLICY, [1, 2])
  [line] = said
  assert 'cloud:1: gone' in line
  with pytest.raises(errors.UserError, match='cloud:1: gone'):
    decoding.generate([Flaky(first, down=3)], prompts, LIMITS, POLICY)


@pytest.mark.parametrize(
  ('prompt', 'said'), [([], 'is empty'), ([1] * CONTEXT, 'up to 47')]
)
def test_prompts_that_do_not_fit(family, prompt, said):
  with pytest.raises(errors.UserError, match=f'prompt 1 .*{said}'):
    decoding.generate(family().engines(1, 3), [[1], prompt], LIMITS, POLICY)
