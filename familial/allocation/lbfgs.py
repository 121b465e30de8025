"""L-BFGS on many starts at once, one evaluation of each per iteration.

The directions are those of `optax.scale_by_lbfgs` (Nocedal and Wright 2006,
algorithm 7.4). With a line search under vmap every start waits for the longest search
of an iteration. Here a start either accepts the step that was tried, by the Armijo
condition, or shortens it by quadratic interpolation (ibid., equations 3.4 and 3.57),
so that an iteration is one evaluation. On the likelihoods of `lmc` optax.lbfgs took
2 to 13 times as long and optimistix.LBFGS 0.8 to 1.4 times, with best values equal to
2e-3 (benchmarks/optimisers_test.py).
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

_PAIRS = 10  # memory size
_DECREASE = 1e-4  # least share of the linear decrease that is accepted
_CURVATURE = 1e-8  # least cosine of a step and its change of gradient
_FIRST = 0.1  # greatest length of a step along the gradient
_SHRINK = 0.1, 0.5  # least and greatest factor by which a step is shortened
_LEAST = 1e-10  # share of a step below which a start gives up

# From points [n, p] to values [n] and gradients [n, p].
Objective = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class Minimum(NamedTuple):
  """Where each of n starts ended: x [n, p], value [n], evaluations [n]."""

  x: jax.Array
  value: jax.Array
  evaluations: jax.Array


class _State(NamedTuple):
  x: jax.Array  # [n, p]
  value: jax.Array  # [n]
  gradient: jax.Array  # [n, p]
  direction: jax.Array  # [n, p]
  size: jax.Array  # [n], share of the direction to try next
  memory: Any  # of optax
  slow: jax.Array  # [n], steps in a row of little decrease
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
  """Returns local minima from starts x [n, p]; traceable, in x's precision.

  A step to a value or gradient that is not finite is shortened. A start that has
  none stays there with value inf.

  Args:
    objective: to minimise; rows must be independent.
    x: the starts.
    gradient_tolerance: a start is done when no derivative is larger,
    gain: or when the decrease is smaller than this
    patience: in this many steps in a row.
    evaluations: maximum per start.
  """
  n, _ = x.shape
  memory = optax.scale_by_lbfgs(_PAIRS)
  precondition = jax.vmap(memory.update)
  value, gradient, finite = _finite(*objective(x))
  start = _State(
    x=x,
    value=value,
    gradient=gradient,
    direction=_descent(gradient),
    size=jnp.ones_like(value),
    memory=precondition(gradient, jax.vmap(memory.init)(x), x)[1],
    slow=jnp.zeros(n, int),
    done=~finite | (jnp.abs(gradient).max(1) <= gradient_tolerance),
    evaluations=jnp.ones(n, int),
  )

  def iterate(state: _State) -> _State:
    x = state.x + state.size[:, None] * state.direction
    value, gradient, finite = _finite(*objective(x))
    slope = jnp.sum(state.gradient * state.direction, 1)
    bound = state.value + _DECREASE * state.size * slope
    accepted = finite & (value <= bound) & ~state.done
    scaled, memory = precondition(gradient, state.memory, x)
    curved = _cosine(x - state.x, gradient - state.gradient) > _CURVATURE
    stepped = state._replace(
      x=x,
      value=value,
      gradient=gradient,
      direction=_choose(curved, -scaled, _descent(gradient)),
      size=jnp.ones_like(value),
      memory=_choose(curved, memory, state.memory),
      slow=jnp.where(state.value - value < gain, state.slow + 1, 0),
    )
    shortened = state._replace(
      size=_shortened(state.size, value - state.value, finite, slope)
    )
    new = _choose(accepted, stepped, shortened)
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


def _choose(condition: jax.Array, yes: Any, no: Any) -> Any:
  """Rows of `yes` where the condition [n] holds, else of `no`."""

  def choose(yes: jax.Array, no: jax.Array) -> jax.Array:
    return jnp.where(condition.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)

  return jax.tree.map(choose, yes, no)


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


def _descent(gradient: jax.Array) -> jax.Array:
  """A short step down the gradient, while the scales are unknown."""
  length = jnp.linalg.norm(gradient, axis=1, keepdims=True)
  return -gradient * jnp.minimum(1.0, _FIRST / jnp.maximum(length, 1e-300))


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
  lengths = jnp.linalg.norm(a, axis=1) * jnp.linalg.norm(b, axis=1)
  return jnp.sum(a * b, 1) / jnp.maximum(lengths, 1e-300)


def _shortened(
  size: jax.Array, change: jax.Array, finite: jax.Array, slope: jax.Array
) -> jax.Array:
  """The minimum of the parabola through a rejected step, within _SHRINK."""
  rise = jnp.where(finite, change - size * slope, 1.0)
  best = -0.5 * slope * size**2 / jnp.where(rise > 0, rise, 1.0)
  best = jnp.where(finite & (rise > 0), best, 0.0)
  return jnp.clip(best, _SHRINK[0] * size, _SHRINK[1] * size)
