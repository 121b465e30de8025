"""Intervals of predictions: of the law's mean, and of the loss of one run.

A confidence interval of the mean holds what the law predicts: its ends are
quantiles over the bootstrap's resamples. A prediction interval of a run adds the
run's own noise, drawn from the residuals of the fit (Efron & Tibshirani 1993,
section 25.3). The second is the one to compare with an observed loss.

The quantiles are those of a normal law at the ends of Student's interval
(Hesterberg 2015, section 5.3): with few runs, percentiles are too narrow.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import special

from familial.core import errors
from familial.core import estimate
from familial.laws import levenberg_marquardt
from familial.laws import parametric

KINDS = ('mean', 'run')


def intervals(
  form: parametric.Form,
  theta: np.ndarray,
  residuals: np.ndarray,
  columns: Mapping[str, Any],
  kind: str,
  level: float,
  degrees: int,
  has_interval: Callable[[Mapping[str, np.ndarray]], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
  """Both ends of the intervals at columns, of their shape; NaN for no interval.

  Args:
    form: the law.
    theta: coordinates of the resamples, [resamples, parameters].
    residuals: log loss - log prediction of a run, [n].
    columns: where to predict; arrays and numbers of one shape after broadcasting.
    kind: mean or run.
    level: of the intervals.
    degrees: runs less fitted parameters.
    has_interval: whether the fit gives an interval at these columns.
  """
  errors.require_one_of('kind', kind, KINDS)
  at = form.columns_of(columns)
  shape = at[form.columns[0]].shape
  rows = {name: values.ravel() for name, values in at.items()}
  if not len(theta) or 0 in shape:
    missing = np.full(shape, np.nan)
    return missing, missing
  log_loss = levenberg_marquardt.predict(form, rows, theta)
  if kind == 'run':
    rng = np.random.default_rng(len(theta))
    log_loss = log_loss + rng.choice(residuals, log_loss.shape)
  tail = special.ndtr(-estimate.quantile(degrees, level))
  lo, hi = np.quantile(np.exp(log_loss), [tail, 1 - tail], axis=0)
  given = has_interval(at)
  return (
    np.where(given, lo.reshape(shape), np.nan),
    np.where(given, hi.reshape(shape), np.nan),
  )
