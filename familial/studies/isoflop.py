"""The IsoFLOP study of familial models: L(N, D, G) from runs of exact cost.

Every run costs its budget, exactly counted: steps = C / (FLOPs of a step),
rounded to whole steps, so a run of at least 200 steps is within 0.25 % of C.
Arms beside the grid repeat it with other seeds or change one thing.
"""

from collections import defaultdict
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import itertools
import math
import pathlib
from typing import Annotated
from typing import Any
from typing import NamedTuple

from familial.core import errors
from familial.core import run_folder
from familial.core import schema
from familial.core import storage
from familial.core import text
from familial.core.estimate import Estimate
from familial.laws import definitions
from familial.laws import fit_record
from familial.laws import forms
from familial.laws import inference
from familial.laws import leverage as leverage_lib
from familial.laws import power_analysis
from familial.laws import selection
from familial.laws import table as tables_lib
from familial.model import config as model_config
from familial.model import flops as flops_lib
from familial.studies import comparison
from familial.studies import execution
from familial.studies import plan as plan_lib
from familial.studies import shapes
from familial.studies import study
from familial.training import config as train_config

RunConfig = train_config.RunConfig
Shape = shapes.Shape
LOSSES = ('final', 'mean', 'exit')
FORMS = ('familial_total', 'familial_reducible', 'dense_null')
_EXIT = ('width', 'depth', 'exits', 'exit')


@dataclasses.dataclass(frozen=True)
class Rules:
  """Training settings that follow from the budget C.

  Attributes:
    batch_tokens: tokens per step at `at_budget`.
    at_budget: FLOPs at which a step has `batch_tokens`.
    batch_exponent: exponent of C in the tokens per step, which are rounded to a
      power of two of sequences.
    beta2: AdamW's beta2 at `batch_tokens`; elsewhere beta2 to the power of
      batch / batch_tokens, so that the average spans as many tokens.
    warmup: warm-up as a share of a run's steps.
  """

  batch_tokens: schema.Count = 1024
  at_budget: schema.Positive = 1e11
  batch_exponent: schema.Fraction = 1 / 3
  beta2: schema.OpenFraction = 0.99
  warmup: schema.Fraction = 0.05

  def __post_init__(self) -> None:
    schema.check(self, 'rules')


@dataclasses.dataclass(frozen=True)
class Grid:
  """The IsoFLOP grid: a run for every budget, shape and granularity.

  Attributes:
    budgets: C, in FLOPs.
    shapes: (width, depth, heads) of each shape.
    granularities: G; the exits are evenly spaced.
    shapes_of: for each budget the indices of the shapes sampled there; () for
      all shapes at each.
    seed: seed of every run of the grid.
    seconds: time limit on this machine, in seconds: the largest budgets are left
      out until the calibrated plan fits. 0 for no limit.
  """

  budgets: Annotated[tuple[schema.Positive, ...], schema.NOT_EMPTY]
  shapes: Annotated[tuple[Shape, ...], schema.NOT_EMPTY]
  granularities: Annotated[tuple[schema.Count, ...], schema.NOT_EMPTY]
  shapes_of: tuple[tuple[int, ...], ...] = ()
  seed: schema.Index = 0
  seconds: schema.NonNegative = 0.0

  def __post_init__(self) -> None:
    schema.check(self, 'grid')
    if self.shapes_of and len(self.shapes_of) != len(self.budgets):
      raise errors.UserError(
        f'grid.shapes_of: has {len(self.shapes_of)} entries, and grid.budgets '
        f'{len(self.budgets)}; set both, or grid.shapes_of=() for all shapes at '
        'each budget'
      )
    for indices in self.shapes_of:
      _check_indices('grid.shapes_of', indices, self.shapes)

  def sampled(self) -> dict[float, tuple[Shape, ...]]:
    """Returns the shapes sampled at each budget."""
    every = tuple(range(len(self.shapes)))
    of_budgets = self.shapes_of or (every,) * len(self.budgets)
    return {
      budget: tuple(self.shapes[i] for i in indices)
      for budget, indices in zip(self.budgets, of_budgets, strict=True)
    }


@dataclasses.dataclass(frozen=True)
class Arm:
  """Runs beside the grid.

  Attributes:
    budgets: C of the runs, not necessarily of the grid.
    shapes: indices of shapes of the grid.
    granularities: G of the runs.
    values: what varies; see `ARMS` for what each arm takes.
    share: FLOPs of the exits as a share of the budget (`frozen` alone).
  """

  budgets: Annotated[tuple[schema.Positive, ...], schema.NOT_EMPTY]
  shapes: Annotated[tuple[int, ...], schema.NOT_EMPTY]
  granularities: Annotated[tuple[schema.Count, ...], schema.NOT_EMPTY] = (1,)
  values: tuple[Any, ...] = ()
  share: schema.Positive = 0.25


@dataclasses.dataclass(frozen=True)
class Fit:
  """Settings of the fits.

  Attributes:
    delta: threshold of the Huber loss on log loss.
    starts: number of multi-start initialisations.
    resamples: number of bootstrap resamples by run.
  """

  delta: schema.Positive = 1e-3
  starts: schema.Count = 256
  resamples: Annotated[int, schema.at_least(2)] = 1000

  def __post_init__(self) -> None:
    schema.check(self, 'fit')

  def options(self) -> inference.Options:
    """Returns the options of every fit of a study."""
    return inference.Options(
      delta=self.delta,
      starts=self.starts,
      resamples=self.resamples,
      profiles='some',
    )


@dataclasses.dataclass(frozen=True)
class AssumedLaw:
  """Law and noise under which the plan predicts gamma's interval.

  Attributes:
    E: irreducible loss, nats per token.
    A: coefficient of A / N^alpha.
    B: coefficient of B / D^beta.
    alpha: exponent of N.
    beta: exponent of D.
    gamma: exponent of G.
    noise: standard deviation of a run's log loss about the law, seeds included.
  """

  E: schema.Positive
  A: schema.Positive
  B: schema.Positive
  alpha: schema.Positive
  beta: schema.Positive
  gamma: schema.Finite = 0.033
  noise: schema.Positive = 0.01

  def __post_init__(self) -> None:
    schema.check(self, 'assumed')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(shapes.TrainedConfig):
  """An IsoFLOP study.

  Attributes:
    rules: settings that follow from the budget.
    grid: runs of the grid.
    arms: runs beside the grid, by what they vary.
    fit: how the laws are fitted.
    assumed: law under which the plan predicts gamma's interval.
  """

  rules: Rules
  grid: Grid
  arms: dict[str, Arm]
  fit: Fit
  assumed: AssumedLaw

  def __post_init__(self) -> None:
    schema.check(self)
    for name, arm in self.arms.items():
      errors.require_one_of(f'arms.{name}', name, ARMS)
      if name != 'twin' and not arm.values:
        raise errors.UserError(f'arms.{name}.values: is empty: no run to make')
      if name == 'seed' and self.grid.seed in arm.values:
        raise errors.UserError(
          f'arms.seed.values: {self.grid.seed} is the seed of the grid; '
          'name others'
        )
      schema.check(arm, f'arms.{name}')
      _check_indices(f'arms.{name}.shapes', arm.shapes, self.grid.shapes)
      allowed = ARMS[name].values
      for value in arm.values:
        errors.require(
          allowed.holds(value), f'arms.{name}.values', value, allowed.allowed
        )


def _check_indices(
  key: str, indices: Iterable[int], of: Sequence[Shape]
) -> None:
  for index in indices:
    errors.require(
      0 <= index < len(of),
      key,
      index,
      f'an index 0..{len(of) - 1} of grid.shapes',
    )


def _run(
  config: Config,
  arm: str,
  budget: float,
  shape: Shape,
  granularity: int,
  *,
  suffix: str = '',
  exits: tuple[int, ...] | None = None,
  share: float = 1.0,
  model_changes: Mapping[str, Any] | None = None,
  **train_changes: Any,
) -> RunConfig:
  """Returns the run that spends `share` of a budget on a shape."""
  width, depth, _ = shape
  name = f'c{shapes.short(budget)}_w{width}_d{depth}_g{granularity}{suffix}'
  with errors.within(f'cell {name}'):
    exits = exits or model_config.even_exits(depth, granularity)
    model = shapes.model(config, shape, exits, **(model_changes or {}))
    rules = config.rules
    batch_size = _batch_size(config, budget)
    batch_tokens = batch_size * config.data.seq_len
    step_flops = batch_tokens * flops_lib.train(
      model, config.data.seq_len, train_changes.get('trained', 'all')
    )
    steps = round(share * budget / step_flops)
    if steps < 1:
      raise errors.UserError(
        f'grid.budgets: {budget:g} FLOPs is below one step of this run, '
        f'{step_flops:.3g}'
      )
    return shapes.run(
      config,
      ISOFLOP.run_keys,
      cell=name,
      arm=arm,
      budget=share * budget,
      model=model,
      **{'seed': config.grid.seed, **train_changes},
      steps=steps,
      batch_size=batch_size,
      warmup_steps=round(rules.warmup * steps),
      beta2=rules.beta2 ** (batch_tokens / rules.batch_tokens),
    )


def _batch_size(config: Config, budget: float) -> int:
  """Returns the sequences per step at a budget: a power of two."""
  rules = config.rules
  tokens = (
    rules.batch_tokens * (budget / rules.at_budget) ** rules.batch_exponent
  )
  return 2 ** max(0, round(math.log2(tokens / config.data.seq_len)))


class _Point(NamedTuple):
  """A budget, a shape and a G at which an arm has runs."""

  config: Config
  arm: Arm
  budget: float
  shape: Shape
  granularity: int


class _ArmKind(NamedTuple):
  """An arm: the values that it allows, and the arguments of `_run` at a point."""

  values: schema.Bound
  runs: Callable[[_Point], Iterable[dict[str, Any]]]


def _varying(
  change: Callable[[Any], dict[str, Any]],
) -> Callable[[_Point], Iterable[dict[str, Any]]]:
  """Returns an arm's runs: one for each value, which changes one thing."""
  return lambda point: map(change, point.arm.values)


def _twins(point: _Point) -> Iterator[dict[str, Any]]:
  """Yields dense runs of each exit's shape; the last exit's is in the grid."""
  config, (width, depth, heads) = point.config, point.shape
  exits = model_config.even_exits(depth, point.granularity)
  family = shapes.model(config, point.shape, exits)
  in_grid = [
    shapes.model(config, dense, (dense[1],))
    for dense in config.grid.sampled().get(point.budget, ())
    if 1 in config.grid.granularities
  ]
  for number in range(1, family.granularity):
    dense = family.submodel(number)
    shape, tied = (width, dense.depth, heads), {'tied': dense.tied}
    if shapes.model(config, shape, (dense.depth,), **tied) not in in_grid:
      yield {
        'shape': shape,
        'granularity': 1,
        'suffix': '_twin',
        'model_changes': tied,
      }


def _frozen(point: _Point) -> Iterator[dict[str, Any]]:
  """Yields exits on the trunk of the dense run of the same budget and shape."""
  config, arm, budget, shape, granularity = point
  errors.require(
    granularity >= 2,
    'arms.frozen.granularities',
    granularity,
    'at least 2: an exit before the last one is needed',
  )
  dense = _run(config, 'grid', budget, shape, 1)
  if (
    shape not in config.grid.sampled().get(budget, ())
    or 1 not in config.grid.granularities
  ):
    raise errors.UserError(
      f'arms.frozen.budgets: {budget:g} needs the dense run {dense.cell} in the '
      'grid, by grid.budgets, grid.shapes_of and grid.granularities; set both, '
      'or arms={} for no arms'
    )
  for kind in arm.values:
    yield {
      'suffix': f'_frozen_{kind}',
      'share': arm.share,
      'trained': 'exits',
      'init_from': f'../{dense.cell}',
      'model_changes': {'exit_kind': kind},
    }


def _is_int(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


_NAME = schema.Bound(lambda value: isinstance(value, str), 'a name')
ARMS = {
  'seed': _ArmKind(
    schema.Bound(lambda v: _is_int(v) and v >= 0, 'an integer from 0'),
    _varying(lambda v: {'suffix': f'_seed{v}', 'seed': v}),
  ),
  'twin': _ArmKind(
    schema.Bound(lambda v: False, 'left out: the exits give the shapes'),
    _twins,
  ),
  'weighting': _ArmKind(
    _NAME, _varying(lambda v: {'suffix': f'_{v}', 'weighting': v})
  ),
  'frozen': _ArmKind(_NAME, _frozen),
  'kind': _ArmKind(
    _NAME,
    _varying(lambda v: {'suffix': f'_{v}', 'model_changes': {'exit_kind': v}}),
  ),
  'branch': _ArmKind(
    schema.Bound(
      lambda v: isinstance(v, tuple) and all(map(_is_int, v)),
      'layers of exits, as (2, 4, 8)',
    ),
    _varying(
      lambda v: {
        'suffix': '_at' + '-'.join(map(str, v)),
        'granularity': len(v),
        'exits': v,
      }
    ),
  ),
  'rate': _ArmKind(
    schema.Bound(
      lambda v: isinstance(v, (int, float)) and 0 < v < math.inf,
      'a positive rate',
    ),
    _varying(lambda v: {'suffix': f'_lr{v:g}', 'base_lr': v}),
  ),
  'gradients': _ArmKind(
    schema.Bound(lambda v: _is_int(v) and v >= 1, 'at least 1 evaluation'),
    _varying(
      lambda v: {'suffix': '_gradients', 'gradients': True, 'evaluations': v}
    ),
  ),
}


@dataclasses.dataclass(frozen=True)
class Gamma:
  """The exponent of G in one form of the law, fitted to one loss.

  Attributes:
    loss: `final`, `mean` or `exit`.
    form: name of the form.
    gamma: bootstrap interval by run.
    profile_lo: lower end by profile likelihood.
    profile_hi: upper end by profile likelihood.
    aic_behind: AIC less the lowest of the loss's forms.
    hold_out_rms: rms log error in predicting the largest budget from the others.
    flags: diagnostics of the fit.
  """

  loss: str
  form: str
  gamma: Estimate
  profile_lo: float | None
  profile_hi: float | None
  aic_behind: float | None
  hold_out_rms: float | None
  flags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Branch:
  """Exponent of an exit's loss in 1 + the number of exits on one side.

  `side` is `gamma_up` for exits below it, `gamma_down` for exits above it.
  """

  side: str
  exponent: Estimate


@dataclasses.dataclass(frozen=True)
class Weighting:
  """Loss of an exit under one weighting of the exits' losses."""

  budget: float
  weighting: str
  exits: int
  exit: int
  layer: int
  loss: float
  width: int
  depth: int


@dataclasses.dataclass(frozen=True)
class Frozen:
  """An exit on a frozen dense trunk, beside one of its kind trained jointly.

  Attributes:
    flops: of the trunk and of the exits.
    budget_joint: budget of the joint run, the one nearest to `flops`.
    loss_joint: loss of the same exit in the joint run.
  """

  width: int
  depth: int
  exits: int
  exit: int
  layer: int
  exit_kind: str
  flops: float
  loss: float
  budget_joint: float | None
  loss_joint: float | None


@dataclasses.dataclass(frozen=True)
class Leverage:
  """Efficiency Leverage of a run; see `laws.leverage`. None stands for infinity."""

  run: str
  budget: float
  exits: int
  flops: float
  leverage: float | None
  unreachable: int
  lo: float | None
  hi: float | None
  infinite: bool
  hi_infinite: bool


@dataclasses.dataclass(frozen=True)
class Cosine:
  """Cosine between two exits' gradients of one shared layer."""

  step: int
  exit_a: int
  exit_b: int
  layer: int
  cosine: float


@text.brief
@dataclasses.dataclass(frozen=True)
class Tables:
  """Tables of an IsoFLOP study; each row class says what its fields are."""

  noise: tuple[comparison.Noise, ...]
  paired_gamma: tuple[comparison.PairedGamma, ...]
  paired_trend: tuple[comparison.Trend, ...]
  paired_ratios: tuple[comparison.Ratio, ...]
  paired_blocks: tuple[comparison.BlockRatio, ...]
  twins: tuple[comparison.Twin, ...]
  twin_gamma: tuple[comparison.TwinGamma, ...]
  twin_depths: tuple[comparison.TwinDepth, ...]
  minima: tuple[comparison.Minimum, ...]
  gamma: tuple[Gamma, ...]
  branch: tuple[Branch, ...]
  weighting: tuple[Weighting, ...]
  frozen: tuple[Frozen, ...]
  leverage: tuple[Leverage, ...]
  leverage_measured: tuple[leverage_lib.MeasuredShare, ...]
  gradients: tuple[Cosine, ...]


class IsoFLOP(execution.TrainedStudy[Config, Tables]):
  """The study of L(N, D, G)."""

  kind = 'isoflop'
  config_class = Config
  tables_class = Tables
  free = ('fit',)
  run_keys = ('steps', 'batch_size', 'warmup_steps', 'beta2', 'seed')

  def runs(self, config: Config) -> list[RunConfig]:
    """Returns the runs, the grid first.

    Raises:
      UserError: if a run cannot be: exits beyond its depth, heads that do not
        divide its width, a budget below one step, or two runs of one name.
    """
    grid = config.grid
    made = [
      _run(config, 'grid', budget, shape, granularity)
      for budget, sampled in grid.sampled().items()
      for shape in sampled
      for granularity in grid.granularities
    ]
    for name, arm in config.arms.items():
      for index, budget, granularity in itertools.product(
        arm.shapes, arm.budgets, arm.granularities
      ):
        at: dict[str, Any] = {
          'budget': budget,
          'shape': grid.shapes[index],
          'granularity': granularity,
        }
        made += [
          _run(config, name, **{**at, **changes})
          for changes in ARMS[name].runs(_Point(config, arm, **at))
        ]
    return execution.named_once(made)

  def affordable(
    self,
    config: Config,
    runs: list[RunConfig],
    speed: plan_lib.Speed,
    workers: int,
  ) -> list[RunConfig]:
    """Returns the runs of the budgets that fit `grid.seconds`."""
    seconds = config.grid.seconds
    return plan_lib.within(seconds, runs, speed, workers) if seconds else runs

  def plan(
    self, config: Config, runs: Sequence[RunConfig]
  ) -> Mapping[str, Any]:
    """Returns the interval that gamma would get; None without two Gs."""
    planned = [run for run in runs if run.arm in definitions.GRID]
    if len({run.model.granularity for run in planned}) < 2:
      return {'power': None}
    law = dataclasses.asdict(config.assumed)
    noise = law.pop('noise')
    power = power_analysis.simulate(
      forms.get('familial_total'),
      {
        'N': [flops_lib.params_full(run.model) for run in planned],
        'D': list(map(shapes.tokens, planned)),
        'G': [run.model.granularity for run in planned],
      },
      [run.cell for run in planned],
      law,
      noise,
      delta=config.fit.delta,
    )
    known = math.isfinite(power.half_width)
    return {
      'power': {
        'gamma_half_width': power.half_width if known else None,
        'share_excluding_zero': power.share_excluding_zero,
        'noise': noise,
        'law': law,
        'runs': power.runs,
        'simulations': power.simulations,
      }
    }

  def plan_lines(self, plan: Mapping[str, Any]) -> Iterator[str]:
    """Yields the expected interval of gamma."""
    power = plan['power']
    if power:
      width = power['gamma_half_width']
      yield (
        f'expected interval of gamma = {power["law"]["gamma"]:g} at a noise of '
        f'{power["noise"]:.1%}: +- {"unbounded" if width is None else f"{width:.4f}"}'
        f' (95 %); it excludes 0 in {power["share_excluding_zero"]:.0%} of '
        'simulated studies'
      )

  def fit(self, config: Config, results: study.Results) -> Iterator[str]:
    """Fits every form to every loss; yields why one could not be fitted."""
    rows = list(results.rows)
    jobs: list[tuple[str, Sequence[Any], str, Any, tuple[str, ...]]] = []
    if len({r['exits'] for r in rows if r['arm'] in definitions.GRID}) < 2:
      yield 'one granularity only: gamma is not fitted'
    else:
      jobs = [(loss, rows, loss, None, FORMS) for loss in LOSSES]
      with_branches = (*definitions.arms_of('exit'), 'branch')
      jobs.append(('exit/branch', rows, 'exit', with_branches, ('branch',)))
    # Twins are included: they are dense models of the exits' shapes.
    dense = [row for row in rows if row['exits'] == 1]
    jobs.append(('dense/chinchilla', dense, 'exit', None, ('chinchilla',)))
    for folder, of, loss, arms, names in jobs:
      try:
        table = tables_lib.from_rows(of, loss=loss, arms=arms, source='cells')
        selection.compare(
          table,
          names,
          results.folder / 'fits' / folder,
          config.fit.options(),
          loss_definition=loss,
        )
      except errors.UserError as error:
        yield f'{folder}: {error}'

  def analyse(
    self, config: Config, results: study.Results
  ) -> tuple[str, Tables]:
    """Returns the exponents of G by pairs and by law, and the controls."""
    del config
    runs = results.finished
    laws = {
      (path.parent.parent.name, path.parent.name): fit_record.load(path)
      for path in sorted(results.folder.glob('fits/*/*/fit.json'))
    }
    spread = comparison.noise(runs)
    paired = comparison.paired(
      runs,
      {
        loss: laws[loss, FORMS[0]].params
        for loss in comparison.LOSSES
        if (loss, FORMS[0]) in laws
      },
    )
    twins = comparison.twins(runs, spread)
    dense = laws.get(('dense', 'chinchilla'))
    tables = Tables(
      noise=(spread,) if spread else (),
      paired_gamma=paired.gamma,
      paired_trend=paired.trend,
      paired_ratios=paired.ratios,
      paired_blocks=paired.blocks,
      twins=twins.exits,
      twin_gamma=twins.gamma,
      twin_depths=twins.depths,
      minima=tuple(comparison.minima(runs, spread)),
      gamma=tuple(_gammas(results.folder, laws)),
      branch=tuple(_branch(laws.get(('exit', 'branch')))),
      weighting=tuple(_weighting(runs)),
      frozen=tuple(_frozen_exits(runs)),
      leverage=tuple(
        Leverage(**row.to_json())
        for row in (leverage_lib.of_rows(dense, results.rows) if dense else ())
      ),
      leverage_measured=tuple(leverage_lib.measured(results.rows)),
      gradients=tuple(
        study.record_of(Cosine, row)
        for folder in results.run_folders()
        for row in storage.read_rows(folder / run_folder.GRADIENTS)
      ),
    )
    return _line(tables), tables


def _gammas(
  folder: pathlib.Path, laws: Mapping[tuple[str, str], fit_record.Law]
) -> Iterator[Gamma]:
  for loss in LOSSES:
    aics = {
      form: round(law.record.aic, 2)
      for (of, form), law in laws.items()
      if of == loss and form in FORMS and law.record.aic is not None
    }
    path = folder / 'fits' / loss / 'selection.json'
    candidates = storage.read_json(path)['candidates'] if path.exists() else []
    held_out = {
      row['form']: (row.get('hold_out') or {}).get('rms') for row in candidates
    }
    for form in FORMS[:2]:
      if (loss, form) in laws:
        law = laws[loss, form].record
        profile = law.profile.get('gamma')
        yield Gamma(
          loss=loss,
          form=form,
          gamma=constant(laws[loss, form], 'gamma'),
          profile_lo=profile.lo if profile else None,
          profile_hi=profile.hi if profile else None,
          aic_behind=aics[form] - min(aics.values()) if form in aics else None,
          hold_out_rms=held_out.get(form),
          flags=law.flags,
        )


def _branch(law: fit_record.Law | None) -> Iterator[Branch]:
  if law is not None:
    for side in ('gamma_up', 'gamma_down'):
      yield Branch(side, constant(law, side))


def constant(law: fit_record.Law, name: str) -> Estimate:
  """Returns a constant with its bootstrap interval."""
  spread = law.record.bootstrap.get(name)
  if spread is None:
    return Estimate(law.params[name])
  return Estimate(law.params[name], spread.lo, spread.hi)


def _weighting(runs: Sequence[study.Run]) -> Iterator[Weighting]:
  """Yields exits by weighting, beside the grid's uniform ones of their shapes."""
  compared = {
    (run.shape, run.exit_layers) for run in runs if run.arm == 'weighting'
  }
  for run in runs:
    if (
      run.arm in ('grid', 'weighting')
      and (run.shape, run.exit_layers) in compared
    ):
      for row in run.rows:
        yield study.record_of(Weighting, row)


def _frozen_exits(runs: Sequence[study.Run]) -> Iterator[Frozen]:
  joint: dict[Any, dict[float, float]] = defaultdict(dict)
  for run in runs:
    if run.arm in ('grid', 'kind'):
      for row in run.rows:
        key = (*(row[name] for name in _EXIT), run.exit_kind)
        joint[key][row['budget']] = row['loss']
  for run in runs:
    for row in run.rows[:-1] if run.arm == 'frozen' else ():
      losses = joint[*(row[name] for name in _EXIT), row['exit_kind']]
      near = min(losses, key=lambda b: abs(b - row['flops']), default=None)
      yield study.record_of(
        Frozen,
        row,
        budget_joint=near,
        loss_joint=None if near is None else losses[near],
      )


def _line(tables: Tables) -> str:
  """Returns gamma by pairs and by law, each with its interval."""
  measured = [
    f'{row.loss} loss {row.gamma}'
    for row in tables.paired_gamma
    if row.equal == 'flops' and row.budget is None
  ]
  if tables.twin_gamma:
    measured.append(
      f'each exit vs. its dense twin {tables.twin_gamma[0].gamma}'
    )
  fitted = [
    f'{row.loss} loss {row.gamma}'
    + (f' ({"; ".join(row.flags)})' if row.flags else '')
    for row in tables.gamma
    if row.form == FORMS[0]
  ]
  parts = []
  if measured:
    parts.append(f'gamma at equal FLOPs, measured: {", ".join(measured)}')
  if fitted:
    parts.append(f'gamma by the law ({FORMS[0]}): {", ".join(fitted)}')
  return '; '.join(parts) or 'gamma was not fitted'


ISOFLOP = IsoFLOP()
