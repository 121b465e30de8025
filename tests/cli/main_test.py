"""Commands from their arguments to their status; tests/golden has what is refused."""

import json
import pathlib
import resource
import subprocess
import sys

from absl import flags
import pytest

from familial.cli import main
from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.report import page
from familial.studies import isoflop
from familial.studies import study as study_lib

ROOT = pathlib.Path(__file__).parents[2]
QUICKSTART = f'--config={ROOT}/experiments/quickstart.py'


@pytest.fixture
def refused(familial, monkeypatch):
  """Runs what must fail; returns the one line that it says."""
  # What is not refused fails here, instead of training a study.
  monkeypatch.setattr('familial.studies.plan.calibrate', None)

  def run(*arguments):
    status, out, err = familial(*arguments)
    assert (status, out) == (2, '')
    assert err.startswith('familial: ') and err.count('\n') == 1
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


@pytest.mark.parametrize('name', main.COMMANDS)
def test_each_command_explains_its_flags(familial, name):
  status, out, err = familial(name, '--help')
  assert (status, err) == (0, '')
  assert main.COMMANDS[name].help in out
  values = flags.FlagValues()
  main.load(name).define(values)
  for flag in values:
    assert f'--{flag}' in out.replace('--[no]', '--') and values[flag].help


@pytest.mark.parametrize(
  'arguments',
  [
    ['--config.grid.budgets=(10.0,)'],
    ['--config.gird.seed=1'],
    ['--wrokers=2'],
    ['stray'],
  ],
)
def test_what_is_refused_makes_no_folder(refused, tmp_path, arguments):
  refused('run', QUICKSTART, f'--workdir={tmp_path}/new', *arguments)
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('command', ['run', 'train', 'report'])
def test_a_workdir_must_be_given(refused, monkeypatch, tmp_path, command):
  monkeypatch.chdir(tmp_path)
  config = [] if command == 'report' else [QUICKSTART]
  assert '--workdir' in refused(command, *config)
  assert '--workdir' in refused(command, *config, '--workdir=')
  assert not list(tmp_path.iterdir())


def test_a_config_file_with_an_error_of_its_own(refused, tmp_path):
  (tmp_path / 'typo.py').write_text('import math\nmath.sine(1)\n')
  line = refused('run', f'--config={tmp_path}/typo.py', f'--workdir={tmp_path}')
  assert "no attribute 'sine'" in line


def test_a_workdir_of_another_study(refused, tmp_path):
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


def test_a_study_ends_with_its_line_and_its_page(
  familial, monkeypatch, tmp_path
):
  given = []

  def run(self, config, workdir, options):
    given.append((config, workdir, options))
    return study_lib.Outcome('the line', failed, total=44)

  monkeypatch.setattr(isoflop.IsoFLOP, 'run', run)
  monkeypatch.setattr(page, 'write', lambda workdir: f'{workdir}/page')
  call = ['run', QUICKSTART, f'--workdir={tmp_path}', '--workers=2']
  failed = ()
  printed = f'the line\n{tmp_path}/page\n'
  assert familial(*call, '--config.fit.starts=5') == (0, printed, '')
  ((config, workdir, options),) = given
  assert (config.fit.starts, workdir) == (5, str(tmp_path))
  assert options == study_lib.Options(workers=2)
  failed = ('a', 'b')
  status, out, err = familial(*call)
  assert (status, out) == (1, printed)
  assert err.startswith('familial: 2 of 44 ') and err.count('\n') == 1


@pytest.mark.parametrize(
  ('error', 'status'),
  [
    (errors.Interrupted('stopped'), 130),
    (KeyboardInterrupt(), 130),
    (PermissionError(13, 'Permission denied', 'x'), 2),
  ],
)
def test_a_command_that_is_cut_off_says_so(
  familial, monkeypatch, tmp_path, error, status
):
  def write(workdir):
    raise error

  monkeypatch.setattr(page, 'write', write)
  found, out, err = familial('report', f'--workdir={tmp_path}')
  assert (found, out) == (status, '')
  assert err.startswith('familial: ') and err.count('\n') == 1


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
