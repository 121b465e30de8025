"""The compiled programs of the solver: a few iterations of many robust fits.

Each iteration takes the damped Newton step where its matrix is positive definite,
which removes the linear tail of reweighting; elsewhere the damped Gauss-Newton
step with Huber's weights min(1, delta/|r|), which descends from far. Either step is
also tried bent along the valley (geodesic acceleration: Transtrum & Sethna 2012,
equation 10), and the better end is kept. See levenberg_marquardt.solve.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
import math
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from familial.laws import parametric

ROUGH_ROUND = 8  # iterations of a rough program
_ROUGH_LEAST = 1e-6  # least damping that float32 bears
ROUND = 4  # iterations between two checks for lanes that are done
_CAP = 1.0  # largest change of a coordinate in one step: e-fold, or 1
_NEAR_ENOUGH = 0.03  # gradient at which Huber's threshold tightens
_TIGHTEN = 0.25  # by this factor, until it is delta
_STUCK = 1e12  # damping at which no descent is left within rounding
# Numbers in the arrays of one round, and its most lanes on a CPU and elsewhere.
_NUMBERS, _LANES = 2**22, (32, 4096)
_ROUGH_NUMBERS, _ROUGH_LANES = 2**24, (128, 8192)
_TRACED = 64  # rows of a form whose arrays are counted


def lanes(
  form: parametric.VectorForm, rows: int, *, rough: bool = False
) -> int:
  """Returns the number of fits in a compiled round."""
  numbers = _ROUGH_NUMBERS if rough else _NUMBERS
  on_cpu, elsewhere = _ROUGH_LANES if rough else _LANES
  most = on_cpu if jax.default_backend() == 'cpu' else elsewhere
  each = rows * (len(form.coordinates) + 4)
  # A law of large arrays keeps a core busy by itself: idle lanes would cost.
  return max(1, min(most, numbers // each) // inner(form))


@functools.lru_cache(maxsize=128)
def inner(form: parametric.VectorForm) -> int:
  """The numbers a row of a form's largest intermediate array, at least 1.

  It is 240 of a law that sums over the 240 knots of a schedule.
  """
  column = jax.ShapeDtypeStruct((_TRACED,), np.float32)
  theta = jax.ShapeDtypeStruct((len(form.coordinates),), np.float32)
  traced = jax.make_jaxpr(lambda columns, theta: form.on(columns)(theta))(
    dict.fromkeys(form.columns, column), theta
  )
  return max(1, _largest(traced.jaxpr) // _TRACED)


def _largest(jaxpr: Any) -> int:
  """The size of the largest array that a traced function computes."""
  sizes = [
    math.prod(getattr(out.aval, 'shape', ()))
    for equation in jaxpr.eqns
    for out in equation.outvars
  ]
  within = map(_largest, jax.extend.core.subjaxprs(jaxpr))
  return max([*sizes, *within], default=0)


@functools.lru_cache(maxsize=128)
def program(
  form: parametric.VectorForm, rows: int, *, rough: bool = False
) -> Callable[..., Any]:
  """The compiled round of `lanes` fits to `rows` rows (a number of `padded`).

  A rough round is of Gauss-Newton steps alone, in float32. It takes columns,
  target [rows], weights [lanes, rows], theta, damping [lanes], free and (delta,
  asymmetry), and returns theta, damping and the objectives.
  """
  p, n = len(form.coordinates), lanes(form, rows, rough=rough)
  function: Callable[..., Any] = _round
  axes: tuple[int | None, ...] = (None, 0, 0, 0, 0, None, None, 0, 0)
  arrays: tuple[tuple[int, ...], ...] = (
    (n, rows), (n, rows), (n, p), (n,), (p,), (4,), (n,), (n,)
  )  # fmt: skip
  if rough:
    function, axes = _rough_round, (None, None, 0, 0, 0, None, None)
    arrays = ((rows,), (n, rows), (n, p), (n,), (p,), (2,))
  dtype = jnp.float32 if rough else jnp.float64
  columns = {
    name: jax.ShapeDtypeStruct((rows,), dtype) for name in form.columns
  }
  shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in arrays]
  each = jax.vmap(functools.partial(function, form), in_axes=axes)
  lowered = jax.jit(each).lower(columns, *shapes)
  return lowered.compile(compiler_options=_options())


def _options() -> dict[str, str | bool]:
  """Compiler options: 60 % of the compile time, at the same speed.

  From jax 0.11 on, XLA has no such option.
  """
  given = jax.default_backend() == 'cpu' and jax.__version_info__ < (0, 11)
  return {'xla_cpu_use_fusion_emitters': False} if given else {}


def padded(rows: int) -> int:
  """Rows of a compiled program: few sizes, so that few are compiled."""
  size = 64
  while size < rows:
    size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
  return size


def inputs(
  names: tuple[str, ...], columns: Mapping[str, Any], dtype: Any = np.float64
) -> dict[str, np.ndarray]:
  """A form's columns, padded with copies of their last row."""
  return {name: pad(np.asarray(columns[name], dtype)) for name in names}


def pad_points(theta: Any) -> np.ndarray:
  """Points [n, parameters] and zeros: few numbers, so that few are compiled."""
  theta = np.asarray(theta, np.float64)
  return np.pad(theta, ((0, padded(len(theta)) - len(theta)), (0, 0)))


def pad(values: np.ndarray, mode: Any = 'edge') -> np.ndarray:
  """Arrays [..., rows] with as many rows as a compiled program has."""
  rows = values.shape[-1]
  none = [(0, 0)] * (values.ndim - 1)
  return np.pad(values, [*none, (0, padded(rows) - rows)], mode=mode)


@functools.partial(jax.jit, static_argnums=0)
def predict(
  form: parametric.VectorForm, columns: dict[str, jax.Array], theta: jax.Array
) -> jax.Array:
  """Log loss [n, rows], compiled."""
  return jax.vmap(form.on(columns))(theta)


@functools.partial(jax.jit, static_argnums=0)
def evaluate(
  form: parametric.VectorForm, columns: dict[str, jax.Array], theta: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Log loss [n, rows] and its Jacobian [n, rows, parameters], compiled."""
  model = form.on(columns)
  return jax.vmap(model)(theta), jax.vmap(jax.jacfwd(model))(theta)


def _round(
  form: parametric.VectorForm,
  columns: dict[str, jax.Array],
  target: jax.Array,
  weight: jax.Array,
  theta: jax.Array,
  damping: jax.Array,
  free: jax.Array,
  settings: jax.Array,
  floor: jax.Array,
  threshold: jax.Array,
) -> tuple[jax.Array, ...]:
  """A few iterations of one lane; all arguments but the form traced."""
  model = form.on(columns)
  delta, tolerance, least, asymmetry = settings
  both_free = free[:, None] * free

  def objective(residual: jax.Array, threshold: jax.Array) -> jax.Array:
    return _objective(residual, weight, threshold, asymmetry)

  def iterate(_: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    theta, damping, _, threshold, done = state
    prediction, jacobian = _linearised(model, theta, free)
    residual = prediction - target
    value = objective(residual, threshold)
    sided = weight * jnp.where(residual > 0, asymmetry, 1.0)
    slope = _slope(
      jacobian, residual, sided, threshold, 0.01 * tolerance * value
    )
    last = threshold <= delta
    stop = last & (
      (slope <= tolerance) | (value <= floor) | (damping >= _STUCK)
    )
    tighten = (slope <= _NEAR_ENOUGH) | (damping >= _STUCK)
    threshold = jnp.where(
      tighten, jnp.maximum(threshold * _TIGHTEN, delta), threshold
    )
    damping = jnp.where(tighten & ~last, least, damping)

    value = objective(residual, threshold)
    clipped = jnp.clip(residual, -threshold, threshold)
    inside = jnp.abs(residual) <= threshold
    pull = sided * clipped
    gradient = jacobian @ pull
    huber_weight = jnp.where(inside, 1.0, threshold / jnp.abs(residual))
    gauss = _gram(jacobian, sided * huber_weight)
    curvature = jax.jacfwd(lambda t: jax.vjp(model, t)[1](pull)[0])(theta)
    newton = _gram(jacobian, sided * inside) + curvature * both_free
    # A matrix that is not positive definite gives NaN.
    first, second = jax.vmap(_step, in_axes=(0, None, None, None))(
      jnp.stack([newton, gauss]), gradient, damping, _scale(gauss)
    )
    step = jnp.where(jnp.isfinite(first).all(), first, second)
    # Each coordinate by itself: a dead term asks for an endless step, and
    # scaling the whole step down to it would stop all the others.
    step = -jnp.clip(step, -_CAP, _CAP)
    # The same step along the valley's curve: where a term is nearly made up for
    # by others, the valley is narrow and bent, and straight steps are short.
    bend = _directional(_directional(model, step), step)(theta)
    pull = jacobian @ (sided * huber_weight * bend)
    turn = -0.5 * _step(gauss, pull, damping, _scale(gauss))
    turn = jnp.where(jnp.isfinite(turn).all(), jnp.clip(turn, -_CAP, _CAP), 0.0)
    straight, bent = (
      (theta + move, objective(model(theta + move) - target, threshold))
      for move in (step, step + turn)
    )
    best = jnp.where(bent[1] < straight[1], bent[0], straight[0])
    down = jnp.minimum(bent[1], straight[1]) < value
    move = down & ~stop & ~done
    keep = stop | done
    new_damping = jnp.where(down, damping / 5, damping * 10)
    return (
      jnp.where(move, best, theta),
      jnp.where(keep, damping, jnp.clip(new_damping, least, _STUCK)),
      slope,
      threshold,
      keep,
    )

  start = (theta, damping, jnp.inf * floor, threshold, floor < 0)
  theta, damping, slope, threshold, done = jax.lax.fori_loop(
    0, ROUND, iterate, start
  )
  value = objective(model(theta) - target, delta)
  return theta, damping, threshold, value, slope, done


def _rough_round(
  form: parametric.VectorForm,
  columns: dict[str, jax.Array],
  target: jax.Array,
  weight: jax.Array,
  theta: jax.Array,
  damping: jax.Array,
  free: jax.Array,
  settings: jax.Array,
) -> tuple[jax.Array, ...]:
  """ROUGH_ROUND Gauss-Newton iterations of one lane."""
  model = form.on(columns)
  delta, asymmetry = settings

  def objective(residual: jax.Array) -> jax.Array:
    return _objective(residual, weight, delta, asymmetry)

  def iterate(_: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    theta, damping, value = state
    prediction, jacobian = _linearised(model, theta, free)
    residual = prediction - target
    size = jnp.abs(residual)
    pull = weight * jnp.where(residual > 0, asymmetry, 1.0)
    pull *= jnp.where(size <= delta, 1.0, delta / size)
    gauss = _gram(jacobian, pull)
    gradient = jacobian @ (pull * residual)
    step = _step(gauss, gradient, damping, _scale(gauss))
    new = theta - jnp.clip(step, -_CAP, _CAP)
    new_value = objective(model(new) - target)
    # From where there is no number, any number is a gain.
    down = (new_value < value) | (jnp.isfinite(new_value) & jnp.isnan(value))
    return (
      jnp.where(down, new, theta),
      jnp.maximum(jnp.where(down, damping / 5, damping * 10), _ROUGH_LEAST),
      jnp.where(down, new_value, value),
    )

  first = objective(model(theta) - target)
  return jax.lax.fori_loop(0, ROUGH_ROUND, iterate, (theta, damping, first))


def _linearised(
  model: Callable[[jax.Array], jax.Array], theta: jax.Array, free: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The prediction and its Jacobian [parameters, rows], 0 where not free."""
  prediction, push = jax.linearize(model, theta)
  identity = jnp.eye(len(theta), dtype=theta.dtype)
  return prediction, jax.vmap(push)(identity) * free[:, None]


def _directional(
  function: Callable[[jax.Array], jax.Array], direction: jax.Array
) -> Callable[[jax.Array], jax.Array]:
  """The derivative of a function of theta along a direction."""
  return lambda theta: jax.jvp(function, (theta,), (direction,))[1]


def _scale(gauss: jax.Array) -> jax.Array:
  """Marquardt's scale of each coordinate."""
  diagonal = jnp.diagonal(gauss)
  return jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))


def _step(
  matrix: jax.Array, gradient: jax.Array, damping: jax.Array, scale: jax.Array
) -> jax.Array:
  """The step that the damped matrix gives, damped in units of the scale."""
  identity = jnp.eye(len(scale), dtype=scale.dtype)
  scaled = matrix / scale[:, None] / scale + damping * identity
  return _cholesky_solve(scaled, gradient / scale) / scale


def _objective(
  residual: jax.Array, weight: jax.Array, delta: jax.Array, asymmetry: jax.Array
) -> jax.Array:
  """sum_i w_i s_i Huber(r_i; delta), s_i = asymmetry where r_i > 0."""
  size = jnp.abs(residual)
  tail = delta * (size - 0.5 * delta)
  loss = jnp.where(size <= delta, 0.5 * size**2, tail)
  return weight @ (jnp.where(residual > 0, asymmetry, 1.0) * loss)


def _gram(jacobian: jax.Array, weight: jax.Array) -> jax.Array:
  """J W J', as one fused sum: many small matrix products are slower."""
  return jnp.sum((jacobian * weight)[:, None] * jacobian, axis=-1)


def _slope(
  jacobian: jax.Array,
  residual: jax.Array,
  weight: jax.Array,
  threshold: jax.Array,
  negligible: jax.Array,
) -> jax.Array:
  """The gradient without units: `Solution.gradient`.

  A coordinate whose gradient is negligible beside the objective counts as 0:
  as E tends to 0 its cosine does not, but nothing is to be gained there.
  """
  clipped = jnp.clip(residual, -threshold, threshold)
  length = jnp.sqrt((jacobian**2 @ weight) * (weight @ clipped**2))
  size = jnp.abs(jacobian @ (weight * clipped))
  cosine = size / jnp.where(length > 0, length, 1.0)
  return jnp.max(jnp.where(size > negligible, cosine, 0.0))


def _cholesky_solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
  """Solves a small positive definite system; NaN where it is not.

  Written out over the few parameters, so that under vmap each step is one
  vector operation over all lanes: LAPACK would be called once a lane.
  """
  p = matrix.shape[0]
  lower: list[list[jax.Array]] = []
  forward: list[jax.Array] = []
  for i in range(p):
    row: list[jax.Array] = []
    for j in range(i):
      dot = sum(
        (row[k] * lower[j][k] for k in range(j)), jnp.zeros_like(right[0])
      )
      row.append((matrix[i, j] - dot) / lower[j][j])
    row.append(
      jnp.sqrt(matrix[i, i] - sum((x * x for x in row), 0.0 * right[0]))
    )
    lower.append(row)
    total = right[i]
    for k in range(i):
      total -= row[k] * forward[k]
    forward.append(total / row[i])
  solution: list[jax.Array] = list(forward)
  for i in reversed(range(p)):
    total = forward[i]
    for k in range(i + 1, p):
      total -= lower[k][i] * solution[k]
    solution[i] = total / lower[i][i]
  return jnp.stack(solution)
