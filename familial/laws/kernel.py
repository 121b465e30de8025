"""The compiled program of the solver: a few iterations of many robust fits.

Each iteration takes the better of two damped steps: Gauss-Newton with Huber's
weights min(1, delta/|r|), which descends from far, and the full Newton step,
which ends the linear tail of reweighting. See solver.solve.

The lanes are the last axis of every array, and laws broadcast over it: sums
over rows and parameters then are vector operations over lanes, several times
as fast on a CPU as a vmap, whose sums run along rows one number at a time.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp

ROUND = 8  # iterations between two looks at which lanes are done
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

  def shape(*dimensions: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dimensions, jnp.float64)

  return (
    jax.jit(functools.partial(_round, log_loss, coordinates))
    .lower(
      {name: shape(rows) for name in column_names},
      shape(rows, lanes),
      shape(rows, lanes),
      shape(p, lanes),
      shape(lanes),
      shape(p),
      shape(3),
      shape(lanes),
      shape(lanes),
    )
    .compile()
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def evaluate(
  log_loss: Callable[..., Any],
  coordinates: tuple[str, ...],
  columns: dict[str, jax.Array],
  theta: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Log loss [rows, n] and its Jacobian [p, rows, n] at theta [p, n]."""
  model = _model(log_loss, coordinates, columns)
  return _linearize(model, theta)


def _model(
  log_loss: Callable[..., Any],
  coordinates: tuple[str, ...],
  columns: Mapping[str, jax.Array],
) -> Callable[[jax.Array], jax.Array]:
  """The law as a function of coordinates [p, n], to log losses [rows, n]."""
  columns = {name: column[:, None] for name, column in columns.items()}
  rows = len(next(iter(columns.values())))

  def model(theta: jax.Array) -> jax.Array:
    p = dict(zip(coordinates, theta, strict=True))
    return jnp.broadcast_to(log_loss(p, columns), (rows, theta.shape[1]))

  return model


def _linearize(
  function: Callable[[jax.Array], jax.Array], theta: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Value, and derivative by each coordinate on a new first axis.

  Lanes do not mix, so one tangent a coordinate serves them all.
  """
  p = len(theta)
  value, push = jax.linearize(function, theta)
  tangents = jnp.broadcast_to(
    jnp.eye(p, dtype=theta.dtype)[:, :, None], (p, *theta.shape)
  )
  return value, jax.vmap(push)(tangents)


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
  """A few iterations of all lanes; all arguments but the first two traced."""
  model = _model(log_loss, coordinates, columns)
  delta, tolerance, least = settings
  identity = jnp.eye(len(coordinates), dtype=theta.dtype)[:, :, None]
  free = free[:, None]

  def objective(residual: jax.Array, threshold: jax.Array) -> jax.Array:
    size = jnp.abs(residual)
    tail = threshold * (size - 0.5 * threshold)
    rho = jnp.where(size <= threshold, 0.5 * size**2, tail)
    return jnp.sum(weight * rho, axis=-2)

  def iterate(_: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    theta, damping, _, threshold, done = state
    prediction, jacobian = _linearize(model, theta)
    jacobian *= free[:, None]
    residual = prediction - target
    value = objective(residual, threshold)
    slope = _slope(
      jacobian, residual, weight, threshold, 0.01 * tolerance * value
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
    pull = weight * clipped
    gradient = jnp.sum(jacobian * pull, axis=1)
    huber_weight = jnp.where(inside, 1.0, threshold / jnp.abs(residual))
    gauss = _gram(jacobian, weight * huber_weight)
    _, curvature = _linearize(lambda t: jax.vjp(model, t)[1](pull)[0], theta)
    newton = _gram(jacobian, weight * inside) + curvature * free[:, None] * free
    diagonal = jnp.stack([gauss[i, i] for i in range(len(theta))])
    scale = jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))

    def candidate(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
      scaled = matrix / (scale[:, None] * scale) + damping * identity
      step = _cholesky_solve(scaled, gradient / scale) / scale
      # Each coordinate by itself: a dead term asks for an endless step, and
      # scaling the whole step down to it would stop all the others.
      step = jnp.clip(step, -_CAP, _CAP)
      new = theta - step
      return new, objective(model(new) - target, threshold)

    (first, second), (first_value, second_value) = jax.vmap(candidate)(
      jnp.stack([gauss, newton])
    )
    # A matrix that is not positive definite gives NaN, which loses here.
    newton_wins = second_value < first_value
    gauss_failed = ~jnp.isfinite(first_value) & jnp.isfinite(second_value)
    take = newton_wins | gauss_failed
    best = jnp.where(take, second, first)
    best_value = jnp.where(take, second_value, first_value)
    down = best_value < value
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


def _gram(jacobian: jax.Array, weight: jax.Array) -> jax.Array:
  """J W J', [p, p, lanes]."""
  return jnp.sum((jacobian * weight)[:, None] * jacobian, axis=2)


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
  columns = jnp.sum(jacobian**2 * weight, axis=1)
  length = jnp.sqrt(columns * jnp.sum(weight * clipped**2, axis=0))
  size = jnp.abs(jnp.sum(jacobian * (weight * clipped), axis=1))
  cosine = size / jnp.where(length > 0, length, 1.0)
  return jnp.max(jnp.where(size > negligible, cosine, 0.0), axis=0)


def _cholesky_solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
  """Solves small positive definite systems [p, p, lanes]; NaN where not.

  Written out over the few parameters, each step one vector operation over all
  lanes: LAPACK would be called once a lane.
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
