"""The Chinchilla fit as SciPy does it well: L-BFGS-B with the exact gradient.

The objective is scaled to order 1, for SciPy's tolerances are absolute, and
those are tight enough to reach the optimum's objective to 1e-6. Few starts need
500 iterations; without a limit a handful would take most of the time.
"""

import functools
import multiprocessing
import os

import numpy as np
from scipy import optimize

_OPTIONS = {'ftol': 1e-12, 'gtol': 1e-8, 'maxiter': 500, 'maxfun': 1000}


def objective(theta, log_n, log_d, target, delta, weight):
  """The sum of Huber's function times 1000, and its gradient."""
  e, a, b, alpha, beta = theta
  terms = np.stack(
    [a - alpha * log_n, b - beta * log_d, np.full_like(log_n, e)]
  )
  top = terms.max(0)
  exp = np.exp(terms - top)
  total = exp.sum(0)
  residual = top + np.log(total) - target
  size = np.abs(residual)
  value = np.where(
    size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta)
  )
  pull = 1e3 * weight * np.clip(residual, -delta, delta)
  by_n, by_d, by_e = pull * exp / total
  gradient = np.array(
    [by_e.sum(), by_n.sum(), by_d.sum(), -by_n @ log_n, -by_d @ log_d]
  )
  return 1e3 * (weight @ value), gradient


def _one(theta, weight, log_n, log_d, target, delta):
  found = optimize.minimize(
    objective, theta, (log_n, log_d, target, delta, weight), 'L-BFGS-B',
    jac=True, options=_OPTIONS,
  )  # fmt: skip
  return found.fun / 1e3, found.x


def minimise(columns, starts, weights, delta, processes):
  """Objective and end of each start with each row of weights, in order."""
  one = functools.partial(
    _one,
    log_n=np.log(columns['N']),
    log_d=np.log(columns['D']),
    target=np.log(columns['loss']),
    delta=delta,
  )
  # A process a core: BLAS threads beside them cost SciPy ten times its speed.
  os.environ |= {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}
  with multiprocessing.get_context('spawn').Pool(processes) as pool:
    chunk = -(-len(starts) // (8 * processes))
    ends = pool.starmap(one, zip(starts, weights, strict=True), chunk)
  values, points = zip(*ends, strict=True)
  return np.array(values), np.array(points)
