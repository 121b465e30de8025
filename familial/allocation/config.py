"""What a replay asks for."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import ml_collections

from familial.allocation import synthetic
from familial.core import errors
from familial.core import schema

LOSSES = ('final', 'mean')


@dataclasses.dataclass(frozen=True)
class Law:
  """The law that is fitted to what was trained.

  Attributes:
    form: of `familial.laws`; '' for none.
    where: conditions of the rows that count, as of `familial fit`: those of a
      run's first steps obey no law.
    beyond: it is asked for the best loss at so many times the largest compute
      of the whole grid.
  """

  form: str = 'chinchilla'
  where: tuple[str, ...] = ()
  beyond: float = 10.0

  def __post_init__(self) -> None:
    if not 0 < self.beyond < math.inf:
      raise errors.UserError(
        f'law.beyond: {self.beyond} is not allowed; it must be above 0'
      )


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
  """Allocations of budgets among known curves.

  Attributes:
    title: heads what is printed and drawn.
    cells: (candidates, budget in FLOPs) of each comparison.
    table: path of the curves; '' for synthetic ones.
    columns: our name -> the table's.
    curve: the table's columns whose values tell curves apart.
    loss: of this project's runs: mean or final.
    noises: of synthetic curves.
    curves: how many synthetic ones.
    constants: of their law.
    policies: to be compared.
    eta: one in so many survives a round.
    draws: random choices of the candidates.
    law: fitted to what was trained.
    seed: of the draws and the surrogates.
  """

  title: str
  cells: tuple[tuple[int, float], ...]
  table: str = ''
  columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
  curve: tuple[str, ...] = ()
  loss: str = 'final'
  noises: tuple[str, ...] = ('clean',)
  curves: int = 200
  constants: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: dict(synthetic.LAW)
  )
  policies: tuple[str, ...] = ('uniform', 'sh_lmc', 'law')
  eta: int = 2
  draws: int = 100
  law: Law = dataclasses.field(default_factory=Law)
  seed: int = 0

  def __post_init__(self) -> None:
    for key in ('cells', 'policies'):
      if not getattr(self, key):
        raise errors.UserError(f'{key}: is empty; it needs at least one')
    for noise in self.noises:
      if noise not in synthetic.NOISES:
        raise errors.UserError(
          f'noises: {noise!r} is not one of {", ".join(synthetic.NOISES)}'
          f'{errors.nearest(noise, synthetic.NOISES)}'
        )
    if set(self.constants) != set(synthetic.LAW):
      raise errors.UserError(
        f'constants: {", ".join(self.constants) or "none"}; those of the law are'
        f' {", ".join(synthetic.LAW)}'
      )
    for key, least in (('draws', 1), ('curves', 2), ('seed', 0)):
      value = getattr(self, key)
      if value < least:
        raise errors.UserError(f'{key}: {value}; at least {least} is needed')
    if self.loss not in LOSSES:
      raise errors.UserError(
        f'loss: {self.loss!r} is not one of {", ".join(LOSSES)}'
      )


def template() -> ml_collections.ConfigDict:
  """Returns a replay's config with every default filled in."""
  return ml_collections.ConfigDict(
    {'title': '', **schema.defaults(ReplayConfig)}
  )


def read(config: Mapping[str, Any]) -> ReplayConfig:
  """Returns the config of a replay."""
  return schema.read(ReplayConfig, config)
