"""The study of width and depth: the law of loss over a full grid of shapes.

Every width is trained at every depth on equal tokens at a constant rate, so
width, depth and tokens are uncorrelated and every evaluation is a point of the
law. The corners of the grid are repeated with other seeds and other base rates.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Annotated
from typing import Any

from familial.core import errors
from familial.core import schema
from familial.core import storage
from familial.core import text
from familial.core.estimate import Estimate
from familial.laws import fit_record
from familial.laws import forms
from familial.laws import inference
from familial.laws import selection
from familial.laws import sensitivity
from familial.laws import table as tables_lib
from familial.model import config as model_config
from familial.studies import comparison
from familial.studies import execution
from familial.studies import isoflop
from familial.studies import shapes
from familial.studies import study
from familial.training import config as train_config

RunConfig = train_config.RunConfig
RUN_KEYS = ('steps', 'warmup_steps', 'seed')  # decided by a run itself
LOSS = 'final'
# The sum is the law in question; the others are its alternatives.
FORMS = (
  'width_depth',
  'width_depth_product',
  'width_depth_inverse',
  'chinchilla',
)
LAW = FORMS[0]
# Values at which E is held, as shares of the lowest loss of all points.
HELD = (0.0, 0.25, 0.5, 0.75, 0.9)
_THREE = schema.Bound(
  lambda x: len(set(x)) == len(x) >= 3,
  'at least three different ones, for a power law with a constant',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EqualTokens(shapes.TrainedConfig):
  """The keys of studies whose runs all have the same tokens.

  Attributes:
    tokens: training tokens of every run.
    head_width: width of every head.
    seeds: seeds of the runs.
    warmup: warm-up as a share of a run's steps.
  """

  tokens: schema.Count
  head_width: schema.Count = 8
  seeds: Annotated[tuple[schema.Index, ...], schema.UNIQUE] = (0,)
  warmup: schema.Fraction = 0.02

  def check_width(self, key: str, width: int) -> None:
    """Refuses a width that does not consist of whole heads."""
    errors.require(
      width % self.head_width == 0,
      key,
      width,
      f'a multiple of head_width, {self.head_width}',
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(EqualTokens):
  """A study of width and depth.

  Attributes:
    train: settings of TrainConfig that all runs share. Every evaluation is a
      point of the law, so the schedule is `constant`, or `wsd`, which decays in
      the last `decay_fraction` alone.
    widths: widths of the grid.
    depths: depths of the grid; each width is trained at each of them.
    seeds: the first is the grid's; the others repeat its corners (the smallest
      and the largest width at the smallest and the largest depth).
    rates: further base rates of the corners.
    first_tokens: tokens from which on an evaluation is a point of the law.
    cutoffs: shares of the points of highest loss without which the law is also
      fitted.
    fit: how the laws are fitted.
  """

  widths: Annotated[tuple[schema.Count, ...], _THREE]
  depths: Annotated[tuple[schema.Count, ...], _THREE]
  rates: tuple[schema.Positive, ...] = ()
  first_tokens: schema.Index = 0
  cutoffs: tuple[Annotated[float, schema.at_least(0), schema.below(1)], ...] = (
    0.0,
    0.05,
    0.1,
    0.2,
    0.3,
    0.4,
  )
  fit: isoflop.Fit = dataclasses.field(default_factory=isoflop.Fit)

  def __post_init__(self) -> None:
    schema.check(self)
    errors.require(
      self.first_tokens <= self.tokens,
      'first_tokens',
      self.first_tokens,
      f'within 0 to tokens, {self.tokens}',
    )
    for width in self.widths:
      self.check_width('widths', width)
    for rate in self.rates:
      errors.require(
        rate != self.train.get('base_lr'), 'rates', rate, 'another than base_lr'
      )
    self.check_schedule()


def run_of(
  config: EqualTokens,
  arm: str,
  width: int,
  depth: int,
  suffix: str = '',
  exits: int = 1,
  **changes: Any,
) -> RunConfig:
  """Returns a run of a study whose runs all have the same tokens.

  Args:
    config: of the study.
    arm: part of the study that the run belongs to.
    width: of the model.
    depth: number of layers.
    suffix: end of the run's name.
    exits: G; the exits are evenly spaced.
    **changes: keys of its TrainConfig.
  """
  name = f'w{width}_d{depth}{suffix}'
  with errors.within(f'cell {name}'):
    batch_tokens = config.tokens_per_step()
    steps = round(config.tokens / batch_tokens)
    if steps < 1:
      raise errors.UserError(
        f'tokens: {config.tokens} is below one step, {batch_tokens}'
      )
    run = shapes.run(
      config,
      RUN_KEYS,
      cell=name,
      arm=arm,
      budget=0.0,
      model=shapes.model(
        config,
        (width, depth, width // config.head_width),
        model_config.even_exits(depth, exits),
      ),
      **{'seed': config.seeds[0], **changes},
      steps=steps,
      warmup_steps=round(config.warmup * steps),
    )
    return dataclasses.replace(run, budget=shapes.cost(run))


@dataclasses.dataclass(frozen=True)
class Law:
  """A form fitted to all points; see `laws.fit_record.FitRecord`."""

  form: str
  equation: str
  rows: int
  objective: float | None
  aic: float | None
  condition_number: float | None
  flags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Constant:
  """A constant of a form with its bootstrap interval by run."""

  form: str
  name: str
  value: Estimate
  identified: bool


@dataclasses.dataclass(frozen=True)
class HeldE:
  """The law with E held and all other constants fitted.

  Attributes:
    value: of E, nats per token.
    params: constants, E among them.
    aic_behind: AIC less the lowest of these fits and the one with E free; E
      counts as a constant in all.
    objective: of the fit.
    flags: diagnostics of the fit.
  """

  value: float
  params: dict[str, float]
  aic_behind: float | None
  objective: float
  flags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Rate:
  """A corner of the grid at another base rate.

  `over` is its loss over that of the grid's run of this shape, less 1.
  """

  width: int
  depth: int
  base_lr: float
  loss: float
  over: float


@text.brief
@dataclasses.dataclass(frozen=True)
class Tables:
  """Tables of a study of width and depth; `laws` is empty if none was fitted."""

  design: tuple[fit_record.Design, ...]
  laws: tuple[Law, ...]
  constants: tuple[Constant, ...]
  candidates: tuple[selection.Candidate, ...]
  cutoffs: tuple[sensitivity.Cutoff, ...]
  over_E: tuple[HeldE, ...]
  noise: tuple[comparison.Noise, ...]
  rates: tuple[Rate, ...]

  def constants_of(self, form: str = LAW) -> dict[str, Constant]:
    """Returns a form's constants by name; {} if it was not fitted."""
    return {row.name: row for row in self.constants if row.form == form}

  def law(self, form: str = LAW) -> fit_record.Law | None:
    """Returns a form with its constants, which predicts; None if not fitted."""
    values = {
      name: c.value.value for name, c in self.constants_of(form).items()
    }
    if not values:
      return None
    record = fit_record.FitRecord(form=form, params=dict(values))
    return fit_record.Law(forms.get(form), record)


class DepthLaw(execution.TrainedStudy[Config, Tables]):
  """The study of L(width, depth, D)."""

  kind = 'depth'
  config_class = Config
  tables_class = Tables
  free = ('fit', 'first_tokens', 'cutoffs')
  run_keys = RUN_KEYS
  train_defaults: Mapping[str, Any] = {'schedule': 'constant'}

  def runs(self, config: Config) -> list[RunConfig]:
    """Returns the grid, then its corners with other seeds and rates."""
    made = [
      run_of(config, 'grid', width, depth)
      for width in config.widths
      for depth in config.depths
    ]
    for width in (min(config.widths), max(config.widths)):
      for depth in (min(config.depths), max(config.depths)):
        made += [
          run_of(config, 'seed', width, depth, f'_seed{seed}', seed=seed)
          for seed in config.seeds[1:]
        ]
        made += [
          run_of(config, 'rate', width, depth, f'_lr{rate:g}', base_lr=rate)
          for rate in config.rates
        ]
    return execution.named_once(made)

  def fit(self, config: Config, results: study.Results) -> Iterator[str]:
    """Fits every form; yields what could not be fitted, and why."""
    try:
      table = points(config, results.rows)
      selection.compare(
        table,
        FORMS,
        results.folder / 'fits' / LOSS,
        config.fit.options(),
        loss_definition=LOSS,
      )
    except errors.UserError as error:
      yield str(error)
      return
    for count in _dropped(config, table):
      if not _enough(table, count):
        yield (
          f'cutoffs: without {count} of {table.rows} points too few are left to '
          f'fit {LAW}'
        )

  def analyse(
    self, config: Config, results: study.Results
  ) -> tuple[str, Tables]:
    """Returns the exponents by form, and how far they can be trusted."""
    folder = results.folder / 'fits' / LOSS
    paths = {form: folder / form / 'fit.json' for form in FORMS}
    laws = {
      form: fit_record.load(path)
      for form, path in paths.items()
      if path.exists()
    }
    candidates: tuple[selection.Candidate, ...] = ()
    cutoffs: tuple[sensitivity.Cutoff, ...] = ()
    over: tuple[HeldE, ...] = ()
    design = None
    if LAW in laws:
      path = folder / 'selection.json'
      candidates = fit_record.from_json(
        selection.Selection, storage.read_json(path), path
      ).candidates
      law, table = laws[LAW], points(config, results.rows)
      design = law.record.design
      counts = [n for n in _dropped(config, table) if _enough(table, n)]
      options = config.fit.options()
      cutoffs = sensitivity.scan(law.form, table, counts, options).cutoffs
      over = tuple(over_e(table, options, law.record.aic))
    spread = comparison.noise(results.finished)
    tables = Tables(
      design=(design,) if design else (),
      laws=tuple(study.record_of(Law, law.record) for law in laws.values()),
      constants=tuple(
        Constant(
          form, name, isoflop.constant(law, name), law.record.identified[name]
        )
        for form, law in laws.items()
        for name in law.params
      ),
      candidates=candidates,
      cutoffs=cutoffs,
      over_E=over,
      noise=(spread,) if spread else (),
      rates=tuple(_rates(results.finished)),
    )
    return _line(tables), tables


def points(
  config: Config, rows: Sequence[Mapping[str, Any]]
) -> tables_lib.Table:
  """Returns the evaluations of the grid and its seeds from `first_tokens` on."""
  table = tables_lib.from_rows(rows, LOSS, 'all', source='cells')
  condition = f'tokens>={config.first_tokens}'
  return table.take(table.where(condition), where=[condition])


def _dropped(config: Config, table: tables_lib.Table) -> list[int]:
  """Returns how many points of highest loss each fit leaves out."""
  return sorted({round(share * table.rows) for share in config.cutoffs})


def _enough(table: tables_lib.Table, dropped: int) -> bool:
  return table.rows - dropped > len(forms.get(LAW).names)


def over_e(
  table: tables_lib.Table, options: inference.Options, aic: float | None
) -> Iterator[HeldE]:
  """Yields the law with E held at shares of the lowest loss, from 0 on.

  Args:
    table: points of the law.
    options: of every fit.
    aic: of the fit that leaves E free.
  """
  lowest = float(table.columns['loss'].min())
  values = [share * lowest for share in HELD]
  fits = sensitivity.hold(forms.get(LAW), table, 'E', values, options)
  best = min(held.aic for held in fits)
  best = best if aic is None else min(aic, best)
  for held in fits:
    yield HeldE(
      value=held.value,
      params=held.params,
      aic_behind=held.aic - best,
      objective=held.objective,
      flags=held.flags,
    )


def _rates(runs: Sequence[study.Run]) -> Iterator[Rate]:
  grid = {(run.width, run.depth): run for run in runs if run.arm == 'grid'}
  for run in runs:
    same = grid.get((run.width, run.depth))
    if run.arm == 'rate' and same is not None:
      loss = run.loss(LOSS)
      over = loss / same.loss(LOSS) - 1
      yield Rate(run.width, run.depth, run.base_lr, loss, over)


def _line(tables: Tables) -> str:
  """Returns the exponents of the law, and the forms that the data prefer."""
  if not tables.candidates:
    return 'no law was fitted'
  exponents = ', '.join(
    f'{row.name} {row.value}{"" if row.identified else " (not identified)"}'
    for row in tables.constants_of().values()
    if row.name.startswith('a_')
  )
  line = f'{LAW}: {exponents}; AIC prefers {tables.candidates[0].form}'
  flags = next(law.flags for law in tables.laws if law.form == LAW)
  best = predicts_best(tables.candidates)
  if best:
    line += f', held-out shapes {best}'
  return f'{line} ({"; ".join(flags)})' if flags else line


def predicts_best(candidates: Sequence[selection.Candidate]) -> str | None:
  """Returns the form of the lowest error on held-out shapes; None if unknown."""
  held_out = [
    (c.by_model.error.value, c.form) for c in candidates if c.by_model
  ]
  return min(held_out)[1] if held_out else None


DEPTH = DepthLaw()
