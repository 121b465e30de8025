"""A surrogate of small networks that give the coefficients of a curve.

From a candidate's features and a summary of its curve so far, each network
gives the coefficients of one family of curves (Kadra et al. 2023, "deep power
laws"), so that curves alike share what they have learned. On synthetic power
laws, the power law and MMF extrapolate over a decade; an exponential in compute
levels off at once, so it ranks little better than the last loss, and its
interval does not know that.
"""

from collections.abc import Callable
import functools
import itertools
import math
from typing import Any
from typing import NamedTuple

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np
from scipy import stats

from familial.allocation import halving
from familial.allocation import surrogate
from familial.laws import levenberg_marquardt

MEMBERS = 5
ITERATIONS = 1000
_HIDDEN = 16
_RATE = 0.02  # Adam's first, which falls to 0 along a cosine
_FAST, _SLOW = 0.9, 0.99  # Adam's averages
_LAST = 0.3  # of the usual scale: curves start alike within a network
_DELTA = 0.005  # Huber's threshold on the log residual: about a run's noise
_LATE = 4  # the weight of a point grows with this power of its place
_TAIL = 2  # last points that the prediction is moved through
_REACH = 1.0  # residuals that an extrapolation by the observed width adds
_EVEN = 1e-3  # spread of a summary below which curves count as equal
_ONE = np.log(np.e - 1)  # softplus of this is 1
_QUANTILE = stats.t.ppf((1 + surrogate.LEVEL) / 2, MEMBERS - 1)


class Family(NamedTuple):
  """Curves a + b exp(-fall(shape, u)) of u = ln(C / C_last), with fall 0 at 0.

  Losses are in units of the curve's last one. `start` holds what a, b and the
  shape coefficients, all positive, are before training.
  """

  start: tuple[float, ...]
  fall: Callable[[Any, Any], Any]


def _mmf(shape: Any, u: Any) -> Any:
  k, d = shape  # k is the 1 / k of the usual form: 0 for a power law
  return jnp.logaddexp(jnp.log(k), d * u) - jnp.log1p(k)


FAMILIES = {
  'power_law': Family((0.7, 0.3, 0.3), lambda shape, u: shape[0] * u),
  # In C: in ln C it would be the power law again.
  'exponential': Family(
    (0.9, 0.1, 1.0), lambda shape, u: shape[0] * jnp.expm1(u)
  ),
  'mmf': Family((0.7, 0.3, 0.3, 0.4), _mmf),
}


def predictor(family: str) -> surrogate.Surrogate:
  """The surrogate of one of FAMILIES; it needs three points or more a curve."""

  def predict(
    observed: surrogate.Observed, keys: jax.Array
  ) -> halving.Prediction:
    count = len(observed.active_SxM)
    # As many parts as there are cores, of one size: one program for all.
    parts = min(levenberg_marquardt.threads(), count)
    size = math.ceil(count / parts)

    def part(number: int) -> list[np.ndarray]:
      chosen = np.minimum(np.arange(size) + number * size, count - 1)
      mine = surrogate.Observed(*(np.asarray(x)[chosen] for x in observed))
      with jax.enable_x64(True):
        return list(map(np.asarray, _program(family, mine, keys[chosen])))

    found = levenberg_marquardt.side_by_side(
      [functools.partial(part, number) for number in range(parts)]
    )
    return halving.Prediction(
      *(np.concatenate(x)[:count] for x in zip(*found, strict=True))
    )

  return predict


@functools.partial(jax.jit, static_argnums=0)
def _program(
  family: str, observed: surrogate.Observed, keys: jax.Array
) -> tuple[jax.Array, ...]:
  """All allocations, one after another: a network's numbers stay in cache."""
  one = functools.partial(_allocation, FAMILIES[family])
  return jax.lax.map(lambda given: one(*given), (observed, keys))


def _allocation(
  family: Family, observed: surrogate.Observed, key: jax.Array
) -> tuple[jax.Array, ...]:
  """Mean, lo and hi of one allocation, each [M]."""
  log_c_T, loss_MxT, active_M, features_MxF, log_end_M = map(
    jnp.asarray, observed
  )
  u_T = log_c_T - log_c_T[-1]
  end_M = jnp.where(active_M, log_end_M - log_c_T[-1], 0.0)
  log_loss_MxT = jnp.log(jnp.where(active_M[:, None], loss_MxT, 1.0))
  level_M = log_loss_MxT[:, -1]
  target_MxT = log_loss_MxT - level_M[:, None]
  inputs_MxI = jnp.concatenate(
    [
      jnp.where(active_M[:, None], features_MxF, 0.0),
      _summary(u_T, log_loss_MxT, active_M),
    ],
    axis=1,
  )
  # Late points say most of what follows; the first ones may be of a warm-up.
  weight_T = jnp.arange(1.0, len(u_T) + 1) ** _LATE
  weight_T /= weight_T.sum()
  weight_MxT = active_M[:, None] * weight_T / jnp.maximum(active_M.sum(), 1)
  spread = _spread(inputs_MxI.shape[1], len(family.start))
  member = functools.partial(
    _member, family, inputs_MxI, u_T, target_MxT, weight_MxT, end_M, *spread
  )
  # One draw for all: each more would add half a second to the compilation.
  size = spread[0].size + target_MxT.size
  draw_KxR = jax.random.normal(key, (MEMBERS, size))
  ends_KxM, fits_KxMxT = jax.vmap(member)(draw_KxR)
  residual_KxMxT = target_MxT - fits_KxMxT
  ends_KxM += residual_KxMxT[:, :, -_TAIL:].mean(2)
  mean_M = level_M + ends_KxM.mean(0)
  within_M = (residual_KxMxT**2 @ weight_T).mean(0)
  widths_M = end_M / -u_T[0]
  variance_M = (1 + 1 / MEMBERS) * ends_KxM.var(0, ddof=1)
  variance_M += within_M * (1 + _REACH * widths_M) ** 2
  half_M = _QUANTILE * jnp.sqrt(variance_M)
  return jnp.exp(mean_M), jnp.exp(mean_M - half_M), jnp.exp(mean_M + half_M)


def _summary(
  u_T: jax.Array, log_loss_MxT: jax.Array, active_M: jax.Array
) -> jax.Array:
  """Each curve's level and its early and late slope, standardised: [M, 3].

  Without these, curves of equal features would get equal coefficients.
  """
  middle = len(u_T) // 2
  first_M, middle_M, last_M = (log_loss_MxT[:, i] for i in (0, middle, -1))
  summary_Mx3 = jnp.stack(
    [
      last_M,
      (middle_M - first_M) / (u_T[middle] - u_T[0]),
      (last_M - middle_M) / (u_T[-1] - u_T[middle]),
    ],
    axis=1,
  )
  share_Mx1 = active_M[:, None] / jnp.maximum(active_M.sum(), 1)
  centred_Mx3 = summary_Mx3 - (share_Mx1 * summary_Mx3).sum(0)
  spread_3 = jnp.sqrt((share_Mx1 * centred_Mx3**2).sum(0))
  return jnp.where(active_M[:, None], centred_Mx3 / (spread_3 + _EVEN), 0.0)


def _spread(
  inputs: int, outputs: int
) -> tuple[jax.Array, Callable[[jax.Array], Any]]:
  """How far a network's numbers are from 0 before training, in one row.

  Also what gives them back as layers of weights and biases.
  """
  sizes = (inputs, _HIDDEN, _HIDDEN, outputs)
  scales = (inputs**-0.5, _HIDDEN**-0.5, _LAST * _HIDDEN**-0.5)
  return ravel_pytree(
    [
      (jnp.full(pair, scale), jnp.full(pair[1], bias))
      for pair, scale, bias in zip(
        itertools.pairwise(sizes), scales, (0.0, 0.0, 1.0), strict=True
      )
    ]
  )


def _member(
  family: Family,
  inputs_MxI: jax.Array,
  u_T: jax.Array,
  target_MxT: jax.Array,
  weight_MxT: jax.Array,
  end_M: jax.Array,
  spread: jax.Array,
  unravel: Callable[[jax.Array], Any],
  draw: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """One network's log loss at the ends [M] and at the points [M, T].

  It starts from coefficients of its own and weighs the points by a Bayesian
  bootstrap of its own: with the same points, members agree far too well.
  """
  start = jnp.array(family.start[2:])[:, None, None]
  share_start = np.log(family.start[1] / family.start[0])
  theta = spread * draw[: spread.size]
  weight_MxT *= draw[spread.size :].reshape(target_MxT.shape) ** 2

  def log_curve(theta: jax.Array, u: jax.Array) -> jax.Array:
    (w0, b0), (w1, b1), (w2, b2) = unravel(theta)
    hidden = jnp.tanh(jnp.tanh(inputs_MxI @ w0 + b0) @ w1 + b1)
    z = (hidden @ w2 + b2).T[:, :, None]
    level, share = z[0], z[1] + share_start
    shape = start * jax.nn.softplus(_ONE + z[2:])
    return level + jnp.logaddexp(
      -jax.nn.softplus(share), -jax.nn.softplus(-share) - family.fall(shape, u)
    )

  def objective(theta: jax.Array) -> jax.Array:
    size = jnp.abs(log_curve(theta, u_T) - target_MxT) / _DELTA
    huber = jnp.where(size < 1, 0.5 * size**2, size - 0.5)
    return (weight_MxT * huber).sum()

  theta = _adam(objective, theta)
  return log_curve(theta, end_M[:, None])[:, 0], log_curve(theta, u_T)


def _adam(
  objective: Callable[[jax.Array], jax.Array], theta: jax.Array
) -> jax.Array:
  """Where ITERATIONS of Adam end."""

  def step(i: Any, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    theta, mean, square = state
    gradient = jax.grad(objective)(theta)
    mean = _FAST * mean + (1 - _FAST) * gradient
    square = _SLOW * square + (1 - _SLOW) * gradient**2
    rate = _RATE * 0.5 * (1 + jnp.cos(jnp.pi * i / ITERATIONS))
    rate *= jnp.sqrt(1 - _SLOW ** (i + 1.0)) / (1 - _FAST ** (i + 1.0))
    return theta - rate * mean / (jnp.sqrt(square) + 1e-8), mean, square

  zero = jnp.zeros_like(theta)
  return jax.lax.fori_loop(0, ITERATIONS, step, (theta, zero, zero))[0]
