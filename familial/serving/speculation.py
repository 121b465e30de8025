"""Text of a deep exit, from drafts of a shallow one.

The drafts are the family's own: the deep tier begins with the states that the
shallow one left, so a draft costs nothing twice.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from familial.core import errors
from familial.serving import decoding
from familial.serving import engine as tier_lib
from familial.serving import sampling as sampling_lib

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Drafting:
  """How drafts fared.

  Attributes:
    rounds: passes of the deep tier over a row.
    drafted: tokens drafted, but for those behind the end of a row.
    accepted: of them, each of which was said.
  """

  rounds: int
  drafted: int
  accepted: int


def speculate(
  draft: tier_lib.Tier,
  deep: tier_lib.Tier,
  prompts: Sequence[Sequence[int]],
  *,
  context: int,
  max_tokens: int,
  stop: int,
  sampling: sampling_lib.Sampling,
  drafts: int = 3,
) -> tuple[list[decoding.Completion], Drafting]:
  """Completes prompts by the deep tier's exit, from drafts of the other's.

  The draft tier takes some tokens ahead; the deep tier, which begins with the
  states that the drafts left, reads all of them in one pass; the longest prefix
  that it would have given too is kept, and one token more. Greedy tokens are
  those of the deep exit alone; drawn ones have its distribution.

  Args:
    draft: the segments up to an exit, all slots a pass.
    deep: the segments from there to the last exit, all slots a pass.
    prompts: tokens of each.
    context: positions a row may have.
    max_tokens: to generate for each prompt at most.
    stop: the token that ends a text.
    sampling: how tokens are drawn.
    drafts: tokens drafted a round.

  Raises:
    UserError: for a prompt that does not fit, or a number of drafts that a pass
      has no room for.

  Source: Leviathan et al., arXiv 2211.17192, algorithm 1; its draft model is
  here a part of the model.
  """
  decoding.check(prompts, context)
  most = draft.slack - 1
  if not 1 <= drafts <= most:
    raise errors.UserError(
      f'drafts: {drafts} is not allowed; it must be from 1 to {most}, for a '
      f'context of {context}'
    )
  policy = sampling_lib.Policy(sampling)
  found = [decoding.Completion(list(prompt), len(prompt)) for prompt in prompts]
  waiting = list(range(len(prompts)))[::-1]
  free = list(range(draft.slots))[::-1]
  rows: dict[int, decoding.Completion] = {}
  row_T = np.zeros(draft.slots, np.int32)
  all_T = np.arange(draft.slots, dtype=np.int32)
  rounds = drafted = accepted = 0
  while waiting or rows:
    fresh = []
    while waiting and free:
      slot, index = free.pop(), waiting.pop()
      rows[slot], row_T[slot] = found[index], index
      draft.forget(slot)
      deep.forget(slot)
      if len(prompts[index]) > 1:
        length = len(prompts[index]) - 1
        fresh.append(tier_lib.Work(slot, 0, length, index))
    if fresh:
      draft.run(fresh, [rows[w.slot].tokens[:-1] for w in fresh], policy)
      assert draft.states is not None
      deep.run(fresh, draft.states, policy)
    start_T = draft.seen.copy()
    token_TxP: Any = np.zeros((draft.slots, 1), np.int32)
    for slot, row in rows.items():
      token_TxP[slot] = row.tokens[-1]
    tokens, logits = [], []
    for ahead in range(drafts + 1):
      # The last one's token is not used: it brings the last draft's state.
      reading = draft.step(
        all_T,
        start_T + ahead,
        np.zeros_like(all_T),
        row_T,
        token_TxP,
        1,
        policy,
      )
      token_TxP = reading.tokens
      tokens.append(reading.tokens)
      logits.append(reading.logits)
    verdict = deep.step(
      all_T, start_T, None, row_T, draft.states, drafts + 1, policy
    )
    kept_T, new_TxP = _verdict(
      sampling_lib.numbers(sampling),
      tokens[:-1],
      logits[:-1],
      verdict.logits,
      start_T,
      row_T,
    )
    kept_T, new_TxP = np.asarray(kept_T), np.asarray(new_TxP)
    for slot, row in list(rows.items()):
      rounds += 1
      drafted += drafts
      for place, token in enumerate(new_TxP[slot, : kept_T[slot] + 1]):
        gave = int(place == kept_T[slot])
        accepted += 1 - gave
        if row.add(int(token), gave, context, max_tokens, stop):
          drafted -= max(0, drafts - place - 1)
          del rows[slot]
          free.append(slot)
          break
      draft.seen[slot] = deep.seen[slot] = len(row.tokens) - 1
  return found, Drafting(rounds, drafted, accepted)


@jax.jit
def _verdict(
  numbers: sampling_lib.Numbers | None,
  tokens: list[Array],
  drafted: list[Array],
  logits_TxPxV: Array,
  start_T: Array,
  row_T: Array,
) -> tuple[Array, Array]:
  """Returns how many drafts are kept [T], and the new tokens [T, P]: the drafts
  with, after the last one kept, the token that the deep exit puts there."""
  draft_TxK = jnp.concatenate(tokens, axis=1)
  count = draft_TxK.shape[1]
  if numbers is None:
    own_TxP = jnp.argmax(logits_TxPxV, axis=-1).astype(jnp.int32)
    passed_TxK = draft_TxK == own_TxP[:, :count]
  else:
    p_TxPxV = sampling_lib.distribution(logits_TxPxV, numbers)
    q_TxKxV = sampling_lib.distribution(
      jnp.concatenate(drafted, axis=1), numbers
    )
    p_TxK, q_TxK = (
      jnp.take_along_axis(x[:, :count], draft_TxK[..., None], axis=-1)[..., 0]
      for x in (p_TxPxV, q_TxKxV)
    )
    position_TxP = start_T[:, None] + jnp.arange(count + 1)
    accept_TxP, replace_TxP = (
      sampling_lib.uniforms(numbers.seed, row_T, position_TxP, use)
      for use in (sampling_lib.ACCEPT, sampling_lib.REPLACE)
    )
    passed_TxK = accept_TxP[:, :count] * q_TxK < p_TxK
    # After all drafts there is no q: the deep exit's own token.
    q_TxPxV = jnp.pad(q_TxKxV, ((0, 0), (0, 1), (0, 0)))
    left_TxPxV = jnp.maximum(p_TxPxV - q_TxPxV, 0.0)
    # Where they agree to rounding, a draft that was refused by rounding.
    none = jnp.sum(left_TxPxV, axis=-1, keepdims=True) <= 0
    own_TxP = sampling_lib.draw(
      jnp.where(none, p_TxPxV, left_TxPxV), replace_TxP
    )
  kept_T = jnp.sum(jnp.cumprod(passed_TxK, axis=1), axis=1)
  own_T = jnp.take_along_axis(own_TxP, kept_T[:, None], axis=1)
  new_TxP = jnp.pad(draft_TxK, ((0, 0), (0, 1)))
  at = jnp.arange(count + 1) == kept_T[:, None]
  return kept_T, jnp.where(at, own_T, new_TxP)
