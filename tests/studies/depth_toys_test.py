"""The study of toy networks: its training, and its tables from planted curves."""

import math
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import depth_toys as experiment
from familial.analysis import toys
from familial.core import errors
from familial.core import storage
from familial.core.estimate import Estimate
from familial.studies import depth_toys
from familial.studies import study

TOYS = depth_toys.TOYS


def group(**changes):
  values = {
    'depths': (1, 2, 3), 'teacher_depth': 4, 'steps': 6, 'rate': 0.01,
    'rate_depth': 4,
  }  # fmt: skip
  return depth_toys.Group(**{**values, **changes})


def config(groups=None, **changes):
  """A study that is trained in seconds."""
  values = {
    'width': 5, 'hidden': 7, 'vocab': 6, 'batch': 8, 'test_batch': 8,
    'test_batches': 2, 'replicates': 2, 'checkpoints': 2, 'gain': 0.2,
  }  # fmt: skip
  groups = groups or {'only': group()}
  return depth_toys.Config('Toys', groups, **{**values, **changes})


def plant(asked, folder, losses, students=()):
  """Writes what training leaves, with losses [steps, depths, members] by group."""
  for name in asked.studies:
    every = depth_toys.members(asked, name)
    path = folder / 'toys' / f'{name}.json'
    result = {
      'schema': storage.SCHEMA,
      'members': [member._asdict() for member in every],
      'steps': [1, 2],
      'loss': losses[name],
      'error': np.zeros(np.shape(losses[name])).tolist(),
      'seconds': {'compile': 1.0, 'train': 1.0},
    }
    storage.write_json(path, result)
    depths = asked.studies[name].depths
    np.savez(
      path.with_suffix('.npz'),
      **{
        f'{depth}_{key}': leaf
        for depth, by_key in zip(depths, students, strict=False)
        for key, leaf in by_key.items()
      },
    )


def analyse(asked, folder):
  return TOYS.analyse(asked, study.Results(folder, {}, (), ()))[1]


@pytest.fixture(scope='module')
def two():
  """A study of two groups, with and without heads."""
  heads = group(head='learned', temperatures=(0.5, 1.0))
  return config({'one': group(), 'two': heads})


def test_students_are_beside_their_own_teachers(two):
  begin = depth_toys.start(two, 'two')
  kinds = depth_toys.KINDS
  for member, teacher, cold in zip(
    depth_toys.members(two, 'two'), *begin.assigned, strict=True
  ):
    assert cold == member.temperature
    which = kinds.index(member.teacher), member.number
    assert divmod(teacher, two.replicates) == which
    layers = np.asarray(begin.teachers.mlps['in'][teacher])
    assert (np.ptp(layers, axis=0).max() == 0) == (member.teacher == 'tied')
  # Rates fall as the root of depth, or are one.
  assert begin.rates == pytest.approx([0.02, 0.02 / 2**0.5, 0.02 / 3**0.5])
  assert group(rate_depth=0).rate_at(16) == 0.01


def test_a_single_layer_has_the_units_of_all():
  asked = config({'only': group(one_layer=True)})
  begin = jax.eval_shape(lambda: depth_toys.start(asked, 'only').state.params)
  shapes = [params['in'].shape[1:] for params in begin]
  assert shapes == [(1, 5, 7), (1, 5, 14), (1, 5, 21)]


def test_a_study_that_was_stopped_writes_the_same_bytes(
  two, tmp_path, monkeypatch
):
  asked, programs, train = two, [], depth_toys.train

  def lower(task, *arguments):
    programs.append(task.head)
    return toys.train.lower(task, *arguments)

  def stopped(asked, name, part, on_share, stopping):
    """A signal arrives while the second group is at its first test."""

    def seen(share):
      on_share(share)
      if name == 'two' and share:
        signal.raise_signal(signal.SIGTERM)

    return train(asked, name, part, seen, stopping)

  monkeypatch.setattr(
    depth_toys, 'toys',
    types.SimpleNamespace(**{
      **vars(toys), 'train': types.SimpleNamespace(lower=lower)
    }),
  )  # fmt: skip
  TOYS.run(asked, tmp_path / 'whole')
  assert programs == ['none', 'learned']  # One program a group.
  with monkeypatch.context() as patch:
    patch.setattr(depth_toys, 'train', stopped)
    with pytest.raises(errors.Interrupted):
      TOYS.run(asked, tmp_path / 'again')
  folder = tmp_path / 'again' / 'toys'
  part = folder / 'two.part.npz'
  assert part.exists() and not (folder / 'two.json').exists()
  first = (folder / 'one.json').stat().st_mtime_ns
  content = part.read_bytes()
  np.savez(part, **{'0': np.zeros(3)})  # Of something else.
  with pytest.raises(errors.UserError, match=r'part\.npz'):
    TOYS.run(asked, tmp_path / 'again')
  part.write_bytes(content)
  TOYS.run(asked, tmp_path / 'again')
  assert not part.exists()
  assert (folder / 'one.json').stat().st_mtime_ns == first
  for name in asked.studies:
    files = [tmp_path / run / 'toys' / name for run in ('whole', 'again')]
    whole, again = (
      storage.read_own(file.with_suffix('.json')) for file in files
    )
    assert {**whole, 'seconds': 0} == {**again, 'seconds': 0}
    whole, again = (file.with_suffix('.npz').read_bytes() for file in files)
    assert whole == again
  summaries = [TOYS.read_summary(tmp_path / run) for run in ('whole', 'again')]
  assert summaries[0].tables == summaries[1].tables
  assert summaries[0].tables == analyse(asked, tmp_path / 'again')
  # The students that are kept are those that were tested.
  kept = list(depth_toys.trained(asked, tmp_path / 'again', 'one'))
  assert [member[:2] for member, _ in kept] == [('independent', 0), ('tied', 0)]
  begin = depth_toys.start(asked, 'one')
  # Each of them twice, so that the program is that of the training.
  by_depth = jax.tree.map(
    lambda *leaves: np.repeat(np.stack(leaves), 2, axis=0),
    *(students for _, students in kept),
  )
  _, tested = toys.train(
    begin.task,
    begin.teachers,
    toys.Members(jnp.array([0, 0, 2, 2]), jnp.ones(4)),
    toys.start(tuple(by_depth[depth] for depth in (1, 2, 3))),
    begin.rates,
    0,
    True,
  )
  losses = [
    row.loss
    for row in summaries[0].tables.losses
    if (row.study, row.number, row.steps) == ('one', 0, 6)
  ]
  # By teacher and depth.
  assert losses == pytest.approx(
    np.asarray(tested).mean(axis=0).T[::2].ravel(), rel=1e-4
  )


def test_a_file_of_students_is_not_trusted(tmp_path):
  path = tmp_path / 'toys' / 'only.npz'
  path.parent.mkdir()
  arrays = (f'{d}_{key}' for d in (1, 2, 3) for key in ('in', 'bias', 'out'))
  np.savez(path, **dict.fromkeys(arrays, np.zeros(3)))
  with pytest.raises(errors.UserError, match=r'only\.npz'):
    list(depth_toys.trained(config(), tmp_path, 'only'))


@pytest.mark.parametrize('share', [0.0, 0.5])
def test_a_planted_exponent_is_found(share):
  rng = np.random.default_rng(0)
  depths = np.array([3, 4, 6, 8, 12, 16])
  clean = depths**-2.0
  loss = (clean + share / (1 - share) * clean[-1]) * np.exp(
    rng.normal(0, 0.01, (3, 6))
  )
  values, floor = depth_toys.exponents(depths, loss)
  found = {name: Estimate.of(each) for name, each in values.items()}
  if share:
    assert found['curvature'].sign == 'higher' and found['exponent'].hi < 1.9
    assert found['floor'].value == pytest.approx(2.0, abs=0.15)
    assert floor == pytest.approx(share, abs=0.1)
    assert found['shallow'].value > found['deep'].value + 0.5
  else:
    assert found['curvature'].sign == 'n.s.' and 2 in found['exponent']
    assert found['exponent'].value == pytest.approx(2.0, abs=0.03)


def test_averaging_is_of_exponent_one_far_from_the_teacher_s_depth():
  assert depth_toys.averaging([2, 4, 8], 10**6) == pytest.approx(1, abs=1e-4)
  assert depth_toys.averaging([2, 4, 8], 32) == pytest.approx(1.16, abs=0.01)
  assert depth_toys.averaging([2, 4, 8], 8) is None


def test_tables_of_planted_curves(tmp_path, monkeypatch):
  monkeypatch.setattr(depth_toys, 'trained', lambda *_: iter(()))
  shared = {'teachers': ('tied',), 'teacher_depth': 64}
  groups = {
    'one': group(depths=(1, 2, 4, 6), **shared),
    'two': group(depths=(3, 1, 2), stages=2, **shared),
    'wide': group(depths=(1, 2, 4), one_layer=True, **shared),
    'short': group(**{**shared, 'steps': 5}),
    'cold': group(head='shared', temperatures=(0.5,), **shared),
  }
  power = {'one': 2.0, 'two': 3.0, 'wide': 0.5, 'short': 1.0, 'cold': 1.0}
  asked = config(groups, replicates=3)
  losses = {}
  for name, each in groups.items():
    x = np.log(each.depths)[:, None]
    bend = 1.0 if name == 'short' else 0.0
    level = np.log([1.0, 2.0, 3.0])
    losses[name] = [
      np.exp(level - (power[name] + more) * x + bend * x**2).tolist()
      for more in (1, 0)
    ]
  losses['cold'][1] = [[a, None, b] for a, _, b in losses['cold'][1]]
  plant(asked, tmp_path, losses)
  tables = analyse(asked, tmp_path)
  curves = {curve.study: curve for curve in tables.curves}
  for name in ('one', 'two', 'wide', 'cold'):
    assert curves[name].exponent.value == pytest.approx(power[name])
    assert curves[name].curvature.value == pytest.approx(0, abs=1e-6)
    # The last test counts.
    along = [r.exponent.value for r in tables.evolution if r.study == name]
    assert along == pytest.approx([power[name] + 1, power[name]])
  assert curves['short'].curvature.value == pytest.approx(2)
  assert {name for name, curve in curves.items() if curve.bent} == {'short'}
  assert curves['two'].depths == (1, 2, 3)
  # A teacher without losses counts for none.
  of_each = [
    row.value
    for row in tables.by_teacher
    if (row.study, row.quantity) == ('cold', 'exponent')
  ]
  assert of_each == [pytest.approx(1), None, pytest.approx(1)]
  assert sum(row.loss is None for row in tables.losses) == 3
  pairs = {(pair.study, pair.base, pair.equal): pair for pair in tables.pairs}
  expected = {
    # d^-3 over (2 d)^-2, and over d^-2.
    ('two', 'one', 'cost'): (
      (1, 2, 3),
      3.0,
      2.0,
      math.log(4) - math.log(6) / 3,
    ),
    ('two', 'one', 'depth'): ((1, 2), 3.0, 2.0, -math.log(2) / 2),
    ('one', 'wide', 'units'): ((1, 2, 4), 2.0, 0.5, -1.5 * math.log(2)),
  }
  assert set(pairs) == set(expected)
  for key, (depths, this, base, ratio) in expected.items():
    pair = pairs[key]
    assert pair.depths == depths
    found = pair.exponent, pair.base_exponent, pair.difference, pair.log_ratio
    assert [each.value for each in found] == pytest.approx(
      [this, base, this - base, ratio]
    )


def test_the_regime_of_a_teacher_is_known(tmp_path):
  # Layers that are as many estimates of one correction, or steps of one flow.
  depths = (1, 2, 6)
  asked = config(
    {'only': group(depths=depths)}, width=8, hidden=32, replicates=1
  )
  shape = toys.Shape(8, 32, 1)
  pair = [
    toys.teacher(jax.random.key(0), shape, 6, kind == 'tied', 0.2)
    for kind in depth_toys.KINDS
  ]
  students = [
    {key: np.stack([each[key][:depth] for each in pair]) for key in pair[0]}
    for depth in depths
  ]
  plant(asked, tmp_path, {'only': np.ones((2, 3, 2)).tolist()}, students)
  tables = analyse(asked, tmp_path)
  found = {(row.teacher, row.depths): row for row in tables.regimes}
  assert len(found) == len(tables.regimes) == 4
  # Steps of a teacher fall as the root of its depth: the deepest one alone.
  for kind, regime in (('independent', 'ensemble'), ('tied', 'smooth')):
    row = found[kind, depths[-1:]]
    assert row.regime == regime and row.strength > 0.9
  names = {row.name for row in tables.evidence}
  assert {'alignment', 'departure', 'early'} <= names


@pytest.mark.slow
def test_students_move_as_their_teachers_were_made(tmp_path):
  only = group(
    depths=(4, 6, 8), teacher_depth=16, steps=2000, rate=8e-3, decay=0.7,
    decay_to=0.01,
  )  # fmt: skip
  TOYS.run(
    config({'only': only}, width=16, hidden=16, batch=64, replicates=1),
    tmp_path,
  )
  tables = TOYS.read_summary(tmp_path).tables
  regimes = {r.teacher: r for r in tables.regimes if r.depths == only.depths}
  alignment = {
    row.teacher: row.value.value
    for row in tables.evidence
    if row.name == 'alignment'
  }
  assert regimes['independent'].regime == 'ensemble'
  assert alignment['independent'] < 0.15
  # Tied ones lean to what they are, and are too shallow for it to be named.
  assert alignment['tied'] > 0.25
  scores = regimes['tied'].scores
  assert max(scores, key=scores.get) == 'smooth'


@pytest.mark.slow
def test_the_command_trains_what_is_missing(tmp_path, familial, monkeypatch):
  arguments = [
    'run', f'--config={experiment.__file__}:test', f'--workdir={tmp_path}',
    *(
      f'--config.studies.{name}.steps=8'
      for name in ('learned_head', 'state', 'one_layer', 'two_stage')
    ),
  ]  # fmt: skip
  # Where overrides are looked for.
  monkeypatch.setattr('sys.argv', ['familial', *arguments])
  assert familial(*arguments)[0] == 0
  tables = TOYS.read_summary(tmp_path).tables
  assert {curve.study for curve in tables.curves} == set(
    TOYS.read_config(experiment.get_config('test')).studies
  )
  path = tmp_path / 'toys' / 'state.json'
  path.unlink()
  assert familial(*arguments)[0] == 0
  assert TOYS.read_summary(tmp_path).tables == tables
  assert familial(*arguments, '--config.batch=8')[0] == 2
