"""A live allocation: a budget that drives real training, round by round.

Each round's decision is on disk before the next round begins, and runs continue
from their checkpoints: a killed allocation continues exactly where it stopped.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import json
import math
import pathlib
from typing import Annotated
from typing import Any

from familial.allocation import config as allocation_config
from familial.allocation import curves as curves_lib
from familial.allocation import halving
from familial.allocation import optimal_design
from familial.allocation import policies
from familial.allocation import replay
from familial.allocation import rounds as rounds_lib
from familial.allocation import surrogate
from familial.core import errors
from familial.core import run_folder
from familial.core import schema
from familial.core import storage
from familial.core import text
from familial.core.estimate import Estimate
from familial.laws import fit_record
from familial.laws import forms
from familial.laws import inference
from familial.model import config as model_config
from familial.model import flops as flops_lib
from familial.studies import execution
from familial.studies import shapes
from familial.studies import study
from familial.studies import sweep
from familial.training import config as train_config

RunConfig = train_config.RunConfig
ROUNDS = 'rounds.jsonl'
LAW = allocation_config.Law('familial_total')
ALLOCATED, FULL = 'allocated', 'full'  # laws, and folders of `fits/`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(shapes.TrainedConfig):
  """Candidates that are trained as a policy decides, round by round.

  Attributes:
    train: settings of TrainConfig that all runs share. The schedule is
      `constant` or `wsd`, which decays in the last `decay_fraction` before
      `horizon` alone, so that a run that is stopped early is a valid short run.
    shapes: (width, depth, heads) of the candidates.
    horizon: FLOPs to which a candidate is trained at most.
    budget: FLOPs of all candidates together.
    granularities: G; each shape with each is a candidate.
    policy: name of the policy that ranks the survivors.
    eta: Successive Halving factor: 1/eta of the candidates survive each round.
    loss: loss by which runs are compared, `final` or `mean` over exits.
    full: train all candidates to the horizon afterwards, to compare the
      allocation with the whole grid.
    warmup: warm-up as a share of the horizon's steps.
    law: law fitted to the trained rows.
  """

  shapes: Annotated[tuple[shapes.Shape, ...], schema.NOT_EMPTY]
  horizon: schema.Positive
  budget: float
  granularities: Annotated[tuple[int, ...], schema.NOT_EMPTY] = (1,)
  policy: str = 'sh_ensemble_power_law'
  eta: int = 2
  loss: Annotated[str, schema.one_of(*allocation_config.LOSSES)] = 'final'
  full: bool = False
  warmup: schema.Fraction = 0.02
  law: allocation_config.Law = LAW

  def __post_init__(self) -> None:
    schema.check(self)
    halving.check(self.candidates, self.budget, self.eta)
    policy = policies.get(self.policy)
    errors.require(
      policy.live, 'policy', self.policy, 'one that does not know the future'
    )
    if self.law.form:
      forms.get(self.law.form)
    policy.check(self.law)
    self.check_schedule()

  @property
  def candidates(self) -> int:
    """Number of candidates."""
    return len(self.shapes) * len(self.granularities)

  @property
  def survivors(self) -> tuple[int, ...]:
    """Number of candidates in each round; () if the policy prunes none."""
    return policies.get(self.policy).survivors(self.candidates, self.eta)

  @property
  def rounds(self) -> int:
    """Number of rounds."""
    return len(self.survivors) or optimal_design.ROUNDS

  @property
  def far(self) -> float:
    """FLOPs to which the law is extrapolated."""
    return self.law.beyond * self.horizon

  @property
  def steady(self) -> float:
    """Share of a run's steps before its rate decays.

    Losses of the decay would rank candidates by how near they are to their ends,
    so candidates compete without it.
    """
    if self.train['schedule'] != 'wsd':
      return 1.0
    default = train_config.TrainConfig.decay_fraction
    return float(1 - self.train.get('decay_fraction', default))


def _candidate(
  config: Config, shape: shapes.Shape, granularity: int
) -> RunConfig:
  """Returns a candidate as a run to the horizon."""
  width, depth, _ = shape
  name = f'w{width}_d{depth}_g{granularity}'
  with errors.within(f'candidate {name}'):
    exits = model_config.even_exits(depth, granularity)
    model = shapes.model(config, shape, exits)
    step = config.tokens_per_step() * flops_lib.train(
      model, config.data.seq_len
    )
    steps = math.floor(config.horizon / step)
    # A policy without a bracket may give one candidate everything.
    first = len(config.survivors) * config.candidates or 1
    if steps < 1 or config.budget / first < step:
      raise errors.UserError(
        f'budget: {config.budget:g} FLOPs give it {config.budget / first:.3g} in'
        f' the first round, and horizon allows {config.horizon:.3g}; one step is'
        f' {step:.3g}'
      )
    return shapes.run(
      config,
      LIVE.run_keys,
      cell=name,
      arm='candidate',
      budget=config.horizon,
      model=model,
      steps=steps,
      warmup_steps=round(config.warmup * steps),
    )


def allocate(
  config: Config,
  runs: Sequence[RunConfig],
  workdir: pathlib.Path,
  options: sweep.Options = sweep.Options(),
) -> rounds_lib.Allocation:
  """Allocates what is left of the budget; returns the whole allocation.

  Raises:
    Incomplete: if a candidate failed in a round, which then waits for it.
  """
  path = workdir / ROUNDS

  def on_round(closed: list[rounds_lib.Round]) -> None:
    rows = [*storage.read_rows(path), dataclasses.asdict(closed[0])]
    lines = [json.dumps({'schema': storage.SCHEMA, **row}) for row in rows]
    # The whole file at once: a half-written round was never decided.
    storage.write_text(path, '\n'.join([*lines, '']))
    print(_said(runs, closed[0]), flush=True)

  # Other processes of this folder wait, and find the rounds decided.
  with storage.lock(workdir, wait=True):
    [allocation] = policies.get(config.policy).allocate(
      [Live(config, runs, workdir, options)],
      [config.budget],
      rounds_lib.Settings(
        config.eta,
        config.law,
        runs[0].train.seed,
        decided(workdir),
        on_round,
      ),
    )
  return allocation


def decided(workdir: pathlib.Path) -> list[rounds_lib.Round]:
  """Returns the decided rounds of a study's folder."""
  return rounds_lib.from_rows(storage.read_rows(workdir / ROUNDS))


def _said(runs: Sequence[RunConfig], closed: rounds_lib.Round) -> str:
  best = min((loss for loss in closed.seen if loss is not None), default=None)
  pruned = [runs[i].cell for i in closed.alive if i not in closed.kept]
  return (
    f'{len(closed.alive)} candidates trained, best loss {text.number(best, 5)}; '
    f'pruned: {", ".join(pruned) or "none"}'
  )


class Live:
  """A `rounds.Source` of candidates that are trained.

  Attributes:
    names: of the candidates.
    features: of each candidate.
  """

  def __init__(
    self,
    config: Config,
    runs: Sequence[RunConfig],
    workdir: pathlib.Path,
    options: sweep.Options = sweep.Options(),
  ):
    """Takes a study's candidates, its folder, and how to train."""
    self.names: Sequence[str] = [run.cell for run in runs]
    self.features: Sequence[Mapping[str, float]] = [
      _features(run.model) for run in runs
    ]
    self._config, self._runs = config, runs
    self._workdir, self._options = workdir, options

  def limit(self, candidate: int) -> float:
    """Returns the FLOPs of a run to the horizon, or to where its rate decays."""
    steps = self._runs[candidate].train.steps
    return self.step(candidate) * math.floor(self._config.steady * steps)

  def step(self, candidate: int) -> float:
    """Returns the FLOPs of a step."""
    run = self._runs[candidate]
    return shapes.cost(run) // run.train.steps

  def point(self, candidate: int, flops: float) -> Mapping[str, float]:
    """Returns N, D and G at some FLOPs."""
    run = self._runs[candidate]
    return {
      'N': float(flops_lib.params_full(run.model)),
      'D': flops / flops_lib.train(run.model, run.data.seq_len),
      'G': float(run.model.granularity),
    }

  def advance(
    self, targets: Mapping[int, float]
  ) -> Mapping[int, curves_lib.Curve]:
    """Trains candidates on, together where their shapes agree.

    Raises:
      Incomplete: if one failed.
    """
    until = {}
    for i, flops in targets.items():
      run = self._runs[i]
      until[run.cell] = min(int(flops // self.step(i)), run.train.steps)
    failed = sweep.execute(
      self._runs, self._workdir, self._options, until=until
    )
    if failed:
      raise errors.Incomplete(
        f'{len(failed)} of {len(until)} candidates failed '
        f'({", ".join(failed)}; see their error.log); the round waits for them,'
        ' and the same command tries them again'
      )
    reached = {}
    for i in targets:
      run = self._runs[i]
      rows = storage.read_rows(
        sweep.folder(self._workdir, run.cell) / run_folder.ROWS
      )
      rows = [row for row in rows if row['step'] <= until[run.cell]]
      reached[i] = _curve(self._config, run, rows)
    return reached


def _features(model: model_config.ModelConfig) -> Mapping[str, float]:
  return {
    'params': float(flops_lib.params_full(model)),
    'width': float(model.width),
    'depth': float(model.depth),
    'exits': float(model.granularity),
  }


def _curve(
  config: Config, run: RunConfig, rows: Sequence[Mapping[str, Any]]
) -> curves_lib.Curve:
  """Returns the curve of a candidate's evaluations before its rate decays."""
  last = config.steady * run.train.steps
  return curves_lib.of_run(
    run.cell, rows, config.loss, _features(run.model), last
  )


@dataclasses.dataclass(frozen=True)
class Spending:
  """The FLOPs of an allocation.

  Attributes:
    policy: name.
    budget: FLOPs allowed.
    spent: FLOPs spent.
    grid: FLOPs of training all candidates to the horizon.
    saving: 1 - spent / grid.
    rounds: number of decided rounds.
    planned: number of rounds in all.
    extrapolated_to: FLOPs to which laws and frontiers are extrapolated.
  """

  policy: str
  budget: float
  spent: float
  grid: float
  saving: float
  rounds: int
  planned: int
  extrapolated_to: float


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A candidate after the allocation.

  Attributes:
    cell: name of its run.
    params: N.
    exits: G.
    flops: spent on it by the allocation.
    share: of a run to the horizon.
    loss: lowest loss that the allocation saw; None without a loss.
    diverged: whether its training diverged in the allocation.
    pruned: round after which it was pruned; None for a survivor.
    flops_in_all: spent on it, the whole grid's training included.
    loss_in_all: lowest loss, likewise.
  """

  cell: str
  params: int
  exits: int
  flops: float
  share: float
  loss: float | None
  diverged: bool
  pruned: int | None
  flops_in_all: float
  loss_in_all: float | None


@dataclasses.dataclass(frozen=True)
class Point:
  """A loss of a candidate, and whether the allocation trained it so far."""

  cell: str
  flops: float
  loss: float
  allocated: bool


@dataclasses.dataclass(frozen=True)
class Law:
  """A law fitted to what the allocation (`allocated`) or the grid (`full`) has."""

  of: str
  form: str
  rows: int
  flags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Quantity:
  """A constant or an extrapolated loss of both laws.

  Attributes:
    name: of the constant, or `L_opt(...)`, the lowest loss at a compute.
    kind: `constant` or `loss`.
    allocated: by the allocation's law; None if it has none.
    full: by the whole grid's law, likewise.
    difference: of a loss allocated / full - 1, of a constant allocated - full.
    identified: whether the allocation's rows identify it.
    identified_full: whether the whole grid's rows do.
  """

  name: str
  kind: str
  allocated: Estimate | None
  full: Estimate | None
  difference: float | None
  identified: bool | None
  identified_full: bool | None

  @property
  def inside(self) -> bool | None:
    """Whether the allocation's value is in the grid's interval, if known."""
    if self.allocated is None or self.full is None or not self.full.bounded:
      return None
    return self.allocated.value in self.full


@dataclasses.dataclass(frozen=True)
class Replayed:
  """A policy with the same budget on the whole grid's curves.

  The fields are those of `replay.Outcome`, of one allocation of all candidates;
  None if unknown.
  """

  policy: str
  best: float | None
  spent: float | None
  gain: float | None
  regret: float | None
  saving: float | None
  slope: float | None
  area: float | None
  line: float | None
  law: float | None


@text.brief
@dataclasses.dataclass(frozen=True)
class Tables:
  """Tables of a live allocation; each row class says what its fields are."""

  spending: tuple[Spending, ...]
  candidates: tuple[Candidate, ...]
  ranking: tuple[rounds_lib.Ranked, ...]
  points: tuple[Point, ...]
  laws: tuple[Law, ...]
  quantities: tuple[Quantity, ...]
  replays: tuple[Replayed, ...]

  def curves(self, allocated: bool) -> list[curves_lib.Curve]:
    """Returns the candidates' curves.

    Args:
      allocated: only as far as the allocation trained them.
    """
    found = []
    for row in self.candidates:
      end = row.flops if allocated else row.flops_in_all
      points = [
        (point.flops, point.loss)
        for point in self.points
        if point.cell == row.cell and (point.allocated or not allocated)
      ]
      found.append(curves_lib.of_points(row.cell, points, end))
    return found


class LiveAllocation(execution.TrainedStudy[Config, Tables]):
  """The study of a law from a fraction of the runs."""

  kind = 'allocation'
  config_class = Config
  tables_class = Tables
  needs_finished = False
  takes_more = False  # What is decided depends on all candidates.
  run_keys = ('steps', 'warmup_steps')
  train_defaults: Mapping[str, Any] = {'schedule': 'constant'}

  def may_change(self, config: Config) -> tuple[str, ...]:
    """Adds `full`, and `law` where the policy does not use it."""
    law = () if config.policy == policies.LAW else ('law',)
    return (*super().may_change(config), 'full', *law)

  def runs(self, config: Config) -> list[RunConfig]:
    """Returns the candidates, each as a run to the horizon."""
    return [
      _candidate(config, shape, granularity)
      for shape, granularity in itertools.product(
        config.shapes, config.granularities
      )
    ]

  def plan(
    self, config: Config, runs: Sequence[RunConfig]
  ) -> Mapping[str, Any]:
    """Returns the budget, and the rounds that it is spent in."""
    del runs
    survivors = config.survivors
    return {
      'budget': config.budget,
      'policy': config.policy,
      'rounds': config.rounds,
      'survivors': list(survivors),
      'shares': [config.budget / (n * len(survivors)) for n in survivors],
      'full': config.full,
      'steady': config.steady,
    }

  def plan_lines(self, plan: Mapping[str, Any]) -> Iterator[str]:
    """Yields each round's candidates and the budget beside the grid's cost."""
    share = plan['budget'] / plan['flops']
    yield ''
    for number, (alive, flops) in enumerate(
      zip(plan['survivors'], plan['shares'], strict=True), start=1
    ):
      yield f'round {number}: {alive:>4} candidates, {flops:.3g} FLOPs each'
    if not plan['survivors']:
      yield f'{plan["rounds"]} rounds of the candidates that the law asks for'
    yield (
      f'{plan["policy"]}: {plan["budget"]:.3g} FLOPs, {share:.1%} of the whole '
      f'grid, about {text.duration(share * plan["seconds"])}'
      + (', and then the rest of it' if plan['full'] else '')
    )

  def execute(
    self,
    config: Config,
    runs: list[RunConfig],
    workdir: pathlib.Path,
    options: sweep.Options,
  ) -> list[str]:
    """Allocates the budget, then trains the whole grid if `full`."""
    allocate(config, runs, workdir, options)
    return sweep.execute(runs, workdir, options) if config.full else []

  def fit(self, config: Config, results: study.Results) -> Iterator[str]:
    """Fits the law to the allocation's rows and, once it is trained, the grid's."""
    path = results.folder / 'fits'
    for name in (ALLOCATED, FULL):
      (path / name / 'fit.json').unlink(missing_ok=True)
    whole = list(_curves(config, results))
    known = {ALLOCATED: _allocated(whole, decided(results.folder))}
    if _complete(config, results):
      known[FULL] = whole
    for name, curves in known.items() if config.law.form else ():
      try:
        table, _ = curves_lib.rows([curves], config.law.where)
        found = inference.fit(
          config.law.form,
          table,
          # One compute for both laws.
          inference.Options(compute=(config.far,), profiles='some'),
          loss_definition=config.loss,
        )
      except errors.UserError as error:
        yield f'no law of {name}: {error}'
      else:
        found.save(path / name / 'fit.json')

  def analyse(
    self, config: Config, results: study.Results
  ) -> tuple[str, Tables]:
    """Returns the summary line and the tables."""
    rounds = decided(results.folder)
    whole = list(_curves(config, results))
    # A round under way is not decided: all that is trained belongs to it.
    over = len(rounds) >= config.rounds
    known = _allocated(whole, rounds) if over else whole
    laws = {
      path.parent.name: fit_record.load(path).record
      for path in sorted(results.folder.glob('fits/*/fit.json'))
    }
    grid = math.fsum(map(shapes.cost, self.runs(config)))
    spent = math.fsum(rounds_lib.spent(rounds, len(whole)))
    tables = Tables(
      spending=(
        Spending(
          policy=config.policy,
          budget=config.budget,
          spent=spent,
          grid=grid,
          saving=1 - spent / grid,
          rounds=len(rounds),
          planned=config.rounds,
          extrapolated_to=config.far,
        ),
      ),
      candidates=tuple(_candidates(config, whole, known, rounds)),
      ranking=tuple(rounds_lib.ranking(rounds, whole)),
      points=tuple(
        Point(curve.name, float(flops), float(loss), bool(flops <= part.end))
        for curve, part in zip(whole, known, strict=True)
        for flops, loss in zip(curve.flops, curve.loss, strict=True)
      ),
      laws=tuple(
        study.record_of(Law, law, of=name) for name, law in laws.items()
      ),
      quantities=tuple(_quantities(laws.get(ALLOCATED), laws.get(FULL))),
      replays=tuple(
        _replays(config, whole) if _complete(config, results) else ()
      ),
    )
    return _line(tables), tables

  def cost(
    self, config: Config, results: study.Results, tables: Tables
  ) -> study.Cost:
    """Returns the cost; no result is missing of runs that are not asked for."""
    done = [run.status in run_folder.DONE for run in results.runs]
    return dataclasses.replace(
      study.cost_of(results),
      flops=math.fsum(row.flops_in_all for row in tables.candidates),
      missing=done.count(False) if config.full else 0,
    )

  def flags(
    self, results: study.Results, tables: Tables, cost: study.Cost
  ) -> Iterator[str]:
    """Yields what may make the allocation and its laws unreliable."""
    del results
    yield from _flags(tables, cost)


def _complete(config: Config, results: study.Results) -> bool:
  """Whether the whole grid is trained."""
  return config.full and all(
    run.status in run_folder.DONE for run in results.runs
  )


def _curves(
  config: Config, results: study.Results
) -> Iterator[curves_lib.Curve]:
  """Yields what is known of each candidate."""
  rows: dict[str, list[Mapping[str, Any]]] = {}
  for row in results.rows:
    rows.setdefault(row['cell'], []).append(row)
  for run in LIVE.runs(config):
    yield _curve(config, run, rows.get(run.cell, []))


def _allocated(
  whole: Sequence[curves_lib.Curve], rounds: Sequence[rounds_lib.Round]
) -> list[curves_lib.Curve]:
  """Returns the curves as far as the decided rounds trained them."""
  spent = rounds_lib.spent(rounds, len(whole))
  return [curve.cut(end) for curve, end in zip(whole, spent, strict=True)]


def _candidates(
  config: Config,
  whole: Sequence[curves_lib.Curve],
  known: Sequence[curves_lib.Curve],
  rounds: Sequence[rounds_lib.Round],
) -> Iterator[Candidate]:
  spent = rounds_lib.spent(rounds, len(whole))
  for i, run in enumerate(LIVE.runs(config)):
    left = [n for n, closed in enumerate(rounds, 1) if i not in closed.kept]
    yield Candidate(
      cell=run.cell,
      params=flops_lib.params_full(run.model),
      exits=run.model.granularity,
      flops=spent[i],
      share=spent[i] / shapes.cost(run),
      loss=fit_record.plain(known[i].best),
      diverged=known[i].diverged,
      # Policy `law` prunes none: its rounds keep whom they train.
      pruned=left[0] if left and config.survivors else None,
      flops_in_all=whole[i].end,
      loss_in_all=fit_record.plain(whole[i].best),
    )


def _quantities(
  mine: fit_record.FitRecord | None, full: fit_record.FitRecord | None
) -> Iterator[Quantity]:
  """Yields the extrapolated losses and the constants of both laws."""
  by_law = [
    dict(_values(law)) if law is not None else {} for law in (mine, full)
  ]
  for name in dict.fromkeys(itertools.chain(*by_law)):
    one, other = (values.get(name) for values in by_law)
    loss = name.startswith('L_opt')
    difference = None
    if one is not None and other is not None:
      difference = (
        one.value / other.value - 1 if loss else one.value - other.value
      )
    yield Quantity(
      name,
      'loss' if loss else 'constant',
      one,
      other,
      difference,
      None if loss or mine is None else mine.identified.get(name),
      None if loss or full is None else full.identified.get(name),
    )


def _values(law: fit_record.FitRecord) -> Iterator[tuple[str, Estimate]]:
  """Yields extrapolated losses and constants that a law has, with intervals."""
  for name, value in law.derived.items():
    if name.startswith('L_opt') and math.isfinite(value.value):
      yield name, Estimate(value.value, value.lo, value.hi)
  for name in law.params:
    yield name, law.interval(name)


def _replays(
  config: Config, whole: Sequence[curves_lib.Curve]
) -> Iterator[Replayed]:
  """Yields what each policy makes of the budget on the whole grid's curves.

  There is one way to draw all candidates, so that nothing has an interval.
  """
  seed = config.train.get('seed', train_config.TrainConfig.seed)
  settings = rounds_lib.Settings(config.eta, config.law, seed)
  allocations = {
    name: policies.get(name).allocate(
      [replay.KnownCurves(whole)], [config.budget], settings
    )
    for name in dict.fromkeys((policies.BASE, *policies.POLICIES))
    if name != policies.LAW or optimal_design.has_prior(config.law)
  }
  [outcomes] = replay.outcomes(allocations, [whole], config.budget, config.law)
  for name, outcome in outcomes.items():
    yield Replayed(name, **fit_record.plain(dataclasses.asdict(outcome)))


def _flags(tables: Tables, cost: study.Cost) -> Iterator[str]:
  diverged = [row.cell for row in tables.candidates if row.diverged]
  if diverged:
    yield (
      f'{text.count(len(diverged), "candidate")} diverged, and can survive no '
      f'round: {text.some(diverged)}'
    )
  for law in tables.laws:
    if law.flags:
      yield f'law of {law.of}: {"; ".join(law.flags)}'
    exits = {row.exits for row in tables.candidates}
    if len(exits) > 1 and 'G' not in forms.get(law.form).columns:
      yield f'law of {law.of}: {law.form} has no G, and the candidates differ in G'
  checked = [
    row.reached in row.predicted
    for row in tables.ranking
    if row.predicted is not None and row.reached is not None
  ]
  held = sum(checked)
  if held < surrogate.LEVEL * len(checked):
    yield (
      f'{held} of {text.count(len(checked), "prediction")} held within their '
      f'intervals of {surrogate.LEVEL:.0%}'
    )
  if cost.missing:
    yield (
      f'{cost.missing} of {text.count(len(tables.candidates), "candidate")} of '
      'the whole grid have no result: it is not compared with'
    )


def _line(tables: Tables) -> str:
  """Returns the summary line: FLOPs, and differences from the whole grid's law."""
  [row] = tables.spending
  line = (
    f'{row.policy} spent {row.spent:.3g} of {row.budget:.3g} FLOPs and saved '
    f'{row.saving:.1%} of the whole grid'
  )
  losses = [q for q in tables.quantities if q.kind == 'loss' and q.full]
  both = [q for q in losses if q.difference is not None]
  if not both:
    return line
  worst = max(abs(q.difference) for q in both if q.difference is not None)
  line += (
    f'; its law is off by at most {worst:.2%} at {row.extrapolated_to:.3g} FLOPs,'
    " beside the whole grid's"
  )
  full = [q.full for q in both if q.full is not None]
  ends = [(end, f.value) for f in full for end in (f.lo, f.hi)]
  if all(end is not None for end, _ in ends):
    known = max(abs(end / value - 1) for end, value in ends if end is not None)
    line += f', which is itself known to {known:.1%}'
  unknown = [q.name for q in losses if q.allocated is None]
  return f'{line}; it says nothing of {", ".join(unknown)}' if unknown else line


LIVE = LiveAllocation()
