import jax
import numpy as np
import pytest

from familial.core import errors
from familial.serving import sampling
from familial.serving import speculation
from tests.serving.families import CONTEXT
from tests.serving.families import VOCAB

STOP = 7
GREEDY = sampling.Sampling()
LIMITS = {'context': CONTEXT, 'max_tokens': 14, 'stop': STOP}


def greedy(family, prompt, most=14, stop=STOP):
  """The last exit's text, by whole forward passes."""
  tokens = list(prompt)
  while len(tokens) < min(CONTEXT, len(prompt) + most):
    tokens.append(int(np.argmax(family.logits(tokens)[-1, -1])))
    if tokens[-1] == stop:
      break
  return tokens


@pytest.mark.parametrize(
  ('kind', 'drafts'),
  [
    ('branch', 3),
    pytest.param('head', 3, marks=pytest.mark.slow),
    pytest.param('head', 1, marks=pytest.mark.slow),
    pytest.param('branch', 1, marks=pytest.mark.slow),
  ],
)
def test_greedy_drafts_change_nothing(family, prompts, drafts, kind):
  made = family(exit_kind=kind)
  draft, deep = made.tiers(3, 2, 3)
  found, drafting = speculation.speculate(
    draft, deep, prompts, **LIMITS, sampling=GREEDY, drafts=drafts
  )
  assert [c.tokens for c in found] == [greedy(made, p) for p in prompts]
  assert 0 < drafting.accepted < drafting.drafted
  assert drafting.rounds <= drafting.drafted <= drafts * drafting.rounds
  # Whom a token is of: those that a draft gave were accepted.
  assert drafting.accepted == sum(c.exits.count(0) for c in found)


@pytest.mark.slow
def test_drafts_of_the_deep_exit_itself_are_all_accepted(family, prompts):
  made = family(exits=(1, 3))
  # Layers that add nothing: both exits are the same.
  made.params = {
    **made.params,
    'exit_1': made.params['exit_2'],
    'segment_1': jax.tree.map(lambda leaf: 0 * leaf, made.params['segment_1']),
  }
  draft, deep = made.tiers(5, 1, 2)
  for how in (GREEDY, sampling.Sampling(temperature=1.0)):
    found, drafting = speculation.speculate(
      draft, deep, prompts, **LIMITS, sampling=how, drafts=3
    )
    assert drafting.accepted == drafting.drafted
    assert drafting.drafted < 3 * drafting.rounds  # Rows end among drafts.
    assert drafting.accepted == sum(c.exits.count(0) for c in found)


@pytest.mark.parametrize(
  'how',
  [
    sampling.Sampling(temperature=1.0),
    pytest.param(
      sampling.Sampling(temperature=0.7, top_k=5), marks=pytest.mark.slow
    ),
  ],
)
def test_drawn_drafts_keep_the_deep_exits_distribution(family, how):
  """Pairs of tokens over many draws, against the exact probabilities."""
  made = family()
  prompt, n = [1, 2, 3], 6000
  draft, deep = made.tiers(500, 1, 3)
  found, drafting = speculation.speculate(
    draft, deep, [prompt] * n, context=CONTEXT, max_tokens=2, stop=-1,
    sampling=how, drafts=3,
  )  # fmt: skip
  counts = np.zeros((VOCAB, VOCAB))
  for completion in found:
    counts[tuple(completion.generated)] += 1
  first = np.asarray(
    sampling.distribution(made.logits(prompt)[2, -1], sampling.numbers(how))
  )
  second = np.stack(
    [
      sampling.distribution(
        made.logits([*prompt, token])[2, -1], sampling.numbers(how)
      )
      for token in range(VOCAB)
    ]
  )
  expected = n * first[:, None] * second
  # Cells that are rare go together, as the test of a fit asks for.
  rare = expected < 5
  seen = np.append(counts[~rare], counts[rare].sum())
  due = np.append(expected[~rare], expected[rare].sum())
  chi = ((seen - due) ** 2 / np.maximum(due, 1e-9)).sum()
  degrees = len(due) - 1
  assert chi < degrees + 4 * np.sqrt(2 * degrees)
  assert 0.02 < drafting.accepted / drafting.drafted < 0.98
  # The draft exit alone is far from that.
  shallow = np.asarray(
    sampling.distribution(made.logits(prompt)[0, -1], sampling.numbers(how))
  )
  assert np.abs(shallow - first).sum() > 0.1


def test_drafts_end_at_the_context(family):
  made = family(exit_kind='branch')
  prompt = list(range(5)) * 9
  draft, deep = made.tiers(3, 2, 3)
  [found], _ = speculation.speculate(
    draft, deep, [prompt], context=CONTEXT, max_tokens=99, stop=-1,
    sampling=GREEDY, drafts=3,
  )  # fmt: skip
  assert found.tokens == greedy(made, prompt, most=99, stop=-1)
  assert len(found.tokens) == CONTEXT


def test_what_cannot_be_drafted_is_refused(family):
  draft, deep = family().tiers(1, 1, 3)
  with pytest.raises(errors.UserError, match='drafts: 0 is not allowed'):
    speculation.speculate(
      draft, deep, [[1]], **LIMITS, sampling=GREEDY, drafts=0
    )
