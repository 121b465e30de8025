"""One law fitted to many selections of a table's rows at once."""

import math

import numpy as np

from familial.laws import estimation
from familial.laws import multistart as starts_lib
from familial.laws import parametric
from familial.laws import screening
from familial.laws import table as tables

STARTS = 256


def fit(
  form: parametric.Form,
  table: tables.Table,
  weights: np.ndarray,
  *,
  delta: float = estimation.DELTA,
  starts: int = STARTS,
  seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
  """The best of many starts in each group.

  Args:
    form: the law.
    table: of all rows.
    weights: of each row in each group, [groups, rows]; 0 leaves a row out.
    delta: as in estimate.fit.
    starts: of each group's multi-start.
    seed: of the starts.

  Returns:
    Coordinates [groups, parameters], and whether a group's rows could tell them
    apart at all, bool [groups]: it has more different points than parameters.
  """
  # Few numbers of rows are few programs: what is added has no weight.
  more = 2 ** max(6, math.ceil(math.log2(table.rows))) - table.rows
  every = np.append(np.arange(table.rows), np.zeros(more, int))
  columns = {name: values[every] for name, values in table.columns.items()}
  problem = screening.Problem(
    form,
    columns,
    np.log(columns['loss']),
    np.pad(weights * table.weight, ((0, 0), (0, more))),
    delta,
    1.0,
    np.ones(len(form.names), bool),
  )
  ends = screening.search_groups(
    problem, starts_lib.draw(form, starts, seed), np.zeros((0, len(form.names)))
  )
  points = np.stack([table.columns[name] for name in form.columns], axis=1)
  _, which = np.unique(points, axis=0, return_inverse=True)
  distinct = np.array([len(np.unique(which[row > 0])) for row in weights])
  return ends.theta, distinct > len(form.names)
