"""Small families and prompts, for the tests of serving."""

import numpy as np
import pytest


@pytest.fixture
def family():
  # Here, for JAX reads its cache's folder when it is imported.
  from tests.serving import families

  return families.Family


@pytest.fixture
def prompts():
  from tests.serving import families

  rng = np.random.default_rng(0)
  return [rng.integers(0, families.VOCAB, n).tolist() for n in (3, 1, 17, 6, 9)]


@pytest.fixture(scope='session')
def run(run_config, shape, corpus, tmp_path_factory):
  """A run that has learnt a little."""
  from familial.training import loop

  folder = tmp_path_factory.mktemp('generating') / 'run'
  config = run_config(
    shape(vocab_size=256, exits=(1, 2, 3)),
    steps=150, base_lr=0.1, evaluations=1,
  )  # fmt: skip
  loop.run(config, folder, corpus, quiet=True)
  return folder


@pytest.fixture(scope='session')
def model(run):
  from familial.serving import models

  return models.load(run)


@pytest.fixture
def familial(monkeypatch, capsys):
  """Runs a command; returns its status, what it prints and what it says."""
  from familial import main

  def run(*arguments):
    status = main._main(['familial', *arguments])
    out, err = capsys.readouterr()
    return status, out, err

  return run
