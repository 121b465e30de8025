"""The client of a chain of relays: each is a stage of `decoding.generate`.

The client lives where the request begins. It keeps every row's tokens, so a
server that has lost a row, because it was started again or gave the slot away,
gets it from its tokens on once more; the states that servers send it to hand on
are kept until they are handed on. What one message may not hold goes in several,
cut where the server's passes end.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import json
import time
from typing import Any
import uuid

import grpc
import numpy as np

from familial.core import errors
from familial.relay import server
from familial.relay import wire
from familial.serving import decoding
from familial.serving import engine as tier_lib
from familial.serving import sampling as sampling_lib

_PATIENCE = 10.0  # seconds that a server has to come back
_CALL = 120.0  # seconds that an answer may take: the first ones compile
_GOODBYE = 1.0  # seconds that a server has to hear which rows are done
# What a server may say that it has: no more than our arrays could hold.
_MOST = {
  'width': 2**20, 'vocab_size': 2**31 - 1, 'slots': 2**20,
  'context': 2**31 - 1, 'span': 2**20,
}  # fmt: skip


class _FullError(Exception):
  """A server has too many calls under way."""


class Remote:
  """A segment that a server holds.

  Attributes:
    address: of the server.
    what: as the server describes itself.
    slots: rows at once.
    states: of rows that go on, by slot: where they begin, and [positions, D].
    patience: seconds to wait for a server that does not answer, or is busy.
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
      DownError: if nothing answers there, or it refuses to say what it is.
      UserError: if what answers is no relay of this version.
    """
    if dtype not in wire.DTYPES:
      raise errors.UserError(
        f'state_dtype: {dtype!r} is not one of {", ".join(wire.DTYPES)}'
        f'{errors.nearest(dtype, wire.DTYPES)}'
      )
    self.address, self.patience = address, patience
    self._dtype = dtype
    self._channel = grpc.insecure_channel(
      address,
      options=[
        *server.SIZES,
        *server.KEEPALIVE,
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
    self._goodbyes: list[grpc.Future] = []
    self._down = False

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
      decoding.BusyError: if it has no place for some of the rows.
      decoding.DownError: if it is gone, refuses, or its reply makes no sense.
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
    tokens = np.zeros(len(work), np.int32)
    sure = np.zeros(len(work), np.float32)
    for places, now in self._messages(work):
      # What a row hands on is asked for with its last positions.
      first = [
        wanted[place] if _end(part) == _end(work[place]) else _end(part)
        for place, part in zip(places, now, strict=True)
      ]
      own = [
        parts[place][part.start - work[place].start :][: part.length]
        for place, part in zip(places, now, strict=True)
      ]
      tick = time.monotonic()
      reply = self._ask(
        'Advance', now, self._request(now, np.concatenate(own), policy, first)
      )
      self.seconds.append(time.monotonic() - tick)
      self.positions += sum(part.length for part in now)
      tokens[places], sure[places] = reply.tokens, reply.confidence
      going = [
        part._replace(start=begin, length=_end(part) - begin)
        for part, begin, c in zip(now, first, reply.confidence, strict=True)
        if c < policy.threshold and not self.last and begin < _end(part)
      ]
      for w, states in zip(going, self._all(going, reply.states), strict=True):
        self.states[w.slot] = w.start, states
        self.handed += len(states)
    return tokens, sure

  def forget(self, slot: int) -> None:
    """Ends a row: the server may free its slot."""
    old, self._ids[slot] = self._ids[slot], uuid.uuid4().bytes
    self.states.pop(slot, None)
    if slot in self._used:
      self._used.remove(slot)
      self._release(old)

  def close(self) -> None:
    """Ends all rows and hangs up."""
    self._release(b''.join(self._ids[slot] for slot in sorted(self._used)))
    until = time.monotonic() + _GOODBYE
    for goodbye in self._goodbyes:
      with contextlib.suppress(grpc.RpcError, grpc.FutureTimeoutError):
        goodbye.result(max(0.0, until - time.monotonic()))
    self._channel.close()

  def _release(self, ids: bytes) -> None:
    """Tells the server, and does not wait: one that does not hear it forgets by
    itself."""
    if self._down or not ids:
      return
    call = self._channel.unary_unary(f'/{server.SERVICE}/Release')
    self._goodbyes = [g for g in self._goodbyes if not g.done()]
    self._goodbyes.append(call.future(ids, timeout=_GOODBYE))

  def _messages(
    self, work: Sequence[tier_lib.Work]
  ) -> Iterator[tuple[list[int], list[tier_lib.Work]]]:
    """Yields what goes into each message: places in work, and the positions.

    A row is cut where the server's passes end, so that they are those of the
    row in one message.
    """
    most = wire.positions(self.what['width'])
    span = min(self.what['span'], most)
    left = list(enumerate(work))
    while left:
      room, now, later = most, [], []
      for place, w in left:
        length = w.length if w.length <= room else room // span * span
        if length:
          now.append((place, w._replace(length=length)))
        if length < w.length:
          rest = w._replace(start=w.start + length, length=w.length - length)
          later.append((place, rest))
        room -= length
      left = later
      yield [place for place, _ in now], [part for _, part in now]

  def _request(
    self,
    work: Sequence[tier_lib.Work],
    inputs: np.ndarray | None,
    policy: sampling_lib.Policy,
    wanted: Sequence[int],
  ) -> wire.Request:
    return wire.Request(
      fingerprint=self.what['fingerprint'],
      index=self.what['index'],
      ids=np.stack([np.frombuffer(self._ids[w.slot], np.uint8) for w in work]),
      starts=np.array([w.start for w in work]),
      lengths=np.array([w.length for w in work]),
      wanted=np.array(wanted),
      rows=np.array([w.row for w in work]),
      inputs=inputs,
      policy=policy,
      dtype=self._dtype,
    )  # fmt: skip

  def _ask(
    self, name: str, work: Sequence[tier_lib.Work], request: wire.Request
  ) -> wire.Reply:
    """Returns the server's reply to a request of some rows."""
    content = wire.pack_request(request, self._dtype)
    try:
      answer = self._call(name, content)
    except _FullError:
      raise decoding.BusyError(
        self.address, [w.slot for w in work], self.patience
      ) from None
    self._used.update(w.slot for w in work)
    self.sent += len(content)
    self.received += len(answer)
    try:
      reply = wire.unpack_reply(
        answer, request, self.what['width'], self.what['vocab_size'], self.last
      )
    except wire.WireError as error:
      self._down = True
      raise decoding.DownError(f'{self.address}: {error}') from None

    def slots(which: np.ndarray) -> list[int]:
      return [work[place].slot for place in np.flatnonzero(which).tolist()]

    if reply.lost.any():
      raise decoding.LostError(slots(reply.lost))
    if reply.busy.any():
      raise decoding.BusyError(self.address, slots(reply.busy), self.patience)
    return reply

  def _all(
    self, going: Sequence[tier_lib.Work], states: np.ndarray
  ) -> list[np.ndarray]:
    """Returns the states of each row that goes on: those that came with the
    reply, and those that it had no room for."""
    found, left = [], []
    for place, w in enumerate(going):
      found.append([states[: w.length]])
      states = states[w.length :]
      had = len(found[-1][0])
      if had < w.length:
        rest = w._replace(start=w.start + had, length=w.length - had)
        left.append((place, rest))
    for places, now in self._messages([w for _, w in left]):
      request = self._request(
        now, None, sampling_lib.Policy(), [w.start for w in now]
      )
      more = self._ask('States', now, request).states
      for place, w in zip(places, now, strict=True):
        found[left[place][0]].append(more[: w.length])
        more = more[w.length :]
    return [np.concatenate(pieces) for pieces in found]

  def _call(self, name: str, content: bytes) -> bytes:
    """Calls the server, waiting for one that comes back.

    Raises:
      _FullError: if it has too many calls under way.
      DownError: if none comes back, or it refuses.
    """
    call = self._channel.unary_unary(f'/{server.SERVICE}/{name}')
    until = time.monotonic() + self.patience
    while True:
      try:
        return bytes(call(content, timeout=_CALL))
      except grpc.RpcError as error:
        code, detail = error.code(), error.details()
        full = code == grpc.StatusCode.RESOURCE_EXHAUSTED
        if full and name != 'Describe':  # Whose caller has nothing else to do.
          raise _FullError from None
        again = full or code == grpc.StatusCode.UNAVAILABLE
        if not again or time.monotonic() > until:
          self._down = True
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


def _end(work: tier_lib.Work) -> int:
  return work.start + work.length


def _described(address: str, content: bytes) -> dict[str, Any]:
  """Returns what a server says of itself, which may be anything."""
  try:
    what = dict(json.loads(content))
    exits, index, texts = (
      what['exits'],
      what['index'],
      ('fingerprint', 'tokenizer'),
    )
    sound = (
      what['version'] == wire.VERSION
      and all(isinstance(what[name], str) for name in texts)
      and all(
        type(what[name]) is int and 1 <= what[name] <= most
        for name, most in _MOST.items()
      )
      and type(exits) is list
      and all(type(exit_) is int for exit_ in exits)
      and type(index) is int
      and 0 <= index < len(exits)
    )
  except (ValueError, LookupError, TypeError, RecursionError):
    sound = False
  if not sound:
    raise errors.UserError(
      f'{address}: answers as no relay of version {wire.VERSION} does'
    )
  return what
