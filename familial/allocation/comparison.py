"""Policies compared over draws: the contents of allocation.json."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import math
import pathlib
import time
from typing import Any

import numpy as np

from familial.allocation import config as config_lib
from familial.allocation import envelope
from familial.allocation import halving
from familial.allocation import policies
from familial.allocation import replay
from familial.core import estimate
from familial.core import storage
from familial.core import text as text_lib
from familial.laws import fit_record
from familial.laws import inference

RESULT = 'allocation.json'
DRAWS = 'draws.jsonl'
LEVEL = estimate.LEVEL  # of intervals over draws
BASE, BOUND = policies.BASE, policies.BOUND
_RESAMPLES = 2000
_MEANS = ('best', 'spent', 'gain', 'regret', 'saving', 'slope', 'area')
_UNKNOWN = estimate.Estimate(math.nan, None, None)


@dataclasses.dataclass(frozen=True)
class PolicySummary:
  """A policy over the draws of a cell, with intervals.

  Draws share curves: an interval is that of the mean over draws of these curves,
  not of other curves.

  Attributes:
    best: mean of `replay.Outcome.best`; the fields down to `area` likewise.
    line_error: median absolute error of the frontier's line; infinite in draws
      without one.
    line_error_less: mean difference of that error of `sh` to this policy's,
      over draws where both are finite.
    line_within_1_percent: share of draws with an error of at most 1 %.
    line_fits: number of draws with a line.
    law_error: of the fitted law; the other `law_` fields likewise.
    share_of_bound: mean gain over the oracle's mean gain.
  """

  best: estimate.Estimate
  spent: estimate.Estimate
  gain: estimate.Estimate
  regret: estimate.Estimate
  saving: estimate.Estimate
  slope: estimate.Estimate
  area: estimate.Estimate
  line_error: estimate.Estimate
  line_error_less: estimate.Estimate
  line_within_1_percent: estimate.Estimate
  line_fits: int
  law_error: estimate.Estimate
  law_error_less: estimate.Estimate
  law_within_1_percent: estimate.Estimate
  law_fits: int
  share_of_bound: estimate.Estimate


@dataclasses.dataclass(frozen=True)
class Calibration:
  """A surrogate's predictions after one round; medians over predictions.

  Attributes:
    round: from 1.
    predictions: number of them.
    coverage: share of true losses within the interval, nominally
      surrogate.LEVEL; its own interval resamples draws, whose curves err alike.
    error: absolute relative error of the mean.
    held_error: of the last loss seen.
    bias: signed relative error of the mean.
    width: of the interval, over the true loss; NaN in files without it.
  """

  round: int
  predictions: int
  coverage: estimate.Estimate
  error: float
  held_error: float
  bias: float
  width: float = math.nan


@text_lib.brief
@dataclasses.dataclass(frozen=True)
class CellSummary:
  """A cell of a replay.

  Attributes:
    table: name of the curves.
    source: `path` and `sha256` of the curves.
    flags: what was corrected or left out in reading them.
    curves: number of curves.
    candidates: number drawn.
    budget: FLOPs.
    eta: Successive Halving factor.
    rounds: number of survivors in each round.
    draws: number of draws.
    policies: by name.
    calibration: of each policy with a surrogate, by round.
    seconds: taken by each policy.
  """

  table: str
  source: Mapping[str, str]
  flags: tuple[str, ...]
  curves: int
  candidates: int
  budget: float
  eta: int
  rounds: tuple[int, ...]
  draws: int
  policies: Mapping[str, PolicySummary]
  calibration: Mapping[str, tuple[Calibration, ...]]
  seconds: Mapping[str, float]


@text_lib.brief
@dataclasses.dataclass(frozen=True)
class ReplaySummary:
  """Contents of allocation.json.

  Attributes:
    title: of the replay.
    config: of the replay.
    level: of intervals over draws.
    frontiers: of each table's curves.
    cells: in the config's order for each table.
    seconds: of the whole replay.
    versions: of the packages used.
    summary_line: gains of all policies in all cells.
  """

  title: str
  config: config_lib.ReplayConfig
  level: float
  frontiers: Mapping[str, tuple[envelope.Description, ...]]
  cells: tuple[CellSummary, ...]
  seconds: float
  versions: Mapping[str, str | None]
  summary_line: str

  def write(self, path: pathlib.Path) -> None:
    """Writes allocation.json; NaN and infinity become null."""
    values = {'schema': storage.SCHEMA, **dataclasses.asdict(self)}
    fit_record.write_json(path, values)

  @classmethod
  def read(cls, path: pathlib.Path) -> ReplaySummary:
    """Reads allocation.json."""
    return fit_record.from_json(cls, _with_nan(storage.read_own(path)), path)


def run(
  config: config_lib.ReplayConfig, out: str | pathlib.Path
) -> tuple[ReplaySummary, list[replay.Cell]]:
  """Replays every cell on every table, and prints each when it is done.

  Writes OUT/allocation.json and OUT/draws.jsonl, one row per draw and policy;
  the rows of a draw are there when it ends.

  Raises:
    UserError: if a table or a cell cannot be used.
  """
  start = time.monotonic()
  out = pathlib.Path(out)
  cells: list[replay.Cell] = []
  summaries = []

  def write(draws: Sequence[replay.Draw]) -> None:
    if not cells and not draws[0].draw:
      storage.write_text(out / DRAWS, '')
    storage.append(out / DRAWS, map(_row, draws))

  for cell in replay.run(config, write):
    cells.append(cell)
    summaries.append(summarise(cell, config.eta))
    print(text(summaries[-1]), flush=True)
  result = ReplaySummary(
    title=config.title,
    config=config,
    level=LEVEL,
    frontiers={
      cell.table: envelope.describe(cell.pool.curves) for cell in cells
    },
    cells=tuple(summaries),
    seconds=time.monotonic() - start,
    versions=inference.versions(),
    summary_line=line(summaries),
  )
  result.write(out / RESULT)
  storage.write_text(
    out / DRAWS,
    storage.json_lines(_row(draw) for cell in cells for draw in cell.draws),
  )
  return result, cells


def _row(draw: replay.Draw) -> dict[str, Any]:
  """A draw's row in draws.jsonl."""
  values = dataclasses.asdict(draw)
  del values['predictions']
  outcome = values.pop('outcome')
  row: dict[str, Any] = fit_record.plain({**values, **outcome})
  return row


def summarise(cell: replay.Cell, eta: int) -> CellSummary:
  """Returns the statistics of a cell's draws."""
  of = {
    policy: [draw for draw in cell.draws if draw.policy == policy]
    for policy in cell.allocations
  }
  return CellSummary(
    table=cell.table,
    source={'path': cell.pool.source, 'sha256': cell.pool.sha256},
    flags=cell.pool.flags,
    curves=len(cell.pool.curves),
    candidates=cell.candidates,
    budget=cell.budget,
    eta=eta,
    rounds=halving.survivors(cell.candidates, eta),
    draws=len(of[BASE]),
    policies={
      policy: summary(draws, of[BASE], of[BOUND])
      for policy, draws in of.items()
    },
    calibration={
      policy: calibration(draws)
      for policy, draws in of.items()
      if any(draw.predictions for draw in draws)
    },
    seconds=cell.seconds,
  )


def summary(
  draws: Sequence[replay.Draw],
  base: Sequence[replay.Draw],
  bound: Sequence[replay.Draw],
) -> PolicySummary:
  """Returns the statistics of a policy; `base` and `bound` are of equal draws."""
  values: dict[str, Any] = {
    key: interval(_column(draws, key), np.mean) for key in _MEANS
  }
  for key in ('line', 'law'):
    error, of_base = _error(draws, key), _error(base, key)
    both = np.isfinite(error) & np.isfinite(of_base)
    values |= {
      f'{key}_error': interval(error, np.median),
      f'{key}_error_less': interval(of_base[both] - error[both], np.mean),
      f'{key}_within_1_percent': interval(error <= 0.01, np.mean),
      f'{key}_fits': int(np.isfinite(error).sum()),
    }
  gains = np.stack([_column(draws, 'gain'), _column(bound, 'gain')], axis=1)
  return PolicySummary(**values, share_of_bound=interval(gains, _ratio))


def interval(
  values: np.ndarray, statistic: Callable[..., Any]
) -> estimate.Estimate:
  """Returns a statistic over draws with its percentile bootstrap interval.

  Args:
    values: [draws, ...]; draws with a NaN are left out.
    statistic: of values along an axis.

  Returns:
    NaN without an interval if the statistic is not finite, and no interval for
    a single draw.
  """
  known = ~np.isnan(values if values.ndim == 1 else values.sum(axis=1))
  values = values[known]
  if not len(values):
    return _UNKNOWN
  if len(values) < 2:
    return estimate.Estimate(float(statistic(values, axis=0)), None, None)
  rng = np.random.default_rng(0)
  drawn = rng.integers(len(values), size=(_RESAMPLES, len(values)))
  with np.errstate(invalid='ignore'):  # Infinite errors of draws without a fit.
    resampled = statistic(values[drawn], axis=1)
    value = float(statistic(values, axis=0))
  resampled = resampled[~np.isnan(resampled)]
  if not len(resampled) or not math.isfinite(value):
    return _UNKNOWN
  tail = (1 - LEVEL) / 2
  # Not interpolated, since a resample may be infinite.
  lo, hi = np.quantile(resampled, [tail, 1 - tail], method='inverted_cdf')
  return estimate.Estimate(value, float(lo), float(hi))


def calibration(draws: Sequence[replay.Draw]) -> tuple[Calibration, ...]:
  """Returns how a surrogate's predictions compare with the truth, by round."""
  rows = np.array(
    [(draw.draw, *each) for draw in draws for each in draw.predictions]
  )
  by_round = []
  for number in np.unique(rows[:, 1]):
    draw, _, true, mean, lo, hi, seen = rows[rows[:, 1] == number].T
    covered = (lo <= true) & (true <= hi)
    counts = np.array(
      [
        [covered[draw == one].sum(), (draw == one).sum()]
        for one in np.unique(draw)
      ]
    )
    by_round.append(
      Calibration(
        round=int(number),
        predictions=len(true),
        coverage=interval(counts, _ratio),
        error=float(np.median(np.abs(mean / true - 1))),
        held_error=float(np.median(np.abs(seen / true - 1))),
        bias=float(np.median(mean / true - 1)),
        width=float(np.median((hi - lo) / true)),
      )
    )
  return tuple(by_round)


def _column(draws: Sequence[replay.Draw], key: str) -> np.ndarray:
  return np.array([getattr(draw.outcome, key) for draw in draws])


def _error(draws: Sequence[replay.Draw], key: str) -> np.ndarray:
  """Absolute relative errors; infinite for draws without a fit."""
  error = np.abs(_column(draws, key))
  return np.where(np.isnan(error), np.inf, error)


def _ratio(pairs: np.ndarray, axis: int) -> np.ndarray:
  """Ratio of means of pairs; NaN unless the denominator is positive."""
  part, whole = np.moveaxis(pairs.mean(axis), -1, 0)
  positive = whole > 0
  return np.where(positive, part / np.where(positive, whole, 1.0), np.nan)


def text(cell: CellSummary) -> str:
  """Returns a cell as a table of text."""
  head = (
    'policy', 'spent', 'loss', 'gain over sh', 'interval', 'of oracle', 'AbC',
    'law off by', 'fits',
  )  # fmt: skip
  rows = [
    (
      name,
      _number(row.spent.value / cell.budget, '.0%'),
      _number(row.best.value, '.4f'),
      _number(row.gain.value, '+.2%'),
      f'[{_number(row.gain.lo, "+.2%")}, {_number(row.gain.hi, "+.2%")}]',
      _number(row.share_of_bound.value, '.0%'),
      _number(row.area.value, '.2f'),
      _number(row.law_error.value, '.1%'),
      str(row.law_fits),
    )
    for name, row in cell.policies.items()
  ]
  title = (
    f'\n{cell.table}: {cell.candidates} of {cell.curves} curves,'
    f' {cell.budget:g} FLOPs, {cell.draws} draws'
  )
  return '\n'.join([title, *cell.flags, text_lib.table(head, rows)])


def line(cells: Sequence[CellSummary]) -> str:
  """Returns the gains of all policies over Successive Halving in one line."""
  parts = []
  for cell in cells:
    gains = ', '.join(
      f'{name} {_number(row.gain.value, "+.2%")}'
      for name, row in cell.policies.items()
      if name != BASE
    )
    parts.append(f'{cell.table} ({cell.candidates}, {cell.budget:g}): {gains}')
  return 'gain over sh: ' + ' | '.join(parts)


def _number(value: float | None, style: str) -> str:
  known = value is not None and math.isfinite(value)
  return format(value, style) if known else '-'


def _with_nan(value: Any) -> Any:
  """Estimates as they were before NaN became null."""
  if isinstance(value, dict):
    nan = {'value': math.nan} if value.get('value', 0) is None else {}
    return {**{key: _with_nan(each) for key, each in value.items()}, **nan}
  return list(map(_with_nan, value)) if isinstance(value, list) else value
