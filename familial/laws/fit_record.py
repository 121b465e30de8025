"""`fit.json`, the record of a fitted law, and the law read back from it."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import json
import math
import pathlib
from typing import Annotated
from typing import Any
from typing import TypeVar

import numpy as np

from familial.core import arrays
from familial.core import errors
from familial.core import estimate
from familial.core import schema
from familial.core import storage
from familial.core import text
from familial.laws import forms
from familial.laws import parametric
from familial.laws import prediction

SAMPLES = 'bootstrap.npz'
RESIDUALS = 'residuals'  # its array that holds no constant
PART = 0.1  # of a unit vector, that makes a column a part of it
T = TypeVar('T')
_LAW = ('form', 'params', 'objective', 'bootstrap', 'flags')


class _FromLists:
  """Metadata by which pydantic reads an array from lists; null becomes NaN."""

  def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
    from pydantic_core import core_schema

    return core_schema.no_info_plain_validator_function(
      lambda value: np.array(value, np.float64)
    )


Array = Annotated[np.ndarray, _FromLists()]


@dataclasses.dataclass(frozen=True)
class Resampled(estimate.Estimate):
  """An estimate, its percentile interval and its standard deviation.

  All but the value are over the bootstrap resamples that did not fail; None where
  one of them is not finite, or where they say nothing of the value.
  """

  sd: float | None = None


@dataclasses.dataclass(frozen=True)
class Profile:
  """The profile likelihood of one parameter.

  Attributes:
    name: the parameter.
    values: of the parameter, ascending, [k]; holds the estimate and, if the
      parameter has one, its null.
    deviance: at each value, 0 at the estimate, [k].
    cutoff: the interval is where the deviance is below.
    lo: its lower end; None where the profile stays below the cut-off.
    hi: its upper end; None where the profile stays below the cut-off.
    level: of the interval.
    null: the value without effect, or None.
    p_value: of the null, two-sided; None without one.
    flags: where it is flat, or found a better optimum than the fit.
  """

  name: str
  values: Array
  deviance: Array
  cutoff: float
  lo: float | None
  hi: float | None
  level: float
  null: float | None
  p_value: float | None
  flags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Correlation:
  """Correlation of the logs of two columns; NaN where one takes one value."""

  columns: tuple[str, ...]
  value: float | None


@dataclasses.dataclass(frozen=True)
class Design:
  """Collinearity of a law's columns over runs.

  Attributes:
    runs: number of runs.
    correlations: of every two positive columns.
    condition_number: of the correlation matrix: 1 without collinearity, (1 + |r|)
      / (1 - |r|) for two columns, infinite where one follows from the others.
  """

  runs: int
  correlations: tuple[Correlation, ...]
  condition_number: float | None


@dataclasses.dataclass(frozen=True)
class Span:
  """The points at which the rows of a fit determine the law's prediction.

  If all rows lie on a line, such as D = 20 N, the terms in N and in D are
  interchangeable; if a column takes one value, its effect cannot be estimated.
  Many laws then agree on the rows and differ elsewhere.

  A point is the log of each column, or the column itself where it is not
  positive in every row, minus `centre`, divided by `scale`.

  Attributes:
    columns: the law's columns.
    logs: which of them are logs.
    centre: their means, [columns].
    scale: their standard deviations; 1 for a column of one value, [columns].
    missing: orthonormal directions in which the rows do not vary,
      [directions, columns].
    room: the largest component of a point within the span along `missing`, for
      points up to a distance of 1 from the centre; proportional to the distance
      beyond it.
    confounded: constants that are interchangeable with others on the rows.
  """

  columns: tuple[str, ...]
  logs: tuple[bool, ...]
  centre: Array
  scale: Array
  missing: Array
  room: float
  confounded: tuple[str, ...]

  def holds(self, columns: Mapping[str, Any]) -> np.ndarray:
    """Whether points lie within the span; of the columns' shape.

    Args:
      columns: the law's columns, of one shape.
    """
    if not self.missing.size:
      return np.ones(np.shape(columns[self.columns[0]]), bool)
    with np.errstate(divide='ignore', invalid='ignore'):
      at = np.stack(
        [
          np.log(columns[name]) if log else columns[name]
          for name, log in zip(self.columns, self.logs, strict=True)
        ],
        axis=-1,
      )
      at = (at - self.centre) / self.scale
      away = np.linalg.norm(at @ self.missing.T, axis=-1)
      # The line is known to rounding: the further along it, the less exactly.
      distance = np.maximum(np.linalg.norm(at, axis=-1), 1.0)
    return away <= self.room * distance

  def lacks(self, *names: str) -> bool:
    """Whether the rows do not vary in a direction that involves these columns."""
    if not self.missing.size:
      return False
    involved = np.linalg.norm(self.missing, axis=0) > PART
    return any(involved[self.columns.index(name)] for name in names)


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Prediction of rows that were not fitted.

  `rms` and `bias` are of log prediction - log loss; `covered` is the share of
  rows within the confidence intervals of the law's mean, `covered_run` of those
  within the prediction intervals of a run, which add a run's own noise; both are
  None if no row has an interval. `unknown` is the number of rows outside of what
  the fitted rows span; they have no interval and are left out of both shares.
  """

  conditions: tuple[str, ...]
  rows: int
  rms: float
  bias: float
  covered: float | None = None
  covered_run: float | None = None
  unknown: int = 0

  def flags(self, level: float) -> tuple[str, ...]:
    """Flags if rows have no interval, or too few, by more than one, lie within."""
    flags: tuple[str, ...] = ()
    if self.unknown:
      flags = (
        f'held-out rows outside of what the fitted rows span: {self.unknown}',
      )
    if self.covered_run is None:
      return flags
    rows = self.rows - self.unknown
    inside = round(self.covered_run * rows)
    if inside + 1 >= level * rows:
      return flags
    return (
      *flags,
      f'only {inside} of {rows} held-out rows are within the {level:.0%}'
      ' prediction intervals of a run',
    )


@dataclasses.dataclass(frozen=True)
class IsoFlopMinimum:
  """The minimum of one budget's curve of loss against size.

  Attributes:
    label: granularity, `G = 2`.
    flops: mean C of the curve's runs.
    params: N at the minimum of the law's shape with a level and a tilt of the
      budget's own; no interval outside of the sampled sizes.
    tokens: D there.
    loss: there.
    rows: number of rows of the curve.
    left_out: number of rows of the budget outside of the window of sizes.
    parabola: N at the vertex of a parabola in log N; None outside of the sizes.
    parabola_loss: at the vertex.
    parabola_bias: log of the vertex's N over the optimum's on a curve of the law
      at the same sizes; None where either does not exist.
    flag: why the minimum does not count, or ''.
  """

  label: str
  flops: float
  params: estimate.Estimate
  tokens: estimate.Estimate
  loss: float
  rows: int
  left_out: int
  parabola: float | None
  parabola_loss: float | None
  parabola_bias: float | None
  flag: str


@dataclasses.dataclass(frozen=True)
class ComputeOptimum:
  """Compute-optimal N and D at one C by one approach.

  Attributes:
    approach: envelope, isoflop or parametric.
    label: granularity, `G = 2`.
    flops: C.
    params: N.
    tokens: D.
    exponent: d log N / d log C.
    token_exponent: d log D / d log C.
  """

  approach: str
  label: str
  flops: float
  params: estimate.Estimate
  tokens: estimate.Estimate
  exponent: estimate.Estimate
  token_exponent: estimate.Estimate


@dataclasses.dataclass(frozen=True)
class Approaches:
  """Compute-optimal sizes by the approaches of Hoffmann et al. (2022, section 3).

  Attributes:
    costs: training FLOPs a token by granularity, the two terms of
      `frontier.TokenCost`.
    minima: of the IsoFLOP curves.
    optima: by approach, granularity and C.
    missing: why an approach has none, by approach and granularity.
    flags: curves that the law does not fit, approaches that disagree.
  """

  costs: dict[str, tuple[float, float]]
  minima: tuple[IsoFlopMinimum, ...]
  optima: tuple[ComputeOptimum, ...]
  missing: dict[str, str]
  flags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Source:
  """The table of a fit: file, hash, mapped columns, how rows were chosen."""

  path: str
  sha256: str
  columns: dict[str, str]
  filters: dict[str, Any]


@text.brief
@dataclasses.dataclass(frozen=True, kw_only=True)
class FitRecord:
  """The content of `fit.json`; files of earlier versions lack some fields.

  The fields are those of `estimation.Fit`, `bootstrap.Bootstrap` and
  `inference.Result`; a `delta` of None is that of least squares. A number that
  is not finite is written as null and read as None, or NaN in an array.
  """

  form: str
  equation: str = ''
  loss_definition: str = ''
  table: Source | None = None
  rows: int = 0
  dropped: int = 0
  residual_scale: float | None = None
  degrees: int = 1
  design: Design | None = None
  span: Span | None = None
  params: dict[str, float | None]
  objective: float | None = None
  delta: float | None = None
  asymmetry: float = 1.0
  starts: int = 0
  followed: int = 0
  basin_hit_rate: float | None = None
  converged: bool = False
  condition_number: float | None = None
  identified: dict[str, bool] = dataclasses.field(default_factory=dict)
  flags: tuple[str, ...] = ()
  sd: dict[str, float | None] = dataclasses.field(default_factory=dict)
  covariance: Array | None = None
  bootstrap: dict[str, Resampled] = dataclasses.field(default_factory=dict)
  level: float = 0.95
  bootstrap_unit: str = ''
  resamples: int | None = None
  resamples_failed: int | None = None
  profile: dict[str, Profile] = dataclasses.field(default_factory=dict)
  derived: dict[str, Resampled] = dataclasses.field(default_factory=dict)
  approaches: Approaches | None = None
  held_out: HeldOut | None = None
  aic: float | None = None
  bic: float | None = None
  seed: int = 0
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  backend: str = ''
  versions: dict[str, str | None] = dataclasses.field(default_factory=dict)

  @property
  def representative(self) -> bool:
    """Whether enough resamples converged for intervals."""
    return representative(self.resamples or 0, self.resamples_failed or 0)

  def has_interval(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether predictions at the law's columns have an interval; of their shape."""
    within = self.span.holds(columns) if self.span else True
    return np.logical_and(within, self.representative)

  def spans(self, *names: str) -> bool:
    """Whether quantities that depend on these columns anywhere have intervals."""
    return self.representative and not (self.span and self.span.lacks(*names))

  def interval(self, name: str) -> estimate.Estimate:
    """A constant with its interval, as `inference.Result.interval`."""
    return interval(
      self.bootstrap[name], self.profile.get(name), self.resamples or 0
    )

  def to_json(self) -> dict[str, Any]:
    """The values of the file; the value of a constant stands in `params`."""
    values = {'schema': storage.SCHEMA, **dataclasses.asdict(self)}
    for spread in values['bootstrap'].values():
      del spread['value']
    return values


@text.brief
@dataclasses.dataclass(frozen=True)
class Law:
  """A law read back from `fit.json`.

  Attributes:
    form: the law.
    record: the content of the file.
    samples: the constants of the bootstrap's resamples, each [resamples], or
      None where `bootstrap.npz` does not lie beside the file.
    residuals: log loss - log prediction of runs like the fitted ones, or None
      where the file is of an earlier version.
  """

  form: parametric.Form
  record: FitRecord
  samples: dict[str, np.ndarray] | None = None
  residuals: np.ndarray | None = None

  @property
  def params(self) -> dict[str, float]:
    """The constants by name; NaN where one was not finite."""
    return {
      name: math.nan if value is None else value
      for name, value in self.record.params.items()
    }

  def predict(self, columns: Mapping[str, Any]) -> np.ndarray:
    """The loss at these columns, one a row."""
    return self.form.predict(self.params, columns)

  def predict_interval(
    self, columns: Mapping[str, Any], kind: str = 'mean'
  ) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the interval at these columns, as `Result.predict_interval`.

    Raises:
      UserError: if what they rest on was not stored beside the fit.
    """
    record = self.record
    return prediction.intervals(
      self.form, *self._drawn(kind), columns, kind, record.level, record.degrees,
      record.has_interval,
    )  # fmt: skip

  def draws(self, columns: Mapping[str, Any], kind: str = 'mean') -> np.ndarray:
    """Log loss at one point in each resample; [0] where there is no interval.

    Raises:
      UserError: if what they rest on was not stored beside the fit.
    """
    at = self.form.columns_of(columns)
    log_loss = prediction.draws(self.form, *self._drawn(kind), at, kind)
    return log_loss if self.record.has_interval(at) else log_loss[:0]

  def _drawn(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the resamples, and residuals."""
    if self.samples is None or (kind == 'run' and self.residuals is None):
      raise errors.UserError(
        f'intervals of predictions need the {SAMPLES} that a fit writes beside'
        ' fit.json; those of a run, one of this version'
      )
    residuals = np.zeros(0) if self.residuals is None else self.residuals
    return self.form.coordinates_of(self.samples), residuals


def representative(resamples: int, failed: int) -> bool:
  """Whether at least half of the resamples converged; fewer give no interval."""
  return 2 * failed <= resamples


def interval(
  spread: Resampled, profile: Profile | None, resamples: int
) -> estimate.Estimate:
  """A constant with its bootstrap interval, or without resamples its profile's.

  An end that the profile leaves open is None; both are where there is no interval.
  """
  if not resamples and profile is not None:
    return estimate.Estimate(spread.value, profile.lo, profile.hi)
  return estimate.Estimate(
    spread.value,
    None if profile is not None and profile.lo is None else spread.lo,
    None if profile is not None and profile.hi is None else spread.hi,
  )


def load(path: str | pathlib.Path) -> Law:
  """Reads `fit.json` back.

  Raises:
    UserError: if there is no such file, or it or its `bootstrap.npz` is damaged
      or of another schema.
  """
  try:
    values = storage.read_own(path)
  except OSError as error:
    raise errors.UserError(f'{path}: cannot be read ({error})') from None
  missing = [key for key in _LAW if key not in values]
  if missing:
    raise errors.UserError(
      f'{path}: is no fit.json: it lacks {", ".join(missing)}'
    )
  if '.py' in str(values['form']):
    raise errors.UserError(
      f'{path}: is a law of the file {values["form"]!r}, which is not run to'
      ' read it; load that form and use its predict'
    )
  for name, spread in values['bootstrap'].items():
    spread['value'] = values['params'][name]
  for spreads in (values['bootstrap'], values.get('derived', {})):
    for spread in spreads.values():
      if spread['value'] is None:
        spread['value'] = math.nan
  record = from_json(FitRecord, values, path)
  samples = None
  beside = pathlib.Path(path).with_name(SAMPLES)
  if beside.exists():
    if record.resamples is None or record.resamples_failed is None:
      raise errors.UserError(
        f'{str(path)!r} does not count its resamples, which {SAMPLES} holds'
      )
    count = max(record.resamples - record.resamples_failed, 0)
    like = dict.fromkeys(record.params, np.broadcast_to(0.0, count))
    if record.residual_scale is not None:  # Not of an earlier version.
      like[RESIDUALS] = np.broadcast_to(0.0, record.rows)
    samples = arrays.load(beside, like)
  residuals = samples.pop(RESIDUALS, None) if samples else None
  return Law(forms.get(record.form), record, samples, residuals)


def from_json(
  cls: type[T], values: Mapping[str, Any], path: str | pathlib.Path
) -> T:
  """The record of a class in the values of a JSON file, which a refusal names."""
  try:
    return schema.read(cls, {k: v for k, v in values.items() if k != 'schema'})
  except errors.UserError as error:
    raise errors.UserError(f'{path}: {error}') from None


def write_json(path: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Writes JSON atomically; NaN and infinity become null."""
  text = json.dumps(plain(record), indent=2, allow_nan=False) + '\n'
  storage.write_text(path, text)


def plain(value: Any) -> Any:
  """Returns a value as JSON has it; NaN and infinity become null."""
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(v) for v in value]
  if isinstance(value, (np.ndarray, np.generic)):
    return plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
