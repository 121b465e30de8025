"""What exits say of given text, how far to believe them, what leaving costs.

Each token leaves at the first exit whose confidence reaches the threshold; the
last exit is always believed. The text is given, not generated: every exit reads
the same tokens, and a token that left early changes nothing for later ones. That
is exact for decoding with deferred computation, whose states are those of the
whole model.

Shapes: G exits, W windows, L positions of a window.
"""

from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import statistics

import numpy as np

from familial.training import evaluation

LEVEL = 0.95
_BINS = 15
_POINTS = 101  # of a curve, both ends included
# The least that no confidence reaches, as float32: confidences are compared so.
NEVER = float(np.nextafter(np.float32(1), np.float32(2)))
_Z = statistics.NormalDist().inv_cdf((1 + LEVEL) / 2)


@dataclasses.dataclass(frozen=True)
class Readings:
  """What exits say of the same held-out tokens.

  Attributes:
    exits: numbers of the exits, increasing.
    layers: the trunk's layers below each.
    nats_GxWxL: loss of each exit at each position.
    correct_GxWxL: whether the likeliest token is the target.
    confidences: [G, W, L], float32, by kind.
    counted_WxL: whether a position's target counts; where it does not, nothing
      is answered.
    documents_WxL: rows of their own within a window: no position of one attends
      to another's. They do not decrease.
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
  """What a choice of an exit for every token comes to.

  Layers are the trunk's; what exits add (norm, branch, unembedding) is not in
  them. A token that leaves at an exit needs the layers below it at its own
  position, and at every earlier position of its row, for it attends to them.
  `layers` counts the first alone, as if what was skipped were never needed: what
  a scheme pays that guesses the skipped states. `layers_deferred` counts what
  deferred computation has done at the end of the rows: a position that left
  early waits, and is taken through a segment when a later position of its row
  goes through it; it is spared only what no later position needs. It is exact,
  and grows with the length of the rows, here a window or, where documents are
  kept apart, a document's part of one.

  Attributes:
    threshold: confidence from which an exit is believed; None where none is.
    shares: of the tokens, answered by each exit.
    loss: mean, in nats per token.
    increase: of the loss over that of the last exit for all tokens, as a share
      of it.
    increase_low, increase_high: 95 % interval of `increase`, normal, paired: of
      the differences on the same tokens, with windows as independent; None for
      fewer than two windows.
    layers: per token, up to the exit that answers.
    layers_deferred: per token, with those taken in later.
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
  """Tokens whose largest probability is from `low` to below `high`.

  Attributes:
    low, high: ends; the last bin holds 1.
    tokens: how many.
    confidence: mean largest probability; None of no token.
    accuracy: share of tokens that were the likeliest; None of no token.
  """

  low: float
  high: float
  tokens: int
  confidence: float | None
  accuracy: float | None


def curve(readings: Readings, kind: str) -> list[Outcome]:
  """Returns the outcomes of thresholds from 0 to one that nothing reaches.

  Between these they are quantiles of the confidences of all exits but the last,
  so that from each to the next about as many tokens change their exit.

  Args:
    readings: of at least two exits.
    kind: of the confidence.
  """
  confidence = readings.confidences[kind]
  seen = confidence[:-1][:, readings.counted_WxL].ravel()
  shares = np.linspace(0, 1, _POINTS)[1:-1]
  # Values that occur, for one between two would be rounded to either.
  inner = np.quantile(seen, shares, method='inverted_cdf')
  grid = np.unique(np.concatenate([[0.0], inner, [NEVER]]))
  return [at(readings, kind, float(threshold)) for threshold in grid]


def at(readings: Readings, kind: str, threshold: float) -> Outcome:
  """Returns the outcome of one threshold for confidences of a kind."""
  # In float32, as confidences are compared in decoding.
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
  """Returns the outcome of the lowest threshold with a loss not too high.

  It is chosen and measured on the same tokens.

  Args:
    outcomes: a curve.
    loss_increase: most that the mean loss may be above the last exit's, as a
      share of it, at least 0.
  """
  return next(o for o in outcomes if o.increase <= loss_increase)


def outcome(
  readings: Readings,
  exit_WxL: np.ndarray,
  threshold: float | None,
  own_WxL: np.ndarray | None = None,
) -> Outcome:
  """Returns the outcome of a choice of exits.

  Args:
    readings: what they say.
    exit_WxL: which of the exits answers each position, from 0.
    threshold: that chose, or None.
    own_WxL: nats of the answers, where they are not those of the readings.
  """
  counted_WxL, nats_GxWxL = readings.counted_WxL, readings.nats_GxWxL
  count = len(readings.exits)
  if own_WxL is None:
    own_WxL = np.take_along_axis(nats_GxWxL, exit_WxL[None], axis=0)[0]
  own_W, deep_W = (
    evaluation.by_window(nats_WxL, counted_WxL)
    for nats_WxL in (own_WxL, nats_GxWxL[-1])
  )
  increase, error = evaluation.ratio(own_W - deep_W, deep_W)
  layers_G = np.asarray(readings.layers)
  answers_G = np.bincount(exit_WxL[counted_WxL], minlength=count)
  # From the end, the deepest exit so far. A document's keys are above all keys
  # of those after it, so the maximum begins anew with each.
  offset_WxL = readings.documents_WxL * (count + 1)
  key_WxL = np.where(counted_WxL, exit_WxL, -1) - offset_WxL
  deepest_WxL = np.maximum.accumulate(key_WxL[:, ::-1], axis=1)[:, ::-1]
  taken_WxL = (deepest_WxL + offset_WxL)[counted_WxL]
  tokens = counted_WxL.sum()
  return Outcome(
    threshold=threshold,
    shares=tuple((answers_G / tokens).tolist()),
    loss=float(own_W.sum() / tokens),
    increase=increase,
    increase_low=None if error is None else increase - _Z * error,
    increase_high=None if error is None else increase + _Z * error,
    layers=float(answers_G @ layers_G / tokens),
    layers_deferred=float(layers_G[taken_WxL].mean()),
  )


def reliability(confidence: np.ndarray, correct: np.ndarray) -> tuple[Bin, ...]:
  """Returns how often tokens [N] were right, by how sure [N] the exit was."""
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
  """Returns the mean distance of confidence and accuracy, by tokens.

  Source: Guo et al., arXiv 1706.04599, equation 3.
  """
  apart = total = 0.0
  for b in bins:
    total += b.tokens
    if b.confidence is not None and b.accuracy is not None:
      apart += b.tokens * abs(b.confidence - b.accuracy)
  return apart / total
