"""Asymptotics of an M-estimate: covariance, conditioning, AIC and BIC.

The estimate minimises a sum of Huber's functions of threshold delta.
"""

import math

import numpy as np
from scipy import optimize
from scipy import special

COLLINEAR = 1e12
_BANDWIDTH = 0.5  # of the robust scale: on normal noise, V 1.25 times too wide


def covariance(
  jacobian: np.ndarray,
  residual: np.ndarray,
  clusters: np.ndarray,
  delta: float,
  weight: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Sandwich covariance of an M-estimate, and its ratio to inverse curvature.

  V = H^-1 M H^-1 (Huber 1967; by cluster, Liang & Zeger 1986), M the sum over runs of the outer product of a run's score,
  J' clip(r, delta), and H = J' diag(h) J with h the chance that a residual near
  r_i lies within delta: that of a normal law around r_i, half the robust scale
  wide. Counting the rows inside delta alone would divide by a handful, and one
  chance for all rows understates V where the noise grows with a column
  (Powell's estimator for medians, which this tends to as delta does to 0).
  No variance is below the one for independent rows.

  Args:
    jacobian: of the log prediction, [rows, free parameters].
    residual: log prediction - log loss, [rows].
    clusters: the number of each row's run, [rows].
    delta: Huber's threshold.
    weight: of each row's Huber function in the objective, [rows].

  Returns:
    Covariance of the coordinates [p, p], and the inflation [p] of `Fit`. Where
    the rows cannot tell a coordinate its variance is inf, the rest of its row
    and column nan.
  """
  rows, p = jacobian.shape
  psi = weight * np.clip(residual, -delta, delta)
  inside = weight.copy()
  if delta < math.inf:
    width = max(_BANDWIDTH * robust_scale(residual, p), 1e-6 * delta)
    inside *= special.ndtr((delta - residual) / width) - special.ndtr(
      (-delta - residual) / width
    )
  length = np.linalg.norm(jacobian, axis=0)
  alive = length > 0
  unit = jacobian[:, alive] / length[alive]
  inverse = np.linalg.pinv(
    (unit * inside[:, None]).T @ unit, rcond=1 / COLLINEAR, hermitian=True
  )
  influence = (psi[:, None] * unit) @ inverse
  runs = int(clusters.max()) + 1
  summed = np.zeros((runs, int(alive.sum())))
  np.add.at(summed, clusters, influence)
  clustered = summed.T @ summed * runs / max(runs - p, 1)
  apart = (influence**2).sum(0) * rows / max(rows - p, 1)
  variance = np.maximum(np.diag(clustered), apart)
  out = np.full((p, p), np.nan)
  ratio = np.full(p, np.inf)
  # 0/0: lost, below.
  with np.errstate(invalid='ignore', divide='ignore', over='ignore'):
    grown = np.sqrt(variance / np.diag(clustered)) / length[alive]
    out[np.ix_(alive, alive)] = clustered * np.outer(grown, grown)
    out[alive, alive] = variance / length[alive] ** 2
    ratio[alive] = variance / np.diag(inverse)
  lost = conditioning(jacobian)[1] >= COLLINEAR
  out[lost] = out[:, lost] = np.nan
  out[~alive | lost, ~alive | lost] = ratio[lost] = np.inf
  return out, ratio


def robust_scale(residual: np.ndarray, parameters: int) -> float:
  """1.4826 median |r|, corrected for the parameters fitted."""
  rows = len(residual)
  correction = np.sqrt(rows / max(rows - parameters, 1))
  return float(1.4826 * np.median(np.abs(residual)) * correction)


def criteria(
  objective: float,
  weight: np.ndarray,
  parameters: int,
  delta: float,
  asymmetry: float,
) -> tuple[float, float]:
  """AIC and BIC of a sum of weighted Huber functions, as `Fit` defines them."""
  rows = len(weight)
  distinct, counts = np.unique(weight, return_counts=True)

  def normaliser(tau: np.ndarray) -> np.ndarray:
    core = np.sqrt(2 * np.pi * tau) * special.erf(delta / np.sqrt(2 * tau))
    return core + 2 * tau / delta * np.exp(-(delta**2) / (2 * tau))

  def minus_log_likelihood(log_tau: float) -> float:
    tau = np.exp(log_tau) / distinct
    both_sides = (normaliser(tau) + normaliser(tau / asymmetry)) / 2
    return objective / np.exp(log_tau) + counts @ np.log(both_sides)

  # tau is about the objective a row (Laplace) or twice that (normal).
  centre = np.log(max(objective / rows, 1e-30))
  best = optimize.minimize_scalar(
    minus_log_likelihood, bounds=(centre - 5, centre + 5), method='bounded',
    options={'xatol': 1e-10},
  )  # fmt: skip
  k = parameters + 1
  return 2 * k + 2 * best.fun, k * np.log(rows) + 2 * best.fun


def conditioning(jacobian: np.ndarray) -> tuple[float, np.ndarray]:
  """Condition number of scaled J'J and the diagonal of its inverse.

  The diagonal is inf for a coordinate that no prediction answers to; at
  COLLINEAR and above, others can imitate the coordinate to within rounding.
  """
  length = np.linalg.norm(jacobian, axis=0)
  alive = length > 0
  diagonal = np.full(len(length), math.inf)
  if not alive.any():
    return math.inf, diagonal
  _, singular, right = np.linalg.svd(
    jacobian[:, alive] / length[alive], full_matrices=False
  )
  rounding = np.finfo(float).eps * singular[0]
  diagonal[alive] = ((right.T / np.maximum(singular, 0.1 * rounding)) ** 2).sum(
    1
  )
  if not alive.all() or singular[-1] <= rounding * math.sqrt(len(jacobian)):
    return math.inf, diagonal
  return float((singular[0] / singular[-1]) ** 2), diagonal
