import json
import re

import pytest

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
  status, out, _ = familial(
    'generate', checkpoint, *given, f'--out={tmp_path}/g.json'
  )
  report = json.loads((tmp_path / 'g.json').read_text())
  assert status == 0
  assert out.startswith('\n'.join(report['texts']))
  assert report['tokens'] == 10 and report['share'] == {'exit_3': 1}
  assert re.search(r'exit: 10 tokens in .* by exit 3: 100%', out)


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
    (['export', '--exit=9'], 'exit: 9'),
  ],
)
def test_what_cannot_work_is_one_line(familial, run, tmp_path, arguments, said):
  checkpoint, out = f'--checkpoint={run}', f'--out={tmp_path}/o'
  status, _, err = familial(*arguments, checkpoint, out)
  assert status == 2 and said in err and err.count('\n') == 1
  assert not (tmp_path / 'o').exists()
