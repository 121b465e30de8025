"""Early exits by thresholds on confidence, and the calibration of exits.

Each token leaves at the first exit whose confidence reaches the threshold; the
last exit always answers. The text is given, not generated: all exits read the
same tokens, and a token that leaves early does not change later ones. This is
exact for decoding with deferred computation, whose states are the full model's.

Shapes: G exits, W windows, L positions of a window.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import statistics

import numpy as np

from familial.core import estimate
from familial.training import evaluation

_BINS = 15
_POINTS = 101  # of a curve, both ends included
# The least float32 that no confidence reaches: confidences are compared so.
NEVER = float(np.nextafter(np.float32(1), np.float32(2)))
_Z = statistics.NormalDist().inv_cdf((1 + estimate.LEVEL) / 2)
_HALVINGS = 8


@dataclasses.dataclass(frozen=True)
class Readings:
  """Predictions of exits for the same held-out tokens.

  Attributes:
    exits: numbers of the exits, increasing.
    layers: trunk layers below each exit.
    nats_GxWxL: loss of each exit at each position.
    correct_GxWxL: whether the likeliest token is the target.
    confidences: confidence [G, W, L], float32, by kind.
    counted_WxL: whether a position's target counts.
    documents_WxL: index of each position's document within its window, not
      decreasing; positions attend within their document only.
  """

  exits: tuple[int, ...]
  layers: tuple[int, ...]
  nats_GxWxL: np.ndarray
  correct_GxWxL: np.ndarray
  confidences: Mapping[str, np.ndarray]
  counted_WxL: np.ndarray
  documents_WxL: np.ndarray


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Loss and cost of one choice of an exit for every token.

  Layers are the trunk's; an exit's own norm, branch and unembedding are not
  counted. Positions attend to earlier ones, so a skipped layer may be needed
  later. `layers` does not count that: it is the cost of schemes that guess the
  skipped states. `layers_deferred` counts the layers that deferred computation,
  which is exact, has computed at the end of each row (a window, or the part of
  a document in it): a position is computed through a segment once a later
  position of its row goes through it. It grows with the length of the rows.

  Attributes:
    threshold: confidence from which an exit answers; None without threshold.
    shares: share of the tokens that each exit answers.
    loss: mean loss in nats per token.
    increase: relative increase of the loss over the last exit's.
    increase_low, increase_high: 95 % interval of `increase` (normal, paired on
      tokens, windows independent); None for fewer than two windows.
    layers: mean layers per token, up to the exit that answers.
    layers_deferred: mean layers per token, those computed later included.
  """

  threshold: float | None
  shares: tuple[float, ...]
  loss: float
  increase: float
  increase_low: float | None
  increase_high: float | None
  layers: float
  layers_deferred: float


@dataclasses.dataclass(frozen=True)
class Bin:
  """Tokens whose largest probability is in [low, high); the last bin holds 1.

  Attributes:
    low, high: ends of the bin.
    tokens: number of tokens.
    confidence: mean largest probability; None without tokens.
    accuracy: share of tokens predicted correctly; None without tokens.
  """

  low: float
  high: float
  tokens: int
  confidence: float | None
  accuracy: float | None


def curve(readings: Readings, kind: str) -> list[Outcome]:
  """Returns the outcomes of thresholds from 0 to one that nothing reaches.

  The thresholds between are quantiles of the confidences of all exits but the
  last, so that about as many tokens change their exit from each to the next.
  """
  confidence = readings.confidences[kind]
  seen = confidence[:-1][:, readings.counted_WxL].ravel()
  shares = np.linspace(0, 1, _POINTS)[1:-1]
  # Values that occur: one between two would be rounded to either.
  inner = np.quantile(seen, shares, method='inverted_cdf')
  grid = np.unique(np.concatenate([[0.0], inner, [NEVER]]))
  return [at(readings, kind, float(threshold)) for threshold in grid]


def at(readings: Readings, kind: str, threshold: float) -> Outcome:
  """Returns the outcome of one threshold on a kind of confidence."""
  # In float32, as decoding compares confidences.
  sure = readings.confidences[kind] >= np.float32(threshold)
  sure[-1] = True
  return outcome(readings, np.argmax(sure, axis=0), threshold)


def oracle(readings: Readings) -> Outcome:
  """Returns the outcome of the exit with the lowest loss for every token.

  No choice among these exits has a lower loss; it needs to know the target.
  """
  return outcome(readings, np.argmin(readings.nats_GxWxL, axis=0), None)


def threshold_for(
  outcomes: Sequence[Outcome], loss_increase: float = 0.01
) -> Outcome:
  """Returns the first outcome of a curve whose loss increase is allowed.

  The threshold is chosen and measured on the same tokens.
  """
  return next(o for o in outcomes if o.increase <= loss_increase)


def bisect(
  outcome_at: Callable[[float], Outcome], loss_increase: float
) -> Outcome:
  """Returns the outcome of the lowest threshold tried that is allowed.

  Eight halvings; the loss need not fall monotonically with the threshold, so a
  lower one may exist. The threshold is chosen and measured on the same tokens.

  Args:
    outcome_at: function from a threshold to its outcome.
    loss_increase: largest relative increase of the loss allowed, at least 0.
  """
  low, high = 0.0, NEVER
  best = outcome_at(high)
  for _ in range(_HALVINGS):
    middle = (low + high) / 2
    found = outcome_at(middle)
    if found.increase <= loss_increase:
      best, high = found, middle
    else:
      low = middle
  return best


def outcome(
  readings: Readings,
  exit_WxL: np.ndarray,
  threshold: float | None,
  nats_WxL: np.ndarray | None = None,
) -> Outcome:
  """Returns the outcome of a choice of exits.

  Args:
    readings: predictions of the exits.
    exit_WxL: index of the exit that answers each position.
    threshold: threshold of the choice, if any.
    nats_WxL: losses of the answers, where they are not those of the readings.
  """
  counted_WxL, last_WxL = readings.counted_WxL, readings.nats_GxWxL[-1]
  count = len(readings.exits)
  if nats_WxL is None:
    nats_WxL = np.take_along_axis(readings.nats_GxWxL, exit_WxL[None], axis=0)[
      0
    ]
  own_W, last_W = (
    evaluation.by_window(nats, counted_WxL) for nats in (nats_WxL, last_WxL)
  )
  increase, error = evaluation.ratio(own_W - last_W, last_W)
  layers_G = np.asarray(readings.layers)
  answers_G = np.bincount(exit_WxL[counted_WxL], minlength=count)
  # The deepest exit from each position to the end of its row. A document's keys
  # exceed those of all later ones, so the maximum begins anew with each.
  offset_WxL = readings.documents_WxL * (count + 1)
  key_WxL = np.where(counted_WxL, exit_WxL, -1) - offset_WxL
  deepest_WxL = np.maximum.accumulate(key_WxL[:, ::-1], axis=1)[:, ::-1]
  deferred = (deepest_WxL + offset_WxL)[counted_WxL]
  tokens = counted_WxL.sum()
  return Outcome(
    threshold=threshold,
    shares=tuple((answers_G / tokens).tolist()),
    loss=float(own_W.sum() / tokens),
    increase=increase,
    increase_low=None if error is None else increase - _Z * error,
    increase_high=None if error is None else increase + _Z * error,
    layers=float(answers_G @ layers_G / tokens),
    layers_deferred=float(layers_G[deferred].mean()),
  )


def reliability(confidence: np.ndarray, correct: np.ndarray) -> tuple[Bin, ...]:
  """Returns the reliability diagram of tokens [N]: accuracy by confidence."""
  number = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
  tokens = np.bincount(number, minlength=_BINS)
  sure, right = (
    np.bincount(number, weights=values, minlength=_BINS)
    for values in (confidence, correct)
  )
  return tuple(
    Bin(
      low=i / _BINS,
      high=(i + 1) / _BINS,
      tokens=int(tokens[i]),
      confidence=float(sure[i] / tokens[i]) if tokens[i] else None,
      accuracy=float(right[i] / tokens[i]) if tokens[i] else None,
    )
    for i in range(_BINS)
  )


def calibration_error(bins: Iterable[Bin]) -> float:
  """Returns the expected calibration error.

  Source: Guo et al., arXiv 1706.04599, equation 3.
  """
  gap = total = 0.0
  for b in bins:
    total += b.tokens
    if b.confidence is not None and b.accuracy is not None:
      gap += b.tokens * abs(b.confidence - b.accuracy)
  return gap / total
