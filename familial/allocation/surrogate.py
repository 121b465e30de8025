"""Surrogates: predictions of how learning curves continue.

Dimensions: S allocations, M survivors of each, T points, F features.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import NamedTuple
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from familial.allocation import curves as curves_lib
from familial.allocation import halving

LEVEL = 0.9  # of every predictive interval
POINTS = 20  # of a curve that a surrogate sees


class Observed(NamedTuple):
  """The survivors' curves so far.

  Attributes:
    log_c_SxT: ln FLOPs of the points, shared by the curves, evenly spaced.
    loss_SxMxT: nats, on the curves' running minima.
    active_SxM: False where no prediction is wanted; the curve's numbers are then
      arbitrary and must not affect the other predictions.
    features_SxMxF: of the candidates, standardised; F may be 0.
    log_end_SxM: ln FLOPs of the wanted loss, at least the last point's.
  """

  log_c_SxT: np.ndarray
  loss_SxMxT: np.ndarray
  active_SxM: np.ndarray
  features_SxMxF: np.ndarray
  log_end_SxM: np.ndarray


class Surrogate(Protocol):
  """Predicts losses; allocations are independent."""

  def __call__(self, observed: Observed, keys: jax.Array) -> halving.Prediction:
    """Returns the loss at `log_end` with its interval of LEVEL.

    Args:
      observed: curves of S allocations.
      keys: S random keys.
    """


def ranked_by(predict: Surrogate) -> halving.Rank:
  """Returns the ranking by the lower of the loss seen and the loss predicted.

  Intervals are calibrated on the past: the surrogate also predicts what is known
  by now from the first part of the same curves.
  """

  def rank(survey: halving.Survey, seed: int) -> halving.Ranking:
    now, before = observe(survey)
    key = jax.random.fold_in(jax.random.key(seed), survey.round)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
      key, np.arange(len(survey.sources))
    )
    both = Observed(*map(np.concatenate, zip(now, before, strict=True)))
    halves = [
      np.split(x, 2) for x in predict(both, jnp.concatenate([keys] * 2))
    ]
    future, past = (
      halving.Prediction(*parts) for parts in zip(*halves, strict=True)
    )
    active = now.active_SxM
    future = calibrated(future, past, now.loss_SxMxT[:, :, -1], active)
    future = halving.Prediction(*(np.where(active, x, np.nan) for x in future))
    return halving.Ranking(np.fmin(survey.seen_SxM, future.mean), future)

  return rank


def observe(survey: halving.Survey) -> tuple[Observed, Observed]:
  """Returns a survey's curves on one grid of compute, and their first parts.

  A curve that is seen over less than a factor of two in compute is not active:
  it ranks by the loss seen.

  Returns:
    All that is known, asked for the survivors' ends; and the first part of it,
    asked for the last point of the former. The first part ends so that both are
    asked equally far ahead: in ln C over the width seen, in the median, at most
    once the width.
  """
  first, end = (
    np.array([[f(curve) for curve in row] for row in survey.curves])
    for f in (lambda c: c.flops[0] if len(c.flops) else np.inf, lambda c: c.end)
  )
  diverged = np.array([[c.diverged for c in row] for row in survey.curves])
  active = ~diverged & (end > 2 * first) & (survey.end_SxM > end)
  # The range of compute that the active curves have in common.
  start = np.where(active, first, 0).max(axis=1, initial=0.0)
  stop = np.where(active, end, np.inf).min(axis=1)
  active &= (start < stop)[:, None]
  empty = ~active.any(axis=1)
  start = np.log(np.where(empty, 1.0, start))
  stop = np.log(np.where(empty, np.e, stop))
  asked = np.maximum(np.log(np.maximum(survey.end_SxM, 1.0)), stop[:, None])
  features = np.stack(
    [
      _standardised(source.features)[alive]
      for source, alive in zip(survey.sources, survey.alive_SxM, strict=True)
    ]
  )

  def seen(stop: np.ndarray, asked: np.ndarray) -> Observed:
    log_c = np.linspace(start, stop, POINTS, axis=1)
    loss = _losses(survey.curves, active, log_c)
    return Observed(log_c, loss, active, features, asked)

  beyond = np.where(active, asked - stop[:, None], np.nan)
  beyond[empty] = 0.0
  width = stop - start
  share = np.minimum(np.nanmedian(beyond, axis=1) / width, 1.0)
  ends = np.repeat(stop[:, None], asked.shape[1], axis=1)
  return seen(stop, asked), seen(stop - width * share / (1 + share), ends)


def calibrated(
  future: halving.Prediction,
  past: halving.Prediction,
  true_SxM: np.ndarray,
  active_SxM: np.ndarray,
) -> halving.Prediction:
  """Widens intervals by the errors of past predictions.

  After split conformal prediction (Lei et al. 2018), without its guarantee: past
  and future are not exchangeable, and curves are alike. A curve's score is its
  past error in units of the predicted interval. Intervals are stretched by the
  scores' quantile of LEVEL, corrected for their number (the largest score if
  there are fewer than nine), and never narrowed, since the errors of one
  allocation's curves are correlated.

  Args:
    future: predictions to calibrate.
    past: predictions of losses that are known by now.
    true_SxM: these losses.
    active_SxM: False where a prediction is arbitrary.
  """
  above = true_SxM > past.mean
  reach = np.where(above, past.hi - past.mean, past.mean - past.lo)
  with np.errstate(divide='ignore', invalid='ignore'):
    score = np.abs(true_SxM - past.mean) / reach
  score = np.where(reach > 0, score, 1.0)  # Without a width there is no unit.
  scale = np.ones((len(score), 1))
  for s, active in enumerate(active_SxM):
    if count := int(active.sum()):
      rank = min(math.ceil((count + 1) * LEVEL), count)
      scale[s] = max(1.0, np.sort(score[s, active])[rank - 1])
  mean = future.mean
  lo = mean - scale * (mean - future.lo)
  return halving.Prediction(mean, lo, mean + scale * (future.hi - mean))


def _losses(
  curves: Sequence[Sequence[curves_lib.Curve]],
  active: np.ndarray,
  log_c: np.ndarray,
) -> np.ndarray:
  """Losses [S, M, T] of each allocation's curves on its grid."""
  return np.array(
    [
      [
        curve.at_log(grid) if known else np.ones(POINTS)
        for curve, known in zip(row, knowns, strict=True)
      ]
      for grid, row, knowns in zip(log_c, curves, active, strict=True)
    ]
  )


def _standardised(features: Sequence[Mapping[str, float]]) -> np.ndarray:
  """Features [M, F] that all candidates have, in logs if all are positive."""
  names = [n for n in features[0] if all(n in each for each in features)]
  values = np.array([[each[n] for n in names] for each in features])
  values = values.reshape(len(features), len(names))
  positive = (values > 0).all(axis=0)
  values = np.where(positive, np.log(np.where(positive, values, 1.0)), values)
  spread = values.std(axis=0)
  return (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
