import contextlib
import dataclasses
import json
import re
import subprocess
import sys

import pytest

from familial.convert import load
from familial.convert import segments
from familial.core import errors
from familial.data import tokenizers
from familial.relay import client
from familial.relay import server
from familial.serving import generate
from familial.serving import sampling

PROMPTS = ['1: the exit of', '22: a', 'deep layer']


def test_modes_that_are_exact_say_the_same(model):
  plain = generate.run(model, PROMPTS, generate.Options(max_tokens=10))
  drafted = generate.run(
    model, PROMPTS, generate.Options('speculative', max_tokens=10)
  )
  never = sampling.Policy(threshold=2.0)
  sure = generate.run(
    model,
    PROMPTS,
    generate.Options('confidence', max_tokens=10, policy=never),
  )
  assert plain.texts == drafted.texts == sure.texts
  assert all(t.startswith(p) for t, p in zip(plain.texts, PROMPTS, strict=True))
  assert plain.report['tokens'] == 30 and plain.report['share'] == {'exit_3': 1}
  assert sure.report['share'] == {'exit_1': 0, 'exit_2': 0, 'exit_3': 1}
  assert 0 < drafted.report['acceptance'] <= 1
  line = generate.line(drafted.report)
  assert '30 tokens' in line and 'drafts accepted' in line


@pytest.mark.slow
def test_always_and_never_sure_are_the_outer_exits(model):
  first = generate.run(model, PROMPTS, generate.Options(exit=1))
  always = generate.run(
    model,
    PROMPTS,
    generate.Options('confidence', policy=sampling.Policy(threshold=0.0)),
  )
  assert always.texts == first.texts
  upto = generate.run(model, PROMPTS, generate.Options('confidence', exit=2))
  second = generate.run(model, PROMPTS, generate.Options(exit=2))
  assert upto.texts == second.texts


def test_a_relay_says_what_one_process_does(model):
  policy = sampling.Policy(threshold=0.5)
  options = generate.Options('confidence', max_tokens=8, policy=policy)
  expected = generate.run(model, PROMPTS, options)
  with contextlib.ExitStack() as stack:
    servers = []
    for segment in segments.split(
      model.params, model.config.model, model.context
    ):
      relay = server.Relay(segment, 3, model.context)
      port = stack.enter_context(server.serve(relay, 0))
      servers.append(f'127.0.0.1:{port}')
    found = generate.relay(model.tokenizer, servers, PROMPTS, options)
    assert found.texts == expected.texts
    assert found.report['share'] == expected.report['share']
    assert found.report['degraded'] == 0
    hops = found.report['hops']
    assert [hop['server'] for hop in hops] == servers
    assert all(hop['bytes_sent'] > 0 for hop in hops)
    line = generate.line(found.report)
    both = hops[2]['bytes_sent'] + hops[2]['bytes_received']
    assert servers[2] in line and f'{both} bytes both ways' in line
    other = dataclasses.replace(options, mode='relay')

    class Small(tokenizers.Bytes):
      vocab_size = 200

    with pytest.raises(errors.UserError, match='the tokenizer has 200'):
      generate.relay(Small(), servers, PROMPTS, other)

    class Other(tokenizers.Bytes):
      mark = 'f00d'

    with pytest.raises(errors.UserError, match=r'bytes, and .* here is f00d'):
      generate.relay(Other(), servers, PROMPTS, other)
    with pytest.raises(errors.UserError, match="did you mean 'int8'"):
      client.connect(servers, dtype='int9')
    propagate = dataclasses.replace(policy, fill='propagate', threshold=2.0)
    with pytest.raises(errors.UserError, match="'propagate' is not allowed"):
      generate.relay(
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
      generate.run(model, PROMPTS, generate.Options(**options))
  for options, said in (
    ({'mode': 'speculativ'}, "did you mean 'speculative'"),
    ({'max_tokens': 0}, 'max_tokens: 0'),
  ):
    with pytest.raises(errors.UserError, match=said):
      generate.Options(**options)
  with pytest.raises(errors.UserError, match='prompt 0 has 34 tokens'):
    generate.run(model, ['x' * 33], generate.Options())


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
  assert load.tokenizer_of(tmp_path / 's' / 'segment_0').vocab_size == 256
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
