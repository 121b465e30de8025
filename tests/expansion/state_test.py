"""What becomes of gradients, AdamW's moments and copies after a growth."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from familial.expansion import config as growth_config
from familial.expansion import grown
from familial.expansion import maps
from familial.model import config as model_config
from familial.training import config as train_config
from familial.training import optimizer
from tests.expansion.conftest import reading
from tests.expansion.conftest import shapes
from tests.model import oracle

TOKENS = np.random.default_rng(1).integers(0, 11, (40, 3, 7))
WAS = model_config.ModelConfig(
  vocab_size=11,
  width=8,
  depth=2,
  heads=2,
  kv_heads=1,
  mlp_width=6,
  exits=(1, 2),
  base_width=16,
)
BRANCHED = dataclasses.replace(WAS, exit_kind='branch')
DOUBLE = dataclasses.replace(WAS, width=16, heads=4, kv_heads=2, mlp_width=12)


def _moments(growth, tree, power):
  with jax.enable_x64(True):
    found = grown.moments(
      growth, shapes(growth.now, np.float64), reading(tree), power
    )
    return jax.tree.map(np.asarray, found)


def _growth(now, was=WAS, **config):
  config = {'width': 'replicate', 'depth': 'identity', **config}
  return maps.plan(growth_config.GrowthConfig(**config), was, now)


@functools.cache
def _gradient(model):
  return jax.jit(
    jax.grad(
      lambda params, tokens: oracle.loss(params, model, tokens, jax.numpy)
    )
  )


@functools.cache
def _step(model, train, eps):
  """Returns a step of AdamW in float64, and the state before the first."""
  h = optimizer.hyper(train, model.exits)._replace(eps=np.float64(eps))
  adamw = optimizer.adamw(h, model)

  @jax.jit
  def step(params, state, tokens):
    gradient = _gradient(model)(params, tokens)
    updates, state = adamw.update(gradient, state, params)
    return jax.tree.map(lambda p, u: p + u, params, updates), state

  return step, adamw.init


def _gradients(was, now, params, bigger):
  """Returns the gradients of the small and of the grown model."""
  with jax.enable_x64(True):
    return (
      jax.tree.map(np.asarray, _gradient(was)(params, TOKENS[0])),
      jax.tree.map(np.asarray, _gradient(now)(bigger, TOKENS[0])),
    )


def _times(was, factor):
  return dataclasses.replace(
    was,
    width=8 * factor,
    heads=2 * factor,
    kv_heads=factor,
    mlp_width=6 * factor,
  )


@pytest.mark.parametrize(
  ('was', 'now', 'split'),
  [
    (WAS, _times(WAS, 2), 'even'),
    pytest.param(WAS, _times(WAS, 3), 'even', marks=pytest.mark.slow),
    pytest.param(BRANCHED, _times(BRANCHED, 2), 'even', marks=pytest.mark.slow),
    # Exact with uneven shares too where no width grows.
    pytest.param(
      WAS,
      dataclasses.replace(WAS, mlp_width=12),
      'uneven',
      marks=pytest.mark.slow,
    ),
  ],
)
def test_gradients_tile_as_moments_do(random_params, grow, was, now, split):
  params = random_params(was)
  bigger, growth = grow(params, was, now, split=split)
  small, large = _gradients(was, now, params, bigger)
  for power in (1, 2):
    raise_ = functools.partial(jax.tree.map, lambda x, n=power: x**n)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14),
      raise_(large),
      _moments(growth, raise_(small), power),
    )


@pytest.mark.slow
def test_gains_of_widths_that_do_not_divide_tile_too(random_params, grow):
  # Of the copies; what is fresh changes no gradient of theirs.
  now = dataclasses.replace(
    WAS, width=20, heads=5, kv_heads=5, norm_eps=maps.norm_eps(WAS, 20)
  )
  params = random_params(WAS)
  bigger, growth = grow(params, WAS, now)
  small, large = _gradients(WAS, now, params, bigger)
  expected = _moments(growth, small, 1)
  for exit_ in ('exit_1', 'exit_2'):
    np.testing.assert_allclose(
      large[exit_]['norm']['gain'][:16],
      expected[exit_]['norm']['gain'][:16],
      atol=1e-14,
    )
  gate = [
    tree['segment_0']['mlp_norm']['gain'][:, :16] for tree in (large, expected)
  ]
  np.testing.assert_allclose(*gate, atol=1e-14)


# 20 is no multiple of 8: each of the 8 has two copies, and 4 are fresh.
WIDER = dataclasses.replace(
  WAS, width=20, heads=5, kv_heads=5, norm_eps=maps.norm_eps(WAS, 20)
)


@pytest.mark.parametrize('now', [DOUBLE, WIDER])
def test_second_moments_are_of_the_squares(random_params, now):
  was, now = (dataclasses.replace(model, tied=False) for model in (WAS, now))
  growth, tree = _growth(now, was), random_params(was)
  squares = jax.tree.map(np.square, tree)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12),
    _moments(growth, squares, 2),
    jax.tree.map(np.square, _moments(growth, tree, 1)),
  )


def test_gains_and_their_gradients_scale_inversely(random_params, grow):
  params, gradient = random_params(WAS), random_params(WAS, seed=1)
  bigger, growth = grow(params, WAS, WIDER)
  assert growth.eta != 1
  moments = _moments(growth, gradient, 1)
  products = [
    tree[0]['exit_2']['norm']['gain'] * tree[1]['exit_2']['norm']['gain']
    for tree in ((params, gradient), (bigger, moments))
  ]
  # A change of the copies together changes the loss as one of the source does.
  np.testing.assert_allclose(products[1][:8] + products[1][8:16], products[0])
  np.testing.assert_array_equal(products[1][16:], 0)
  # What is fresh is read, as soon as something is written there.
  fresh = bigger['segment_0']['mlp_norm']['gain'][:, 16:]
  np.testing.assert_allclose(fresh, growth.eta)


def test_adamw_on_the_grown_model_follows_the_small_one(random_params, grow):
  train = train_config.TrainConfig(
    steps=40, batch_size=3, base_lr=0.02, warmup_steps=5, clip=0.0, eps=1e-6
  )

  def follow(model, params, state, eps, steps):
    """Takes steps; the state is (Adam's, schedule's place)."""
    step, init = _step(model, train, eps)
    state = init(params) if state is None else state
    for number in steps:
      params, state = step(params, state, TOKENS[number])
    return jax.tree.map(np.asarray, (params, state))

  with jax.enable_x64(True):
    params, state = follow(WAS, random_params(WAS), None, 1e-6, range(5))
    bigger, growth = grow(params, WAS, DOUBLE, state='carry')
    adam = state[1]
    carried = adam._replace(
      mu=_moments(growth, adam.mu, 1), nu=_moments(growth, adam.nu, 2)
    )
    state_of_both = [
      (state, params, WAS, 1e-6),
      ((*state[:1], carried, *state[2:]), bigger, DOUBLE, 1e-6 / 2),
    ]
    ends = [
      follow(model, values, moved, eps, range(5, 25))[0]
      for moved, values, model, eps in state_of_both
    ]
  expected, _ = grow(ends[0], WAS, DOUBLE)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12),
    ends[1],
    expected,
  )
  moved = np.abs(ends[0]['embedding'] - params['embedding']).max()
  assert moved > 0.1


def test_asymmetric_keeps_the_first_copies_alone(random_params):
  now = dataclasses.replace(DOUBLE, depth=3, exits=(1, 2, 3))
  tree = random_params(WAS)
  kept = _moments(_growth(now, state='asymmetric'), tree, 1)
  carried = _moments(_growth(now, state='carry'), tree, 1)
  assert (kept['embedding'][:, :8] == carried['embedding'][:, :8]).all()
  assert (kept['embedding'][:, 8:] == 0).all()
  gate = kept['segment_0']['mlp']['gate']['kernel']
  all_gate = carried['segment_0']['mlp']['gate']['kernel']
  assert (gate[:, :8, :6] == all_gate[:, :8, :6]).all()
  assert (gate[:, 8:] == 0).all() and (gate[:, :, 6:] == 0).all()
  for moments in (kept, carried):
    for leaf in jax.tree.leaves(moments['segment_2']):  # A silent layer.
      assert (leaf == 0).all()
  assert all((x != 0).any() for x in jax.tree.leaves(carried['segment_1']))


@pytest.mark.parametrize(
  'split', ['even', 'uneven', pytest.param('noise', marks=pytest.mark.slow)]
)
def test_copies_stay_copies_unless_their_readers_differ(
  random_params, grow, split
):
  params, _ = grow(random_params(WAS), WAS, DOUBLE, split=split)
  train = train_config.TrainConfig(steps=20, batch_size=3, base_lr=0.02)
  with jax.enable_x64(True):
    step, init = _step(DOUBLE, train, train.eps)
    state = init(params)
    for number in range(20):
      params, state = step(params, state, TOKENS[number])
  embedding = np.asarray(params['embedding'])
  units = np.asarray(params['segment_0']['mlp']['up']['kernel'])
  apart = [
    np.abs(embedding[:, :8] - embedding[:, 8:]).max(),
    np.abs(units[..., :6] - units[..., 6:]).max(),
  ]
  if split == 'even':
    assert max(apart) < 1e-12
  else:
    assert min(apart) > 1e-3


def test_a_part_of_an_array_is_that_part_of_the_whole(random_params):
  now = dataclasses.replace(
    DOUBLE, width=20, heads=5, kv_heads=5, depth=3, exits=(2, 3)
  )
  growth = _growth(now, split='noise')
  like, take = shapes(now, np.float32), reading(random_params(WAS, np.float32))
  read = []

  def noted(path, index):
    read.append(int(np.prod([len(part) for part in index])))
    return take(path, index)

  whole = grown.params(growth, like, take, 3)
  for path, leaf in jax.tree_util.tree_leaves_with_path(whole):
    names = tuple(key.key for key in path)
    index = tuple(np.arange(size // 3, size) for size in leaf.shape)
    part = grown.Part(growth, names, index, noted).values(3)
    np.testing.assert_array_equal(part, np.asarray(leaf)[np.ix_(*index)])
    assert read[-1] <= part.size  # Of the parent, no more than that.


def test_one_device_reads_its_parent_once(random_params):
  growth = _growth(DOUBLE)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  like = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
    shapes(DOUBLE, np.float32),
  )
  parent = random_params(WAS, np.float32)
  due = sum(leaf.nbytes for leaf in jax.tree.leaves(parent))
  assert grown.reads(growth, like) == due
