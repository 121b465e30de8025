"""What the members of a family cost, grown from each other or by themselves.

Every size has a budget of its own, what it would be trained with alone. A chain
spends on each stage what its budget leaves after the stages before, so it
reaches all of them for the price of the largest: with tokens in proportion to
parameters and sizes 1 : 2 : 4 : 8, 1 - 64 / (1 + 4 + 16 + 64) = 24.7 % less.
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
    model: that is trained.
    budget: FLOPs that its largest member shall have had, its parents' included.
    steps: of the run.
    tokens: of the run.
    flops: of the run.
    total: with those of the stages that it grew from.
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
  """Returns the sizes' budgets as shares of the largest's: tokens in proportion
  to parameters."""
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
    models: of the runs, the smallest first.
    budgets: of each, in FLOPs.
    seq_len: tokens that attention spans.
    batch_size: sequences of a step.
    grown: whether each model grows from the one before.

  Raises:
    UserError: if a budget is not enough for a step after those before it.
  """
  found: list[Stage] = []
  for model, budget in zip(models, budgets, strict=True):
    before = found[-1].total if grown and found else 0
    tokens = batch_size * seq_len
    step = tokens * flops_lib.train(model, seq_len)
    steps = round((budget - before) / step)
    if steps < 1:
      raise errors.UserError(
        f'budgets: {budget:g} FLOPs for depth {model.depth} and width '
        f'{model.width} leave no step of {step:.3g} after the {before:.3g} of '
        'the sizes that it grows from'
      )
    found.append(
      Stage(
        model=model,
        budget=budget,
        steps=steps,
        tokens=steps * tokens,
        flops=steps * step,
        total=before + steps * step,
      )
    )
  return found


def steps_off(stage: Mapping[str, Any]) -> float:
  """Returns how far a stage of a plan is from its budget, in its own steps.

  Args:
    stage: with `budget`, `steps`, `flops` and `total` as Stage has them.
  """
  off: float = stage['total'] - stage['budget']
  return off / stage['flops'] * stage['steps']


def saving(chain: Sequence[Stage]) -> float:
  """Returns what a chain costs less than its sizes trained alone, as a share."""
  return 1 - chain[-1].total / sum(stage.total for stage in chain)
