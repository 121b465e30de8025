"""What is installed: every package, and the experiments."""

import configparser
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from familial.cli import config_files

ROOT = pathlib.Path(__file__).parents[2]
PARTS = ('familial', 'experiments', 'setup.cfg', 'pyproject.toml', 'README.md',
         'LICENSE')  # fmt: skip


def test_every_package_is_installed_and_the_experiments_too():
  settings = configparser.ConfigParser()
  settings.read(ROOT / 'setup.cfg')
  packages = settings['options']['packages'].split()
  there = {
    '.'.join(path.parent.relative_to(ROOT).parts)
    for path in (ROOT / 'familial').rglob('__init__.py')
  }
  assert set(packages) == there | {'familial.experiments'}
  assert config_files.names() == sorted(
    path.stem for path in (ROOT / 'experiments').glob('*.py')
  )


@pytest.mark.slow
def test_an_installed_wheel_finds_its_experiments(tmp_path):
  source, away = tmp_path / 'source', tmp_path / 'away'
  source.mkdir()
  away.mkdir()
  for part in PARTS:
    if (ROOT / part).is_dir():
      shutil.copytree(
        ROOT / part, source / part, ignore=shutil.ignore_patterns('results')
      )
    else:
      shutil.copy(ROOT / part, source)
  pip = [sys.executable, '-m', 'pip', '-q', '--disable-pip-version-check']
  target = tmp_path / 'installed'
  subprocess.run(
    [*pip, 'install', '--no-deps', '--target', target, source], check=True
  )

  def run(*arguments):
    return subprocess.run(
      [sys.executable, '-m', 'familial', *arguments],
      cwd=away,
      env={**os.environ, 'PYTHONPATH': str(target)},
      capture_output=True,
      text=True,
    )

  for config in ('quickstart', 'experiments/quickstart.py', 'familial_law:cpu'):
    done = run('run', f'--config={config}', '--help_config')
    assert done.returncode == 0, done.stderr
    assert '--config.grid.budgets=' in done.stdout
  assert run('train', '--help_config').returncode == 0  # Its default.
  done = run('run', '--config=quikstart', '--workdir=w')
  assert done.returncode == 2 and done.stderr.count('\n') == 1
  for name in config_files.names():
    assert name in done.stderr
  assert not list(away.iterdir())
