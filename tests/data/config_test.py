import pathlib

import pytest

from familial.core import errors
from familial.data import config


@pytest.mark.parametrize(
  ('values', 'said'),
  [
    ({'corpus': ''}, ['corpus', 'python_source']),
    ({'corpus': 'text_files'}, ['path', 'text_files']),
    ({'path': '/tmp'}, ['path', '/tmp', 'python_source']),
    ({'tokenizer': 'byte'}, ["'byte'", 'bytes, bpe', "did you mean 'bytes'"]),
    ({'tokenizer': 'my/tokenizer'}, ["'my/tokenizer'", 'ends in .json']),
    ({'vocab_size': 512}, ['vocab_size=512', '256']),
    ({'tokenizer': 'bpe'}, ['vocab_size=256', '257']),
    ({'seq_len': 0}, ['seq_len=0']),
    ({'heldout_percent': 0}, ['heldout_percent=0', '1 to 50']),
    ({'heldout_percent': 51}, ['heldout_percent=51']),
  ],
)
def test_a_bad_value_is_named_in_one_line(values, said):
  with pytest.raises(errors.UserError) as raised:
    config.DataConfig(**values)
  message = str(raised.value)
  assert '\n' not in message
  for part in said:
    assert part in message


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
