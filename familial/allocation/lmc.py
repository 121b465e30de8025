"""A surrogate: one Gaussian process over all curves of an allocation.

The model is a linear model of coregionalisation of a freeze-thaw kernel (Swersky
et al. 2014), white noise and a bias. Its parameters maximise the posterior, from
several random starts. A point x_P holds w [3, M], ln kappa [3, M] and the kernel's
ln alpha and ln beta, as deviations from the means of weak normal priors in units of
their deviations: in these units a descent needs a third of the steps. The priors
are of curves of unit variance over a unit of time, the logarithm of compute.

Dimensions: S allocations, M curves, T points, P parameters, L starts.
"""

from collections.abc import Callable
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from familial.allocation import coregionalisation
from familial.allocation import halving
from familial.allocation import lbfgs
from familial.allocation import surrogate
from familial.core import cores

RESTARTS = 20
_LANES = 10  # starts in one program
_NOISE = 1e-6  # least variance of the white noise of standardised curves
_LEAST_SD = 1e-6  # nats, for curves that are constant
# Of the kernels DECAY, WHITE, BIAS.
_W_SD = np.array([1.0, 0.1, 1.0])
_KAPPA_MEAN = np.log([1.0, 1e-4, 1.0])
_WHITE = np.eye(3)[:, coregionalisation.WHITE, None]


class Curves(NamedTuple):
  """Curves of one allocation in the model's units.

  Attributes:
    y_TxM: losses, jointly of mean 0 and deviation 1; 0 if not active.
    end_M: time of the wanted loss; the points are at times 0 to 1.
    mean: of the losses, in nats.
    sd: of the losses, in nats.
  """

  y_TxM: np.ndarray
  end_M: np.ndarray
  mean: float
  sd: float


class Fit(NamedTuple):
  """The best of the restarts: its point, and minus its log posterior."""

  x_P: np.ndarray
  value: float


def predict(
  observed: surrogate.Observed, keys: jax.Array
) -> halving.Prediction:
  """Predicts losses from a fit to each allocation; see `surrogate.Surrogate`.

  Intervals are of observed losses, white noise included. Losses are not logarithmic:
  a power law of compute with an irreducible term is an exponential of time that
  tends to a level, which decay and bias represent, while ln L is not, and gave far
  too narrow intervals.
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
      curves.mean + curves.sd * y
      for y in (middle, middle - half, middle + half)
    )
  return halving.Prediction(mean, lo, hi)


def fit(observed: surrogate.Observed, keys: jax.Array) -> list[Fit]:
  """Fits the model to each allocation.

  Starts descend by tens, in as many threads as cores: an allocation's program does
  not depend on the number of allocations.
  """
  _, curves, points = observed.loss_SxMxT.shape
  with jax.enable_x64(True):
    program = _descent(points, curves)

  def descend(start: tuple[int, int]) -> lbfgs.Minimum:
    s, first = start
    active_M = np.asarray(observed.active_SxM[s], bool)
    with jax.enable_x64(True):  # It holds for one thread.
      x_LxP = starts(keys[s], curves)[first : first + _LANES]
      minimum = program(x_LxP, standardised(observed, s).y_TxM, active_M)
      return lbfgs.Minimum(*jax.tree.map(np.asarray, minimum))

  firsts = range(0, RESTARTS, _LANES)
  parts = cores.in_threads(descend, itertools.product(range(len(keys)), firsts))
  x, value, _ = (
    np.stack(part).reshape(len(keys), RESTARTS, -1)
    for part in zip(*parts, strict=True)
  )
  return [
    Fit(x[s, best], float(value[s, best, 0]))
    for s, best in enumerate(value[..., 0].argmin(axis=1))
  ]


def standardised(observed: surrogate.Observed, s: int) -> Curves:
  """Returns the curves of allocation s in the model's units."""
  active_M = np.asarray(observed.active_SxM[s], bool)
  loss_TxM = np.asarray(observed.loss_SxMxT[s], np.float64).T
  seen = loss_TxM[:, active_M] if active_M.any() else np.zeros(1)
  mean, sd = seen.mean(), max(seen.std(), _LEAST_SD)
  y_TxM = np.where(active_M, (loss_TxM - mean) / sd, 0.0)
  log_c = observed.log_c_SxT[s]
  end_M = (observed.log_end_SxM[s] - log_c[0]) / (log_c[-1] - log_c[0])
  return Curves(y_TxM, np.where(active_M, end_M, 1.0), mean, sd)


def starts(key: jax.Array, curves: int) -> jax.Array:
  """Draws the starts from the prior, [RESTARTS, P]."""
  return jax.random.normal(key, (RESTARTS, 6 * curves + 2), np.float64)


def objective(
  x_P: jax.Array, y_TxM: jax.Array, active_M: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Returns minus the log posterior, up to a constant, and its gradient [P]."""
  model, pull = jax.vjp(lambda x: covariance(x, len(y_TxM), active_M), x_P)
  value, by_model = coregionalisation.likelihood(model, y_TxM)
  return value + 0.5 * jnp.sum(x_P**2), pull(by_model)[0] + x_P


def covariance(
  x_P: jax.Array, points: int, active_M: jax.Array
) -> coregionalisation.Covariance:
  """Returns the covariance at times 0 to 1; inactive curves are white noise."""
  w, log_kappa = x_P[:-2].reshape(2, 3, -1)
  time_T = jnp.linspace(0.0, 1.0, points)
  kappa = jnp.exp(_KAPPA_MEAN[:, None] + log_kappa) + _NOISE * _WHITE
  return coregionalisation.Covariance(
    jnp.where(active_M, _W_SD[:, None] * w, 0.0),
    jnp.where(active_M, kappa, _WHITE),
    _decay(x_P, time_T[:, None] + time_T),
  )


def _decay(x_P: jax.Array, both: jax.Array) -> jax.Array:
  """The freeze-thaw kernel (1 + (s + t) / beta)^-alpha at s + t.

  It is a mixture of exponentials of time, that is of power laws of compute, with
  gamma-distributed rates.
  """
  alpha, beta = jnp.exp(x_P[-2:])
  return jnp.exp(-alpha * jnp.log1p(both / beta))


@functools.lru_cache(maxsize=64)
def _descent(points: int, curves: int) -> Callable[..., lbfgs.Minimum]:
  """The compiled descent of _LANES starts."""

  def descend(
    x_LxP: jax.Array, y_TxM: jax.Array, active_M: jax.Array
  ) -> lbfgs.Minimum:
    each = jax.vmap(objective, in_axes=(0, None, None))
    return lbfgs.minimise(
      lambda x: each(x, y_TxM, active_M),
      x_LxP,
      gradient_tolerance=1e-3,
      gain=1e-4,  # nats
      patience=5,
      evaluations=1500,
    )

  shapes = (_LANES, 6 * curves + 2), (points, curves), (curves,)
  arguments = map(jax.ShapeDtypeStruct, shapes, (np.float64, np.float64, bool))
  return jax.jit(descend).lower(*arguments).compile()


@jax.jit
def _extrapolate(
  x_P: jax.Array, y_TxM: jax.Array, active_M: jax.Array, end_M: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Mean and deviation of each curve's observed loss at its end, [M]."""
  model = covariance(x_P, len(y_TxM), active_M)
  time_T = jnp.linspace(0.0, 1.0, len(y_TxM))
  mean, variance = coregionalisation.posterior(
    model,
    y_TxM,
    _decay(x_P, end_M[:, None] + time_T),
    _decay(x_P, 2 * end_M),
  )
  white = coregionalisation.WHITE
  noise = model.w_QxM[white] ** 2 + model.kappa_QxM[white]
  return mean, jnp.sqrt(jnp.maximum(variance, 0.0) + noise)
