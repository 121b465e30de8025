"""Coregionalised Gaussian processes of curves on one grid, by structure.

The covariance of curves i and j at points s and t is the sum over three kernels of
B_ij k(s, t), B = w w' + diag(kappa): a decay, white noise [s = t] and a bias, 1.
In the eigenbasis of the decay kernel, K = U diag(lam) U', decay and white noise
separate into T blocks over the curves, A_k = diag(kappa_white + lam_k
kappa_decay) + w_white w_white' + lam_k w_decay w_decay', which are diagonal plus
rank two. With u = U' 1 the covariance is

  C = blocks(A_k) + (u u') (x) B_bias,

and the bias, of rank M + 1, is added by Woodbury's identity. The likelihood costs
O(T^3 + T M^2 + M^3) instead of the O(T^3 M^3) of the full covariance, which
libraries such as tinygp factor. The gradient is written out with respect to w, kappa
and K, since the eigenbasis has no derivative where eigenvalues coincide.

Dimensions: Q = 3 kernels, M curves, T points, k and l in the eigenbasis.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

DECAY, WHITE, BIAS = range(3)


class Covariance(NamedTuple):
  """w_QxM and kappa_QxM of DECAY, WHITE and BIAS; the decay kernel K_TxT.

  kappa of WHITE is positive, the others' is not negative.
  """

  w_QxM: jax.Array
  kappa_QxM: jax.Array
  decay_TxT: jax.Array


class Factor(NamedTuple):
  """Factors of the inverse, with A_k^-1 = diag(inverse_k) - F_k' F_k.

  `middle_MxM` is S = R (I + R' G R)^-1 R' with R R' = B_bias, and `outer_MxM` is
  G = sum_k u_k^2 A_k^-1, so that
  C^-1_kl = [k = l] A_k^-1 - u_k u_l A_k^-1 S A_l^-1.
  """

  lam_T: jax.Array
  basis_TxT: jax.Array
  ones_T: jax.Array  # u
  inverse_TxM: jax.Array
  low_Tx2xM: jax.Array  # F
  outer_MxM: jax.Array
  middle_MxM: jax.Array
  log_det: jax.Array


def factor(covariance: Covariance) -> Factor:
  """Factors the covariance of T points of M curves."""
  w, kappa = covariance.w_QxM, covariance.kappa_QxM
  lam, basis = _eigh(covariance.decay_TxT)
  lam = jnp.maximum(lam, 0.0)
  u = basis.sum(0)
  diagonal = kappa[WHITE] + lam[:, None] * kappa[DECAY]
  inverse = 1 / diagonal
  # Sherman and Morrison's identity twice: white noise first, then the decay.
  white = inverse * w[WHITE]
  a = 1 + white @ w[WHITE]
  white /= jnp.sqrt(a)[:, None]
  side = jnp.sqrt(lam)[:, None] * w[DECAY]
  decay = inverse * side - white * jnp.sum(white * side, 1, keepdims=True)
  b = 1 + jnp.sum(decay * side, 1)
  decay /= jnp.sqrt(b)[:, None]
  low = jnp.stack([white, decay], 1)

  flat = (u[:, None, None] * low).reshape(-1, low.shape[-1])
  outer = jnp.diag(u**2 @ inverse) - flat.T @ flat
  root = jnp.concatenate([jnp.diag(jnp.sqrt(kappa[BIAS])), w[BIAS, :, None]], 1)
  inner = jnp.eye(root.shape[1]) + root.T @ outer @ root
  lower = jnp.linalg.cholesky(inner, symmetrize_input=False)
  half = jax.lax.linalg.triangular_solve(
    lower, root.T, left_side=True, lower=True
  )
  log_det = (
    jnp.log(diagonal).sum()
    + jnp.log(a * b).sum()
    + 2 * jnp.log(jnp.diagonal(lower)).sum()
  )
  return Factor(lam, basis, u, inverse, low, outer, half.T @ half, log_det)


def solve(factor: Factor, z_TxM: jax.Array) -> jax.Array:
  """C^-1 z [T, M], both in the eigenbasis."""
  total = factor.ones_T @ _blocks(factor, z_TxM)
  shift = factor.middle_MxM @ total
  return _blocks(factor, z_TxM - factor.ones_T[:, None] * shift)


def likelihood(
  covariance: Covariance, y_TxM: jax.Array
) -> tuple[jax.Array, Covariance]:
  """Returns minus the log likelihood, less T M ln(2 pi) / 2, and its gradient.

  The gradient treats all entries of the decay kernel as independent.
  """
  f = factor(covariance)
  w, kappa = covariance.w_QxM, covariance.kappa_QxM
  z = f.basis_TxT.T @ y_TxM
  alpha = solve(f, z)
  value = 0.5 * jnp.sum(z * alpha) + 0.5 * f.log_det
  u, inverse, low, middle = f.ones_T, f.inverse_TxM, f.low_Tx2xM, f.middle_MxM
  points, curves = z.shape

  # A_k^-1 S A_l^-1 in parts: F_k S, and F_k S F_l'.
  flat = low.reshape(-1, curves)
  through = (flat @ middle).reshape(low.shape)
  both = (through.reshape(-1, curves) @ flat.T).reshape(points, 2, points, 2)
  mixed = jnp.sum(through * low, 1)  # the diagonal of F_k' F_k S
  own = jnp.einsum('kckd->kcd', both)
  quartic = jnp.einsum('kcm,kcd,kdm->km', low, own, low)
  scale = jnp.diagonal(middle)
  twice = inverse**2 * scale - 2 * inverse * mixed + quartic
  once = inverse - jnp.sum(low**2, 1)
  diagonal = once - u[:, None] ** 2 * twice - alpha**2  # of C^-1 - alpha alpha'

  def along(w_M: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(C^-1 - alpha alpha')_kk w [T, M], A_k^-1 w and alpha_k w."""
    first = _blocks(f, jnp.broadcast_to(w_M, z.shape))
    second = _blocks(f, first @ middle)
    seen = alpha @ w_M
    return first - u[:, None] ** 2 * second - alpha * seen[:, None], first, seen

  by_white, _, _ = along(w[WHITE])
  by_decay, decayed, seen = along(w[DECAY])
  level = u @ alpha
  inside = f.outer_MxM - f.outer_MxM @ middle @ f.outer_MxM
  by_bias = inside @ w[BIAS] - level * (level @ w[BIAS])

  # tr(B_decay (C^-1 - alpha alpha')_kl), of which K's derivative is the weight.
  weighed = (flat * kappa[DECAY]) @ flat.T
  cross = (inverse * kappa[DECAY]) @ mixed.T
  pairs = (
    decayed @ middle @ decayed.T
    + (inverse * (kappa[DECAY] * scale)) @ inverse.T
    - cross
    - cross.T
    + jnp.sum(both * weighed.reshape(both.shape), (1, 3))
  )
  traces = jnp.diag(decayed @ w[DECAY] + once @ kappa[DECAY])
  by_kernel = (
    traces
    - u[:, None] * u * pairs
    - seen[:, None] * seen
    - (alpha * kappa[DECAY]) @ alpha.T
  )
  gradient = Covariance(
    w_QxM=jnp.stack([f.lam_T @ by_decay, by_white.sum(0), by_bias]),
    kappa_QxM=0.5
    * jnp.stack(
      [
        f.lam_T @ diagonal,
        diagonal.sum(0),
        jnp.diagonal(inside) - level**2,
      ]
    ),
    decay_TxT=0.5 * f.basis_TxT @ by_kernel @ f.basis_TxT.T,
  )
  return value, gradient


def posterior(
  covariance: Covariance,
  y_TxM: jax.Array,
  cross_MxT: jax.Array,
  variance_M: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns each curve's mean and variance at a time of its own, without noise.

  Args:
    covariance: of the curves at their points.
    y_TxM: the curves.
    cross_MxT: decay kernel between the curve's time and the points.
    variance_M: decay kernel at the curve's time.
  """
  f = factor(covariance)
  w, kappa = covariance.w_QxM, covariance.kappa_QxM
  alpha = solve(f, f.basis_TxT.T @ y_TxM)

  def one(i: jax.Array) -> tuple[jax.Array, jax.Array]:
    shared = w[:, i, None] * w + kappa * (jnp.arange(w.shape[1]) == i)
    decay = f.basis_TxT.T @ cross_MxT[i]
    with_z = decay[:, None] * shared[DECAY] + f.ones_T[:, None] * shared[BIAS]
    prior = variance_M[i] * shared[DECAY, i] + shared[BIAS, i]
    return jnp.sum(with_z * alpha), prior - jnp.sum(with_z * solve(f, with_z))

  return jax.vmap(one)(jnp.arange(w.shape[1]))


def _blocks(factor: Factor, z_TxM: jax.Array) -> jax.Array:
  """A_k^-1 z_k [T, M]."""
  low = factor.low_Tx2xM
  seen = jnp.sum(low * z_TxM[:, None], 2, keepdims=True)
  return factor.inverse_TxM * z_TxM - jnp.sum(low * seen, 1)


@jax.custom_batching.custom_vmap
def _eigh(kernel_TxT: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Eigenvalues and vectors; a batch is decomposed one matrix at a time.

  XLA's batched decomposition waits in its pool of threads, and two such programs
  at once deadlocked (jax 0.10 on CPU).
  """
  return tuple(jnp.linalg.eigh(kernel_TxT, symmetrize_input=False))


@_eigh.def_vmap
def _eigh_of_batch(
  size: int, batched: list[bool], kernel_BxTxT: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple[bool, bool]]:
  return jax.lax.map(_eigh, kernel_BxTxT), (True, True)
