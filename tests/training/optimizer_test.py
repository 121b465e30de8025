import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from familial.training import config
from familial.training import optimizer


def _hyper(exits=(1, 3), **changes):
  values = {'steps': 100, 'batch_size': 1, 'base_lr': 0.5}
  return optimizer.hyper(config.TrainConfig(**{**values, **changes}), exits)


@pytest.mark.parametrize(
  'changes, expected',
  [
    # One more step than warmup_steps to the maximum, never a rate of 0.
    (
      {'schedule': 'constant', 'warmup_steps': 3},
      {0: 0.25, 1: 0.5, 2: 0.75, 3: 1.0, 50: 1.0, 99: 1.0},
    ),
    ({'schedule': 'constant'}, {0: 1.0, 99: 1.0}),
    (
      {'schedule': 'cosine', 'warmup_steps': 20},
      {20: 1.0, 40: (1 + 0.5**0.5) / 2, 60: 0.5, 100: 0.0},
    ),
    (
      {'schedule': 'cosine', 'final_lr': 0.2},
      {0: 1.0, 50: 0.6, 100: 0.2},
    ),
    (
      {'schedule': 'wsd', 'warmup_steps': 1, 'decay_fraction': 0.4},
      {0: 0.5, 1: 1.0, 60: 1.0, 70: 0.75, 90: 0.25, 99: 0.025, 100: 0.0},
    ),
    (
      {'schedule': 'wsd', 'decay_fraction': 0.5, 'final_lr': 0.1},
      {49: 1.0, 75: 0.55, 100: 0.1},
    ),
  ],
)
def test_schedules_by_hand(changes, expected):
  h = _hyper(**changes)
  got = [float(optimizer.schedule(jnp.int32(step), h)) for step in expected]
  assert got == pytest.approx(list(expected.values()), abs=1e-6)


def test_weights_move_in_a_line():
  still = _hyper(weighting='final_one')
  moving = _hyper(weighting='uniform', weighting_end='final_one')
  train = config.TrainConfig(
    steps=100, batch_size=1, base_lr=0.5, weighting='uniform',
    weighting_end='final_one',
  )  # fmt: skip
  for step, expected in ((0, (0.5, 0.5)), (25, (0.45, 0.625))):
    np.testing.assert_allclose(
      optimizer.exit_weights(jnp.int32(step), moving), expected, rtol=1e-6
    )
    assert train.exit_weights_at(step, (1, 3)) == pytest.approx(expected)
    np.testing.assert_allclose(
      optimizer.exit_weights(jnp.int32(step), still), (0.3, 1.0), rtol=1e-6
    )


@pytest.fixture(scope='module')
def params():
  """One leaf of each kind that the optimizer tells apart."""
  rng = np.random.default_rng(0)
  return {
    'embedding': jnp.asarray(rng.normal(size=(5, 4)), jnp.float32),
    'exit_1': {
      'norm': {'gain': jnp.asarray(rng.normal(size=4), jnp.float32)},
      'unembedding': jnp.asarray(rng.normal(size=(4, 5)), jnp.float32),
    },
    'segment_0': {
      'mlp': {'kernel': jnp.asarray(rng.normal(size=(1, 4, 4)), jnp.float32)}
    },
  }


def _gradients(params, count=5):
  rng = np.random.default_rng(1)
  return [
    jax.tree.map(
      lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
      params,
    )
    for _ in range(count)
  ]


def _train(transform, params, gradients):
  @jax.jit
  def step(params, state, gradient):
    updates, state = transform.update(gradient, state, params)
    return optax.apply_updates(params, updates), state

  state = transform.init(params)
  for gradient in gradients:
    params, state = step(params, state, gradient)
  return params


def test_at_the_base_width_it_is_adamw(shape, params):
  h = _hyper(
    schedule='constant', base_lr=0.01, weight_decay=0.3, beta1=0.8, beta2=0.9,
    eps=1e-8, clip=2.0,
  )  # fmt: skip
  expected = optax.chain(
    optax.clip_by_global_norm(2.0),
    optax.adamw(
      0.01, b1=0.8, b2=0.9, eps=1e-8, weight_decay=0.3,
      mask=jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key != 'gain', params
      ),
    ),
  )  # fmt: skip
  ours = optimizer.adamw(h, shape(width=32, base_width=32))
  gradients = _gradients(params)
  assert optax.tree.norm(gradients[0]) > 2
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7),
    _train(ours, params, gradients),
    _train(expected, params, gradients),
  )


def test_matrices_within_layers_take_a_rate_by_width(shape, params):
  def moves(width):
    ours = optimizer.adamw(
      _hyper(schedule='constant', weight_decay=0.0),
      shape(width=width, base_width=32),
    )
    after = _train(ours, params, _gradients(params, 1))
    return jax.tree.map(jnp.subtract, after, params)

  base, wide = moves(32), moves(128)
  ratio = jax.tree.map(lambda a, b: np.mean(b / a), base, wide)
  assert ratio['segment_0']['mlp']['kernel'] == pytest.approx(0.25, rel=1e-5)
  assert ratio['embedding'] == pytest.approx(1, rel=1e-5)
  assert ratio['exit_1']['unembedding'] == pytest.approx(1, rel=1e-5)
  assert ratio['exit_1']['norm']['gain'] == pytest.approx(1, rel=1e-5)


def test_one_rate_width_is_one_rate_for_all(shape, params):
  gradients = _gradients(params, 2)
  ends = [
    _train(
      optimizer.adamw(
        _hyper(schedule='constant', rate_width=rate_width),
        shape(width=width, base_width=32),
      ),
      params,
      gradients,
    )
    for width, rate_width in ((64, 0), (128, 64), (32, 64))
  ]
  for other in ends[1:]:
    jax.tree.map(np.testing.assert_array_equal, ends[0], other)


def test_decay_is_the_same_at_every_width_and_spares_gains(shape, params):
  h = _hyper(
    schedule='cosine', base_lr=0.5, weight_decay=0.1, steps=10, warmup_steps=1
  )
  none = [jax.tree.map(jnp.zeros_like, params)] * 2
  # Rates 0.25 and 0.5: warm-up, then the top of the cosine.
  kept = (1 - 0.25 * 0.1) * (1 - 0.5 * 0.1)
  for width in (32, 128):
    after = _train(
      optimizer.adamw(h, shape(width=width, base_width=32)), params, none
    )
    shrunk = jax.tree.map(lambda a, b: float(np.mean(a / b)), after, params)
    assert shrunk['segment_0']['mlp']['kernel'] == pytest.approx(kept)
    assert shrunk['embedding'] == pytest.approx(kept)
    assert shrunk['exit_1']['unembedding'] == pytest.approx(kept)
    assert shrunk['exit_1']['norm']['gain'] == 1


def test_clipping_scales_the_whole_gradient(shape, params):
  # The eps is far above any gradient: Adam's first step is then linear in it.
  def move(clip, scale):
    ours = optimizer.adamw(
      _hyper(schedule='constant', weight_decay=0.0, clip=clip, eps=1e3),
      shape(),
    )
    (gradient,) = _gradients(params, 1)
    gradient = jax.tree.map(
      lambda leaf: scale * leaf / optax.tree.norm(gradient), gradient
    )
    after = _train(ours, params, [gradient])
    return after['embedding'] - params['embedding']

  free = move(0.0, 1.0)
  np.testing.assert_allclose(move(0.0, 4.0), 4 * free, rtol=2e-2, atol=1e-7)
  np.testing.assert_allclose(move(1.0, 4.0), free, rtol=2e-2, atol=1e-7)
  np.testing.assert_allclose(move(1.0, 0.5), 0.5 * free, rtol=2e-2, atol=1e-7)
