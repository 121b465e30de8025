"""Sensitivity of a law's constants to the rows fitted and to one constant.

A correct form gives the same constants, within their intervals, without the
rows of highest loss. Where the rows do not identify one constant, the fits with
it held show how the others follow.
"""

from collections.abc import Sequence
import dataclasses

from familial.core import estimate
from familial.core import text
from familial.laws import estimation
from familial.laws import inference
from familial.laws import parametric
from familial.laws import table as tables


@dataclasses.dataclass(frozen=True)
class Cutoff:
  """A fit without the rows of highest loss.

  Attributes:
    dropped: number of rows left out.
    rows: number of rows fitted.
    below: the highest loss fitted, nats per token.
    params: each constant with its interval.
    objective: of the fit.
    flags: of the fit.
  """

  dropped: int
  rows: int
  below: float
  params: dict[str, estimate.Estimate]
  objective: float
  flags: tuple[str, ...]


@text.brief
@dataclasses.dataclass(frozen=True)
class Scan:
  """The content of `scan.json`."""

  form: str
  cutoffs: tuple[Cutoff, ...]


@dataclasses.dataclass(frozen=True)
class Held:
  """A fit with one constant held at `value`.

  `aic` counts the held constant as well, as the fit that leaves it free does.
  """

  value: float
  params: dict[str, float]
  aic: float
  objective: float
  flags: tuple[str, ...]


def scan(
  form: parametric.Form,
  table: tables.Table,
  dropped: Sequence[int],
  options: inference.Options | None = None,
) -> Scan:
  """Fits the form without the k rows of highest loss, for each k of `dropped`.

  Profiles only the constants that have a null.
  """
  options = dataclasses.replace(options or inference.Options(), profiles='some')
  cutoffs = []
  for count in dropped:
    rest = table.drop_highest(count)
    result = inference.fit(form, rest, options)
    cutoffs.append(
      Cutoff(
        dropped=count,
        rows=rest.rows,
        below=float(rest.columns['loss'].max()),
        params={name: result.interval(name) for name in form.names},
        objective=result.fit.objective,
        flags=result.flags,
      )
    )
  return Scan(form.name, tuple(cutoffs))


def hold(
  form: parametric.Form,
  table: tables.Table,
  name: str,
  values: Sequence[float],
  options: inference.Options | None = None,
) -> list[Held]:
  """Fits all other constants with one of them held at each value."""
  o = options or inference.Options()
  fits = [
    estimation.fit(
      form, table, delta=o.delta, asymmetry=o.asymmetry, starts=o.starts,
      sampling=o.sampling, seed=o.seed, fixed={**o.fixed, name: value},
    )
    for value in values
  ]  # fmt: skip
  return [
    Held(value, fit.params, fit.aic + 2, fit.objective, fit.flags)
    for value, fit in zip(values, fits, strict=True)
  ]
