import contextlib
import functools
import threading
import time

import grpc
import numpy as np
import pytest

from familial import errors
from familial.serving import client
from familial.serving import decoding
from familial.serving import sampling
from familial.serving import server
from familial.serving import wire
from tests.serving.conftest import CONTEXT
from tests.serving.conftest import VOCAB
from tests.serving.conftest import Family

STOP = 7
LIMITS = {'context': CONTEXT, 'max_tokens': 10, 'stop': STOP}
POLICY = sampling.Policy(threshold=0.3)


@functools.cache
def whole():
  return Family(exit_kind='branch')


def relay(index, slots=6, rows=3, exits=(1, 2, 3), **options):
  segment = whole().segments(*exits)[index]
  return server.Relay(segment, slots, CONTEXT, rows=rows, **options)


@contextlib.contextmanager
def chain(relays, ports=None):
  with contextlib.ExitStack() as stack:
    yield [
      f'localhost:{stack.enter_context(server.serve(r, port))}'
      for r, port in zip(relays, ports or [0] * len(relays), strict=True)
    ]


@contextlib.contextmanager
def connected(addresses, **options):
  with contextlib.ExitStack() as stack:
    stages = client.connect(addresses, patience=0.3, **options)
    for stage in stages:
      stack.callback(stage.close)
    yield stages


def local(prompts, policy=POLICY, slots=6, rows=3):
  tiers = whole().tiers(slots, 1, 2, 3, rows=rows)
  return decoding.generate(tiers, prompts, **LIMITS, policy=policy)


def ask(relay_, ids, starts, inputs, index=None, **changes):
  """A request of one row each, as a client would send it."""
  segment = relay_.tier.segment
  lengths = np.array([len(part) for part in inputs])
  starts = np.array(starts)
  values = {
    'fingerprint': segment.fingerprint,
    'index': segment.index if index is None else index,
    'ids': np.stack([np.full(16, id_, np.uint8) for id_ in ids]),
    'starts': starts,
    'lengths': lengths,
    'wanted': starts + lengths,
    'rows': np.zeros(len(ids)),
    'inputs': np.concatenate(inputs),
    'policy': POLICY,
    **changes,
  }
  request = wire.Request(**values)
  answer = relay_.advance(wire.pack_request(request, 'float32'))
  width, last = segment.model.width, segment.last
  return wire.unpack_reply(answer, request, width, last)


@pytest.mark.parametrize(
  'policy',
  [
    POLICY,
    pytest.param(
      sampling.Policy(sampling.Sampling(temperature=1.0), 'entropy', 0.3),
      marks=pytest.mark.slow,
    ),
  ],
)
def test_a_chain_says_what_the_unsplit_model_does(prompts, policy):
  with chain([relay(i) for i in range(3)]) as addresses:
    with connected(addresses) as stages:
      found = decoding.generate(stages, prompts, **LIMITS, policy=policy)
  assert found == local(prompts, policy)
  gave = np.concatenate([completion.exits for completion in found])
  assert set(gave) == {0, 1, 2}


def test_logits_are_those_of_the_unsplit_model_bit_for_bit():
  """States that went over the wire give the very same readings."""
  text = np.random.default_rng(0).integers(0, VOCAB, 20)
  low, high = relay(0), relay(1)
  tiers = whole().tiers(6, 1, 2, 3, rows=3)
  for start, end in ((0, 17), (17, 18), (18, 20)):
    everything = {'wanted': np.array([start]), 'policy': sampling.Policy()}
    below = ask(low, [1], [start], [text[start:end]], **everything)
    above = ask(high, [1], [start], [below.states], **everything)
    work = [decoding.tier_lib.Work(0, start, end - start, 0)]
    policy = sampling.Policy()
    for place, reply in enumerate((below, above)):
      inputs = tiers[0].states if place else [text[start:end]]
      tokens, sure = tiers[place].run(work, inputs, policy)
      assert (tokens[0], sure[0]) == (reply.tokens[0], reply.confidence[0])
      np.testing.assert_array_equal(tiers[place].take(work)[0], reply.states)


def test_sixty_four_rows_of_mixed_lengths_from_several_clients():
  rng = np.random.default_rng(0)
  prompts = [
    rng.integers(0, VOCAB, rng.integers(1, 30)).tolist() for _ in range(64)
  ]
  expected = local(prompts)
  found = [None] * 8
  with chain([relay(i, slots=64, rows=8) for i in range(3)]) as addresses:

    def work(number):
      with connected(addresses) as stages:
        part = prompts[8 * number : 8 * number + 8]
        found[number] = decoding.generate(stages, part, **LIMITS, policy=POLICY)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
  assert [c.tokens for part in found for c in part] == [
    c.tokens for c in expected
  ]


def test_bytes_of_a_hop_are_its_states_and_a_header(prompts):
  never = sampling.Policy(threshold=2.0)
  with chain([relay(i) for i in range(3)]) as addresses:
    with connected(addresses) as stages:
      found = decoding.generate(stages, prompts, **LIMITS, policy=never)
  positions = sum(len(c.tokens) - 1 for c in found)
  width = whole().config.width
  for stage in stages:
    assert stage.positions == positions
    calls = len(stage.seconds)
    if stage.what['index']:
      assert 0 <= stage.sent - positions * width * 4 <= calls * 2048 + 32 * 200
  assert stages[0].handed == positions and stages[2].handed == 0


def test_coarser_states_are_smaller_and_nearly_as_good(prompts):
  sizes = {}
  never = sampling.Policy(threshold=2.0)
  for dtype in wire.DTYPES:
    with chain([relay(i) for i in range(3)]) as addresses:
      with connected(addresses, dtype=dtype) as stages:
        found = decoding.generate(stages, prompts, **LIMITS, policy=never)
        sizes[dtype] = stages[1].sent
    if dtype == 'float32':
      expected = found
    same = [
      a.tokens[a.prompt] == b.tokens[b.prompt]
      for a, b in zip(found, expected, strict=True)
    ]
    assert np.mean(same) >= 0.6
  assert sizes['float32'] > sizes['bfloat16'] > sizes['int8']


def test_a_tier_that_was_started_again_is_told_all_once_more(prompts):
  expected = local(prompts)
  for place in range(3):
    with contextlib.ExitStack() as stack:
      addresses = stack.enter_context(chain([relay(i) for i in range(3)]))
      # What stands in its place has its port and none of its rows.
      stages = stack.enter_context(connected(addresses))
      fresh = stack.enter_context(chain([relay(place)]))[0]
      other = grpc.insecure_channel(fresh)
      run, calls = stages[place].run, []

      def restart(*args, stage=stages[place], run=run, calls=calls, to=other):
        calls.append(args)
        if len(calls) == 4:
          stage._channel = to
        return run(*args)

      stages[place].run = restart
      found = decoding.generate(stages, prompts, **LIMITS, policy=POLICY)
      assert found == expected
      assert len(calls) > 4


def test_a_server_that_comes_back_in_time_is_waited_for():
  again = relay(0)
  with chain([again]) as [address]:
    stages = client.connect([address], patience=20.0)
    port = int(address.rpartition(':')[2])
  back = threading.Event()

  def later():
    time.sleep(0.5)
    with server.serve(relay(0), port):
      back.wait(30)

  thread = threading.Thread(target=later)
  thread.start()
  found = decoding.generate(stages, [[1, 2]], **LIMITS, policy=POLICY)
  stages[0].close()
  back.set()
  thread.join()
  tiers = whole().tiers(1, 1)
  assert found == decoding.generate(tiers, [[1, 2]], **LIMITS, policy=POLICY)


def test_without_the_cloud_the_edge_answers_and_says_so(prompts):
  said = []
  with contextlib.ExitStack() as stack:
    addresses = stack.enter_context(chain([relay(0), relay(1)]))
    gone = contextlib.ExitStack()
    [last] = gone.enter_context(chain([relay(2)]))
    stages = stack.enter_context(connected([*addresses, last]))
    gone.close()
    found = decoding.generate(
      stages, prompts, **LIMITS, policy=POLICY, say=said.append
    )
    with connected([*addresses, last], say=said.append) as fewer:
      assert len(fewer) == 2
  tiers = whole().tiers(6, 1, 2, rows=3)
  assert found == decoding.generate(tiers, prompts, **LIMITS, policy=POLICY)
  assert len(said) == 2 and all(last in line for line in said)
  with pytest.raises(errors.UserError, match=f'{last}: UNAVAILABLE'):
    client.connect([last], patience=0.1)


def test_segments_that_do_not_go_together_are_refused():
  other = Family(exit_kind='head')
  stranger = server.Relay(other.segments(1, 2, 3)[1], 2, CONTEXT)
  with chain([relay(0), relay(2), stranger]) as (first, third, strange):
    with pytest.raises(errors.UserError, match='serves segment 2'):
      client.connect([first, third])
    with pytest.raises(errors.UserError, match='serves model'):
      client.connect([first, strange])
  with chain([relay(0), relay(1, exits=(1, 3))]) as (first, wide):
    with pytest.raises(errors.UserError, match='exits'):
      client.connect([first, wide])


@pytest.mark.parametrize('says', [b'', b'hello', b'[1]', b'{"version": "0"}'])
def test_a_server_that_is_no_relay_is_refused(says, monkeypatch):
  monkeypatch.setattr(client.Remote, '_call', lambda *unused: says)
  with pytest.raises(errors.UserError, match='edge:1: answers as no relay'):
    client.connect(['edge:1'])


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
  now[0] = 30.0
  ask(one, [2], [0], [text])
  with pytest.raises(server.FullError, match='2 of 2 rows are open'):
    ask(one, [3], [0], [text])
  now[0] = 61.0  # The first one has been idle for long enough.
  ask(one, [3], [0], [text])
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
      call(bytes(served.most_bytes + 1), timeout=10)
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
  with chain([relay(0)]) as [address]:
    port = int(address.rpartition(':')[2])
    with pytest.raises(errors.UserError, match=f'{port} is in use'):
      with server.serve(relay(0), port):
        pass
