"""What an IsoFLOP study asks for."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from familial.core import errors
from familial.data import config as data_config
from familial.training import config as train_config

_NAME = (lambda value: isinstance(value, str), 'a name')
# Of what each arm varies over: whether a value is one, and what it must be.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
  'seed': (lambda value: _is_int(value) and value >= 0, 'an integer from 0'),
  'twin': (lambda value: False, 'left out: the exits give the shapes'),
  'weighting': _NAME,
  'frozen': _NAME,
  'kind': _NAME,
  'branch': (
    lambda value: isinstance(value, tuple) and all(map(_is_int, value)),
    'the layers of exits, as (2, 4, 8)',
  ),
  'rate': (
    lambda value: isinstance(value, (int, float)) and 0 < value < math.inf,
    'a positive rate',
  ),
  'gradients': (lambda value: _is_int(value) and value >= 1, 'at least 1'),
}
ARMS = tuple(_VALUES)


@dataclasses.dataclass(frozen=True)
class Rules:
  """What follows the budget C.

  Attributes:
    batch_tokens: tokens per step at `at_budget`.
    at_budget: FLOPs.
    batch_exponent: tokens per step grow as C to this power, rounded to a power
      of two of sequences.
    beta2: AdamW's at `batch_tokens`; elsewhere such that the average spans as
      many tokens: beta2 ** (batch / batch_tokens).
    warmup: share of a run's steps.
  """

  batch_tokens: int = 1024
  at_budget: float = 1e11
  batch_exponent: float = 1 / 3
  beta2: float = 0.99
  warmup: float = 0.05

  def __post_init__(self) -> None:
    errors.require(
      self.batch_tokens >= 1,
      'rules.batch_tokens',
      self.batch_tokens,
      'at least 1',
    )
    errors.require(
      0 < self.at_budget < math.inf,
      'rules.at_budget',
      self.at_budget,
      'positive FLOPs',
    )
    errors.require(
      0 <= self.batch_exponent <= 1,
      'rules.batch_exponent',
      self.batch_exponent,
      'within 0 to 1',
    )
    errors.require(
      0 < self.beta2 < 1, 'rules.beta2', self.beta2, 'between 0 and 1'
    )
    errors.require(
      0 <= self.warmup <= 1, 'rules.warmup', self.warmup, 'within 0 to 1'
    )


@dataclasses.dataclass(frozen=True)
class Grid:
  """The IsoFLOP grid: every budget x shape x granularity is a cell.

  Attributes:
    budgets: C, in FLOPs.
    shapes: (width, depth, heads) each.
    granularities: G, exits evenly spaced.
    shapes_of: for each budget the indices of the shapes sampled there, around
      its optimum; () for all of them.
    seed: of every cell.
    seconds: time that the study may take on the machine at hand; budgets are
      left out from the top until the calibrated plan fits. 0 for no limit.
  """

  budgets: tuple[float, ...]
  shapes: tuple[tuple[int, int, int], ...]
  granularities: tuple[int, ...]
  shapes_of: tuple[tuple[int, ...], ...] = ()
  seed: int = 0
  seconds: float = 0.0

  def __post_init__(self) -> None:
    for key in ('budgets', 'shapes', 'granularities'):
      if not getattr(self, key):
        raise errors.UserError(f'grid.{key}: is empty; it needs at least one')
    for shape in self.shapes:
      if len(shape) != 3:
        raise errors.UserError(
          f'grid.shapes: {shape} is not (width, depth, heads)'
        )
    if self.shapes_of and len(self.shapes_of) != len(self.budgets):
      raise errors.UserError(
        f'grid.shapes_of: has {len(self.shapes_of)} entries; it needs one '
        f'for each of the {len(self.budgets)} budgets, or none'
      )
    for index in (i for indices in self.shapes_of for i in indices):
      if not 0 <= index < len(self.shapes):
        raise errors.UserError(
          f'grid.shapes_of: {index} is not an index 0..'
          f'{len(self.shapes) - 1} of grid.shapes'
        )
    _require_budgets('grid', self.budgets)
    errors.require(self.seed >= 0, 'grid.seed', self.seed, 'at least 0')
    errors.require(
      self.seconds >= 0, 'grid.seconds', self.seconds, 'at least 0'
    )


@dataclasses.dataclass(frozen=True)
class Arm:
  """Cells beside the grid, at some of its budgets, shapes and granularities.

  Attributes:
    budgets: where; not necessarily of the grid.
    shapes: where, by index in the grid's shapes.
    granularities: where.
    values: what varies: `seed`: seeds; `twin`: nothing (a dense model of the
      exact shape of each exit); `weighting`: loss weightings; `frozen`: exit
      kinds trained on the trunk of the dense cell; `kind`: exit kinds trained
      jointly; `branch`: tuples of exit layers; `rate`: base rates;
      `gradients`: numbers of evaluations, at which the exits' gradients are
      compared.
    share: `frozen`: FLOPs for the exits as a share of the budget.
  """

  budgets: tuple[float, ...]
  shapes: tuple[int, ...]
  granularities: tuple[int, ...] = (1,)
  values: tuple[Any, ...] = ()
  share: float = 0.25


@dataclasses.dataclass(frozen=True)
class Fit:
  """How the law is fitted.

  Attributes:
    delta: of the Huber loss on log loss.
    starts: of the multi-start.
    resamples: of the bootstrap by run.
  """

  delta: float = 1e-3
  starts: int = 256
  resamples: int = 1000

  def __post_init__(self) -> None:
    errors.require(self.delta > 0, 'fit.delta', self.delta, 'positive')
    errors.require(self.starts >= 1, 'fit.starts', self.starts, 'at least 1')
    errors.require(
      self.resamples >= 2, 'fit.resamples', self.resamples, 'at least 2'
    )


@dataclasses.dataclass(frozen=True)
class AssumedLaw:
  """The law and noise under which the plan predicts gamma's interval.

  Attributes:
    E: irreducible loss, nats per token.
    A: of A / N^alpha.
    B: of B / D^beta.
    alpha: exponent of N.
    beta: exponent of D.
    gamma: exponent of G.
    noise: standard deviation of a run's log loss about the law, seeds included.
  """

  E: float
  A: float
  B: float
  alpha: float
  beta: float
  gamma: float = 0.033
  noise: float = 0.01

  def __post_init__(self) -> None:
    for key in ('E', 'A', 'B', 'alpha', 'beta', 'noise'):
      value = getattr(self, key)
      errors.require(0 < value < math.inf, f'assumed.{key}', value, 'above 0')
    errors.require(
      math.isfinite(self.gamma), 'assumed.gamma', self.gamma, 'finite'
    )


@dataclasses.dataclass(frozen=True)
class StudyConfig:
  """An IsoFLOP study.

  Attributes:
    title: heads the report.
    data: the corpus.
    model: keyword arguments of ModelConfig that all cells share, and
      `mlp_ratio`, `kv_ratio`: F / D and K / H.
    train: keyword arguments of TrainConfig that all cells share.
    rules: what follows the budget.
    grid: the cells.
    arms: cells beside the grid, by what they vary.
    fit: of the law.
    assumed: law for the plan.
    layout: of all cells on their devices.
  """

  title: str
  data: data_config.DataConfig
  model: dict[str, Any]
  train: dict[str, Any]
  rules: Rules
  grid: Grid
  arms: dict[str, Arm]
  fit: Fit
  assumed: AssumedLaw
  layout: train_config.LayoutConfig = dataclasses.field(
    default_factory=train_config.LayoutConfig
  )

  def __post_init__(self) -> None:
    for name in self.arms:
      if name not in ARMS:
        raise errors.UserError(
          f'arms.{name}: not one of {", ".join(ARMS)}'
          f'{errors.nearest(name, ARMS)}'
        )
    for name, arm in self.arms.items():
      if name != 'twin' and not arm.values:
        raise errors.UserError(f'arms.{name}.values: is empty: no cell to make')
      if name == 'seed' and self.grid.seed in arm.values:
        raise errors.UserError(
          f'arms.seed.values: {self.grid.seed} is the seed of the grid; '
          'name others'
        )
      for key in ('budgets', 'shapes', 'granularities'):
        if not getattr(arm, key):
          raise errors.UserError(
            f'arms.{name}.{key}: is empty: no cell to make'
          )
      _require_budgets(f'arms.{name}', arm.budgets)
      errors.require(arm.share > 0, f'arms.{name}.share', arm.share, 'above 0')
      right, what = _VALUES[name]
      for value in arm.values:
        if not right(value):
          raise errors.UserError(
            f'arms.{name}.values: {value!r} is not allowed; it must be {what}'
          )


def sampled(grid: Grid) -> dict[float, tuple[tuple[int, int, int], ...]]:
  """Returns the shapes sampled at each budget."""
  every = tuple(range(len(grid.shapes)))
  return {
    budget: tuple(grid.shapes[i] for i in indices)
    for budget, indices in zip(
      grid.budgets, grid.shapes_of or (every,) * len(grid.budgets), strict=True
    )
  }


def _is_int(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _require_budgets(section: str, budgets: tuple[float, ...]) -> None:
  for budget in budgets:
    if not 0 < budget < math.inf:
      raise errors.UserError(
        f'{section}.budgets: {budget} must be positive FLOPs'
      )
