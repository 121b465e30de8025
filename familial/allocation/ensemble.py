"""A surrogate of small networks that predict the coefficients of a curve family.

Each network maps a candidate's features and a summary of its curve so far to the
coefficients of one family of curves (Kadra et al. 2023, "deep power laws"), so that
similar curves share parameters. On synthetic power laws, the power law and MMF
extrapolate over a decade; an exponential in compute saturates at once, ranks little
better than the last loss, and its interval is too narrow.

Dimensions: S allocations, M curves, T points, K members, I inputs.
"""

from collections.abc import Callable
import functools
import itertools
from typing import Any
from typing import NamedTuple

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from familial.allocation import halving
from familial.allocation import surrogate
from familial.core import cores

MEMBERS = 5
ITERATIONS = 1000
_HIDDEN = 16
_RATE = 0.02  # Adam's initial learning rate, decayed to 0 along a cosine
_B2 = 0.99  # Adam's decay of the squared gradient
_LAST = 0.3  # relative scale of the last layer: curves start alike in a network
_DELTA = 0.005  # Huber's threshold on the log residual: about a run's noise
_LATE = 4  # a point's weight grows with this power of its number
_TAIL = 2  # last points, whose mean residual is added to the prediction
_REACH = 1.0  # residuals added to the interval per observed width of ln C
_EVEN = 1e-3  # added to the spread of a summary before dividing by it
_ONE = np.log(np.e - 1)  # softplus of this is 1
_QUANTILE = stats.t.ppf((1 + surrogate.LEVEL) / 2, MEMBERS - 1)


class Family(NamedTuple):
  """Curves a + b exp(-fall(shape, u)) of u = ln(C / C_last), fall(shape, 0) = 0.

  Attributes:
    start: a, b and the shape coefficients before training, all positive, in
      units of the curve's last loss.
    fall: of the shape coefficients and u.
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
  """Returns the surrogate of one of FAMILIES; curves need three points."""

  def predict(
    observed: surrogate.Observed, keys: jax.Array
  ) -> halving.Prediction:
    def one(s: int) -> list[np.ndarray]:
      with jax.enable_x64(True):  # It holds for one thread.
        own = surrogate.Observed(*(np.asarray(x[s]) for x in observed))
        return list(map(np.asarray, _allocation(family, own, keys[s])))

    first = one(0)  # It compiles the program for the others.
    others = cores.in_threads(one, range(1, len(keys)))
    return halving.Prediction(*map(np.stack, zip(first, *others, strict=True)))

  return predict


@functools.partial(jax.jit, static_argnums=0)
def _allocation(
  name: str, observed: surrogate.Observed, key: jax.Array
) -> tuple[jax.Array, ...]:
  """Mean, lo and hi of one allocation, each [M]."""
  family = FAMILIES[name]
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
  # Late points predict best; the first ones may be of a warm-up.
  weight_T = jnp.arange(1.0, len(u_T) + 1) ** _LATE
  weight_T /= weight_T.sum()
  weight_MxT = active_M[:, None] * weight_T / jnp.maximum(active_M.sum(), 1)
  spread = _spread(inputs_MxI.shape[1], len(family.start))
  member = functools.partial(
    _member, family, inputs_MxI, u_T, target_MxT, weight_MxT, end_M, *spread
  )
  # A single draw: each further one adds half a second to the compilation.
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

  They distinguish curves of equal features.
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
  """Deviations of a network's parameters before training, as one vector.

  Also the function that splits such a vector into layers' weights and biases.
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

  Members differ by their initial parameters and by a Bayesian bootstrap of the
  points; with equal weights they agree too closely.
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

  theta = minimise(objective, theta)
  return log_curve(theta, end_M[:, None])[:, 0], log_curve(theta, u_T)


def minimise(
  objective: Callable[[jax.Array], jax.Array], theta: jax.Array
) -> jax.Array:
  """Returns the parameters after ITERATIONS of Adam."""
  schedule = optax.cosine_decay_schedule(_RATE, ITERATIONS)
  optimizer = optax.adam(schedule, b2=_B2)

  def step(_: Any, carry: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
    theta, state = carry
    updates, state = optimizer.update(jax.grad(objective)(theta), state)
    return theta + updates, state

  start = theta, optimizer.init(theta)
  return jax.lax.fori_loop(0, ITERATIONS, step, start)[0]
