import sys
import time

import pytest
from tensorboard.backend.event_processing import event_accumulator

from familial.core import errors
from familial.training import events


def test_nothing_is_written_unless_asked(tmp_path):
  with events.writer(tmp_path, wanted=False, start=0) as scalars:
    scalars(1, {'loss': 1.0})
  assert not list(tmp_path.iterdir())


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorboard.summary.writer', None)
  with (
    pytest.raises(errors.UserError, match=r'familial\[tensorboard\]'),
    events.writer(tmp_path, wanted=True, start=0),
  ):
    pass


def _read(folder):
  found = event_accumulator.EventAccumulator(str(folder / 'events'))
  return found.Reload().Scalars('train/loss')


def _write(folder, start, values):
  with events.writer(folder, wanted=True, start=start) as scalars:
    for step, value in enumerate(values, start=start + 1):
      scalars(step, {'train/loss': value})


def test_scalars_are_read_back_and_repeated_steps_once(tmp_path):
  before = time.time()
  _write(tmp_path, 0, [5.0, 4.0, 3.0, 2.0])
  _write(tmp_path, 2, [3.5, 2.5, 1.5])
  events_ = _read(tmp_path)
  assert all(before <= event.wall_time <= time.time() for event in events_)
  assert [(event.step, event.value) for event in events_] == [
    (1, 5.0),
    (2, 4.0),
    (3, 3.5),
    (4, 2.5),
    (5, 1.5),
  ]
