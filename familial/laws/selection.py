"""Which law the data prefer: AIC, BIC, and a budget that none of them saw."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from familial import errors
from familial.laws import fit as fits
from familial.laws import table as tables

_SAME_BUDGET = 0.1  # log C between neighbours within one budget


@dataclasses.dataclass(frozen=True)
class HoldOut:
  """How a law fitted without the largest budget predicts it.

  `rms` and `bias` are of log prediction - log loss over `rows` held-out rows.
  """

  rule: str
  rows: int
  rms: float
  bias: float
  converged: bool


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One form among several; `aic_behind` and `bic_behind` the best are 0.

  `hold_out` is None where too few rows would be left to fit.
  """

  form: str
  parameters: int
  objective: float
  aic: float
  bic: float
  aic_behind: float
  bic_behind: float
  hold_out: HoldOut | None


@dataclasses.dataclass(frozen=True)
class Selection:
  """Candidates, best AIC first, and the form that predicts best unseen.

  `by_hold_out` is None where nothing could be held out.
  """

  candidates: tuple[Candidate, ...]
  by_aic: str
  by_bic: str
  by_hold_out: str | None


def select(fitted: Sequence[fits.Fit], table: tables.Table) -> Selection:
  """Compares fits of several forms to one table.

  AIC and BIC count rows as independent (see fit.Fit); exits of one run are not,
  so for the per-exit loss the held-out budget is the better judge.
  """
  lowest_aic = min(f.aic for f in fitted)
  lowest_bic = min(f.bic for f in fitted)
  candidates = sorted(
    (
      Candidate(
        form=f.form.name,
        parameters=int(f.free.sum()),
        objective=f.objective,
        aic=f.aic,
        bic=f.bic,
        aic_behind=f.aic - lowest_aic,
        bic_behind=f.bic - lowest_bic,
        hold_out=hold_out(f, table),
      )
      for f in fitted
    ),
    key=lambda c: c.aic,
  )
  tried = [c for c in candidates if c.hold_out is not None]
  return Selection(
    candidates=tuple(candidates),
    by_aic=candidates[0].form,
    by_bic=min(candidates, key=lambda c: c.bic).form,
    by_hold_out=min(tried, key=_rms).form if tried else None,
  )


def hold_out(fit: fits.Fit, table: tables.Table) -> HoldOut | None:
  """Refits without the largest budget and predicts it; None if too few rows."""
  held, rule = largest_budget(table)
  if (~held).sum() <= fit.free.sum() or not held.any():
    return None
  fixed = {
    name: fit.params[name]
    for name, free in zip(fit.form.names, fit.free, strict=True)
    if not free
  }
  seen, unseen = table.take(~held), table.take(held)
  # The whole table's optimum is one start of many, not the only one.
  starts = np.concatenate(
    [fit.theta[None], fits.draw_starts(fit.form, fit.starts // 4 + 1, fit.seed)]
  )
  refit = fits.fit(
    fit.form, seen, delta=fit.delta, starts=starts, seed=fit.seed, fixed=fixed
  )
  error = np.log(refit.predict(unseen.columns) / unseen.columns['loss'])
  return HoldOut(
    rule=rule,
    rows=unseen.rows,
    rms=float(np.sqrt(np.mean(error**2))),
    bias=float(np.mean(error)),
    converged=refit.converged,
  )


def largest_budget(table: tables.Table) -> tuple[np.ndarray, str]:
  """Rows of the largest budget, bool [rows], and how it was told apart.

  The column budget; else C (or 6 N D) in groups with gaps of more than 10 %
  between them; where that leaves no groups, the highest tenth of it.
  """
  columns = table.columns
  if 'budget' in columns:
    return columns['budget'] == columns['budget'].max(), 'largest budget'
  if 'C' in columns:
    cost, name = columns['C'], 'C'
  elif {'N', 'D'} <= set(columns):
    cost, name = 6 * columns['N'] * columns['D'], '6 N D'
  else:
    raise errors.UserError(
      'to hold out the largest budget, a table needs budget, C, or N and D;'
      f' it has {", ".join(columns)}'
    )
  order = np.argsort(cost)
  gap = np.diff(np.log(cost[order])) > _SAME_BUDGET
  if 1 <= gap.sum() < table.rows / 3:
    return cost > cost[order][
      np.flatnonzero(gap)[-1]
    ], f'largest group of {name}'
  return cost > np.quantile(cost, 0.9), f'highest tenth of {name}'


def to_json(selection: Selection) -> dict[str, Any]:
  """The content of selection.json."""
  return dataclasses.asdict(selection)


def summary(selection: Selection) -> str:
  """One line: who wins, by how much, and whether prediction agrees."""
  first, *rest = selection.candidates
  behind = (
    f' (AIC lower by {rest[0].aic_behind:.1f} than {rest[0].form})'
    if rest
    else ''
  )
  line = f'preferred: {first.form}{behind}'
  tried = {c.form: c for c in selection.candidates if c.hold_out is not None}
  if selection.by_hold_out is not None:
    errors_ = ', '.join(f'{n} {_rms(c):.4f}' for n, c in tried.items())
    line += (
      f'; held-out budget best predicted by {selection.by_hold_out}'
      f' (rms log error {errors_})'
    )
  return line


def _rms(candidate: Candidate) -> float:
  assert candidate.hold_out is not None
  return candidate.hold_out.rms
