import os

from familial.core import cores


def test_a_process_keeps_to_its_cores():
  before = cores.mine()
  try:
    cores.keep_to(before[:1])
    assert cores.mine() == before[:1]
  finally:
    cores.keep_to(before)
  assert cores.mine() == before


def test_a_system_that_pins_nothing(monkeypatch):
  monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
  monkeypatch.delattr(os, 'sched_setaffinity', raising=False)
  cores.keep_to([0])
  assert cores.mine() == list(range(os.cpu_count()))
