"""The client of a chain of relays: each is a stage of `decoding.generate`.

The client lives where the request begins. It keeps every row's tokens, so a
server that has lost a row, because it was started again or gave the slot away,
gets it from its tokens on once more; the states that servers send it to hand on
are kept until they are handed on.
"""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import json
import time
from typing import Any
import uuid

import grpc
import numpy as np

from familial import errors
from familial.serving import decoding
from familial.serving import sampling as sampling_lib
from familial.serving import server
from familial.serving import tier as tier_lib
from familial.serving import wire

_PATIENCE = 10.0  # seconds that a server has to come back
_CALL = 120.0  # seconds that an answer may take: the first ones compile


class Remote:
  """A segment that a server holds.

  Attributes:
    address: of the server.
    what: as the server describes itself.
    slots: rows at once.
    states: of rows that go on, by slot: where they begin, and [positions, D].
    sent: bytes sent, received: bytes that came back, of `Advance` calls.
    positions: taken in by the server.
    handed: positions whose states came back.
    seconds: of each call.
  """

  def __init__(
    self,
    address: str,
    *,
    dtype: str = 'float32',
    patience: float = _PATIENCE,
  ):
    """Connects.

    Args:
      address: HOST:PORT.
      dtype: of the states on the way, one of wire.DTYPES.
      patience: seconds to wait for a server that does not answer.

    Raises:
      DownError: if nothing answers there.
      UserError: if what answers is no relay of this version.
    """
    if dtype not in wire.DTYPES:
      raise errors.UserError(
        f'state_dtype: {dtype!r} is not one of {", ".join(wire.DTYPES)}'
        f'{errors.nearest(dtype, wire.DTYPES)}'
      )
    self.address, self._dtype, self._patience = address, dtype, patience
    self._channel = grpc.insecure_channel(
      address,
      options=[
        ('grpc.max_receive_message_length', -1),
        ('grpc.max_send_message_length', -1),
        ('grpc.initial_reconnect_backoff_ms', 100),
        ('grpc.min_reconnect_backoff_ms', 100),
        ('grpc.max_reconnect_backoff_ms', 500),
      ],
    )
    self.what: dict[str, Any] = _described(address, self._call('Describe', b''))
    self.slots: int = self.what['slots']
    self.states: dict[int, tuple[int, np.ndarray]] = {}
    self.sent = self.received = self.positions = self.handed = 0
    self.seconds: list[float] = []
    self._ids = [uuid.uuid4().bytes for _ in range(self.slots)]
    self._used: set[int] = set()

  @property
  def last(self) -> bool:
    """Whether it serves the last segment."""
    return bool(self.what['index'] == len(self.what['exits']) - 1)

  def run(
    self,
    work: Sequence[tier_lib.Work],
    inputs: Any,
    policy: sampling_lib.Policy,
    wanted: Sequence[int] = (),
    stays: Sequence[int] = (),
  ) -> tuple[np.ndarray, np.ndarray]:
    """Has the server take positions in; see decoding.Stage.

    Raises:
      decoding.LostError: if it no longer holds what comes before them.
      decoding.DownError: if it does not answer.
    """
    if stays:
      raise errors.UserError(
        "fill: 'propagate' is not allowed in a relay; it must be 'defer'"
      )
    if isinstance(inputs, dict):
      parts = []
      for w in work:
        begin, states = inputs[w.slot]
        parts.append(states[w.start - begin : w.start - begin + w.length])
    else:
      parts = [np.asarray(part, np.int32) for part in inputs]
    request = wire.Request(
      fingerprint=self.what['fingerprint'],
      index=self.what['index'],
      ids=np.stack([np.frombuffer(self._ids[w.slot], np.uint8) for w in work]),
      starts=np.array([w.start for w in work]),
      lengths=np.array([w.length for w in work]),
      wanted=np.array(wanted),
      rows=np.array([w.row for w in work]),
      inputs=np.concatenate(parts),
      policy=policy,
      dtype=self._dtype,
    )
    content = wire.pack_request(request, self._dtype)
    tick = time.monotonic()
    answer = self._call('Advance', content)
    try:
      reply = wire.unpack_reply(answer, request, self.what['width'], self.last)
    except wire.WireError as error:
      raise decoding.DownError(f'{self.address}: {error}') from None
    self._used.update(w.slot for w in work)
    self.seconds.append(time.monotonic() - tick)
    self.sent += len(content)
    self.received += len(answer)
    if reply.lost.any():
      raise decoding.LostError(
        [w.slot for w, lost in zip(work, reply.lost, strict=True) if lost]
      )
    self.positions += int(request.lengths.sum())
    self.handed += len(reply.states)
    done = 0
    for w, first, sure in zip(work, wanted, reply.confidence, strict=True):
      if sure < policy.threshold and not self.last:
        length = w.start + w.length - first
        self.states[w.slot] = first, reply.states[done : done + length]
        done += length
    return reply.tokens, reply.confidence

  def forget(self, slot: int) -> None:
    """Ends a row: the server may free its slot."""
    old, self._ids[slot] = self._ids[slot], uuid.uuid4().bytes
    self.states.pop(slot, None)
    if slot in self._used:
      self._used.remove(slot)
      self._release(old)

  def close(self) -> None:
    """Ends all rows and hangs up."""
    self._release(b''.join(self._ids))
    self._channel.close()

  def _release(self, ids: bytes) -> None:
    """Tells the server; one that does not hear it forgets by itself."""
    with contextlib.suppress(decoding.DownError):
      self._call('Release', ids)

  def _call(self, name: str, content: bytes) -> bytes:
    """Calls the server, waiting for one that comes back.

    Raises:
      DownError: if none does, or it refuses.
    """
    call = self._channel.unary_unary(f'/{server.SERVICE}/{name}')
    until = time.monotonic() + self._patience
    while True:
      try:
        return bytes(call(content, timeout=_CALL))
      except grpc.RpcError as error:
        code, detail = error.code(), error.details()
        again = code in (
          grpc.StatusCode.UNAVAILABLE,
          grpc.StatusCode.RESOURCE_EXHAUSTED,
        )
        if not again or time.monotonic() > until:
          raise decoding.DownError(
            f'{self.address}: {code.name}, {detail}'
          ) from None
        time.sleep(0.1)


def connect(
  addresses: Sequence[str],
  *,
  dtype: str = 'float32',
  patience: float = _PATIENCE,
  say: Callable[[str], None] = lambda line: None,
) -> list[Remote]:
  """Returns the stages of a chain of servers, first to last.

  Args:
    addresses: HOST:PORT of each.
    dtype: of the states on the way.
    patience: seconds to wait for a server that does not answer.
    say: is told in a line of servers that do not; the chain ends before them.

  Raises:
    UserError: if the first does not answer, or they are not the segments of
      one family, in order.
  """
  stages: list[Remote] = []
  for place, address in enumerate(addresses):
    try:
      stage = Remote(address, dtype=dtype, patience=patience)
    except decoding.DownError as error:
      if not stages:
        raise errors.UserError(f'no relay answers at {error}') from None
      say(f'no relay answers at {error}; going on with the exits before it')
      break
    what, first = stage.what, stages[0].what if stages else stage.what
    stages.append(stage)
    if what['fingerprint'] != first['fingerprint']:
      raise errors.UserError(
        f'{address}: serves model {what["fingerprint"]}, and {addresses[0]} '
        f'serves {first["fingerprint"]}'
      )
    if (what['index'], what['exits']) != (place, first['exits']):
      raise errors.UserError(
        f'{address}: serves segment {what["index"]} of exits {what["exits"]}; '
        f'segment {place} of {first["exits"]} is due there'
      )
  return stages


def _described(address: str, content: bytes) -> dict[str, Any]:
  """Returns what a server says of itself, which may be anything."""
  try:
    what = json.loads(content)
    version = what['version']
  except (ValueError, LookupError, TypeError):
    version = None
  if version != wire.VERSION:
    raise errors.UserError(
      f'{address}: answers as no relay of version {wire.VERSION} does'
    )
  return dict(what)
