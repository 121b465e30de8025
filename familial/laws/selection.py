"""Model selection: forms compared by AIC, BIC and prediction of held-out rows."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import pathlib
import re
from typing import TYPE_CHECKING
from typing import Any

import numpy as np

from familial.core import errors
from familial.core import estimate as estimate_lib
from familial.core import text
from familial.laws import estimation
from familial.laws import fit_record
from familial.laws import forms
from familial.laws import inference
from familial.laws import levenberg_marquardt
from familial.laws import multistart as starts_lib
from familial.laws import parametric
from familial.laws import screening
from familial.laws import sensitivity
from familial.laws import table as tables

if TYPE_CHECKING:
  import polars

_STARTS = 1024  # of a fit that leaves rows out
_SAME_BUDGET = 0.1  # log C between neighbours within one budget


@dataclasses.dataclass(frozen=True)
class HoldOut:
  """Prediction of rows by fits without them (leave-group-out cross-validation).

  Attributes:
    rule: which groups are held out.
    folds: number of groups, each held out in turn.
    rows: number of rows predicted.
    rms: of log prediction - log loss over these rows.
    bias: mean of log prediction - log loss over these rows.
    error: mean over groups of their relative error.
    errors: mean of |prediction / loss - 1| in each group.
    converged: whether every fit converged.
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
  """One form among several.

  A hold-out is None where the table has no such groups or too few rows would be
  left.

  Attributes:
    form: its name.
    parameters: number of constants fitted.
    objective: of the fit to all rows.
    aic: Akaike's criterion.
    bic: Schwarz's criterion.
    aic_behind: AIC minus the lowest among the candidates.
    bic_behind: BIC minus the lowest among the candidates.
    hold_out: without the largest budget: extrapolation.
    by_budget: without each budget in turn.
    by_model: without each model, with all its rows, in turn.
    model_error_behind: mean over models of the relative error minus that of the
      form with the lowest, for which it is None.
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


@text.brief
@dataclasses.dataclass(frozen=True)
class Selection:
  """The content of `selection.json`.

  Attributes:
    candidates: the forms, lowest AIC first.
    by_aic: the form of lowest AIC.
    by_bic: the form of lowest BIC.
    by_hold_out: the form that predicts the largest budget best, or None.
    by_model: the form that predicts held-out models best, or None.
  """

  candidates: tuple[Candidate, ...]
  by_aic: str
  by_bic: str
  by_hold_out: str | None
  by_model: str | None

  def tables(self) -> dict[str, polars.DataFrame]:
    """Data frames of the `candidates` and of their `hold_outs`."""
    import polars as pl

    kinds = ('hold_out', 'by_budget', 'by_model')
    hold_outs = [
      {
        'form': candidate.form,
        'kind': kind,
        **_flat(dataclasses.asdict(hold_out), 'error'),
      }
      for candidate in self.candidates
      for kind in kinds
      if (hold_out := getattr(candidate, kind)) is not None
    ]
    candidates = [
      _flat(dataclasses.asdict(candidate), 'model_error_behind')
      for candidate in self.candidates
    ]
    return {
      'candidates': pl.DataFrame(candidates, infer_schema_length=None).drop(
        kinds
      ),
      'hold_outs': pl.DataFrame(hold_outs, infer_schema_length=None),
    }


def _flat(row: dict[str, Any], name: str) -> dict[str, Any]:
  """The row with an estimate as three numbers: name, name_lo, name_hi."""
  estimate = row[name] or dict.fromkeys(('value', 'lo', 'hi'))
  return {
    **row,
    name: estimate['value'],
    f'{name}_lo': estimate['lo'],
    f'{name}_hi': estimate['hi'],
  }


@text.brief
@dataclasses.dataclass(frozen=True)
class Comparison:
  """Several forms fitted to one table.

  Attributes:
    results: the fit of each form, by the folder of its fit.json.
    scans: the fits without rows of high loss, by folder, if asked for.
    selection: how the forms compare; None for a single form.
  """

  results: dict[pathlib.Path, inference.Result]
  scans: dict[pathlib.Path, sensitivity.Scan]
  selection: Selection | None


def compare(
  table: tables.Table,
  form_names: Sequence[str],
  out: str | pathlib.Path,
  options: inference.Options | None = None,
  *,
  loss_definition: str = 'final',
  hold_out: Sequence[str] = (),
  scan: Sequence[int] = (),
  progress: bool = True,
) -> Comparison:
  """Fits forms to a table and writes the results.

  One form writes OUT/fit.json; several write OUT/FORM/fit.json each and
  OUT/selection.json.

  Args:
    table: the rows.
    form_names: the forms, as `forms.get` takes them.
    out: folder of the results.
    options: settings of every fit.
    loss_definition: mean, final or exit: what the table's loss is.
    hold_out: conditions of rows that are predicted, not fitted.
    scan: numbers of rows of highest loss that are left out in turn; the fits to
      the others are written to scan.json beside each fit.json.
    progress: whether to show progress bars on stderr.
  """
  chosen = [forms.get(name) for name in dict.fromkeys(form_names)]
  if not chosen:
    raise errors.UserError(
      f'no form was asked for; there are {", ".join(forms.FORMS)}'
    )
  out = pathlib.Path(out)
  results = [
    inference.fit(
      form, table, own, loss_definition=loss_definition,
      hold_out=hold_out, progress=progress,
    )
    for form, own in zip(chosen, _options(chosen, options), strict=True)
  ]  # fmt: skip
  folders = [out]
  if len(chosen) > 1:
    folders = [out / name for name in folder_names(f.name for f in chosen)]
  by_folder = dict(zip(folders, results, strict=True))
  scans = {}
  for (folder, result), own in zip(
    by_folder.items(), _options(chosen, options), strict=True
  ):
    result.save(folder / 'fit.json')
    if scan:
      scans[folder] = sensitivity.scan(result.fit.form, result.table, scan, own)
      fit_record.write_json(
        folder / 'scan.json', dataclasses.asdict(scans[folder])
      )
  selection = None
  if len(chosen) > 1:
    selection = select([r.fit for r in results], results[0].table)
    fit_record.write_json(out / 'selection.json', dataclasses.asdict(selection))
  return Comparison(by_folder, scans, selection)


def _options(
  chosen: Sequence[parametric.Form], options: inference.Options | None
) -> list[inference.Options]:
  """Each form's options, with those constants fixed that it has."""
  o = options or inference.Options()
  names = {name for form in chosen for name in form.names}
  for name in o.fixed:
    if name not in names:
      raise errors.UserError(
        f'fix={name}: no form has such a constant{errors.nearest(name, names)};'
        f' they have {", ".join(sorted(names))}'
      )
  return [
    dataclasses.replace(
      o, fixed={k: v for k, v in o.fixed.items() if k in form.names}
    )
    for form in chosen
  ]


def folder_names(names: Iterable[str]) -> list[str]:
  """Returns a folder's name for each form, no two alike.

  Characters that a path should not have become `_`; `width*depth` and
  `width+depth` are told apart by a number.
  """
  found: list[str] = []
  for name in names:
    plain = re.sub(r'[^\w.-]+', '_', name).strip('_')
    count = 1
    while (folder := plain if count == 1 else f'{plain}-{count}') in found:
      count += 1
    found.append(folder)
  return found


def select(fits: Sequence[estimation.Fit], table: tables.Table) -> Selection:
  """Compares fits of several forms to one table.

  AIC and BIC count rows as independent. Exits and evaluations of one run are
  not; there the held-out budget and models are the better criteria.
  """
  lowest_aic = min(f.aic for f in fits)
  lowest_bic = min(f.bic for f in fits)
  by_budget, by_model = budgets(table), models(table)
  largest, rule = largest_budget(table)
  extrapolated_from = [] if largest is None else [largest]
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
        hold_out=_validate(f, table, extrapolated_from, rule),
        by_budget=cross_validation(f, table, by_budget, 'each budget'),
        by_model=cross_validation(f, table, by_model, 'each model'),
      )
      for f in fits
    ),
    key=lambda c: c.aic,
  )
  extrapolated = {c.form: c.hold_out.rms for c in candidates if c.hold_out}
  best_of_models = min(
    (c for c in candidates if c.by_model),
    key=lambda c: c.by_model.error.value if c.by_model else np.inf,
    default=None,
  )
  return Selection(
    candidates=tuple(_behind(c, best_of_models) for c in candidates),
    by_aic=candidates[0].form,
    by_bic=min(candidates, key=lambda c: c.bic).form,
    by_hold_out=min(extrapolated, key=extrapolated.__getitem__, default=None),
    by_model=best_of_models.form if best_of_models else None,
  )


def cross_validation(
  fit: estimation.Fit, table: tables.Table, group: np.ndarray | None, rule: str
) -> HoldOut | None:
  """Holds out each group of rows in turn; None if too few rows would be left.

  Args:
    fit: to the whole table.
    table: the rows.
    group: of each row [rows], or None where the table has no such groups.
    rule: which groups these are.
  """
  if group is None or len(np.unique(group)) < 2:
    return None
  return _validate(fit, table, [group == g for g in np.unique(group)], rule)


def _behind(candidate: Candidate, best: Candidate | None) -> Candidate:
  """The candidate with its error minus that of the best, model by model."""
  if best is None or candidate is best or candidate.by_model is None:
    return candidate
  assert best.by_model is not None
  difference = np.subtract(candidate.by_model.errors, best.by_model.errors)
  return dataclasses.replace(
    candidate, model_error_behind=estimate_lib.Estimate.of(difference)
  )


def _validate(
  fit: estimation.Fit,
  table: tables.Table,
  folds: Sequence[np.ndarray],
  rule: str,
) -> HoldOut | None:
  """Refits without the rows of each fold, bool [rows], and predicts them."""
  if not folds:
    return None
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
    error=estimate_lib.Estimate.of(np.array(relative)),
    errors=tuple(relative),
    converged=bool(ends.converged.all()),
  )


def models(table: tables.Table) -> np.ndarray | None:
  """The model of each row: its N, or its width and depth."""
  names = [n for n in ('N', 'width', 'depth') if n in table.columns]
  if not names:
    return None
  shapes = np.stack([table.columns[n] for n in names], axis=1)
  group = np.unique(shapes, axis=0, return_inverse=True)[1].ravel()
  return group if len(np.unique(group)) < table.rows else None


def budgets(table: tables.Table) -> np.ndarray | None:
  """The budget of each row, or None where costs form no groups."""
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


def largest_budget(table: tables.Table) -> tuple[np.ndarray | None, str]:
  """Rows of the largest budget, bool [rows], and the rule that chose them.

  The column budget; else C (or 6 N D) in groups with gaps of more than 10 %
  between them; where that leaves no groups, the highest tenth of it; None for a
  table that has neither.
  """
  group = budgets(table)
  if group is not None:
    rule = 'budget' if 'budget' in table.columns else 'group of C'
    return group == group.max(), f'largest {rule}'
  cost = table.cost
  if cost is None:
    return None, 'largest budget'
  return cost > np.quantile(cost, 0.9), 'highest tenth of C'
