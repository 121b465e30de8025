import sys

import pytest
from tensorboard.backend.event_processing import event_file_loader as loader

from familial import errors
from familial.training import events


def test_nothing_is_written_unless_asked(tmp_path):
  with events.writer(tmp_path, wanted=False) as writer:
    writer.scalars(1, {'loss': 1.0})
  assert not list(tmp_path.iterdir())


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorboard.summary.writer', None)
  with (
    pytest.raises(errors.UserError, match=r'familial\[tensorboard\]'),
    events.writer(tmp_path, wanted=True),
  ):
    pass


def test_scalars_are_read_back(tmp_path):
  with events.writer(tmp_path, wanted=True) as writer:
    writer.scalars(7, {'train/loss': 1.5})
  (path,) = (tmp_path / 'events').iterdir()
  found = [
    (event.step, value.tag)
    for event in loader.LegacyEventFileLoader(str(path)).Load()
    for value in event.summary.value
  ]
  assert found == [(7, 'train/loss')]
