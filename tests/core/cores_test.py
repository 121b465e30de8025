import os

from familial.core import cores


def test_a_process_keeps_to_its_cores():
  before = cores.available_cores()
  try:
    cores.keep_to(before[:1])
    assert cores.available_cores() == before[:1]
  finally:
    cores.keep_to(before)
  assert cores.available_cores() == before


def test_a_system_that_pins_nothing(monkeypatch):
  monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
  monkeypatch.delattr(os, 'sched_setaffinity', raising=False)
  cores.keep_to([0])
  assert cores.available_cores() == list(range(os.cpu_count()))
