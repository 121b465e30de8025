import contextlib
import socket
import threading
import time

import grpc
import numpy as np
import pytest

from familial.core import errors
from familial.relay import client
from familial.relay import server
from familial.relay import wire
from familial.serving import decoding
from familial.serving import forward
from tests.relay.relays import LIMITS
from tests.relay.relays import POLICY
from tests.relay.relays import ask
from tests.relay.relays import chain
from tests.relay.relays import connected
from tests.relay.relays import relay
from tests.relay.relays import whole


def test_a_request_to_another_model_or_segment_is_refused():
  one = relay(1)
  states = np.zeros((2, one.tier.segment.model.width), np.float32)
  for wrong in ({'fingerprint': 'f00d'}, {'index': 2}, {'index': 0}):
    with pytest.raises(wire.WireError, match='this is segment 1'):
      ask(one, [1], [0], [states], **wrong)
  assert not one.tier.seen.any()


def test_rows_beyond_the_slots_are_refused_until_others_are_idle():
  now = [0.0]
  one = relay(0, slots=2, clock=lambda: now[0])
  text = np.arange(3)
  ask(one, [1], [0], [text])
  now[0] = 3.0
  # One has a place, and the other has none: neither is taken in yet.
  both = ask(one, [2, 3], [0, 0], [text, text])
  assert both.busy.tolist() == [False, True] and one.tier.seen.max() == 3
  assert not ask(one, [2], [0], [text]).busy.any()
  assert ask(one, [3], [0], [text]).busy.tolist() == [True]
  now[0] = 5.0  # The first one has been idle for long enough.
  assert not ask(one, [3], [0], [text]).busy.any()
  assert ask(one, [1, 2], [3, 3], [text, text]).lost.tolist() == [True, False]
  # Nothing of a request is taken in if a row of it is lost.
  assert ask(one, [2], [4], [text]).lost.tolist() == [True]
  one.release(bytes([2]) * 16 + bytes([9]) * 16)
  assert ask(one, [1], [0], [text]).lost.tolist() == [False]
  with pytest.raises(wire.WireError, match='15 bytes'):
    one.release(bytes(15))


def test_bad_bytes_get_a_status_and_the_server_lives(prompts):
  rng = np.random.default_rng(0)
  served = relay(0)
  with chain([served]) as [address]:
    channel = grpc.insecure_channel(address)
    call = channel.unary_unary(f'/{server.SERVICE}/Advance')
    for size in (0, 1, 8, 100, 5000):
      with pytest.raises(grpc.RpcError) as raised:
        call(rng.bytes(size), timeout=10)
      assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
      assert raised.value.details()
    with pytest.raises(grpc.RpcError) as raised:
      call(bytes(wire.LARGEST + 1), timeout=10)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.RpcError) as raised:
      channel.unary_unary(f'/{server.SERVICE}/Format')(b'', timeout=10)
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
    # A client that hangs up in the middle leaves nothing behind.
    with connected([address]) as [stage]:
      content = np.arange(4)
      stage.run([decoding.tier_lib.Work(0, 0, 4, 0)], [content], POLICY, [0])
      stage._channel.close()
      stage._channel = grpc.insecure_channel(address)
    with connected([address]) as stages:
      found = decoding.generate(stages, prompts, **LIMITS, policy=POLICY)
  tiers = whole().tiers(6, 1, rows=3)
  assert found == decoding.generate(tiers, prompts, **LIMITS, policy=POLICY)


def test_a_port_in_use_is_refused():
  """By whomever, and though a name has another address where it is free."""
  one = relay(0, slots=1)
  with socket.create_server(('127.0.0.1', 0)) as other:
    port = other.getsockname()[1]
    for host in ('127.0.0.1', 'localhost', '[::]'):
      with pytest.raises(errors.UserError, match=f'{port} is in use'):
        with server.serve(one, port, host):
          pass
  with chain([one]) as [address]:
    port = int(address.rpartition(':')[2])
    with pytest.raises(errors.UserError, match=f'{port} is in use'):
      with server.serve(one, port):
        pass
  with pytest.raises(errors.UserError, match='no address'):
    with server.serve(one, 0, 'no such host'):
      pass


@contextlib.contextmanager
def silent(address, names):
  """Begins calls that say nothing; a connection of their own."""
  done = threading.Event()

  def nothing():
    done.wait(30)
    yield from ()

  channel = grpc.insecure_channel(
    address, [('grpc.use_local_subchannel_pool', 1)]
  )
  try:
    yield [
      channel.stream_unary(f'/{server.SERVICE}/{name}').future(nothing())
      for name in names
    ]
  finally:
    done.set()
    channel.close()


def test_silent_calls_keep_nobody_else_waiting(monkeypatch):
  monkeypatch.setattr(server, '_READ_SECONDS', 2.0)
  names = ['Advance', 'Describe', 'Release'] * 30
  with chain([relay(0)]) as [address], silent(address, names) as calls:
    time.sleep(0.3)
    tick = time.monotonic()
    with connected([address]) as stages:
      assert time.monotonic() - tick < 1.0
      decoding.generate(stages, [[1, 2]], **LIMITS, policy=POLICY)
    assert calls[0].code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - tick < 20.0


def test_too_many_calls_are_waited_for(monkeypatch):
  monkeypatch.setattr(server, '_READ_SECONDS', 1.0)
  monkeypatch.setattr(server, '_CALLS', 1)
  names = ['Advance'] * 2
  with chain([relay(0)]) as [address], silent(address, names) as held:
    time.sleep(0.2)
    tick = time.monotonic()
    [stage] = client.connect([address], patience=20.0)
    stage.close()
    assert 0.3 < time.monotonic() - tick
    # Which of the two came first is not said.
    assert {call.code() for call in held} == {
      grpc.StatusCode.DEADLINE_EXCEEDED,
      grpc.StatusCode.RESOURCE_EXHAUSTED,
    }


def test_after_a_pass_that_fails_rows_begin_again(prompts, monkeypatch, capsys):
  """One failure, after the caches were given away: as of memory that ends."""
  served = relay(0)
  with chain([served]) as [address]:
    with connected([address]) as old, connected([address]) as new:
      old[0].run([decoding.tier_lib.Work(0, 0, 4, 0)], [[1] * 4], POLICY, [0])
      advance = forward.advance

      def fail(*args):
        advance(*args)
        monkeypatch.undo()
        raise RuntimeError('out of memory at 0xf00d')

      monkeypatch.setattr(forward, 'advance', fail)
      with pytest.raises(errors.UserError, match='INTERNAL') as raised:
        decoding.generate(new, prompts, **LIMITS, policy=POLICY)
      assert 'f00d' not in str(raised.value)
      assert 'f00d' in capsys.readouterr().err
      with pytest.raises(decoding.LostError):
        old[0].run([decoding.tier_lib.Work(0, 4, 1, 0)], [[1]], POLICY, [0])
      found = decoding.generate(new, prompts, **LIMITS, policy=POLICY)
  tiers = whole().tiers(6, 1, rows=3)
  assert found == decoding.generate(tiers, prompts, **LIMITS, policy=POLICY)


def test_nothing_is_compiled_for_the_first_request():
  one = relay(1, slots=5, rows=2)
  one.tier.warm()
  before = forward.advance._cache_size(), forward.cut._cache_size()
  width = one.tier.segment.model.width
  for length in (1, 3, 4, 9):
    states = np.zeros((length, width), np.float32)
    ask(one, [1], [0], [states], wanted=np.array([0]))
  assert (forward.advance._cache_size(), forward.cut._cache_size()) == before
