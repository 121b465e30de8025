import contextlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from familial.core import errors
from familial.relay import client
from familial.relay import server
from familial.relay import wire
from familial.serving import decoding
from familial.serving import engine
from familial.serving import sampling
from tests.relay.relays import LIMITS
from tests.relay.relays import POLICY
from tests.relay.relays import ask
from tests.relay.relays import chain
from tests.relay.relays import connected
from tests.relay.relays import local
from tests.relay.relays import relay
from tests.relay.relays import relayed
from tests.relay.relays import whole
from tests.serving.families import CONTEXT
from tests.serving.families import VOCAB
from tests.serving.families import Family

NEVER = sampling.Policy(threshold=2.0)


@pytest.fixture
def addresses():
  with chain([relay(i) for i in range(3)]) as found:
    yield found


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
def test_a_chain_generates_what_the_unsplit_model_does(
  addresses, prompts, policy
):
  found = relayed(addresses, prompts, policy)
  assert found == local(prompts, policy)
  assert set(np.concatenate([c.exits for c in found])) == {0, 1, 2}


def test_predictions_are_those_of_the_unsplit_model_bit_for_bit():
  text = np.random.default_rng(0).integers(0, VOCAB, 20)
  low, high = relay(0), relay(1)
  engines = whole().engines(6, 1, 2, 3, rows=3)
  for start, end in ((0, 17), (17, 18), (18, 20)):
    wanted = {'wanted': np.array([start]), 'policy': sampling.Policy()}
    below = ask(low, [1], [start], [text[start:end]], **wanted)
    above = ask(high, [1], [start], [below.states], **wanted)
    work = [engine.Work(0, start, end - start, 0)]
    for place, reply in enumerate((below, above)):
      inputs = engines[0].states if place else [text[start:end]]
      tokens, sure = engines[place].run(work, inputs, sampling.Policy())
      assert (tokens[0], sure[0]) == (reply.tokens[0], reply.confidence[0])
      np.testing.assert_array_equal(engines[place].take(work)[0], reply.states)


def test_bytes_of_a_hop_are_its_states_and_a_header(addresses, prompts):
  expected = local(prompts, NEVER)
  for dtype, itemsize in zip(wire.DTYPES, (4, 2, 1), strict=True):
    with connected(addresses, dtype=dtype) as stages:
      found = decoding.generate(stages, prompts, LIMITS, NEVER)
    same = [
      a.generated[0] == b.generated[0]
      for a, b in zip(found, expected, strict=True)
    ]
    assert np.mean(same) >= 0.6
    positions = sum(len(c.tokens) - 1 for c in found)
    states = positions * whole().config.width * itemsize
    for stage in stages:
      assert stage.positions == positions
      if stage.what.index:
        extra = stage.sent - states
        assert 0 <= extra <= len(stage.seconds) * 2048 + 32 * 200
    assert stages[0].handed == positions and stages[2].handed == 0


@pytest.mark.parametrize('place', range(3))
def test_a_restarted_server_is_sent_all_tokens_again(prompts, place):
  with contextlib.ExitStack() as stack:
    others = [relay(i) for i in range(3) if i != place]
    addresses = stack.enter_context(chain(others))
    old = contextlib.ExitStack()
    port = old.enter_context(server.serve(relay(place), 0))
    addresses.insert(place, f'127.0.0.1:{port}')
    stages = stack.enter_context(client.connect(addresses, patience=20.0))
    run, calls = stages[place].run, []

    def restart(*args):
      calls.append(args)
      if len(calls) == 4:
        old.close()
        stack.enter_context(server.serve(relay(place), port))
      return run(*args)

    stages[place].run = restart
    found = decoding.generate(stages, prompts, LIMITS, POLICY)
  assert found == local(prompts)
  assert len(calls) > 4


def test_a_server_that_comes_back_in_time_is_waited_for():
  with contextlib.ExitStack() as stack:
    gone = contextlib.ExitStack()
    port = gone.enter_context(server.serve(relay(0), 0))
    stages = stack.enter_context(
      client.connect([f'127.0.0.1:{port}'], patience=20.0)
    )
    gone.close()
    back = threading.Timer(
      0.5, lambda: stack.enter_context(server.serve(relay(0), port))
    )
    back.start()
    found = decoding.generate(stages, [[1, 2]], LIMITS, POLICY)
    back.join()
  assert found == local([[1, 2]], exits=(1,))


def test_a_server_that_compiles_is_waited_for_beyond_the_patience(prompts):
  relays, said = [relay(index) for index in range(3)], []
  relays[1].compiling = True

  def compiled():
    time.sleep(1.0)
    relays[1].compiling = False

  thread = threading.Thread(target=compiled)
  with chain(relays) as addresses:
    thread.start()
    with connected(addresses, say=said.append) as stages:  # Patience: 0.3 s.
      assert not relays[1].compiling
      found = decoding.generate(stages, prompts, LIMITS, POLICY)
    thread.join()
  assert found == local(prompts)
  [line] = said
  assert addresses[1] in line and 'compiling' in line


def test_a_shorter_chain_is_said_and_what_is_no_address_refused(prompts):
  said = []
  with chain([relay(0), relay(1)]) as addresses:
    with connected(addresses, say=said.append) as stages:
      found = decoding.generate(stages, prompts, LIMITS, POLICY)
  assert found == local(prompts, exits=(1, 2))
  [line] = said
  assert '2 of the 3 segments' in line and 'exit 2' in line
  for address in ('localhost', 'localhost:', ':7000', 'a:b', 'a:0', 'a:70000'):
    with pytest.raises(errors.UserError, match='HOST:PORT'):
      with client.connect([address]):
        pass
  with pytest.raises(errors.UserError, match='HOST:PORT'):
    with client.connect([]):
      pass


def test_without_the_last_server_the_one_before_answers(prompts):
  said = []
  with contextlib.ExitStack() as stack:
    addresses = stack.enter_context(chain([relay(0), relay(1)]))
    gone = contextlib.ExitStack()
    [last] = gone.enter_context(chain([relay(2)]))
    stages = stack.enter_context(connected([*addresses, last]))
    gone.close()
    found = decoding.generate(stages, prompts, LIMITS, POLICY, said.append)
    with connected([*addresses, last], say=said.append) as fewer:
      assert len(fewer) == 2
  assert [(c.tokens, c.exits) for c in found] == [
    (c.tokens, c.exits) for c in local(prompts, exits=(1, 2))
  ]
  assert sum(c.degraded for c in found) > 0
  assert len(said) == 2 and all(last in line for line in said)
  with pytest.raises(errors.UserError, match=f'{last}: UNAVAILABLE'):
    with client.connect([last], patience=0.1):
      pass


def test_segments_that_do_not_go_together_are_refused():
  other = Family(exit_kind='head').segments(1, 2, 3)[1]
  stranger = server.Relay(other, 2, CONTEXT)
  relays = [relay(0), relay(2), stranger, relay(1, exits=(1, 3))]
  with chain(relays) as (first, third, strange, wide):
    for second, said in (
      (third, 'serves segment 2'), (strange, 'serves model'), (wide, 'exits')
    ):  # fmt: skip
      with pytest.raises(errors.UserError, match=said):
        with client.connect([first, second]):
          pass


class Counted(server.Relay):
  """Counts requests for states."""

  asked = 0

  def states(self, content):
    Counted.asked += 1
    return super().states(content)


def test_positions_beyond_a_message_go_in_several(prompts, monkeypatch):
  """Nothing changes, bit for bit; states that do not come back are asked for."""
  expected = local(prompts)
  monkeypatch.setattr(wire, 'positions', lambda width: 5)
  with chain([relay(i, cls=Counted) for i in range(3)]) as addresses:
    assert relayed(addresses, prompts) == expected
  assert Counted.asked > 0


def test_rows_without_a_place_wait_for_one(prompts):
  """Four clients want twenty rows of servers with six slots, which never idle."""
  relays = [relay(i, clock=lambda: 0.0) for i in range(3)]
  found = []
  with chain(relays) as addresses:

    def work():
      with client.connect(addresses, patience=60.0) as stages:
        found.append(decoding.generate(stages, prompts, LIMITS, POLICY))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    # Nor is a row left behind whose slot others need.
    assert not any(r.engine.seen.any() for r in relays)
  assert found == [local(prompts)] * 4


def test_a_busy_server_is_asked_again_later():
  """The exit before answers only after the patience; a text that begins when
  there is a place again goes all the way."""
  relays, said = [relay(0), relay(1, clock=lambda: 0.0, slots=1)], []
  limits = decoding.Limits(CONTEXT, 4)
  work = [engine.Work(0, 0, 2, 0)]
  with chain(relays) as addresses:
    with connected(addresses) as stages, connected(addresses) as others:
      others[0].run(work, [[1, 2]], NEVER, [0])
      others[1].run(work, others[0].states, NEVER, [0])
      tick = time.monotonic()
      [found] = decoding.generate(stages, [[3, 4]], limits, NEVER, said.append)
      assert 0.3 < time.monotonic() - tick
      assert found.exits == [0] * 4 and found.degraded == 4
      [line] = said
      assert addresses[1] in line
      others[1].forget(0)
      [found] = decoding.generate(stages, [[3, 4]], limits, NEVER)
      assert found.exits == [1] * 4 and found.degraded == 0


def test_closing_does_not_wait_for_a_server_that_is_gone():
  with contextlib.ExitStack() as stack:
    gone = contextlib.ExitStack()
    [address] = gone.enter_context(chain([relay(0)]))
    [stage] = stack.enter_context(client.connect([address], patience=60.0))
    work = [engine.Work(slot, 0, 1, 0) for slot in range(6)]
    stage.run(work, [[1]] * 6, POLICY, [0] * 6)
    gone.close()
    tick = time.monotonic()
    for slot in range(6):
      stage.forget(slot)
  assert time.monotonic() - tick < 5.0


def test_without_grpc_all_but_the_relay_works():
  """Serving does not import grpc; what needs it names the extra in one line."""
  script = """
import sys
sys.modules['grpc'] = None
import importlib, pkgutil
from familial import convert, serving
from familial.cli import main
for package in (convert, serving):
  for module in pkgutil.iter_modules(package.__path__, package.__name__ + '.'):
    importlib.import_module(module.name)
for arguments in (
  ['relay', '--segment=x', '--port=0'],
  ['generate', '--checkpoint=x', '--prompt=a', '--mode=relay', '--servers=a:1'],
):
  sys.argv = ['familial', *arguments]
  try:
    main.main()
  except SystemExit as error:
    assert error.code == 2
"""
  done = subprocess.run(
    [sys.executable, '-c', script], capture_output=True, text=True, check=True
  )
  lines = done.stderr.splitlines()
  assert len(lines) == 2 and all('familial[relay]' in line for line in lines)
