import jax
import jax.numpy as jnp
import numpy as np
import pytest

from familial.analysis import toys
from familial.studies import depth_toys_cohort
from tests.analysis.toys_small import SHAPE
from tests.analysis.toys_small import asked


def random(depth, seed=0):
  return toys.teacher(jax.random.key(seed), SHAPE, depth, tied=False, gain=1)


def inputs(count=4):
  rng = np.random.default_rng(0)
  return rng.standard_normal((count, SHAPE.width)).astype(np.float32)


def reference(params, x, stages):
  """The states by NumPy in float64, one input at a time."""
  norm = lambda v: v / np.sqrt(np.mean(v**2) + 1e-6)
  rows = []
  for v in x.astype(np.float64):
    path = [norm(v)]
    for inner, bias, outer in zip(
      *(np.asarray(params[k], np.float64) for k in ('in', 'bias', 'out')),
      strict=True,
    ):
      mlp = lambda h, inner=inner, bias=bias, outer=outer: (
        outer.T @ np.clip(inner.T @ norm(h) + bias, 0, None) ** 2
      )
      h = path[-1]
      path.append(h + mlp(h if stages == 1 else h + mlp(h) / 2))
    rows.append(path)
  return np.array(rows).swapaxes(0, 1), np.array([norm(p[-1]) for p in rows])


@pytest.mark.parametrize('stages', toys.STAGES)
def test_networks_equal_a_reference(stages):
  params, x = random(3), inputs()
  states, last = reference(params, x, stages)
  found = toys.states(params, x, stages)
  assert found.shape == (4, 4, SHAPE.width)
  np.testing.assert_allclose(found, states, atol=1e-5)
  np.testing.assert_allclose(toys.last(params, x, stages), last, atol=1e-5)
  # A teacher's own program.
  if stages == 1:
    np.testing.assert_allclose(toys._taught(params, x), last, atol=1e-5)


def test_a_tied_teacher_is_one_layer_applied_again_and_again():
  key = jax.random.key(1)
  tied = toys.teacher(key, SHAPE, 3, tied=True, gain=1)
  one = {name: leaf[:1] for name, leaf in tied.items()}
  x = toys.norm(inputs())
  for _ in range(3):  # A first norm would alter what comes in.
    x = toys._layer(tuple(leaf[0] for leaf in one.values()), x, 1)
  np.testing.assert_allclose(toys.states(tied, inputs())[-1], x, atol=1e-5)
  free = toys.teacher(key, SHAPE, 3, tied=False, gain=1)
  assert np.ptp(np.asarray(tied['out']), axis=0).max() == 0
  assert np.ptp(np.asarray(free['out']), axis=0).max() > 0


def test_outer_weights_shrink_with_the_teacher_s_depth():
  shape = toys.Shape(width=32, hidden=128, vocab=1)
  for depth in (4, 64):
    out = toys.teacher(jax.random.key(0), shape, depth, tied=True, gain=1)[
      'out'
    ]
    assert np.std(out) == pytest.approx((128 * depth) ** -0.5, rel=0.05)


@pytest.mark.parametrize('stages', toys.STAGES)
def test_a_new_student_is_the_identity_and_learns(stages):
  params = toys.student(jax.random.key(0), SHAPE, 3, head=False)
  states = toys.states(params, inputs(), stages)
  np.testing.assert_array_equal(states, np.stack([states[0]] * 4))
  grads = jax.grad(lambda p: toys.last(p, inputs(), stages)[:, 0].sum())(params)
  assert float(jnp.abs(grads['out']).min(axis=(1, 2)).max()) > 0


def test_two_stages_are_of_second_order():
  # Layers of one field, in steps of 1 / n: against the finest.
  key = jax.random.key(2)
  wide = toys.Shape(5, 64, 6)

  def end(depth, stages):
    params = toys.teacher(key, wide, depth, tied=True, gain=1)
    params['out'] = params['out'] / depth**0.5 / 2
    return toys.states(params, inputs(), stages)[-1]

  true = end(16, 2)
  wrong = {
    (depth, stages): float(jnp.abs(end(depth, stages) - true).mean())
    for depth in (1, 4)
    for stages in toys.STAGES
  }
  assert 3 < wrong[1, 1] / wrong[4, 1] < 6
  assert wrong[1, 2] / wrong[4, 2] > 10


def test_the_divergence_is_that_of_cold_distributions():
  toys_ = asked(head='shared', temperatures=(0.5, 1.0))
  known = depth_toys_cohort.teachers(toys_, 'only')
  of, cold = jnp.array([1, 3, 3]), jnp.array([0.5, 0.5, 1.0])
  params = jax.tree.map(
    lambda *leaves: jnp.stack(leaves), *(random(2, seed) for seed in range(3))
  )
  found = toys._losses(
    depth_toys_cohort.task(toys_, 'only'),
    known,
    toys.Members(of, cold),
    [params],
    known.test,
    4,
  )[0]
  for i, teacher in enumerate(of):
    x = np.asarray(jax.random.normal(known.test[teacher], (4, SHAPE.width)))
    logits = [
      reference({k: v[j] for k, v in mlps.items()}, x, 1)[1]
      @ np.asarray(known.head[teacher], np.float64)
      / float(cold[i])
      for mlps, j in ((known.mlps, teacher), (params, i))
    ]
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in logits)
    divergence = (p * np.log(p / q)).sum(-1).mean()
    assert found[i] == pytest.approx(divergence, rel=1e-4)
