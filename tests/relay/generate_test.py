"""Generation and the benchmark with the servers of a relay."""

import contextlib
import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.convert import load
from familial.convert import segments
from familial.core import errors
from familial.data import tokenizers
from familial.model import transformer
from familial.relay import benchmark as relay_benchmark
from familial.relay import generate as relay_generate
from familial.relay import packed_states
from familial.relay import server
from familial.relay import wire
from familial.serving import benchmark
from familial.serving import evaluate
from familial.serving import generate
from familial.serving import sampling
from tests.relay.relays import chain

PROMPTS = ['1: the exit of', '22: a', 'deep layer']
POLICY = sampling.Policy(threshold=0.5)


@pytest.fixture(scope='module')
def servers(model):
  parts = segments.split(model.params, model.config.model, model.context)
  relays = [  # Of the passes that one process has.
    server.Relay(part, 3, model.context, rows=min(part.index, 1))
    for part in parts
  ]
  with chain(relays) as found:
    yield found


def test_a_relay_generates_what_one_process_does(model, servers):
  expected = generate.run(
    model, PROMPTS, generate.Options('confidence', max_tokens=8, policy=POLICY)
  )
  found = relay_generate.run(model.tokenizer, servers, PROMPTS, POLICY, 8)
  assert found.texts == expected.texts
  assert found.shares == expected.shares
  report = found.report()
  assert report['degraded'] == 0
  assert [hop['server'] for hop in report['hops']] == servers
  for hop in report['hops']:
    assert hop['bytes_sent'] > 0 and hop['bytes_received'] > 0


@pytest.mark.parametrize(
  ('tokenizer', 'changes', 'said'),
  [
    ({'vocab_size': 200}, {}, 'here is bytes with 200'),
    ({'mark': 'f00d'}, {}, r'bytes with .* here is f00d'),
    ({}, {'dtype': 'int9'}, "did you mean 'int8'"),
    ({}, {'max_tokens': 0}, 'max_tokens: 0'),
    (
      {},
      {'policy': dataclasses.replace(POLICY, fill='propagate')},
      "'propagate' is not allowed",
    ),
  ],
)
def test_what_does_not_go_with_a_relay_is_refused(
  servers, tokenizer, changes, said
):
  own = type('Own', (tokenizers.Bytes,), tokenizer)()
  options = {'policy': POLICY, 'max_tokens': 8, **changes}
  with pytest.raises(errors.UserError, match=said):
    relay_generate.run(own, servers, PROMPTS, **options)


def test_the_cost_of_packed_states(model, corpus):
  """Errors and losses, against passes that are given rounded states."""
  shape, params = model.config.model, model.params
  heldout = evaluate.heldout(model, 500, corpus)
  readings = evaluate.readings(params, shape, heldout, (1, 2, 3))
  plain = readings.nats_GxWxL[:, readings.counted_WxL].mean(1)
  found = {d: packed_states.costs(model, heldout, d) for d in wire.DTYPES}
  for (error, loss), expected in zip(found['float32'], plain, strict=True):
    assert loss == pytest.approx(expected, rel=1e-6) and not error
  states, nats, off = [], [], []
  for batch in heldout:
    [state, *_] = transformer.exit_states(params, shape, batch['inputs_BxL'])
    rounded = state.astype(jnp.bfloat16).astype(jnp.float32)
    x = transformer.segment(params, shape, 1, rounded)
    h = transformer.head_state(params, shape, 2, x)
    log_p = jax.nn.log_softmax(
      transformer.read_out(h, transformer.unembedding(params, shape, 2))
    )
    target = batch['targets_BxL'][..., None]
    here = batch['weights_BxL'] > 0
    nats.append(-np.take_along_axis(np.asarray(log_p), target, -1)[here, 0])
    states.append(np.asarray(state)[here])
    off.append(np.asarray(rounded - state)[here])
  error, loss = found['bfloat16'][1]
  assert loss == pytest.approx(np.concatenate(nats).mean(), rel=1e-6)
  norms = [np.linalg.norm(np.concatenate(x)) for x in (off, states)]
  assert error == pytest.approx(norms[0] / norms[1], rel=1e-4)
  for place in (1, 2):
    assert 0 < found['bfloat16'][place][0] < 2**-8
    assert found['bfloat16'][place][0] < 20 * found['int8'][place][0]
  assert found['int8'][0] == found['float32'][0]  # Tokens are not packed.
  assert found['int8'][2][1] != found['float32'][2][1]


@pytest.mark.slow
def test_each_mode_and_the_traffic_of_each_type_are_measured(model, corpus):
  measured = benchmark.measure(model, rows=(2,), corpus=corpus)
  found = relay_benchmark.add_hops(measured, model, corpus=corpus)
  assert found.speeds == measured.speeds and len(found.hops) == 9
  assert [s.mode for s in found.speeds] == (
    ['exit'] * 3 + ['confidence'] * 2 + ['speculative'] * 2
  )
  for speed in found.speeds:
    assert speed.tokens == 2 * 16 and speed.seconds > 0
  for speed in found.speeds[3:5]:
    assert speed.loss_increase <= evaluate.LOSS_INCREASE
    assert sum(speed.shares) == pytest.approx(1)
    assert speed.layers <= 1
  for to in (1, 2, 3):  # States go out of the first, and into the others.
    full, half, byte = (hop.bytes for hop in found.hops if hop.to == to)
    assert full > max(half, byte)  # Of 16 numbers, bytes are mostly headers.
  for hop in found.hops:
    assert (hop.state_error is None) == (hop.to == 1)
    assert (hop.loss_increase == 0) == (hop.dtype == 'float32' or hop.to == 1)
    assert hop.agree == 1 or hop.dtype != 'float32'


@pytest.mark.slow
def test_a_relay_of_processes_generates_what_one_process_does(
  familial, run, tmp_path
):
  """Three servers, started, driven and ended as a user does."""
  folder, text = tmp_path / 'segments', ['--threshold=0.5', '--max_tokens=8']
  text += [f'--prompt={prompt}' for prompt in PROMPTS]
  checkpoint = f'--checkpoint={run}'
  familial('export', checkpoint, '--format=segments', f'--out={folder}')
  _, expected, _ = familial('generate', checkpoint, '--mode=confidence', *text)
  with contextlib.ExitStack() as stack:
    processes, servers = [], []
    for index in range(3):
      process = subprocess.Popen(
        [
          sys.executable, '-m', 'familial', 'relay', '--port=0', '--slots=4',
          f'--segment={folder}/segment_{index}', '--context=30',
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
      )  # fmt: skip
      stack.callback(process.kill)
      processes.append(process)
    for process in processes:
      line = process.stdout.readline()
      port = line.split('listening on port ')[1].split(';')[0]
      servers.append(f'127.0.0.1:{port}')  # The client waits: it compiles.
    relayed = [
      'generate', f'--checkpoint={folder}/segment_0', '--mode=relay', *text,
      f'--servers={",".join(servers)}', f'--out={tmp_path}/g.json',
    ]  # fmt: skip
    status, found, _ = familial(*relayed)
    assert status == 0
    lines = len(PROMPTS)
    assert found.splitlines()[:lines] == expected.splitlines()[:lines]
    assert len(json.loads((tmp_path / 'g.json').read_text())['hops']) == 3
    # The context is that of the servers.
    status, _, err = familial(*relayed, f'--prompt={"x" * 29}')
    assert status == 2 and 'the context of 30' in err
    for process in processes:
      process.terminate()
    for process in processes:
      out, err = process.communicate(timeout=30)
      assert process.returncode == 0 and not err
      assert [line.split()[-1] for line in out.splitlines()] == [
        'ready', 'stopped',
      ]  # fmt: skip
  assert load.tokenizer_of(folder / 'segment_0').vocab_size == 256
  status, _, err = familial(
    'relay', '--port=0', f'--segment={folder}/segment_0', '--context=33'
  )
  assert status == 2 and '--context=33' in err and err.count('\n') == 1
