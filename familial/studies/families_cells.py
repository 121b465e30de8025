"""The runs of a study of families, and which of them each member is.

Every way gets the same sizes to the same budgets (`equal` says which), on the
same data with the same seeds.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any
from typing import NamedTuple

from familial.core import errors
from familial.expansion import config as growth_config
from familial.expansion import ledger
from familial.expansion import maps
from familial.model import config as model_config
from familial.studies import cells as cells_lib
from familial.studies import families_config
from familial.training import config as train_config

FamiliesConfig = families_config.FamiliesConfig
KINDS = families_config.KINDS
NONE = growth_config.NONE
# What a run decides for itself.
RUN_KEYS = ('steps', 'warmup_steps', 'seed', 'rate_width', 'init_from')


class Place(NamedTuple):
  """A family of the study: one way, at one budget, with one seed."""

  way: str
  budget: float
  seed: int


class Family(NamedTuple):
  """The runs of a family.

  Attributes:
    runs: in order.
    stages: what each costs.
    members: the run and the exit, 1..G, of every size.
  """

  runs: list[train_config.RunConfig]
  stages: list[ledger.Stage]
  members: list[tuple[train_config.RunConfig, int]]


def build(study: FamiliesConfig) -> list[train_config.RunConfig]:
  """Returns all runs, parents before what grows from them."""
  runs = [run for family in families(study).values() for run in family.runs]
  return list(dict.fromkeys(runs))


def families(study: FamiliesConfig) -> dict[Place, Family]:
  """Returns the families of a study.

  What two ways do alike, as a chain's first stage and the same size by itself,
  is one run of both.

  Raises:
    UserError: if a size cannot be, or cannot grow into the next.
  """
  # Whose names come first: those of single models.
  names = sorted(
    study.ways, key=lambda name: KINDS.index(study.ways[name].kind)
  )
  places = itertools.product(names, study.budgets, study.seeds)
  known: dict[Any, train_config.RunConfig] = {}
  return {
    place: _shared(_family(study, place), known)
    for place in itertools.starmap(Place, places)
  }


def _shared(family: Family, known: dict[Any, train_config.RunConfig]) -> Family:
  """Returns a family with runs that are known already in the place of its own.

  Args:
    family: runs that grow from one another, or from none.
    known: by what they do; added to.
  """
  by_cell: dict[str, train_config.RunConfig] = {}
  for run in family.runs:
    parent = by_cell.get(run.train.init_from.removeprefix('../'))
    init_from = f'../{parent.cell}' if parent else ''
    run_ = dataclasses.replace(
      run, train=dataclasses.replace(run.train, init_from=init_from)
    )
    does = dataclasses.replace(run_, cell='', arm='', budget=0.0)
    by_cell[run.cell] = known.setdefault(does, run_)
  return family._replace(
    runs=[by_cell[run.cell] for run in family.runs],
    members=[(by_cell[run.cell], exit_) for run, exit_ in family.members],
  )


def _family(study: FamiliesConfig, place: Place) -> Family:
  way, seq_len = study.ways[place.way], study.data.seq_len
  name = f'{place.way}_c{cells_lib.short(place.budget)}_s{place.seed}'
  try:
    dense = list(_models(study, way))
    shares = ledger.shares(dense, seq_len)
    if way.alike:
      shares = [1.0] * len(dense)
    if way.kind == 'separate' and study.equal == 'total':
      shares = [share / sum(shares) for share in shares]
    budgets = [place.budget * share for share in shares]
    depths = tuple(model.depth for model in dense)
    models = dense
    if way.kind == 'exits':
      models, budgets = [_with_exits(dense[-1], depths)], budgets[-1:]
    elif way.keep_exits:
      models = [
        _with_exits(model, depths[:number])
        for number, model in enumerate(dense, start=1)
      ]
    batch_size = _batch_size(study)
    stages = ledger.stages(
      models, budgets, seq_len, batch_size, grown=way.kind == 'chain'
    )
    runs = list(_runs(study, place, name, stages))
  except errors.UserError as error:
    raise errors.UserError(f'{name}: {error}') from None
  if way.kind == 'exits' or way.keep_exits:
    members = [(runs[-1], exit_) for exit_ in range(1, len(dense) + 1)]
  else:
    members = [(run, 1) for run in runs]
  return Family(runs, stages, members)


def _models(
  study: FamiliesConfig, way: families_config.Way
) -> Iterator[model_config.ModelConfig]:
  """Yields the sizes as dense models.

  A width that its predecessor's does not divide has the epsilon with which it
  grows exactly, in every way.
  """
  before: model_config.ModelConfig | None = None
  for shape in way.sizes or study.sizes:
    model = cells_lib.model(study, shape, (shape[1],))
    if before is not None and model.width >= before.width:
      eps = maps.norm_eps(before, model.width)
      model = dataclasses.replace(model, norm_eps=eps)
    yield model
    before = model


def _with_exits(
  model: model_config.ModelConfig, depths: Sequence[int]
) -> model_config.ModelConfig:
  return dataclasses.replace(model, exits=tuple(depths))


def _batch_size(study: FamiliesConfig) -> int:
  if 'batch_size' not in study.train:
    raise errors.UserError('train.batch_size: is missing')
  return int(study.train['batch_size'])


def _runs(
  study: FamiliesConfig,
  place: Place,
  name: str,
  stages: Sequence[ledger.Stage],
) -> Iterator[train_config.RunConfig]:
  """Yields a family's runs; a chain's grow from one another."""
  way = study.ways[place.way]
  before: train_config.RunConfig | None = None
  for number, stage in enumerate(stages, start=1):
    cell = f'{name}_{number}' if way.kind != 'exits' else name
    grows = way.kind == 'chain'
    train: dict[str, Any] = {
      **study.train,
      'steps': stage.steps,
      'warmup_steps': round(study.warmup * stage.steps),
      'seed': place.seed,
      'rate_width': way.rate_width,
      'init_from': f'../{before.cell}' if before and grows else '',
    }
    run = train_config.RunConfig(
      cell=cell,
      arm=place.way,
      budget=stage.budget - (stage.total - stage.flops),
      model=stage.model,
      data=study.data,
      train=cells_lib.make(
        train_config.TrainConfig, 'train', RUN_KEYS, train, study.train
      ),
      layout=study.layout,
      growth=_growth(way, before.model, stage.model)
      if before and grows
      else NONE,
    )
    yield run
    before = run


def _growth(
  way: families_config.Way,
  was: model_config.ModelConfig,
  now: model_config.ModelConfig,
) -> growth_config.GrowthConfig:
  """Returns the way's growth, of the axes that differ; refuses what cannot be."""
  growth = dataclasses.replace(
    way.growth,
    width=way.growth.width if now.width != was.width else '',
    depth=way.growth.depth if now.depth != was.depth else '',
  )
  maps.plan(growth, was, now)
  return growth
