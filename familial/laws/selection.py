"""Which law the data prefer: AIC, BIC, and budgets and models they did not see."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np

from familial.core import errors
from familial.core import estimate as estimate_lib
from familial.laws import estimation
from familial.laws import levenberg_marquardt
from familial.laws import multistart as starts_lib
from familial.laws import screening
from familial.laws import table as tables

_STARTS = 1024  # of a fit that leaves rows out
_SAME_BUDGET = 0.1  # log C between neighbours within one budget


@dataclasses.dataclass(frozen=True)
class HoldOut:
  """How a law predicts rows that it was not fitted to.

  Fitted anew without each of `folds` groups in turn. `rms` and `bias` are of log
  prediction - log loss over the held-out `rows`; `errors` are the mean relative
  error, |prediction / loss - 1|, of each group, and `error` is their mean.
  `converged`: every time.
  """

  rule: str
  folds: int
  rows: int
  rms: float
  bias: float
  error: estimate_lib.Estimate
  errors: tuple[float, ...]
  converged: bool


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One form among several; `aic_behind` and `bic_behind` the best are 0.

  `hold_out` leaves out the largest budget: extrapolation. `by_budget` and
  `by_model` leave out each budget, and each model with all of its rows, in turn.
  Each is None where the table cannot tell such groups apart, or too few rows
  would be left. `model_error_behind` is the mean over models of the relative
  error less that of the form that predicts models best, for which it is None.
  """

  form: str
  parameters: int
  objective: float
  aic: float
  bic: float
  aic_behind: float
  bic_behind: float
  hold_out: HoldOut | None
  by_budget: HoldOut | None
  by_model: HoldOut | None
  model_error_behind: estimate_lib.Estimate | None = None


@dataclasses.dataclass(frozen=True)
class Selection:
  """Candidates, best AIC first, and the forms that predict best unseen.

  `by_hold_out` is of the largest budget, `by_model` of models in turn; each is
  None where nothing could be held out.
  """

  candidates: tuple[Candidate, ...]
  by_aic: str
  by_bic: str
  by_hold_out: str | None
  by_model: str | None


def select(fitted: Sequence[estimation.Fit], table: tables.Table) -> Selection:
  """Compares fits of several forms to one table.

  AIC and BIC are of the likelihood in estimate.Fit and count rows as
  independent; exits and evaluations of one run are not, so there the held-out
  budget and models are the better judges.
  """
  lowest_aic = min(f.aic for f in fitted)
  lowest_bic = min(f.bic for f in fitted)
  budgets, models = _budgets(table), _models(table)
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
        by_budget=cross_validation(f, table, budgets, 'each budget'),
        by_model=cross_validation(f, table, models, 'each model'),
      )
      for f in fitted
    ),
    key=lambda c: c.aic,
  )
  tried = [c for c in candidates if c.hold_out is not None]
  by_model = _best_of_models(candidates)
  return Selection(
    candidates=tuple(_behind(c, by_model) for c in candidates),
    by_aic=candidates[0].form,
    by_bic=min(candidates, key=lambda c: c.bic).form,
    by_hold_out=min(tried, key=_rms).form if tried else None,
    by_model=by_model.form if by_model else None,
  )


def hold_out(fit: estimation.Fit, table: tables.Table) -> HoldOut | None:
  """Refits without the largest budget and predicts it; None if too few rows."""
  held, rule = largest_budget(table)
  return _validated(fit, table, [held], rule)


def cross_validation(
  fit: estimation.Fit, table: tables.Table, group: np.ndarray | None, rule: str
) -> HoldOut | None:
  """Leaves out each group of rows in turn; None if too few rows would be left.

  Args:
    fit: to the whole table.
    table: the rows.
    group: of each row [rows], or None where the table has no such groups.
    rule: what is left out, in words.
  """
  if group is None or len(np.unique(group)) < 2:
    return None
  return _validated(fit, table, [group == g for g in np.unique(group)], rule)


def _best_of_models(candidates: Sequence[Candidate]) -> Candidate | None:
  """The form that predicts models best that it has not seen."""
  tried = [(c.by_model.error.value, c) for c in candidates if c.by_model]
  return min(tried, key=lambda pair: pair[0])[1] if tried else None


def _behind(candidate: Candidate, best: Candidate | None) -> Candidate:
  """The candidate with its error over that of the best, model by model."""
  if best is None or candidate is best or candidate.by_model is None:
    return candidate
  assert best.by_model is not None
  over = np.subtract(candidate.by_model.errors, best.by_model.errors)
  return dataclasses.replace(
    candidate, model_error_behind=estimate_lib.mean(over)
  )


def _validated(
  fit: estimation.Fit,
  table: tables.Table,
  folds: Sequence[np.ndarray],
  rule: str,
) -> HoldOut | None:
  left = min(int((~held).sum()) for held in folds)
  if left <= fit.free.sum() or not all(held.any() for held in folds):
    return None
  points = np.concatenate([fit.theta[None], fit.others])
  weights = np.array([~held for held in folds], float)
  problem = fit.problem(table, weights)
  starts = starts_lib.draw(fit.form, min(fit.starts, _STARTS), fit.seed)
  ends = screening.search_groups(
    problem, starts_lib.holding(starts, fit.form, fit.fixed), points
  )
  prediction = levenberg_marquardt.predict(fit.form, table.columns, ends.theta)
  by_fold = [
    prediction[i][held] - problem.target[held] for i, held in enumerate(folds)
  ]
  error = np.concatenate(by_fold)
  relative = [float(np.abs(np.expm1(each)).mean()) for each in by_fold]
  return HoldOut(
    rule=rule,
    folds=len(folds),
    rows=len(error),
    rms=float(np.sqrt(np.mean(error**2))),
    bias=float(np.mean(error)),
    error=estimate_lib.mean(np.array(relative)),
    errors=tuple(relative),
    converged=bool(ends.converged.all()),
  )


def _models(table: tables.Table) -> np.ndarray | None:
  """Which rows are of one model: of one N, or of one width and depth."""
  names = [n for n in ('N', 'width', 'depth') if n in table.columns]
  if not names:
    return None
  shapes = np.stack([table.columns[n] for n in names], axis=1)
  group = np.unique(shapes, axis=0, return_inverse=True)[1].ravel()
  return group if len(np.unique(group)) < table.rows else None


def _budgets(table: tables.Table) -> np.ndarray | None:
  """Which rows are of one budget, or None where costs form no groups."""
  columns = table.columns
  if 'budget' in columns:
    return columns['budget']
  cost = table.cost
  if cost is None:
    return None
  order = np.argsort(cost)
  gap = np.diff(np.log(cost[order])) > _SAME_BUDGET
  if not 1 <= gap.sum() < table.rows / 3:
    return None
  group = np.empty(table.rows, int)
  group[order] = np.concatenate([[0], np.cumsum(gap)])
  return group


def largest_budget(table: tables.Table) -> tuple[np.ndarray, str]:
  """Rows of the largest budget, bool [rows], and how it was told apart.

  The column budget; else C (or 6 N D) in groups with gaps of more than 10 %
  between them; where that leaves no groups, the highest tenth of it.
  """
  group = _budgets(table)
  if group is not None:
    told = 'budget' if 'budget' in table.columns else 'group of C'
    return group == group.max(), f'largest {told}'
  cost = table.cost
  if cost is None:
    raise errors.UserError(
      'to hold out the largest budget, a table needs budget, C, or N and D;'
      f' it has {", ".join(table.columns)}'
    )
  return cost > np.quantile(cost, 0.9), 'highest tenth of C'


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
  if selection.by_model is not None:
    errors_ = ', '.join(
      f'{c.form} {_percent(c.by_model.error)}'
      for c in selection.candidates
      if c.by_model
    )
    line += (
      f'; held-out models best predicted by {selection.by_model}'
      f' (mean relative error {errors_})'
    )
  return line


def text(selection: Selection) -> str:
  """A table of the candidates, best AIC first; rms are of the log error."""
  heads = (
    'form', 'constants', 'objective', 'AIC behind', 'BIC behind',
    'rms, largest budget', 'each budget', 'each model',
    'relative error, each model', 'over the best',
  )  # fmt: skip
  lines = [heads] + [
    (
      c.form, str(c.parameters), f'{c.objective:.6g}', f'{c.aic_behind:.1f}',
      f'{c.bic_behind:.1f}',
      *('-' if h is None else f'{h.rms:.4f}'
        for h in (c.hold_out, c.by_budget, c.by_model)),
      _percent(c.by_model.error) if c.by_model else '-',
      _percent(c.model_error_behind) if c.model_error_behind else '-',
    )
    for c in selection.candidates
  ]  # fmt: skip
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.ljust(w) for cell, w in zip(line, widths, strict=True)
    ).rstrip()
    for line in lines
  )


def _percent(found: estimate_lib.Estimate) -> str:
  span = (
    '' if found.lo is None or found.hi is None
    else f' [{100 * found.lo:.2f}, {100 * found.hi:.2f}]'
  )  # fmt: skip
  return f'{100 * found.value:.2f} %{span}'


def _rms(candidate: Candidate) -> float:
  assert candidate.hold_out is not None
  return candidate.hold_out.rms
