"""Training on a folder of text and evaluating it there, by commands."""

import json
import pathlib
import shutil

import pytest

from familial.core import run_folder
from familial.core import storage
from familial.serving import evaluate

ROOT = pathlib.Path(__file__).parents[2]
SMALL = [
  f'--config={ROOT}/experiments/single.py', '--config.data.seq_len=16',
  '--config.model.width=8', '--config.model.depth=2',
  '--config.model.heads=1', '--config.model.kv_heads=1',
  '--config.model.exits=(1,2)', '--config.train.steps=8',
  '--config.train.warmup_steps=1', '--config.train.batch_size=4',
  '--config.train.eval_tokens=128', '--config.train.evaluations=1',
  '--config.data.corpus=text_files', '--config.data.heldout_percent=20',
]  # fmt: skip


@pytest.fixture
def text(tmp_path):
  """A folder of three short texts, and a file that is not UTF-8."""
  folder = tmp_path / 'text'
  folder.mkdir()
  for i in range(3):
    (folder / f'{i}.txt').write_text(f'line {i} of the text\n' * 30)
  (folder / 'latin.txt').write_bytes('é'.encode('latin-1'))
  return folder


def test_text_is_said_trained_on_moved_and_evaluated(familial, tmp_path, text):
  workdir = tmp_path / 'new' / 'run'
  train = ['train', f'--workdir={workdir}', *SMALL]
  status, out, err = familial(*train, f'--config.data.path={text}')
  assert (status, out) == (2, '')
  for part in ('1 of 4', 'latin.txt', 'data.allow_left_out'):
    assert part in err
  assert not (tmp_path / 'new').exists()
  allowed = '--config.data.allow_left_out=True'
  status, out, err = familial(*train, f'--config.data.path={text}', allowed)
  assert status == 0, err
  # 1,620 bytes of three texts: windows of 16, 8 steps of 64 tokens.
  for part in ('latin.txt', '8 steps', '512', 'epochs', 'FLOPs', 'cpu'):
    assert part in out
  assert 'compiling' in err
  ends = [r['loss'] for r in storage.read_rows(workdir / run_folder.ROWS)]

  text.rename(tmp_path / 'moved')
  command = ['evaluate', f'--checkpoint={workdir}', '--nodraw']
  status, _, err = familial(*command)
  assert status == 2 and 'data.path' in err and str(text) in err
  moved = [f'--data.path={tmp_path}/moved', '--data.allow_left_out']
  status, _, err = familial(*command, *moved)
  assert status == 0, err
  found = storage.read_json(workdir / 'evaluation' / '8' / 'evaluation.json')
  assert [e['loss'] for e in found['exits']] == pytest.approx(ends, abs=1e-5)

  other = tmp_path / 'other'
  shutil.copytree(tmp_path / 'moved', other)
  (other / 'latin.txt').write_text('something else ' * 99)
  status, _, err = familial(*command, f'--data.path={other}')
  assert status == 0 and found['corpus'] in err
  [beside] = workdir.glob('evaluation/8_*/evaluation.json')
  assert json.loads(beside.read_text())['corpus'] in beside.parent.name
  for bad in ('--data.seq_len=17', '--data.corpus=nothing'):
    status, _, err = familial(*command, *moved, bad)
    assert status == 2 and err.count('\n') == 1

  probe = ['probe', f'--checkpoint={workdir}', f'--out={tmp_path}/probe']
  assert familial(*probe)[0] == 2
  status, _, err = familial(*probe, *moved)
  assert status == 0, err


def test_what_cannot_be_written_is_said_before_it_is_measured(
  familial, tmp_path, monkeypatch
):
  monkeypatch.setattr(evaluate, 'on_text', None)
  (tmp_path / 'file').write_text('')
  for command in ('evaluate', 'probe'):
    status, _, err = familial(
      command, f'--checkpoint={tmp_path}', f'--out={tmp_path}/file/out'
    )
    assert status == 2 and f'{tmp_path}/file/out' in err


def test_progress_of_a_run_that_begins_anew_is_said_from_its_step(
  familial, tmp_path, text
):
  (text / 'latin.txt').unlink()
  train = [
    'train', f'--workdir={tmp_path}/run', *SMALL,
    f'--config.data.path={text}', '--config.train.schedule=constant',
  ]  # fmt: skip
  assert familial(*train)[0] == 0
  status, out, _ = familial(*train, '--config.train.steps=12')
  assert status == 0 and '4 steps from step 8' in out
  status, out, _ = familial(*train, '--config.train.steps=12')
  assert status == 0 and out.count('\n') == 1  # There is nothing to train.
