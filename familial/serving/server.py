"""A segment served over gRPC: it takes positions in, and hands states on.

Three calls: Describe (what is served), Advance (a wire.Request to a wire.Reply)
and Release (rows that are done). A server opens no connections and holds no
queue of its own: it has so many slots, and says no when they are taken. A row
that nobody has asked about for a while gives its slot to the next one; whose it
was hears that it is lost, and begins it again.
"""

from collections.abc import Callable
from collections.abc import Iterator
from concurrent import futures
import contextlib
import functools
import json
import threading
import time
from typing import Any

import grpc
import numpy as np

from familial import errors
from familial.serving import segments
from familial.serving import tier as tier_lib
from familial.serving import wire

SERVICE = 'familial.Relay'
_IDLE_SECONDS = 60.0  # after which a row may lose its slot to another
_CALLS = 16  # under way at once


class FullError(Exception):
  """Why no further row is taken."""


class Relay:
  """A segment with rows that are known by ids, not by slots.

  Its methods may be called from several threads; one is served at a time.
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
    self._lock = threading.Lock()
    self._clock = clock
    self._slots: dict[bytes, int] = {}
    self._used: dict[bytes, float] = {}
    self._free = list(range(slots))[::-1]

  @property
  def most_bytes(self) -> int:
    """Of a message: every slot's whole context, and a header."""
    tier = self.tier
    state = 4 * tier.segment.model.width + 4
    return wire.HEADER + tier.slots * (tier.context * state + 64)

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
      'bytes': segments.nbytes(segment),
    }

  def advance(self, content: bytes) -> bytes:
    """Answers a request.

    Raises:
      WireError: if it is not a request to this segment.
      FullError: if it opens more rows than there are slots.
    """
    tier, segment = self.tier, self.tier.segment
    request = wire.unpack_request(
      content, segment.model.width, segment.first, segment.model.vocab_size,
      tier.context, tier.slots,
    )  # fmt: skip
    if (request.fingerprint, request.index) != (
      segment.fingerprint,
      segment.index,
    ):
      raise wire.WireError(
        f'segment {request.index} of model {request.fingerprint!r} is not '
        f'here; this is segment {segment.index} of {segment.fingerprint}'
      )
    ids = [row.tobytes() for row in request.ids]
    with self._lock:
      lost = np.array(
        [
          start > (tier.seen[self._slots[id_]] if id_ in self._slots else 0)
          for id_, start in zip(ids, request.starts, strict=True)
        ]
      )
      nothing = np.zeros((0, segment.model.width), np.float32)
      if lost.any():
        none = np.zeros(len(ids))
        return wire.pack_reply(
          wire.Reply(lost, none, none, nothing), request.dtype
        )
      self._open(ids)
      work = [
        tier_lib.Work(self._slots[id_], int(start), int(length), int(row))
        for id_, start, length, row in zip(
          ids, request.starts, request.lengths, request.rows, strict=True
        )
      ]
      inputs = np.split(request.inputs, np.cumsum(request.lengths)[:-1])
      tokens, sure = tier.run(work, inputs, request.policy)
      going = [
        w._replace(start=first, length=w.start + w.length - first)
        for w, first, c in zip(work, request.wanted.tolist(), sure, strict=True)
        if c < request.policy.threshold and first < w.start + w.length
      ]
      states = [nothing]
      if going and not segment.last:
        states = tier.take(going)
    return wire.pack_reply(
      wire.Reply(lost, tokens, sure, np.concatenate(states)), request.dtype
    )

  def release(self, content: bytes) -> bytes:
    """Frees the slots of rows, 16 bytes of id each; unknown ones are none."""
    if len(content) % wire.ID_BYTES:
      raise wire.WireError(f'{len(content)} bytes are not ids of 16')
    with self._lock:
      for first in range(0, len(content), wire.ID_BYTES):
        self._drop(content[first : first + wire.ID_BYTES])
    return b''

  def _open(self, ids: list[bytes]) -> None:
    """Gives a slot to each row that has none, or to none of them."""
    now = self._clock()
    fresh = [id_ for id_ in ids if id_ not in self._slots]
    idle = [
      id_
      for id_, used in sorted(self._used.items(), key=lambda item: item[1])
      if now - used > _IDLE_SECONDS and id_ not in ids
    ]
    short = len(fresh) - len(self._free)
    if short > len(idle):
      raise FullError(
        f'{len(self._slots)} of {self.tier.slots} rows are open, and '
        f'{len(fresh)} more are asked for; try again'
      )
    for id_ in idle[: max(short, 0)]:
      self._drop(id_)
    for id_ in fresh:
      self._slots[id_] = self._free.pop()
    for id_ in ids:
      self._used[id_] = now

  def _drop(self, id_: bytes) -> None:
    slot = self._slots.pop(id_, None)
    if slot is not None:
      del self._used[id_]
      self.tier.forget(slot)
      self._free.append(slot)


@contextlib.contextmanager
def serve(relay: Relay, port: int, host: str = 'localhost') -> Iterator[int]:
  """Serves a relay; yields the port.

  Nothing is encrypted and nobody asked who they are: a host that others reach
  belongs behind what does both.

  Args:
    relay: to serve.
    port: to listen on; 0 for any that is free.
    host: address to listen on.

  Raises:
    UserError: if the port is taken.
  """
  size = relay.most_bytes
  server = grpc.server(
    futures.ThreadPoolExecutor(_CALLS),
    options=[
      ('grpc.max_receive_message_length', size),
      ('grpc.max_send_message_length', size),
      ('grpc.so_reuseport', 0),  # A port that is taken is refused.
    ],
    maximum_concurrent_rpcs=4 * _CALLS,
  )
  calls: dict[str, Callable[[bytes], bytes]] = {
    'Describe': lambda _: json.dumps(relay.describe()).encode(),
    'Advance': relay.advance,
    'Release': relay.release,
  }
  server.add_generic_rpc_handlers(
    [
      grpc.method_handlers_generic_handler(
        SERVICE,
        {
          name: grpc.unary_unary_rpc_method_handler(
            functools.partial(_answer, call)
          )
          for name, call in calls.items()
        },
      )
    ]
  )
  try:
    bound = server.add_insecure_port(f'{host}:{port}')
  except RuntimeError:
    bound = 0
  if not bound:
    raise errors.UserError(f'port: {host}:{port} is in use, or not to be had')
  server.start()
  try:
    yield bound
  finally:
    server.stop(grace=1.0).wait()


def _answer(
  call: Callable[[bytes], bytes], content: bytes, context: grpc.ServicerContext
) -> bytes:
  """Calls, and turns what is refused into a status."""
  try:
    return call(content)
  except wire.WireError as error:
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
  except FullError as error:
    context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
  raise AssertionError('abort raises')
