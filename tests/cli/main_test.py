"""Commands from their arguments to their status; tests/golden has what is refused."""

import dataclasses
import pathlib
import resource
import shlex
import subprocess
import sys

from absl import flags
import pytest

import familial as package
from familial.cli import command as command_lib
from familial.cli import config_files
from familial.cli import main
from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.laws import inference
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
  assert familial('help', name) == (status, out, err)
  assert main.COMMANDS[name].help in out
  values = flags.FlagValues()
  main.load(name).define(values)
  for flag in values:
    assert f'--{flag}' in out.replace('--[no]', '--') and values[flag].help
  required, _, others = out.partition('\nFlags:')
  for field in main.load(name).fields:
    flag = f'--{command_lib.flag_name(field.name)}='
    if command_lib.is_required(field):
      assert flag in required and flag not in others.partition('Examples:')[0]
    else:
      assert flag not in required
  for example in main.COMMANDS[name].examples:
    program, called, *arguments = shlex.split(example)
    assert (program, called) == ('familial', name)
    plain, _ = config_files.split(arguments, main.load(name).config_flags)
    given = flags.FlagValues()
    main.load(name).define(given)
    assert given([program, *plain]) == [program]


@pytest.mark.parametrize('name', main.COMMANDS)
def test_a_wrong_flag_is_told_before_anything_is_imported(name):
  code = (
    'import sys\n'
    'from familial.cli import main\n'
    f"status = main.run(['familial', {name!r}, '--wrong=1'])\n"
    "heavy = {'jax', 'numpy', 'polars', 'scipy'} & set(sys.modules)\n"
    'assert (status, heavy) == (2, set()), heavy\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT
  )
  assert done.returncode == 0, done.stderr
  assert done.stderr == 'familial: --wrong: unknown flag\n'


def test_the_version_is_that_of_the_package(familial):
  status, out, err = familial('--version')
  assert (status, out, err) == (0, f'familial {package.__version__}\n', '')


def test_a_fit_has_the_defaults_of_the_library():
  options = {f.name: f.default for f in dataclasses.fields(inference.Options)}
  for field in main.load('fit').fields:
    if field.name in options:
      assert field.default == options[field.name], field.name


@pytest.mark.parametrize(
  ('config', 'parts'),
  [
    ('quikstart', ("'quickstart'", 'familial_law')),
    ('familial_law:tset', ("'test'", 'cpu')),
    ('quickstart:test', ('variant',)),
    ('{folder}/none.py', ('none.py',)),
    ('{folder}', ('quickstart',)),
    ('', ('quickstart',)),
    ('{folder}/empty.py', ('get_config',)),
    ('{folder}/number.py', ('ConfigDict', 'int')),
    ('{folder}/text.txt', ('Python',)),
  ],
)
def test_a_config_that_cannot_be_loaded_says_why(
  refused, tmp_path, config, parts
):
  (tmp_path / 'empty.py').write_text('')
  (tmp_path / 'number.py').write_text('def get_config():\n  return 3\n')
  (tmp_path / 'text.txt').write_text('')
  config = config.format(folder=tmp_path)
  line = refused('run', f'--config={config}', f'--workdir={tmp_path}/new')
  assert line.startswith(f'familial: --config={config}: ')
  for part in parts:
    assert part in line
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
  ('override', 'parts'),
  [
    ('grid.bugdets=(1,)', ('grid.bugdets', "'budgets'")),
    ('grid.seed=1.5', ('grid.seed', '1.5', 'whole')),
    ('grid.seed.x=1', ('grid.seed.x',)),
    ('train.base_lr', ('train.base_lr',)),
  ],
)
def test_an_override_that_is_not_allowed(refused, tmp_path, override, parts):
  line = refused(
    'run', QUICKSTART, f'--workdir={tmp_path}/new', f'--config.{override}'
  )
  assert line.startswith('familial: --config.')
  for part in parts:
    assert part in line


def test_overrides_are_read_in_any_form_and_order(monkeypatch, tmp_path):
  given = []
  command = main.load('run')
  monkeypatch.chdir(tmp_path)  # Packaged experiments are found by name.
  for arguments in (
    ['--config.grid.seed=3', '--workdir=w', '--config=quickstart'],
    ['--config', 'quickstart', '--config.grid.seed', '3', '--workdir', 'w'],
    ['--config=quickstart.py', '--workdir=w', '-config.grid.seed=3'],
    ['--workdir=w', '--config.grid.seed=3', '--config.model.tied',
     '--config=experiments/quickstart.py'],
    ['--workdir=w', '--noconfig.model.remat', '--config.grid.seed=3'],
  ):  # fmt: skip
    given.append(command.read(arguments).config.to_dict())
  assert given[0]['grid']['seed'] == 3 and given[0]['model']['tied'] is True
  assert all(config == given[0] for config in given)


@pytest.mark.parametrize(
  ('command', 'config'),
  [
    ('run', 'quickstart'),
    ('run', 'depth_toys:test'),
    ('train', 'single'),
    ('allocate', 'allocation:test'),
  ],
)
def test_the_keys_of_a_config_are_explained(familial, command, config):
  line = [command, f'--config={config}']
  status, out, err = familial(*line, '--help_config')
  assert (status, err) == (0, '')
  values = config_files.load('config', config, [])
  flat = flat_dict(values.to_dict())
  shown = dict(
    found.removeprefix('  --config.').split('=', 1)
    for found in out.splitlines()
    if found.startswith('  --config.')
  )
  assert shown == {key: repr(value) for key, value in flat.items()}


def flat_dict(values, prefix=''):
  flat = {}
  for key, value in values.items():
    if isinstance(value, dict) and value:
      flat |= flat_dict(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def test_help_of_a_config_needs_one(refused):
  assert '--help_config' in refused('fit', '--help_config')
  assert '--to' in refused('expand', '--help_config')
  assert 'completion' in refused('completion', 'fish')


@pytest.mark.parametrize(
  ('words', 'completed'),
  [
    (['r'], ['run', 'report', 'relay']),
    (['run', '--work'], ['--workdir=', '--workers=']),
    (['fit', '--loss', '=', ''], ['mean', 'final', 'exit']),
    (['fit', '--nod'], ['--nodraw']),
    (['run', '--config', '=', 'quick'], ['quickstart']),
    (['fit', '--table', '=', 'poi'], []),  # The shell's own: files.
  ],
)
def test_bash_completes(familial, words, completed):
  _, script, _ = familial('completion', 'bash')
  line = ' '.join(map(shlex.quote, ['familial', *words]))
  call = (
    f'COMP_WORDS=({line}); COMP_CWORD={len(words)}\n'
    '_familial 2>/dev/null\nprintf "%s\\n" "${COMPREPLY[@]}"'
  )
  done = subprocess.run(
    ['bash', '-c', f'{script}\n{call}'], capture_output=True, text=True
  )
  assert done.stdout.split() == completed, done.stderr


def test_zsh_s_script_names_every_flag(familial):
  _, script, _ = familial('completion', 'zsh')
  for name in main.COMMANDS:
    [line] = [x for x in script.splitlines() if x.startswith(f'    {name}) ')]
    for field in main.load(name).fields:
      assert command_lib.flag_name(field.name) in line


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


def test_a_study_that_cannot_start_leaves_its_folder_free(refused, tmp_path):
  values = [
    f'--workdir={tmp_path}/study',
    '--config.data.corpus=text_files',
    f'--config.data.path={tmp_path}/nowhere',
  ]
  for other in ((), ('--config.grid.seconds=3',), ('--config.fit.starts=3',)):
    assert 'nowhere' in refused('run', QUICKSTART, *values, *other)
    assert not list(tmp_path.iterdir())


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
  drawing = 'drawing figures and writing the page ...\n'
  assert familial(*call, '--config.fit.starts=5') == (0, printed, drawing)
  ((config, workdir, options),) = given
  assert (config.fit.starts, workdir) == (5, str(tmp_path))
  assert options == study_lib.Options(workers=2)
  failed = ('a', 'b')
  status, out, err = familial(*call)
  assert (status, out) == (1, printed)
  assert err.startswith(f'{drawing}familial: 2 of 44 ')
  assert err.count('\n') == 2


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
  last = out.splitlines()[-1]
  assert last.startswith(f'{tmp_path}/run: finished after 3 steps')
  assert len(storage.read_rows(tmp_path / 'run' / run_folder.ROWS)) == 2
