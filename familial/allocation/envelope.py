"""Envelopes of learning curves: frontiers of compute, their lines and areas.

The first approach of Hoffmann et al. (2022): the frontier is the lowest loss of all
curves at each compute. C is compute in FLOPs, L the loss in nats per token.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any
from typing import NamedTuple

import numpy as np

from familial.allocation import curves as curves_lib
from familial.laws import estimation
from familial.laws import forms
from familial.laws import levenberg_marquardt
from familial.laws import table as tables

POINTS = 100  # of a frontier
WIDTH = 30.0  # factor of compute over which a line is fitted
MATCHES = ('interpolated', 'nearest')


class Line(NamedTuple):
  """ln L = slope ln C + level."""

  slope: float
  level: float

  def __call__(self, flops: Any) -> np.ndarray:
    """Returns the loss at C."""
    return np.asarray(np.exp(self.slope * np.log(flops) + self.level))


def span(curves: Sequence[curves_lib.Curve]) -> tuple[float, float]:
  """Returns the FLOPs over which a line is fitted: the last factor of WIDTH.

  At less compute the curves are all in the same transient.
  """
  high = max(curve.end for curve in curves)
  return high / WIDTH, high


def frontier(
  curves: Sequence[curves_lib.Curve],
  flops: np.ndarray,
  match: str = 'interpolated',
) -> np.ndarray:
  """Returns the best loss over curves at each C.

  Args:
    curves: at least one; a curve's lowest loss counts beyond its end too.
    flops: C, [points].
    match: `interpolated` on the curves' running minima, or `nearest`, the point
      of each curve nearest in log C (arXiv 2605.17234).
  """
  if match == 'interpolated':
    return np.min([curve.at(flops) for curve in curves], axis=0)
  log_c = np.log(flops)[:, None]
  nearest = [
    curve.loss[np.argmin(np.abs(log_c - np.log(curve.flops)), axis=1)]
    for curve in curves
    if len(curve.flops)
  ]
  return np.min(nearest, axis=0)


def line(
  curves: Sequence[curves_lib.Curve],
  low: float,
  high: float,
  match: str = 'interpolated',
) -> Line:
  """Returns the least-squares line through the frontier in log-log.

  Args:
    curves: as in `frontier`.
    low: C of the first of POINTS points, evenly spaced in log C.
    high: C of the last point.
    match: as in `frontier`.

  Returns:
    The line, NaN for fewer than two points.
  """
  flops = np.geomspace(low, high, POINTS)
  loss = frontier(curves, flops, match)
  known = np.isfinite(loss)
  if known.sum() < 2:
    return Line(np.nan, np.nan)
  slope, level = np.polyfit(np.log(flops[known]), np.log(loss[known]), 1)
  return Line(float(slope), float(level))


@dataclasses.dataclass(frozen=True)
class Description:
  """A frontier as a line and as a power law with an irreducible term.

  Attributes:
    match: one of MATCHES.
    low: FLOPs from which the frontier is described,
    high: to which it is.
    slope: of the line ln L = slope ln C + level.
    level: of the line.
    residual: root mean square of what the line leaves of ln L.
    E: of L = E + A / C^alpha.
    A: likewise.
    alpha: likewise.
    residual_E: root mean square of what that law leaves of ln L.
  """

  match: str
  low: float
  high: float
  slope: float
  level: float
  residual: float
  E: float
  A: float
  alpha: float
  residual_E: float


def describe(curves: Sequence[curves_lib.Curve]) -> tuple[Description, ...]:
  """Returns the frontier's description over the curves' span by each match."""
  low, high = span(curves)
  flops = np.geomspace(low, high, POINTS)
  form = forms.get('power_of_compute')
  descriptions = []
  for match in MATCHES:
    loss = frontier(curves, flops, match)
    straight = line(curves, low, high, match)
    known = np.isfinite(loss)
    columns = {'C': flops[known], 'loss': loss[known]}
    table = tables.Table(columns, np.flatnonzero(known).astype(str))
    theta, _ = estimation.fit_groups(form, table, np.ones((1, known.sum())))
    [bent] = levenberg_marquardt.evaluate(form, columns, theta)[0]
    constants = form.values(theta[0])
    descriptions.append(
      Description(
        match=match,
        low=low,
        high=high,
        slope=straight.slope,
        level=straight.level,
        residual=_rms(np.log(straight(flops[known]) / loss[known])),
        **{name: float(constants[name]) for name in form.names},
        residual_E=_rms(bent - np.log(loss[known])),
      )
    )
  return tuple(descriptions)


def _rms(residual: np.ndarray) -> float:
  return float(np.sqrt(np.mean(residual**2)))


def area(a: Line, b: Line, low: float, high: float) -> float:
  """Returns the area between two lines in ln L over ln C (AbC).

  Two lines that differ by 1 % in loss have 0.01 per factor e of compute.
  """
  x, y = np.log(low), np.log(high)
  at_low = (a.slope - b.slope) * x + a.level - b.level
  at_high = (a.slope - b.slope) * y + a.level - b.level
  if at_low * at_high >= 0:
    return float(abs(at_low + at_high) / 2 * (y - x))
  # They cross: two triangles.
  return float(
    (at_low**2 + at_high**2) / (2 * (abs(at_low) + abs(at_high))) * (y - x)
  )
