"""What all tests share: a cache of their own, a small corpus, a small model."""

from collections.abc import Callable
from collections.abc import Iterator
import os
import pathlib
import shutil
import sys
import tempfile
from typing import Any

import numpy as np
import pytest

from familial.data import config as data_config
from familial.data import packing
from familial.model import config as model_config
from familial.training import config as train_config


def pytest_configure(config: pytest.Config) -> None:
  # Tests, the processes that they start and the next session share compiled
  # programs; JAX reads this when it is imported. Without pytest's cache (`-p
  # no:cacheprovider`) the next session has none: workers get the folder of the
  # process that starts them, which removes it.
  if config.pluginmanager.hasplugin('cacheprovider'):
    os.environ['JAX_COMPILATION_CACHE_DIR'] = str(config.cache.mkdir('xla'))
  elif not hasattr(config, 'workerinput'):
    folder = tempfile.mkdtemp(prefix='familial_xla_')
    os.environ['JAX_COMPILATION_CACHE_DIR'] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  # What compiles most comes first, so that the processes of `make test` end
  # together.
  rooms = ('serving', 'training', 'studies', 'laws', 'report')

  def place(item: pytest.Item) -> int:
    room = item.path.parent.name
    return rooms.index(room) if room in rooms else len(rooms)

  items.sort(key=place)


@pytest.fixture(scope='session', autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pathlib.Path]:
  """A cache folder that only this session sees, but for compiled programs."""
  folder = tmp_path_factory.mktemp('cache')
  (folder / 'xla').symlink_to(os.environ['JAX_COMPILATION_CACHE_DIR'])
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('FAMILIAL_CACHE', str(folder))
    yield folder


@pytest.fixture(scope='session')
def text_data(
  tmp_path_factory: pytest.TempPathFactory, cache: pathlib.Path
) -> data_config.DataConfig:
  """A folder of small documents that a model can learn something from."""
  folder = tmp_path_factory.mktemp('text')
  rng = np.random.default_rng(0)
  words = ['the', 'exit', 'of', 'a', 'layer', 'is', 'shallow', 'and', 'deep']
  for number in range(120):
    text = ' '.join(rng.choice(words, size=60 + number % 40))
    (folder / f'{number:03d}.txt').write_text(f'{number}: {text}.\n')
  return data_config.DataConfig(
    corpus='text_files',
    path=str(folder),
    cache_dir=str(cache),
    seq_len=32,
    heldout_percent=20,
  )


@pytest.fixture(scope='session')
def corpus(text_data: data_config.DataConfig) -> packing.Corpus:
  """The documents of `text_data`, packed."""
  return packing.load(text_data)


@pytest.fixture(scope='session')
def shape() -> Callable[..., model_config.ModelConfig]:
  """Makes small models; rates and logits are scaled, for width is not base."""

  def make(**changes: object) -> model_config.ModelConfig:
    values = {
      'vocab_size': 48,
      'width': 16,
      'depth': 3,
      'heads': 4,
      'kv_heads': 2,
      'mlp_width': 24,
      'exits': (1, 3),
      'base_width': 32,
    }
    return model_config.ModelConfig(**{**values, **changes})

  return make


@pytest.fixture(scope='session')
def run_config(
  shape: Callable[..., model_config.ModelConfig],
  text_data: data_config.DataConfig,
) -> Callable[..., train_config.RunConfig]:
  """Makes configs of short runs on `text_data`; changes are to `train`."""

  def make(
    model: model_config.ModelConfig | None = None, **changes: object
  ) -> train_config.RunConfig:
    values = {
      'steps': 24,
      'batch_size': 8,
      'base_lr': 0.02,
      'warmup_steps': 4,
      'evaluations': 3,
      'eval_tokens': 500,
      'eval_batch_size': 8,
    }
    return train_config.RunConfig(
      cell='cell',
      arm='grid',
      budget=1e9,
      model=model or shape(vocab_size=256, depth=2, exits=(1, 2)),
      data=text_data,
      train=train_config.TrainConfig(**{**values, **changes}),
    )

  return make


@pytest.fixture(scope='session')
def untrained() -> Callable[..., Any]:
  """Makes models of random parameters, gains among them."""
  # Here, for JAX reads its cache's folder when it is imported.
  import jax
  import jax.numpy as jnp

  from familial.convert import load
  from familial.data import tokenizers
  from familial.model import transformer

  def make(
    folder: pathlib.Path,
    model: model_config.ModelConfig,
    data: data_config.DataConfig,
    path: str = '',
  ) -> load.Model:
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda leaf: jnp.asarray(
        leaf * rng.uniform(0.5, 1.5, leaf.shape), jnp.float32
      ),
      transformer.init(model, jax.random.key(0)),
    )
    config = train_config.RunConfig(
      cell='cell',
      arm='single',
      budget=0.0,
      model=model,
      data=data,
      train=train_config.TrainConfig(steps=1, batch_size=1, base_lr=0.01),
    )
    return load.Model(folder, 0, config, params, tokenizers.load(path), path)

  return make


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
  from familial.convert import load

  return load.load(run)


@pytest.fixture
def familial(monkeypatch, capsys):
  """Runs a command; returns its status, what it prints and what it says."""
  from familial.cli import main

  def run(*arguments):
    argv = ['familial', *map(str, arguments)]
    monkeypatch.setattr(sys, 'argv', argv)  # Results name their command.
    status = main.run(argv)
    out, err = capsys.readouterr()
    return status, out, err

  return run
