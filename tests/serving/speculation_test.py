import jax
import numpy as np
import pytest

from familial.core import errors
from familial.serving import decoding
from familial.serving import sampling
from familial.serving import speculation
from tests.serving.families import CONTEXT
from tests.serving.families import VOCAB
from tests.serving.families import uncached

GREEDY = sampling.Sampling()
LIMITS = decoding.Limits(CONTEXT, 14, stops=(7,))


def greedy(family, prompt, limits=LIMITS):
  """Returns the last exit's text, by whole forward passes."""
  return uncached(family, prompt, sampling.Policy(), [3], limits)[0]


@pytest.mark.parametrize(
  ('kind', 'drafts'),
  [
    ('branch', 3),
    pytest.param('head', 1, marks=pytest.mark.slow),
  ],
)
def test_greedy_text_is_the_deep_exits(family, prompts, drafts, kind):
  made = family(exit_kind=kind)
  draft, deep = made.engines(3, 2, 3)  # Fewer slots than prompts.
  found, drafting = speculation.speculate(
    draft, deep, prompts, LIMITS, GREEDY, drafts
  )
  assert [c.tokens for c in found] == [greedy(made, p) for p in prompts]
  assert 0 < drafting.accepted < drafting.drafted
  assert drafting.rounds <= drafting.drafted <= drafts * drafting.rounds
  # In each round the deep exit gives one token, unless the text ends before.
  gave = sum(c.exits.count(1) for c in found)
  assert drafting.rounds - len(prompts) <= gave <= drafting.rounds


@pytest.mark.slow
def test_drafts_of_the_deep_exit_itself_are_all_accepted(family, prompts):
  made = family(exits=(1, 3))
  # Layers that add nothing: both exits are the same.
  made.params = {
    **made.params,
    'exit_1': made.params['exit_2'],
    'segment_1': jax.tree.map(lambda leaf: 0 * leaf, made.params['segment_1']),
  }
  draft, deep = made.engines(5, 1, 2)
  for how in (GREEDY, sampling.Sampling(temperature=1.0)):
    _, drafting = speculation.speculate(draft, deep, prompts, LIMITS, how)
    assert drafting.accepted == drafting.drafted
    assert drafting.drafted < 3 * drafting.rounds  # Texts end among drafts.


@pytest.mark.parametrize(
  'how',
  [
    sampling.Sampling(temperature=1.0),
    pytest.param(
      sampling.Sampling(temperature=0.7, top_k=5), marks=pytest.mark.slow
    ),
  ],
)
def test_drawn_text_has_the_deep_exits_distribution(family, how):
  """Pairs of tokens of many texts, against the exact probabilities."""
  made = family()
  prompt, n = [1, 2, 3], 3000
  draft, deep = made.engines(500, 1, 3)
  found, drafting = speculation.speculate(
    draft, deep, [prompt] * n, decoding.Limits(CONTEXT, 2), how
  )
  counts = np.zeros((VOCAB, VOCAB))
  for completion in found:
    counts[tuple(completion.generated)] += 1

  def exact(tokens, exit_=2):
    return np.asarray(
      sampling.distribution(
        made.logits(tokens)[exit_, -1], sampling.numbers(how)
      )
    )

  first = exact(prompt)
  second = np.stack([exact([*prompt, token]) for token in range(VOCAB)])
  expected = n * first[:, None] * second
  # Rare cells are pooled, as the test of a fit asks for.
  rare = expected < 5
  seen = np.append(counts[~rare], counts[rare].sum())
  due = np.append(expected[~rare], expected[rare].sum())
  chi = ((seen - due) ** 2 / np.maximum(due, 1e-9)).sum()
  degrees = len(due) - 1
  assert chi < degrees + 4 * np.sqrt(2 * degrees)
  assert 0.02 < drafting.acceptance < 0.98
  assert np.abs(exact(prompt, 0) - first).sum() > 0.1  # Drafts are not.


def test_drafts_end_at_the_context(family):
  made = family(exit_kind='branch')
  prompt, limits = list(range(5)) * 9, decoding.Limits(CONTEXT, 99)
  draft, deep = made.engines(3, 2, 3)
  [found], _ = speculation.speculate(draft, deep, [prompt], limits, GREEDY)
  assert found.tokens == greedy(made, prompt, limits)
  assert len(found.tokens) == CONTEXT


def test_the_number_of_drafts_is_checked(family):
  draft, deep = family().engines(1, 1, 3)
  with pytest.raises(errors.UserError, match='drafts: 0 is not allowed'):
    speculation.speculate(draft, deep, [[1]], LIMITS, GREEDY, 0)
