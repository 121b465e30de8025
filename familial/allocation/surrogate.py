"""What a surrogate is asked and what it answers."""

from collections.abc import Callable
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
