"""Configuration of a replay of allocations among known curves."""

from collections.abc import Mapping
import dataclasses
from typing import Annotated
from typing import Any

import ml_collections

from familial.allocation import synthetic
from familial.core import errors
from familial.core import schema

LOSSES = ('final', 'mean')

_Noise = Annotated[str, schema.one_of(*synthetic.NOISES)]


@dataclasses.dataclass(frozen=True)
class Law:
  """The law that is fitted to the trained rows.

  Attributes:
    form: name of a form of `familial.laws`; '' for no law.
    where: conditions on the rows that are fitted, as `familial fit --where`
      takes them; rows of a run's first steps follow no law.
    beyond: compute at which the law predicts the best loss, as a multiple of
      the largest compute of the grid.
  """

  form: str = 'chinchilla'
  where: tuple[str, ...] = ()
  beyond: schema.Positive = 10.0

  def __post_init__(self) -> None:
    schema.check(self, 'law')


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
  """Allocations of budgets among known curves.

  Attributes:
    title: title of the printed table and the figures.
    cells: (number of candidates, budget in FLOPs) of each comparison.
    table: path of the table of curves; '' for synthetic curves.
    columns: the table's column for each of this project's names.
    maximize: whether the curves are of accuracies, whose error is replayed.
    wide: patterns of a wide table's columns by quantity, as `laws.read` takes them.
    curve: columns of the table whose values identify a curve.
    loss: loss by which this project's runs are compared, `final` or `mean`.
    noises: kinds of noise of the synthetic curves.
    curves: number of synthetic curves.
    constants: constants of the synthetic curves' law.
    policies: names of the policies that are compared.
    eta: Successive Halving factor: 1/eta of the candidates survive each round.
    draws: number of random draws of the candidates.
    law: law fitted to the trained rows.
    seed: seed of the draws and the surrogates.
  """

  title: str
  cells: Annotated[tuple[tuple[int, float], ...], schema.NOT_EMPTY]
  table: str = ''
  columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
  maximize: bool = False
  wide: Mapping[str, str] = dataclasses.field(default_factory=dict)
  curve: tuple[str, ...] = ()
  loss: Annotated[str, schema.one_of(*LOSSES)] = 'final'
  noises: tuple[_Noise, ...] = ('clean',)
  curves: Annotated[int, schema.at_least(2)] = 200
  constants: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: dict(synthetic.LAW)
  )
  policies: Annotated[tuple[str, ...], schema.NOT_EMPTY] = (
    'uniform',
    'sh_lmc',
    'law',
  )
  eta: int = 2
  draws: schema.Count = 100
  law: Law = Law()
  seed: schema.Index = 0

  def __post_init__(self) -> None:
    schema.check(self)
    errors.require(
      bool(self.table) or not self.maximize,
      'maximize',
      self.maximize,
      'False without a table: synthetic curves are of losses',
    )
    errors.require(
      set(self.constants) == set(synthetic.LAW),
      'constants',
      dict(self.constants),
      f'a value for each of {", ".join(synthetic.LAW)}',
    )


def template() -> ml_collections.ConfigDict:
  """Returns a replay's config with every default filled in."""
  return ml_collections.ConfigDict(
    {'title': '', **schema.defaults(ReplayConfig)}
  )


def read(config: Mapping[str, Any]) -> ReplayConfig:
  """Returns the config of a replay."""
  return schema.read(ReplayConfig, config)
