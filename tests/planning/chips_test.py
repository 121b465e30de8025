import importlib.util

import jax
import pytest

from familial.core import errors
from familial.planning import chips


def test_this_host_s_devices_are_a_topology():
  assert list(chips.devices(chips.HERE)) == jax.devices()


@pytest.mark.parametrize('name', ['', 'v5p', 'v5p:4x', 'v5p 4x4'])
def test_what_is_no_topology_is_one_line(name):
  with pytest.raises(
    errors.UserError, match='neither a TPU topology'
  ) as raised:
    chips.devices(name)
  assert repr(name) in str(raised.value) and '\n' not in str(raised.value)


def test_without_libtpu_the_line_says_where_it_is_from(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.UserError, match=r'familial\[tpu\]'):
    chips.devices('v5p:4x4x4')


def test_unknown_devices_are_one_line():
  with pytest.raises(errors.UserError, match="no figures of a 'cpu'"):
    chips.of(jax.devices('cpu'), chips.HERE)
