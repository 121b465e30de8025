"""Estimates: a value with its 95 % interval, the one interval type of the project."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Iterable
import dataclasses
import math

import numpy as np
from scipy import special

from familial.core import text

LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A value and the ends of its interval of `LEVEL`.

  Formatting: `f'{e}'` gives `0.33 [0.31, 0.36]`, `f'{e:%}'` the same in per
  cent, `f'{e:.3}'` the ends to three digits of the interval's width (2 by
  default).

  Attributes:
    value: point estimate.
    lo: lower end; None if the interval is unknown.
    hi: upper end; None if the interval is unknown.
  """

  value: float
  lo: float | None = None
  hi: float | None = None

  @classmethod
  def of(cls, values: Iterable[float]) -> Estimate:
    """Returns the mean of independent values with Student's interval.

    A single value has no interval. At least one value is needed.
    """
    known = np.fromiter(values, np.float64)
    value, count = float(np.mean(known)), len(known)
    if count < 2:
      return cls(value)
    error = float(np.std(known, ddof=1)) / math.sqrt(count)
    return cls.around(value, quantile(count - 1) * error)

  @classmethod
  def around(cls, value: float, half_width: float | None) -> Estimate:
    """Returns a value with a symmetric interval, or none for None."""
    if half_width is None:
      return cls(value)
    return cls(value, value - half_width, value + half_width)

  @classmethod
  def slope(cls, x: np.ndarray, y: np.ndarray) -> Estimate:
    """Returns the least-squares slope of y [n] on x [n], n of 3 or more."""
    x, y = x - np.mean(x), y - np.mean(y)
    value = float(x @ y / (x @ x))
    residual, degrees = y - value * x, len(x) - 2
    error = math.sqrt(float(residual @ residual) / degrees / float(x @ x))
    return cls.around(value, quantile(degrees) * error)

  def map(self, function: Callable[[float], float]) -> Estimate:
    """Returns the estimate of a monotone function of the value.

    The ends change places where the function decreases.
    """
    lo, hi = (
      None if x is None else float(function(x)) for x in (self.lo, self.hi)
    )
    if lo is not None and hi is not None and lo > hi:
      lo, hi = hi, lo
    return Estimate(float(function(self.value)), lo, hi)

  def within(self, least: float, most: float) -> Estimate:
    """Returns the estimate clipped to a range, as of a share to [0, 1]."""
    return self.map(lambda x: min(max(x, least), most))

  @property
  def bounded(self) -> bool:
    """Whether both ends of the interval are known."""
    return self.lo is not None and self.hi is not None

  @property
  def sign(self) -> str:
    """`higher` or `lower` if the interval excludes 0, else `n.s.`.

    Without an interval nothing is significant.
    """
    if self.lo is not None and self.lo > 0:
      return 'higher'
    if self.hi is not None and self.hi < 0:
      return 'lower'
    return 'n.s.'

  def __contains__(self, value: float) -> bool:
    """Whether the interval is known and holds a value."""
    return (
      self.lo is not None
      and self.hi is not None
      and self.lo <= value <= self.hi
    )

  def __format__(self, spec: str) -> str:
    percent = spec.endswith('%')
    digits = int(spec.rstrip('%').lstrip('.') or 2)
    scaled = self.map(lambda x: 100 * x) if percent else self
    shown = text.estimate(scaled.value, scaled.lo, scaled.hi, digits=digits)
    return f'{shown}{text.SPACE}%' if percent else shown

  def __str__(self) -> str:
    return format(self)


def quantile(degrees: int, level: float = LEVEL) -> float:
  """Returns Student's two-sided quantile: an interval's half width in errors."""
  return float(special.stdtrit(degrees, (1 + level) / 2))
