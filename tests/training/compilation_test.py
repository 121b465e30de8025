"""The set-up of a process before training."""

import dataclasses

import jax
import pytest

from familial.core import errors
from familial.training import loop
from familial.training import population
from familial.training import timing


@pytest.mark.parametrize(
  ('run', 'expected'),
  [
    (lambda c, f: loop.run(c, f, quiet=True), 'have not met: set FAMILIAL_PRO'),
    (lambda c, f: population.run([c], [f], quiet=True), 'keep to one'),
    (lambda c, f: timing.measure(c, steps=1), 'keep to one'),
  ],
)
def test_several_processes_are_refused_where_unsupported(
  run_config, tmp_path, monkeypatch, run, expected
):
  monkeypatch.setattr(jax, 'process_count', lambda: 4)
  with pytest.raises(errors.UserError, match=r'^4 JAX processes') as raised:
    run(run_config(), tmp_path / 'run')
  assert expected in str(raised.value) and '\n' not in str(raised.value)
  assert not list(tmp_path.iterdir())


def test_programs_are_cached_in_the_configured_folder(
  run_config, tmp_path, monkeypatch
):
  updated = {}
  monkeypatch.setattr(jax.config, 'update', updated.__setitem__)
  config = run_config(trained='exits', init_from='../no_parent')
  data = dataclasses.replace(config.data, cache_dir=str(tmp_path / 'here'))
  config = dataclasses.replace(config, data=data)
  with pytest.raises(errors.UserError, match='no_parent'):
    loop.run(config, tmp_path / 'run')
  assert updated['jax_compilation_cache_dir'] == str(tmp_path / 'here' / 'xla')
