import dataclasses

import pytest

from familial.planning import chips


@dataclasses.dataclass(frozen=True)
class Device:
  id: int
  process_index: int = 0
  device_kind: str = 'toy'
  platform: str = 'tpu'


@pytest.fixture
def toys(monkeypatch):
  """Has a topology be toy devices, which nothing can be compiled for."""

  def make(count, **figures):
    values = {
      'flops': 1e9, 'memory': 1e6, 'memory_speed': 1e8, 'link_speed': 1e7,
      **figures,
    }  # fmt: skip
    devices = [Device(i) for i in range(count)]
    monkeypatch.setattr(chips, 'devices', lambda topology: devices)
    chip = chips.Chip('toy', **values)
    monkeypatch.setattr(chips, 'CHIPS', {'toy': chip})
    return devices, chip

  return make
