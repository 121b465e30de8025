import hypothesis
from hypothesis import strategies
import jax
import numpy as np
import pytest

from familial.serving import engine as engine_lib
from familial.serving import sampling
from tests.serving import families
from tests.serving.families import CONTEXT
from tests.serving.families import VOCAB
from tests.serving.families import Family

GREEDY = sampling.Policy()
# Each example compiles its programs: to shrink one takes longer than to read it.
PHASES = (hypothesis.Phase.generate,)
# All slots in a pass, or half of them: those of the tests of decoding and relays.
SLOTS = pytest.mark.parametrize(('slots', 'rows'), [(3, 0), (6, 3)])


@pytest.fixture
def made(family):
  """The family of most tests, whose engines have the same programs."""
  return family(exit_kind='branch')


def pieces(rng, length):
  """Cuts 0 .. length into pieces."""
  cuts = np.sort(rng.choice(length - 1, rng.integers(0, 6), replace=False) + 1)
  return np.array([0, *cuts, length])


def check_equal(family, rows, seed):
  """Feeds rows in pieces of their own; every reading is the forward pass's."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(8, CONTEXT + 1, 3)
  texts = [rng.integers(0, VOCAB, n) for n in lengths]
  expected = [family.logits(text) for text in texts]
  engines = family.engines(3, rows=rows)
  ends = [pieces(rng, n)[1:].tolist() for n in lengths]
  seen = np.zeros((len(engines), 3), int)
  while any(ends):
    now = [slot for slot in range(3) if ends[slot] and rng.random() < 0.7]
    upto = {slot: ends[slot].pop(0) for slot in now}
    # Not every row goes through all engines: what is left out waits.
    for place, engine in enumerate(engines):
      work = [
        engine_lib.Work(s, seen[place, s], upto[s] - seen[place, s], s)
        for s in now
      ]
      if not work:
        break
      inputs = (
        engines[place - 1].states
        if place
        else [texts[w.slot][w.start :] for w in work]
      )
      tokens, sure = engine.run(work, inputs, GREEDY)
      for w, token, c in zip(work, tokens, sure, strict=True):
        end = w.start + w.length
        seen[place, w.slot] = end
        logits = expected[w.slot][engine.segment.exit - 1, end - 1]
        probs = np.exp(logits - logits.max())
        probs /= probs.sum()
        rounding = 1e-5 * max(1.0, float(np.abs(logits).max()))
        assert c == pytest.approx(probs.max(), abs=rounding)
        assert probs[token] == pytest.approx(probs.max(), abs=rounding)
      now = [slot for slot in now if rng.random() < 0.6]


@hypothesis.settings(
  max_examples=2, deadline=None, derandomize=True, phases=PHASES
)
@hypothesis.given(
  families.shapes(),
  strategies.sampled_from([0, 2]),
  strategies.integers(0, 2**16),
)
def test_every_reading_is_that_of_the_uncached_pass(shape, rows, seed):
  check_equal(Family(**shape), rows, seed)


@pytest.mark.slow
@hypothesis.settings(max_examples=100, deadline=None, phases=PHASES)
@hypothesis.given(
  families.shapes(),
  strategies.sampled_from([0, 1, 2]),
  strategies.integers(0, 2**16),
)
def test_every_reading_of_many_shapes(shape, rows, seed):
  check_equal(Family(**shape), rows, seed)


def logits_of(engine, slot, text, cut, others):
  """A row's last logits, bit for bit, beside other rows or alone."""
  for start, end in ((0, cut), (cut, len(text))):
    work = [engine_lib.Work(slot, start, end - start, 0)]
    inputs = [text[start:end]]
    for other, (content, upto) in others.items():
      if start:
        work.append(engine_lib.Work(other, upto, 1, 0))
        inputs.append(content[upto : upto + 1])
      else:
        work.append(engine_lib.Work(other, 0, upto, 0))
        inputs.append(content[:upto])
    readings = []
    step = engine.step

    def spy(rows, *rest, step=step, readings=readings):
      reading = step(rows, *rest)
      [places] = np.nonzero(rows.slot_T == slot)
      readings.extend(np.asarray(reading.logits)[places])
      return reading

    engine.step = spy
    engine.run(work[::-1], inputs[::-1], GREEDY)
    engine.step = step
  return readings


@SLOTS
def test_a_row_does_not_depend_on_its_neighbours(made, slots, rows):
  rng = np.random.default_rng(0)
  a, b, c = (rng.integers(0, VOCAB, n) for n in (20, 30, 11))
  engine = made.engines(slots, 1, 2, 3, rows=rows)[0]
  alone = logits_of(engine, 1, a, 16, {})
  for slot in range(3):
    engine.forget(slot)
  # Neighbours whose passes are as long, so that they share the row's.
  beside = logits_of(engine, 1, a, 16, {0: (b, 16), 2: (c, 10)})
  np.testing.assert_array_equal(beside[-1], alone[-1])
  for slot in range(3):
    engine.forget(slot)
  moved = logits_of(engine, 2, a, 16, {1: (c, 10), 0: (b, 16)})
  np.testing.assert_array_equal(moved[-1], alone[-1])


def confidence_of(made, place, text):
  """The confidence of an exit at the end of a text, without a cache."""
  sure = float(jax.nn.softmax(made.logits(text)[place, -1]).max())
  return pytest.approx(sure, abs=1e-5)


def test_positions_are_forgotten_from_a_start_on(made):
  rng = np.random.default_rng(0)
  text, wrong = rng.integers(0, VOCAB, (2, 20))
  engine = made.engines(3, 1, 2, 3)[0]
  engine.run([engine_lib.Work(0, 0, 20, 0)], [wrong], GREEDY)
  engine.run([engine_lib.Work(0, 0, 12, 0)], [text[:12]], GREEDY)
  engine.run([engine_lib.Work(0, 12, 8, 0)], [wrong[:8]], GREEDY)
  _, sure = engine.run([engine_lib.Work(0, 12, 8, 0)], [text[12:]], GREEDY)
  assert sure[0] == confidence_of(made, 0, text)
  assert engine.seen.tolist() == [20, 0, 0]


def test_a_forgotten_slot_hides_what_was_no_number(made):
  first, last, _ = made.engines(3, 1, 2, 3)
  # Longer than what comes after it: a mask does not hide a NaN, 0 x NaN is one.
  bad = np.full((20, made.config.width), np.nan, np.float32)
  last.run([engine_lib.Work(0, 0, 20, 0)], [bad], GREEDY)
  last.forget(0)
  work = [engine_lib.Work(0, 0, 4, 0)]
  text = np.arange(4)
  first.run(work, [text], GREEDY)
  _, sure = last.run(work, first.states, GREEDY)
  assert sure[0] == confidence_of(made, 1, text)


@SLOTS
def test_states_taken_out_are_those_handed_on(made, slots, rows):
  first, last, _ = made.engines(slots, 1, 2, 3, rows=rows)
  rng = np.random.default_rng(0)
  texts = [rng.integers(0, VOCAB, n) for n in (30, 5, 17)]
  work = [engine_lib.Work(s, 0, len(t), s) for s, t in enumerate(texts)]
  first.run(work, texts, GREEDY)
  states = first.take(work)
  assert [len(part) for part in states] == [30, 5, 17]
  here = last.run(work, first.states, GREEDY)
  for slot in range(3):
    last.forget(slot)
  there = last.run(work, states, GREEDY)
  np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize(
  ('kind', 'slots', 'rows'),
  [
    ('branch', 3, 0),
    ('branch', 6, 3),
    pytest.param('head', 3, 0, marks=pytest.mark.slow),
  ],
)
def test_filled_positions_stay_as_they_left(family, kind, slots, rows):
  made = family(exit_kind=kind)
  engines = made.engines(slots, 1, 2, 3, rows=rows)
  rng = np.random.default_rng(0)
  text = rng.integers(0, VOCAB, 20)
  # 5 .. 11 left at the first exit, 12 .. 17 at the second.
  left = np.repeat([9, 0, 1, 9], [5, 7, 6, 2])
  for place, engine in enumerate(engines):
    for start, end in ((0, 5), (5, 12), (12, 18), (18, 20)):
      work = [engine_lib.Work(1, start, end - start, 0)]
      inputs = engines[place - 1].states if place else [text[start:end]]
      if left[start] < place:
        engine.fill(work, inputs)
      else:
        _, sure = engine.run(work, inputs, GREEDY)
    for wrong, logits in (
      (False, made.frozen(text, left)),
      (True, made.logits(text)),
    ):
      expected = float(jax.nn.softmax(logits[place, -1]).max())
      near = abs(sure[0] - expected) < 1e-5
      assert near != wrong or place < 2  # One layer reads no frozen state.


@pytest.mark.parametrize('stay', [2, 9])
def test_positions_that_stay_are_taken_in_with_the_pass(made, stay):
  rng = np.random.default_rng(0)
  text = rng.integers(0, VOCAB, 20)
  found = []
  for together in (True, False):
    first, middle, last = made.engines(3, 1, 2, 3)
    first.run([engine_lib.Work(1, 0, 20, 0)], [text], GREEDY)
    below = first
    for engine in (middle, last):
      engine.run([engine_lib.Work(1, 0, 5, 0)], below.states, GREEDY)
      work = engine_lib.Work(1, 5, stay + 1, 0)
      if together:
        said = engine.run([work], below.states, GREEDY, stays=[stay])
      else:
        engine.fill([work._replace(length=stay)], below.states)
        end = engine_lib.Work(1, 5 + stay, 1, 0)
        said = engine.run([end], below.states, GREEDY)
      found.append([float(part[0]) for part in said])
      assert engine.seen.tolist() == [0, 6 + stay, 0]
      below = engine
  np.testing.assert_allclose(found[:2], found[2:], atol=1e-6)
