import io
import sys

import pytest

from familial.core import progress_bar


@pytest.fixture
def clock(monkeypatch):
  """Moves the time that lines are printed by."""
  now = [0.0]
  monkeypatch.setattr(progress_bar.time, 'monotonic', lambda: now[0])
  return now


@pytest.mark.parametrize('total', [1000, None])
def test_a_log_gets_a_line_a_minute(clock, monkeypatch, total):
  monkeypatch.setattr(sys, 'stderr', log := io.StringIO())
  bar = progress_bar.start(total=total, desc='work', unit='step')
  for _ in range(1000):
    clock[0] += 0.5
    bar.update(1)
    bar.set_postfix_str(f'loss {clock[0]}')
  bar.close()
  lines = log.getvalue().splitlines()
  assert len(lines) == 8 and '\r' not in log.getvalue()
  assert lines[0].startswith('work: ') and 'loss ' in lines[-1]
  assert all(len(line) < 100 for line in lines)


def test_what_is_short_says_nothing_in_a_log(clock, monkeypatch):
  monkeypatch.setattr(sys, 'stderr', log := io.StringIO())
  assert list(progress_bar.start(range(9), desc='short')) == [*range(9)]
  assert log.getvalue() == ''


def test_a_terminal_has_a_bar(monkeypatch):
  terminal = io.StringIO()
  terminal.isatty = lambda: True
  monkeypatch.setattr(sys, 'stderr', terminal)
  with progress_bar.start(total=9, desc='work') as bar:
    bar.update(9)
    progress_bar.say('a line')
  assert '\r' in terminal.getvalue() and 'a line\n' in terminal.getvalue()
