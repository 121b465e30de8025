"""Many small robust fits at once: damped Gauss-Newton under vmap, in float64.

Every fit (a start, a bootstrap resample, a point of a profile, a simulation) is
one *lane* of one compiled program, which serves them all: it takes per-lane
weights and targets, and a mask of the parameters that may move. A lane that has
converged leaves and the next one takes its place, so no lane waits for the
slowest, and memory does not grow with the number of fits.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from familial.laws import forms

GRADIENT_TOLERANCE = 1e-6  # of a lane that counts as converged
_ROUND = 8  # iterations between two looks at which lanes are done
_CAP = 1.0  # largest change of a coordinate in one step: e-fold, or 1
_NEAR_ENOUGH = 0.03  # gradient at which Huber's threshold tightens
_TIGHTEN = 0.25  # by this factor, until it is delta
_STUCK = 1e12  # damping at which no descent is left within rounding
_LANE_BYTES = 2**25  # for one round's arrays


@dataclasses.dataclass(frozen=True)
class Solution:
  """Where each of n lanes ended.

  `gradient` is the largest cosine between a free coordinate's column of the
  Jacobian and the clipped residuals: 0 at an optimum, and free of units.
  """

  theta: np.ndarray  # [n, parameters]
  objective: np.ndarray  # [n], inf where the form gave no number
  gradient: np.ndarray  # [n]
  converged: np.ndarray  # [n] bool
  compile_seconds: float


def solve(
  form: forms.Form,
  columns: Mapping[str, np.ndarray],
  theta: np.ndarray,
  targets: np.ndarray,
  weights: np.ndarray,
  *,
  delta: float,
  first_delta: float = 0.0,
  target_of: np.ndarray | None = None,
  weight_of: np.ndarray | None = None,
  free: np.ndarray | None = None,
  damping: float = 1.0,
  least: float = 1e-9,
  tolerance: float = 1e-8,
  floor: float = 1e-24,
  stall: float = 0.0,
  iterations: int = 400,
  advance: Callable[[int], Any] = lambda done: None,
) -> Solution:
  """Minimises sum_i w_i Huber(log L(theta)_i - target_i; delta) in each lane.

  Each iteration takes the better of two damped steps: Gauss-Newton with Huber's
  weights min(1, delta/|r|), which descends from far, and the full Newton step,
  which ends the linear tail of reweighting.

  Args:
    form: the law.
    columns: its columns, each [rows].
    theta: coordinates to start from, [n, parameters].
    targets: log losses, [m, rows].
    weights: row weights, [k, rows].
    delta: Huber's threshold on the log residual.
    first_delta: a larger threshold to begin with, which shrinks to delta as each
      is solved: near an absolute-value loss, Newton alone crawls from kink to
      kink.
    target_of: which of the targets each lane fits, [n]; all the first if None.
    weight_of: likewise for the weights.
    free: bool [parameters]; a coordinate that is not free keeps its start.
    damping: Levenberg-Marquardt's first damping: 1 from afar, less when near.
    least: the damping is never below; from afar a vanishing one makes a lane
      reject many steps before it is large enough again.
    tolerance: a lane is done when `Solution.gradient` is below it,
    floor: or its objective below floor x the sum of its weights.
    stall: a lane also leaves after two rounds that lower its objective by less
      than this share: where a term has died, starts crawl for ever.
    iterations: at most, a lane, rounded up to whole rounds.
    advance: called with the number of lanes that have just finished.
  """
  n, p = theta.shape
  rows = targets.shape[1]
  padded = _padded(rows)
  width = _lanes(padded, p)
  pad = padded - rows
  targets = np.pad(targets, ((0, 0), (0, pad)), mode='edge')
  weights = np.pad(weights, ((0, 0), (0, pad)))
  target_of = np.zeros(n, int) if target_of is None else target_of
  weight_of = np.zeros(n, int) if weight_of is None else weight_of
  mask = np.ones(p) if free is None else np.asarray(free, np.float64)
  inputs = {
    name: np.pad(np.asarray(columns[name], np.float64), (0, pad), mode='edge')
    for name in form.columns
  }

  out_theta = np.array(theta, np.float64)
  objective = np.full(n, np.inf)
  gradient = np.full(n, np.inf)
  lane = np.full(width, -1)  # which fit each lane works on
  current = np.tile(out_theta[:1], (width, 1))
  damp = np.full(width, damping)
  threshold = np.full(width, delta)
  age = np.zeros(width, int)
  last = np.full(width, np.inf)
  slow = np.zeros(width, int)  # rounds in a row without progress
  started = 0
  with jax.enable_x64(True):
    tick = time.monotonic()
    program = _program(form.log_loss, form.coordinates, form.columns,
                       padded, width)  # fmt: skip
    compile_seconds = time.monotonic() - tick
    while started < n or (lane >= 0).any():
      empty = np.flatnonzero(lane < 0)[: n - started]
      lane[empty] = np.arange(started, started + len(empty))
      current[empty] = out_theta[lane[empty]]
      damp[empty], threshold[empty] = damping, max(first_delta, delta)
      age[empty], last[empty], slow[empty] = 0, np.inf, 0
      started += len(empty)
      which = np.maximum(lane, 0)
      w = weights[weight_of[which]]
      result = program(
        inputs, targets[target_of[which]], w, current, damp,
        mask, np.array([delta, tolerance, least]), floor * w.sum(1), threshold,
      )  # fmt: skip
      current, damp, threshold, value, slope, done = map(np.array, result)
      age += _ROUND
      crawls = (value >= last * (1 - stall)) & (threshold <= delta)
      slow = np.where(crawls, slow + 1, 0)
      last = value
      leave = done | (age >= iterations) | ((slow >= 2) & (stall > 0))
      left = np.flatnonzero((lane >= 0) & leave)
      fits = lane[left]
      out_theta[fits] = current[left]
      objective[fits] = np.where(np.isfinite(value[left]), value[left], np.inf)
      gradient[fits] = slope[left]
      lane[left] = -1
      if len(left):
        advance(len(left))
  bottom = floor * weights.sum(1)[weight_of]
  converged = (gradient <= GRADIENT_TOLERANCE) | (objective <= bottom)
  return Solution(
    out_theta,
    objective,
    gradient,
    converged & np.isfinite(objective),
    compile_seconds,
  )


def evaluate(
  form: forms.Form, columns: Mapping[str, np.ndarray], theta: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Log loss [n, rows] and its Jacobian [n, rows, parameters] at theta [n, p]."""
  with jax.enable_x64(True):
    inputs = {
      name: np.asarray(columns[name], np.float64) for name in form.columns
    }
    value, jacobian = _evaluate(
      form.log_loss, form.coordinates, inputs, np.asarray(theta, np.float64)
    )
    return np.asarray(value), np.asarray(jacobian)


def huber(residual: np.ndarray, delta: float) -> np.ndarray:
  """Huber's function of each residual: r^2/2, linear beyond delta."""
  size = np.abs(residual)
  return np.where(
    size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta)
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(
  log_loss: Callable[..., Any],
  coordinates: tuple[str, ...],
  columns: dict[str, jax.Array],
  theta: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  model = _model(log_loss, coordinates, columns)
  return jax.vmap(model)(theta), jax.vmap(jax.jacfwd(model))(theta)


def _padded(rows: int) -> int:
  """Rows of the compiled program: few sizes, so that few are compiled."""
  size = 64
  while size < rows:
    size *= 2
  return size


def _lanes(rows: int, parameters: int) -> int:
  fit = _LANE_BYTES // (8 * rows * (parameters + 4))
  most = 32 if jax.default_backend() == 'cpu' else 4096
  return int(min(most, max(1, fit)))


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


@functools.lru_cache(maxsize=64)
def _program(
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

    first, first_value = candidate(gauss)
    second, second_value = candidate(newton)
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
    0, _ROUND, iterate, start
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
