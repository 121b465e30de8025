"""Toy residual networks: teachers, students, and the training of many students.

A network starts from the RMSNorm of its input, adds the output of one MLP per
layer (gainless RMSNorm, a linear map with a bias, squared ReLU, a linear map
without) and ends in an RMSNorm; a head gives logits where there is one. Students
learn the outputs of a deeper teacher of random weights on N(0, I) inputs
(arXiv 2602.05970).

Shapes: B batch, D width, F hidden units, V vocabulary, L layers, T teachers, M
students of a depth. Students of all depths of a study are one program, which runs
their teachers, its deepest networks, once for all of them.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import functools
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

Array = jax.Array
# `in` [L, D, F], `bias` [L, F], `out` [L, F, D], and a learned `head` [D, V].
Params = dict[str, Array]
_EPS = 1e-6
_MLP = ('in', 'bias', 'out')
_ADAM = optax.scale_by_adam()
# Some accelerators round the operands of a product to bfloat16 by default.
_matmul = functools.partial(jnp.matmul, precision='float32')


class Shape(NamedTuple):
  """Sizes that all networks of a study share."""

  width: int
  hidden: int
  vocab: int


@dataclasses.dataclass(frozen=True)
class Task:
  """How students are trained and tested; each task is one program.

  Attributes:
    shape: of all networks.
    head: `none` (mean squared error of the normed last state), or KL divergence
      from the teacher's distribution in nats, through the teacher's head
      (`shared`) or the student's own (`learned`).
    stages: evaluations of a layer's MLP; see `states`.
    steps: training steps.
    decay: final share of the steps over which the rate falls linearly.
    decay_to: share of the rate that is left at the end.
    batch: fresh inputs per step.
    test_batches: number of fixed test batches.
    test_batch: inputs per test batch.
  """

  shape: Shape
  head: str
  stages: int
  steps: int
  decay: float
  decay_to: float
  batch: int
  test_batches: int
  test_batch: int


class Teachers(NamedTuple):
  """Teachers and the keys of their inputs; leaves [T, ...].

  Attributes:
    mlps: `in`, `bias` and `out` of every layer.
    head: [T, D, V].
    train: keys of the training inputs.
    test: keys of the test inputs.
  """

  mlps: Params
  head: Array
  train: Array
  test: Array


class Members(NamedTuple):
  """Teacher and temperature of each student of a depth; leaves [M].

  Attributes:
    teacher: index of the student's teacher.
    temperature: divisor of the logits of both.
  """

  teacher: Array
  temperature: Array


class State(NamedTuple):
  """Students in training, by depth; leaves [M, ...] except the step counts."""

  params: tuple[Params, ...]
  moments: Any
  step: Array


def norm(x: Array) -> Array:
  """Returns x over its root mean square along the last axis."""
  return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + _EPS)


def states(params: Params, x_BxD: Array, stages: int = 1) -> Array:
  """Returns a network's hidden states [L + 1, B, D], before the final norm.

  A layer's MLP f is a step of dx/dt = f(x) whose length is part of f's weights.
  One stage is Euler's step, x + f(x). Two stages are the midpoint rule,
  x + f(x + f(x) / 2): among second-order rules of two stages it has a smaller
  error than Heun's where f bends (1/24 f'' f^2 against 1/12; the term f'^2 f / 6 is
  common to all), and a layer still adds one output of its MLP.

  Args:
    params: of the network.
    x_BxD: inputs.
    stages: 1 or 2.
  """
  return jnp.stack(list(_path(params, x_BxD, stages)))


def last(params: Params, x_BxD: Array, stages: int = 1) -> Array:
  """Returns the last of a network's `states`, normed [B, D]."""
  *_, x_BxD = _path(params, x_BxD, stages)
  return norm(x_BxD)


def _path(params: Params, x_BxD: Array, stages: int) -> Iterator[Array]:
  x_BxD = norm(x_BxD)
  yield x_BxD
  for mlp in zip(*(jnp.unstack(params[name]) for name in _MLP), strict=True):
    x_BxD = _layer(mlp, x_BxD, stages)
    yield x_BxD


def teacher(
  key: Array, shape: Shape, depth: int, tied: bool, gain: float
) -> Params:
  """Returns a teacher of independent layers (rho = 0) or one tied layer (rho = 1).

  Inner weights and biases are N(0, 1/D), outer weights N(0, gain^2 / F) over
  sqrt(depth). A layer adds about 1.25 gain / sqrt(depth) to a state of size 1; with
  tied layers the path's length is sqrt(depth) times that of independent layers.
  """
  keys = jax.random.split(key, 3)
  drawn = 1 if tied else depth
  width, hidden, _ = shape
  outer = gain * (hidden * depth) ** -0.5
  mlps = {
    'in': width**-0.5 * jax.random.normal(keys[0], (drawn, width, hidden)),
    'bias': width**-0.5 * jax.random.normal(keys[1], (drawn, hidden)),
    'out': outer * jax.random.normal(keys[2], (drawn, hidden, width)),
  }
  return {
    name: jnp.broadcast_to(leaf, (depth, *leaf.shape[1:]))
    for name, leaf in mlps.items()
  }


def student(key: Array, shape: Shape, depth: int, head: bool) -> Params:
  """Returns a student that is the identity: its outer weights are zero."""
  width, hidden, _ = shape
  inner, outer = jax.random.split(key)
  params = {
    'in': width**-0.5 * jax.random.normal(inner, (depth, width, hidden)),
    'bias': jnp.zeros((depth, hidden)),
    'out': jnp.zeros((depth, hidden, width)),
  }
  return {**params, 'head': new_head(outer, shape)} if head else params


def new_head(key: Array, shape: Shape) -> Array:
  """Returns a head [D, V] of N(0, 1/D): logits of a normed state are N(0, 1)."""
  return shape.width**-0.5 * jax.random.normal(key, (shape.width, shape.vocab))


def start(params: tuple[Params, ...]) -> State:
  """Returns students of some depths, [M, ...] each, before their first step."""
  return State(params, _ADAM.init(params), jnp.int32(0))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def train(
  task: Task,
  teachers: Teachers,
  members: Members,
  state: State,
  rates: Array,
  steps: Array,
  test: Array,
) -> tuple[State, Array]:
  """Trains students by Adam; steps and tests are one program.

  A student does not depend on the others. Students of one teacher see the same
  inputs.

  Args:
    task: settings that all students share.
    teachers: of one depth.
    members: one for each student of a depth; the same at every depth.
    state: of the students; donated.
    rates: learning rate of the students of each depth.
    steps: number of steps; it does not change the program.
    test: whether to test afterwards.

  Returns:
    The students, and their mean loss in each test batch [test_batches, depths,
    M]; zeros without a test.
  """

  def loss(params: Sequence[Params], keys_T: Array, batch: int) -> Array:
    return _losses(task, teachers, members, params, keys_T, batch)

  def step(_: Array, state: State) -> State:
    keys_T = _fold_in(teachers.train, state.step)
    grads = jax.grad(lambda params: loss(params, keys_T, task.batch).sum())(
      state.params
    )
    updates, moments = _ADAM.update(grads, state.moments)
    now = rates * _decay(task, state.step)
    params = tuple(
      jax.tree.map(lambda p, u, rate=now[i]: p - rate * u, *pair)
      for i, pair in enumerate(zip(state.params, updates, strict=True))
    )
    return State(params, moments, state.step + 1)

  def tested(params: Sequence[Params]) -> Array:
    return jax.lax.map(
      lambda i: loss(params, _fold_in(teachers.test, i), task.test_batch),
      jnp.arange(task.test_batches),
    )

  state = jax.lax.fori_loop(0, steps, step, state)
  nothing = jnp.zeros((task.test_batches, len(rates), len(members.teacher)))
  return state, jax.lax.cond(test, tested, lambda _: nothing, state.params)


def _losses(
  task: Task,
  teachers: Teachers,
  members: Members,
  students: Sequence[Params],
  keys_T: Array,
  batch: int,
) -> Array:
  """Returns the students' losses [depths, M] on fresh inputs."""
  x_TxBxD = jax.vmap(
    lambda key: jax.random.normal(key, (batch, task.shape.width))
  )(keys_T)
  y_TxBxD = jax.vmap(_taught)(teachers.mlps, x_TxBxD)
  of = members.teacher
  x_MxBxD, y_MxBxD = x_TxBxD[of], y_TxBxD[of]
  heads = teachers.head[of]
  cold = members.temperature[:, None, None]
  right = y_MxBxD
  if task.head != 'none':
    right = jax.nn.log_softmax(_matmul(y_MxBxD, heads) / cold)

  def loss(params: Params) -> Array:
    out_MxBxD = jax.vmap(lambda p, x: last(p, x, task.stages))(params, x_MxBxD)
    if task.head == 'none':
      return jnp.mean((out_MxBxD - right) ** 2, axis=(1, 2))
    own = params['head'] if task.head == 'learned' else heads
    log_q = jax.nn.log_softmax(_matmul(out_MxBxD, own) / cold)
    return jnp.mean(jnp.sum(jnp.exp(right) * (right - log_q), axis=-1), axis=-1)

  return jnp.stack([loss(params) for params in students])


def _taught(mlps: Params, x_BxD: Array) -> Array:
  """Returns `last`, by a program whose size does not grow with depth."""
  layers = tuple(mlps[name] for name in _MLP)
  x_BxD, _ = jax.lax.scan(
    lambda x, mlp: (_layer(mlp, x, 1), None), norm(x_BxD), layers
  )
  return norm(x_BxD)


def _layer(mlp: tuple[Array, ...], x_BxD: Array, stages: int) -> Array:
  inner, bias, outer = mlp

  def added(x_BxD: Array) -> Array:
    hidden = jnp.maximum(_matmul(norm(x_BxD), inner) + bias, 0) ** 2
    return _matmul(hidden, outer)

  if stages == 2:
    return x_BxD + added(x_BxD + added(x_BxD) / 2)
  return x_BxD + added(x_BxD)


def _decay(task: Task, step: Array) -> Array | float:
  """Returns the learning rate of a step as a share of the base rate."""
  if not task.decay:
    return 1.0
  left = 1 - (step + 1) / task.steps
  decayed = jnp.clip(1 - left / task.decay, 0, 1)
  return 1 - (1 - task.decay_to) * decayed


def _fold_in(keys: Array, number: Array) -> Array:
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
