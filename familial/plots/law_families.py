"""What the figures of compute draw: granularities, budgets, optima.

Symbols as in the literature: N parameters, D tokens, G exits, C FLOPs.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses

import numpy as np

from familial.laws import frontier
from familial.laws import inference
from familial.laws import table as tables
from familial.plots import law_parts as parts

_BUDGETS = 8  # drawn, at most
NEAR = 1.25  # largest over smallest C that count as one budget


@dataclasses.dataclass(frozen=True)
class Budget:
  """Rows of about one C, with the parabola's minimum or None.

  `cost` is their mean C, `name` that of all granularities.
  """

  name: float
  cost: float
  rows: np.ndarray  # indices
  minimum: frontier.Minimum | None


@dataclasses.dataclass(frozen=True)
class Family:
  """One granularity: its rows and what the law says at its budgets.

  `optimum` is of the law and its resamples [1 + s, c], at the costs of the
  budgets and then at those of `grid`.
  """

  label: str
  exits: float
  others: dict[str, float]
  rows: np.ndarray  # indices
  cost: frontier.TokenCost
  budgets: tuple[Budget, ...]
  grid: np.ndarray
  optimum: frontier.Optimum

  def columns(self, params: np.ndarray, cost: float) -> dict[str, np.ndarray]:
    """The columns of models of N parameters that cost C."""
    tokens = cost / self.cost(params)
    others = {k: np.full_like(params, v) for k, v in self.others.items()}
    return {'N': params, 'D': tokens, **others}

  @property
  def known(self) -> bool:
    """Whether the law has an optimum at any C."""
    return bool(self.optimum.interior[0, len(self.budgets) :].any())

  def along(
    self, values: np.ndarray, share: float
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of values [1 + s, c] of `optimum`: the law's and both ends, on `grid`."""
    values = values[:, len(self.budgets) :]
    return values[0], *parts.ends(values[1:], share)


def families(found: inference.Result) -> list[Family]:
  """The granularities whose optimum the law knows; [] without N and D."""
  cost = found.table.cost
  if cost is None or not {'N', 'D'} <= set(found.fit.form.columns):
    return []
  theta = np.concatenate([found.fit.theta[None], parts.theta(found)])
  groups = _groups(found.table)
  grid = np.unique(  # holds the largest run's
    [
      *np.geomspace(cost.min(), cost.max(), 16),
      *np.geomspace(cost.max(), 10 * cost.max(), 8),
    ]
  )
  families = []
  for label, exits, others, rows in frontier.granularities(
    found.fit.form, found.table
  ):
    budgets = tuple(_budgets(found.table, groups, rows))
    token_cost = frontier.cost_of(found.table, rows)
    compute = np.append([budget.cost for budget in budgets], grid)
    optimum = frontier.optimum(
      found.fit.form, theta, compute.tolist(), token_cost, others
    )
    families.append(
      Family(label, exits, others, rows, token_cost, budgets, grid, optimum)
    )
  return families


def _groups(table: tables.Table) -> list[np.ndarray]:
  """Rows of about one C, bool [rows] each, at most _BUDGETS, lowest C first.

  By the column budget; else the fullest windows of C that do not overlap.
  """
  if 'budget' in table.columns:
    budget = table.columns['budget']
    values = np.unique(budget)
    picked = np.linspace(0, len(values) - 1, min(len(values), _BUDGETS))
    return [budget == values[i] for i in picked.astype(int)]
  assert table.cost is not None
  log_c = np.log(table.cost)
  left = np.ones(table.rows, bool)
  found: list[np.ndarray] = []
  while left.any() and len(found) < _BUDGETS:
    costs = np.sort(log_c[left])
    stop = np.searchsorted(costs, costs + np.log(NEAR) + 1e-9, 'right')
    start = int(np.argmax(stop - np.arange(len(costs))))
    low, high = costs[start], costs[stop[start] - 1]
    found.append(left & (log_c >= low) & (log_c <= high))
    left &= ~found[-1]
  return sorted(found, key=lambda group: log_c[group].mean())


def _budgets(
  table: tables.Table, groups: Sequence[np.ndarray], rows: np.ndarray
) -> Iterator[Budget]:
  """The budgets at which a granularity has two sizes or more."""
  assert table.cost is not None
  for group in groups:
    here = rows[group[rows]]
    sizes, losses = table.columns['N'][here], table.columns['loss'][here]
    if len(np.unique(sizes)) > (1 if 'budget' in table.columns else 3):
      low = frontier.minimum(sizes, losses)
      name, cost = (
        float(np.exp(np.log(table.cost[of]).mean())) for of in (group, here)
      )
      yield Budget(name, cost, here, low if low.interior else None)
