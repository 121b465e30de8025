import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.data import batches as batches_lib
from familial.model import config as model_config
from familial.training import loop
from familial.training import optimizer
from familial.training import population
from familial.training import sharding
from familial.training import step as step_lib
from tests.training import runs

# A population in a process of its own, which prints its mesh and then its
# members' steps.
_CHILD = """
import pickle, sys, time
from familial.training import population
from familial.training import sharding
def on_steps(steps):
  print(*steps, flush=True)
  time.sleep(0.05)
with open(sys.argv[1], 'rb') as file:
  configs = pickle.load(file)
mesh = sharding.population(len(configs), configs[0].train.batch_size)
print(*mesh.devices.shape, sep='x', flush=True)
population.run(configs, sys.argv[2:], quiet=True, on_steps=on_steps)
"""


@pytest.fixture(scope='module')
def configs(run_config, shape):
  """Members that differ in all that they may."""

  def make(exits=(1, 2), cell='cell', **changes):
    model = shape(vocab_size=256, depth=2, exits=exits)
    return dataclasses.replace(run_config(model, **changes), cell=cell)

  return [
    make(),
    make(cell='seed', seed=3, schedule='wsd', steps=20, evaluations=2),
    make(
      cell='rate', base_lr=0.005, weight_decay=0.3, clip=0.0, eval_tokens=90
    ),
    make(cell='dense', exits=(2,), steps=26, warmup_steps=0),
    make(cell='weights', weighting='final_one', weighting_end='linear'),
  ]


@pytest.fixture(scope='module')
def solo(configs, corpus, tmp_path_factory):
  """Folders of the same runs, each trained by itself."""
  workdir = tmp_path_factory.mktemp('solo')
  return _each(configs, workdir, corpus)


@pytest.fixture(scope='module')
def together(configs, corpus, tmp_path_factory):
  """Folders of a population that nothing happened to."""
  folders = _folders(configs, tmp_path_factory.mktemp('together'))
  population.train.clear_cache()
  ended = population.run(configs, folders, corpus, quiet=True)
  assert ended == ['finished'] * len(configs)
  assert population.train._cache_size() == 1
  return folders


def _folders(configs, workdir):
  return [workdir / config.cell for config in configs]


def _each(configs, workdir, corpus):
  folders = _folders(configs, workdir)
  for config, folder in zip(configs, folders, strict=True):
    loop.run(config, folder, corpus, quiet=True)
  return folders


def _rows(folder):
  return storage.read_rows(folder / run_folder.ROWS)


def _bytes(folders):
  return [(folder / run_folder.ROWS).read_bytes() for folder in folders]


def _same(folder, expected, tolerance):
  """Whether a run has the rows of another, its losses but for a tolerance."""
  for row, other in zip(_rows(folder), _rows(expected), strict=True):
    for key, value in other.items():
      if key in ('loss', 'loss_per_byte') and value is not None:
        assert row[key] == pytest.approx(value, abs=tolerance)
      else:
        assert row[key] == value


def test_a_member_is_the_run_that_it_would_be_alone(together, solo):
  for folder, expected in zip(together, solo, strict=True):
    _same(folder, expected, 1e-6)
    for name in ('config.json', 'lineage.json'):
      assert (folder / name).read_bytes() == (expected / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize('exit_kind', ['separate', 'branch'])
def test_members_of_other_exits_are_what_they_are_alone(
  exit_kind, run_config, shape, corpus, tmp_path
):
  model = shape(vocab_size=256, exit_kind=exit_kind, tied=False)
  configs = [
    dataclasses.replace(
      run_config(model, seed=seed, steps=6, evaluations=1), cell=str(seed)
    )
    for seed in range(2)
  ]
  folders = _folders(configs, tmp_path / 'together')
  population.run(configs, folders, corpus, quiet=True)
  solo = _each(configs, tmp_path / 'solo', corpus)
  for folder, expected in zip(folders, solo, strict=True):
    _same(folder, expected, 1e-6)


@pytest.mark.slow
def test_after_200_steps_a_member_is_still_that_run(
  run_config, corpus, tmp_path
):
  configs = [
    dataclasses.replace(
      run_config(base_lr=rate, steps=200, evaluations=4), cell=f'{rate}'
    )
    for rate in (0.005, 0.01)
  ]
  folders = _folders(configs, tmp_path / 'together')
  population.run(configs, folders, corpus, quiet=True)
  solo = _each(configs, tmp_path / 'solo', corpus)
  for folder, expected in zip(folders, solo, strict=True):
    _same(folder, expected, 1e-4)


def test_one_that_diverges_freezes_and_the_others_go_on(
  configs, together, corpus, tmp_path, capsys
):
  bad = dataclasses.replace(
    configs[0],
    cell='bad',
    train=dataclasses.replace(
      configs[0].train, base_lr=1e35, warmup_steps=0, checkpoint_seconds=0.0
    ),
  )
  members = [bad, *configs[1:]]
  folders = _folders(members, tmp_path / 'together')
  ended = population.run(members, folders, corpus, quiet=True)
  assert ended == ['diverged', *['finished'] * 4]
  assert _bytes(folders[1:]) == _bytes(together[1:])
  [alone] = _each([bad], tmp_path / 'solo', corpus)
  assert _bytes([folders[0]]) == _bytes([alone])
  step = _rows(alone)[0]['step']
  said = f'bad: the loss is not finite at step {step}'
  assert capsys.readouterr().err.count(said) == 2
  # What was said stays said.
  assert population.run(members, folders, corpus, quiet=True) == ended
  assert _bytes([folders[0]]) == _bytes([alone])


@pytest.mark.slow
def test_over_eight_devices_they_are_what_they_are_on_one(
  configs, together, tmp_path
):
  folders = _folders(configs[:4], tmp_path)
  path = tmp_path / 'configs'
  with runs.start(_CHILD, configs[:4], path, *folders, eight=True) as child:
    printed = child.stdout.read().split()
  assert child.returncode == 0
  assert printed[0] == '4x2'
  for folder, expected in zip(folders, together, strict=False):
    _same(folder, expected, 1e-5)


def test_a_member_stops_at_its_end_and_where_its_loss_is_no_number(
  configs, corpus
):
  train = dataclasses.replace(configs[0].train, warmup_steps=0)
  model = configs[0].model
  # As many as `together` has: the same program.
  hypers = [
    optimizer.hyper(dataclasses.replace(train, **changes), model.exits)
    for changes in ({}, {}, {}, {'steps': 3}, {'base_lr': 1e35})
  ]
  states = [
    population.Members(
      step_lib.init(model, 'all', jax.random.key(0), hyper), jnp.bool_(True)
    )
    for hyper in hypers
  ]
  mesh = sharding.population(5, 8)
  members, h = (
    sharding.members(
      jax.tree.map(lambda *leaves: np.stack(leaves), *trees), mesh
    )
    for trees in (states, hypers)
  )
  one = batches_lib.Batches(corpus, configs[0].data, 8, 0)[0]
  batches = jax.tree.map(
    lambda rows: np.broadcast_to(rows, (population.STEPS, 5, *rows.shape)), one
  )
  batches = sharding.members_batches(batches, mesh)
  with jax.set_mesh(mesh):
    members, metrics = population.train(
      mesh, model, 'all', members, batches, np.int32(population.STEPS), h
    )
  *ends, bad = members.state.step.tolist()
  assert ends == [population.STEPS] * 3 + [3]
  assert 0 < bad < population.STEPS
  assert members.alive.tolist() == [True] * 4 + [False]
  assert np.isfinite(metrics.losses_G[:bad, 4]).all()
  assert not np.isfinite(metrics.losses_G[bad, 4]).all()
  for leaf in jax.tree.leaves(members.state.params):
    assert np.isfinite(leaf[:4]).all()


def test_killed_and_resumed_the_members_are_the_same_to_the_bit(
  configs, together, corpus, tmp_path
):
  folders = _folders(configs, tmp_path)
  with runs.start(_CHILD, configs, tmp_path / 'configs', *folders) as child:
    next(child.stdout)
    for line in child.stdout:
      if int(line.split()[0]) >= 16:
        child.kill()
        break
  assert child.returncode
  assert any(run_folder.status(folder) == 'running' for folder in folders)
  ended = population.run(configs, folders, corpus, quiet=True)
  assert ended == ['finished'] * len(configs)
  assert _bytes(folders) == _bytes(together)


# One that is left takes the program of two.
@pytest.mark.slow
@pytest.mark.parametrize('split', [([3], [0, 1], [2, 4]), ([3], [0, 1, 2, 4])])
def test_who_is_left_of_a_population_goes_on_to_the_bit(
  configs, together, corpus, tmp_path, split
):
  model = model_config.union([config.model for config in configs])
  folders = _folders(configs, tmp_path)
  for left in split:
    population.run(
      [configs[k] for k in left], [folders[k] for k in left], corpus,
      model=model, quiet=True,
    )  # fmt: skip
  assert _bytes(folders) == _bytes(together)


def test_members_at_different_steps_go_on_together(
  configs, together, corpus, tmp_path
):
  folders = _folders(configs, tmp_path)
  for index in (0, 2):  # These have begun alone.

    def stop(step):
      if step == 13:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(errors.Interrupted):
      loop.run(configs[index], folders[index], corpus, quiet=True, on_step=stop)
  population.run(configs, folders, corpus, quiet=True)
  for folder, expected in zip(folders, together, strict=True):
    _same(folder, expected, 1e-6)


def test_a_member_goes_on_alone(configs, together, corpus, tmp_path):
  folders = _folders(configs, tmp_path)

  def stop(steps):
    if max(steps) >= 8:
      os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(errors.Interrupted, match='saved'):
    population.run(configs, folders, corpus, quiet=True, on_steps=stop)
  alone = zip(configs[:2], folders, together, strict=False)
  for config, folder, expected in alone:
    loop.run(config, folder, corpus, quiet=True)
    _same(folder, expected, 1e-6)


def test_members_pause_where_they_are_told_and_go_on_to_the_bit(
  configs, together, corpus, tmp_path
):
  folders = _folders(configs, tmp_path)
  until = [3, 7, 5, 11, 4]
  paused = population.run(configs, folders, corpus, until=until, quiet=True)
  assert paused == ['running'] * len(configs)
  for folder, step in zip(folders, until, strict=True):
    assert storage.read_rows(folder / run_folder.ROWS)[-1]['step'] == step
    assert (folder / 'checkpoints' / str(step)).is_dir()
  ended = population.run(configs, folders, corpus, quiet=True)
  assert ended == ['finished'] * len(configs)
  for config, folder, expected, step in zip(
    configs, folders, together, until, strict=True
  ):
    extra = {step} - config.train.evaluated
    kept = [
      row
      for row in storage.read_rows(folder / run_folder.ROWS)
      if row['step'] not in extra
    ]
    assert kept == storage.read_rows(expected / run_folder.ROWS)
