import dataclasses
import json

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest
from safetensors import numpy as safetensors

from familial.serving import sampling
from familial.serving import wire

WIDTH, VOCAB, CONTEXT, ROWS = 8, 23, 48, 4
ASKED = {
  'width': WIDTH, 'vocab': VOCAB, 'context': CONTEXT, 'rows': ROWS,
}  # fmt: skip
POLICY = sampling.Policy(sampling.Sampling(0.7, 5, 0.9, 11), 'gap', 0.25)


def request(tokens=False, **changes):
  rng = np.random.default_rng(0)
  positions = 3 + 1
  values = {
    'fingerprint': 'f00d',
    'index': 1,
    'ids': rng.integers(0, 256, (2, 16)).astype(np.uint8),
    'starts': np.array([0, 9]),
    'lengths': np.array([3, 1]),
    'wanted': np.array([1, 10]),
    'rows': np.array([0, 7]),
    'inputs': rng.integers(0, VOCAB, positions)
    if tokens
    else rng.normal(size=(positions, WIDTH)).astype(np.float32),
    'policy': POLICY,
    **changes,
  }
  return wire.Request(**values)


def unpack(content, first=False):
  return wire.unpack_request(content, first=first, **ASKED)


@pytest.mark.parametrize('tokens', [True, False])
def test_a_request_arrives_as_it_was(tokens):
  sent = request(tokens)
  content = wire.pack_request(sent, 'float32')
  got = unpack(content, first=tokens)
  for field in dataclasses.fields(wire.Request):
    was, now = (getattr(r, field.name) for r in (sent, got))
    np.testing.assert_array_equal(was, now)


@pytest.mark.parametrize(
  ('dtype', 'itemsize', 'error'),
  [('float32', 4, 0.0), ('bfloat16', 2, 2**-8), ('int8', 1, 1 / 254)],
)
def test_states_cost_their_bytes_and_err_by_their_type(dtype, itemsize, error):
  states = np.random.default_rng(0).normal(size=(4, WIDTH)).astype(np.float32)
  many = np.tile(states, (10, 1))
  sizes = []
  for content in (states, many):
    sent = request(inputs=content, lengths=np.array([len(content) - 1, 1]))
    packed = wire.pack_request(sent, dtype)
    found = unpack(packed).inputs
    largest = np.abs(content).max(-1, keepdims=True)
    assert (np.abs(found - content) <= error * largest * 1.001).all()
    scales = 4 * len(content) if dtype == 'int8' else 0
    extra = len(packed) - content.size * itemsize - scales
    assert extra <= 2048 + 32 * 2
    sizes.append(extra)
  assert abs(sizes[1] - sizes[0]) <= 16  # The header alone: digits, padding.
  zeros = request(inputs=0 * states)
  np.testing.assert_array_equal(
    unpack(wire.pack_request(zeros, dtype)).inputs, 0
  )


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'starts': np.array([-1, 9])}, 'positions must begin'),
    ({'lengths': np.array([4, 0])}, 'positions must begin'),
    ({'starts': np.array([0, 48])}, 'beyond the context of 48'),
    ({'wanted': np.array([4, 0])}, 'states can be wanted'),
    ({'wanted': np.array([-1, 0])}, 'states can be wanted'),
    ({'lengths': np.array([2, 1])}, 'states are'),
    ({'inputs': np.zeros((4, WIDTH + 1), np.float32)}, 'states are'),
    ({'inputs': np.full((4, WIDTH), np.nan, np.float32)}, 'not a number'),
    ({'inputs': np.full((4, WIDTH), np.inf, np.float32)}, 'not a number'),
    ({'inputs': np.full((4, WIDTH), 1e30, np.float32)}, 'not a number'),
    ({'inputs': np.zeros(4, np.int64)}, 'states are missing'),
    ({'ids': np.zeros((2, 16), np.uint8)}, 'twice'),
    ({'ids': np.zeros((2, 15), np.uint8)}, "'ids' is"),
    ({'ids': np.zeros((0, 16), np.uint8)}, '0 rows'),
    ({'ids': np.arange(80).reshape(5, 16).astype(np.uint8)}, '5 rows'),
    ({'rows': np.zeros(3)}, "'rows' is"),
    ({'dtype': 'float64'}, 'dtype is not'),
  ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes, said):
  content = wire.pack_request(request(**changes), 'float32')
  with pytest.raises(wire.WireError, match=said):
    unpack(content)


def test_tokens_beyond_the_vocabulary_are_refused():
  for token in (-1, VOCAB):
    content = wire.pack_request(
      request(True, inputs=np.full(4, token)), 'float32'
    )
    with pytest.raises(wire.WireError, match='from 0 to 22'):
      unpack(content, first=True)


def rewritten(words=None, arrays=None):
  """A message with other words or arrays than any client's."""
  content = wire.pack_request(request(), 'float32')
  header = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])
  return safetensors.save(
    safetensors.load(content) | (arrays or {}),
    metadata=header['__metadata__'] | (words or {}),
  )


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    ({'familial': '0'}, "version '0'"),
    ({'threshold': 'nan'}, 'threshold'),
    ({'threshold': 'high'}, 'policy'),
    ({'temperature': '-1'}, 'temperature'),
    ({'top_k': '1.5'}, 'policy'),
    ({'confidence': 'trust me'}, 'confidence'),
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
    ({'starts': np.zeros(2, np.int64)}, "'starts' is int64"),
    ({'more': np.zeros(1)}, "'more' is not known"),
  ],
)
def test_arrays_are_checked(arrays, said):
  with pytest.raises(wire.WireError, match=said):
    unpack(rewritten(arrays=arrays))


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(st.data())
def test_any_bytes_are_a_request_or_refused(data):
  whole = wire.pack_request(request(), 'float32')
  kind = data.draw(st.sampled_from(['random', 'cut', 'flipped', 'header']))
  if kind == 'random':
    content = data.draw(st.binary(max_size=200))
  elif kind == 'cut':
    content = whole[: data.draw(st.integers(0, len(whole) - 1))]
  elif kind == 'flipped':
    place = data.draw(st.integers(0, len(whole) - 1))
    value = data.draw(st.integers(0, 255))
    content = whole[:place] + bytes([value]) + whole[place + 1 :]
  else:
    text = json.dumps(
      data.draw(
        st.recursive(
          st.none() | st.integers() | st.text(max_size=5),
          lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text(max_size=5), inner, max_size=3)
          ),
          max_leaves=8,
        )
      )
    ).encode()
    content = len(text).to_bytes(8, 'little') + text + b'\0' * 50
  try:
    got = unpack(content)
  except wire.WireError as error:
    assert str(error)
  else:
    assert np.isfinite(got.inputs).all() and got.inputs.shape == (4, WIDTH)


def test_a_reply_arrives_as_it_was():
  asked = request()
  sure = np.array([0.2, 0.9], np.float32)
  states = np.random.default_rng(1).normal(size=(2, WIDTH)).astype(np.float32)
  sent = wire.Reply(np.zeros(2, bool), np.array([4, 5]), sure, states)
  got = wire.unpack_reply(wire.pack_reply(sent, 'float32'), asked, WIDTH, False)
  np.testing.assert_array_equal(got.tokens, [4, 5])
  np.testing.assert_array_equal(got.confidence, sure)
  np.testing.assert_array_equal(got.states, states)  # Positions 1 and 2.
  for wrong in (states[:1], np.zeros((0, WIDTH), np.float32)):
    content = wire.pack_reply(
      dataclasses.replace(sent, states=wrong), 'float32'
    )
    with pytest.raises(wire.WireError, match='states are'):
      wire.unpack_reply(content, asked, WIDTH, False)
