"""Costs of the sizes of a family, grown from each other or trained separately.

Every size has a budget, that of training it alone. Each stage of a growth chain
spends what its budget leaves after the stages before, so that the whole chain
costs as much as the largest size: with tokens in proportion to parameters and
sizes 1 : 2 : 4 : 8, 1 - 64 / (1 + 4 + 16 + 64) = 24.7 % less.
Source: arXiv 2504.00623.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from familial.core import errors
from familial.model import config as model_config
from familial.model import flops as flops_lib


@dataclasses.dataclass(frozen=True)
class Stage:
  """A run of a family.

  Attributes:
    model: model that is trained.
    budget: planned FLOPs of its largest member, those of its parents included.
    steps: steps of the run.
    tokens: tokens of the run.
    flops: FLOPs of the run.
    total: FLOPs of the run and of the stages that it grew from.
  """

  model: model_config.ModelConfig
  budget: float
  steps: int
  tokens: int
  flops: int
  total: int


def shares(
  models: Sequence[model_config.ModelConfig], seq_len: int
) -> list[float]:
  """Returns budgets relative to the largest, for tokens proportional to N."""
  costs = [
    flops_lib.params_full(model) * flops_lib.train(model, seq_len)
    for model in models
  ]
  return [cost / costs[-1] for cost in costs]


def stages(
  models: Sequence[model_config.ModelConfig],
  budgets: Sequence[float],
  seq_len: int,
  batch_size: int,
  *,
  grown: bool,
) -> list[Stage]:
  """Returns the runs that bring every size to its budget, within half a step.

  Args:
    models: models of the runs, the smallest first.
    budgets: budget of each, in FLOPs.
    seq_len: length of the sequences.
    batch_size: sequences of a step.
    grown: whether each model grows from the one before.

  Raises:
    UserError: if a budget leaves no step after the stages before it.
  """
  result: list[Stage] = []
  for model, budget in zip(models, budgets, strict=True):
    before = result[-1].total if grown and result else 0
    tokens = batch_size * seq_len
    step = tokens * flops_lib.train(model, seq_len)
    steps = round((budget - before) / step)
    if steps < 1:
      raise errors.UserError(
        f'budgets: {budget:g} FLOPs for depth {model.depth} and width '
        f'{model.width} leave no step of {step:.3g} after the {before:.3g} of '
        'the sizes that it grows from'
      )
    result.append(
      Stage(
        model=model,
        budget=budget,
        steps=steps,
        tokens=steps * tokens,
        flops=steps * step,
        total=before + steps * step,
      )
    )
  return result


def steps_off(stage: Mapping[str, Any]) -> float:
  """Returns the distance of a planned stage from its budget, in its steps.

  Args:
    stage: fields of a Stage, of which `budget`, `steps`, `flops` and `total` are
      read.
  """
  off: float = stage['total'] - stage['budget']
  return off / stage['flops'] * stage['steps']


def saving(chain: Sequence[Stage]) -> float:
  """Returns the saving of a chain relative to training its sizes alone."""
  return 1 - chain[-1].total / sum(stage.total for stage in chain)
