"""The client of a relay: each server is a stage of `decoding.generate`.

The client keeps every row's tokens, so that a server that lost a row, because it
was restarted or gave the slot away, can be sent them again. States that a server
returns are kept until they are sent to the next. Positions that exceed one
message are split where the server's passes end.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import time
from typing import Any
import uuid

import grpc
import numpy as np

from familial.core import errors
from familial.relay import wire
from familial.serving import decoding
from familial.serving import engine as engine_lib
from familial.serving import sampling as sampling_lib

_PATIENCE = 10.0  # seconds that a server may stay away
_CALL = 120.0  # seconds that an answer may take: the first ones compile
_GOODBYE = 1.0  # seconds for a server to hear which rows are done


class Remote:
  """A segment held by a server; a decoding.Stage.

  Attributes:
    address: address of the server.
    what: the server's description of itself.
    slots: number of rows at once.
    states: by slot, of rows that go on: first position, states [positions, D].
    patience: seconds to wait for a server that does not answer, or is busy.
    sent, received: bytes of `Advance` calls.
    positions: number of positions that the server computed.
    handed: number of positions whose states came back.
    seconds: time of each call.
  """

  def __init__(
    self,
    address: str,
    *,
    dtype: str = 'float32',
    patience: float = _PATIENCE,
    say: Callable[[str], None] = lambda line: None,
  ):
    """Connects; waits for a server that compiles its programs.

    Args:
      address: HOST:PORT.
      dtype: type of the states in messages, one of wire.DTYPES.
      patience: seconds to wait for a server that does not answer.
      say: receives a line if the server is still compiling.

    Raises:
      DownError: if nothing answers there, or it refuses to describe itself.
      UserError: if what answers is no relay of this version.
    """
    errors.require_one_of('state_dtype', dtype, wire.DTYPES)
    self.address, self.patience = address, patience
    self._dtype, self._down, self._say = dtype, False, say
    self._channel = grpc.insecure_channel(
      address,
      options=[
        *wire.OPTIONS,
        ('grpc.initial_reconnect_backoff_ms', 100),
        ('grpc.min_reconnect_backoff_ms', 100),
        ('grpc.max_reconnect_backoff_ms', 500),
      ],
    )
    try:
      self.what = wire.Description.unpack(self._call('Describe', b''))
    except wire.WireError:
      raise errors.UserError(
        f'{address}: answers as no relay of version {wire.VERSION} does'
      ) from None
    self.slots = self.what.slots
    self.states: dict[int, tuple[int, np.ndarray]] = {}
    self.sent = self.received = self.positions = self.handed = 0
    self.seconds: list[float] = []
    self._ids = [uuid.uuid4().bytes for _ in range(self.slots)]
    self._used: set[int] = set()
    self._goodbyes: list[grpc.Future] = []

  def run(
    self,
    work: Sequence[engine_lib.Work],
    inputs: Any,
    policy: sampling_lib.Policy,
    wanted: Sequence[int] = (),
    stays: Sequence[int] = (),
  ) -> tuple[np.ndarray, np.ndarray]:
    """Lets the server compute positions; see decoding.Stage.

    Raises:
      decoding.LostError: if it no longer holds earlier positions of some rows.
      decoding.BusyError: if it has no place for some rows.
      decoding.DownError: if it is gone, refuses, or its reply makes no sense.
    """
    if stays:
      raise errors.UserError(
        "fill: 'propagate' is not allowed in a relay; it must be 'defer'"
      )
    if not isinstance(inputs, dict):  # Tokens, of the first server.
      inputs = {
        w.slot: (w.start, np.asarray(part, np.int32))
        for w, part in zip(work, inputs, strict=True)
      }
    tokens = np.zeros(len(work), np.int32)
    confidence = np.zeros(len(work), np.float32)
    index = {w.slot: place for place, w in enumerate(work)}
    for now in self._messages(work):
      places = [index[part.slot] for part in now]
      # A row's states are asked for with its last positions.
      first = [
        wanted[place] if part.end == work[place].end else part.end
        for place, part in zip(places, now, strict=True)
      ]
      own = []
      for part in now:
        begin, values = inputs[part.slot]
        own.append(values[part.start - begin : part.end - begin])
      tick = time.monotonic()
      reply = self._ask('Advance', now, policy, first, np.concatenate(own))
      self.seconds.append(time.monotonic() - tick)
      self.positions += sum(part.length for part in now)
      tokens[places], confidence[places] = reply.tokens, reply.confidence
      going = [
        part.after(begin - part.start)
        for part, begin, c in zip(now, first, reply.confidence, strict=True)
        if c < policy.threshold and not self.what.last and begin < part.end
      ]
      for w, states in zip(going, self._all(going, reply.states), strict=True):
        self.states[w.slot] = w.start, states
        self.handed += len(states)
    return tokens, confidence

  def forget(self, slot: int) -> None:
    """Ends a row: the server may free its slot."""
    old, self._ids[slot] = self._ids[slot], uuid.uuid4().bytes
    self.states.pop(slot, None)
    if slot in self._used:
      self._used.remove(slot)
      self._release(old)

  def close(self) -> None:
    """Ends all rows and closes the connection."""
    self._release(b''.join(self._ids[slot] for slot in sorted(self._used)))
    until = time.monotonic() + _GOODBYE
    for goodbye in self._goodbyes:
      with contextlib.suppress(grpc.RpcError, grpc.FutureTimeoutError):
        goodbye.result(max(0.0, until - time.monotonic()))
    self._channel.close()

  def _release(self, ids: bytes) -> None:
    """Tells the server that rows are done, and does not wait for an answer."""
    if self._down or not ids:
      return
    call = self._channel.unary_unary(f'/{wire.SERVICE}/Release')
    self._goodbyes = [g for g in self._goodbyes if not g.done()]
    self._goodbyes.append(call.future(ids, timeout=_GOODBYE))

  def _messages(
    self, work: Sequence[engine_lib.Work]
  ) -> Iterator[list[engine_lib.Work]]:
    """Yields the positions of each message.

    A row is split where the server's passes end, so that these are the same as
    of a single message.
    """
    most = wire.positions(self.what.width)
    span = min(self.what.span, most)
    left = list(work)
    while left:
      room, now, later = most, [], []
      for w in left:
        length = w.length if w.length <= room else room // span * span
        if length:
          now.append(w._replace(length=length))
        if length < w.length:
          later.append(w.after(length))
        room -= length
      left = later
      yield now

  def _ask(
    self,
    name: str,
    work: Sequence[engine_lib.Work],
    policy: sampling_lib.Policy,
    wanted: Sequence[int],
    inputs: np.ndarray | None = None,
  ) -> wire.Reply:
    """Returns the server's reply to a request for some rows."""
    slots = np.array([w.slot for w in work])
    request = wire.Request(
      fingerprint=self.what.fingerprint,
      index=self.what.index,
      ids=np.stack([np.frombuffer(self._ids[s], np.uint8) for s in slots]),
      starts=np.array([w.start for w in work]),
      lengths=np.array([w.length for w in work]),
      wanted=np.array(wanted),
      rows=np.array([w.row for w in work]),
      inputs=inputs,
      policy=policy,
      dtype=self._dtype,
    )
    content = wire.pack_request(request, self._dtype)
    answer = self._call(name, content, slots.tolist())
    self._used.update(slots.tolist())
    self.sent += len(content)
    self.received += len(answer)
    try:
      reply = wire.unpack_reply(answer, request, self.what)
    except wire.WireError as error:
      self._down = True
      raise decoding.DownError(f'{self.address}: {error}') from None
    if reply.lost.any():
      raise decoding.LostError(slots[reply.lost].tolist())
    if reply.busy.any():
      raise decoding.BusyError(
        self.address, slots[reply.busy].tolist(), self.patience
      )
    return reply

  def _all(
    self, going: Sequence[engine_lib.Work], states: np.ndarray
  ) -> list[np.ndarray]:
    """Returns the states of each row that goes on.

    `states` are those of the reply; those that it had no room for are asked for.
    """
    found: dict[int, list[np.ndarray]] = {}
    left = []
    for w in going:
      found[w.slot], states = [states[: w.length]], states[w.length :]
      had = len(found[w.slot][0])
      if had < w.length:
        left.append(w.after(had))
    for now in self._messages(left):
      states = self._ask(
        'States', now, sampling_lib.Policy(), [w.start for w in now]
      ).states
      for w in now:
        found[w.slot].append(states[: w.length])
        states = states[w.length :]
    return [np.concatenate(pieces) for pieces in found.values()]

  def _call(
    self, name: str, content: bytes, slots: Sequence[int] = ()
  ) -> bytes:
    """Calls the server; waits for one that may come back.

    Raises:
      BusyError: if it has too many calls under way, and the call is of rows.
      DownError: if it does not come back, or refuses.
    """
    call = self._channel.unary_unary(f'/{wire.SERVICE}/{name}')
    until = time.monotonic() + self.patience
    waits = False
    while True:
      try:
        return bytes(call(content, timeout=_CALL))
      except grpc.RpcError as error:
        code, detail = error.code(), error.details()
        if code == grpc.StatusCode.UNAVAILABLE and detail == wire.COMPILING:
          if not waits:
            self._say(f'{self.address}: is compiling; waiting for it')
          waits, until = True, time.monotonic() + self.patience
        full = code == grpc.StatusCode.RESOURCE_EXHAUSTED
        if full and slots:
          raise decoding.BusyError(self.address, slots, self.patience) from None
        again = full or code == grpc.StatusCode.UNAVAILABLE
        if not again or time.monotonic() > until:
          self._down = True
          raise decoding.DownError(
            f'{self.address}: {code.name}, {detail}'
          ) from None
        time.sleep(0.1)


def check_addresses(addresses: Sequence[str]) -> None:
  """Refuses addresses that are none, or not HOST:PORT each."""
  if not addresses:
    raise errors.UserError(
      '--servers: mode relay needs HOST:PORT of each segment, in order'
    )
  for address in addresses:
    host, _, port = address.rpartition(':')
    if not host or not (port.isdecimal() and 0 < int(port) < 2**16):
      raise errors.UserError(
        f'--servers: {address!r} is not HOST:PORT, as localhost:7000'
      )


@contextlib.contextmanager
def connect(
  addresses: Sequence[str],
  *,
  dtype: str = 'float32',
  patience: float = _PATIENCE,
  say: Callable[[str], None] = lambda line: None,
) -> Iterator[list[Remote]]:
  """Yields the stages of a chain of servers, first to last; closes them after.

  Args:
    addresses: HOST:PORT of each.
    dtype: type of the states in messages.
    patience: seconds to wait for a server that does not answer.
    say: receives a line if a server does not, and the chain ends before it, if
      one is compiling, or if they are fewer than the segments.

  Raises:
    UserError: if the first does not answer, or they are not the segments of
      one family, in order.
  """
  check_addresses(addresses)
  stages: list[Remote] = []
  with contextlib.ExitStack() as stack:
    for place, address in enumerate(addresses):
      try:
        stage = Remote(address, dtype=dtype, patience=patience, say=say)
      except decoding.DownError as error:
        if not stages:
          raise errors.UserError(f'no relay answers at {error}') from None
        say(f'no relay answers at {error}; going on with the exits before it')
        break
      stack.callback(stage.close)
      stages.append(stage)
      what, first = stage.what, stages[0].what
      if what.fingerprint != first.fingerprint:
        raise errors.UserError(
          f'{address}: serves model {what.fingerprint}, and {addresses[0]} '
          f'serves {first.fingerprint}'
        )
      if (what.index, what.exits) != (place, first.exits):
        raise errors.UserError(
          f'{address}: serves segment {what.index} of exits '
          f'{list(what.exits)}; segment {place} of {list(first.exits)} is '
          'needed there'
        )
    exits = stages[0].what.exits
    if len(addresses) < len(exits):
      say(
        f'--servers: {len(addresses)} of the {len(exits)} segments; exit '
        f'{exits[len(addresses) - 1]} is the deepest that answers, not '
        f'{exits[-1]}'
      )
    yield stages
