"""What a surrogate is asked and what it answers."""

from collections.abc import Callable
import math
from typing import NamedTuple

import jax
import numpy as np

LEVEL = 0.9  # of every predictive interval


class Observed(NamedTuple):
  """The survivors' curves so far: S allocations, each of M curves at T points.

  Attributes:
    log_c_SxT: ln FLOPs of the points, shared by the curves, evenly spaced and increasing.
    loss_SxMxT: nats, on the curves' running minima.
    active_SxM: False where a curve is not to be predicted; its numbers then mean
      nothing, and the others' predictions do not depend on it.
    features_SxMxF: of the candidates, standardised; F may be 0.
    log_end_SxM: ln FLOPs at which the loss is asked, at least the last point's.
  """

  log_c_SxT: np.ndarray
  loss_SxMxT: np.ndarray
  active_SxM: np.ndarray
  features_SxMxF: np.ndarray
  log_end_SxM: np.ndarray


class Prediction(NamedTuple):
  """The loss at `log_end`, in nats, and its interval of LEVEL; each [S, M]."""

  mean: np.ndarray
  lo: np.ndarray
  hi: np.ndarray


# To the observed and S keys (jax.random.split): allocations do not know of one another.
Surrogate = Callable[[Observed, jax.Array], Prediction]


def calibrated(
  told: Prediction,
  trial: Prediction,
  true_SxM: np.ndarray,
  active_SxM: np.ndarray,
) -> Prediction:
  """Returns predictions whose intervals reach as far as past errors did.

  After split conformal prediction (Lei et al. 2018), without its guarantee: past
  and future are not exchangeable, and curves are alike. The score of a curve is its
  past error in units of the interval that the surrogate gave. The interval is
  stretched by the scores' quantile of LEVEL, corrected for their number; of fewer
  than nine curves that is the largest score, which is short of LEVEL. Intervals are
  never narrowed: curves of one allocation err alike, and a few lucky ones would be
  believed.

  Args:
    told: predictions to calibrate.
    trial: those of losses that are known.
    true_SxM: these losses.
    active_SxM: False where a prediction means nothing.
  """
  above = true_SxM > trial.mean
  reach = np.where(above, trial.hi - trial.mean, trial.mean - trial.lo)
  with np.errstate(divide='ignore', invalid='ignore'):
    score = np.abs(true_SxM - trial.mean) / reach
  score = np.where(reach > 0, score, 1.0)  # That knew no doubt says nothing.
  scale = np.ones((len(score), 1))
  for s, active in enumerate(active_SxM):
    if count := int(active.sum()):
      rank = min(math.ceil((count + 1) * LEVEL), count)
      scale[s] = max(1.0, np.sort(score[s, active])[rank - 1])
  lo = told.mean - scale * (told.mean - told.lo)
  return Prediction(told.mean, lo, told.mean + scale * (told.hi - told.mean))
