"""What a study's folder holds, read once for the page and its figures."""

from collections.abc import Iterable
from collections.abc import Mapping
import dataclasses
import math
import pathlib
from typing import Any

import numpy as np

from familial.core import errors
from familial.core import run_folder
from familial.core import storage
from familial.laws import fit_record
from familial.laws import frontier
from familial.laws import table as tables

_FIELDS = (
  'run', 'cell', 'arm', 'status', 'step', 'budget', 'width', 'depth', 'exit',
  'exits', 'params_full', 'tokens', 'flops', 'epochs', 'loss',
)  # fmt: skip
LOSSES = ('final', 'mean', 'exit')  # in the order in which they are told


@dataclasses.dataclass(frozen=True)
class Run:
  """A cell of the plan and, where it ran, its last evaluation.

  Attributes:
    status: of the last rows, or `not run`.
    losses: in nats by exit, None where it has none.
    rows: of the last evaluation, one per exit; empty where it did not run.
  """

  cell: str
  arm: str
  status: str
  budget: float
  width: int
  depth: int
  exits: int
  params_full: float
  tokens: float
  flops: float
  epochs: float
  losses: tuple[float | None, ...]
  rows: tuple[storage.Row, ...] = ()

  @property
  def finished(self) -> bool:
    """Whether the run is a result."""
    return self.status == 'finished' and None not in self.losses

  @property
  def final(self) -> float:
    """The last exit's loss of a finished run."""
    return float(self.losses[-1] or math.nan)

  @property
  def mean(self) -> float:
    """The mean over exits of a finished run's losses."""
    return float(np.mean([loss or math.nan for loss in self.losses]))


@dataclasses.dataclass(frozen=True)
class Gamma:
  """The exponent of G under one loss and one form, with its interval."""

  loss: str
  form: str
  gamma: float
  lo: float | None
  hi: float | None
  profile_lo: float | None = None
  profile_hi: float | None = None
  flags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Results:
  """A study: its plan, its summary, its runs and its fits."""

  plan: dict[str, Any]
  summary: dict[str, Any]
  runs: tuple[Run, ...]
  fits: Mapping[tuple[str, str], fit_record.Law]
  selections: Mapping[str, Any]

  def arm(self, *arms: str) -> list[Run]:
    """Returns the finished runs of some arms."""
    return [run for run in self.runs if run.finished and run.arm in arms]

  @property
  def budgets(self) -> list[float]:
    """Budgets of the finished grid, smallest first."""
    return sorted({run.budget for run in self.arm('grid')})

  @property
  def granularities(self) -> list[int]:
    """G of the finished grid, smallest first."""
    return sorted({run.exits for run in self.arm('grid')})

  def minima(self, loss: str) -> dict[tuple[float, int], frontier.Minimum]:
    """Returns the IsoFLOP minimum by (budget, G) of the grid's runs."""
    cells: dict[tuple[float, int], list[Run]] = {}
    for run in self.arm('grid'):
      cells.setdefault((run.budget, run.exits), []).append(run)
    return {
      key: frontier.minimum(
        [run.params_full for run in runs],
        [getattr(run, loss) for run in runs],
      )
      for key, runs in sorted(cells.items())
    }

  def preferred(self, loss: str) -> str | None:
    """Returns the form of lowest AIC with an exponent of G, for one loss."""
    scores = {
      form: aic
      for form, aic in self.scores(loss).items()
      if 'gamma' in self.fits[loss, form].params
    }
    # A tie goes to the first name: where E is 0 the two are one form.
    return min(
      sorted(scores, reverse=True), key=scores.__getitem__, default=None
    )

  def scores(self, loss: str) -> dict[str, float]:
    """Returns the AIC by form of one loss to 0.01, without the branch law."""
    return {
      form: round(law.record.aic, 2)
      for (of, form), law in self.fits.items()
      if of == loss and form != 'branch' and law.record.aic is not None
    }

  def gammas(self) -> list[Gamma]:
    """Returns every estimate of gamma: the summary's, else the fits'."""
    found = {
      (row['loss'], row['form']): Gamma(
        row['loss'],
        row['form'],
        row['gamma'],
        row.get('lo'),
        row.get('hi'),
        row.get('profile_lo'),
        row.get('profile_hi'),
        tuple(row.get('flags') or ()),
      )
      for row in self.summary.get('gamma') or []
      if row.get('gamma') is not None
    }
    for (loss, form), law in self.fits.items():
      if 'gamma' in law.params and (loss, form) not in found:
        profile = law.record.profile.get('gamma')
        found[loss, form] = Gamma(
          loss,
          form,
          law.params['gamma'],
          *interval(law, 'gamma'),
          profile.lo if profile else None,
          profile.hi if profile else None,
          law.record.flags,
        )
    order = {loss: rank for rank, loss in enumerate(LOSSES)}
    return sorted(
      found.values(),
      key=lambda g: (order.get(g.loss, 9), g.form != 'familial_total', g.form),
    )

  def measured(self) -> list[Gamma]:
    """Returns gamma without a law: families beside dense models."""
    equal = {'flops': 'equal FLOPs', 'tokens': 'equal N and D'}
    found = [
      Gamma(
        row['loss'],
        f'same shape, {equal[row["equal"]]}',
        *(row[key] for key in ('value', 'lo', 'hi')),
      )
      for row in self.paired('gamma')
      if row['budget'] is None
    ]
    twins = self.summary.get('twins') or {}
    if twins:
      values = (twins[key] for key in ('value', 'lo', 'hi'))
      found.append(Gamma('exit', 'dense twins', *values))
    return found

  def paired(self, part: str) -> list[dict[str, Any]]:
    """Returns a part of the comparison with dense models of the same shape."""
    return (self.summary.get('paired') or {}).get(part) or []

  def noise(self, loss: str) -> float | None:
    """Returns the standard deviation of log loss between seeds."""
    noise = self.summary.get('noise') or {}
    return (noise.get('sd_log_loss') or {}).get(loss)

  def headline(self, loss: str) -> Gamma | None:
    """Returns the estimate under the form that the data prefer."""
    estimates = [g for g in self.gammas() if g.loss == loss]
    for estimate in estimates:
      if estimate.form == self.preferred(loss):
        return estimate
    return estimates[0] if estimates else None

  def dense_loss(self) -> float | None:
    """Returns the lowest dense loss at the largest budget that has one."""
    dense = [run for run in self.arm('grid') if run.exits == 1]
    if not dense:
      return None
    top = max(run.budget for run in dense)
    return min(run.final for run in dense if run.budget == top)

  def table(self, loss: str, form: str) -> tables.Table:
    """Returns the rows that a fit rests on."""
    source = self.fits[loss, form].record.table
    arms = source.filters.get('arms') if source else None
    rows = [row for run in self.runs if run.finished for row in run.rows]
    return tables.from_rows(rows, loss, arms=arms, mix_corpora=True)


def read(workdir: pathlib.Path) -> Results:
  """Returns what a study's folder holds; what is not there is empty.

  Rows are those below cells/, or of `rows.jsonl` where there are none: results
  that are kept without their runs.
  """
  plan = _json(workdir / 'plan.json')
  rows = list(run_folder.rows_of(workdir / 'cells'))
  if not rows:
    rows = storage.read_rows(workdir / 'rows.jsonl')
    for number, row in enumerate(rows, start=1):
      missing = [name for name in _FIELDS if name not in row]
      if missing:
        raise errors.UserError(
          f'{workdir / "rows.jsonl"}: row {number} lacks {", ".join(missing)}'
        )
  return Results(
    plan=plan,
    summary=_json(workdir / 'summary.json'),
    runs=tuple(_runs(plan, rows)),
    fits={
      (path.parent.parent.name, path.parent.name): fit_record.load(path)
      for path in sorted(workdir.glob('fits/*/*/fit.json'))
    },
    selections={
      path.parent.name: storage.read_json(path)
      for path in sorted(workdir.glob('fits/*/selection.json'))
    },
  )


def interval(
  law: fit_record.Law, name: str
) -> tuple[float | None, float | None]:
  """Returns the bootstrap interval of a constant, None where it has none."""
  spread = law.record.bootstrap.get(name)
  return (spread.lo, spread.hi) if spread else (None, None)


def _json(path: pathlib.Path) -> dict[str, Any]:
  return storage.read_own(path) if path.exists() else {}


def _runs(plan: Mapping[str, Any], rows: Iterable[storage.Row]) -> list[Run]:
  """Returns the runs that have rows and the planned ones that have none."""
  last: dict[tuple[str, str], dict[int, storage.Row]] = {}
  for row in rows:
    kept = last.setdefault((row['cell'], row['run']), {})
    if any(other['step'] != row['step'] for other in kept.values()):
      kept.clear()
    kept[row['exit']] = row  # a run that diverged may say so at the same step
  started = {cell for cell, _ in last}
  planned = plan.get('cells') or []
  order = {cell['cell']: rank for rank, cell in enumerate(planned)}
  runs = [
    _started([kept[exit_] for exit_ in sorted(kept)]) for kept in last.values()
  ]
  runs += [_planned(cell) for cell in planned if cell['cell'] not in started]
  return sorted(
    runs, key=lambda run: (order.get(run.cell, len(order)), run.cell)
  )


def _started(rows: list[storage.Row]) -> Run:
  first = rows[0]
  return Run(
    cell=first['cell'],
    arm=first['arm'],
    status=first['status'],
    budget=first['budget'],
    width=first['width'],
    depth=first['depth'],
    exits=first['exits'],
    params_full=first['params_full'],
    tokens=first['tokens'],
    flops=first['flops'],
    epochs=first['epochs'],
    losses=tuple(row['loss'] for row in rows),
    rows=tuple(rows),
  )


def _planned(cell: Mapping[str, Any]) -> Run:
  return Run(
    cell=cell['cell'],
    arm=cell['arm'],
    status='not run',
    budget=cell['budget'],
    width=cell['width'],
    depth=cell['depth'],
    exits=cell['exits'],
    params_full=cell['params_full'],
    tokens=cell['tokens'],
    flops=cell['flops'],
    epochs=cell['epochs'],
    losses=(),
  )
