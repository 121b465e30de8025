"""Two kinds of networks side by side: what their layers do differently.

The networks are paired, as dense models with those that have exits, of one shape
and seed; a difference is that of a pair, and its interval is Student's t over
pairs: it holds the noise between seeds and nothing of other shapes.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from familial.analysis import middle
from familial.core import errors
from familial.core import estimate

# Quantities of a probe's record that are compared layer by layer.
LAYERS = ('turn', 'cosine', 'to_last', 'loss', 'skip', 'swap')


@dataclasses.dataclass(frozen=True)
class Difference:
  """One statistic of both kinds.

  Attributes:
    name: of middle.DEFINITIONS, `middle_turn`, or of LAYERS.
    layer: of a quantity of LAYERS, as its record numbers it; None of the rest.
    one: mean over the networks of the first kind.
    other: of the second kind.
    difference: `other` less `one`.
    low: of its interval at student.LEVEL; None for a single pair.
    high: likewise.
    pairs: it is a mean over.
  """

  name: str
  layer: int | None
  one: float
  other: float
  difference: float
  low: float | None
  high: float | None
  pairs: int


def compare(
  one: Sequence[Mapping[str, Any]],
  other: Sequence[Mapping[str, Any]],
  by: Sequence[str] = ('width', 'depth', 'seed'),
) -> list[Difference]:
  """Returns how two kinds of networks differ.

  Args:
    one: probes' records, of networks of at least 4 layers.
    other: likewise; who has no partner among `one` is left out, and the other
      way round.
    by: keys of the records' `model` in which partners agree, and no two of one
      kind. Layers are compared where all pairs are of one depth.

  Raises:
    UserError: if there is no pair, or a choice between partners.
  """
  first, second = _keyed(one, by), _keyed(other, by)
  keys = [key for key in first if key in second]
  if not keys:
    raise errors.UserError(f'no two probes agree in {", ".join(by)}')
  pairs = [(_values(first[key]), _values(second[key])) for key in keys]
  names = [
    name
    for name in pairs[0][0]
    if all(name in values for pair in pairs for values in pair)
  ]
  if (
    len(
      {r['model']['depth'] for key in keys for r in (first[key], second[key])}
    )
    > 1
  ):
    names = [name for name in names if name[1] is None]
  return [
    _difference(
      name, np.array([[pair[0][name], pair[1][name]] for pair in pairs])
    )
    for name in names
  ]


def _keyed(
  found: Sequence[Mapping[str, Any]], by: Sequence[str]
) -> dict[tuple[Any, ...], Mapping[str, Any]]:
  keyed: dict[tuple[Any, ...], Mapping[str, Any]] = {}
  for record in found:
    key = tuple(record['model'][name] for name in by)
    if key in keyed:
      raise errors.UserError(
        f'two probes have the same {", ".join(by)}: {key}; pairs must be told '
        'apart'
      )
    keyed[key] = record
  return keyed


def _values(
  record: Mapping[str, Any],
) -> dict[tuple[str, int | None], float]:
  network = middle.of_record(record)
  values: dict[tuple[str, int | None], float] = {
    (name, None): value for name, value in middle.statistics(network).items()
  }
  values['middle_turn', None] = middle.turn(network)
  for name in LAYERS:
    for row in record['quantities'][name]:
      if row['mean'] is not None:
        values[name, row['layer']] = row['mean']
  return values


def _difference(
  name: tuple[str, int | None], values_Px2: np.ndarray
) -> Difference:
  one, other = values_Px2.mean(axis=0)
  apart = values_Px2[:, 1] - values_Px2[:, 0]
  found = estimate.Estimate.of(apart)
  return Difference(
    *name, float(one), float(other), found.value, found.lo, found.hi, len(apart)
  )
