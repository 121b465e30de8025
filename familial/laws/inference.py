"""A fitted law with its uncertainty: intervals, profiles and derived quantities."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import importlib.metadata
import math
import pathlib
from typing import TYPE_CHECKING
from typing import Any

import jax
import numpy as np

from familial.core import arrays
from familial.core import errors
from familial.core import estimate
from familial.core import progress_bar
from familial.core import storage
from familial.core import text
from familial.laws import approaches
from familial.laws import bootstrap as bootstraps
from familial.laws import diagnostics
from familial.laws import estimation
from familial.laws import fit_record
from familial.laws import forms
from familial.laws import frontier
from familial.laws import parametric
from familial.laws import prediction
from familial.laws import profile as profiles
from familial.laws import table as tables

if TYPE_CHECKING:
  import polars

_IMPROVEMENTS = 2  # better optima that are taken up
_VERSIONED = ('familial', 'jax', 'numpy', 'scipy')


@dataclasses.dataclass(frozen=True)
class Options:
  """Settings of a fit.

  Attributes:
    delta: Huber's threshold on the log residual; inf for least squares.
    asymmetry: weight of a row that the law overpredicts.
    starts: number of multi-start initialisations.
    sampling: of the starts, grid or latin.
    resamples: number of bootstrap resamples.
    bootstrap_starts: initialisations for each resample; 0 for a warm start.
    level: of every interval.
    compute: FLOPs at which the optimum is derived; () for the table's largest.
    profiles: constants that are profiled: all, some (those with a null) or none.
    fixed: constants that keep a given value, by name.
    approaches: to the compute optimum, of `approaches.APPROACHES`.
    seed: of the starts and of the resamples.
  """

  delta: float = estimation.DELTA
  asymmetry: float = 1.0
  starts: int = estimation.STARTS
  sampling: str = 'grid'
  resamples: int = bootstraps.RESAMPLES
  bootstrap_starts: int = 0
  level: float = estimate.LEVEL
  compute: tuple[float, ...] = ()
  profiles: str = 'all'
  fixed: Mapping[str, float] = dataclasses.field(default_factory=dict)
  approaches: tuple[str, ...] = approaches.APPROACHES
  seed: int = 0

  def profiled(self, form: parametric.Form) -> list[str]:
    """The constants of a form that are profiled."""
    errors.require_one_of('profiles', self.profiles, ('all', 'some', 'none'))
    return [
      p.name
      for p in form.parameters
      if p.name not in self.fixed
      and (
        self.profiles == 'all'
        or (self.profiles == 'some' and p.null is not None)
      )
    ]


@text.brief
@dataclasses.dataclass(frozen=True)
class Result:
  """One form fitted to one table.

  Attributes:
    fit: the optimum.
    bootstrap: the fits to resamples of the rows.
    profiles: profile likelihoods, by parameter.
    derived: functions of the constants, by name: the form's own, and the
      compute-optimal N, D, D / N, loss and exponents.
    approaches: compute-optimal N and D by up to three approaches, or None.
    held_out: the prediction of rows that were not fitted, or None.
    table: the rows.
    held_out_table: the rows that were not fitted, or None.
    loss_definition: mean, final or exit.
    compute: FLOPs at which the optimum was derived.
  """

  fit: estimation.Fit
  bootstrap: bootstraps.Bootstrap
  profiles: dict[str, fit_record.Profile]
  derived: dict[str, fit_record.Resampled]
  approaches: fit_record.Approaches | None
  held_out: fit_record.HeldOut | None
  table: tables.Table
  loss_definition: str
  compute: tuple[float, ...]
  held_out_table: tables.Table | None = None

  def __str__(self) -> str:
    fit, level = self.fit, f'{self.bootstrap.level:.0%}'
    named = {name: self.interval(name) for name in fit.form.names}
    lines = [f'{fit.form.name}: {fit.form.equation}']
    lines += [
      f'  {name} = {e:.3}' for name, e in {**named, **self.derived}.items()
    ]
    lines.append(
      f'  {fit.rows} rows, {level} intervals by {self.bootstrap.unit}'
    )
    lines += [f'  flag: {flag}' for flag in self.flags]
    return '\n'.join(lines)

  @property
  def residuals(self) -> np.ndarray:
    """Log loss - log prediction of runs like the fitted ones, [rows]."""
    return self.fit.residuals(self.table)

  @property
  def identified(self) -> dict[str, bool]:
    """Which constants curvature, resamples and profile all identify."""
    unbounded = {
      name for name, p in self.profiles.items() if p.lo is None and p.hi is None
    }
    stable = self._stable
    return {
      name: known and stable[name] and name not in unbounded
      for name, known in self.fit.identified.items()
    }

  @property
  def design(self) -> fit_record.Design:
    """Collinearity of the law's columns over runs."""
    return diagnostics.design(self.table, self.fit.form.columns)

  @property
  def _stable(self) -> dict[str, bool]:
    """Whether each constant varies little over the resamples."""
    form, theta = self.fit.form, self.bootstrap.theta(self.fit.form)
    if not self.bootstrap.resamples:
      return dict.fromkeys(form.names, True)
    if not self.bootstrap.representative:
      return dict.fromkeys(form.names, False)
    spread = np.ptp(np.quantile(theta, [0.16, 0.84], axis=0), axis=0) / 2
    little = spread <= estimation.IDENTIFIED_SD
    return dict(zip(form.names, little.tolist(), strict=True))

  @property
  def flags(self) -> tuple[str, ...]:
    """The flags of the fit, the bootstrap and the profiles."""
    return (
      *self.table.flags,
      *self.fit.flags,
      *(
        f'{name} not identified by the resamples'
        for name, stable in self._stable.items()
        if self.fit.identified[name] and not stable
      ),
      *self.bootstrap.flags,
      *(
        f'{name} does not exist: the law has no minimum there'
        for name, derived in self.derived.items()
        if name.startswith('N_opt') and not math.isfinite(derived.value)
      ),
      *(flag for p in self.profiles.values() for flag in p.flags),
      *(self.approaches.flags if self.approaches else ()),
      *(self.held_out.flags(self.bootstrap.level) if self.held_out else ()),
    )

  def interval(self, name: str) -> estimate.Estimate:
    """A constant with its bootstrap interval, or without resamples its profile's.

    An end that the profile leaves open is None; both are where there is no
    interval, as of a constant that is interchangeable with others.
    """
    return fit_record.interval(
      self.bootstrap.intervals[name],
      self.profiles.get(name),
      self.bootstrap.resamples,
    )

  def spans(self, *names: str) -> bool:
    """Whether quantities that depend on these columns anywhere have intervals."""
    return self.bootstrap.spans(self.fit, *names)

  def predict(self, columns: Mapping[str, Any]) -> np.ndarray:
    """The loss at these columns, one a row."""
    return self.fit.predict(columns)

  def predict_interval(
    self, columns: Mapping[str, Any], kind: str = 'mean'
  ) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the interval at these columns, NaN where there is none.

    Args:
      columns: where to predict; arrays and numbers of one shape after
        broadcasting, which is that of each end.
      kind: mean, the confidence interval of the law; run, the prediction interval
        of the loss of one run, whose noise is that of the fitted runs.
    """
    return prediction.intervals(
      self.fit.form, self.bootstrap.theta(self.fit.form), self.residuals, columns,
      kind, self.bootstrap.level, self.fit.degrees, self._has_interval,
    )  # fmt: skip

  def _has_interval(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    return self.fit.span.holds(columns) & self.bootstrap.representative

  def tables(self) -> dict[str, polars.DataFrame]:
    """The result as data frames, for notebooks and pages.

    `constants`; `rows` with prediction and residual (log loss - log
    prediction); `derived`; `minima` of the IsoFLOP curves and `optima` by each
    approach; `profiles`; `resamples`, a column a constant;
    `held_out`, empty where no rows were held out; `held_out_rows`, each with its
    prediction and both intervals.
    """
    import polars as pl

    fit, rows = self.fit, self.table
    intervals = {name: self.interval(name) for name in fit.form.names}
    predicted = self.predict(rows.columns)
    constants = [
      {
        'name': name,
        'value': value,
        'lo': intervals[name].lo,
        'hi': intervals[name].hi,
        'sd': self.bootstrap.intervals[name].sd,
        'profile_lo': profile.lo if profile else None,
        'profile_hi': profile.hi if profile else None,
        'p_value': profile.p_value if profile else None,
        'identified': self.identified[name],
      }
      for name, value in fit.params.items()
      for profile in [self.profiles.get(name)]
    ]
    return {
      'constants': pl.DataFrame(constants, infer_schema_length=None),
      'rows': pl.DataFrame({
        'run': rows.run,
        **rows.columns,
        'prediction': predicted,
        'residual': np.log(rows.columns['loss'] / predicted),
      }),
      'derived': pl.DataFrame(
        [
          {'name': name, **dataclasses.asdict(derived)}
          for name, derived in self.derived.items()
        ],
        infer_schema_length=None,
      ),
      'minima': pl.DataFrame(
        [_flat(row) for row in self.approaches.minima] if self.approaches else []
      ),
      'optima': pl.DataFrame(
        [_flat(row) for row in self.approaches.optima] if self.approaches else []
      ),
      'profiles': pl.DataFrame(
        [
          (p.name, float(value), float(deviance))
          for p in self.profiles.values()
          for value, deviance in zip(p.values, p.deviance, strict=True)
        ],
        {'name': pl.String, 'value': pl.Float64, 'deviance': pl.Float64},
        orient='row',
      ),
      'resamples': pl.DataFrame(self.bootstrap.samples),
      'held_out': pl.DataFrame(
        [dataclasses.asdict(self.held_out)] if self.held_out else []
      ),
      'held_out_rows': pl.DataFrame(self._held_out_rows()),
    }  # fmt: skip

  def _held_out_rows(self) -> dict[str, np.ndarray]:
    held = self.held_out_table
    if held is None:
      return {}
    ends = {
      f'{kind}_{side}': end
      for kind in prediction.KINDS
      for side, end in zip(
        ('lo', 'hi'), self.predict_interval(held.columns, kind), strict=True
      )
    }
    predicted = {'prediction': self.predict(held.columns)}
    return {'run': held.run, **held.columns, **predicted, **ends}

  def record(self) -> fit_record.FitRecord:
    """The content of `fit.json`."""
    fit, bootstrap, table = self.fit, self.bootstrap, self.table
    same = {
      field.name: getattr(source, field.name)
      for source in (fit, bootstrap, self)  # The later counts.
      for field in dataclasses.fields(fit_record.FitRecord)
      if hasattr(source, field.name)
    }
    own = {
      'form': fit.form.name,
      'equation': fit.form.equation,
      'table': fit_record.Source(
        table.source, table.sha256, table.mapping, table.filters
      ),
      'dropped': table.dropped,
      'residual_scale': fit.scale,
      'bootstrap': bootstrap.intervals,
      'bootstrap_unit': bootstrap.unit,
      'resamples_failed': bootstrap.failed,
      'profile': self.profiles,
      'seconds': {**fit.seconds, 'bootstrap': bootstrap.seconds},
      'backend': jax.default_backend(),
      'versions': versions(),
    }
    return fit_record.FitRecord(**{**same, **own})

  def save(self, path: str | pathlib.Path) -> None:
    """Writes fit.json and, beside it, what its intervals and predictions rest on.

    bootstrap.npz holds the resamples' constants and the residuals, held_out.csv
    the rows that were held out, if any, with their predictions.
    """
    path = pathlib.Path(path)
    samples = {**self.bootstrap.samples, fit_record.RESIDUALS: self.residuals}
    arrays.save(path.with_name(fit_record.SAMPLES), samples)
    if self.held_out is not None:
      rows = self.tables()['held_out_rows'].write_csv()
      storage.write_text(path.with_name('held_out.csv'), rows)
    fit_record.write_json(path, self.record().to_json())


def fit(
  form: parametric.Form | str | Callable[..., Any],
  table: tables.Table,
  options: Options | None = None,
  *,
  loss_definition: str = 'final',
  hold_out: Sequence[str] = (),
  progress: bool = False,
) -> Result:
  """Fits a law, its bootstrap and profiles, and derives the compute optimum.

  Args:
    form: the law, its name, or a function, as `forms.get` takes it.
    table: the rows.
    options: settings of the fit.
    loss_definition: mean, final or exit: what the table's loss is.
    hold_out: conditions of rows that are predicted, not fitted.
    progress: whether to show progress bars on stderr.

  Returns:
    The result.

  Raises:
    UserError: if the rows do not fit the form or an option is out of bounds.
  """
  form = forms.get(form)
  o = options or Options()
  bootstraps.check(o.resamples, o.bootstrap_starts, o.level)
  held = np.zeros(table.rows, bool)
  for condition in hold_out:
    held |= table.where(condition)
  if hold_out and not held.any():
    raise errors.UserError(f'hold_out={list(hold_out)}: no row meets it')
  fitted = table.take(~held, hold_out=list(hold_out)) if held.any() else table
  with _bar(form.name, 'starts', o.starts, progress) as bar:
    optimum = estimation.fit(
      form, fitted, delta=o.delta, asymmetry=o.asymmetry, starts=o.starts,
      sampling=o.sampling, seed=o.seed, fixed=o.fixed, advance=bar.update,
    )  # fmt: skip
  # An optimum that a profile or a resample finds and no start did becomes the fit.
  for last in (False,) * _IMPROVEMENTS + (True,):
    traced = [
      profiles.profile(form, fitted, optimum, name, level=o.level)
      for name in o.profiled(form)
      if name not in optimum.span.confounded
    ]
    with _bar(form.name, 'resamples', o.resamples, progress) as bar:
      bootstrap = bootstraps.bootstrap(
        optimum, fitted, resamples=o.resamples, starts=o.bootstrap_starts,
        level=o.level, seed=o.seed, advance=bar.update,
      )  # fmt: skip
    lowest = [point for _, point in traced]
    points = np.stack([optimum.theta, *lowest, *bootstrap.theta(form)])
    better = estimation.improved(optimum, fitted, points)
    if better is optimum or last:
      break
    optimum = better
  compute = o.compute
  if not compute and fitted.cost is not None:
    compute = (float(fitted.cost.max()),)
  result = Result(
    fit=optimum,
    bootstrap=bootstrap,
    profiles={profile.name: profile for profile, _ in traced},
    derived=_derived(optimum, bootstrap, fitted, compute),
    approaches=approaches.compare(
      optimum, bootstrap, fitted, compute, o.approaches, o.seed
    ),
    held_out=None,
    table=fitted,
    loss_definition=loss_definition,
    compute=compute,
  )
  if not held.any():
    return result
  rest = table.take(held)
  return dataclasses.replace(
    result, held_out=_held_out(result, rest, hold_out), held_out_table=rest
  )


def versions() -> dict[str, str | None]:
  """Versions of the packages that a number may depend on."""
  found: dict[str, str | None] = dict.fromkeys(_VERSIONED)
  for package in _VERSIONED:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def _flat(row: Any) -> dict[str, Any]:
  """A record as a row of a data frame: an estimate takes three columns."""
  flat: dict[str, Any] = {}
  for field in dataclasses.fields(row):
    value = getattr(row, field.name)
    if isinstance(value, estimate.Estimate):
      flat |= {
        field.name: value.value,
        f'{field.name}_lo': value.lo,
        f'{field.name}_hi': value.hi,
      }
    else:
      flat[field.name] = value
  return flat


def _derived(
  fit: estimation.Fit,
  bootstrap: bootstraps.Bootstrap,
  table: tables.Table,
  compute: Sequence[float],
) -> dict[str, fit_record.Resampled]:
  """Functions of the constants at the optimum and over the resamples."""
  form, level = fit.form, bootstrap.level
  samples = bootstrap.determined(fit)
  derived = {
    name: bootstraps.interval(float(f(fit.params)), f(samples), level)
    for name, f in form.derived.items()
  }
  if not {'N', 'D'} <= set(form.columns) or not compute:
    return derived
  theta = fit.theta[None]
  if bootstrap.spans(fit, 'N', 'D'):
    theta = np.concatenate([theta, bootstrap.theta(form)])
  for label, _, others, rows in frontier.granularities(form, table):
    cost = frontier.cost_of(table, rows)
    best = frontier.optimum(
      form, theta, compute, cost, others, frontier.least_of(table)
    )
    for j, c in enumerate(compute):
      at = f'({label}, C={c:.4g})' if others else f'(C={c:.4g})'
      for name, value in (
        ('N_opt', best.params),
        ('D_opt', best.tokens),
        ('tokens_per_param', best.tokens / best.params),
        ('L_opt', best.loss),
        ('a', best.exponent),
        ('b', best.token_exponent),
      ):
        derived[name + at] = bootstraps.interval(
          float(value[0, j]), value[1:, j], level
        )
  return derived


def _held_out(
  result: Result, table: tables.Table, conditions: Sequence[str]
) -> fit_record.HeldOut:
  loss = table.columns['loss']
  error = np.log(result.predict(table.columns) / loss)
  covered: dict[str, float | None] = dict.fromkeys(prediction.KINDS)
  for kind in prediction.KINDS:
    lo, hi = result.predict_interval(table.columns, kind)
    given = np.isfinite(lo) & np.isfinite(hi)
    if given.any():
      covered[kind] = float(np.mean(((lo <= loss) & (loss <= hi))[given]))
  return fit_record.HeldOut(
    conditions=tuple(conditions),
    rows=table.rows,
    rms=float(np.sqrt(np.mean(error**2))),
    bias=float(np.mean(error)),
    covered=covered['mean'],
    covered_run=covered['run'],
    unknown=int((~result.fit.span.holds(table.columns)).sum()),
  )


def _bar(form: str, what: str, total: int, progress: bool) -> Any:
  return progress_bar.start(
    desc=f'{form}: {what}',
    total=total,
    disable=not progress,
    leave=False,
  )
