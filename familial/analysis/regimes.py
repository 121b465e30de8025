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

Random vectors: the cosine of two in D dimensions has mean 0 and standard
deviation 1/sqrt(D), and its square mean 1/D. `alignment` and `departure` take off
what is measured between different tokens: for independent updates these very
numbers, and more where all tokens drift one way, as by a bias of two layers, or
updates share a few dimensions, which is neither a flow nor a disagreement of
layers. `step_spread` takes off the 1/(2 (D - 1)) by which the squared relative
length of a random step varies.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from familial import errors
from familial import student
from familial.analysis import trajectories

REGIMES = ('compositional', 'smooth', 'ensemble')
UNDECIDED = 'undecided'
LEAST_DEPTH = 4  # which has two middle layers
NAMED = 0.5  # strength from which on a regime is named
_RESAMPLES = 400

DEFINITIONS = {
  'alignment': 'mean cosine c between neighbouring updates of the middle '
  'layers, beyond that between different tokens, d: (c - d) / (1 - d)',
  'departure': 'root of the same of the mean squares of the cosines',
  'drift': 'd: what the updates of all tokens have in common',
  'step_spread': "spread over tokens of a middle layer's share of the token's "
  'turns, over its mean, less that of random steps',
  'early': trajectories.DEFINITIONS['early'],
  'stop_spread': 'standard deviation over tokens of the layer at which they '
  'settled, over the depth',
  'angle_exponent': 'slope of the logarithm of the mean turn of a middle layer '
  'on that of depth; of three depths or more',
  'loss_exponent': 'a of the loss c / depth^a + rest, where it was fitted',
}

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
    name: of DEFINITIONS.
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
  loss_exponent: student.Estimate | None = None,
) -> Answer:
  """Returns the regime of a network, or of several that differ in depth or seed.

  Args:
    networks: summaries of their states; those of fewer than 4 layers, which
      have no two middle ones, only count for the angle's exponent.
    loss_exponent: of the loss in depth, where it was fitted.

  Raises:
    UserError: if no network has 4 layers.
  """
  deep = [network for network in networks if network.depth >= LEAST_DEPTH]
  if not deep:
    raise errors.UserError(
      f'depths: {sorted({n.depth for n in networks})} are not allowed; the '
      f'regimes are told from neighbouring middle layers: at least {LEAST_DEPTH} layers'
    )
  rng = np.random.default_rng(0)
  drawn = [_draws(network, rng) for network in deep]
  values = _mean([statistics(network) for network in deep])
  resampled: list[dict[str, float]] = []
  if all(len(network.settled) > 1 for network in deep):
    resampled = [
      _mean(
        [
          statistics(network, times[index])
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
        [(1 - student.LEVEL) / 2, (1 + student.LEVEL) / 2],
      ).tolist()
    evidence.append(Evidence(name, value, low, high, _fits(name, value)))
  for name, slope in (
    ('angle_exponent', angle_exponent(networks)),
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


def statistics(
  network: trajectories.Summary, times: np.ndarray | None = None
) -> dict[str, float]:
  """Returns the statistics of DEFINITIONS that one network has.

  Args:
    network: of at least 4 layers.
    times: how often each group of tokens counts; once by default.
  """
  depth = network.depth
  cosine, other, share = (
    _middle(network, name, times)
    for name in ('cosine', 'cosine_other', 'path_share')
  )
  squares = [
    mean.mean**2 + mean.m2 / np.maximum(mean.count, 1)
    for mean in (cosine, other)
  ]
  variance = share.m2 / np.maximum(share.count, 1)
  relative = variance / np.maximum(share.mean, 1e-30) ** 2
  drift = _over(other.mean, other.count)
  chance = 1 / (2 * max(network.width - 1, 1))
  settled_L = np.einsum(
    'gl,g->l',
    network.settled,
    np.ones(len(network.settled)) if times is None else times,
  )
  settled_L = settled_L / max(settled_L.sum(), 1)
  layers = np.arange(depth + 1) / depth
  spread = settled_L @ layers**2 - (settled_L @ layers) ** 2
  return {
    'alignment': _beyond(_over(cosine.mean, cosine.count), drift),
    'departure': math.sqrt(
      max(
        0.0,
        _beyond(
          _over(squares[0], cosine.count), _over(squares[1], other.count)
        ),
      )
    ),
    'drift': drift,
    'step_spread': math.sqrt(max(0.0, _over(relative, share.count) - chance)),
    'early': float(settled_L[: int(trajectories.EARLY * depth) + 1].sum()),
    'stop_spread': math.sqrt(max(0.0, float(spread))),
  }


def angle_exponent(
  networks: Sequence[trajectories.Summary],
) -> student.Estimate | None:
  """Returns how a middle layer's mean turn falls with depth; None for fewer
  than three depths that have middle layers."""
  points = [
    (network.depth, middle_turn(network))
    for network in networks
    if network.depth >= 3
  ]
  return power(*zip(*points, strict=True)) if points else None


def middle_turn(network: trajectories.Summary) -> float:
  """Returns the mean turn of the middle layers, radians; 0 for fewer than 3
  layers, which have none."""
  turn = _middle(network, 'turn', None)
  return _over(turn.mean, turn.count)


def power(
  depths: Sequence[int], values: Sequence[float]
) -> student.Estimate | None:
  """Returns the power of depth that values above 0 follow; None for fewer than
  three depths."""
  x = np.log(np.asarray(depths, float))
  with np.errstate(divide='ignore'):
    y = np.log(np.asarray(values, float))
  if len(set(depths)) < 3 or not np.isfinite(y).all():
    return None
  return student.slope(x, y)


def of_record(record: Mapping[str, Any]) -> trajectories.Summary:
  """Returns what a probe's record (probe.json) keeps by groups of windows."""
  groups = record['groups']
  moments = {
    name: trajectories.Moments(
      *(
        np.asarray(groups[name][part], float)
        for part in trajectories.Moments._fields
      )
    )
    for name in trajectories.NEEDED
  }
  return trajectories.Summary(
    record['model']['width'], moments, {}, np.asarray(groups['settled'])
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


def _middle(
  network: trajectories.Summary, name: str, times: np.ndarray | None
) -> trajectories.Moments:
  moments = network.moments[name]
  where = trajectories.middle(network.depth, moments.count.shape[1])
  part = trajectories.Moments(*(x[:, where] for x in moments))
  return trajectories.pool(part, times)


def _beyond(value: float, chance: float) -> float:
  """A cosine, or a squared one, as a share of what chance leaves of 1."""
  return (value - chance) / max(1 - chance, 1e-6)


def _over(values: np.ndarray, count: np.ndarray) -> float:
  """The mean over layers that have values; 0 where none has."""
  some = count > 0
  return float(values[some].mean()) if some.any() else 0.0


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
    float(_middle(network, 'cosine', None).count.sum()) for network in networks
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
