"""What goes from tier to tier: safetensors, checked before it is believed.

A message is one block of safetensors: arrays of fixed names, and a few words of
metadata. Nothing in it is executed, every size follows from others that are
checked first, and what does not fit is refused with `WireError`, whatever the
bytes are.

A hand-off of n positions costs n x D x itemsize bytes (int8: 4 more a position,
for its scale), 32 a row, and a header of 2 KiB at most. No message is longer
than `LARGEST`: what does not fit is sent, and asked for, in several.
"""

import dataclasses
import json
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from familial.core import errors
from familial.serving import sampling as sampling_lib

VERSION = '1'
DTYPES = ('float32', 'bfloat16', 'int8')
ID_BYTES = 16
_LARGEST = 1e15  # magnitude of a state: beyond, sums of squares end soon
LARGEST = 2**24  # bytes of a message, whoever sends it
HEADER = 2048  # bytes, the most of a message beside its arrays
_ROW_BYTES = 48  # of a row, whatever its positions: more than any has
_ROW = {
  'starts': 'int32',
  'lengths': 'int32',
  'wanted': 'int32',
  'rows': 'int32',
}
_KINDS = {'bfloat16': np.uint16, 'float32': np.float32, 'int8': np.int8}


class WireError(Exception):
  """Why a message is not taken."""


def positions(width: int) -> int:
  """Returns how many positions of D = width a message may have."""
  return max(1, (LARGEST - HEADER) // (4 * width + _ROW_BYTES))


@dataclasses.dataclass(frozen=True)
class Request:
  """Positions of some rows for a segment to take in.

  Attributes:
    fingerprint: of the family.
    index: of the segment.
    ids: [rows, 16] bytes: who a row is, whatever its slot.
    starts: [rows], first position of each.
    lengths: [rows], positions of each.
    wanted: [rows], first position whose state is to come back if the row is
      not sure.
    rows: [rows], numbers for draws.
    inputs: tokens [positions], or states [positions, D] float32, row after row;
      None where no more than states is asked for.
    policy: how tokens are drawn, and who is sure.
    dtype: of the states that come back.
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
  """What a segment says to a request.

  Attributes:
    lost: [rows], which rows it no longer holds.
    busy: [rows], which rows it has no place for. If a row is lost or has no
      place, nothing was taken in.
    tokens: [rows], drawn by its exit.
    confidence: [rows].
    states: of the rows that are not sure, in order, positions wanted .. end,
      [positions, D] float32; the first `positions(D)` of them.
  """

  lost: np.ndarray
  busy: np.ndarray
  tokens: np.ndarray
  confidence: np.ndarray
  states: np.ndarray


def pack_request(request: Request, dtype: str) -> bytes:
  """Returns a request's bytes, its states, if it has any, in a type."""
  policy, sampling = request.policy, request.policy.sampling
  arrays: dict[str, np.ndarray] = {'ids': request.ids}
  for name, kind in _ROW.items():
    arrays[name] = np.asarray(getattr(request, name), kind)
  if request.inputs is None:
    pass
  elif request.inputs.ndim == 1:
    arrays['tokens'] = np.asarray(request.inputs, np.int32)
  else:
    arrays |= encode(request.inputs, dtype)
  return _pack(
    arrays,
    {
      'fingerprint': request.fingerprint,
      'index': str(request.index),
      'confidence': policy.confidence,
      'threshold': repr(float(policy.threshold)),
      'temperature': repr(float(sampling.temperature)),
      'top_k': str(int(sampling.top_k)),
      'top_p': repr(float(sampling.top_p)),
      'seed': str(int(sampling.seed)),
      'dtype': request.dtype,
    },
  )


def unpack_request(
  content: bytes,
  width: int,
  first: bool,
  vocab: int,
  context: int,
  rows: int,
  *,
  bare: bool = False,
) -> Request:
  """Returns a request, with everything checked that does not need a tier.

  Args:
    content: the message.
    width: D, of the states.
    first: whether tokens are due, not states.
    vocab: tokens are below it.
    context: positions are.
    rows: at most.
    bare: whether it has no inputs.

  Raises:
    WireError: saying what is wrong.
  """
  arrays, words = _unpack(content)
  ids = _array(arrays, 'ids', np.uint8, (None, ID_BYTES))
  n = len(ids)
  if not 1 <= n <= rows:
    raise WireError(f'{n} rows; allowed are 1 to {rows}')
  if len({row.tobytes() for row in ids}) < n:
    raise WireError('a row is there twice')
  numbers = {
    name: _array(arrays, name, np.dtype(kind), (n,)).astype(np.int64)
    for name, kind in _ROW.items()
  }
  ends = numbers['starts'] + numbers['lengths']
  if (numbers['starts'] < 0).any() or (numbers['lengths'] < 1).any():
    raise WireError('positions must begin at 0 or above, and be 1 or more')
  if (ends > context).any():
    raise WireError(f'position {ends.max()} is beyond the context of {context}')
  if (numbers['wanted'] < 0).any() or (numbers['wanted'] > ends).any():
    raise WireError('states can be wanted of positions up to the last one only')
  count, most = int(numbers['lengths'].sum()), positions(width)
  if count > most:
    raise WireError(f'{count} positions; allowed are up to {most} a message')
  inputs = None
  if first and not bare:
    inputs = _array(arrays, 'tokens', np.int32, (count,))
    if (inputs < 0).any() or (inputs >= vocab).any():
      raise WireError(f'a token is not from 0 to {vocab - 1}')
  elif not bare:
    inputs = decode(arrays, count, width)
  if arrays:
    raise WireError(f'array {next(iter(arrays))!r} is not known')
  policy = _policy(words)
  if words.get('dtype') not in DTYPES:
    raise WireError(f'dtype is not one of {", ".join(DTYPES)}')
  return Request(
    fingerprint=words.get('fingerprint', ''), index=_whole(words, 'index'),
    ids=ids, inputs=inputs, policy=policy, dtype=words['dtype'], **numbers,
  )  # fmt: skip


def pack_reply(reply: Reply, dtype: str) -> bytes:
  """Returns a reply's bytes, with its states in a type."""
  arrays: dict[str, np.ndarray] = {
    'lost': np.asarray(reply.lost, np.uint8),
    'busy': np.asarray(reply.busy, np.uint8),
    'answers': np.asarray(reply.tokens, np.int32),
    'confidence': np.asarray(reply.confidence, np.float32),
  }
  return _pack(arrays | encode(reply.states, dtype), {})


def unpack_reply(
  content: bytes, request: Request, width: int, vocab: int, last: bool
) -> Reply:
  """Returns a reply to a request; what no server of ours says is refused.

  Args:
    content: the message.
    request: that was asked.
    width: D.
    vocab: tokens are below it.
    last: whether the segment is the last, from which no states come.

  Raises:
    WireError: saying what is wrong.
  """
  arrays, _ = _unpack(content)
  n = len(request.ids)
  lost, busy = (
    _array(arrays, name, np.uint8, (n,)).astype(bool)
    for name in ('lost', 'busy')
  )
  tokens = _array(arrays, 'answers', np.int32, (n,))
  if (tokens < 0).any() or (tokens >= vocab).any():
    raise WireError(f'an answer is not from 0 to {vocab - 1}')
  sure = _array(arrays, 'confidence', np.float32, (n,))
  if not np.isfinite(sure).all():
    raise WireError('a confidence is not a number')
  going = sure < request.policy.threshold
  if lost.any() or busy.any() or last:
    going[:] = False
  spans = request.starts + request.lengths - request.wanted
  count = min(int(spans[going].sum()), positions(width))
  states = decode(arrays, count, width)
  if arrays:
    raise WireError(f'array {next(iter(arrays))!r} is not known')
  return Reply(lost, busy, tokens, sure, states)


def encode(states: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
  """Returns the arrays that carry states [positions, D] in a type.

  int8 has a scale a position: the largest magnitude over 127.
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
  """Returns states [positions, D] in float32, taking them out of the arrays.

  Raises:
    WireError: where they are not of that shape, or not finite.
  """
  state = arrays.pop('state', None)
  if state is None or state.dtype not in list(_KINDS.values()):
    raise WireError(f'states are missing, or not of {", ".join(DTYPES)}')
  if state.shape != (count, width):
    raise WireError(
      f'states are {list(state.shape)}; [{count}, {width}] is needed'
    )
  if state.dtype == np.int8:
    scale = _array(arrays, 'scale', np.float32, (count,))
    found = state.astype(np.float32) * scale[:, None]
  elif state.dtype == np.uint16:
    found = state.view(jnp.bfloat16).astype(np.float32)
  else:
    found = state
  # What overflows further on would stay in the caches of its row.
  if not (np.abs(found) < _LARGEST).all():
    raise WireError(f'a state is not a number below {_LARGEST:g}')
  return found


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
  except errors.UserError as error:
    raise WireError(str(error)) from None
  except (KeyError, ValueError):
    raise WireError('the policy cannot be read') from None


def _whole(words: dict[str, str], name: str) -> int:
  """Returns a number below 2^31, or of a seed 2^32."""
  text = words.get(name, '')
  most = 2**32 if name == 'seed' else 2**31
  if not re.fullmatch('[0-9]{1,10}', text) or int(text) >= most:
    raise WireError(f'{name} is not a whole number below {most}')
  return int(text)


def _pack(arrays: dict[str, np.ndarray], words: dict[str, str]) -> bytes:
  whole = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
  return safetensors.save(whole, metadata={'familial': VERSION, **words})


def _unpack(content: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Returns the arrays and the words of a message."""
  if len(content) < 8:
    raise WireError(f'{len(content)} bytes are no message')
  size = int.from_bytes(content[:8], 'little')
  if size > HEADER:
    raise WireError(f'a header of {size} bytes; at most {HEADER} are allowed')
  try:
    arrays = safetensors.load(content)
    header = json.loads(content[8 : 8 + size])
  except Exception:  # The library raises many kinds, of shapes and of types.
    raise WireError('not safetensors, or not of types spoken here') from None
  words = header.get('__metadata__') or {}
  if words.get('familial') != VERSION:
    raise WireError(
      f'version {words.get("familial")!r} is not {VERSION}, the one spoken here'
    )
  return arrays, words


def _array(
  arrays: dict[str, np.ndarray],
  name: str,
  dtype: Any,
  shape: tuple[int | None, ...],
) -> np.ndarray:
  """Takes an array out of a message, checking what it is."""
  array = arrays.pop(name, None)
  if array is None:
    raise WireError(f'array {name!r} is missing')
  if array.dtype != dtype:
    raise WireError(
      f'array {name!r} is {array.dtype}; {np.dtype(dtype)} is needed'
    )
  fits = len(shape) == array.ndim and all(
    wanted in (None, size)
    for wanted, size in zip(shape, array.shape, strict=True)
  )
  if not fits:
    raise WireError(
      f'array {name!r} is {list(array.shape)}; '
      f'[{", ".join("rows" if n is None else str(n) for n in shape)}] is needed'
    )
  return array
