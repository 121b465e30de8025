"""A Gaussian process over all the curves: how each goes on, told by the others."""

from collections.abc import Callable
import concurrent.futures
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from familial.allocation import coregionalisation
from familial.allocation import halving
from familial.allocation import lbfgs
from familial.allocation import surrogate
from familial.laws import levenberg_marquardt

RESTARTS = 20
_LANES = 10  # restarts that descend together
_NOISE = 1e-6  # least variance of the white noise, of standardised curves
_LEAST_SD = 1e-6  # nats, for curves that do not move
_EVALUATIONS = 1500  # of a restart, at most
_GRADIENT = 1e-3  # largest derivative of a restart that has converged
_GAIN, _PATIENCE = 1e-4, 5  # nats; after so many smaller ones it has as well

# The parameters are w [3, M], ln kappa [3, M], ln alpha and ln beta, with weak
# normal priors for curves of unit variance over a unit of time. A point is their
# deviations from the priors' means in the priors' units: so measured, a descent
# takes a third of the steps. Of the kernels in order: decay, white noise, bias.
_W_SD = np.array([1.0, 0.1, 1.0])
_KAPPA_MEAN, _KAPPA_SD = np.log([1.0, 1e-4, 1.0]), np.array([1.0, 1.0, 1.0])
_RATE_SD = np.array([1.0, 1.0])
_WHITE = np.eye(3)[:, coregionalisation.WHITE, None]


def predict(
  observed: surrogate.Observed, keys: jax.Array
) -> halving.Prediction:
  """The linear model of coregionalisation, fitted to each allocation by itself.

  The interval is of a loss that would be seen, white noise included. Losses are
  taken as they are: a power law of compute with an irreducible term is then an
  exponential that tends to a level, which decay and bias can be; in log loss the
  level bends it, and the intervals are far too narrow.
  """
  mean, lo, hi = np.empty((3, *np.shape(observed.active_SxM)))
  for s, best in enumerate(fit(observed, keys)):
    curves = standardised(observed, s)
    with jax.enable_x64(True):
      middle, sd = map(
        np.asarray,
        _extrapolate(
          best.x_P, curves.y_TxM, observed.active_SxM[s], curves.end_M
        ),
      )
    half = sd * stats.norm.ppf(0.5 + surrogate.LEVEL / 2)
    mean[s], lo[s], hi[s] = (
      curves.mean + curves.sd * where
      for where in (middle, middle - half, middle + half)
    )
  return halving.Prediction(mean, lo, hi)


class Fit(NamedTuple):
  """The best of the restarts: its point, and minus its log posterior."""

  x_P: np.ndarray
  value: float


def fit(observed: surrogate.Observed, keys: jax.Array) -> list[Fit]:
  """The model of each allocation.

  Restarts descend by tens, as many such programs at once as there are cores, so
  that an allocation's is the same program whatever the number of allocations.
  """

  _, curves, points = observed.loss_SxMxT.shape
  with jax.enable_x64(True):
    program = _descent(points, curves)

  def descend(s: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    active_M = np.asarray(observed.active_SxM[s], bool)
    with jax.enable_x64(True):  # of this thread
      x_LxP = starts(keys[s], curves)[first : first + _LANES]
      found = program(x_LxP, standardised(observed, s).y_TxM, active_M)
      return np.asarray(found.x), np.asarray(found.value)

  with concurrent.futures.ThreadPoolExecutor(
    levenberg_marquardt.threads()
  ) as pool:
    jobs = [
      [pool.submit(descend, s, i) for i in range(0, RESTARTS, _LANES)]
      for s in range(len(keys))
    ]
  fits = []
  for job in jobs:
    ends, values = zip(*(part.result() for part in job), strict=True)
    value = np.concatenate(values)
    best = value.argmin()
    fits.append(Fit(np.concatenate(ends)[best], float(value[best])))
  return fits


class Curves(NamedTuple):
  """Curves of one allocation as the model sees them.

  Attributes:
    y_TxM: losses, of mean 0 and deviation 1 together; 0 where not active.
    end_M: the time asked, of points from 0 to 1.
    mean: of the losses in nats,
    sd: likewise.
  """

  y_TxM: np.ndarray
  end_M: np.ndarray
  mean: float
  sd: float


def standardised(observed: surrogate.Observed, s: int) -> Curves:
  """The curves of allocation s."""
  active_M = np.asarray(observed.active_SxM[s], bool)
  loss_TxM = np.asarray(observed.loss_SxMxT[s], np.float64).T
  seen = loss_TxM[:, active_M] if active_M.any() else np.zeros(1)
  mean, sd = seen.mean(), max(seen.std(), _LEAST_SD)
  y_TxM = np.where(active_M, (loss_TxM - mean) / sd, 0.0)
  log_c = observed.log_c_SxT[s]
  end_M = (observed.log_end_SxM[s] - log_c[0]) / (log_c[-1] - log_c[0])
  return Curves(y_TxM, np.where(active_M, end_M, 1.0), mean, sd)


def starts(key: jax.Array, curves: int) -> jax.Array:
  """Where the restarts begin, [RESTARTS, P]: drawn from the prior."""
  return jax.random.normal(key, (RESTARTS, 6 * curves + 2), np.float64)


def objective(
  x_P: jax.Array, y_TxM: jax.Array, active_M: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Minus the log posterior, less a constant, and its gradient [P]."""
  made, pull = jax.vjp(lambda x: covariance(x, len(y_TxM), active_M), x_P)
  value, by_made = coregionalisation.likelihood(made, y_TxM)
  return value + 0.5 * jnp.sum(x_P**2), pull(by_made)[0] + x_P


def covariance(
  x_P: jax.Array, points: int, active_M: jax.Array
) -> coregionalisation.Covariance:
  """Of curves at times from 0 to 1; one that is not active is noise of its own."""
  w, log_kappa = x_P[:-2].reshape(2, 3, -1)
  w = _W_SD[:, None] * w
  log_kappa = _KAPPA_MEAN[:, None] + _KAPPA_SD[:, None] * log_kappa
  time_T = jnp.linspace(0.0, 1.0, points)
  floor, idle = _NOISE * _WHITE, 1.0 * _WHITE
  return coregionalisation.Covariance(
    jnp.where(active_M, w, 0.0),
    jnp.where(active_M, jnp.exp(log_kappa) + floor, idle),
    _decay(x_P, time_T[:, None] + time_T),
  )


def _decay(x_P: jax.Array, both: jax.Array) -> jax.Array:
  """The freeze-thaw kernel (1 + (s + t) / beta)^-alpha, at s + t.

  It mixes exponentials in time, their rates gamma distributed: power laws of
  compute, for time is its logarithm.
  """
  alpha, beta = jnp.exp(_RATE_SD * x_P[-2:])
  return jnp.exp(-alpha * jnp.log1p(both / beta))


@functools.lru_cache(maxsize=64)
def _descent(points: int, curves: int) -> Callable[..., lbfgs.Minimum]:
  """The compiled descent of _LANES starts."""

  def shape(*dimensions: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dimensions, np.float64)

  return (
    jax.jit(_descend)
    .lower(
      shape(_LANES, 6 * curves + 2),
      shape(points, curves),
      jax.ShapeDtypeStruct((curves,), np.bool_),
    )
    .compile()
  )


def _descend(
  x_LxP: jax.Array, y_TxM: jax.Array, active_M: jax.Array
) -> lbfgs.Minimum:
  """Where each of the starts ends."""
  each = jax.vmap(objective, in_axes=(0, None, None))
  return lbfgs.minimise(
    lambda x: each(x, y_TxM, active_M),
    x_LxP,
    gradient_tolerance=_GRADIENT,
    gain=_GAIN,
    patience=_PATIENCE,
    evaluations=_EVALUATIONS,
  )


@jax.jit
def _extrapolate(
  x_P: jax.Array, y_TxM: jax.Array, active_M: jax.Array, end_M: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Mean and deviation of what is seen of each curve at its end, [M]."""
  made = covariance(x_P, len(y_TxM), active_M)
  time_T = jnp.linspace(0.0, 1.0, len(y_TxM))
  mean, variance = coregionalisation.posterior(
    made,
    y_TxM,
    _decay(x_P, end_M[:, None] + time_T),
    _decay(x_P, 2 * end_M),
  )
  white = coregionalisation.WHITE
  noise = made.w_QxM[white] ** 2 + made.kappa_QxM[white]
  return mean, jnp.sqrt(jnp.maximum(variance, 0.0) + noise)
