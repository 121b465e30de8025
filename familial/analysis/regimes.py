"""Classifies the layers of a network into one of three regimes.

A regime predicts some statistics of how states move (arXiv 2602.05970):

| regime | steps | neighbouring updates | early stop | depth exponent |
|---|---|---|---|---|
| compositional | depend on the input | - | yes | set by the data |
| smooth | 1/l | correlated | no | 3 |
| ensemble | 1/l | nearly orthogonal | no | 1 |

`smooth` is smooth (procedural) dynamics: layers are steps of one flow. `ensemble`
is averaging: layers are independent estimates of one correction.

Each statistic fits a prediction by a number in [0, 1], from BOUNDS: 0 at and
beyond one bound, 1 at and beyond the other, linear between. A regime's score is
the least of its fits, so one failed prediction excludes it. The *strength* is the
best score less the next one; below NAMED the answer is `undecided`. A strength of
1 means that all predictions of the regime hold and each other regime has one that
fails; it is not a probability. The *agreement* is the share of resamples of groups
of tokens with the same answer: it measures sampling noise.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np

from familial.analysis import middle
from familial.analysis import trajectories
from familial.core import errors
from familial.core import estimate
from familial.core.estimate import Estimate

REGIMES = ('compositional', 'smooth', 'ensemble')
UNDECIDED = 'undecided'
NAMED = 0.5  # the least strength at which a regime is named
_RESAMPLES = 400
# By statistic and regime: the values at which the fit is 0 and 1; with two pairs
# the lesser fit counts. A regime that does not predict a statistic is left out.
BOUNDS: dict[str, dict[str, tuple[tuple[float, float], ...]]] = {
  'alignment': {
    'smooth': ((0.2, 0.5),),
    'ensemble': ((-0.5, -0.2), (0.5, 0.2)),
  },
  'departure': {'ensemble': ((0.6, 0.3),)},
  'step_spread': {
    'compositional': ((0.3, 0.6),),
    'smooth': ((0.9, 0.5),),
    'ensemble': ((0.9, 0.5),),
  },
  'early': {
    'compositional': ((0.05, 0.2), (0.98, 0.9)),
    'smooth': ((0.2, 0.05),),
    'ensemble': ((0.2, 0.05),),
  },
  'stop_spread': {'compositional': ((0.1, 0.2),)},
  'angle_exponent': {
    'smooth': ((-1.75, -1.25), (-0.25, -0.75)),
    'ensemble': ((-1.75, -1.25), (-0.25, -0.75)),
  },
  'loss_exponent': {
    'smooth': ((1.5, 2.5),),
    'ensemble': ((0.25, 0.5), (2.5, 1.5)),
  },
}


@dataclasses.dataclass(frozen=True)
class Evidence:
  """A statistic, and how well it fits the regimes.

  Attributes:
    name: of `middle.DEFINITIONS`.
    value: mean over the networks; its interval is by bootstrap over groups of
      tokens, or the exponent's own.
    fits: in [0, 1], by regime that predicts the statistic.
  """

  name: str
  value: Estimate
  fits: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Answer:
  """The regime of one network or several.

  Attributes:
    regime: one of REGIMES, or UNDECIDED.
    strength: the best score less the next, in [0, 1].
    agreement: share of resamples with the same answer; None if there is nothing
      to resample.
    scores: by regime, in [0, 1].
    evidence: the statistics behind the scores.
    depths: of the networks.
    notes: limits of the answer.
  """

  regime: str
  strength: float
  agreement: float | None
  scores: dict[str, float]
  evidence: tuple[Evidence, ...]
  depths: tuple[int, ...]
  notes: tuple[str, ...]

  def __str__(self) -> str:
    if self.regime == UNDECIDED:
      scores = ', '.join(f'{k} {v:.2f}' for k, v in self.scores.items())
      return f'{self.regime} ({scores})'
    agreement = (
      ''
      if self.agreement is None
      else f', {100 * self.agreement:.0f} % of resamples agree'
    )
    return f'{self.regime}, strength {self.strength:.2f}{agreement}'


def classify(
  networks: Sequence[trajectories.NetworkStatistics],
  loss_exponent: Estimate | None = None,
) -> Answer:
  """Returns the regime of a network, or of several that differ in depth or seed.

  Args:
    networks: statistics of their states; those below `middle.LEAST_DEPTH`
      layers count for the exponent of the angle alone.
    loss_exponent: fitted exponent of depth in the loss.

  Raises:
    UserError: if no network has `middle.LEAST_DEPTH` layers.
  """
  deep = [
    network for network in networks if network.depth >= middle.LEAST_DEPTH
  ]
  if not deep:
    raise errors.UserError(
      f'depths: {sorted({n.depth for n in networks})} are not allowed; regimes '
      'are told from neighbouring middle layers, which need at least '
      f'{middle.LEAST_DEPTH} layers'
    )
  values = _means([middle.statistics(network) for network in deep])
  resampled = _resampled(deep)
  evidence = []
  for name, value in values.items():
    ends: list[float | None] = [None, None]
    if resampled:
      ends = np.quantile(
        [resample[name] for resample in resampled],
        [(1 - estimate.LEVEL) / 2, (1 + estimate.LEVEL) / 2],
      ).tolist()
    evidence.append(Evidence(name, Estimate(value, *ends), _fits(name, value)))
  exponents = [
    Evidence(name, exponent, _fits(name, exponent.value))
    for name, exponent in (
      ('angle_exponent', middle.angle_exponent(networks)),
      ('loss_exponent', loss_exponent),
    )
    if exponent is not None
  ]
  evidence += exponents
  regime, strength, scores = _decide([item.fits for item in evidence])
  shared = [item.fits for item in exponents]
  same = [
    _decide([_fits(*item) for item in resample.items()] + shared)[0] == regime
    for resample in resampled
  ]
  return Answer(
    regime=regime,
    strength=strength,
    agreement=float(np.mean(same)) if same else None,
    scores=scores,
    evidence=tuple(evidence),
    depths=tuple(sorted(network.depth for network in networks)),
    notes=_notes(deep, values, evidence),
  )


def _resampled(
  networks: Sequence[trajectories.NetworkStatistics],
) -> list[dict[str, float]]:
  """Returns the mean statistics for each resample of the groups of tokens.

  [] if a network has a single group.
  """
  rng = np.random.default_rng(0)
  draws = []
  for network in networks:
    groups = len(network.settled)
    if groups < 2:
      return []
    draws.append(
      rng.multinomial(groups, np.full(groups, 1 / groups), _RESAMPLES)
    )
  return [
    _means(
      [
        middle.statistics(network, times[index])
        for network, times in zip(networks, draws, strict=True)
      ]
    )
    for index in range(_RESAMPLES)
  ]


def _means(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
  return {
    name: float(np.mean([row[name] for row in values])) for name in values[0]
  }


def _fits(name: str, value: float) -> dict[str, float]:
  return {
    regime: min(
      min(1.0, max(0.0, (value - none) / (full - none)))
      for none, full in bounds
    )
    for regime, bounds in BOUNDS.get(name, {}).items()
  }


def _decide(
  fits: Sequence[Mapping[str, float]],
) -> tuple[str, float, dict[str, float]]:
  """Returns the regime, its strength, and all scores."""
  scores = {
    regime: min(fit[regime] for fit in fits if regime in fit)
    for regime in REGIMES
  }
  best, second = sorted(REGIMES, key=lambda r: scores[r], reverse=True)[:2]
  strength = scores[best] - scores[second]
  return (best if strength >= NAMED else UNDECIDED), strength, scores


def _notes(
  networks: Sequence[trajectories.NetworkStatistics],
  values: Mapping[str, float],
  evidence: Sequence[Evidence],
) -> tuple[str, ...]:
  notes = []
  if not any(item.name == 'angle_exponent' for item in evidence):
    notes.append('fewer than three depths: steps of 1/depth were not checked')
  if min(network.depth for network in networks) < 8:
    notes.append(
      'fewer than 8 layers: even a smooth flow turns much between layers, and few '
      'neighbours are in the middle'
    )
  moving = sum(
    float(middle.pooled(network, 'cosine').count.sum()) for network in networks
  )
  if not moving:
    notes.append('no middle layer changes its state: there is nothing to tell')
  elif values['early'] > 0.9 or (
    values['early'] > 0.5 and values['stop_spread'] < 0.15
  ):
    notes.append(
      'all tokens stop early, or most at about one layer: the last layers are '
      'idle for every input, which no regime predicts'
    )
  return tuple(notes)
