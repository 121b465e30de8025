import contextlib
import dataclasses
import json

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
from safetensors import numpy as safetensors

from familial.relay import wire
from familial.serving import sampling

WIDTH, VOCAB = 8, 23
POLICY = sampling.Policy(sampling.Sampling(0.7, 5, 0.9, 11), 'gap', 0.25)
WHAT = wire.Description(
  version='1', fingerprint='f00d', exits=(1, 2, 3), index=1, width=WIDTH,
  vocab_size=VOCAB, slots=4, context=48, span=4, tokenizer='bytes',
)  # fmt: skip


def request(tokens=False, **changes):
  rng = np.random.default_rng(0)
  positions = 3 + 1
  states = rng.normal(size=(positions, WIDTH)).astype(np.float32)
  values = {
    'fingerprint': 'f00d',
    'index': 0 if tokens else 1,
    'ids': rng.integers(0, 256, (2, 16)).astype(np.uint8),
    'starts': np.array([0, 9]),
    'lengths': np.array([3, 1]),
    'wanted': np.array([1, 10]),
    'rows': np.array([0, 7]),
    'inputs': rng.integers(0, VOCAB, positions) if tokens else states,
    'policy': POLICY,
    **changes,
  }
  return wire.Request(**values)


def unpack(content, tokens=False):
  what = dataclasses.replace(WHAT, index=0) if tokens else WHAT
  return wire.unpack_request(content, what)


def reply(**changes):
  values = {
    'lost': np.zeros(2, bool),
    'busy': np.zeros(2, bool),
    'tokens': np.array([4, 5]),
    'confidence': np.array([0.2, 0.9], np.float32),
    'states': np.random.default_rng(1).normal(size=(2, WIDTH)),
    **changes,
  }
  return wire.Reply(**values)


def unpack_reply(content):
  return wire.unpack_reply(content, request(), WHAT)


def same(found, expected):
  for field in dataclasses.fields(expected):
    np.testing.assert_array_equal(
      getattr(found, field.name), getattr(expected, field.name)
    )


def header(content):
  return json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])


def rewritten(words=None, arrays=None):
  """A message with other words or arrays than any client's."""
  content = wire.pack_request(request(), 'float32')
  return safetensors.save(
    safetensors.load(content) | (arrays or {}),
    metadata=header(content)['__metadata__'] | (words or {}),
  )


@pytest.mark.parametrize('tokens', [True, False])
def test_a_request_arrives_unchanged(tokens):
  sent = request(tokens)
  same(unpack(wire.pack_request(sent, 'float32'), tokens), sent)


def test_a_reply_arrives_unchanged():
  states = np.random.default_rng(1).normal(size=(2, WIDTH)).astype(np.float32)
  sent = reply(states=states)  # Of positions 1 and 2.
  same(unpack_reply(wire.pack_reply(sent, 'float32')), sent)


@pytest.mark.parametrize(
  ('dtype', 'itemsize', 'error'),
  [('float32', 4, 0.0), ('bfloat16', 2, 2**-8), ('int8', 1, 1 / 254)],
)
def test_states_have_the_bytes_and_error_of_their_type(dtype, itemsize, error):
  states = np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float32)
  sizes = []
  for content in (states, np.tile(states, (10, 1)), 0 * states):
    sent = request(inputs=content, lengths=np.array([len(content) - 1, 1]))
    packed = wire.pack_request(sent, dtype)
    found = unpack(packed).inputs
    largest = np.abs(content).max(-1, keepdims=True)
    assert (np.abs(found - content) <= error * largest * 1.001).all()
    scales = 4 * len(content) if dtype == 'int8' else 0
    extra = len(packed) - content.size * itemsize - scales
    assert extra <= 2048 + 32 * 2
    sizes.append(extra)
  assert max(sizes) - min(sizes) <= 16  # The header alone: digits, padding.


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'starts': np.array([-1, 9])}, 'positions must begin'),
    ({'lengths': np.array([4, 0])}, 'positions must begin'),
    ({'starts': np.array([0, 48])}, 'beyond the context of 48'),
    ({'wanted': np.array([4, 0])}, 'states can be wanted'),
    ({'wanted': np.array([-1, 0])}, 'states can be wanted'),
    ({'inputs': np.zeros((4, WIDTH + 1), np.float32)}, 'states are'),
    *(
      ({'inputs': np.full((4, WIDTH), x, np.float32)}, 'not a number')
      for x in (np.nan, np.inf, 1e30)
    ),
    ({'inputs': np.zeros(4, np.int64)}, 'states are missing'),
    ({'ids': np.zeros((2, 16), np.uint8)}, 'twice'),
    ({'ids': np.zeros((0, 16), np.uint8)}, '0 rows'),
    ({'ids': np.arange(80).reshape(5, 16).astype(np.uint8)}, '5 rows'),
    ({'rows': np.zeros(3)}, "'rows' is"),
    ({'dtype': 'float64'}, 'dtype is not'),
    *(
      ({'tokens': True, 'inputs': np.full(4, token)}, 'from 0 to 22')
      for token in (-1, VOCAB)
    ),
  ],
)
def test_requests_that_do_not_fit_are_refused(changes, said):
  content = wire.pack_request(request(**changes), 'float32')
  with pytest.raises(wire.WireError, match=said):
    unpack(content, 'tokens' in changes)


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    ({'familial': '0'}, "version '0'"),
    ({'threshold': 'nan'}, 'threshold'),
    ({'threshold': 'high'}, 'policy'),
    ({'top_k': '1.5'}, 'top_k is not a whole number'),
    ({'seed': '4294967296'}, 'seed: 4294967296'),
    ({'index': '٣'}, 'index is not a whole number'),
    ({'confidence': 'x' * 5000}, 'header'),
  ],
)
def test_words_are_checked(words, said):
  with pytest.raises(wire.WireError, match=said):
    unpack(rewritten(words))
  assert unpack(rewritten()).policy == POLICY


@pytest.mark.parametrize(
  ('arrays', 'said'),
  [
    ({'state': np.zeros((4, WIDTH))}, 'states are missing, or not'),
    ({'state': np.zeros((4, WIDTH), np.int8)}, "'scale' is missing"),
    ({'starts': np.zeros(2, np.int64)}, "'starts' is int64; int32 is needed"),
    ({'ids': np.zeros((2, 16), np.int8)}, "'ids' is int8; uint8 is needed"),
    ({'ids': np.zeros(16, np.uint8)}, r"'ids' is \[16\]; \[rows, 16\]"),
    ({'more': np.zeros(1)}, "'more'. are not known"),
  ],
)
def test_arrays_are_checked(arrays, said):
  with pytest.raises(wire.WireError, match=said):
    unpack(rewritten(arrays=arrays))


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'tokens': np.array([4, VOCAB])}, 'from 0 to 22'),
    ({'tokens': np.array([-1, 4])}, 'from 0 to 22'),
    ({'confidence': np.array([0.2, np.nan])}, 'confidence'),
    ({'busy': np.zeros(3, bool)}, "'busy' is"),
    ({'busy': np.array([True, False])}, 'states are'),
    ({'lost': np.array([True, False])}, 'states are'),
    ({'states': np.zeros((1, WIDTH))}, 'states are'),
    ({'states': np.zeros((0, WIDTH))}, 'states are'),
  ],
)
def test_replies_that_do_not_fit_are_refused(changes, said):
  content = wire.pack_reply(reply(**changes), 'float32')
  with pytest.raises(wire.WireError, match=said):
    unpack_reply(content)


@pytest.mark.parametrize(
  'content',
  [
    b'', b'hello', b'[1]', b'null', b'{"version": "1"}',
    *(
      json.dumps(dataclasses.asdict(WHAT) | wrong).encode()
      for wrong in (
        {'version': '0'}, {'exits': ['1']}, {'index': 3}, {'slots': 0},
        {'slots': 10**9}, {'width': '16'}, {'context': None},
      )
    ),
  ],
)  # fmt: skip
def test_descriptions_that_make_no_sense_are_refused(content):
  assert wire.Description.unpack(WHAT.pack()) == WHAT
  with pytest.raises(wire.WireError):
    wire.Description.unpack(content)


@st.composite
def damaged(draw, whole):
  """Bytes that may be anything, or nearly a message."""
  kind = draw(st.sampled_from(['random', 'cut', 'flipped', 'header']))
  if kind == 'random':
    return draw(st.binary(max_size=200))
  if kind == 'cut':
    return whole[: draw(st.integers(0, len(whole) - 1))]
  if kind == 'flipped':
    content = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
      place = draw(st.integers(0, len(whole) - 1))
      content[place] = draw(st.integers(0, 255))
    return bytes(content)
  values = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
      st.lists(inner, max_size=3)
      | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
  )
  text = json.dumps(draw(values)).encode()
  return len(text).to_bytes(8, 'little') + text + b'\0' * 50


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
  damaged(wire.pack_request(request(), 'float32')),
  damaged(wire.pack_reply(reply(), 'float32')),
)
def test_any_bytes_are_a_message_or_refused(asked, answered):
  with contextlib.suppress(wire.WireError):
    got = unpack(asked)
    assert np.isfinite(got.inputs).all() and got.inputs.shape == (4, WIDTH)
  with contextlib.suppress(wire.WireError):
    got = unpack_reply(answered)
    assert (got.tokens < VOCAB).all() and np.isfinite(got.states).all()


WORDS = sorted(header(wire.pack_request(request(), 'float32'))['__metadata__'])


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
  st.dictionaries(
    st.sampled_from(WORDS),
    st.text(max_size=12) | st.floats().map(repr) | st.integers().map(str),
    min_size=1,
  )
)
def test_any_words_are_a_policy_or_refused(words):
  with contextlib.suppress(wire.WireError):
    policy = unpack(rewritten(words)).policy
    with np.errstate(all='raise', under='ignore'):
      numbers = sampling.numbers(policy.sampling)
      assert numbers is None or numbers.temperature > 0 < numbers.top_p
      assert not np.isnan(np.float32(policy.threshold))


@pytest.mark.parametrize('width', [1, 4096, 2**20])
@pytest.mark.parametrize('dtype', wire.DTYPES)
def test_no_message_is_longer_than_the_longest(width, dtype):
  """Whatever the slots and the context: rows of one position cost the most."""
  most = wire.positions(width)
  assert wire.LARGEST < 2**26 and 1 <= most
  ids = np.zeros((most, 16), np.uint8)
  ids[:, :4] = np.arange(most, dtype=np.uint32)[:, None].view(np.uint8)
  one = np.ones(most, int)
  states = np.zeros((most, width), np.float32)
  sent = request(
    ids=ids, starts=one * (2**31 - 2), lengths=one, wanted=one, rows=one,
    inputs=states,
  )  # fmt: skip
  content = wire.pack_request(sent, dtype)
  assert len(content) <= wire.LARGEST
  what = dataclasses.replace(WHAT, width=width, context=2**31 - 1, slots=most)
  got = wire.unpack_request(content, what)
  assert len(got.inputs) == most
  answer = wire.Reply(one < 0, one < 0, one, one / 2, states)
  assert len(wire.pack_reply(answer, dtype)) <= wire.LARGEST
  more = dataclasses.replace(sent, lengths=one * 2, starts=one, inputs=None)
  content = wire.pack_request(more, dtype)
  with pytest.raises(wire.WireError, match=f'up to {most} a message'):
    wire.unpack_request(content, what, bare=True)
