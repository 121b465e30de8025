"""The cells of an IsoFLOP study: every one costs its budget, exactly counted.

Tokens follow from the budget: steps = C / (FLOPs of a step), rounded to whole
steps, so a cell of at least 200 steps is within 0.25 % of its budget.
"""

from collections.abc import Callable
from collections.abc import Iterator
import dataclasses
import math
from typing import Any

from familial.core import errors
from familial.model import config as model_config
from familial.model import flops as flops_lib
from familial.studies import config as study_config
from familial.training import config as train_config

RunConfig = train_config.RunConfig
StudyConfig = study_config.StudyConfig
Shape = tuple[int, int, int]
# Of a model, beside ModelConfig's own keys: F / D and K / H.
RATIOS = {'mlp_ratio': 2.75, 'kv_ratio': 1.0}
# What a cell decides for itself.
SHAPE_KEYS = (
  'width',
  'depth',
  'heads',
  'exits',
  'vocab_size',
  'kv_heads',
  'mlp_width',
)
BUDGET_KEYS = ('steps', 'batch_size', 'warmup_steps', 'beta2', 'seed')


def build(study: StudyConfig) -> list[RunConfig]:
  """Returns the study's runs, the grid first; each cell's name is unique.

  Raises:
    UserError: if a cell cannot be: exits beyond its depth, heads that do not
      divide its width, a budget below one step, or two cells that are one.
  """
  cells: dict[str, RunConfig] = {}
  for cell in _all(study):
    if cells.get(cell.cell, cell) != cell:
      raise errors.UserError(f'{cell.cell}: two different cells of this name')
    cells[cell.cell] = cell
  return list(cells.values())


def model(
  study: Any,
  shape: Shape,
  exits: tuple[int, ...],
  **changes: Any,
) -> model_config.ModelConfig:
  """Returns the model of a (width, depth, heads) and its exits, in a study that
  has `model` and `data`."""
  width, depth, heads = shape
  given = dict(study.model)
  mlp_ratio, kv_ratio = (given.pop(key, RATIOS[key]) for key in RATIOS)
  for key, ratio in (('mlp_ratio', mlp_ratio), ('kv_ratio', kv_ratio)):
    if not 0 < ratio < math.inf:
      raise errors.UserError(f'model.{key}: {ratio} must be above 0')
  return make(
    model_config.ModelConfig,
    'model',
    SHAPE_KEYS,
    {
      **given,
      **changes,
      'vocab_size': study.data.vocab_size,
      'width': width,
      'depth': depth,
      'heads': heads,
      'kv_heads': max(1, round(heads * kv_ratio)),
      'mlp_width': round(width * mlp_ratio),
      'exits': exits,
    },
    given,
  )


def batch_size(study: StudyConfig, budget: float) -> int:
  """Returns the sequences per step at a budget: a power of two."""
  rules = study.rules
  tokens = (
    rules.batch_tokens * (budget / rules.at_budget) ** rules.batch_exponent
  )
  return 2 ** max(0, round(math.log2(tokens / study.data.seq_len)))


def cost(cell: RunConfig) -> float:
  """Returns the FLOPs that a run will have spent, its parent's left out."""
  return (
    cell.train.steps
    * cell.train.batch_size
    * cell.data.seq_len
    * flops_lib.train(cell.model, cell.data.seq_len, cell.train.trained)
  )


def _all(study: StudyConfig) -> Iterator[RunConfig]:
  grid = study.grid
  for budget, shapes in study_config.sampled(grid).items():
    for shape in shapes:
      for granularity in grid.granularities:
        yield _cell(study, 'grid', budget, shape, granularity)
  for name, arm in study.arms.items():
    for index in arm.shapes:
      if not 0 <= index < len(grid.shapes):
        raise errors.UserError(
          f'arms.{name}.shapes: {index} is not an index '
          f'0..{len(grid.shapes) - 1} of grid.shapes'
        )
      for budget in arm.budgets:
        for granularity in arm.granularities:
          yield from _ARMS[name](
            study, arm, budget, grid.shapes[index], granularity
          )


def _cell(
  study: StudyConfig,
  arm: str,
  budget: float,
  shape: Shape,
  granularity: int,
  *,
  suffix: str = '',
  exits: tuple[int, ...] | None = None,
  share: float = 1.0,
  model_changes: dict[str, Any] | None = None,
  **train_changes: Any,
) -> RunConfig:
  width, depth, _ = shape
  name = f'c{short(budget)}_w{width}_d{depth}_g{granularity}{suffix}'
  try:
    exits = exits or model_config.even_exits(depth, granularity)
    model_ = model(study, shape, exits, **(model_changes or {}))
    batch = batch_size(study, budget)
    rules, batch_tokens = study.rules, batch * study.data.seq_len
    step_flops = batch_tokens * flops_lib.train(
      model_, study.data.seq_len, train_changes.get('trained', 'all')
    )
    steps = round(share * budget / step_flops)
    if steps < 1:
      raise errors.UserError(
        f'grid.budgets: {budget:g} FLOPs is below one step of this cell, '
        f'{step_flops:.3g}'
      )
    train = make(
      train_config.TrainConfig,
      'train',
      BUDGET_KEYS,
      {
        'seed': study.grid.seed,
        **study.train,
        **train_changes,
        'steps': steps,
        'batch_size': batch,
        'warmup_steps': round(rules.warmup * steps),
        'beta2': rules.beta2 ** (batch_tokens / rules.batch_tokens),
      },
      study.train,
    )
    return RunConfig(
      cell=name,
      arm=arm,
      budget=share * budget,
      model=model_,
      data=study.data,
      train=train,
      layout=study.layout,
    )
  except errors.UserError as error:
    raise errors.UserError(f'cell {name}: {error}') from None


def _twins(
  study: StudyConfig,
  arm: study_config.Arm,
  budget: float,
  shape: Shape,
  granularity: int,
) -> Iterator[RunConfig]:
  """Dense cells of each exit's shape; the last exit's is in the grid."""
  del arm
  width, depth, heads = shape
  family = model(study, shape, model_config.even_exits(depth, granularity))
  in_grid = [
    model(study, dense, (dense[1],))
    for dense in study_config.sampled(study.grid).get(budget, ())
    if 1 in study.grid.granularities
  ]
  for exit_ in range(1, family.granularity):
    dense = family.submodel(exit_)
    twin = _cell(
      study,
      'twin',
      budget,
      (width, dense.depth, heads),
      1,
      suffix='_twin',
      model_changes={'tied': dense.tied},
    )
    if twin.model not in in_grid:
      yield twin


def _frozen(
  study: StudyConfig,
  arm: study_config.Arm,
  budget: float,
  shape: Shape,
  granularity: int,
) -> Iterator[RunConfig]:
  """Exits on the trunk of the dense cell of the same budget and shape."""
  if granularity < 2:
    raise errors.UserError(
      f'arms.frozen.granularities: {granularity} has no exit beside the last '
      'one to train on the trunk; it must be at least 2'
    )
  dense = _cell(study, 'grid', budget, shape, 1)
  in_grid = study_config.sampled(study.grid).get(budget, ())
  if shape not in in_grid or 1 not in study.grid.granularities:
    raise errors.UserError(
      f'arms.frozen: needs the dense cell {dense.cell} in the grid'
    )
  for kind in arm.values:
    yield _cell(
      study,
      'frozen',
      budget,
      shape,
      granularity,
      suffix=f'_frozen_{kind}',
      share=arm.share,
      trained='exits',
      init_from=f'../{dense.cell}',
      model_changes={'exit_kind': kind},
    )


def _branches(
  study: StudyConfig,
  arm: study_config.Arm,
  budget: float,
  shape: Shape,
  granularity: int,
) -> Iterator[RunConfig]:
  del granularity
  for exits in arm.values:
    suffix = '_at' + '-'.join(map(str, exits))
    yield _cell(
      study,
      'branch',
      budget,
      shape,
      len(exits),
      suffix=suffix,
      exits=tuple(exits),
    )


def _varying(
  name: str, changes: Callable[[Any], dict[str, Any]]
) -> Callable[..., Iterator[RunConfig]]:
  """Returns an arm that makes one cell of each value: a change to it."""

  def arm_cells(
    study: StudyConfig,
    arm: study_config.Arm,
    budget: float,
    shape: Shape,
    granularity: int,
  ) -> Iterator[RunConfig]:
    for value in arm.values:
      yield _cell(study, name, budget, shape, granularity, **changes(value))

  return arm_cells


_ARMS = {
  'seed': _varying('seed', lambda v: {'suffix': f'_seed{v}', 'seed': v}),
  'twin': _twins,
  'weighting': _varying(
    'weighting', lambda v: {'suffix': f'_{v}', 'weighting': v}
  ),
  'frozen': _frozen,
  'kind': _varying(
    'kind',
    lambda v: {'suffix': f'_{v}', 'model_changes': {'exit_kind': v}},
  ),
  'branch': _branches,
  'rate': _varying('rate', lambda v: {'suffix': f'_lr{v:g}', 'base_lr': v}),
  'gradients': _varying(
    'gradients',
    lambda v: {'suffix': '_gradients', 'gradients': True, 'evaluations': v},
  ),
}


def make(
  cls: Any,
  section: str,
  reserved: tuple[str, ...],
  values: dict[str, Any],
  given: dict[str, Any],
) -> Any:
  """Returns a dataclass of a study's values, refusing keys it lacks or that the cell decides."""
  fields = {field.name for field in dataclasses.fields(cls)}
  allowed = {*fields, *(RATIOS if section == 'model' else ())} - {*reserved}
  for key in given:
    if key in reserved:
      raise errors.UserError(
        f'{section}.{key}: follows from the cell; it cannot be set for all'
      )
    if key not in fields:
      raise errors.UserError(
        f'{section}.{key}: unknown key{errors.nearest(key, allowed)}'
      )
  return cls(**values)


def short(budget: float) -> str:
  """Returns 3.2e12 for 3.2e12."""
  mantissa, exponent = f'{budget:.3e}'.split('e')
  return f'{float(mantissa):g}e{int(exponent)}'
