"""The compiled programs of the solver: a few iterations of many robust fits.

Each iteration takes the damped Newton step where its matrix is positive definite,
which removes the linear tail of reweighting; elsewhere the damped Gauss-Newton
step with Huber's weights min(1, delta/|r|), which descends from far. See
levenberg_marquardt.solve.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROUGH_ROUND = 8  # iterations of a rough program
_ROUGH_LEAST = 1e-6  # least damping that float32 bears
ROUND = 4  # iterations between two checks for lanes that are done
_CAP = 1.0  # largest change of a coordinate in one step: e-fold, or 1
_NEAR_ENOUGH = 0.03  # gradient at which Huber's threshold tightens
_TIGHTEN = 0.25  # by this factor, until it is delta
_STUCK = 1e12  # damping at which no descent is left within rounding


@functools.lru_cache(maxsize=64)
def program(
  log_loss: Callable[..., Any],
  coordinates: tuple[str, ...],
  column_names: tuple[str, ...],
  rows: int,
  lanes: int,
) -> Callable[..., Any]:
  """The compiled round; laws that share a function share the program."""
  p = len(coordinates)
  return _compiled(
    functools.partial(_round, log_loss, coordinates),
    (None, 0, 0, 0, 0, None, None, 0, 0),
    dict.fromkeys(column_names, (rows,)),
    ((lanes, rows), (lanes, rows), (lanes, p), (lanes,), (p,), (4,), (lanes,),
     (lanes,)),
    jnp.float64,
  )  # fmt: skip


@functools.lru_cache(maxsize=64)
def rough(
  log_loss: Callable[..., Any],
  coordinates: tuple[str, ...],
  column_names: tuple[str, ...],
  rows: int,
  lanes: int,
) -> Callable[..., Any]:
  """The compiled rough round: Gauss-Newton alone, in float32.

  Takes columns, target [rows], weights [lanes, rows], theta, damping [lanes],
  free and (delta, asymmetry); returns theta, damping and the objectives.
  """
  p = len(coordinates)
  return _compiled(
    functools.partial(_rough_round, log_loss, coordinates),
    (None, None, 0, 0, 0, None, None),
    dict.fromkeys(column_names, (rows,)),
    ((rows,), (lanes, rows), (lanes, p), (lanes,), (p,), (2,)),
    jnp.float32,
  )


def _compiled(
  function: Callable[..., Any],
  axes: tuple[int | None, ...],
  columns: dict[str, tuple[int, ...]],
  arrays: tuple[tuple[int, ...], ...],
  dtype: Any,
) -> Callable[..., Any]:
  """A function of columns and arrays of these shapes, under vmap, compiled."""
  shapes = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, dtype),
    (columns, *arrays),
    is_leaf=lambda shape: (
      isinstance(shape, tuple) and all(isinstance(size, int) for size in shape)
    ),
  )
  lowered = jax.jit(jax.vmap(function, in_axes=axes)).lower(*shapes)
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
  arrays = {name: np.asarray(columns[name], dtype) for name in names}
  return {
    name: np.pad(values, (0, padded(len(values)) - len(values)), mode='edge')
    for name, values in arrays.items()
  }


@functools.partial(jax.jit, static_argnums=(0, 1))
def predict(
  log_loss: Callable[..., Any],
  coordinates: tuple[str, ...],
  columns: dict[str, jax.Array],
  theta: jax.Array,
) -> jax.Array:
  """Log loss [n, rows], compiled."""
  return jax.vmap(_model(log_loss, coordinates, columns))(theta)


@functools.partial(jax.jit, static_argnums=(0, 1))
def evaluate(
  log_loss: Callable[..., Any],
  coordinates: tuple[str, ...],
  columns: dict[str, jax.Array],
  theta: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Log loss [n, rows] and its Jacobian [n, rows, parameters], compiled."""
  model = _model(log_loss, coordinates, columns)
  return jax.vmap(model)(theta), jax.vmap(jax.jacfwd(model))(theta)


def _model(
  log_loss: Callable[..., Any],
  coordinates: tuple[str, ...],
  columns: Mapping[str, jax.Array],
) -> Callable[[jax.Array], jax.Array]:
  def model(theta: jax.Array) -> jax.Array:
    p = {name: theta[i] for i, name in enumerate(coordinates)}
    rows = next(iter(columns.values())).shape
    return jnp.broadcast_to(log_loss(p, columns), rows)

  return model


def _round(
  log_loss: Callable[..., Any],
  coordinates: tuple[str, ...],
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
  """A few iterations of one lane; all arguments but the first two traced."""
  model = _model(log_loss, coordinates, columns)
  delta, tolerance, least, asymmetry = settings
  identity = jnp.eye(len(coordinates), dtype=theta.dtype)
  both_free = free[:, None] * free

  def objective(residual: jax.Array, threshold: jax.Array) -> jax.Array:
    return _objective(residual, weight, threshold, asymmetry)

  def iterate(_: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    theta, damping, _, threshold, done = state
    prediction, push = jax.linearize(model, theta)
    jacobian = jax.vmap(push)(identity) * free[:, None]
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
    diagonal = jnp.diagonal(gauss)
    scale = jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))

    def step_of(matrix: jax.Array) -> jax.Array:
      scaled = matrix / scale[:, None] / scale + damping * identity
      return _cholesky_solve(scaled, gradient / scale) / scale

    # A matrix that is not positive definite gives NaN.
    first, second = jax.vmap(step_of)(jnp.stack([newton, gauss]))
    step = jnp.where(jnp.isfinite(first).all(), first, second)
    # Each coordinate by itself: a dead term asks for an endless step, and
    # scaling the whole step down to it would stop all the others.
    best = theta - jnp.clip(step, -_CAP, _CAP)
    down = objective(model(best) - target, threshold) < value
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
  log_loss: Callable[..., Any],
  coordinates: tuple[str, ...],
  columns: dict[str, jax.Array],
  target: jax.Array,
  weight: jax.Array,
  theta: jax.Array,
  damping: jax.Array,
  free: jax.Array,
  settings: jax.Array,
) -> tuple[jax.Array, ...]:
  """ROUGH_ROUND Gauss-Newton iterations of one lane."""
  model = _model(log_loss, coordinates, columns)
  delta, asymmetry = settings
  identity = jnp.eye(len(coordinates), dtype=theta.dtype)

  def objective(residual: jax.Array) -> jax.Array:
    return _objective(residual, weight, delta, asymmetry)

  def iterate(_: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    theta, damping, value = state
    prediction, push = jax.linearize(model, theta)
    jacobian = jax.vmap(push)(identity) * free[:, None]
    residual = prediction - target
    size = jnp.abs(residual)
    pull = weight * jnp.where(residual > 0, asymmetry, 1.0)
    pull *= jnp.where(size <= delta, 1.0, delta / size)
    gauss = _gram(jacobian, pull)
    diagonal = jnp.diagonal(gauss)
    scale = jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))
    scaled = gauss / scale[:, None] / scale + damping * identity
    step = _cholesky_solve(scaled, jacobian @ (pull * residual) / scale) / scale
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
