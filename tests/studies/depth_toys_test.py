import dataclasses
import importlib.util
import json
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.analysis import toys
from familial.cli import main
from familial.core import errors
from familial.core import storage
from familial.studies import depth_toys
from familial.studies import depth_toys_cohort
from familial.studies import depth_toys_config
from familial.studies import depth_toys_regimes as regimes
from familial.studies import templates
from tests.analysis.toys_small import SHAPE
from tests.analysis.toys_small import asked

FILE = pathlib.Path(__file__).parents[2] / 'experiments' / 'depth_toys.py'


@pytest.mark.slow
def test_students_of_all_depths_learn_at_their_rates():
  toys_ = dataclasses.replace(asked(), replicates=1)
  study = dataclasses.replace(toys_.studies['only'], teachers=('tied',))
  toys_ = dataclasses.replace(toys_, studies={'only': study})
  state = toys.start(
    tuple(depth_toys_cohort.students(toys_, 'only', depth) for depth in (1, 2))
  )
  losses = []
  for steps in (0, 5):
    state, found = toys.train(
      depth_toys_cohort.task(toys_, 'only'),
      depth_toys_cohort.teachers(toys_, 'only'),
      toys.Members(jnp.array([0]), jnp.array([1.0])),
      state,
      jnp.array([0.0, 0.02]),
      steps,
      True,
    )
    assert found.shape == (toys_.test_batches, 2, 1)
    losses.append(np.asarray(found).mean(axis=(0, 2)))
  # All start as the identity; without a rate a student stays so.
  assert losses[0][0] == pytest.approx(losses[0][1], rel=1e-5)
  assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-5)
  assert losses[1][1] < 0.98 * losses[0][1]


@pytest.mark.parametrize(
  'head', ['none', pytest.param('learned', marks=pytest.mark.slow)]
)
def test_a_student_equals_a_run_by_itself(head, tmp_path):
  toys_ = asked(head=head, temperatures=(0.5, 1.0) if head != 'none' else ())
  result, (_, params, _) = depth_toys.train(
    toys_, 'only', tmp_path / 'part.npz'
  )
  members = depth_toys_cohort.members(toys_, 'only')
  picked = len(members) - 1
  alone = jax.tree.map(
    lambda leaf: leaf[picked : picked + 1],
    depth_toys_cohort.students(toys_, 'only', 2),
  )
  known = jax.tree.map(
    lambda leaf: leaf[-1:], depth_toys_cohort.teachers(toys_, 'only')
  )
  state, taken = toys.start((alone,)), []
  for steps in (4, 1, 1):
    before = np.array(state.params[0]['bias'])
    state, losses = toys.train(
      depth_toys_cohort.task(toys_, 'only'),
      known,
      toys.Members(jnp.array([0]), jnp.array([1.0])),
      state,
      jnp.array([0.01 * 2**0.5]),
      steps,
      True,
    )
    taken.append(np.abs(np.array(state.params[0]['bias']) - before).mean())
  assert taken[2] < taken[1] / 5  # The last fifth of the steps.
  assert losses.mean() == pytest.approx(result['loss'][-1][1][picked], rel=1e-4)
  for key, leaf in state.params[0].items():
    np.testing.assert_allclose(leaf[0], params[key][picked], atol=1e-4)
  # Tested on inputs of their own, which nothing is trained on.
  if head == 'none':
    for number in range(toys_.test_batches):
      key = jax.random.fold_in(known.test[0], number)
      x = jax.random.normal(key, (toys_.test_batch, SHAPE.width))
      last = toys.last({k: v[0] for k, v in state.params[0].items()}, x)
      right = toys.last({k: v[0] for k, v in known.mlps.items()}, x)
      assert losses[number, 0, 0] == pytest.approx(
        float(jnp.mean((last - right) ** 2)), rel=1e-4
      )
  # Steps in one dispatch or in several, and a loss that falls.
  assert result['steps'] == [1, 6]
  assert result['loss'][1][1][picked] < result['loss'][0][1][picked]


def test_the_rate_falls_to_a_tenth_over_the_last_fifth():
  how = depth_toys_cohort.task(asked(), 'only')
  shares = [float(toys._decay(how, jnp.int32(step))) for step in range(6)]
  assert shares[:4] == [1.0] * 4 and shares[5] == pytest.approx(0.1)
  assert depth_toys_cohort.rate(asked().studies['only'], 1) == pytest.approx(
    0.02
  )


def test_rates_fall_as_the_root_of_depth():
  study = asked().studies['only']  # Of rate 0.01 at depth 4.
  rates = [depth_toys_cohort.rate(study, depth) for depth in (1, 4, 16)]
  assert rates == pytest.approx([0.02, 0.01, 0.005])
  one = dataclasses.replace(study, rate_depth=0)
  assert depth_toys_cohort.rate(one, 16) == study.rate


def test_students_are_beside_their_own_teachers():
  toys_ = asked(head='shared', temperatures=(0.5, 2.0))
  known = depth_toys_cohort.teachers(toys_, 'only')
  members = depth_toys_cohort.members(toys_, 'only')
  of = depth_toys_cohort.assigned(known, members)
  kinds = depth_toys_config.KINDS
  for member, teacher, cold in zip(
    members, of.teacher, of.temperature, strict=True
  ):
    assert cold == member.temperature
    assert divmod(teacher, toys_.replicates) == (
      kinds.index(member.teacher),
      member.number,
    )
    # A tied teacher's layers are alike.
    same = np.ptp(np.asarray(known.mlps['in'][teacher]), axis=0).max() == 0
    assert same == (member.teacher == 'tied')


@pytest.mark.parametrize('kind', ['independent', 'tied'])
def test_the_regime_of_a_teacher_is_known(kind):
  # Layers that are as many estimates of one correction, or steps of one flow.
  shape = toys.Shape(width=8, hidden=32, vocab=1)
  params = toys.teacher(jax.random.key(0), shape, 12, kind == 'tied', 0.2)
  whole, deepest = regimes.rows({12: params}, 1, seed=0)
  assert whole == deepest and whole['depths'] == (12,)
  known = {'independent': 'ensemble', 'tied': 'smooth'}
  assert whole['regime'] == known[kind] and whole['strength'] > 0.9
  assert whole['text'].startswith(known[kind])
  assert set(whole['evidence']) >= {'alignment', 'departure', 'early'}
  assert list(regimes.rows({3: params}, 1, seed=0)) == []
  # A layer of two stages takes other steps.
  other, _ = regimes.rows({12: params}, 2, seed=0)
  assert other['evidence'] != whole['evidence']


@pytest.mark.slow
def test_students_move_as_their_teachers_were_made(tmp_path):
  study = depth_toys_config.Study(
    depths=(4, 6, 8),
    teacher_depth=16,
    steps=2000,
    rate=8e-3,
    rate_depth=4,
    decay=0.7,
    decay_to=0.01,
  )
  toys_ = dataclasses.replace(
    asked(), studies={'only': study}, width=16, hidden=16, batch=64,
    replicates=1,
  )  # fmt: skip
  _, by_depth = depth_toys.train(toys_, 'only', tmp_path / 'part.npz')
  found = {}
  for i, member in enumerate(depth_toys_cohort.members(toys_, 'only')):
    mine = {
      depth: {key: leaf[i] for key, leaf in params.items()}
      for depth, params in zip(study.depths, by_depth, strict=True)
    }
    found[member.teacher] = next(regimes.rows(mine, 1, seed=0))
  assert found['independent']['regime'] == 'ensemble'
  assert found['independent']['evidence']['alignment']['value'] < 0.15
  # Tied ones lean to what they are, and are too shallow for it to be named.
  assert found['tied']['evidence']['alignment']['value'] > 0.25
  scores = found['tied']['scores']
  assert max(scores, key=scores.get) == 'smooth'


def load(arg):
  spec = importlib.util.spec_from_file_location('depth_toys', FILE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return templates.depth_toys(module.get_config(arg))


def test_variants_are_what_they_say():
  gpu = load('gpu')
  assert gpu.width == 32 and gpu.hidden == 128 and gpu.batch == 1024
  assert len(gpu.studies['learned_head'].temperatures) == 16
  assert gpu.studies['learned_head'].temperatures[::15] == (0.01, 1.0)
  for arg in ('test', 'cpu', 'gpu'):
    found = load(arg)
    assert set(found.studies) == {
      'learned_head', 'shared_head', 'state', 'half', 'one_layer', 'two_stage',
      'short',
    }  # fmt: skip
    assert found.studies['two_stage'].stages == 2
    state, half = found.studies['state'], found.studies['half']
    assert half == dataclasses.replace(state, steps=state.steps // 2)
    wide = found.studies['one_layer']
    assert wide == dataclasses.replace(state, one_layer=True)
  assert (state.steps, half.steps) == (80_000, 40_000)
  assert gpu.studies['two_stage'].steps == half.steps  # They are compared.
  with pytest.raises(ValueError, match=r"variant 'x' is not one of test, cpu"):
    load('x')


@pytest.mark.parametrize(
  ('changes', 'text'),
  [
    ({'stages': 3}, r'studies\.only\.stages: 3 is not 1 or 2'),
    ({'head': 'own'}, r"studies\.only\.head: 'own' is not one of none, sha"),
    ({'head': 'shared'}, r'studies\.only\.temperatures: \(\) with head'),
    ({'teachers': ('tide',)}, r"did you mean 'tied'"),
  ],
)
def test_a_study_that_cannot_be_is_refused(changes, text):
  with pytest.raises(errors.UserError, match=text):
    asked(**changes)


def test_a_file_of_students_is_not_trusted(tmp_path):
  toys_ = asked()
  path = depth_toys.file(tmp_path, 'only').with_suffix('.npz')
  with pytest.raises(errors.UserError, match='cannot be read'):
    list(depth_toys.trained(toys_, tmp_path, 'only'))
  path.parent.mkdir()
  names = [f'{depth}_{k}' for depth in (1, 2, 3) for k in ('in', 'bias', 'out')]
  for content, text in (
    ({'1_in': np.zeros(3)}, 'cannot be read'),
    ({name: np.zeros(3) for name in names}, 'is float64'),
    ({name: np.array([{}]) for name in names}, 'cannot be read'),
  ):
    np.savez(path, **content)
    with pytest.raises(errors.UserError, match=text):
      list(depth_toys.trained(toys_, tmp_path, 'only'))


def test_what_is_there_is_not_trained_again(tmp_path, monkeypatch):
  once = asked()
  study = once.studies['only']
  toys_ = dataclasses.replace(once, studies={'one': study, 'two': study})
  trained = []

  def train(asked, name, part, on_share, stopping):
    trained.append(name)
    if name == stop:
      return None  # As where a signal came.
    members = depth_toys_cohort.members(asked, name)
    loss = [[[1 / depth] * len(members) for depth in study.depths]] * 2
    return {
      'schema': storage.SCHEMA,
      'members': [member._asdict() for member in members],
      'steps': [1, 6],
      'loss': loss,
      'error': loss,
      'seconds': {'compile': 1.0, 'train': 1.0},
    }, tuple(depth_toys_cohort.students(asked, name, d) for d in study.depths)

  monkeypatch.setattr(depth_toys, 'train', train)
  stop = 'two'
  with pytest.raises(errors.Interrupted, match='stopped within two'):
    depth_toys.run(toys_, tmp_path)
  assert trained == ['one', 'two']
  stop = None
  line = depth_toys.run(toys_, tmp_path)
  assert trained == ['one', 'two', 'two']
  rows = [row.split() for row in line.splitlines()]
  assert rows[1][:5] == ['one', 'independent', '1,', '2,', '3']
  assert rows[1][5].startswith('1.0') and rows[4][:2] == ['two', 'tied']
  kept = list(depth_toys.trained(toys_, tmp_path, 'two'))
  assert [member[:2] for member, _ in kept] == [('independent', 0), ('tied', 0)]
  assert toys.states(kept[0][1][3], np.ones((4, SHAPE.width))).shape == (
    4,
    4,
    SHAPE.width,
  )


def test_a_study_that_was_stopped_goes_on_as_if_it_had_not(tmp_path):
  toys_, part = asked(head='shared', temperatures=(1.0,)), tmp_path / 'part.npz'
  whole, students = depth_toys.train(toys_, 'only', part)
  assert not part.exists()
  assert depth_toys.train(toys_, 'only', part, stopping=lambda: True) is None
  shares = []
  again, same = depth_toys.train(toys_, 'only', part, shares.append)
  assert shares[0] > 0 and sum(shares) == pytest.approx(1)
  assert again['loss'] == whole['loss']
  jax.tree.map(np.testing.assert_array_equal, students, same)
  np.savez(part, **{'0': np.zeros(3)})
  with pytest.raises(errors.UserError, match=r'part\.npz: cannot be read'):
    depth_toys.train(toys_, 'only', part)


@pytest.mark.slow
def test_the_command_goes_on_and_sums_up(tmp_path, capsys, monkeypatch):
  argv = ['familial', 'run', f'--config={FILE}:test', f'--workdir={tmp_path}']
  small = [
    f'--config.studies.{name}.steps=8'
    for name in ('learned_head', 'state', 'one_layer', 'two_stage')
  ]
  argv += small
  monkeypatch.setattr(sys, 'argv', argv)  # Where overrides are looked for.
  assert main._main(argv) == 0
  said = capsys.readouterr().out
  assert re.search(r'^state +tied ', said, flags=re.M)
  assert re.search(r'^two_stage - state ', said, flags=re.M)
  assert re.search(r'^state - one_layer ', said, flags=re.M)
  found = storage.read_own(tmp_path / 'summary.json')
  assert {curve['study'] for curve in found['curves']} == set(
    load('test').studies
  )
  for name in ('loss', 'steps', 'temperature'):
    assert (tmp_path / 'figures' / f'toys_{name}.png').stat().st_size > 1e4
  # What is there is not trained again; what is missing is, to the same numbers.
  path = tmp_path / 'toys' / 'state.json'
  was = json.loads(path.read_text())
  path.unlink()
  trained = []
  train = depth_toys.train
  monkeypatch.setattr(
    depth_toys,
    'train',
    lambda *args: trained.append(args[1]) or train(*args),
  )
  assert main._main(argv) == 0
  assert trained == ['state']
  now = json.loads(path.read_text())
  assert now['loss'] == was['loss']
  # The students that were kept are those that were tested.
  toys_ = load('test')
  for member, by_depth in depth_toys.trained(toys_, tmp_path, 'two_stage'):
    assert member.number == 0
    x = np.ones((2, toys_.width), np.float32)
    states = toys.states(by_depth[3], x, 2)
    assert float(jnp.abs(states[-1] - states[0]).max()) > 0
  argv.append('--config.batch=8')
  assert main._main(argv) == 2
  assert 'batch = 16, not 8' in capsys.readouterr().err
