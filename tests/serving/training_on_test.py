"""Runs that start from an export, an import or a family of their shape."""

import dataclasses
import os
import runpy
import signal

import jax
import numpy as np
import pytest

from familial.convert import export
from familial.convert import hugging_face
from familial.convert import load
from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.data import packing
from familial.model import flops
from familial.model import transformer
from familial.training import config as train_config
from familial.training import loop
from familial.training import step
from familial.training import warm_start


@pytest.fixture(scope='module')
def family(run_config, shape, corpus, tmp_path_factory):
  """(config, folder) of a finished family."""
  model = shape(vocab_size=256, depth=2, exits=(1, 2), exit_kind='separate')
  config = run_config(model, steps=3, evaluations=1, warmup_steps=1)
  folder = tmp_path_factory.mktemp('parents') / 'family'
  return config, _run(config, folder, corpus)


@pytest.fixture
def exported(family):
  """Writes an exit of the family beside it; returns (config, folder)."""

  def write(exit_):
    _, folder = family
    out = folder.with_name(f'exit{exit_}')
    if not out.exists():
      export.to_familial(load.load(folder), exit_, out)
    return load.load(out).config, out

  return write


def _child(config, parent, model=None, **changes):
  train = dataclasses.replace(
    config.train, init_from=f'../{parent.name}', **changes
  )
  return dataclasses.replace(config, train=train, model=model or config.model)


def _start(config, folder):
  """Returns the parameters that a run starts from."""
  fresh = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(lambda: transformer.init(config.model, jax.random.key(0))),
  )
  state = step.State(fresh, (), np.int32(0))
  return warm_start.graft(state, folder, config).params


def _same(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def _rows(folder):
  return storage.read_rows(folder / run_folder.ROWS)


def _run(config, folder, corpus=None):
  """Trains a run, and checks that it finishes."""
  assert loop.run(config, folder, corpus, quiet=True) == 'finished'
  return folder


def _refused(said, config, folder, corpus=None):
  with pytest.raises(errors.UserError, match=said):
    loop.run(config, folder, corpus, quiet=True)


def test_an_export_is_trained_on(family, exported, corpus):
  _, parent = family
  config, alone = exported(1)
  # From there and not from a fresh model: at a rate of nearly 0 the loss is the
  # exit's.
  child = _child(config, alone, steps=2, base_lr=1e-30)
  folder = _run(child, alone.with_name('child'), corpus)
  spent = _rows(parent)[-1]['flops']
  lineage = storage.read_json(folder / 'lineage.json')
  assert (lineage['parent'], lineage['inherited_flops']) == ('exit1', spent)
  [row] = _rows(folder)
  assert row['flops'] == spent + 2 * 8 * 32 * flops.train(config.model, 32)
  assert row['loss'] == pytest.approx(_rows(parent)[0]['loss'], abs=1e-6)
  _same(_start(child, folder), load.load(alone).params)


def test_an_export_gives_a_family_its_trunk(family, exported):
  config, parent = family
  _, alone = exported(2)
  child = _child(config, alone)
  found = _start(child, alone.with_name('again'))
  whole = load.load(parent).params
  for name in ('segment_0', 'segment_1', 'exit_2', 'embedding'):
    _same(found[name], whole[name])
  assert not np.asarray(found['exit_1']['norm']['gain']).any()


def test_a_family_of_the_same_exits_gives_all(family):
  config, parent = family
  child, folder = _child(config, parent), parent.with_name('same')
  _same(_start(child, folder), load.load(parent).params)
  lineage = warm_start.lineage(folder, child)
  assert lineage['inherited_flops'] == _rows(parent)[-1]['flops']


def test_parents_of_another_shape_are_refused(family, exported, corpus, shape):
  config, parent = family
  dense, alone = exported(2)
  for child, key in (
    (_child(config, parent, _changed(config, exits=(2,))), 'model.exits'),
    (_child(config, parent, _changed(config, exit_kind='head')), 'exit_kind'),
    (_child(dense, parent), 'model.exits'),
    (_child(dense, alone, _changed(dense, heads=2)), 'model.heads'),
  ):
    said = rf'^train\.init_from: .*{key} = .*needs'
    _refused(said, child, parent.with_name('refused'), corpus)
    assert not parent.with_name('refused').exists()
  missing = _child(config, parent.with_name('nothing'))
  said = r'nothing.*finished run, an exp'
  _refused(said, missing, parent.with_name('refused'), corpus)


def _changed(config, **changes):
  return dataclasses.replace(config.model, **changes)


def test_trained_on_in_its_place_it_is_a_run(family, exported, corpus):
  _, parent = family
  exported(1)
  folder = parent.with_name('in_place')
  export.to_familial(load.load(parent), 1, folder)
  config = load.load(folder).config

  def stop(step):
    if step == 1:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(errors.Interrupted):
    loop.run(config, folder, corpus, quiet=True, on_step=stop)
  # Begun and not finished, it is nobody's parent.
  child = _child(config, folder)
  _refused('not a finished run', child, parent.with_name('refused'), corpus)
  _run(config, folder, corpus)
  spent = _rows(parent)[-1]['flops']
  assert _rows(folder)[-1]['flops'] == spent + 3 * 8 * 32 * flops.train(
    config.model, 32
  )


def _train_on(folder):
  """The run that experiments/train_on.py makes of a folder."""
  module = runpy.run_path('experiments/train_on.py')
  return train_config.read(module['get_config'](str(folder)))


@pytest.mark.slow
def test_one_config_trains_any_model_on(family, exported, text_data, corpus):
  config, parent = family
  dense, alone = exported(1)
  llama, folder = parent.with_name('llama_1'), parent.with_name('import_1')
  export.to_hugging_face(load.load(parent), 2, llama)
  hugging_face.from_hugging_face(llama, (1,), 'separate', folder)
  moved = folder.rename(folder.with_name('moved'))
  for source, known in ((parent, config), (alone, dense)):
    found = _train_on(source)
    assert (found.model, found.data) == (known.model, known.data)
    assert found.train.base_lr == pytest.approx(known.train.base_lr / 10)
    assert found.train.batch_size == known.train.batch_size
    warm_start.lineage(parent.with_name('refused'), found)
  found = _train_on(moved)
  imported = load.load(moved)
  assert found.model == imported.config.model
  assert found.data.tokenizer == imported.tokenizer_path
  assert found.data.seq_len == imported.context
  short = dataclasses.replace(
    found,
    train=dataclasses.replace(
      found.train, steps=2, warmup_steps=1, evaluations=1, batch_size=8,
      eval_tokens=500, eval_batch_size=8,
    ),
    data=dataclasses.replace(text_data, tokenizer=found.data.tokenizer),
  )  # fmt: skip
  own = _run(short, parent.with_name('on'), packing.load(short.data))
  _same(_start(short, own), imported.params)


def test_an_import_is_trained_on_with_its_tokenizer(family, text_data):
  config, parent = family
  llama, folder = parent.with_name('llama'), parent.with_name('imported')
  export.to_hugging_face(load.load(parent), 2, llama)
  hugging_face.from_hugging_face(llama, (1,), 'separate', folder)
  imported = load.load(folder)
  data = dataclasses.replace(text_data, tokenizer=imported.tokenizer_path)
  child = dataclasses.replace(
    _child(config, folder, imported.config.model, steps=2), data=data
  )
  own = _run(child, parent.with_name('of_import'), packing.load(data))
  _same(_start(child, own), imported.params)
  assert load.load(own).tokenizer.separator == 255
  [first, _] = _rows(own)
  assert first['flops'] == 2 * 8 * 32 * flops.train(child.model, 32)

  # An exit of an import is one too: its data are as unknown.
  export.to_familial(imported, 1, parent.with_name('import_exit'))
  config = load.load(parent.with_name('import_exit')).config
  again = dataclasses.replace(
    _child(config, parent.with_name('import_exit'), steps=1),
    data=dataclasses.replace(text_data, tokenizer=config.data.tokenizer),
  )
  warm_start.lineage(parent.with_name('refused'), again)

  text = (folder / 'tokenizer.json').read_text('utf-8')
  other = folder.with_name('other.json')
  other.write_text(text + '\n', 'utf-8')
  for tokenizer, said in (
    (text_data.tokenizer, r'data\.tokenizer = .*imported'),
    (str(other), 'another tokenizer than'),
  ):
    data = dataclasses.replace(text_data, tokenizer=tokenizer)
    refused = dataclasses.replace(child, data=data)
    _refused(said, refused, parent.with_name('refused'))
