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
  at = form.columns_of(columns)
  shape = at[form.columns[0]].shape
  log_loss = draws(form, theta, residuals, at, kind)
  if not log_loss.size:
    missing = np.full(shape, np.nan)
    return missing, missing
  beyond = tail(degrees, level)
  lo, hi = np.quantile(np.exp(log_loss), [beyond, 1 - beyond], axis=0)
  given = has_interval(at)
  return np.where(given, lo, np.nan), np.where(given, hi, np.nan)


def draws(
  form: parametric.Form,
  theta: np.ndarray,
  residuals: np.ndarray,
  columns: Mapping[str, np.ndarray],
  kind: str,
) -> np.ndarray:
  """Log loss at columns of one shape in each resample, [resamples, *shape].

  Args:
    form: the law.
    theta: coordinates of the resamples, [resamples, parameters].
    residuals: log loss - log prediction of a run, [n].
    columns: the form's own, as `columns_of` returns them.
    kind: mean, or run: with a run's noise.
  """
  errors.require_one_of('kind', kind, KINDS)
  shape = columns[form.columns[0]].shape
  if not len(theta) or 0 in shape:
    return np.zeros((len(theta), *shape))
  rows = {name: values.ravel() for name, values in columns.items()}
  log_loss = levenberg_marquardt.predict(form, rows, theta)
  if kind == 'run':
    rng = np.random.default_rng(len(theta))
    log_loss = log_loss + rng.choice(residuals, log_loss.shape)
  return log_loss.reshape(len(theta), *shape)


def tail(degrees: int, level: float) -> float:
  """The share of draws beyond each end of an interval, by Student's quantile."""
  return float(special.ndtr(-estimate.quantile(degrees, level)))
