import io
import json
import re
import sys

import pytest

from familial.cli import main
from familial.core import errors
from familial.serving import generate
from familial.serving import sampling

PROMPTS = ['1: the exit of', '22: a', 'deep layer']


def generated(model, *args, **options):
  options = generate.Options(*args, **{'max_tokens': 10, **options})
  return generate.run(model, PROMPTS, options)


def test_exact_modes_generate_the_same_text(model):
  plain, drafted = generated(model), generated(model, 'speculative')
  never = sampling.Policy(threshold=2.0)
  deferred = generated(model, 'confidence', policy=never)
  assert plain.texts == drafted.texts == deferred.texts
  assert all(t.startswith(p) for t, p in zip(plain.texts, PROMPTS, strict=True))
  assert plain.tokens == 30 and plain.shares == {3: 1}
  assert deferred.shares == {1: 0, 2: 0, 3: 1}
  assert 0 < drafted.report()['acceptance'] <= 1


@pytest.mark.slow
def test_extreme_thresholds_are_the_outer_exits(model):
  always = sampling.Policy(threshold=0.0)
  for options, exit_ in (({'policy': always}, 1), ({'exit': 2}, 2)):
    found = generated(model, 'confidence', **options)
    assert found.texts == generated(model, exit=exit_).texts


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    ({'mode': 'speculative', 'draft_exit': 3}, 'draft_exit: 3'),
    ({'mode': 'speculative', 'draft_exit': 0}, 'draft_exit: 0'),
    ({'mode': 'speculative', 'drafts': 99}, 'drafts: 99'),
    ({'mode': 'speculativ'}, "did you mean 'speculative'"),
  ],
)
def test_options_that_are_not_allowed(model, options, said):
  with pytest.raises(errors.UserError, match=said):
    generated(model, **options)


def test_commands_from_a_run_to_its_text(familial, run, tmp_path):
  checkpoint = f'--checkpoint={run}'
  status, _, _ = familial('evaluate', checkpoint, '--exits=1,3', '--nodraw')
  folder = run / 'evaluation' / '150'
  assert status == 0
  names = sorted(path.name for path in folder.iterdir())
  assert names == ['command.json', 'evaluation.json']
  status, _, err = familial('evaluate', checkpoint, '--exits=3', '--nodraw')
  assert status == 2 and '--exits' in err and '--overwrite' in err
  values = json.loads((folder / 'evaluation.json').read_text())
  assert [score['exit'] for score in values['exits']] == [1, 3]
  assert values['schema'] == 1
  given = ['--prompt=1: the', '--prompt=a', '--max_tokens=5']
  status, out, err = familial(
    'generate', checkpoint, *given, f'--out={tmp_path}/g.json'
  )
  report = json.loads((tmp_path / 'g.json').read_text())
  assert status == 0
  assert out == '\n'.join([*report['texts'], ''])
  assert report['tokens'] == 10 and report['share'] == {'exit_3': 1}
  assert report['finish'] == ['length'] * 2
  assert re.search(r'exit: 10 tokens in .* by exit 3: 100%', err)


def test_prompts_from_files_and_the_standard_input(
  familial, run, tmp_path, monkeypatch
):
  plain, lines = tmp_path / 'prompt.txt', tmp_path / 'prompts.jsonl'
  plain.write_bytes(b'22: a\n')
  prompts = ['deep\nlayer', 'the exit of a layer is shallow', 'of']
  lines.write_text(''.join(f'{json.dumps({"prompt": p})}\n' for p in prompts))
  stdin = io.TextIOWrapper(io.BytesIO(b'1: the exit\n\n'))
  monkeypatch.setattr(sys, 'stdin', stdin)
  status, out, err = familial(
    'generate', f'--checkpoint={run}', '--prompt=-', f'--prompt_file={plain}',
    f'--prompt_file={lines}', '--json', '--max_tokens=5',
  )  # fmt: skip
  assert status == 0
  found = [json.loads(line) for line in out.splitlines()]
  assert [f['prompt'] for f in found] == ['1: the exit\n', '22: a', *prompts]
  # Of a context of 32 the separator and 30 bytes leave room for a token; whether
  # the other texts end before five tokens hangs on the machine's rounding.
  cut = found.pop(3)
  assert (cut['finish_reason'], cut['tokens']) == ('context', 1)
  for each in found:
    ended = each['finish_reason'] == 'stop'
    assert each['tokens'] <= 5 if ended else each['tokens'] == 5
    assert ended or each['finish_reason'] == 'length'
  assert '1 of 5 texts cut by the context of 32' in err
  _, alone, _ = familial(
    'generate', f'--checkpoint={run}', '--prompt=22: a', '--max_tokens=5'
  )
  assert alone == f'22: a{found[1]["completion"]}\n'
  for content in (b'{"prompt": 1}', b'[]', b'no', b'\xff'):
    lines.write_bytes(content)
    status, _, err = familial(
      'generate', f'--checkpoint={run}', f'--prompt_file={lines}'
    )
    assert status == 2 and str(lines) in err and err.count('\n') == 1


def test_text_is_written_as_it_comes_on_a_terminal(familial, run, monkeypatch):
  given = ['generate', f'--checkpoint={run}', '--max_tokens=9']
  given += [f'--prompt={prompt}' for prompt in PROMPTS]
  _, due, _ = familial(*given)
  writes = []
  stdout = sys.stdout
  monkeypatch.setattr(stdout, 'isatty', lambda: True)
  write = stdout.write
  monkeypatch.setattr(
    stdout, 'write', lambda text: (writes.append(text), write(text))[1]
  )
  _, out, _ = familial(*given)
  assert out == ''.join(writes) == due
  assert len([text for text in writes if text.strip()]) > len(PROMPTS)


def test_evaluations_are_json_on_request(familial, run, tmp_path):
  status, out, err = familial(
    'evaluate', f'--checkpoint={run}', '--tokens=100', '--nodraw', '--json',
    f'--out={tmp_path}/e',
  )  # fmt: skip
  assert status == 0 and 'nats/token' in err
  values = json.loads((tmp_path / 'e' / 'evaluation.json').read_text())
  assert json.loads(out)['evaluation'] == {
    key: value for key, value in values.items() if key != 'schema'
  }


def test_a_terminal_of_few_letters_gets_escapes(monkeypatch):
  content = io.BytesIO()
  monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(content, 'ascii'))
  monkeypatch.setattr(main, 'run', lambda argv: print('a\u20ac'))
  with pytest.raises(SystemExit):
    main.main()
  sys.stdout.flush()
  assert content.getvalue() == b'a\\u20ac\n'


def test_a_single_exit_has_one_mode_and_no_relay(familial, run, tmp_path):
  alone = tmp_path / 'alone'
  familial('export', f'--checkpoint={run}', '--exit=1', f'--out={alone}')
  status, _, err = familial(
    'evaluate', f'--checkpoint={alone}', '--decode', '--nodraw', '--tokens=100'
  )
  assert status == 0
  lines = err.splitlines()
  assert lines and all(line.startswith('familial: ') for line in lines)
  folder = alone / 'evaluation' / '0'
  names = sorted(path.name for path in folder.iterdir())
  assert names == ['command.json', 'decoding.json', 'evaluation.json']
  values = json.loads((folder / 'decoding.json').read_text())
  assert [s['detail'] for s in values['speeds']] == ['exit 1'] * 2
  assert values['speeds'][0]['layers'] == 1 and values['hops'] == []


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (['evaluate', '--exits=4'], 'exit'),
    (['evaluate', '--step=77'], 'no such checkpoint'),
    (['generate', '--prompt=a', '--exit=9'], 'exit: 9'),
    (['generate', '--prompt=\udcff\udcfe'], r"prompt: '\udcff\udcfe' is not"),
    (
      ['generate', '--prompt=a', '--mode=speculative', '--fill=defer'],
      '--fill: not used by --mode=speculative, only by confidence and relay',
    ),
    (
      ['generate', '--prompt=a', '--mode=relay', '--servers=a:1', '--exit=1'],
      '--exit: not used by --mode=relay',
    ),
    (['generate', f'--prompt={"x" * 99}'], 'context of 32'),
    (['generate'], '--prompt'),
    (
      ['generate', '--prompt=a', '--mode=confidence', '--threshold=1.5'],
      'max_prob is from 1 / V',
    ),
    (
      ['generate', '--prompt=a', '--mode=relay', '--servers=localhost'],
      "'localhost' is not HOST:PORT",
    ),
    (['export', '--exit=9'], 'exit: 9'),
  ],
)
def test_what_cannot_work_is_one_line(familial, run, tmp_path, arguments, said):
  checkpoint, out = f'--checkpoint={run}', f'--out={tmp_path}/o'
  status, _, err = familial(*arguments, checkpoint, out)
  assert status == 2 and said in err and err.count('\n') == 1
  assert not (tmp_path / 'o').exists()
