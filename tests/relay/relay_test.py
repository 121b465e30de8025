import contextlib
import json
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
from familial.serving import sampling
from tests.relay.relays import LIMITS
from tests.relay.relays import POLICY
from tests.relay.relays import ask
from tests.relay.relays import chain
from tests.relay.relays import connected
from tests.relay.relays import local
from tests.relay.relays import relay
from tests.relay.relays import whole
from tests.serving.families import CONTEXT
from tests.serving.families import VOCAB
from tests.serving.families import Family


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
  expected = decoding.generate(tiers, prompts, **LIMITS, policy=POLICY)
  assert [(c.tokens, c.exits) for c in found] == [
    (c.tokens, c.exits) for c in expected
  ]
  assert sum(c.degraded for c in found) > 0
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


@pytest.mark.parametrize(
  'says',
  [b'', b'hello', b'[1]', b'{"version": "0"}', b'{"version": "1"}'],
)
def test_a_server_that_is_no_relay_is_refused(says, monkeypatch):
  monkeypatch.setattr(client.Remote, '_call', lambda *unused: says)
  with pytest.raises(errors.UserError, match='edge:1: answers as no relay'):
    client.connect(['edge:1'])


@pytest.mark.parametrize(
  'wrong',
  [
    {'exits': 3}, {'exits': ['1']}, {'index': 3}, {'index': -1}, {'slots': 0},
    {'slots': 10**9}, {'slots': True}, {'width': '16'}, {'context': None},
    {'span': 0.5}, {'vocab_size': -1}, {'tokenizer': 1}, {'fingerprint': []},
  ],
)  # fmt: skip
def test_a_server_that_describes_itself_wrong_is_refused(wrong, monkeypatch):
  says = {
    'version': '1', 'fingerprint': 'f00d', 'exits': [1, 2, 3], 'index': 0,
    'width': 16, 'vocab_size': 23, 'slots': 6, 'context': 48, 'span': 4,
    'tokenizer': 'bytes',
  }  # fmt: skip
  monkeypatch.setattr(
    client.Remote, '_call', lambda *unused: json.dumps(says).encode()
  )
  assert len(client.connect(['edge:1'])) == 1
  says |= wrong
  with pytest.raises(errors.UserError, match='edge:1: answers as no relay'):
    client.connect(['edge:1'])


def test_what_no_message_may_hold_goes_in_several(prompts, monkeypatch):
  """Nothing changes, bit for bit; states that do not come back are asked for."""
  expected = local(prompts)
  monkeypatch.setattr(wire, 'positions', lambda width: 5)
  calls = []
  with chain([relay(i) for i in range(3)]) as addresses:
    with connected(addresses) as stages:
      for stage in stages:
        call = stage._call

        def spy(name, content, call=call):
          calls.append(name)
          return call(name, content)

        stage._call = spy
      found = decoding.generate(stages, prompts, **LIMITS, policy=POLICY)
  assert found == expected
  assert calls.count('States') > 0


def test_rows_that_a_tier_has_no_place_for_wait_for_one(prompts):
  """Two clients want ten rows of tiers that have six, and never idle ones."""
  relays = [relay(i, clock=lambda: 0.0) for i in range(3)]
  found = [None, None]
  with chain(relays) as addresses:
    with connected(addresses) as one, connected(addresses) as two:

      def work(number, stages):
        for stage in stages:
          stage.patience = 60.0
        found[number] = decoding.generate(
          stages, prompts, **LIMITS, policy=POLICY
        )

      threads = [
        threading.Thread(target=work, args=part)
        for part in enumerate((one, two))
      ]
      for thread in threads:
        thread.start()
      for thread in threads:
        thread.join()
      # Nor is a row left behind that somebody else could not have.
      assert all(not stage._used for stage in [*one, *two])
  assert found == [local(prompts)] * 2


def test_a_busy_tier_is_asked_again_later():
  """Not before the patience ends does the exit before it answer; a text that
  begins when there is place again goes all the way."""
  never = sampling.Policy(threshold=2.0)
  relays = [relay(0), relay(1, clock=lambda: 0.0, slots=1)]
  said = []
  limits = LIMITS | {'stop': -1, 'max_tokens': 4}
  text = [decoding.tier_lib.Work(0, 0, 2, 0)], [[1, 2]], never, [0]
  with chain(relays) as addresses:
    with connected(addresses) as stages, connected(addresses) as others:
      others[0].run(*text)
      others[1].run(text[0], others[0].states, never, [0])
      tick = time.monotonic()
      [found] = decoding.generate(
        stages, [[3, 4]], **limits, policy=never, say=said.append
      )
      assert 0.3 < time.monotonic() - tick
      assert found.exits == [0] * 4 and found.degraded == 4
      [line] = said
      assert addresses[1] in line and 'no place' in line
      others[1].forget(0)
      [found] = decoding.generate(stages, [[3, 4]], **limits, policy=never)
      assert found.exits == [1] * 4 and found.degraded == 0


def test_nothing_waits_for_a_server_that_is_gone():
  with contextlib.ExitStack() as stack:
    [address] = stack.enter_context(chain([relay(0)]))
    [stage] = client.connect([address], patience=60.0)
    work = [decoding.tier_lib.Work(slot, 0, 1, 0) for slot in range(6)]
    stage.run(work, [[1]] * 6, POLICY, [0] * 6)
  tick = time.monotonic()
  for slot in range(6):
    stage.forget(slot)
  stage.close()
  assert time.monotonic() - tick < 5.0
