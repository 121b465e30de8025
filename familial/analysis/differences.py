"""Paired differences between two kinds of networks.

Networks are paired by width, depth and seed, as dense models with those that have
exits. A difference is the mean over pairs with Student's interval: it contains the
noise between seeds, and no variation of shape.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

import numpy as np

from familial.analysis import middle
from familial.analysis import probe as probe_lib
from familial.core import errors
from familial.core.estimate import Estimate

# Quantities of a probe that are compared layer by layer.
LAYERS = ('turn', 'cosine', 'to_last', 'loss', 'skip', 'swap')
Key = tuple[int, int, int]
Statistic = tuple[str, int | None]


@dataclasses.dataclass(frozen=True)
class Difference:
  """One statistic of two kinds of networks.

  Attributes:
    name: of `middle.DEFINITIONS`, `middle_turn`, or of LAYERS.
    layer: of a quantity of LAYERS; None for the others.
    base: mean over the networks of the first kind.
    value: mean over those of the second kind.
    difference: `value` less `base`.
    pairs: number of pairs.
  """

  name: str
  layer: int | None
  base: float
  value: float
  difference: Estimate
  pairs: int


def compare(
  base: Sequence[probe_lib.Probe], others: Sequence[probe_lib.Probe]
) -> list[Difference]:
  """Returns how two kinds of networks differ.

  Args:
    base: probes of the first kind, of at least `middle.LEAST_DEPTH` layers.
    others: of the second kind. Probes without a partner are left out. Layers
      are compared where all pairs have one depth.

  Raises:
    UserError: if there is no pair, or a probe has two partners.
  """
  first, second = _by_key(base), _by_key(others)
  keys = [key for key in first if key in second]
  if not keys:
    raise errors.UserError('no two probes agree in width, depth and seed')
  pairs = [(_values(first[key]), _values(second[key])) for key in keys]
  by_layer = len({depth for _, depth, _ in keys}) == 1
  return [
    _difference(*name, np.array([[a[name], b[name]] for a, b in pairs]))
    for name in pairs[0][0]
    if all(name in values for pair in pairs for values in pair)
    and (by_layer or name[1] is None)
  ]


def _by_key(
  probes: Sequence[probe_lib.Probe],
) -> Mapping[Key, probe_lib.Probe]:
  result: dict[Key, probe_lib.Probe] = {}
  for probe in probes:
    key = (probe.model.width, probe.model.depth, probe.model.seed)
    if key in result:
      raise errors.UserError(
        f'two probes have the same width, depth and seed: {key}; pairs are not '
        'unique'
      )
    result[key] = probe
  return result


def _values(probe: probe_lib.Probe) -> dict[Statistic, float]:
  values: dict[Statistic, float] = {
    (name, None): value
    for name, value in middle.statistics(probe.network).items()
  }
  turn = middle.turn(probe.network)
  if turn is not None:
    values['middle_turn', None] = turn
  for name in LAYERS:
    for row in probe.quantities[name]:
      if row.mean is not None:
        values[name, row.layer] = row.mean
  return values


def _difference(
  name: str, layer: int | None, values_Px2: np.ndarray
) -> Difference:
  base, value = values_Px2.mean(axis=0)
  return Difference(
    name,
    layer,
    float(base),
    float(value),
    Estimate.of(values_Px2[:, 1] - values_Px2[:, 0]),
    len(values_Px2),
  )
