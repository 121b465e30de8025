"""A law, fitted, with everything that says how sure it is."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import importlib.metadata
import math
import pathlib
from typing import Any

import jax
import numpy as np
import tqdm

from familial.core import arrays
from familial.core import errors
from familial.core import storage
from familial.laws import bootstrap as bootstraps
from familial.laws import collinearity
from familial.laws import estimation
from familial.laws import forms
from familial.laws import frontier
from familial.laws import levenberg_marquardt
from familial.laws import parametric
from familial.laws import profile as profiles
from familial.laws import record
from familial.laws import table as tables

_VERSIONED = ('familial', 'jax', 'numpy', 'scipy')


@dataclasses.dataclass(frozen=True)
class Options:
  """How a law is fitted.

  Attributes:
    delta: Huber's threshold on the log residual; inf for least squares.
    asymmetry: weight of a row that the law overpredicts.
    starts: of the multi-start.
    sampling: of the starts, grid or latin.
    resamples: of the bootstrap.
    bootstrap_starts: of a multi-start for each resample; 0 for a warm start.
    level: of every interval.
    compute: FLOPs at which the optimum is derived; () for the table's largest.
    profile_all: profile every constant, not only those with a null.
    seed: of the starts and of the resamples.
  """

  delta: float = estimation.DELTA
  asymmetry: float = 1.0
  starts: int = estimation.STARTS
  sampling: str = 'grid'
  resamples: int = bootstraps.RESAMPLES
  bootstrap_starts: int = 0
  level: float = bootstraps.LEVEL
  compute: tuple[float, ...] = ()
  profile_all: bool = True
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """How the law predicts rows that were kept from it.

  `rms` and `bias` are of log prediction - log loss; `covered` is the share of
  rows within the intervals of the law, which leave out a run's own noise.
  """

  conditions: tuple[str, ...]
  rows: int
  rms: float
  bias: float
  covered: float


@dataclasses.dataclass(frozen=True)
class Result:
  """One form on one table, with everything that says how sure it is.

  Attributes:
    fit: the optimum.
    bootstrap: what resamples of the rows give.
    profiles: of the parameters asked for.
    derived: what follows from the constants, by name, and its interval: the
      form's own, and the compute-optimal N, D, D / N, loss and exponents.
    held_out: the prediction of rows kept back, or None.
    table: the rows.
    loss_definition: mean, final or exit.
    compute: FLOPs at which the optimum was derived.
  """

  fit: estimation.Fit
  bootstrap: bootstraps.Bootstrap
  profiles: dict[str, profiles.Profile]
  derived: dict[str, tuple[float, bootstraps.Interval]]
  held_out: HeldOut | None
  table: tables.Table
  loss_definition: str
  compute: tuple[float, ...]

  @property
  def identified(self) -> dict[str, bool]:
    """Which constants curvature, resamples and profile all pin down."""
    bounded = {
      name: p.lo is not None or p.hi is not None
      for name, p in self.profiles.items()
    }
    return {
      name: known and steady and bounded.get(name, True)
      for (name, known), steady in zip(
        self.fit.identified.items(), self._steady, strict=True
      )
    }

  @property
  def design(self) -> dict[str, Any]:
    """How the law's columns go together over runs: see design.of_runs."""
    return collinearity.of_runs(self.table, self.fit.form.columns)

  @property
  def _steady(self) -> list[bool]:
    """Of each constant, whether it varies little over the resamples."""
    theta = self.bootstrap.theta(self.fit.form)
    if 2 * len(theta) < self.bootstrap.resamples:
      return [False] * theta.shape[1]  # what most cannot tell, none can
    spread = np.ptp(np.quantile(theta, [0.16, 0.84], axis=0), axis=0) / 2
    return [bool(wide <= estimation.IDENTIFIED_SD) for wide in spread]

  @property
  def flags(self) -> tuple[str, ...]:
    """All of them: the fit's, the bootstrap's, the profiles'."""
    also = [
      f'{name} not identified by the resamples'
      for (name, known), steady in zip(
        self.fit.identified.items(), self._steady, strict=True
      )
      if known and not steady
    ]
    return (
      *self.fit.flags,
      *also,
      *self.bootstrap.flags,
      *(
        f'{name} does not exist: the law has no minimum there'
        for name, (value, _) in self.derived.items()
        if name.startswith('N_opt') and not math.isfinite(value)
      ),
      *(flag for p in self.profiles.values() for flag in p.flags),
    )

  def interval(self, name: str) -> tuple[float | None, float | None]:
    """A constant's interval by the bootstrap; an end that its profile leaves
    open is None."""
    spread, profile = self.bootstrap.intervals[name], self.profiles.get(name)
    open_lo = profile is not None and profile.lo is None
    open_hi = profile is not None and profile.hi is None
    return None if open_lo else spread.lo, None if open_hi else spread.hi

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
      nothing = np.full(losses.shape[1], np.nan)
      return nothing, nothing
    tail = (1 - self.bootstrap.level) / 2
    lo, hi = np.quantile(losses, [tail, 1 - tail], axis=0)
    return lo, hi

  def save(self, path: str | pathlib.Path) -> None:
    """Writes fit.json, and the resamples' constants to bootstrap.npz beside."""
    path = pathlib.Path(path)
    arrays.save(path.with_name(record.SAMPLES), self.bootstrap.samples)
    record.write_json(path, to_json(self))

  def draw(self, folder: str | pathlib.Path) -> list[pathlib.Path]:
    """Writes the figures of `figures` as PNG; returns their paths."""
    from familial.plots import law

    return law.draw(self, pathlib.Path(folder))


def fit(
  form: parametric.Form | str,
  table: tables.Table,
  options: Options | None = None,
  *,
  loss_definition: str = 'final',
  hold_out: Sequence[str] = (),
  progress: bool = False,
) -> Result:
  """Fit, bootstrap, the profile of each parameter, and what derives from it.

  Args:
    form: or its name, as forms.get takes it.
    table: the rows.
    options: of the fit.
    loss_definition: mean, final or exit: what the table's loss is.
    hold_out: conditions of rows that are predicted, not fitted.
    progress: bars on stderr.
  """
  form = forms.get(form) if isinstance(form, str) else form
  o = options or Options()
  held = np.zeros(table.rows, bool)
  for condition in hold_out:
    held |= table.where(condition)
  if hold_out and not held.any():
    raise errors.UserError(f'hold_out={list(hold_out)}: no row meets it')
  kept = table.take(~held, hold_out=list(hold_out)) if held.any() else table
  with _bar(form.name, 'starts', o.starts, progress) as bar:
    found = estimation.fit(
      form, kept, delta=o.delta, asymmetry=o.asymmetry, starts=o.starts,
      sampling=o.sampling, seed=o.seed, advance=bar.update,
    )  # fmt: skip
  with _bar(form.name, 'resamples', o.resamples, progress) as bar:
    bootstrap = bootstraps.bootstrap(
      found, kept, resamples=o.resamples, starts=o.bootstrap_starts,
      level=o.level, seed=o.seed, advance=bar.update,
    )  # fmt: skip
  compute = o.compute
  if not compute and kept.cost is not None:
    compute = (float(kept.cost.max()),)
  result = Result(
    fit=found,
    bootstrap=bootstrap,
    profiles={
      p.name: profiles.profile(form, kept, found, p.name, level=o.level)
      for p in form.parameters
      if o.profile_all or p.null is not None
    },
    derived=_derived(found, bootstrap, kept, compute),
    held_out=None,
    table=kept,
    loss_definition=loss_definition,
    compute=compute,
  )
  if not held.any():
    return result
  return dataclasses.replace(
    result, held_out=_held_out(result, table.take(held), hold_out)
  )


def to_json(result: Result) -> dict[str, Any]:
  """The content of fit.json; not yet free of NaN, which write_json mends.

  A delta of null is that of least squares.
  """
  fit, bootstrap, table = result.fit, result.bootstrap, result.table
  return {
    'schema': storage.SCHEMA,
    'form': fit.form.name,
    'equation': fit.form.equation,
    'loss_definition': result.loss_definition,
    'table': {
      'path': table.source,
      'sha256': table.sha256,
      'columns': table.mapping,
      'filters': table.filters,
    },
    'rows': fit.rows,
    'dropped': table.dropped,
    'design': result.design,
    'params': fit.params,
    'objective': fit.objective,
    'delta': fit.delta,
    'asymmetry': fit.asymmetry,
    'starts': fit.starts,
    'followed': fit.followed,
    'basin_hit_rate': fit.basin_hit_rate,
    'converged': fit.converged,
    'condition_number': fit.condition_number,
    'identified': result.identified,
    'flags': list(result.flags),
    'sd': fit.sd,
    'covariance': fit.covariance,
    'bootstrap': {
      name: dataclasses.asdict(spread)
      for name, spread in bootstrap.intervals.items()
    },
    'level': bootstrap.level,
    'bootstrap_unit': bootstrap.unit,
    'resamples': bootstrap.resamples,
    'resamples_failed': bootstrap.failed,
    'profile': {
      name: dataclasses.asdict(p) for name, p in result.profiles.items()
    },
    'derived': {
      name: {'value': value, **dataclasses.asdict(spread)}
      for name, (value, spread) in result.derived.items()
    },
    'held_out': dataclasses.asdict(result.held_out)
    if result.held_out
    else None,
    'aic': fit.aic,
    'bic': fit.bic,
    'seed': fit.seed,
    'seconds': {**fit.seconds, 'bootstrap': bootstrap.seconds},
    'backend': jax.default_backend(),
    'versions': versions(),
  }


def versions() -> dict[str, str | None]:
  """Versions of what a number may depend on, by package."""
  return {name: _version(name) for name in _VERSIONED}


def _derived(
  fit: estimation.Fit,
  bootstrap: bootstraps.Bootstrap,
  table: tables.Table,
  compute: Sequence[float],
) -> dict[str, tuple[float, bootstraps.Interval]]:
  """What follows from the constants: at the optimum, and over the resamples."""
  form, level = fit.form, bootstrap.level
  found = {
    name: (
      float(f(fit.params)),
      bootstraps.interval(f(bootstrap.samples), level),
    )
    for name, f in form.derived.items()
  }
  if not {'N', 'D'} <= set(form.columns) or not compute:
    return found
  theta = np.concatenate([fit.theta[None], bootstrap.theta(form)])
  for label, _, others, rows in frontier.granularities(form, table):
    cost = frontier.cost_of(table, rows)
    best = frontier.optimum(form, theta, compute, cost, others)
    for j, c in enumerate(compute):
      at = f'({label}, C={c:.4g})' if others else f'(C={c:.4g})'
      values = {
        'N_opt': best.params,
        'D_opt': best.tokens,
        'tokens_per_param': best.tokens / best.params,
        'L_opt': best.loss,
        'a': best.exponent,
        'b': best.token_exponent,
      }
      for name, value in values.items():
        found[name + at] = (
          float(value[0, j]), bootstraps.interval(value[1:, j], level)
        )  # fmt: skip
  return found


def _held_out(
  result: Result, table: tables.Table, conditions: Sequence[str]
) -> HeldOut:
  error = np.log(result.predict(table.columns) / table.columns['loss'])
  lo, hi = result.predict_interval(table.columns)
  loss = table.columns['loss']
  return HeldOut(
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


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
