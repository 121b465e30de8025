"""What readies a process for training, or refuses to."""

import dataclasses
import importlib.util
import types

import jax
from jax._src import lru_cache
import pytest

from familial.core import errors
from familial.training import compilation
from familial.training import loop
from familial.training import population
from familial.training import timing


@pytest.mark.parametrize(
  ('run', 'said'),
  [
    (lambda c, f: loop.run(c, f, quiet=True), 'have not met: set FAMILIAL_PRO'),
    (lambda c, f: population.run([c], [f], quiet=True), 'keep to one'),
    (lambda c, f: timing.measure(c, steps=1), 'keep to one'),
  ],
)
def test_several_processes_are_refused_where_they_cannot(
  run_config, tmp_path, monkeypatch, run, said
):
  monkeypatch.setattr(jax, 'process_count', lambda: 4)
  with pytest.raises(errors.UserError, match=r'^4 JAX processes') as raised:
    run(run_config(), tmp_path / 'run')
  assert said in str(raised.value) and '\n' not in str(raised.value)
  assert not list(tmp_path.iterdir())


def test_programs_are_kept_where_the_config_says(
  run_config, tmp_path, monkeypatch
):
  kept = {}
  monkeypatch.setattr(jax.config, 'update', kept.__setitem__)
  config = run_config(trained='exits', init_from='../no_parent')
  data = dataclasses.replace(config.data, cache_dir=str(tmp_path / 'here'))
  config = dataclasses.replace(config, data=data)
  with pytest.raises(errors.UserError, match='no_parent'):
    loop.run(config, tmp_path / 'run')
  assert kept['jax_compilation_cache_dir'] == str(tmp_path / 'here' / 'xla')


@pytest.mark.parametrize('left', [None, types.SimpleNamespace()])
def test_a_jax_without_that_cache_is_left_as_it_is(monkeypatch, left):
  monkeypatch.setattr(jax._src, 'lru_cache', left)
  monkeypatch.setattr(jax.config, 'update', lambda key, value: None)
  spec = importlib.util.find_spec(compilation.__name__)
  found = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(found)
  put = lru_cache.LRUCache.put
  found.prepare()
  assert lru_cache.LRUCache.put is put
