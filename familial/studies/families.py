"""The study of families: the same sizes by exits, by growth and one by one.

Every way brings the same sizes to the same budgets (`equal` says which), on the
same data with the same seeds. Losses are compared as logarithms, by pairs of the
same seed, budget and size. Intervals are Student's; the scatter between seeds is
pooled over all pairs of the study, since it is about the same in each and there
are few seeds.
"""

from collections import defaultdict
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import math
import statistics
from typing import Annotated
from typing import Any
from typing import NamedTuple

import numpy as np

from familial.core import errors
from familial.core import schema
from familial.core import text
from familial.core.estimate import Estimate
from familial.core.estimate import quantile
from familial.expansion import config as growth_config
from familial.expansion import ledger
from familial.expansion import maps
from familial.model import config as model_config
from familial.model import flops as flops_lib
from familial.studies import execution
from familial.studies import shapes
from familial.studies import study
from familial.studies import sweep
from familial.training import config as train_config

RunConfig = train_config.RunConfig
KINDS = ('separate', 'chain', 'exits')


@dataclasses.dataclass(frozen=True)
class Way:
  """A way to a family.

  Attributes:
    kind: `separate` (each size trained alone), `chain` (each grown from the one
      before, and trained on) or `exits` (one model with an exit for each).
    against: ways that it is compared with, size by size; the first one is its
      counterpart, which compute and savings are measured by.
    sizes: (width, depth, heads) of each, the smallest first; () for the study's.
    keep_exits: in a chain, old last layers stay exits, so that its last model is
      all members at once.
    growth: of a chain, from size to size.
    rate_width: of training (see `TrainConfig`).
    alike: every size has the same budget, instead of its share by parameters.
  """

  kind: Annotated[str, schema.one_of(*KINDS)]
  against: tuple[str, ...] = ()
  sizes: tuple[shapes.Shape, ...] = ()
  keep_exits: bool = False
  growth: growth_config.GrowthConfig = growth_config.NONE
  rate_width: int = 0
  alike: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(shapes.TrainedConfig):
  """A study of families.

  Attributes:
    sizes: (width, depth, heads) of each member, the smallest first.
    budgets: C, in FLOPs.
    ways: to the family, by name.
    equal: what costs C in every way: `member`, the largest size, and the others
      in their shares of it; or `total`, all that is trained.
    seeds: each way is trained with each.
    warmup: warm-up as a share of a run's steps.
  """

  sizes: Annotated[tuple[shapes.Shape, ...], schema.NOT_EMPTY]
  budgets: Annotated[tuple[schema.Positive, ...], schema.NOT_EMPTY]
  ways: Annotated[dict[str, Way], schema.NOT_EMPTY]
  equal: Annotated[str, schema.one_of('member', 'total')] = 'member'
  seeds: Annotated[tuple[int, ...], schema.NOT_EMPTY] = (0,)
  warmup: schema.Fraction = 0.05

  def __post_init__(self) -> None:
    schema.check(self)
    self.tokens_per_step()
    for name, way in self.ways.items():
      schema.check(way, f'ways.{name}')
      self._check_way(f'ways.{name}', name, way)

  def _check_way(self, key: str, name: str, way: Way) -> None:
    sizes = way.sizes or self.sizes
    one_width = len({(width, heads) for width, _, heads in sizes}) == 1
    others = [other for other in self.ways if other != name]
    for other in way.against:
      errors.require(
        other in others, f'{key}.against', other, f'one of {", ".join(others)}'
      )
    for holds, field, allowed in (
      (not way.alike or way.kind == 'separate', 'alike',
       'False: only separate sizes have budgets of their own'),
      (not way.keep_exits or way.kind == 'chain', 'keep_exits',
       'False: only a chain has exits to keep'),
      (len(sizes) == len(self.sizes), 'sizes', f'{len(self.sizes)} sizes'),
      (one_width or not (way.kind == 'exits' or way.keep_exits), 'sizes',
       'of one width and number of heads, which exits share'),
    ):  # fmt: skip
      errors.require(holds, f'{key}.{field}', getattr(way, field), allowed)

  @property
  def names(self) -> list[str]:
    """Names of the ways: those trained size by size, chains, then exits."""
    return sorted(self.ways, key=lambda way: KINDS.index(self.ways[way].kind))


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
    members: run and exit, 1..G, of every size.
  """

  runs: list[RunConfig]
  stages: list[ledger.Stage]
  members: list[tuple[RunConfig, int]]


def families(config: Config) -> dict[Place, Family]:
  """Returns the families of a study.

  What two ways train alike, as a chain's first stage and the same size by itself,
  is one run of both.

  Raises:
    UserError: if a size cannot be, or cannot grow into the next.
  """
  known: dict[RunConfig, RunConfig] = {}
  return {
    place: _family(config, place, known)
    for place in itertools.starmap(
      Place, itertools.product(config.names, config.budgets, config.seeds)
    )
  }


def _family(
  config: Config, place: Place, known: dict[RunConfig, RunConfig]
) -> Family:
  way, seq_len = config.ways[place.way], config.data.seq_len
  name = f'{place.way}_c{shapes.short(place.budget)}_s{place.seed}'
  with errors.within(name):
    models = list(_dense_models(config, way))
    depths = tuple(model.depth for model in models)
    shares = ledger.shares(models, seq_len)
    if way.alike:
      shares = [1.0] * len(models)
    if way.kind == 'separate' and config.equal == 'total':
      shares = [share / sum(shares) for share in shares]
    budgets = [place.budget * share for share in shares]
    if way.kind == 'exits':
      models = [dataclasses.replace(models[-1], exits=depths)]
      budgets = budgets[-1:]
    elif way.keep_exits:
      models = [
        dataclasses.replace(model, exits=depths[:number])
        for number, model in enumerate(models, start=1)
      ]
    stages = ledger.stages(
      models,
      budgets,
      seq_len,
      config.train['batch_size'],
      grown=way.kind == 'chain',
    )
    runs = _runs(config, place, name, stages, known)
  if way.kind == 'exits' or way.keep_exits:
    return Family(runs, stages, [(runs[-1], e + 1) for e in range(len(depths))])
  return Family(runs, stages, [(run, 1) for run in runs])


def _dense_models(
  config: Config, way: Way
) -> Iterator[model_config.ModelConfig]:
  """Yields the sizes as dense models.

  A width that its predecessor's does not divide has the epsilon with which it
  grows exactly, in every way.
  """
  before: model_config.ModelConfig | None = None
  for shape in way.sizes or config.sizes:
    model = shapes.model(config, shape, (shape[1],))
    if before is not None and model.width >= before.width:
      eps = maps.norm_eps(before, model.width)
      model = dataclasses.replace(model, norm_eps=eps)
    yield model
    before = model


def _runs(
  config: Config,
  place: Place,
  name: str,
  stages: Sequence[ledger.Stage],
  known: dict[RunConfig, RunConfig],
) -> list[RunConfig]:
  """Returns a family's runs; a chain's grow from one another.

  `known` has the runs of other families by what they train, which are taken
  instead of equal ones; it is added to.
  """
  way = config.ways[place.way]
  runs: list[RunConfig] = []
  for number, stage in enumerate(stages, start=1):
    before = runs[-1] if runs and way.kind == 'chain' else None
    run = shapes.run(
      config,
      FAMILIES.run_keys,
      cell=name if way.kind == 'exits' else f'{name}_{number}',
      arm=place.way,
      budget=stage.budget - (stage.total - stage.flops),
      model=stage.model,
      growth=_growth(way, before.model, stage.model)
      if before
      else growth_config.NONE,
      steps=stage.steps,
      warmup_steps=round(config.warmup * stage.steps),
      seed=place.seed,
      rate_width=way.rate_width,
      init_from=f'../{before.cell}' if before else '',
    )
    unnamed = dataclasses.replace(run, cell='', arm='', budget=0.0)
    runs.append(known.setdefault(unnamed, run))
  return runs


def _growth(
  way: Way, was: model_config.ModelConfig, now: model_config.ModelConfig
) -> growth_config.GrowthConfig:
  """Returns the way's growth of the axes that differ; refuses what cannot be."""
  growth = dataclasses.replace(
    way.growth,
    width=way.growth.width if now.width != was.width else '',
    depth=way.growth.depth if now.depth != was.depth else '',
  )
  maps.plan(growth, was, now)
  return growth


@dataclasses.dataclass(frozen=True)
class NamedWay:
  """A way of the study and its name."""

  way: str
  how: Way


@dataclasses.dataclass(frozen=True)
class Member:
  """A trained member of a family.

  Attributes:
    way: of the family.
    budget: C of the family, FLOPs.
    seed: of the family.
    size: rank by parameters, 1 the smallest.
    run: name of its run.
    exit: of the run, 1..G.
    width: of its model.
    layer: number of its layers.
    params: N of its stand-alone model, without embeddings.
    loss: held-out nats per token.
    loss_per_byte: held-out nats per byte.
    flops: training FLOPs, those of runs that it grew from included.
    tokens: training tokens of its run.
    tokens_seen: and of the runs that it grew from.
    epochs: passes over the training tokens.
  """

  way: str
  budget: float
  seed: int
  size: int
  run: str
  exit: int
  width: int
  layer: int
  params: int
  loss: float
  loss_per_byte: float
  flops: float
  tokens: int
  tokens_seen: int
  epochs: float

  @property
  def model(self) -> tuple[str, int]:
    """Run and exit: two ways may have one model as their member."""
    return self.run, self.exit


@dataclasses.dataclass(frozen=True)
class Loss:
  """Geometric mean over seeds of a size's loss, nats per token."""

  way: str
  budget: float
  size: int
  params: int
  seeds: int
  loss: Estimate


@dataclasses.dataclass(frozen=True)
class Compared:
  """Log of a size's loss over that of the way it is compared with.

  Where both are one run, as a chain's first stage may be, there is no row.
  """

  way: str
  against: str
  budget: float
  size: int
  params: int
  seeds: int
  log_ratio: Estimate


@dataclasses.dataclass(frozen=True)
class Overall:
  """Mean log ratio over a way's sizes and budgets."""

  way: str
  against: str
  log_ratio: Estimate


@dataclasses.dataclass(frozen=True)
class EqualLoss:
  """Compute that a way needs for its counterpart's loss, over the counterpart's.

  Attributes:
    slope: s of the way's own losses ~ C^-s.
    compute: exp(log ratio / s); the error of s is left out of the interval.
  """

  way: str
  against: str
  budget: float
  size: int
  slope: float
  compute: Estimate


@dataclasses.dataclass(frozen=True)
class Saving:
  """Share of compute that a chain saves beside its counterpart.

  Attributes:
    ledger: of the FLOPs of both.
    saving: of the FLOPs that the counterpart would have needed for the chain's
      losses: sum_i C_i exp(-d_i / s_i), d_i the log of the chain's loss over the
      counterpart's and s_i of the counterpart's loss ~ C^-s. The error of s is
      left out of the interval.
  """

  way: str
  against: str
  budget: float
  ledger: float
  saving: Estimate


@dataclasses.dataclass(frozen=True)
class Measured:
  """A mean over held-out windows and its standard error; None if unknown."""

  value: float
  error: float | None

  def __str__(self) -> str:
    return text.give_or_take(self.value, self.error)


@dataclasses.dataclass(frozen=True)
class Agreement:
  """How far two models p and q agree on the next token; nats per token.

  Attributes:
    kl: KL(p || q).
    kl_back: KL(q || p).
    js: Jensen-Shannon divergence.
    top1: share of tokens that both hold the likeliest.
  """

  kl: Measured
  kl_back: Measured
  js: Measured
  top1: Measured


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two members: `adjacent` sizes of a family, or one size of two `seeds`."""

  kind: str
  way: str
  budget: float
  seed: int
  size: int
  other_size: int
  other_seed: int
  agreement: Agreement


@dataclasses.dataclass(frozen=True)
class Storage:
  """Storage of a family, and cost of serving each member.

  Attributes:
    models: number of models stored; members of one model share its parameters.
    bytes: of their parameters in float32.
    member_bytes: of each member by itself, the smallest first.
    forward_flops: per token, of each member by itself.
  """

  way: str
  models: int
  bytes: int
  member_bytes: tuple[int, ...]
  forward_flops: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Stage:
  """A run of a family; see `expansion.ledger.Stage`."""

  cell: str
  width: int
  depth: int
  exits: tuple[int, ...]
  budget: float
  steps: int
  tokens: int
  flops: float
  total: float

  @property
  def steps_off(self) -> float:
    """How far the stage is from its budget, in its own steps."""
    return ledger.steps_off(vars(self))


@dataclasses.dataclass(frozen=True)
class Ledger:
  """Training cost of a family; seeds cost the same.

  Attributes:
    flops: of all its runs.
    over: `flops` over its counterpart's, less 1; None without one.
    saving: of a chain, the share that it costs less than its own sizes trained
      alone.
  """

  way: str
  kind: str
  budget: float
  flops: float
  over: float | None
  saving: float | None
  stages: tuple[Stage, ...]


@text.brief
@dataclasses.dataclass(frozen=True)
class Tables:
  """Tables of a study of families; each row class says what its fields are."""

  ways: tuple[NamedWay, ...]
  overall: tuple[Overall, ...]
  compared: tuple[Compared, ...]
  losses: tuple[Loss, ...]
  equal_loss: tuple[EqualLoss, ...]
  saving: tuple[Saving, ...]
  agreement: tuple[Pair, ...]
  storage: tuple[Storage, ...]
  ledger: tuple[Ledger, ...]
  members: tuple[Member, ...]


# Members with a result by family, the smallest first.
Found = Mapping[Place, Sequence[Member]]


class Families(execution.TrainedStudy[Config, Tables]):
  """The study of ways to a family."""

  kind = 'families'
  config_class = Config
  tables_class = Tables
  run_keys = ('steps', 'warmup_steps', 'seed', 'rate_width', 'init_from')

  def runs(self, config: Config) -> list[RunConfig]:
    """Returns all runs, parents before what grows from them."""
    return execution.named_once(
      [run for family in families(config).values() for run in family.runs]
    )

  def plan(
    self, config: Config, runs: Sequence[RunConfig]
  ) -> Mapping[str, Any]:
    """Returns `equal` and the ledger, for `plan.json`."""
    del runs
    rows = [dataclasses.asdict(row) for row in ledger_rows(config)]
    return {'equal': config.equal, 'ledger': rows}

  def plan_lines(self, plan: Mapping[str, Any]) -> Iterator[str]:
    """Yields the ledger."""
    head = ('way', 'C', 'size', 'tokens', 'steps', 'FLOPs', 'in all', 'budget',
            'off by, steps')  # fmt: skip
    yield ''
    yield text.table(
      head,
      (
        (
          row['way'],
          f'{row["budget"]:.2g}',
          str(number),
          str(stage['tokens']),
          str(stage['steps']),
          *(f'{stage[key]:.3g}' for key in ('flops', 'total', 'budget')),
          f'{ledger.steps_off(stage):+.2f}',
        )
        for row in plan['ledger']
        for number, stage in enumerate(row['stages'], start=1)
      ),
    )
    for row in plan['ledger']:
      saved = row['saving']
      least = (
        '' if saved is None else f', {saved:.1%} less than its sizes alone'
      )
      yield f'{row["way"]}: {row["flops"]:.3g} FLOPs in all{least}'

  def flags(
    self, results: study.Results, tables: Tables, cost: study.Cost
  ) -> Iterator[str]:
    """Yields what may make the runs unreliable, and what could not be measured."""
    yield from super().flags(results, tables, cost)
    if not results.keeps_models:
      yield 'models were not kept: how far members agree is not measured'

  def analyse(
    self, config: Config, results: study.Results
  ) -> tuple[str, Tables]:
    """Returns the losses of all ways compared, and what the ways cost.

    Agreement is measured anew from the checkpoints of the runs; there is none
    where results are kept without their runs.
    """
    found = members(config, results)
    compared = compare(config, found)
    tables = Tables(
      ways=tuple(NamedWay(name, config.ways[name]) for name in config.names),
      overall=tuple(_overall(config, compared)),
      compared=compared,
      losses=tuple(_losses(found)),
      equal_loss=tuple(_equal_loss(config, found, compared)),
      saving=tuple(_saving(config, found, compared)),
      agreement=tuple(_agreement(config, found, results)),
      storage=tuple(_storage(config)),
      ledger=tuple(ledger_rows(config)),
      members=tuple(itertools.chain.from_iterable(found.values())),
    )
    return _line(tables), tables


def ledger_rows(config: Config) -> Iterator[Ledger]:
  """Yields what each family costs."""
  first = {
    (place.way, place.budget): family
    for place, family in families(config).items()
    if place.seed == config.seeds[0]
  }
  flops = {
    place: sum(stage.flops for stage in family.stages)
    for place, family in first.items()
  }
  for (name, budget), family in first.items():
    way = config.ways[name]
    other = flops.get((way.against[0], budget)) if way.against else None
    yield Ledger(
      way=name,
      kind=way.kind,
      budget=budget,
      flops=flops[name, budget],
      over=flops[name, budget] / other - 1 if other else None,
      saving=ledger.saving(family.stages) if way.kind == 'chain' else None,
      stages=tuple(
        study.record_of(
          Stage,
          stage,
          cell=run.cell,
          width=run.model.width,
          depth=run.model.depth,
          exits=run.model.exits,
        )
        for run, stage in zip(family.runs, family.stages, strict=True)
      ),
    )


def members(config: Config, results: study.Results) -> Found:
  """Returns the members whose runs have finished; families without one are left
  out."""
  rows = {run.cell: run.rows for run in results.finished}
  found = {}
  for place, family in families(config).items():
    tokens: Iterable[int] = [stage.tokens for stage in family.stages]
    if config.ways[place.way].kind == 'chain':
      tokens = itertools.accumulate(tokens)
    seen = dict(zip([run.cell for run in family.runs], tokens, strict=True))
    trained = [
      study.record_of(
        Member,
        rows[run.cell][exit_ - 1],
        **place._asdict(),
        size=size,
        run=run.cell,
        tokens_seen=seen[run.cell],
      )
      for size, (run, exit_) in enumerate(family.members, start=1)
      if run.cell in rows
    ]
    if trained:
      found[place] = trained
  return found


def _losses(found: Found) -> Iterator[Loss]:
  logs: Groups = defaultdict(dict)
  for member in itertools.chain.from_iterable(found.values()):
    key = (member.way, member.budget, member.size, member.params)
    logs[key][member.model] = math.log(member.loss)
  for key, count, mean in means(logs):
    yield Loss(*key, count, mean.map(math.exp))


def compare(config: Config, found: Found) -> tuple[Compared, ...]:
  """Returns each size beside the same size of the ways it is compared with."""
  logs: Groups = defaultdict(dict)
  for place, trained in found.items():
    for against in config.ways[place.way].against:
      others = {
        other.size: other
        for other in found.get(place._replace(way=against), ())
      }
      for member in trained:
        other = others.get(member.size)
        if other is not None and member.model != other.model:
          key = (place.way, against, place.budget, member.size, member.params)
          pair = (member.model, other.model)
          logs[key][pair] = math.log(member.loss / other.loss)
  # Ways share the runs that they are compared with.
  shared = {key[1:4]: len(group) - 1 for key, group in logs.items()}
  return tuple(
    Compared(way, against, budget, size, params, count, mean)
    for (way, against, budget, size, params), count, mean in means(
      logs, sum(shared.values())
    )
  )


# Values by what they are of, and then by the models that they are from.
Groups = dict[tuple[Any, ...], dict[Any, float]]


def means(
  groups: Groups, degrees: int | None = None
) -> Iterator[tuple[tuple[Any, ...], int, Estimate]]:
  """Yields key, size and mean of each group, with Student's interval.

  Args:
    groups: values that scatter about their means alike; two groups of the same
      models count once. No mean has an interval where no group has two values.
    degrees: of freedom, where groups share models; by default all of theirs.
  """
  distinct = [
    np.array(list(group.values()))
    for group in {tuple(group): group for group in groups.values()}.values()
  ]
  own, scale = sum(len(values) - 1 for values in distinct), None
  if own:
    square = sum(float(np.sum((v - v.mean()) ** 2)) for v in distinct)
    scale = quantile(min(own, degrees or own)) * math.sqrt(square / own)
  for key, group in groups.items():
    half = None if scale is None else scale / math.sqrt(len(group))
    mean = float(np.mean(list(group.values())))
    yield key, len(group), Estimate.around(mean, half)


def _overall(config: Config, compared: Sequence[Compared]) -> Iterator[Overall]:
  for name in config.names:
    for against in config.ways[name].against:
      rows = [r for r in compared if (r.way, r.against) == (name, against)]
      if rows:
        logs = [row.log_ratio for row in rows]
        halves = [log.hi - log.value for log in logs if log.hi is not None]
        half = None
        # Seeds are shared by the sizes of a family: their scatters are taken as
        # one, not as independent, and only budgets average it.
        if len(halves) == len(rows):
          budgets = len({row.budget for row in rows})
          half = float(np.mean(halves)) / math.sqrt(budgets)
        value = float(np.mean([log.value for log in logs]))
        yield Overall(name, against, Estimate.around(value, half))


def _equal_loss(
  config: Config, found: Found, compared: Sequence[Compared]
) -> Iterator[EqualLoss]:
  slopes = _slopes(found)
  for row in compared:
    slope = slopes.get((row.way, row.size), 0.0)
    if slope > 0 and row.against == config.ways[row.way].against[0]:
      compute = _multiple(row.log_ratio, slope)
      yield EqualLoss(
        row.way, row.against, row.budget, row.size, slope, compute
      )


def _multiple(log_ratio: Estimate, slope: float) -> Estimate:
  return log_ratio.map(lambda log: math.exp(log / slope))


def _saving(
  config: Config, found: Found, compared: Sequence[Compared]
) -> Iterator[Saving]:
  slopes = _slopes(found)
  chains = [name for name in config.names if config.ways[name].kind == 'chain']
  for way, budget in itertools.product(chains, config.budgets):
    against = (*config.ways[way].against, '')[0]
    logs = {
      row.size: row.log_ratio
      for row in compared
      if (row.way, row.against, row.budget) == (way, against, budget)
    }
    chain, alone = (
      next((m for p, m in found.items() if p[:2] == (name, budget)), ())
      for name in (way, against)
    )
    whole = len(chain) == len(alone) == len(config.sizes)
    falls = all(slopes.get((against, size), 0.0) > 0 for size in logs)
    if not (logs and whole and falls):
      continue
    spent, needed, half = max(m.flops for m in chain), 0.0, 0.0
    for other in alone:
      log, slope = (
        logs.get(other.size, Estimate(0)),
        slopes[against, other.size],
      )
      term = other.flops * math.exp(-log.value / slope)
      needed += term
      if log.hi is not None:
        half += term / slope * (log.hi - log.value)
    yield Saving(
      way,
      against,
      budget,
      ledger=1 - spent / sum(m.flops for m in alone),
      saving=Estimate(
        1 - spent / needed,
        1 - spent / (needed - half) if 0 < half < needed else None,
        1 - spent / (needed + half) if half else None,
      ),
    )


def _slopes(found: Found) -> dict[tuple[str, int], float]:
  """Returns s of loss ~ C^-s for each way and size, over the budgets."""
  points: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
  for member in itertools.chain.from_iterable(found.values()):
    point = math.log(member.budget), math.log(member.loss)
    points[member.way, member.size].append(point)
  return {
    key: -statistics.linear_regression(*zip(*values, strict=True)).slope
    for key, values in points.items()
    if len({x for x, _ in values}) > 1
  }


def _agreement(
  config: Config, found: Found, results: study.Results
) -> Iterator[Pair]:
  """Yields how far members agree: adjacent sizes of a family, and, as a scale,
  the same member of two seeds."""
  if not results.keeps_models:
    return
  from familial.convert import load
  from familial.data import batches
  from familial.data import packing
  from familial.training import evaluation

  train = FAMILIES.runs(config)[0].train
  heldout = batches.heldout(
    packing.load(config.data),
    config.data,
    train.eval_tokens,
    train.eval_batch_size,
  )
  loaded: dict[str, load.Model] = {}

  def model(member: Member) -> evaluation.Member:
    if member.run not in loaded:
      loaded[member.run] = load.load(sweep.folder(results.folder, member.run))
    found = loaded[member.run]
    return evaluation.Member(found.params, found.config.model, member.exit)

  def pair(kind: str, one: Member, other: Member) -> Pair:
    measured = evaluation.agreement(model(one), model(other), heldout)
    return Pair(
      kind,
      *(one.way, one.budget, one.seed, one.size),
      other.size,
      other.seed,
      Agreement(**{key: Measured(*value) for key, value in measured.items()}),
    )

  for place, trained in found.items():
    for one, other in itertools.pairwise(trained):
      if other.size == one.size + 1:
        yield pair('adjacent', one, other)
    if place.seed != config.seeds[0]:
      sizes = {member.size: member for member in trained}
      for one in found.get(place._replace(seed=config.seeds[0]), ()):
        if one.size in sizes:
          yield pair('seeds', one, sizes[one.size])
    if place.seed == config.seeds[-1]:
      loaded.clear()


def _storage(config: Config) -> Iterator[Storage]:
  for place, family in families(config).items():
    if (place.budget, place.seed) == (config.budgets[0], config.seeds[0]):
      stored = {run.cell: run.model for run, _ in family.members}
      alone = [run.model.submodel(exit_) for run, exit_ in family.members]
      yield Storage(
        place.way,
        len(stored),
        sum(map(_bytes, stored.values())),
        member_bytes=tuple(map(_bytes, alone)),
        forward_flops=tuple(
          flops_lib.forward(model, config.data.seq_len) for model in alone
        ),
      )


def _bytes(model: model_config.ModelConfig) -> int:
  """Returns the bytes of a model's parameters in float32."""
  import jax

  from familial.model import transformer

  arrays = jax.eval_shape(lambda: transformer.init(model, jax.random.key(0)))
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(arrays))


def _line(tables: Tables) -> str:
  """Returns each way's loss over that of the one it is compared with."""
  parts = [
    f'{row.way} {row.log_ratio.map(math.expm1):%} over {row.against}'
    for row in tables.overall
  ]
  parts += [
    f'{row.way} at {row.budget:.2g} FLOPs saves {row.ledger:.1%} by its ledger, '
    f'{row.saving:%} at its losses'
    for row in tables.saving
  ]
  return 'loss, geometric mean of all sizes: ' + '; '.join(
    parts or ['none compared']
  )


FAMILIES = Families()
