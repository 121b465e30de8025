import dataclasses
import gc
import json
import os
import re
import shutil

import jax
import numpy as np
import pytest

from familial.convert import load
from familial.core import errors
from familial.core import run_folder
from familial.expansion import config as growth_config
from familial.training import checkpoint
from familial.training import config as train_config
from familial.training import loop
from familial.training import optimizer
from familial.training import step as step_lib


@pytest.fixture(scope='module')
def run(run_config, corpus, tmp_path_factory):
  """A finished run with two checkpoints."""
  folder = tmp_path_factory.mktemp('models') / 'run'
  loop.run(run_config(steps=6, evaluations=2, warmup_steps=1), folder, corpus,
           quiet=True)  # fmt: skip
  return folder


def restored(folder, step):
  """The whole state, as training reads it."""
  config = load.read_config(folder)
  hyper = optimizer.hyper(config.train, config.model.exits)
  like = step_lib.init(config.model, 'all', jax.random.key(0), hyper)
  checkpoints = checkpoint.Checkpoints(folder / 'checkpoints', 1)
  state = checkpoints.restore(like, step)
  checkpoints.close()
  return state


@pytest.mark.parametrize(
  ('step', 'number'), [('last', 6), ('best', 6), ('3', 3), ('6', 6)]
)
def test_a_run_is_read_at_any_of_its_steps(run, step, number):
  model = load.load(run, step)
  assert (model.step, model.folder, model.context) == (number, run, 32)
  expected = restored(run, number).params
  jax.tree.map(np.testing.assert_array_equal, model.params, expected)
  if step.isdigit():
    same = load.load(run / 'checkpoints' / step)
    assert (same.step, same.folder) == (number, run)
    refused("step: 'best' is not", run / 'checkpoints' / step, 'best')


def test_best_is_the_lowest_loss(run_config, tmp_path):
  config = run_config()
  run_folder.open_folder(tmp_path, config)
  hyper = optimizer.hyper(config.train, config.model.exits)
  state = step_lib.init(config.model, 'all', jax.random.key(0), hyper)
  checkpoints = checkpoint.Checkpoints(tmp_path / 'checkpoints', 2)
  for step, loss in ((1, 2.0), (2, 1.0), (3, 3.0)):
    checkpoints.save(state._replace(step=np.int32(step)), loss)
    checkpoints.wait()
  checkpoints.close()
  assert load.load(tmp_path, 'best').step == 2
  assert load.load(tmp_path).step == 3


def refused(said, *where):
  with pytest.raises(errors.UserError, match=said):
    load.load(*where)


def test_what_is_no_model_is_one_line(run, tmp_path):
  refused(r'holds no config\.json', tmp_path)
  refused('no such checkpoint', run, '4')
  for step in ('lst', '²'):
    refused(f"step: '{step}' is not 'last'", run, step)
  shutil.copy(run / 'config.json', tmp_path)
  refused('holds no checkpoint', tmp_path)
  (tmp_path / 'config.json').write_text(
    '{"schema": 1, "grid": {}, "train": {}}'
  )
  refused('not the config of a single run', tmp_path)


def changed(run, to, change):
  """A copy of a run whose config says something else."""
  shutil.copytree(run, to)
  config = json.loads((to / 'config.json').read_text())
  change(config)
  (to / 'config.json').write_text(json.dumps(config))
  return to


def test_a_template_is_the_folder_s_config_with_the_folder_as_parent(
  run, tmp_path, monkeypatch
):
  known = load.read_config(run)
  found = train_config.read(load.template_of(run))
  train = dataclasses.replace(known.train, init_from=str(run))
  assert (found.model, found.data) == (known.model, known.data)
  assert (found.train, found.growth) == (train, growth_config.NONE)
  # A tokenizer's file is looked for where the folder is now.
  moved = changed(
    run,
    tmp_path / 'moved',
    lambda c: c['data'].update(tokenizer='gone/tokenizer.json'),
  )
  monkeypatch.chdir(tmp_path)
  found = load.template_of('moved')
  assert found.data.tokenizer == str(moved / 'tokenizer.json')
  assert found.train.init_from == str(moved)


def test_another_shape_is_refused_before_anything_is_read(run, tmp_path):
  wider = changed(
    run, tmp_path / 'wider', lambda c: c['model'].update(mlp_width=32)
  )
  refused(r'segment_0\.mlp\.\w+\.kernel is \(1, .* needed|has', wider)
  deeper = changed(
    run,
    tmp_path / 'deeper',
    lambda c: c['model'].update(depth=3, exits=[1, 2, 3]),
  )
  refused(r'exit_3\.norm\.gain is missing', deeper)
  # Without the numbers it says the same.
  for path in deeper.glob('checkpoints/6/state/ocdbt.process_0/d/*'):
    path.unlink()
  refused(r'exit_3\.norm\.gain is missing', deeper)


DAMAGES = {
  'removed': lambda path: path.unlink(),
  'truncated': lambda path: os.truncate(path, path.stat().st_size // 2),
  'emptied': lambda path: os.truncate(path, 0),
  'overwritten': lambda path: path.write_bytes(b'not what it was'),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_checkpoint_is_one_line(run, tmp_path, capfd, damage):
  """Every file of it: either it is not needed, or a line says what is wrong."""
  whole, copy = load.load(run).params, tmp_path / 'copy'
  state = restored(run, 6)
  places = [
    path.relative_to(run) for path in (run / 'checkpoints' / '6').rglob('*')
    if path.is_file()
  ]  # fmt: skip
  refused = set()
  for place in places:
    shutil.copytree(run, copy)
    DAMAGES[damage](copy / place)
    for read, expected in (
      (lambda: load.load(copy).params, whole),
      (lambda: restored(copy, 6), state),
    ):
      try:
        jax.tree.map(np.testing.assert_array_equal, read(), expected)
      except errors.UserError as error:
        line = f'{copy}/checkpoints/6: a damaged checkpoint: .* cannot be read'
        assert re.fullmatch(line, str(error))
        refused.add('/'.join(place.parts[2:-1]))
    shutil.rmtree(copy)
  needed = {'state', 'state/d', 'state/ocdbt.process_0/d'}
  assert needed <= refused <= {*needed, 'metrics'}
  gc.collect()  # What was begun and never ended says so when it goes.
  assert 'Traceback' not in capfd.readouterr().err


def test_a_tokenizer_of_another_vocabulary_is_refused(run, tmp_path):
  copy = tmp_path / 'copy'
  shutil.copytree(run, copy)
  (copy / 'tokenizer.json').write_text('{"version": "1.0"}')
  refused('tokenizer', copy)
