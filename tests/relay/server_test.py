import contextlib
import socket
import threading
import time

import grpc
import jax
import numpy as np
import pytest

from familial.core import errors
from familial.relay import client
from familial.relay import server
from familial.relay import wire
from familial.serving import decoding
from familial.serving import engine
from familial.serving import forward
from tests.relay.relays import LIMITS
from tests.relay.relays import POLICY
from tests.relay.relays import ask
from tests.relay.relays import chain
from tests.relay.relays import connected
from tests.relay.relays import local
from tests.relay.relays import relay
from tests.relay.relays import relayed
from tests.relay.relays import request

ONE = [engine.Work(0, 0, 4, 0)], [np.arange(4)], POLICY, [0]


@pytest.mark.parametrize(
  'wrong', [{'fingerprint': 'f00d'}, {'index': 2}, {'index': 0}]
)
def test_a_request_to_another_segment_is_refused(wrong):
  one = relay(1)
  states = np.zeros((2, one.description.width), np.float32)
  with pytest.raises(wire.WireError, match='this is segment 1'):
    ask(one, [1], [0], [states], **wrong)
  assert not one.engine.seen.any()


def test_rows_beyond_the_slots_are_refused_until_others_are_idle():
  now = [0.0]
  one = relay(0, slots=2, clock=lambda: now[0])
  text = np.arange(3)
  ask(one, [1], [0], [text])
  now[0] = 3.0
  # One has a place, and the other has none: neither is computed yet.
  both = ask(one, [2, 3], [0, 0], [text, text])
  assert both.busy.tolist() == [False, True] and one.engine.seen.max() == 3
  assert not ask(one, [2], [0], [text]).busy.any()
  assert ask(one, [3], [0], [text]).busy.tolist() == [True]
  now[0] = 5.0  # The first one has been idle for long enough.
  assert not ask(one, [3], [0], [text]).busy.any()
  assert ask(one, [1, 2], [3, 3], [text, text]).lost.tolist() == [True, False]
  # Nothing of a request is computed if a row of it is lost.
  assert ask(one, [2], [4], [text]).lost.tolist() == [True]
  one.release(bytes([2]) * 16 + bytes([9]) * 16)
  assert ask(one, [1], [0], [text]).lost.tolist() == [False]
  with pytest.raises(wire.WireError, match='15 bytes'):
    one.release(bytes(15))


def test_bad_bytes_get_a_status_and_the_server_lives(prompts):
  rng, served = np.random.default_rng(0), relay(0)

  def status(channel, name, content):
    call = channel.unary_unary(f'/{wire.SERVICE}/{name}')
    with pytest.raises(grpc.RpcError) as raised:
      call(content, timeout=10)
    return raised.value.code()

  with chain([served]) as [address]:
    with grpc.insecure_channel(address) as channel:
      for size in (0, 1, 8, 100, 5000):
        code = status(channel, 'Advance', rng.bytes(size))
        assert code == grpc.StatusCode.INVALID_ARGUMENT
      code = status(channel, 'Advance', bytes(wire.LARGEST + 1))
      assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
      code = status(channel, 'Format', b'')
      assert code == grpc.StatusCode.UNIMPLEMENTED
    # A client that hangs up in the middle leaves nothing behind.
    with grpc.insecure_channel(address) as channel:
      asked = request(served, [1], [0], [np.arange(4)])
      channel.unary_unary(f'/{wire.SERVICE}/Advance').future(
        wire.pack_request(asked, 'float32')
      )
    assert relayed([address], prompts) == local(prompts, exits=(1,))


def refuse(relay_, port, host, said):
  with pytest.raises(errors.UserError, match=said):
    with server.serve(relay_, port, host):
      pass


def test_a_port_in_use_is_refused():
  """By whomever, and if another address of a name is free."""
  one = relay(0, slots=1)
  with socket.create_server(('127.0.0.1', 0)) as other:
    port = other.getsockname()[1]
    for host in ('127.0.0.1', 'localhost', '[::]'):
      refuse(one, port, host, f'{port} is in use')
  with server.serve(one, 0) as port:
    refuse(one, port, '127.0.0.1', f'{port} is in use')
  refuse(one, 0, 'no such host', 'no address')


@contextlib.contextmanager
def silent(address, names):
  """Begins calls that send nothing, over a connection of their own."""
  done = threading.Event()

  def nothing():
    done.wait(30)
    yield from ()

  channel = grpc.insecure_channel(
    address, [('grpc.use_local_subchannel_pool', 1)]
  )
  try:
    yield [
      channel.stream_unary(f'/{wire.SERVICE}/{name}').future(nothing())
      for name in names
    ]
  finally:
    done.set()
    channel.close()


def test_silent_calls_do_not_block_others():
  names = ['Advance', 'Describe', 'Release'] * 30
  with chain([relay(0)], read_seconds=2.0) as [address]:
    with silent(address, names) as calls:
      time.sleep(0.3)
      tick = time.monotonic()
      with connected([address]) as stages:
        assert time.monotonic() - tick < 1.0
        decoding.generate(stages, [[1, 2]], LIMITS, POLICY)
      assert calls[0].code() == grpc.StatusCode.DEADLINE_EXCEEDED
      assert time.monotonic() - tick < 20.0


def test_too_many_calls_are_waited_for():
  with chain([relay(0)], read_seconds=1.0, calls=1) as [address]:
    with silent(address, ['Advance'] * 2) as held:
      time.sleep(0.2)
      tick = time.monotonic()
      with client.connect([address], patience=20.0):
        assert 0.3 < time.monotonic() - tick
      # Which of the two came first is not determined.
      assert {call.code() for call in held} == {
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
      }


def test_after_a_pass_that_fails_rows_begin_again(prompts, monkeypatch, capsys):
  """One failure, after the caches were donated: as if memory ran out."""
  with chain([relay(0)]) as [address]:
    with connected([address]) as old, connected([address]) as new:
      old[0].run(*ONE)
      advance = forward.advance

      def fail(*args):
        advance(*args)
        monkeypatch.undo()
        raise RuntimeError('out of memory at 0xf00d')

      monkeypatch.setattr(forward, 'advance', fail)
      with pytest.raises(errors.UserError, match='INTERNAL') as raised:
        decoding.generate(new, prompts, LIMITS, POLICY)
      assert 'f00d' not in str(raised.value)
      assert 'f00d' in capsys.readouterr().err
      with pytest.raises(decoding.LostError):
        old[0].run([engine.Work(0, 4, 1, 0)], [[1]], POLICY, [0])
      found = decoding.generate(new, prompts, LIMITS, POLICY)
  assert found == local(prompts, exits=(1,))


def test_nothing_is_compiled_for_the_first_request(caplog):
  one = relay(1, slots=5, rows=2)
  one.engine.warm()
  with jax.log_compiles():
    for length in (1, 3, 4, 9):
      states = np.zeros((length, one.description.width), np.float32)
      ask(one, [1], [0], [states], wanted=np.array([0]))
  assert not [r for r in caplog.records if 'Compiling' in r.getMessage()]
