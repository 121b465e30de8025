"""A segment served over gRPC: it takes positions in, and hands states on.

Four calls: Describe (what is served), Advance (a wire.Request to a wire.Reply),
States (of positions that are held, where a reply had no room for them) and
Release (rows that are done). A server opens no connections and holds no queue
of its own: it has so many slots, and says of which rows of a request it has no
place for. A row that nobody has asked about for a while gives its slot to the
next one; whose it was hears that it is lost, and begins it again.
"""

import asyncio
from collections.abc import AsyncIterator
from collections.abc import Callable
from collections.abc import Coroutine
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
import contextlib
import functools
import json
import socket
import threading
import time
import traceback
from typing import Any
from typing import TypeVar

import grpc
import numpy as np

from familial.convert import segments
from familial.core import errors
from familial.relay import wire
from familial.serving import engine as tier_lib

T = TypeVar('T')
SERVICE = 'familial.Relay'
_IDLE_SECONDS = 4.0  # after which a row may lose its slot to another
_READ_SECONDS = 20.0  # that a client may take to send what it asks
_CALLS = 256  # under way at once
_STREAMS = 64  # of them, over one connection
# Of both ends: a connection whose other end is frozen is given up.
KEEPALIVE = [
  ('grpc.keepalive_time_ms', 10_000),
  ('grpc.keepalive_timeout_ms', 5_000),
  ('grpc.http2.max_pings_without_data', 0),
]
SIZES = [
  ('grpc.max_receive_message_length', wire.LARGEST),
  ('grpc.max_send_message_length', wire.LARGEST),
]


class Relay:
  """A segment with rows that are known by ids, not by slots.

  One thread at a time may call it; `describe` may be called beside that.
  """

  def __init__(
    self,
    segment: segments.Segment,
    slots: int,
    context: int,
    *,
    rows: int = 0,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Allocates the caches.

    Args:
      segment: to serve.
      slots: rows that may be open.
      context: positions a row may have.
      rows: of a pass; see Tier.
      clock: seconds.
    """
    self.tier = tier_lib.Tier(segment, slots, context, rows=rows)
    self._clock = clock
    self._slots: dict[bytes, int] = {}
    self._used: dict[bytes, float] = {}  # The longest idle first.
    self._free = list(range(slots))[::-1]

  def describe(self) -> dict[str, Any]:
    """Returns what is served, as a client needs to know it."""
    tier, segment = self.tier, self.tier.segment
    return {
      'version': wire.VERSION,
      'fingerprint': segment.fingerprint,
      'exits': list(segment.exits),
      'index': segment.index,
      'width': segment.model.width,
      'vocab_size': segment.model.vocab_size,
      'slots': tier.slots,
      'context': tier.context,
      'span': tier.slack,
      'tokenizer': segment.tokenizer,
    }

  def advance(self, content: bytes) -> bytes:
    """Answers a request.

    Raises:
      WireError: if it is not a request to this segment.
    """
    tier, segment = self.tier, self.tier.segment
    request = self._read(content)
    ids = [row.tobytes() for row in request.ids]
    lost = self._lost(ids, request.starts)
    if lost.any():
      return self._reply(request, lost=lost)
    with self._whole():
      busy = self._open(ids)
      if busy.any():
        return self._reply(request, busy=busy)
      work = self._work(ids, request)
      assert request.inputs is not None
      inputs = np.split(request.inputs, np.cumsum(request.lengths)[:-1])
      tokens, sure = tier.run(work, inputs, request.policy)
      going = [
        w._replace(start=first, length=w.start + w.length - first)
        for w, first, c in zip(work, request.wanted.tolist(), sure, strict=True)
        if c < request.policy.threshold and first < w.start + w.length
      ]
      return self._reply(
        request, () if segment.last else going, tokens=tokens, confidence=sure
      )

  def states(self, content: bytes) -> bytes:
    """Answers a request without inputs: with the states of its positions.

    Raises:
      WireError: if it is not a request to this segment, or it is the last.
    """
    request = self._read(content, bare=True)
    if self.tier.segment.last:
      raise wire.WireError('the last segment hands no states on')
    ids = [row.tobytes() for row in request.ids]
    lost = self._lost(ids, request.starts + request.lengths)
    if lost.any():
      return self._reply(request, lost=lost)
    with self._whole():
      return self._reply(request, self._work(ids, request))

  def release(self, content: bytes) -> bytes:
    """Frees the slots of rows, 16 bytes of id each; unknown ones are none."""
    if len(content) % wire.ID_BYTES:
      raise wire.WireError(f'{len(content)} bytes are not ids of 16')
    with self._whole():
      for first in range(0, len(content), wire.ID_BYTES):
        self._drop(content[first : first + wire.ID_BYTES])
    return b''

  def _read(self, content: bytes, bare: bool = False) -> wire.Request:
    """Returns a request to this segment."""
    tier, segment = self.tier, self.tier.segment
    request = wire.unpack_request(
      content, segment.model.width, segment.first, segment.model.vocab_size,
      tier.context, tier.slots, bare=bare,
    )  # fmt: skip
    if (request.fingerprint, request.index) != (
      segment.fingerprint,
      segment.index,
    ):
      raise wire.WireError(
        f'segment {request.index} of model {request.fingerprint!r} is not '
        f'here; this is segment {segment.index} of {segment.fingerprint}'
      )
    return request

  def _work(
    self, ids: Sequence[bytes], request: wire.Request
  ) -> list[tier_lib.Work]:
    return [
      tier_lib.Work(self._slots[id_], int(start), int(length), int(row))
      for id_, start, length, row in zip(
        ids, request.starts, request.lengths, request.rows, strict=True
      )
    ]

  def _reply(
    self,
    request: wire.Request,
    going: Sequence[tier_lib.Work] = (),
    **known: np.ndarray,
  ) -> bytes:
    """Returns a reply, with as many states as it may have."""
    width = self.tier.segment.model.width
    room, fitting = wire.positions(width), []
    for work in going:
      if room:
        fitting.append(work._replace(length=min(work.length, room)))
        room -= fitting[-1].length
    states = [np.zeros((0, width), np.float32), *self.tier.take(fitting)]
    none = np.zeros(len(request.ids))
    reply = {
      'lost': none, 'busy': none, 'tokens': none, 'confidence': none, **known
    }  # fmt: skip
    return wire.pack_reply(
      wire.Reply(**reply, states=np.concatenate(states)), request.dtype
    )

  def _lost(self, ids: Sequence[bytes], ends: np.ndarray) -> np.ndarray:
    """Returns which rows do not hold all positions before an end."""
    seen = self.tier.seen
    return np.array(
      [
        end > (seen[self._slots[id_]] if id_ in self._slots else 0)
        for id_, end in zip(ids, ends, strict=True)
      ]
    )

  def _open(self, ids: Sequence[bytes]) -> np.ndarray:
    """Gives a slot to each row that has none; returns which still have none."""
    now = self._clock()
    for id_ in ids:
      if id_ in self._used:
        self._use(id_, now)
    for id_ in ids:
      if id_ not in self._slots:
        oldest = next(iter(self._used), b'')
        if not self._free and now - self._used[oldest] > _IDLE_SECONDS:
          self._drop(oldest)
        if self._free:
          self._slots[id_] = self._free.pop()
          self._use(id_, now)
    return np.array([id_ not in self._slots for id_ in ids])

  def _use(self, id_: bytes, now: float) -> None:
    self._used.pop(id_, None)
    self._used[id_] = now

  def _drop(self, id_: bytes) -> None:
    slot = self._slots.pop(id_, None)
    if slot is not None:
      del self._used[id_]
      self.tier.forget(slot)
      self._free.append(slot)

  @contextlib.contextmanager
  def _whole(self) -> Iterator[None]:
    """Begins anew with no rows if what is done with the caches fails: they may
    be half written, or given away."""
    try:
      yield
    except Exception:
      self._slots.clear()
      self._used.clear()
      self._free = list(range(self.tier.slots))[::-1]
      self.tier.reset()
      raise


@contextlib.contextmanager
def serve(relay: Relay, port: int, host: str = '127.0.0.1') -> Iterator[int]:
  """Serves a relay; yields the port.

  Nothing is encrypted and nobody asked who they are: a host that others reach
  belongs behind what does both.

  Args:
    relay: to serve.
    port: to listen on; 0 for any that is free.
    host: address to listen on, or a name of one.

  Raises:
    UserError: if the port is taken, or there is no such host.
  """
  # One thread computes, in the order of arrival; who hangs up while waiting is
  # not computed for.
  with futures.ThreadPoolExecutor(1) as compute:
    server, bound = _await(_start(relay, compute, _address(host, port)))
    try:
      yield bound
    finally:
      _await(server.stop(grace=1.0))


def _address(host: str, port: int) -> str:
  """Returns the one address that a host means, with the port.

  Bound by name, one address of several would do, and the others would be
  whoever's.
  """
  try:
    found = socket.getaddrinfo(
      host.strip('[]'), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
  except OSError as error:
    raise errors.UserError(f'host: {host!r} is no address: {error}') from None
  # Of a name's addresses clients know the old kind best.
  family, *_, where = min(found, key=lambda entry: entry[0] != socket.AF_INET)
  text = f'[{where[0]}]' if family == socket.AF_INET6 else where[0]
  return f'{text}:{port}'


async def _start(
  relay: Relay, compute: futures.Executor, address: str
) -> tuple[grpc.aio.Server, int]:
  """Returns a server that listens, and its port."""

  def handler(call: Callable[[bytes], bytes]) -> grpc.RpcMethodHandler:
    async def answer(
      requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> bytes:
      try:
        content = await asyncio.wait_for(anext(requests), _READ_SECONDS)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(compute, call, content)
      except (TimeoutError, StopAsyncIteration):
        code, detail = grpc.StatusCode.DEADLINE_EXCEEDED, 'nothing was asked'
      except wire.WireError as error:
        code, detail = grpc.StatusCode.INVALID_ARGUMENT, _plain(str(error))
      except Exception:
        traceback.print_exc()
        code, detail = grpc.StatusCode.INTERNAL, 'the server failed at it'
      await context.abort(code, detail)
      raise AssertionError('abort raises')

    # A unary call to its client; but read here, where there is a time limit.
    return grpc.stream_unary_rpc_method_handler(answer)

  async def describe(
    requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
  ) -> bytes:
    del requests, context  # Nothing is asked: nobody has to wait for it.
    return json.dumps(relay.describe()).encode()

  server = grpc.aio.server(
    options=[
      *SIZES,
      *KEEPALIVE,
      ('grpc.keepalive_permit_without_calls', 1),
      ('grpc.http2.min_ping_interval_without_data_ms', 5_000),
      ('grpc.max_concurrent_streams', _STREAMS),
      ('grpc.so_reuseport', 0),  # A port that is taken is refused.
    ],
    maximum_concurrent_rpcs=_CALLS,
  )
  server.add_generic_rpc_handlers(
    [
      grpc.method_handlers_generic_handler(
        SERVICE,
        {
          'Describe': grpc.stream_unary_rpc_method_handler(describe),
          'Advance': handler(relay.advance),
          'States': handler(relay.states),
          'Release': handler(relay.release),
        },
      )
    ]
  )
  try:
    bound = server.add_insecure_port(address)
  except RuntimeError:
    bound = 0
  if not bound:
    raise errors.UserError(f'port: {address} is in use, or not to be had')
  await server.start()
  return server, bound


def _plain(text: str) -> str:
  """Returns what a status can say: a line, whatever a client had sent."""
  return text.encode('ascii', 'backslashreplace').decode()[:400]


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
  """Returns the loop on which all servers of this process listen."""
  loop = asyncio.new_event_loop()
  threading.Thread(target=loop.run_forever, name='relay', daemon=True).start()
  return loop


def _await(work: Coroutine[Any, Any, T]) -> T:
  return asyncio.run_coroutine_threadsafe(work, _loop()).result()
