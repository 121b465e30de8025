import contextlib
import dataclasses
import json
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial import errors
from familial import main
from familial.data import batches
from familial.data import tokenizers
from familial.model import transformer
from familial.serving import client
from familial.serving import evaluating
from familial.serving import generating
from familial.serving import measuring
from familial.serving import models
from familial.serving import propagation
from familial.serving import sampling
from familial.serving import segments
from familial.serving import server
from familial.serving import thresholds
from familial.serving import wire
from familial.training import loop
from tests.serving.conftest import Family

PROMPTS = ['1: the exit of', '22: a', 'deep layer']


@pytest.fixture(scope='module')
def run(run_config, shape, corpus, tmp_path_factory):
  """A run that has learnt a little."""
  folder = tmp_path_factory.mktemp('generating') / 'run'
  config = run_config(
    shape(vocab_size=256, exits=(1, 2, 3)),
    steps=150, base_lr=0.1, evaluations=1,
  )  # fmt: skip
  loop.run(config, folder, corpus, quiet=True)
  return folder


@pytest.fixture(scope='module')
def model(run):
  return models.load(run)


def test_modes_that_are_exact_say_the_same(model):
  plain = generating.run(model, PROMPTS, generating.Options(max_tokens=10))
  drafted = generating.run(
    model, PROMPTS, generating.Options('speculative', max_tokens=10)
  )
  never = sampling.Policy(threshold=2.0)
  sure = generating.run(
    model,
    PROMPTS,
    generating.Options('confidence', max_tokens=10, policy=never),
  )
  assert plain.texts == drafted.texts == sure.texts
  assert all(t.startswith(p) for t, p in zip(plain.texts, PROMPTS, strict=True))
  assert plain.report['tokens'] == 30 and plain.report['share'] == {'exit_3': 1}
  assert sure.report['share'] == {'exit_1': 0, 'exit_2': 0, 'exit_3': 1}
  assert 0 < drafted.report['acceptance'] <= 1
  line = generating.line(drafted.report)
  assert '30 tokens' in line and 'drafts accepted' in line


@pytest.mark.slow
def test_always_and_never_sure_are_the_outer_exits(model):
  first = generating.run(model, PROMPTS, generating.Options(exit=1))
  always = generating.run(
    model,
    PROMPTS,
    generating.Options('confidence', policy=sampling.Policy(threshold=0.0)),
  )
  assert always.texts == first.texts
  upto = generating.run(
    model, PROMPTS, generating.Options('confidence', exit=2)
  )
  second = generating.run(model, PROMPTS, generating.Options(exit=2))
  assert upto.texts == second.texts


def test_a_relay_says_what_one_process_does(model):
  policy = sampling.Policy(threshold=0.5)
  options = generating.Options('confidence', max_tokens=8, policy=policy)
  expected = generating.run(model, PROMPTS, options)
  with contextlib.ExitStack() as stack:
    servers = []
    for segment in segments.split(
      model.params, model.config.model, model.context
    ):
      relay = server.Relay(segment, 3, model.context)
      port = stack.enter_context(server.serve(relay, 0))
      servers.append(f'127.0.0.1:{port}')
    found = generating.relay(model.tokenizer, servers, PROMPTS, options)
    assert found.texts == expected.texts
    assert found.report['share'] == expected.report['share']
    assert found.report['degraded'] == 0
    hops = found.report['hops']
    assert [hop['server'] for hop in hops] == servers
    assert all(hop['bytes_sent'] > 0 for hop in hops)
    line = generating.line(found.report)
    both = hops[2]['bytes_sent'] + hops[2]['bytes_received']
    assert servers[2] in line and f'{both} bytes both ways' in line
    other = dataclasses.replace(options, mode='relay')

    class Small(tokenizers.Bytes):
      vocab_size = 200

    with pytest.raises(errors.UserError, match='the tokenizer has 200'):
      generating.relay(Small(), servers, PROMPTS, other)

    class Other(tokenizers.Bytes):
      mark = 'f00d'

    with pytest.raises(errors.UserError, match=r'bytes, and .* here is f00d'):
      generating.relay(Other(), servers, PROMPTS, other)
    with pytest.raises(errors.UserError, match="did you mean 'int8'"):
      client.connect(servers, dtype='int9')
    propagate = dataclasses.replace(policy, fill='propagate', threshold=2.0)
    with pytest.raises(errors.UserError, match="'propagate' is not allowed"):
      generating.relay(
        model.tokenizer, servers, PROMPTS,
        dataclasses.replace(options, policy=propagate),
      )  # fmt: skip


def test_options_that_do_not_go_are_one_line(model):
  for options, said in (
    ({'exit': 4}, 'exit: 4 is not one of 1'),
    ({'mode': 'speculative', 'draft_exit': 3}, 'draft_exit: 3'),
    ({'mode': 'speculative', 'draft_exit': 0}, 'draft_exit: 0'),
    ({'mode': 'speculative', 'drafts': 99}, 'drafts: 99'),
  ):
    with pytest.raises(errors.UserError, match=said):
      generating.run(model, PROMPTS, generating.Options(**options))
  for options, said in (
    ({'mode': 'speculativ'}, "did you mean 'speculative'"),
    ({'max_tokens': 0}, 'max_tokens: 0'),
  ):
    with pytest.raises(errors.UserError, match=said):
      generating.Options(**options)
  with pytest.raises(errors.UserError, match='prompt 0 has 34 tokens'):
    generating.run(model, ['x' * 33], generating.Options())


@pytest.fixture(scope='module')
def heldout(model, corpus):
  return batches.heldout(corpus, model.config.data, 500, 8)


def test_propagation_that_nobody_or_everybody_leaves(model, heldout):
  shape = model.config.model
  readings = evaluating.readings(model.params, shape, heldout, (1, 2, 3))
  loss = readings.nats_GxWxL[:, readings.counted_WxL].mean(1)
  for threshold, place in ((2.0, 2), (0.0, 0)):
    found = propagation.at(
      model.params, shape, heldout, readings, 'max_prob', threshold
    )
    assert found.loss == pytest.approx(loss[place], rel=1e-6)
    assert found.shares[place] == 1


def test_propagation_is_the_pass_in_which_those_who_left_stay(model, heldout):
  """Loss and shares, against passes that are told who left."""
  shape = model.config.model
  readings = evaluating.readings(model.params, shape, heldout, (1, 2, 3))
  found = propagation.at(
    model.params, shape, heldout, readings, 'max_prob', 0.4
  )
  made = Family()
  made.params, made.config = model.params, shape
  nats, places = [], []
  for batch in heldout:
    for row in range(8):
      if not batch['weights_BxL'][row].any():
        continue
      left = np.full(32, 2)
      for place in range(2):  # Who left before is known when a place is read.
        logits = made.frozen(batch['inputs_BxL'][row], left)[place]
        sure = np.asarray(sampling.confidence(logits, 'max_prob')) >= 0.4
        left = np.where((left > place) & sure, place, left)
      logits = made.frozen(batch['inputs_BxL'][row], left)
      own = np.take_along_axis(logits, left[None, :, None], 0)[0]
      own = own - np.log(np.exp(own).sum(-1, keepdims=True))
      target = batch['targets_BxL'][row][:, None]
      counted = batch['weights_BxL'][row] > 0
      nats.append(-np.take_along_axis(own, target, 1)[counted, 0])
      places.append(left[counted])
  assert found.loss == pytest.approx(np.concatenate(nats).mean(), rel=1e-5)
  shares = np.bincount(np.concatenate(places), minlength=3) / 500
  np.testing.assert_allclose(found.shares, shares, atol=1e-9)
  assert 0.02 < shares[0] < 0.98
  exact = thresholds.at(readings, 'max_prob', 0.4)
  assert abs(found.loss - exact.loss) > 1e-4


def test_a_threshold_of_propagation_may_be_one_that_none_reaches(monkeypatch):
  """Where whoever is sure to the last bit is wrong."""

  def at(*arguments):
    threshold = arguments[-1]
    believed = np.float32(1) >= np.float32(threshold)
    return types.SimpleNamespace(increase=float(believed), threshold=threshold)

  monkeypatch.setattr(propagation, 'at', at)
  found = propagation.threshold_for(None, None, (), None, 'max_prob', 0.01)
  assert found.increase == 0 and found.threshold == thresholds.NEVER


def test_packed_states_cost_what_they_cost(model, heldout):
  """Errors and losses, against passes that are given rounded states."""
  shape, params = model.config.model, model.params
  readings = evaluating.readings(params, shape, heldout, (1, 2, 3))
  plain = readings.nats_GxWxL[:, readings.counted_WxL].mean(1)
  found = {d: measuring._packed(model, heldout, d) for d in wire.DTYPES}
  for (error, loss), due in zip(found['float32'], plain, strict=True):
    assert loss == pytest.approx(due, rel=1e-6) and not error
  states, nats, counted, off = [], [], [], []
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
    counted.append(here)
    nats.append(-np.take_along_axis(np.asarray(log_p), target, -1)[here, 0])
    states.append(np.asarray(state)[here])
    off.append(np.asarray(rounded - state)[here])
  error, loss = found['bfloat16'][1]
  assert loss == pytest.approx(np.concatenate(nats).mean(), rel=1e-6)
  norms = [np.linalg.norm(np.concatenate(x)) for x in (off, states)]
  assert error == pytest.approx(norms[0] / norms[1], rel=1e-4)
  for tier in (1, 2):
    assert 0 < found['bfloat16'][tier][0] < 2**-8 < 20 * found['int8'][tier][0]
  assert found['int8'][0] == found['float32'][0]  # Tokens, whatever the type.
  assert found['int8'][2][1] != found['float32'][2][1]


def test_a_single_exit_is_timed_alone(familial, run, tmp_path, monkeypatch):
  monkeypatch.setattr(measuring, '_REPEATS', 1)
  alone = tmp_path / 'alone'
  familial('export', f'--checkpoint={run}', '--exit=1', f'--out={alone}')
  status, out, err = familial(
    'evaluate', f'--checkpoint={alone}', '--decode', '--nodraw', '--tokens=100'
  )
  assert status == 0 and 'exit 1' in out
  # It says what it is about, for it takes a while.
  assert err.splitlines() and all('familial: ' in x for x in err.splitlines())
  folder = alone / 'evaluation' / '0'
  names = sorted(path.name for path in folder.iterdir())
  assert names == ['decoding.json', 'evaluation.json']
  values = json.loads((folder / 'decoding.json').read_text())
  assert [s['detail'] for s in values['speeds']] == ['exit 1'] * 2
  assert values['speeds'][0]['layers'] == 1 and values['hops'] == []


@pytest.mark.slow
def test_measured_speeds_and_bytes(model, corpus, tmp_path, monkeypatch):
  monkeypatch.setattr(measuring, '_REPEATS', 1)
  found = measuring.measure(model, rows=(2,), corpus=corpus)
  assert [s.mode for s in found.speeds] == (
    ['exit'] * 3 + ['confidence'] * 2 + ['speculative'] * 2
  )
  assert {speed.tokens for speed in found.speeds} == {2 * 16}
  for speed in found.speeds[3:5]:
    assert speed.loss_increase <= evaluating.LOSS_INCREASE
    assert sum(speed.shares) == pytest.approx(1)
    assert speed.layers <= 1
  for to in (1, 2, 3):  # States go out of the first, and into the others.
    full, half, byte = (hop.bytes for hop in found.hops if hop.to == to)
    assert full > max(half, byte)  # Of 16 numbers, bytes are mostly headers.
  for hop in found.hops:
    assert (hop.state_error is None) == (hop.to == 1)
    assert (hop.loss_increase == 0) == (hop.dtype == 'float32' or hop.to == 1)
  assert all(hop.agree == 1 for hop in found.hops if hop.dtype == 'float32')
  measuring.write(found, tmp_path)
  table = measuring.text(found)
  assert 'speculative' in table and 'bytes a token both ways' in table
  assert 'states off by' in table
  saved = json.loads((tmp_path / 'decoding.json').read_text())
  assert len(saved['speeds']) == 7 and len(saved['hops']) == 9
  assert (tmp_path / 'decoding.png').stat().st_size > 10_000


@pytest.fixture
def familial(monkeypatch, capsys):
  def run(*arguments):
    status = main._main(['familial', *arguments])
    out, err = capsys.readouterr()
    return status, out, err

  return run


def test_commands_from_a_run_to_its_text(familial, run, tmp_path):
  checkpoint = f'--checkpoint={run}'
  status, out, _ = familial('evaluate', checkpoint, '--exits=1,3', '--nodraw')
  assert status == 0 and 'loss by exit' in out
  values = json.loads(
    (run / 'evaluation' / '150' / 'evaluation.json').read_text()
  )
  assert [score['exit'] for score in values['exits']] == [1, 3]
  said = ['--prompt=1: the', '--prompt=a', '--max_tokens=5']
  status, out, _ = familial(
    'generate', checkpoint, *said, f'--out={tmp_path}/g.json'
  )
  texts = json.loads((tmp_path / 'g.json').read_text())['texts']
  assert status == 0 and out.startswith(texts[0]) and texts[1] in out
  assert re.search(r'exit: 10 tokens in .* by exit 3: 100%', out)
  status, out, _ = familial(
    'export', checkpoint, '--format=segments', '--exit=2', f'--out={tmp_path}/s'
  )
  assert status == 0
  assert [path.name for path in sorted((tmp_path / 's').iterdir())] == [
    'segment_0', 'segment_1',
  ]  # fmt: skip
  assert models.tokenizer_of(tmp_path / 's' / 'segment_0').vocab_size == 256
  # Beside those of another family they would be taken for its own.
  status, _, err = familial(
    'export', checkpoint, '--format=segments', f'--out={tmp_path}/s'
  )
  assert status == 2 and 'is there already' in err
  assert len(list((tmp_path / 's').iterdir())) == 2


@pytest.mark.slow
def test_a_relay_of_processes_says_what_one_process_does(
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
      said = process.stdout.readline()
      port = said.split('listening on port ')[1].split(';')[0]
      servers.append(f'127.0.0.1:{port}')
    segment = f'--checkpoint={folder}/segment_0'
    relayed = ['generate', segment, '--mode=relay', *text]
    status, found, _ = familial(*relayed, f'--servers={",".join(servers)}')
    assert status == 0
    lines = len(PROMPTS)
    assert found.splitlines()[:lines] == expected.splitlines()[:lines]
    # The context is that of the servers.
    status, _, err = familial(
      *relayed, f'--servers={",".join(servers)}', f'--prompt={"x" * 29}'
    )
    assert status == 2 and 'the context of 30' in err
    for process in processes:
      process.terminate()
    for process in processes:
      out, err = process.communicate(timeout=30)
      assert process.returncode == 0 and not err
      assert out.endswith(': stopped\n') and out.count('\n') == 1
  status, _, err = familial(
    'relay', '--port=0', f'--segment={folder}/segment_0', '--context=33'
  )
  assert status == 2 and '--context=33' in err and err.count('\n') == 1


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (['evaluate', '--exits=1,x'], '--exits'),
    (['evaluate', '--exits=4'], 'exit'),
    (['evaluate', '--exits=1', '--decode'], '--exits=1: --decode'),
    (['evaluate', '--step=77'], 'no such checkpoint'),
    (['generate', '--prompt=a', '--exit=9'], 'exit: 9'),
    (['generate', '--prompt=a', '--temperature=-1'], 'temperature'),
    (['generate', '--prompt=a', '--temperature=1e-50'], 'temperature: 1e-50'),
    (['generate', '--prompt=\udcff\udcfe'], r"prompt: '\udcff\udcfe' is not"),
    (['generate', '--prompt=a', '--threshold=0.9'], '--threshold: not used by'),
    (['generate', '--prompt=a', '--drafts=3'], 'only by speculative'),
    (
      ['generate', '--prompt=a', '--mode=confidence', '--draft_exit=1'],
      '--draft_exit: not used by --mode=confidence',
    ),
    (
      ['generate', '--prompt=a', '--mode=speculative', '--fill=defer'],
      '--fill: not used by --mode=speculative, only by confidence and relay',
    ),
    (
      ['generate', '--prompt=a', '--mode=relay', '--servers=a:1', '--exit=1'],
      '--exit: not used by --mode=relay',
    ),
    (
      [
        'generate',
        '--prompt=a',
        '--mode=relay',
        '--servers=a:1',
        '--step=last',
      ],
      '--step: not used by --mode=relay',
    ),
    (['generate', '--prompt=a', '--mode=relay'], '--servers'),
    (['generate', f'--prompt={"x" * 99}'], 'context of 32'),
    (['generate'], '--prompt'),
    (['export', '--exit=9'], 'exit: 9'),
    (['relay', '--port=0'], '--segment'),
  ],
)
def test_what_cannot_work_is_one_line(familial, run, tmp_path, arguments, said):
  checkpoint = [f'--checkpoint={run}'] * (arguments[0] != 'relay')
  out = [f'--out={tmp_path}/o'] * (arguments[0] in ('evaluate', 'export'))
  status, _, err = familial(*arguments, *checkpoint, *out)
  assert status == 2 and said in err and err.count('\n') == 1
  assert not (tmp_path / 'o').exists()
