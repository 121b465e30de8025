"""How a law's constants move: without rows of high loss, with one of them held.

A form that is right gives the same constants, within their intervals, whatever
it is fitted to; one that is not bends where it is told to look. And where the
rows do not pin one constant down, the others are what it makes of them: `over`
says how much.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from familial.laws import estimation
from familial.laws import parametric
from familial.laws import result as results
from familial.laws import table as tables


@dataclasses.dataclass(frozen=True)
class Cutoff:
  """A fit without the rows of highest loss.

  Attributes:
    dropped: how many rows were left out.
    rows: that are left.
    below: no loss that was fitted exceeds it, nats per token.
    params: each constant: `value`, and `lo` and `hi` of its interval.
    objective: of the fit.
    flags: to know before the numbers are believed.
  """

  dropped: int
  rows: int
  below: float
  params: dict[str, dict[str, float | None]]
  objective: float
  flags: tuple[str, ...]


def scan(
  form: parametric.Form,
  table: tables.Table,
  dropped: Sequence[int],
  options: results.Options | None = None,
) -> list[Cutoff]:
  """The fit without the k rows of highest loss, for each k.

  Args:
    form: the law.
    table: all rows.
    dropped: each k, from 0.
    options: of every fit; nothing is profiled but what has a null.

  Raises:
    UserError: as of table.drop_highest, and of a fit to too few rows.
  """
  options = dataclasses.replace(options or results.Options(), profile_all=False)
  found = []
  for count in dropped:
    kept = table.drop_highest(count)
    result = results.fit(form, kept, options)
    intervals = {name: result.interval(name) for name in form.names}
    found.append(
      Cutoff(
        dropped=count,
        rows=kept.rows,
        below=float(kept.columns['loss'].max()),
        params={
          name: {
            'value': value,
            'lo': intervals[name][0],
            'hi': intervals[name][1],
          }
          for name, value in result.fit.params.items()
        },
        objective=result.fit.objective,
        flags=result.flags,
      )
    )
  return found


@dataclasses.dataclass(frozen=True)
class Held:
  """A fit with one constant held.

  Attributes:
    value: at which it is held.
    params: all constants.
    aic: as `estimate.Fit` has it, but the held constant counts as well, as in
      the fit that leaves it free.
    objective: of the fit.
    flags: to know before the numbers are believed.
  """

  value: float
  params: dict[str, float]
  aic: float
  objective: float
  flags: tuple[str, ...]


def over(
  form: parametric.Form,
  table: tables.Table,
  name: str,
  values: Sequence[float],
  options: results.Options | None = None,
) -> list[Held]:
  """The fit of all other constants with one of them held at each value.

  Args:
    form: the law.
    table: all rows.
    name: of the constant.
    values: at which it is held.
    options: of every fit; nothing is resampled or profiled.
  """
  o = options or results.Options()
  found = []
  for value in values:
    fit = estimation.fit(
      form, table, delta=o.delta, asymmetry=o.asymmetry, starts=o.starts,
      sampling=o.sampling, seed=o.seed, fixed={name: value},
    )  # fmt: skip
    found.append(Held(value, fit.params, fit.aic + 2, fit.objective, fit.flags))
  return found


def to_json(form: parametric.Form, found: Sequence[Cutoff]) -> dict[str, Any]:
  """The content of scan.json."""
  rows = [dataclasses.asdict(cutoff) for cutoff in found]
  return {'form': form.name, 'cutoffs': rows}
