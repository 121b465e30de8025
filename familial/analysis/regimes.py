"""Which of three regimes the layers of a network are in, and how surely.

A regime predicts some statistics of how states move (arXiv 2602.05970):

| regime | steps | neighbouring updates | early stop | depth exponent |
|---|---|---|---|---|
| compositional | depend on the input | - | yes | set by the data |
| smooth | 1/l | correlated | no | 3 |
| ensemble | 1/l | nearly orthogonal | no | 1 |

`smooth` is smooth (procedural) dynamics, layers as steps of one flow; `ensemble`
is averaging, layers as independent estimates of one correction.

Each statistic fits a prediction by a number in [0, 1], by the bounds of BOUNDS:
0 at and beyond one, 1 at and beyond the other, linear between. A regime scores
the least of its fits: one prediction that fails is enough against it. The best
regime's *strength* is its score less the next one's; it is named where that is
at least a half, and otherwise the answer is `undecided`. So 1 means that all it
predicts holds and that each of the others predicts something that fails, and no
probability is claimed. `agreement` is the share of resamples of groups of tokens
with the same answer: how much of it could be chance.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np

from familial.analysis import middle
from familial.analysis import trajectories
from familial.core import errors
from familial.core import estimate

REGIMES = ('compositional', 'smooth', 'ensemble')
UNDECIDED = 'undecided'
NAMED = 0.5  # strength from which on a regime is named
_RESAMPLES = 400

# By statistic and regime: where the fit is 0 and where it is 1; of two pairs
# the lesser fit. A regime that predicts nothing of a statistic is left out.
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
  """A statistic and what the regimes make of it.

  Attributes:
    name: of middle.DEFINITIONS.
    value: measured; the mean over the networks given.
    low: of its interval at student.LEVEL; None where it is not known.
    high: likewise.
    fits: by regime that predicts it, how well in [0, 1].
  """

  name: str
  value: float
  low: float | None
  high: float | None
  fits: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Answer:
  """What the layers do.

  Attributes:
    regime: one of REGIMES, or UNDECIDED.
    strength: the best score less the next, in [0, 1].
    agreement: share of resamples with the same answer; None where there is
      nothing to resample.
    scores: by regime, in [0, 1].
    evidence: on which they rest.
    depths: of the networks.
    notes: what to know before it is believed.
  """

  regime: str
  strength: float
  agreement: float | None
  scores: dict[str, float]
  evidence: tuple[Evidence, ...]
  depths: tuple[int, ...]
  notes: tuple[str, ...]


def classify(
  networks: Sequence[trajectories.Summary],
  loss_exponent: estimate.Estimate | None = None,
) -> Answer:
  """Returns the regime of a network, or of several that differ in depth or seed.

  Args:
    networks: summaries of their states; those of fewer than 4 layers, which
      have no two middle ones, only count for the angle's exponent.
    loss_exponent: of the loss in depth, where it was fitted.

  Raises:
    UserError: if no network has 4 layers.
  """
  deep = [
    network for network in networks if network.depth >= middle.LEAST_DEPTH
  ]
  if not deep:
    raise errors.UserError(
      f'depths: {sorted({n.depth for n in networks})} are not allowed; the '
      f'regimes are told from neighbouring middle layers: at least {middle.LEAST_DEPTH} layers'
    )
  rng = np.random.default_rng(0)
  drawn = [_draws(network, rng) for network in deep]
  values = _mean([middle.statistics(network) for network in deep])
  resampled: list[dict[str, float]] = []
  if all(len(network.settled) > 1 for network in deep):
    resampled = [
      _mean(
        [
          middle.statistics(network, times[index])
          for network, times in zip(deep, drawn, strict=True)
        ]
      )
      for index in range(_RESAMPLES)
    ]
  evidence = []
  for name, value in values.items():
    low = high = None
    if resampled:
      low, high = np.quantile(
        [each[name] for each in resampled],
        [(1 - estimate.LEVEL) / 2, (1 + estimate.LEVEL) / 2],
      ).tolist()
    evidence.append(Evidence(name, value, low, high, _fits(name, value)))
  for name, slope in (
    ('angle_exponent', middle.angle_exponent(networks)),
    ('loss_exponent', loss_exponent),
  ):
    if slope is not None:
      evidence.append(
        Evidence(
          name, slope.value, slope.lo, slope.hi,
          _fits(name, slope.value),
        )
      )  # fmt: skip
  slopes = [each.fits for each in evidence if each.name not in values]
  regime, strength, scores = _decide([each.fits for each in evidence])
  same = [
    _decide([_fits(*pair) for pair in each.items()] + slopes)[0] == regime
    for each in resampled
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


def text(answer: Answer) -> str:
  """Returns one line on an answer."""
  regime = answer.regime
  if regime == UNDECIDED:
    scores = ', '.join(f'{k} {v:.2f}' for k, v in answer.scores.items())
    return f'{regime} ({scores})'
  if answer.agreement is None:
    return f'{regime}, strength {answer.strength:.2f}'
  return (
    f'{regime}, strength {answer.strength:.2f}, '
    f'{100 * answer.agreement:.0f} % of resamples agree'
  )


def _draws(
  network: trajectories.Summary, rng: np.random.Generator
) -> np.ndarray:
  groups = len(network.settled)
  return rng.multinomial(groups, np.full(groups, 1 / groups), _RESAMPLES)


def _mean(values: list[dict[str, float]]) -> dict[str, float]:
  return {
    name: float(np.mean([each[name] for each in values])) for name in values[0]
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
  best, after = sorted(REGIMES, key=lambda r: scores[r], reverse=True)[:2]
  strength = scores[best] - scores[after]
  return (best if strength >= NAMED else UNDECIDED), strength, scores


def _notes(
  networks: Sequence[trajectories.Summary],
  values: Mapping[str, float],
  evidence: Sequence[Evidence],
) -> tuple[str, ...]:
  notes = []
  if not any(each.name == 'angle_exponent' for each in evidence):
    notes.append(
      'fewer than three depths: that a step is as 1/depth was not looked at'
    )
  if min(network.depth for network in networks) < 8:
    notes.append(
      'fewer than 8 layers: even a smooth flow turns much from one layer to the '
      'next, and few neighbours are in the middle'
    )
  moved = sum(
    float(middle.pooled(network, 'cosine').count.sum()) for network in networks
  )
  if not moved:
    notes.append('no middle layer changes its state: there is nothing to tell')
  elif values['early'] > 0.9 or (
    values['early'] > 0.5 and values['stop_spread'] < 0.15
  ):
    notes.append(
      'all tokens stop early, or most at about one layer: the last layers are '
      'idle whatever the input is, which no regime predicts'
    )
  return tuple(notes)
