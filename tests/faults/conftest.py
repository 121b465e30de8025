"""Disks that are small, full or read-only, where the tests may mount them."""

import pathlib
import subprocess

import pytest

_STUDY = """
from experiments import familial_law
def get_config():
  config = familial_law.get_config('test')
  config.grid.budgets = (1e9, 3e9)
  config.data.update(corpus='text_files', path={path!r}, heldout_percent=20)
  config.train.update(evaluations=12, checkpoint_seconds=0.1, keep=2)
  one = {{'budgets': (1e9,), 'shapes': (1,), 'granularities': (2,)}}
  config.arms = {{'frozen': {{**one, 'values': ('separate',)}}}}
  config.fit.starts, config.fit.resamples = 8, 10
  return config
"""


@pytest.fixture
def study(tmp_path, text_data):
  """The config file of nine cells, one of which starts from another's end.

  They save all the time.
  """
  path = tmp_path / 'study.py'
  path.write_text(_STUDY.format(path=text_data.path))
  return path


class Disk:
  """A folder on a file system of its own."""

  def __init__(self, folder):
    self.folder = pathlib.Path(folder)

  def remount(self, options):
    """Changes its size, or whether it can be written: `size=1m`, `ro`."""
    self._run('mount', '-o', f'remount,{options}', str(self.folder))

  def fill(self):
    """Leaves no room."""
    with open(self.folder / 'filling', 'wb', buffering=0) as file:
      try:
        while file.write(bytes(4096)):
          pass
      except OSError:
        pass

  def empty(self):
    """Gives the room back."""
    (self.folder / 'filling').unlink()

  def _run(self, *command):
    return subprocess.run(command, capture_output=True, check=True)

  def __enter__(self):
    self.folder.mkdir()
    try:
      self._run('mount', '-t', 'tmpfs', '-o', 'size=1m', 'none', self.folder)
    except (OSError, subprocess.CalledProcessError):
      pytest.skip('mounting is not permitted here')
    return self

  def __exit__(self, *exception):
    self._run('umount', '--lazy', self.folder)


@pytest.fixture
def disk(tmp_path):
  """A disk of 1 MiB."""
  with Disk(tmp_path / 'disk') as made:
    yield made
