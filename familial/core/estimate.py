"""Student's intervals: how sure a mean or a slope of a few values is."""

import dataclasses
import math

import numpy as np
from scipy import special

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A value and its interval of LEVEL, from the scatter of what it was made of.

  `lo` and `hi` are None where there is no scatter to tell it from.
  """

  value: float
  lo: float | None
  hi: float | None


def quantile(degrees: int, level: float = LEVEL) -> float:
  """Returns how many standard errors an interval reaches to each side."""
  return float(special.stdtrit(degrees, (1 + level) / 2))


def mean(values: np.ndarray) -> Estimate:
  """Returns the mean of values [n], at least one, that count as independent."""
  value, count = float(np.mean(values)), len(values)
  if count < 2:
    return around(value, None)
  error = float(np.std(values, ddof=1)) / math.sqrt(count)
  return around(value, quantile(count - 1) * error)


def slope(x: np.ndarray, y: np.ndarray) -> Estimate:
  """Returns the least-squares slope of y [n] on x [n], n of 3 or more."""
  x, y = x - np.mean(x), y - np.mean(y)
  value = float(x @ y / (x @ x))
  left, degrees = y - value * x, len(x) - 2
  error = math.sqrt(float(left @ left) / degrees / float(x @ x))
  return around(value, quantile(degrees) * error)


def around(value: float, reach: float | None) -> Estimate:
  """Returns the value with an interval of that reach, if any, to each side."""
  if reach is None:
    return Estimate(value, None, None)
  return Estimate(value, value - reach, value + reach)
