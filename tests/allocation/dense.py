"""The coregionalised model written plainly: one covariance of all the points."""

import jax
import jax.numpy as jnp
import numpy as np

from familial.allocation import coregionalisation


def matrix(covariance):
  """The covariance of points, each of all the curves, [T M, T M]."""
  points = len(covariance.decay_TxT)
  kernels = {
    coregionalisation.DECAY: covariance.decay_TxT,
    coregionalisation.WHITE: jnp.eye(points),
    coregionalisation.BIAS: jnp.ones((points, points)),
  }
  return sum(jnp.kron(k, shared(covariance, q)) for q, k in kernels.items())


def shared(covariance, kernel):
  w = covariance.w_QxM[kernel]
  return jnp.outer(w, w) + jnp.diag(covariance.kappa_QxM[kernel])


def likelihood(covariance, y_TxM):
  """Minus the log likelihood, less its constant."""
  lower = jnp.linalg.cholesky(matrix(covariance))
  half = jax.scipy.linalg.solve_triangular(lower, y_TxM.ravel(), lower=True)
  return 0.5 * half @ half + jnp.log(jnp.diagonal(lower)).sum()


def posterior(covariance, y_TxM, cross_MxT, variance_M):
  """Mean and variance of each curve where it is asked, without white noise."""
  inverse = np.linalg.inv(np.asarray(matrix(covariance)))
  decay, bias = (
    np.asarray(shared(covariance, q))
    for q in (coregionalisation.DECAY, coregionalisation.BIAS)
  )
  mean, variance = [], []
  for i in range(len(variance_M)):
    cross = np.outer(cross_MxT[i], decay[i]) + bias[i]
    mean.append(cross.ravel() @ inverse @ y_TxM.ravel())
    prior = variance_M[i] * decay[i, i] + bias[i, i]
    variance.append(prior - cross.ravel() @ inverse @ cross.ravel())
  return np.array(mean), np.array(variance)
