import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from familial.analysis import toys

SHAPE = toys.Shape(width=5, hidden=7, vocab=6)
STAGES = pytest.mark.parametrize('stages', [1, 2])


def stacked(trees):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def random(depth, seed=0):
  return toys.teacher(jax.random.key(seed), SHAPE, depth, tied=False, gain=1)


def inputs(count=4):
  rng = np.random.default_rng(0)
  return rng.standard_normal((count, SHAPE.width)).astype(np.float32)


def reference(params, x, stages=1):
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


@STAGES
def test_networks_equal_a_reference(stages):
  params, x = random(3), inputs()
  states, last = reference(params, x, stages)
  found = toys.states(params, x, stages)
  np.testing.assert_allclose(found, states, atol=1e-5)
  np.testing.assert_allclose(toys.last(params, x, stages), last, atol=1e-5)


@pytest.mark.parametrize('tied', [False, True])
def test_layers_of_a_teacher(tied):
  shape = toys.Shape(width=32, hidden=128, vocab=1)
  params = toys.teacher(jax.random.key(0), shape, 16, tied, gain=1)
  spread = np.std(params['out'][0])
  assert spread == pytest.approx((128 * 16) ** -0.5, rel=0.05)
  for leaf in params.values():
    assert len(leaf) == 16
    assert (np.ptp(np.asarray(leaf), axis=0).max() == 0) == tied


@STAGES
def test_a_new_student_is_the_identity_and_learns(stages):
  params = toys.student(jax.random.key(0), SHAPE, 3, head=False)
  states = toys.states(params, inputs(), stages)
  np.testing.assert_array_equal(states, np.stack([states[0]] * 4))
  grads = jax.grad(lambda p: toys.last(p, inputs(), stages)[:, 0].sum())(params)
  assert float(jnp.abs(grads['out']).min(axis=(1, 2)).max()) > 0


def test_two_stages_are_of_second_order():
  # Layers of one field, in steps of 1 / n, compared with the finest.
  wide = toys.Shape(5, 64, 6)

  def end(depth, stages):
    params = toys.teacher(jax.random.key(2), wide, depth, tied=True, gain=1)
    params['out'] = params['out'] / depth**0.5 / 2
    return toys.states(params, inputs(), stages)[-1]

  true = end(16, 2)
  wrong = {
    (depth, stages): float(jnp.abs(end(depth, stages) - true).mean())
    for depth in (1, 4)
    for stages in [1, 2]
  }
  assert 3 < wrong[1, 1] / wrong[4, 1] < 6
  assert wrong[1, 2] / wrong[4, 2] > 10


def task(head, **changes):
  values = {
    'stages': 1, 'steps': 6, 'decay': 0.4, 'decay_to': 0.1, 'batch': 8,
    'test_batches': 2, 'test_batch': 4,
  }  # fmt: skip
  return toys.Task(SHAPE, head, **{**values, **changes})


def taught(seeds):
  """Teachers of four layers."""
  return stacked(
    toys.Teachers(
      random(4, 10 + seed),
      toys.new_head(jax.random.key(20 + seed), SHAPE),
      jax.random.key(30 + seed),
      jax.random.key(40 + seed),
    )
    for seed in seeds
  )


@pytest.mark.parametrize('head', ['none', 'shared', 'learned'])
def test_losses_of_a_test_equal_a_reference(head):
  known, of, cold = taught(range(2)), [0, 1, 1], [0.5, 0.5, 1.0]
  every = [
    {**random(2, seed), 'head': toys.new_head(jax.random.key(seed), SHAPE)}
    for seed in range(3)
  ]
  _, found = toys.train(
    task(head),
    known,
    toys.Members(jnp.array(of), jnp.array(cold)),
    toys.start((stacked(every),)),
    jnp.array([0.1]),
    0,
    True,
  )
  assert found.shape == (2, 1, 3)
  for batch, member in np.ndindex(2, 3):
    teacher, right = of[member], np.asarray(known.head[of[member]], np.float64)
    key = jax.random.fold_in(known.test[teacher], batch)
    x = np.asarray(jax.random.normal(key, (4, SHAPE.width)))
    y = reference({k: v[teacher] for k, v in known.mlps.items()}, x)[1]
    out = reference(every[member], x)[1]
    loss = np.mean((out - y) ** 2)
    if head != 'none':
      own = every[member]['head'] if head == 'learned' else right
      logits = y @ right / cold[member], out @ own / cold[member]
      p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in logits)
      loss = (p * np.log(p / q)).sum(-1).mean()
    assert found[batch, 0, member] == pytest.approx(loss, rel=1e-4)


def test_a_student_among_others_equals_adam_by_itself():
  # Two depths with rates of their own, which fall over the last two fifths.
  how, known = task('none'), taught(range(2))
  depths, rates = (1, 3), jnp.array([0.0, 0.02])
  students = tuple(
    stacked(
      toys.student(jax.random.key(seed), SHAPE, depth, False)
      for seed in range(2)
    )
    for depth in depths
  )
  alone = {name: leaf[1] for name, leaf in students[1].items()}
  still = {name: np.array(leaf) for name, leaf in students[0].items()}
  state = toys.start(students)
  for steps in (4, 2):  # In one dispatch or in several.
    state, _ = toys.train(
      how,
      known,
      toys.Members(jnp.array([0, 1]), jnp.ones(2)),
      state,
      rates,
      steps,
      False,
    )
  # A step is taken with the rate at its end: 5/6 is 7/12 of the way down.
  shares = np.interp((np.arange(6) + 1) / 6, [0, 0.6, 1], [1, 1, 0.1])
  adam = optax.adam(lambda step: 0.02 * jnp.asarray(shares)[step])

  @jax.jit
  def step(params, moments, number):
    key = jax.random.fold_in(known.train[1], number)
    x = jax.random.normal(key, (how.batch, SHAPE.width))
    y = toys.last({k: v[1] for k, v in known.mlps.items()}, x)
    grads = jax.grad(lambda p: jnp.mean((toys.last(p, x) - y) ** 2))(params)
    updates, moments = adam.update(grads, moments)
    return optax.apply_updates(params, updates), moments

  moments = adam.init(alone)
  for number in range(6):
    alone, moments = step(alone, moments, number)
  for name, leaf in alone.items():
    np.testing.assert_allclose(state.params[1][name][1], leaf, atol=1e-5)
    np.testing.assert_array_equal(state.params[0][name], still[name])
