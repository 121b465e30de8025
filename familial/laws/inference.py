"""A fitted law with its uncertainty: intervals, profiles and derived quantities."""

from __future__ import annotations

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
import tqdm

from familial.core import arrays
from familial.core import errors
from familial.core import estimate
from familial.core import text
from familial.laws import bootstrap as bootstraps
from familial.laws import diagnostics
from familial.laws import estimation
from familial.laws import fit_record
from familial.laws import forms
from familial.laws import frontier
from familial.laws import levenberg_marquardt
from familial.laws import parametric
from familial.laws import profile as profiles
from familial.laws import table as tables

if TYPE_CHECKING:
  import polars

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
    profile_all: whether to profile every constant, or only those with a null.
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
  profile_all: bool = True
  seed: int = 0


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
    held_out: the prediction of rows that were not fitted, or None.
    table: the rows.
    loss_definition: mean, final or exit.
    compute: FLOPs at which the optimum was derived.
  """

  fit: estimation.Fit
  bootstrap: bootstraps.Bootstrap
  profiles: dict[str, fit_record.Profile]
  derived: dict[str, fit_record.Resampled]
  held_out: fit_record.HeldOut | None
  table: tables.Table
  loss_definition: str
  compute: tuple[float, ...]

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
    if 2 * len(theta) < self.bootstrap.resamples:
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
    )

  def interval(self, name: str) -> estimate.Estimate:
    """A constant with its bootstrap interval.

    An end that the profile leaves open is None.
    """
    spread, profile = self.bootstrap.intervals[name], self.profiles.get(name)
    return estimate.Estimate(
      self.fit.params[name],
      None if profile is not None and profile.lo is None else spread.lo,
      None if profile is not None and profile.hi is None else spread.hi,
    )

  def predict(self, columns: Mapping[str, Any]) -> np.ndarray:
    """The loss at these columns, one a row."""
    return self.fit.predict(columns)

  def predict_interval(
    self, columns: Mapping[str, Any]
  ) -> tuple[np.ndarray, np.ndarray]:
    """The interval of the law at these columns, without a run's own noise."""
    losses = np.exp(
      levenberg_marquardt.predict(
        self.fit.form, columns, self.bootstrap.theta(self.fit.form)
      )
    )
    if not len(losses):
      unknown = np.full(losses.shape[1], np.nan)
      return unknown, unknown
    tail = (1 - self.bootstrap.level) / 2
    lo, hi = np.quantile(losses, [tail, 1 - tail], axis=0)
    return lo, hi

  def tables(self) -> dict[str, polars.DataFrame]:
    """The result as data frames, for notebooks and pages.

    `constants`; `rows` with prediction and residual (log loss - log
    prediction); `derived`; `profiles`; `resamples`, a column a constant;
    `held_out`, empty where no rows were held out.
    """
    import polars as pl

    fit, rows = self.fit, self.table
    intervals = {name: self.interval(name) for name in fit.form.names}
    prediction = self.predict(rows.columns)
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
        'prediction': prediction,
        'residual': np.log(rows.columns['loss'] / prediction),
      }),
      'derived': pl.DataFrame(
        [
          {'name': name, **dataclasses.asdict(derived)}
          for name, derived in self.derived.items()
        ],
        infer_schema_length=None,
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
    }  # fmt: skip

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
    """Writes fit.json, and the resamples' constants to bootstrap.npz beside."""
    path = pathlib.Path(path)
    arrays.save(path.with_name(fit_record.SAMPLES), self.bootstrap.samples)
    fit_record.write_json(path, self.record().to_json())


def fit(
  form: parametric.Form | str,
  table: tables.Table,
  options: Options | None = None,
  *,
  loss_definition: str = 'final',
  hold_out: Sequence[str] = (),
  progress: bool = False,
) -> Result:
  """Fits a law, its bootstrap and profiles, and derives the compute optimum.

  Args:
    form: the law, or its name as `forms.get` takes it.
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
  form = forms.get(form) if isinstance(form, str) else form
  o = options or Options()
  held = np.zeros(table.rows, bool)
  for condition in hold_out:
    held |= table.where(condition)
  if hold_out and not held.any():
    raise errors.UserError(f'hold_out={list(hold_out)}: no row meets it')
  fitted = table.take(~held, hold_out=list(hold_out)) if held.any() else table
  with _bar(form.name, 'starts', o.starts, progress) as bar:
    optimum = estimation.fit(
      form, fitted, delta=o.delta, asymmetry=o.asymmetry, starts=o.starts,
      sampling=o.sampling, seed=o.seed, advance=bar.update,
    )  # fmt: skip
  with _bar(form.name, 'resamples', o.resamples, progress) as bar:
    bootstrap = bootstraps.bootstrap(
      optimum, fitted, resamples=o.resamples, starts=o.bootstrap_starts,
      level=o.level, seed=o.seed, advance=bar.update,
    )  # fmt: skip
  compute = o.compute
  if not compute and fitted.cost is not None:
    compute = (float(fitted.cost.max()),)
  result = Result(
    fit=optimum,
    bootstrap=bootstrap,
    profiles={
      p.name: profiles.profile(form, fitted, optimum, p.name, level=o.level)
      for p in form.parameters
      if o.profile_all or p.null is not None
    },
    derived=_derived(optimum, bootstrap, fitted, compute),
    held_out=None,
    table=fitted,
    loss_definition=loss_definition,
    compute=compute,
  )
  if not held.any():
    return result
  return dataclasses.replace(
    result, held_out=_held_out(result, table.take(held), hold_out)
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


def _derived(
  fit: estimation.Fit,
  bootstrap: bootstraps.Bootstrap,
  table: tables.Table,
  compute: Sequence[float],
) -> dict[str, fit_record.Resampled]:
  """Functions of the constants at the optimum and over the resamples."""
  form, level = fit.form, bootstrap.level
  derived = {
    name: bootstraps.interval(float(f(fit.params)), f(bootstrap.samples), level)
    for name, f in form.derived.items()
  }
  if not {'N', 'D'} <= set(form.columns) or not compute:
    return derived
  theta = np.concatenate([fit.theta[None], bootstrap.theta(form)])
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
  lo, hi = result.predict_interval(table.columns)
  return fit_record.HeldOut(
    conditions=tuple(conditions),
    rows=table.rows,
    rms=float(np.sqrt(np.mean(error**2))),
    bias=float(np.mean(error)),
    covered=float(np.mean((lo <= loss) & (loss <= hi))),
  )


def _bar(form: str, what: str, total: int, progress: bool) -> Any:
  return tqdm.tqdm(
    desc=f'{form}: {what}',
    total=total,
    disable=None if progress else True,
    leave=False,
  )
