"""Loads launchers, which are scripts and no package."""

from collections.abc import Callable
import importlib.util
import pathlib
import types

import pytest

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch'


@pytest.fixture(scope='session')
def launcher() -> Callable[[str], types.ModuleType]:
  """Returns a launcher's module by its name."""

  def load(name: str) -> types.ModuleType:
    path = LAUNCH / f'{name}.py'
    spec = importlib.util.spec_from_file_location(f'launch_{name}', path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

  return load
