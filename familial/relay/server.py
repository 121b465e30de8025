"""The server of a relay: a segment served over gRPC.

Four calls: Describe (a wire.Description), Advance (a wire.Request to a
wire.Reply), States (of positions that are held, where a reply had no room for
them) and Release (rows that are done). A server opens no connections and keeps
no queue: it has a number of slots, and says which rows of a request have no
place. A row that has been idle for a while loses its slot to one that needs it;
its client is told that it is lost, and sends its tokens again.
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
from familial.serving import engine as engine_lib

T = TypeVar('T')
_IDLE_SECONDS = 4.0  # after which a row may lose its slot to another
_CALLS = 256  # under way at once
_STREAMS = 64  # of them, over one connection


class Relay:
  """A segment with rows that are identified by ids, not by slots.

  One thread at a time may call it; `description` may be read beside that.

  Attributes:
    engine: the segment's engine.
    description: what is served.
    compiling: whether calls are turned away, because programs are compiled.
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
      segment: the segment to serve.
      slots: number of rows that may be open.
      context: largest number of positions of a row.
      rows: rows of a pass; see Engine.
      clock: time in seconds.
    """
    self.engine = engine_lib.Engine(segment, slots, context, rows=rows)
    self.description = wire.Description(
      version=wire.VERSION,
      fingerprint=segment.fingerprint,
      exits=segment.exits,
      index=segment.index,
      width=segment.model.width,
      vocab_size=segment.model.vocab_size,
      slots=slots,
      context=context,
      span=self.engine.slack,
      tokenizer=segment.tokenizer,
    )
    self.compiling = False
    self._clock = clock
    # Slot and time of the last use by id, the longest idle first.
    self._rows: dict[bytes, tuple[int, float]] = {}
    self._free = list(range(slots))[::-1]

  def advance(self, content: bytes) -> bytes:
    """Answers a request.

    Raises:
      WireError: if it is not a request to this segment.
    """
    request = wire.unpack_request(content, self.description)
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
      tokens, sure = self.engine.run(work, inputs, request.policy)
      going = [
        w._replace(start=first, length=w.end - first)
        for w, first, c in zip(work, request.wanted.tolist(), sure, strict=True)
        if c < request.policy.threshold and first < w.end
      ]
      if self.description.last:
        going = []
      return self._reply(request, going, tokens=tokens, confidence=sure)

  def states(self, content: bytes) -> bytes:
    """Answers a request without inputs with the states of its positions.

    Raises:
      WireError: if it is not a request to this segment, or it is the last.
    """
    request = wire.unpack_request(content, self.description, bare=True)
    if self.description.last:
      raise wire.WireError('the last segment hands no states on')
    ids = [row.tobytes() for row in request.ids]
    lost = self._lost(ids, request.starts + request.lengths)
    if lost.any():
      return self._reply(request, lost=lost)
    with self._whole():
      return self._reply(request, self._work(ids, request))

  def release(self, content: bytes) -> bytes:
    """Frees the slots of rows, 16 bytes of id each; ignores unknown ids."""
    if len(content) % wire.ID_BYTES:
      raise wire.WireError(f'{len(content)} bytes are not ids of 16')
    with self._whole():
      for first in range(0, len(content), wire.ID_BYTES):
        self._drop(content[first : first + wire.ID_BYTES])
    return b''

  def _work(
    self, ids: Sequence[bytes], request: wire.Request
  ) -> list[engine_lib.Work]:
    return [
      engine_lib.Work(self._rows[id_][0], int(start), int(length), int(row))
      for id_, start, length, row in zip(
        ids, request.starts, request.lengths, request.rows, strict=True
      )
    ]

  def _reply(
    self,
    request: wire.Request,
    going: Sequence[engine_lib.Work] = (),
    **known: np.ndarray,
  ) -> bytes:
    """Returns a reply, with as many states as a message may have."""
    width = self.description.width
    room, fitting = wire.positions(width), []
    for work in going:
      if room:
        fitting.append(work._replace(length=min(work.length, room)))
        room -= fitting[-1].length
    states = [np.zeros((0, width), np.float32), *self.engine.take(fitting)]
    names = ('lost', 'busy', 'tokens', 'confidence')
    values = dict.fromkeys(names, np.zeros(len(request.ids))) | known
    reply = wire.Reply(**values, states=np.concatenate(states))
    return wire.pack_reply(reply, request.dtype)

  def _lost(self, ids: Sequence[bytes], ends: np.ndarray) -> np.ndarray:
    """Returns which rows do not hold all positions before an end."""
    seen = self.engine.seen
    held = [seen[self._rows[id_][0]] if id_ in self._rows else 0 for id_ in ids]
    return ends > np.array(held)

  def _open(self, ids: Sequence[bytes]) -> np.ndarray:
    """Gives a slot to each row that has none; returns which still have none."""
    now = self._clock()
    for id_ in ids:
      if id_ in self._rows:
        self._rows[id_] = self._rows.pop(id_)[0], now
    for id_ in ids:
      if id_ not in self._rows:
        if not self._free:
          oldest, (_, used) = next(iter(self._rows.items()))
          if now - used > _IDLE_SECONDS:
            self._drop(oldest)
        if self._free:
          self._rows[id_] = self._free.pop(), now
    return np.array([id_ not in self._rows for id_ in ids])

  def _drop(self, id_: bytes) -> None:
    if id_ in self._rows:
      slot, _ = self._rows.pop(id_)
      self.engine.forget(slot)
      self._free.append(slot)

  @contextlib.contextmanager
  def _whole(self) -> Iterator[None]:
    """Resets to no rows if the work fails, whatever is left of the caches."""
    try:
      yield
    except Exception:
      self._rows.clear()
      self._free = list(range(self.engine.slots))[::-1]
      self.engine.reset()
      raise


@contextlib.contextmanager
def serve(
  relay: Relay,
  port: int,
  host: str = '127.0.0.1',
  *,
  calls: int = _CALLS,
  read_seconds: float = 20.0,
) -> Iterator[int]:
  """Serves a relay; yields the port.

  Nothing is encrypted or authenticated: a host that others reach needs a proxy
  that does both.

  Args:
    relay: the relay to serve.
    port: port to listen on; 0 for any that is free.
    host: address to listen on, or its name.
    calls: number of calls that may be under way.
    read_seconds: time that a client may take to send a request.

  Raises:
    UserError: if the port is taken, or there is no such host.
  """
  # One thread computes, in the order of arrival; a call that was cancelled
  # while it waited is not computed.
  with futures.ThreadPoolExecutor(1) as compute:
    server, bound = _await(
      _start(relay, compute, _address(host, port), calls, read_seconds)
    )
    try:
      yield bound
    finally:
      _await(server.stop(grace=1.0))


def _address(host: str, port: int) -> str:
  """Returns the single address that a host means, with the port.

  Bound by name, the server would accept one of several addresses as enough, and
  the others could belong to another process.
  """
  try:
    found = socket.getaddrinfo(
      host.strip('[]'), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
  except OSError as error:
    raise errors.UserError(f'host: {host!r} is no address: {error}') from None
  # Clients try IPv4 where a name has both.
  family, *_, where = min(found, key=lambda entry: entry[0] != socket.AF_INET)
  text = f'[{where[0]}]' if family == socket.AF_INET6 else where[0]
  return f'{text}:{port}'


async def _start(
  relay: Relay,
  compute: futures.Executor,
  address: str,
  calls: int,
  read_seconds: float,
) -> tuple[grpc.aio.Server, int]:
  """Returns a server that listens, and its port."""

  async def available(context: grpc.aio.ServicerContext) -> None:
    if relay.compiling:
      await context.abort(grpc.StatusCode.UNAVAILABLE, wire.COMPILING)

  def handler(call: Callable[[bytes], bytes]) -> grpc.RpcMethodHandler:
    async def answer(
      requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext
    ) -> bytes:
      await available(context)
      try:
        content = await asyncio.wait_for(anext(requests), read_seconds)
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
    del requests  # Has no request to wait for.
    await available(context)
    return relay.description.pack()

  server = grpc.aio.server(
    options=[
      *wire.OPTIONS,
      ('grpc.keepalive_permit_without_calls', 1),
      ('grpc.http2.min_ping_interval_without_data_ms', 5_000),
      ('grpc.max_concurrent_streams', _STREAMS),
      ('grpc.so_reuseport', 0),  # A port that is taken is refused.
    ],
    maximum_concurrent_rpcs=calls,
  )
  server.add_generic_rpc_handlers(
    [
      grpc.method_handlers_generic_handler(
        wire.SERVICE,
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
  """Returns one ASCII line, as a status needs, of a text from a client."""
  return text.encode('ascii', 'backslashreplace').decode()[:400]


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
  """Returns the event loop of all servers of this process."""
  loop = asyncio.new_event_loop()
  threading.Thread(target=loop.run_forever, name='relay', daemon=True).start()
  return loop


def _await(work: Coroutine[Any, Any, T]) -> T:
  return asyncio.run_coroutine_threadsafe(work, _loop()).result()
