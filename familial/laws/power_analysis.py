"""Power analysis: the interval of a constant that a planned study would give.

Losses are drawn from an assumed law at the planned runs, with the measured
run-to-run noise, and the law is fitted to each draw.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import numpy as np

from familial.core import errors
from familial.core import estimate
from familial.laws import asymptotics
from familial.laws import estimation
from familial.laws import levenberg_marquardt
from familial.laws import parametric


@dataclasses.dataclass(frozen=True)
class Power:
  """Power of a planned study for one constant.

  Attributes:
    name: the constant.
    half_width: median over simulations of half its interval's width; inf where
      the plan cannot identify it.
    share_excluding_zero: share of simulations whose interval excludes 0.
    sd: of the estimates over the simulations.
    noise: standard deviation of a run's log loss that was assumed.
    level: of the intervals: estimate +- Student's t x the asymptotic standard
      deviation, clustered by run.
    rows: number of rows in the plan.
    runs: number of their runs.
    simulations: number of simulations.
    params: the assumed law's constants.
  """

  name: str
  half_width: float
  share_excluding_zero: float
  sd: float
  noise: float
  level: float
  rows: int
  runs: int
  simulations: int
  params: dict[str, float]


def simulate(
  form: parametric.Form,
  columns: Mapping[str, Any],
  run: Any,
  params: Mapping[str, float],
  noise: float,
  *,
  name: str = 'gamma',
  simulations: int = 200,
  level: float = estimate.LEVEL,
  delta: float = estimation.DELTA,
  seed: int = 0,
) -> Power:
  """Simulates a planned study and fits it, starting from the truth.

  Args:
    form: the law to assume and to fit.
    columns: the planned runs' columns, one value a row: N, D, G.
    run: the run of each row; a run's rows share its noise.
    params: the assumed law's constants.
    noise: standard deviation of a run's log loss about the law.
    name: the constant in question.
    simulations: number of simulations.
    level: of the intervals.
    delta: Huber's threshold.
    seed: of the draws.
  """
  if not noise > 0 or simulations < 2:
    raise errors.UserError(
      f'noise={noise}, simulations={simulations}: above 0, and at least 2'
    )
  j = form.index(name)
  arrays = {n: np.asarray(columns[n], np.float64) for n in form.columns}
  clusters = np.unique(np.asarray(run), return_inverse=True)[1]
  rows, runs, p = len(clusters), int(clusters.max()) + 1, len(form.names)
  half, estimates = np.full(simulations, math.inf), np.full(simulations, np.nan)
  if rows > p:
    rng = np.random.default_rng(seed)
    truth = np.log(form.predict(params, arrays))
    target = (
      truth + noise * rng.standard_normal((simulations, runs))[:, clusters]
    )
    problem = levenberg_marquardt.Problem(
      form, arrays, target, np.ones_like(target), delta, 1.0, np.ones(p, bool)
    )
    ends = levenberg_marquardt.solve(
      problem,
      np.tile(form.theta(params), (simulations, 1)),
      np.arange(simulations),
      first_delta=max(noise, delta),
      damping=1e-3,
    )
    value, jacobian = levenberg_marquardt.evaluate(form, arrays, ends.theta)
    quantile = estimate.quantile(max(runs - p, 1), level)
    for i in range(simulations):
      covariance, _ = asymptotics.covariance(
        jacobian[i], value[i] - target[i], clusters, delta, np.ones(rows)
      )
      half[i] = quantile * math.sqrt(covariance[j, j])
    estimates = form.values(ends.theta)[name]
  return Power(
    name=name,
    half_width=float(np.median(half)),
    share_excluding_zero=float(np.mean(np.abs(estimates) > half)),
    sd=float(np.std(estimates, ddof=1)),
    noise=noise,
    level=level,
    rows=rows,
    runs=runs,
    simulations=simulations,
    params=dict(params),
  )
