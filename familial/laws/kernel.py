"""The compiled program of the solver: a few iterations of many robust fits.

Each iteration takes the better of two damped steps: Gauss-Newton with Huber's
weights min(1, delta/|r|), which descends from far, and the full Newton step,
which ends the linear tail of reweighting. See solver.solve.
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

  round_ = functools.partial(_round, log_loss, coordinates)
  lane_axes = (None, 0, 0, 0, 0, None, None, 0, 0)
  return (
    jax.jit(jax.vmap(round_, in_axes=lane_axes))
    .lower(
      {name: shape(rows) for name in column_names},
      shape(lanes, rows),
      shape(lanes, rows),
      shape(lanes, p),
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
  delta, tolerance, least = settings
  identity = jnp.eye(len(coordinates), dtype=theta.dtype)
  both_free = free[:, None] * free

  def objective(residual: jax.Array, threshold: jax.Array) -> jax.Array:
    size = jnp.abs(residual)
    tail = threshold * (size - 0.5 * threshold)
    return weight @ jnp.where(size <= threshold, 0.5 * size**2, tail)

  def iterate(_: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    theta, damping, _, threshold, done = state
    prediction, push = jax.linearize(model, theta)
    jacobian = jax.vmap(push)(identity) * free[:, None]
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
    gradient = jacobian @ pull
    huber_weight = jnp.where(inside, 1.0, threshold / jnp.abs(residual))
    gauss = _gram(jacobian, weight * huber_weight)
    curvature = jax.jacfwd(lambda t: jax.vjp(model, t)[1](pull)[0])(theta)
    newton = _gram(jacobian, weight * inside) + curvature * both_free
    diagonal = jnp.diagonal(gauss)
    scale = jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0))

    def candidate(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
      scaled = matrix / scale[:, None] / scale + damping * identity
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
