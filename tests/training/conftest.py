"""A run that nothing happens to, and programs on eight devices."""

import dataclasses
import json

import pytest


@pytest.fixture(scope='session')
def undisturbed(run_config, corpus, tmp_path_factory):
  """(config, folder) of a run that nothing happened to."""
  # Here, for JAX reads its cache's folder when it is imported.
  from familial.training import loop
  from familial.training import step as step_lib

  config = run_config(checkpoint_seconds=0.0)
  folder = tmp_path_factory.mktemp('undisturbed') / 'run'
  step_lib.train.clear_cache()
  assert loop.run(config, folder, corpus, quiet=True) == 'finished'
  assert step_lib.train._cache_size() == 1
  return config, folder


@pytest.fixture
def on_eight(tmp_path):
  """Runs a program on eight devices; returns what it prints."""
  # Here, for JAX reads its cache's folder when it is imported.
  from tests.training import runs

  def run(program, configs, *arguments):
    path = tmp_path / 'configs.pickle'
    process = runs.start(program, configs, path, *arguments, eight=True)
    out, err = process.communicate()
    assert process.returncode == 0, err
    # The partitioner found no split that it had to undo on the way.
    assert 'Involuntary' not in err
    return [json.loads(line) for line in out.splitlines()]

  return run


@pytest.fixture
def laid_out(run_config, shape):
  """Makes a config of 10 steps that lies on devices as is said."""

  def make(layout, **changes):
    model = shape(
      **{'vocab_size': 64, 'depth': 2, 'exits': (1, 2), 'unroll': False,
         'loss_chunk': 16, 'mlp_width': 32, **changes}
    )  # fmt: skip
    config = run_config(
      dataclasses.replace(model, vocab_size=256), steps=10, evaluations=1
    )
    return dataclasses.replace(config, layout=layout)

  return make
