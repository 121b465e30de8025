"""Messages of a relay: safetensors, checked before they are used.

A message is one block of safetensors: arrays of fixed names, and strings in its
metadata. Nothing in it is executed, every size follows from others that are
checked first, and whatever the bytes are, what does not fit is refused with
`WireError`.

A hand-off of n positions costs n x D x itemsize bytes (int8: 4 more per
position, for its scale), 32 per row, and a header of at most 2 KiB. A message
has at most `LARGEST` bytes; more positions are sent, and asked for, in several.
"""

import dataclasses
import json
import re
from typing import Annotated
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from familial.core import schema
from familial.serving import sampling as sampling_lib

VERSION = '1'
SERVICE = 'familial.Relay'
DTYPES = ('float32', 'bfloat16', 'int8')
ID_BYTES = 16
COMPILING = 'compiling'  # why a server is not available yet
LARGEST = 2**24  # bytes of a message
HEADER = 2048  # largest number of bytes of a message beside its arrays
_LARGEST_STATE = 1e15  # sums of squares of larger ones may overflow
_ROW_BYTES = 48  # of a row, whatever its positions: more than any has
_ROW = ('starts', 'lengths', 'wanted', 'rows')  # int32 each
_KINDS = {'bfloat16': np.uint16, 'float32': np.float32, 'int8': np.int8}
# Channel options of both ends: the length of messages; a connection whose other
# end is frozen is closed.
OPTIONS = (
  ('grpc.max_receive_message_length', LARGEST),
  ('grpc.max_send_message_length', LARGEST),
  ('grpc.keepalive_time_ms', 10_000),
  ('grpc.keepalive_timeout_ms', 5_000),
  ('grpc.http2.max_pings_without_data', 0),
)


class WireError(Exception):
  """Why a message is refused."""


@dataclasses.dataclass(frozen=True)
class Description:
  """A server's description of what it serves.

  Attributes:
    version: version of these messages.
    fingerprint: fingerprint of the family.
    exits: exits at which the family is cut.
    index: index of the segment.
    width: D.
    vocab_size: V.
    slots: number of rows it can hold.
    context: largest number of positions of a row.
    span: largest number of positions of a pass.
    tokenizer: mark of the tokenizer.
  """

  version: Annotated[str, schema.one_of(VERSION)]
  fingerprint: str
  exits: tuple[int, ...]
  index: schema.Index
  # No more than the arrays of a client can hold.
  width: Annotated[int, schema.within(1, 2**20)]
  vocab_size: Annotated[int, schema.within(1, 2**31 - 1)]
  slots: Annotated[int, schema.within(1, 2**20)]
  context: Annotated[int, schema.within(1, 2**31 - 1)]
  span: Annotated[int, schema.within(1, 2**20)]
  tokenizer: str

  @property
  def last(self) -> bool:
    """Whether the segment is the last, from which no states come."""
    return self.index == len(self.exits) - 1

  def pack(self) -> bytes:
    """Returns the description's bytes."""
    return json.dumps(dataclasses.asdict(self)).encode()

  @classmethod
  def unpack(cls, content: bytes) -> 'Description':
    """Returns a description from bytes, which may be anything.

    Raises:
      WireError: if they are not a description of this version.
    """
    try:
      found = schema.read(cls, json.loads(content))
    except (ValueError, AttributeError, RecursionError) as error:
      raise WireError(str(error)) from None
    _check(found.index < len(found.exits), 'index is out of range')
    return found


@dataclasses.dataclass(frozen=True)
class Request:
  """Positions of some rows for a segment to compute.

  Attributes:
    fingerprint: fingerprint of the family.
    index: index of the segment.
    ids: identity of each row, whatever its slot, [rows, 16] bytes.
    starts: first position of each row.
    lengths: number of positions of each row.
    wanted: first position of each row whose state is to come back if the exit
      is not confident.
    rows: number of each row, for its draws.
    inputs: tokens [positions], or float32 states [positions, D], row after row;
      None where only states are asked for.
    policy: how tokens are drawn, and the threshold of confidence.
    dtype: type of the states that come back.
  """

  fingerprint: str
  index: int
  ids: np.ndarray
  starts: np.ndarray
  lengths: np.ndarray
  wanted: np.ndarray
  rows: np.ndarray
  inputs: np.ndarray | None
  policy: sampling_lib.Policy
  dtype: str = 'float32'


@dataclasses.dataclass(frozen=True)
class Reply:
  """A segment's answer to a request.

  If a row is lost or has no place, nothing was computed.

  Attributes:
    lost: whether the earlier positions of each row are no longer held.
    busy: whether there is no place for each row.
    tokens: token drawn for each row.
    confidence: confidence of the exit for each row.
    states: states [positions, D] in float32 of the positions from `wanted` on
      of rows that are not confident, in order; the first `positions(D)`.
  """

  lost: np.ndarray
  busy: np.ndarray
  tokens: np.ndarray
  confidence: np.ndarray
  states: np.ndarray


def positions(width: int) -> int:
  """Returns the largest number of positions of D = width in a message."""
  return max(1, (LARGEST - HEADER) // (4 * width + _ROW_BYTES))


def pack_request(request: Request, dtype: str) -> bytes:
  """Returns a request's bytes, with states in a type."""
  policy = request.policy
  arrays: dict[str, np.ndarray] = {'ids': request.ids}
  for name in _ROW:
    arrays[name] = np.asarray(getattr(request, name), np.int32)
  if request.inputs is not None and request.inputs.ndim == 1:
    arrays['tokens'] = np.asarray(request.inputs, np.int32)
  elif request.inputs is not None:
    arrays |= encode(request.inputs, dtype)
  return _pack(
    arrays,
    {
      'fingerprint': request.fingerprint,
      'index': str(request.index),
      'confidence': policy.confidence,
      'threshold': str(float(policy.threshold)),
      'dtype': request.dtype,
      **{k: str(v) for k, v in dataclasses.asdict(policy.sampling).items()},
    },
  )


def unpack_request(
  content: bytes, what: Description, *, bare: bool = False
) -> Request:
  """Returns a request to a segment, checked as far as this needs no engine.

  Args:
    content: the message.
    what: the segment and its limits.
    bare: whether the request has no inputs.

  Raises:
    WireError: if the message is not such a request.
  """
  arrays, words = _unpack(content)
  ids = _array(arrays, 'ids', np.uint8, (None, ID_BYTES))
  n, most = len(ids), positions(what.width)
  _check(1 <= n <= what.slots, f'{n} rows; allowed are 1 to {what.slots}')
  _check(len({row.tobytes() for row in ids}) == n, 'a row is there twice')
  numbers = {
    name: _array(arrays, name, np.dtype(np.int32), (n,)).astype(np.int64)
    for name in _ROW
  }
  starts, lengths, wanted = (numbers[name] for name in _ROW[:3])
  ends, count = starts + lengths, int(lengths.sum())
  _check(
    (starts >= 0).all() and (lengths >= 1).all(),
    'positions must begin at 0 or above, and be 1 or more',
  )
  _check(
    (ends <= what.context).all(),
    f'position {ends.max()} is beyond the context of {what.context}',
  )
  _check(
    (wanted >= 0).all() and (wanted <= ends).all(),
    'states can be wanted of positions up to the last one only',
  )
  _check(
    count <= most, f'{count} positions; allowed are up to {most} a message'
  )
  inputs = None
  if not bare and not what.index:
    inputs = _tokens(arrays, 'tokens', count, what.vocab_size)
  elif not bare:
    inputs = decode(arrays, count, what.width)
  _check_empty(arrays)
  _check(
    words.get('dtype') in DTYPES, f'dtype is not one of {", ".join(DTYPES)}'
  )
  request = Request(
    fingerprint=words.get('fingerprint', ''), index=_whole(words, 'index'),
    ids=ids, inputs=inputs, policy=_policy(words), dtype=words['dtype'],
    **numbers,
  )  # fmt: skip
  _check(
    (request.fingerprint, request.index) == (what.fingerprint, what.index),
    f'segment {request.index} of model {request.fingerprint!r} is not here; '
    f'this is segment {what.index} of {what.fingerprint}',
  )
  return request


def pack_reply(reply: Reply, dtype: str) -> bytes:
  """Returns a reply's bytes, with its states in a type."""
  arrays: dict[str, np.ndarray] = {
    'lost': np.asarray(reply.lost, np.uint8),
    'busy': np.asarray(reply.busy, np.uint8),
    'answers': np.asarray(reply.tokens, np.int32),
    'confidence': np.asarray(reply.confidence, np.float32),
  }
  return _pack(arrays | encode(reply.states, dtype), {})


def unpack_reply(content: bytes, request: Request, what: Description) -> Reply:
  """Returns a segment's reply to a request, checked.

  Raises:
    WireError: if the message is not such a reply.
  """
  arrays, _ = _unpack(content)
  n = len(request.ids)
  lost, busy = (
    _array(arrays, name, np.uint8, (n,)).astype(bool)
    for name in ('lost', 'busy')
  )
  tokens = _tokens(arrays, 'answers', n, what.vocab_size)
  confidence = _array(arrays, 'confidence', np.float32, (n,))
  _check(np.isfinite(confidence).all(), 'a confidence is not a number')
  going = confidence < request.policy.threshold
  if lost.any() or busy.any() or what.last:
    going[:] = False
  spans = request.starts + request.lengths - request.wanted
  count = min(int(spans[going].sum()), positions(what.width))
  states = decode(arrays, count, what.width)
  _check_empty(arrays)
  return Reply(lost, busy, tokens, confidence, states)


def encode(states: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
  """Returns the arrays that carry states [positions, D] in a type.

  int8 has a scale per position: the largest magnitude over 127.
  """
  states = np.asarray(states, np.float32)
  if dtype == 'bfloat16':
    return {'state': states.astype(jnp.bfloat16).view(np.uint16)}
  if dtype == 'int8':
    scale = np.abs(states).max(axis=-1, initial=0.0) / 127
    safe = np.where(scale > 0, scale, 1.0)[:, None]
    return {
      'state': np.rint(states / safe).astype(np.int8),
      'scale': scale.astype(np.float32),
    }
  return {'state': states}


def decode(arrays: dict[str, np.ndarray], count: int, width: int) -> np.ndarray:
  """Takes states [positions, D] out of the arrays, in float32.

  Raises:
    WireError: if they are not of that shape, or not finite.
  """
  state = arrays.pop('state', None)
  if state is None or state.dtype not in list(_KINDS.values()):
    raise WireError(f'states are missing, or not of {", ".join(DTYPES)}')
  _check(
    state.shape == (count, width),
    f'states are {list(state.shape)}; [{count}, {width}] is needed',
  )
  if state.dtype == np.int8:
    scale = _array(arrays, 'scale', np.float32, (count,))
    state = state.astype(np.float32) * scale[:, None]
  elif state.dtype == np.uint16:
    state = state.view(jnp.bfloat16).astype(np.float32)
  # What overflows later would stay in the caches of its row.
  _check(
    (np.abs(state) < _LARGEST_STATE).all(),
    f'a state is not a number below {_LARGEST_STATE:g}',
  )
  return state


def _policy(words: dict[str, str]) -> sampling_lib.Policy:
  try:
    return sampling_lib.Policy(
      sampling_lib.Sampling(
        temperature=float(words['temperature']),
        top_k=_whole(words, 'top_k'),
        top_p=float(words['top_p']),
        seed=_whole(words, 'seed'),
      ),
      words['confidence'],
      float(words['threshold']),
    )
  except (KeyError, ValueError) as error:  # A UserError is a ValueError.
    raise WireError(f'policy: {error}') from None


def _whole(words: dict[str, str], name: str) -> int:
  text = words.get(name, '')
  _check(
    re.fullmatch('[0-9]{1,10}', text) is not None,
    f'{name} is not a whole number',
  )
  return int(text)


def _pack(arrays: dict[str, np.ndarray], words: dict[str, str]) -> bytes:
  whole = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
  return safetensors.save(whole, metadata={'familial': VERSION, **words})


def _unpack(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns the arrays and the metadata of a message."""
  _check(len(content) >= 8, f'{len(content)} bytes are no message')
  size = int.from_bytes(content[:8], 'little')
  _check(
    size <= HEADER, f'a header of {size} bytes; at most {HEADER} are allowed'
  )
  try:
    arrays = safetensors.load(content)
    header = json.loads(content[8 : 8 + size])
  except Exception:  # The library raises many kinds, of shapes and of types.
    raise WireError('not safetensors, or of unknown types') from None
  words = header.get('__metadata__') or {}
  _check(
    words.get('familial') == VERSION,
    f'version {words.get("familial")!r} is not {VERSION}',
  )
  return arrays, words


def _array(
  arrays: dict[str, np.ndarray],
  name: str,
  dtype: Any,
  shape: tuple[int | None, ...],
) -> np.ndarray:
  """Takes an array of this type and shape out of a message."""
  array = arrays.pop(name, None)
  if array is None:
    raise WireError(f'array {name!r} is missing')
  _check(
    array.dtype == dtype,
    f'array {name!r} is {array.dtype}; {np.dtype(dtype)} is needed',
  )
  _check(
    len(shape) == array.ndim
    and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True)),
    f'array {name!r} is {list(array.shape)}; '
    f'[{", ".join("rows" if n is None else str(n) for n in shape)}] is needed',
  )
  return array


def _tokens(
  arrays: dict[str, np.ndarray], name: str, count: int, vocab: int
) -> np.ndarray:
  """Takes an array of tokens out of a message."""
  tokens = _array(arrays, name, np.int32, (count,))
  _check(
    (tokens >= 0).all() and (tokens < vocab).all(),
    f'a token is not from 0 to {vocab - 1}',
  )
  return tokens


def _check_empty(arrays: dict[str, np.ndarray]) -> None:
  """Refuses arrays that nothing has taken out of a message."""
  _check(not arrays, f'arrays {sorted(arrays)} are not known')


def _check(holds: bool | np.bool_, message: str) -> None:
  if not holds:
    raise WireError(message)
