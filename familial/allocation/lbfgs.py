"""L-BFGS over many lanes at once, each iteration one evaluation of each lane.

A line search of its own in every lane would make all wait for the longest. Here
a lane either takes the step that was tried or shrinks it, so that an iteration
costs exactly one call, and lanes do not know of one another.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_PAIRS = 10  # of steps and changes of the gradient, remembered
_DECREASE = 1e-4  # least share of the promised decrease that is accepted
_CURVATURE = 1e-8  # least cosine of step and change of gradient in a pair
_FIRST = 0.1  # length of the first step, along the gradient
_SHRINK = 0.1, 0.5  # of a step, at most and at least
_LEAST = 1e-10  # share of a step below which a lane gives up

# From points [n, p] to values [n] and gradients [n, p].
Objective = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Minimum(NamedTuple):
  """Where each of n lanes ended: x [n, p], value [n], evaluations [n]."""

  x: jax.Array
  value: jax.Array
  evaluations: jax.Array


class _State(NamedTuple):
  x: jax.Array  # [n, p]
  value: jax.Array  # [n]
  gradient: jax.Array  # [n, p]
  direction: jax.Array  # [n, p]
  size: jax.Array  # [n], share of the direction to try next
  steps: jax.Array  # [n, pairs, p], newest first
  changes: jax.Array  # [n, pairs, p]
  inverse: jax.Array  # [n, pairs], 1 / steps . changes; 0 where there is none
  slow: jax.Array  # [n], steps in a row that gained little
  done: jax.Array  # [n]
  evaluations: jax.Array  # [n]


def minimise(
  objective: Objective,
  x: jax.Array,
  *,
  gradient_tolerance: float,
  gain: float,
  patience: int,
  evaluations: int,
) -> Minimum:
  """Descends from x [n, p]; traced, and as precise as x.

  A value or gradient that is no finite number is a step too long. A lane whose
  start has none stays there, its value inf.

  Args:
    objective: to minimise; each lane's numbers depend on that lane alone.
    x: the starts.
    gradient_tolerance: a lane is done when no derivative is larger,
    gain: or when it gains less than this
    patience: this many steps in a row.
    evaluations: at most, a lane.
  """
  n, p = x.shape
  value, gradient, finite = _finite(*objective(x))
  start = _State(
    x=x,
    value=value,
    gradient=gradient,
    direction=_first(gradient),
    size=jnp.ones_like(value),
    steps=jnp.zeros((n, _PAIRS, p), x.dtype),
    changes=jnp.zeros((n, _PAIRS, p), x.dtype),
    inverse=jnp.zeros((n, _PAIRS), x.dtype),
    slow=jnp.zeros(n, int),
    done=~finite | (jnp.abs(gradient).max(1) <= gradient_tolerance),
    evaluations=jnp.ones(n, int),
  )

  def iterate(state: _State) -> _State:
    trial = state.x + state.size[:, None] * state.direction
    value, gradient, finite = _finite(*objective(trial))
    slope = jnp.sum(state.gradient * state.direction, 1)
    promise = _DECREASE * state.size * slope
    take = finite & (value <= state.value + promise) & ~state.done
    stepped = _stepped(state, trial, value, gradient, gain)
    shrunk = _shrunk(state, value, finite, slope)

    def choose(ours: jax.Array, theirs: jax.Array) -> jax.Array:
      return jnp.where(take.reshape(-1, *[1] * (ours.ndim - 1)), ours, theirs)

    new = jax.tree.map(choose, stepped, shrunk)
    flat = jnp.abs(new.gradient).max(1) <= gradient_tolerance
    stop = flat | (new.slow >= patience) | (new.size < _LEAST)
    return new._replace(
      done=state.done | stop,
      evaluations=state.evaluations + ~state.done,
    )

  def unfinished(carry: tuple[jax.Array, _State]) -> jax.Array:
    count, state = carry
    return (count < evaluations) & ~state.done.all()

  _, state = jax.lax.while_loop(
    unfinished,
    lambda carry: (carry[0] + 1, iterate(carry[1])),
    (jnp.ones((), int), start),
  )
  return Minimum(state.x, state.value, state.evaluations)


def _finite(
  value: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Value and gradient, inf and 0 where they are not finite, and where not."""
  finite = jnp.isfinite(value) & jnp.isfinite(gradient).all(1)
  return (
    jnp.where(finite, value, jnp.inf),
    jnp.where(finite[:, None], gradient, 0.0),
    finite,
  )


def _first(gradient: jax.Array) -> jax.Array:
  """A short step down the gradient, for nothing is known of the scales."""
  length = jnp.linalg.norm(gradient, axis=1, keepdims=True)
  return -gradient * jnp.minimum(1.0, _FIRST / jnp.maximum(length, 1e-300))


def _stepped(
  state: _State,
  x: jax.Array,
  value: jax.Array,
  gradient: jax.Array,
  gain: float,
) -> _State:
  """The state at the point that was tried, with the next direction."""
  step, change = x - state.x, gradient - state.gradient
  product = jnp.sum(step * change, 1)
  lengths = jnp.linalg.norm(step, axis=1) * jnp.linalg.norm(change, axis=1)
  curved = product > _CURVATURE * lengths

  def push(old: jax.Array, new: jax.Array) -> jax.Array:
    keep = curved.reshape(-1, *[1] * (old.ndim - 1))
    return jnp.where(keep, jnp.concatenate([new[:, None], old[:, :-1]], 1), old)

  steps, changes = push(state.steps, step), push(state.changes, change)
  inverse = push(state.inverse, 1 / jnp.where(curved, product, 1.0))
  direction = _direction(gradient, steps, changes, inverse)
  # Without pairs, or where rounding leaves no descent.
  down = jnp.sum(direction * gradient, 1) < 0
  known = (inverse[:, 0] > 0) & down
  direction = jnp.where(known[:, None], direction, _first(gradient))
  little = state.value - value < gain
  return state._replace(
    x=x,
    value=value,
    gradient=gradient,
    direction=direction,
    size=jnp.ones_like(value),
    steps=steps,
    changes=changes,
    inverse=inverse,
    slow=jnp.where(little, state.slow + 1, 0),
  )


def _shrunk(
  state: _State, value: jax.Array, finite: jax.Array, slope: jax.Array
) -> _State:
  """The state before a shorter step: to the minimum of a parabola, within."""
  size = state.size
  rise = jnp.where(finite, value - state.value - size * slope, 1.0)
  best = -0.5 * slope * size**2 / jnp.where(rise > 0, rise, 1.0)
  best = jnp.where(finite & (rise > 0), best, 0.0)
  return state._replace(
    size=jnp.clip(best, _SHRINK[0] * size, _SHRINK[1] * size)
  )


def _direction(
  gradient: jax.Array,
  steps: jax.Array,
  changes: jax.Array,
  inverse: jax.Array,
) -> jax.Array:
  """Minus the inverse Hessian that the pairs tell, times the gradient."""

  Pair = tuple[jax.Array, ...]  # step, change and inverse
  pairs = tuple(jnp.moveaxis(one, 1, 0) for one in (steps, changes, inverse))

  def dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.sum(a * b, 1)

  def down(vector: jax.Array, pair: Pair) -> tuple[jax.Array, jax.Array]:
    step, change, inverse = pair
    share = inverse * dot(step, vector)
    return vector - share[:, None] * change, share

  def up(
    vector: jax.Array, both: tuple[Pair, jax.Array]
  ) -> tuple[jax.Array, None]:
    (step, change, inverse), share = both
    rest = share - inverse * dot(change, vector)
    return vector + rest[:, None] * step, None

  vector, shares = jax.lax.scan(down, gradient, pairs)
  square = dot(changes[:, 0], changes[:, 0]) * inverse[:, 0]
  vector /= jnp.where(square > 0, square, 1.0)[:, None]
  vector, _ = jax.lax.scan(up, vector, (pairs, shares), reverse=True)
  return -vector
