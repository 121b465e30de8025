import pathlib

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
