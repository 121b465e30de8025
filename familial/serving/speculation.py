"""Speculative decoding: a deep exit verifies the drafts of a shallow one.

Both are exits of one model: the deep engine begins with the states that the
shallow one computed, so drafting computes no layer twice.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from familial.core import errors
from familial.serving import decoding
from familial.serving import engine as engine_lib
from familial.serving import forward
from familial.serving import sampling as sampling_lib

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Drafting:
  """Counts of speculative decoding.

  Attributes:
    rounds: passes of the deep engine over a row.
    drafted: drafted tokens, except those beyond the end of a text.
    accepted: accepted tokens among them.
  """

  rounds: int
  drafted: int
  accepted: int

  @property
  def acceptance(self) -> float:
    """The share of the drafted tokens that is accepted."""
    return self.accepted / self.drafted


def speculate(
  draft: engine_lib.Engine,
  deep: engine_lib.Engine,
  prompts: Sequence[Sequence[int]],
  limits: decoding.Limits,
  sampling: sampling_lib.Sampling,
  drafts: int = 3,
  follow: decoding.Follow = decoding.ignore,
) -> tuple[list[decoding.Completion], Drafting]:
  """Completes prompts by the deep exit, from drafts of the shallow one.

  In each round the draft engine generates some tokens, the deep engine verifies
  them in one pass, and the longest accepted prefix is kept with one more token.
  Greedy tokens equal those of the deep exit alone; drawn ones have its
  distribution.

  Args:
    draft: the segments up to an exit, with all slots in a pass.
    deep: the segments from there to the last exit, with all slots in a pass.
    prompts: tokens of each prompt.
    limits: when a text ends.
    sampling: how tokens are drawn.
    drafts: tokens drafted in a round.
    follow: receives each text after each step that added to it.

  Raises:
    UserError: for a prompt that does not fit, or more drafts than a pass has
      positions for.

  Source: Leviathan et al., arXiv 2211.17192, algorithm 1; the draft model is a
  part of the model.
  """
  most = draft.slack - 1
  errors.require(
    1 <= drafts <= most,
    'drafts',
    drafts,
    f'from 1 to {most}, for a context of {limits.context}',
  )
  decoder = _Speculation(draft, deep, sampling, drafts)
  texts = decoding.complete(decoder, prompts, limits, follow)
  accepted = sum(text.exits.count(0) for text in texts)
  return texts, Drafting(decoder.rounds, decoder.drafted, accepted)


class _Speculation:
  """A decoding.Decoder; tokens are of stage 0 if accepted, 1 if the deep exit's.

  Attributes:
    slots: number of texts it can hold.
    rounds, drafted: see Drafting.
  """

  def __init__(
    self,
    draft: engine_lib.Engine,
    deep: engine_lib.Engine,
    sampling: sampling_lib.Sampling,
    drafts: int,
  ):
    self.slots = draft.slots
    self.rounds = self.drafted = 0
    self._draft, self._deep, self._drafts = draft, deep, drafts
    self._policy = sampling_lib.Policy(sampling)
    self._rows: dict[int, list[int]] = {}
    self._number_T = np.zeros(self.slots, np.int32)

  def open(self, texts: Mapping[int, tuple[int, decoding.Completion]]) -> None:
    """Begins texts: both engines compute the prompts but for their last token."""
    self._keep()
    work = []
    for slot, (number, text) in texts.items():
      self._rows[slot], self._number_T[slot] = text.tokens, number
      if len(text.tokens) > 1:
        work.append(engine_lib.Work(slot, 0, len(text.tokens) - 1, number))
    if work:
      inputs = [self._rows[w.slot][:-1] for w in work]
      self._draft.run(work, inputs, self._policy)
      assert self._draft.states is not None
      self._deep.run(work, self._draft.states, self._policy)

  def close(self, slot: int) -> None:
    """Ends a text; drafts beyond its end do not count."""
    start = int(self._draft.seen[slot])
    added = len(self._rows.pop(slot)) - 1 - start
    self.drafted -= max(0, self._drafts - added)
    self._draft.forget(slot)
    self._deep.forget(slot)

  def step(self) -> dict[int, list[tuple[int, int]]]:
    """Drafts and verifies one round for all rows."""
    self._keep()
    draft, policy, count = self._draft, self._policy, self._drafts
    all_T, start_T = np.arange(self.slots, dtype=np.int32), draft.seen.copy()
    rows = forward.Rows(all_T, start_T, np.zeros_like(all_T), self._number_T)
    token_TxP: Any = np.zeros((self.slots, 1), np.int32)
    for slot, tokens in self._rows.items():
      token_TxP[slot] = tokens[-1]
    drafted = []
    # The last pass's token is not used: it computes the last draft's state.
    for ahead in range(count + 1):
      now = rows._replace(start_T=start_T + ahead)
      drafted.append(draft.step(now, token_TxP, 1, policy))
      token_TxP = drafted[-1].tokens
    verdict = self._deep.step(
      rows._replace(at_T=None), draft.states, count + 1, policy
    )
    kept_T, new_TxP = jax.device_get(
      _verdict(
        sampling_lib.numbers(policy.sampling),
        drafted[:-1],
        verdict.logits,
        start_T,
        self._number_T,
      )
    )
    self.rounds += len(self._rows)
    self.drafted += count * len(self._rows)
    return {
      slot: [
        (int(token), int(place == kept_T[slot]))
        for place, token in enumerate(new_TxP[slot, : kept_T[slot] + 1])
      ]
      for slot in self._rows
    }

  def _keep(self) -> None:
    """Makes both engines hold all tokens of each text but the last."""
    for slot, tokens in self._rows.items():
      self._draft.seen[slot] = self._deep.seen[slot] = len(tokens) - 1


@jax.jit
def _verdict(
  numbers: sampling_lib.Numbers | None,
  drafted: list[forward.Reading],
  logits_TxPxV: Array,
  start_T: Array,
  number_T: Array,
) -> tuple[Array, Array]:
  """Returns the number of accepted drafts [T], and the new tokens [T, P].

  These are the drafts, with the deep exit's token after the last accepted one.
  """
  draft_TxK = jnp.concatenate([each.tokens for each in drafted], axis=1)
  count = draft_TxK.shape[1]
  if numbers is None:
    own_TxP = jnp.argmax(logits_TxPxV, axis=-1).astype(jnp.int32)
    passed_TxK = draft_TxK == own_TxP[:, :count]
  else:
    p_TxPxV = sampling_lib.distribution(logits_TxPxV, numbers)
    q_TxKxV = sampling_lib.distribution(
      jnp.concatenate([each.logits for each in drafted], axis=1), numbers
    )
    p_TxK, q_TxK = (
      jnp.take_along_axis(x[:, :count], draft_TxK[..., None], axis=-1)[..., 0]
      for x in (p_TxPxV, q_TxKxV)
    )
    position_TxP = start_T[:, None] + jnp.arange(count + 1)
    accept_TxP, replace_TxP = (
      sampling_lib.uniforms(numbers.seed, number_T, position_TxP, use)
      for use in (sampling_lib.ACCEPT, sampling_lib.REPLACE)
    )
    passed_TxK = accept_TxP[:, :count] * q_TxK < p_TxK
    # After all drafts there is no q: the token is drawn from p.
    q_TxPxV = jnp.pad(q_TxKxV, ((0, 0), (0, 1), (0, 0)))
    left_TxPxV = jnp.maximum(p_TxPxV - q_TxPxV, 0.0)
    # Where p equals q, a draft can be refused by rounding only.
    none = jnp.sum(left_TxPxV, axis=-1, keepdims=True) <= 0
    own_TxP = sampling_lib.draw(
      jnp.where(none, p_TxPxV, left_TxPxV), replace_TxP
    )
  kept_T = jnp.sum(jnp.cumprod(passed_TxK, axis=1), axis=1)
  own_T = jnp.take_along_axis(own_TxP, kept_T[:, None], axis=1)
  new_TxP = jnp.pad(draft_TxK, ((0, 0), (0, 1)))
  at = jnp.arange(count + 1) == kept_T[:, None]
  return kept_T, jnp.where(at, own_T, new_TxP)
