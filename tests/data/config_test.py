import os
import pathlib

import pytest

from familial.core import errors
from familial.data import config


def test_a_tokenizer_may_be_a_file():
  named = config.DataConfig(tokenizer='a/tokenizer.json', vocab_size=9)
  assert named.tokenizer_file == 'a/tokenizer.json'
  assert config.DataConfig().tokenizer_file == ''


def test_cache_folder_is_the_key_then_the_environment_then_home(monkeypatch):
  monkeypatch.setenv('FAMILIAL_CACHE', '/from/environment')
  named = config.DataConfig(cache_dir='/from/key')
  assert config.cache_folder(named) == pathlib.Path('/from/key')
  unnamed = config.DataConfig()
  assert config.cache_folder(unnamed) == pathlib.Path('/from/environment')
  monkeypatch.delenv('FAMILIAL_CACHE')
  expected = pathlib.Path.home() / '.cache' / 'familial'
  assert config.cache_folder(unnamed) == expected


def test_a_home_that_cannot_be_written_is_no_reason_to_stop(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.delenv('FAMILIAL_CACHE')
  monkeypatch.setattr(config.tempfile, 'gettempdir', lambda: str(tmp_path))
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  home = tmp_path / 'home' / '.cache' / 'familial'
  assert config.cache_folder(config.DataConfig()) == home
  (tmp_path / 'home').write_text('no folder')
  own = tmp_path / f'familial-{os.getuid()}'
  config._temporary.cache_clear()
  for _ in range(2):
    assert config.cache_folder(config.DataConfig()) == own
  assert own.stat().st_mode & 0o777 == 0o700
  err = capsys.readouterr().err
  assert err.count('\n') == 1 and 'FAMILIAL_CACHE' in err
  # A folder that others can write holds no programs of ours.
  own.chmod(0o777)
  (tmp_path / 'home').write_text('still no folder')
  config._temporary.cache_clear()
  with pytest.raises(errors.UserError, match='FAMILIAL_CACHE'):
    config.cache_folder(config.DataConfig())
  config._temporary.cache_clear()
