import json
import pathlib
import resource
import subprocess
import sys

import numpy as np
import pytest

from familial.cli import main
from familial.core import errors
from familial.core import run_folder
from familial.core import storage

ROOT = pathlib.Path(__file__).parents[2]
QUICKSTART = f'--config={ROOT}/experiments/quickstart.py'
LAW = f'--config={ROOT}/experiments/familial_law.py'


@pytest.fixture
def familial(monkeypatch, capsys):
  """Runs a command here; returns its status and what it printed."""

  def run(*arguments):
    argv = ['familial', *map(str, arguments)]
    monkeypatch.setattr(sys, 'argv', argv)  # Where overrides are read from.
    # A process loads one config; a second would inherit the first's names.
    monkeypatch.delitem(sys.modules, 'config_config', raising=False)
    status = main._main(argv)
    printed = capsys.readouterr()
    return status, printed.out, printed.err

  return run


@pytest.fixture
def refused(familial, monkeypatch):
  """Runs what must fail; returns the one line that it says."""
  # What is not refused fails here, instead of training a study.
  monkeypatch.setattr('familial.studies.plan.calibrate', None)

  def run(*arguments):
    status, out, err = familial(*arguments)
    assert status == 2
    assert out == ''
    assert err.startswith('familial: ') and err.count('\n') == 1
    assert 'Traceback' not in err
    return err

  return run


def test_help_is_quick_and_lists_the_commands():
  before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
  done = subprocess.run(
    [sys.executable, '-m', 'familial', '--help'],
    capture_output=True, text=True, cwd=ROOT,
  )  # fmt: skip
  spent = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
  assert done.returncode == 0 and not done.stderr
  assert spent < 1
  for name, command in main.COMMANDS.items():
    assert f'  {name} ' in done.stdout and command.help in done.stdout


@pytest.mark.parametrize(
  ('name', 'flag'),
  [
    ('run', '--workdir'),
    ('train', '--workdir'),
    ('report', '--workdir'),
    ('fit', '--table'),
    ('allocate', '--policy'),
    ('evaluate', '--checkpoint'),
    ('export', '--checkpoint'),
    ('import', '--from'),
    ('generate', '--prompt'),
    ('relay', '--segment'),
    ('probe', '--checkpoint'),
  ],
)
def test_each_command_lists_its_flags(familial, name, flag):
  status, out, _ = familial(name, '--help')
  assert status == 0
  assert main.COMMANDS[name].help in out and flag in out


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    (['rnu'], ['rnu', "did you mean 'run'", 'report']),
    (['run', QUICKSTART, '--wrokers=2'], ['wrokers', 'workers']),
    (['run', QUICKSTART, '--workers=two'], ['--workers', 'two']),
    (['run', QUICKSTART, '--workers=0'], ['--workers', '0', 'positive']),
    (['run', QUICKSTART, 'stray'], ['stray', 'flags only']),
    (
      ['run', QUICKSTART, '--config.fit.stats=3'],
      ['unknown key stats', 'starts'],
    ),
    (['run', QUICKSTART, '--config.ftt.starts=3'], ['ftt']),
    (['run', QUICKSTART, '--config.fit.starts=x'], ['fit.starts', "'x'"]),
    (['run', QUICKSTART, '--config.grid.budgets=x'], ['grid.budgets', "'x'"]),
    (
      ['run', QUICKSTART, '--config.rules.batch_tokens=0'],
      ['rules.batch_tokens', '0'],
    ),
    (['run', QUICKSTART, '--config.model.dtype=f8'], ['model.dtype', 'f8']),
    (
      ['run', QUICKSTART, '--config.grid.granularities=(8,)'],
      ['granularity', '8', '1..4'],
    ),
    (
      ['run', QUICKSTART, '--config.grid.shapes=((8,4,3),)'],
      ['model.heads', '3', 'width 8'],
    ),
    (
      ['run', QUICKSTART, '--config.grid.budgets=(10.0,)'],
      ['grid.budgets', '10', 'below one step'],
    ),
    (['run', f'{LAW}:cup'], ["variant 'cup'", 'cpu']),
    (['run', f'{QUICKSTART}:x'], ["variant 'x'"]),
    (['train', QUICKSTART], ["a study's", 'familial run', 'single.py']),
    (['train', '--config.train.stps=3'], ['stps', 'steps']),
    (['run', '--config.grid.budgts=(1.0,)'], ['budgts', 'budgets']),
    (['run', '--config.gird.seed=1'], ['gird', 'grid']),
    (['report'], ['workdir', 'plan.json']),
  ],
)
def test_what_cannot_work_is_one_line(refused, tmp_path, arguments, said):
  line = refused(*arguments, f'--workdir={tmp_path / "new"}')
  for part in said:
    assert part in line
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('command', ['run', 'train', 'report'])
def test_a_workdir_must_be_given(refused, monkeypatch, tmp_path, command):
  monkeypatch.chdir(tmp_path)
  config = [] if command == 'report' else [QUICKSTART]
  assert '--workdir' in refused(command, *config)
  assert '--workdir' in refused(command, *config, '--workdir=')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ('name', 'text', 'said'),
  [
    ('none.py', None, ['none.py']),
    ('syntax.py', 'def get_config(:\n  pass\n', ['syntax.py', 'line 1']),
    ('raises.py', 'raise RuntimeError("one\\ntwo")\n', ['two']),
    ('other.py', 'x = 1\n', ['get_config']),
    ('typo.py', 'import math\nmath.sine(1)\n', ["no attribute 'sine'"]),
  ],
)
def test_a_config_file_that_does_not_load(refused, tmp_path, name, text, said):
  if text:
    (tmp_path / name).write_text(text)
  line = refused(
    'run', f'--config={tmp_path / name}', f'--workdir={tmp_path}/w'
  )
  for part in said:
    assert part in line


def test_a_workdir_that_cannot_be_made(refused, tmp_path):
  (tmp_path / 'file').write_text('in the way')
  line = refused('run', QUICKSTART, f'--workdir={tmp_path}/file/new')
  assert f'{tmp_path}/file/new' in line and 'directory' in line.lower()


def test_a_workdir_of_another_study(refused, tmp_path, text_data):
  values = [
    f'--workdir={tmp_path}',
    '--config.data.corpus=text_files',
    f'--config.data.path={tmp_path}/nowhere',
  ]
  assert 'nowhere' in refused('run', QUICKSTART, *values)
  assert (tmp_path / 'config.json').exists()
  line = refused('run', QUICKSTART, *values, '--config.grid.seconds=3')
  assert 'grid.seconds' in line and '3' in line and 'workdir' in line
  # No run depends on how its law is fitted.
  assert 'nowhere' in refused(
    'run', QUICKSTART, *values, '--config.fit.starts=3'
  )
  config = json.loads((tmp_path / 'config.json').read_text())
  assert config['fit']['starts'] == 3
  # A damaged one is no traceback either.
  (tmp_path / 'config.json').write_text('{"schema": ')
  assert 'config.json' in refused('run', QUICKSTART, *values)


def test_a_study_without_some_of_its_cells_is_no_success(
  familial, monkeypatch, tmp_path
):
  def run(*unused, **options):
    raise errors.Incomplete('2 of 44 cells failed')

  monkeypatch.setattr('familial.studies.isoflop.run', run)
  status, _, err = familial('run', QUICKSTART, f'--workdir={tmp_path}')
  assert (status, err) == (1, 'familial: 2 of 44 cells failed\n')


def test_fit_refuses_in_one_line(refused, tmp_path):
  out = f'--out={tmp_path}/out'
  assert 'none.csv' in refused('fit', f'--table={tmp_path}/none.csv', out)
  assert '--table' in refused('fit', out)
  table = tmp_path / 'runs.csv'
  table.write_text('params,tokens,exits,loss\n1e6,1e8,1,3.0\n')
  given = f'--table={table}'
  assert '--out' in refused('fit', given)
  assert 'familial_totl' in refused('fit', given, out, '--form=familial_totl')
  assert '--columns' in refused('fit', given, out, '--columns=params')
  assert 'Size' in refused('fit', given, out, '--columns=params=Size')
  assert '--loss' in refused('fit', given, out, '--loss=last')
  assert 'drop_highest' in refused('fit', given, out, '--drop_highest=5')


def test_fit_writes_what_it_found(familial, tmp_path):
  n, d, g = (
    axis.ravel()
    for axis in np.meshgrid(
      np.geomspace(1e5, 1e7, 4), np.geomspace(1e7, 1e9, 4), [1, 2, 4]
    )
  )
  loss = (1.5 + 40 / n**0.3 + 200 / d**0.35) * g**0.04
  rows = [','.join(map(repr, row)) for row in zip(
    n.tolist(), d.tolist(), g.tolist(), loss.tolist(), strict=True
  )]  # fmt: skip
  (tmp_path / 'runs.csv').write_text('\n'.join(['size,D,G,loss', *rows]) + '\n')
  status, out, _ = familial(
    'fit', f'--table={tmp_path}/runs.csv', '--columns=params=size',
    f'--out={tmp_path}/out', '--starts=16', '--resamples=10',
  )  # fmt: skip
  assert status == 0
  assert 'gamma' in out
  fit = json.loads((tmp_path / 'out' / 'fit.json').read_text())
  assert fit['form'] == 'familial_total' and fit['rows'] == 48
  assert fit['params']['gamma'] == pytest.approx(0.04, abs=1e-4)
  assert fit['params']['alpha'] == pytest.approx(0.3, abs=1e-3)
  assert fit['resamples'] == 10


def test_train_goes_to_its_end_and_says_so(familial, tmp_path, text_data):
  text = [
    f'--config={ROOT}/experiments/single.py', f'--workdir={tmp_path}/run',
    '--config.data.corpus=text_files', f'--config.data.path={text_data.path}',
    '--config.data.heldout_percent=20', '--config.data.seq_len=16',
    '--config.model.width=8', '--config.model.depth=2',
    '--config.model.heads=1', '--config.model.kv_heads=1',
    '--config.model.exits=(1,2)', '--config.train.steps=3',
    '--config.train.warmup_steps=1', '--config.train.batch_size=4',
    '--config.train.eval_tokens=128', '--config.train.evaluations=1',
  ]  # fmt: skip
  with storage.lock(tmp_path / 'run'):
    status, _, err = familial('train', *text)
    assert status == 2 and 'another process is training there' in err
  status, out, _ = familial('train', *text)
  assert status == 0
  assert out.startswith(f'{tmp_path}/run: finished after 3 steps')
  assert len(storage.read_rows(tmp_path / 'run' / run_folder.ROWS)) == 2
