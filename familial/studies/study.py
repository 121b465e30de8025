"""The protocol of a study, what its folder holds, and its `summary.json`.

A study is a set of runs and one question about them. A module of this room holds
one kind of study, whole: its config, its runs, and its analysis, which turns
finished runs into named tables of typed records. `familial.studies.STUDIES` lists
the kinds; figures and pages are made from the tables, elsewhere.
"""

import abc
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import functools
from importlib import metadata
import json
import math
import operator
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import typing
from typing import Any
from typing import ClassVar
from typing import Generic
from typing import TypeVar

import ml_collections
import numpy as np

from familial.core import errors
from familial.core import run_folder
from familial.core import schema
from familial.core import storage
from familial.core import text
from familial.laws import fit_record
from familial.studies import plan as plan_lib
from familial.studies import sweep

Config = TypeVar('Config')
Tables = TypeVar('Tables')
Record = TypeVar('Record')
PLAN = 'plan.json'
SUMMARY = 'summary.json'


@text.brief
@dataclasses.dataclass(frozen=True)
class Run:
  """A run of a study: what was planned and, if it started, its last evaluation.

  Attributes:
    cell: name of the run in the study's plan.
    arm: part of the study that the run belongs to.
    status: `not run`, `running`, `finished` or `diverged`.
    budget: planned training FLOPs.
    width: of the model.
    depth: number of layers.
    heads: number of query heads; 0 if the run has not started.
    exits: G, the number of exits.
    exit_layers: layers after which an exit lies, the last one included.
    exit_kind: kind of the exits before the last.
    params_full: N of the full model, without embeddings.
    tokens: D, tokens trained on (planned tokens if the run has not started).
    flops: training FLOPs, those inherited from a parent run included.
    epochs: passes over the training tokens.
    base_lr: base learning rate.
    seed: of the run.
    losses: held-out nats per token by exit; None where there is none.
    rows: rows of the last evaluation, one per exit; () if there is none.
  """

  cell: str
  arm: str
  status: str
  budget: float
  width: int
  depth: int
  heads: int
  exits: int
  exit_layers: tuple[int, ...]
  exit_kind: str
  params_full: float
  tokens: float
  flops: float
  epochs: float
  base_lr: float
  seed: int
  losses: tuple[float | None, ...] = ()
  rows: tuple[Mapping[str, Any], ...] = ()

  @property
  def finished(self) -> bool:
    """Whether the run ended and every exit has a loss."""
    return self.status == 'finished' and None not in self.losses

  def loss(self, of: str) -> float:
    """Returns a finished run's `final` or `mean` loss over its exits."""
    values = np.array(self.losses, np.float64)
    return float(values[-1] if of == 'final' else np.mean(values))

  def log_loss(self, of: str) -> float:
    """Returns the logarithm of `loss`."""
    return math.log(self.loss(of))

  @property
  def shape(self) -> tuple[float, int, int, int]:
    """Budget, width, depth and heads: shared by a family and its dense model."""
    return self.budget, self.width, self.depth, self.heads


@text.brief
@dataclasses.dataclass(frozen=True)
class Results:
  """A study's folder, read once.

  Attributes:
    folder: of the study.
    plan: content of `plan.json`; {} if there is none.
    rows: all evaluation rows of all runs.
    runs: all planned or started runs, in the plan's order.
  """

  folder: pathlib.Path
  plan: Mapping[str, Any]
  rows: tuple[Mapping[str, Any], ...]
  runs: tuple[Run, ...]

  @functools.cached_property
  def finished(self) -> tuple[Run, ...]:
    """The finished runs, by name."""
    return tuple(
      sorted((r for r in self.runs if r.finished), key=lambda run: run.cell)
    )

  @property
  def keeps_models(self) -> bool:
    """Whether every started run has its config, without which it is no model."""
    folders = self.run_folders()
    return bool(folders) and all(
      (folder / 'config.json').exists() for folder in folders
    )

  def run_folders(self) -> list[pathlib.Path]:
    """Returns the folders of all started runs; [] for results kept without."""
    cells = self.folder / 'cells'
    if not cells.is_dir():
      return []
    return sorted(path for path in cells.iterdir() if path.is_dir())


def read(folder: str | os.PathLike[str]) -> Results:
  """Reads a study's folder.

  Rows are those of the runs under `cells/`; of `rows.jsonl` where results are
  kept without their runs.

  Raises:
    UserError: if the folder holds neither a plan nor rows, or is damaged.
  """
  folder = pathlib.Path(folder)
  path = folder / PLAN
  plan = storage.read_own(path) if path.exists() else {}
  rows = list(run_folder.rows_of(folder / 'cells'))
  if not rows:
    path = folder / 'rows.jsonl'
    rows = storage.read_rows(path)
    for number, row in enumerate(rows, start=1):
      missing = sorted(_ROW_FIELDS - row.keys())
      if missing:
        raise errors.UserError(
          f'{path}: row {number} lacks {", ".join(missing)}'
        )
  if not rows and not plan.get('cells') and not plan.get('studies'):
    raise errors.UserError(
      f'workdir={str(folder)!r} holds neither a plan.json with cells nor rows '
      'under cells/; it must be a folder that `familial run` made'
    )
  return Results(folder, plan, tuple(rows), tuple(_runs(plan, rows)))


_ROW_FIELDS = {
  *(field.name for field in dataclasses.fields(Run)),
  *('run', 'step', 'exit', 'loss'),
} - {'losses', 'rows'}


def record_of(cls: type[Record], source: Any, **values: Any) -> Record:
  """Returns a record that has the fields of a source, but for those given.

  Args:
    cls: dataclass of the record.
    source: an object or a row that has the other fields by name.
    **values: fields that it lacks, or whose values it has otherwise.
  """
  get = operator.getitem if isinstance(source, Mapping) else getattr
  names = [field.name for field in dataclasses.fields(typing.cast(Any, cls))]
  known = {name: get(source, name) for name in names if name not in values}
  return cls(**known, **values)


def _runs(
  plan: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]
) -> list[Run]:
  last: dict[str, dict[int, Mapping[str, Any]]] = {}
  for row in rows:
    kept = last.setdefault(row['cell'], {})
    if any(other['step'] != row['step'] for other in kept.values()):
      kept.clear()
    kept[row['exit']] = row  # A diverged run may repeat its last step.
  runs = {}
  for cell, kept in last.items():
    exits = tuple(kept[number] for number in sorted(kept))
    runs[cell] = record_of(
      Run,
      exits[0],
      exit_layers=tuple(exits[0]['exit_layers']),
      losses=tuple(row['loss'] for row in exits),
      rows=exits,
    )
  planned = {cell['cell']: cell for cell in plan.get('cells') or []}
  for cell, row in planned.items():
    if cell not in runs:
      layers = tuple(row['exit_layers'])
      runs[cell] = record_of(
        Run,
        {**row, 'exit_layers': layers},
        **{'status': 'not run', 'heads': 0, 'losses': (), 'rows': ()},
      )
  order = {cell: place for place, cell in enumerate(planned)}
  return sorted(
    runs.values(), key=lambda run: (order.get(run.cell, len(order)), run.cell)
  )


@dataclasses.dataclass(frozen=True)
class Cost:
  """Cost of a study.

  Attributes:
    flops: training FLOPs of the finished runs, each counted once.
    seconds: time of all runs' training steps; None if one did not measure it.
    finished: number of finished runs.
    diverged: number of diverged runs.
    missing: number of planned runs without a result.
  """

  flops: float
  seconds: float | None
  finished: int
  diverged: int
  missing: int


@text.brief
@dataclasses.dataclass(frozen=True)
class Summary(Generic[Tables]):
  """Results of a study; the content of `summary.json`.

  Attributes:
    study: kind of the study.
    summary_line: the answer in one line.
    machine: devices, cores and versions that the study ran on.
    cost: what it spent.
    flags: what to know before the numbers are believed.
    tables: named tables of records; each kind of study has its own class.
  """

  study: str
  summary_line: str
  machine: dict[str, str]
  cost: Cost
  flags: tuple[str, ...]
  tables: Tables


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a call of `familial run` ended.

  Attributes:
    line: what to print.
    failed: runs without a result.
    total: number of runs of the study.
    planned_only: whether the study stopped after its plan.
  """

  line: str
  failed: tuple[str, ...] = ()
  total: int = 0
  planned_only: bool = False


@dataclasses.dataclass(frozen=True)
class Options(sweep.Options):
  """How `familial run` runs a study.

  Attributes:
    plan_only: stop after the plan.
  """

  plan_only: bool = False


class Study(abc.ABC, Generic[Config, Tables]):
  """A kind of study.

  Attributes:
    kind: value of the config key `kind` and of `study` in `plan.json`.
    config_class: frozen dataclass of the config; its docstring documents the keys.
    tables_class: frozen dataclass of the tables of `summary.json`.
    needs_finished: whether there is no summary without a finished run.
  """

  kind: ClassVar[str]
  config_class: type[Config]
  tables_class: type[Tables]
  needs_finished: ClassVar[bool] = True

  def template(self) -> ml_collections.ConfigDict:
    """Returns a config with every default; an experiment file sets the rest.

    A section of named parts, such as the arms of a grid, starts empty.
    """
    named: dict[str, Any] = {
      field.name: {}
      for field in schema.describe(self.config_class)
      if field.required and typing.get_origin(field.type) is dict
    }
    defaults = schema.defaults(self.config_class)
    return ml_collections.ConfigDict(
      {'kind': self.kind, 'title': '', **named, **defaults}
    )

  def read_config(self, values: Mapping[str, Any]) -> Config:
    """Returns the typed config of a ConfigDict; refuses what it cannot be."""
    return schema.read(
      self.config_class, {k: v for k, v in values.items() if k != 'kind'}
    )

  @abc.abstractmethod
  def analyse(self, config: Config, results: Results) -> tuple[str, Tables]:
    """Returns the answer in one line, and the tables that it rests on."""

  @abc.abstractmethod
  def run(
    self,
    config: Config,
    workdir: str | os.PathLike[str],
    options: Options = Options(),
  ) -> Outcome:
    """Trains what is missing, analyses it and writes `summary.json`.

    Args:
      config: of the study.
      workdir: folder of the study; a folder of the same config is resumed.
      options: how to train.

    Raises:
      UserError: if the folder is of another config, or a run cannot be.
      Interrupted: on SIGTERM or SIGINT, with everything saved.
    """

  def summarise(
    self, config: Config, results: Results, notes: Iterable[str] = ()
  ) -> Summary[Tables]:
    """Returns the summary of a study's folder.

    Args:
      config: of the study.
      results: of its folder, with fits where the kind has them.
      notes: what could not be done, and why; consumed before the analysis, which
        reads the laws that are fitted meanwhile.

    Raises:
      UserError: if no run has finished.
    """
    if self.needs_finished and not results.finished:
      raise errors.UserError(
        f'{results.folder}: no run has finished; there is nothing to summarise'
      )
    notes = tuple(notes)
    line, tables = self.analyse(config, results)
    cost = self.cost(config, results, tables)
    flags = (*notes, *self.flags(results, tables, cost))
    return Summary(self.kind, line, machine(), cost, flags, tables)

  def cost(self, config: Config, results: Results, tables: Tables) -> Cost:
    """Returns the cost of a study's folder."""
    del config, tables
    return cost_of(results)

  def flags(
    self, results: Results, tables: Tables, cost: Cost
  ) -> Iterator[str]:
    """Yields what to know before the numbers are believed."""
    del tables, cost
    yield from flags_of(results)

  def read_summary(self, folder: str | os.PathLike[str]) -> Summary[Tables]:
    """Reads `summary.json` back.

    Raises:
      UserError: if there is none, it is damaged, of an earlier version without
        tables, or of another kind of study.
    """
    path = pathlib.Path(folder) / SUMMARY
    if not path.exists():
      raise errors.UserError(f'{path}: is missing; the study is not finished')
    values = storage.read_own(path)
    if 'tables' not in values:
      raise errors.UserError(
        f'{path}: written by an earlier version, without tables; '
        '`familial report` reads such a folder from its runs'
      )
    if values.get('study') != self.kind:
      raise errors.UserError(
        f'{path}: of a study of kind {values.get("study")!r}, not {self.kind!r}'
      )
    with errors.within(path):
      tables = schema.read(self.tables_class, values['tables'], 'tables')
      cost = schema.read(Cost, values['cost'], 'cost')
    return Summary(
      study=values['study'],
      summary_line=values['summary_line'],
      machine=values['machine'],
      cost=cost,
      flags=tuple(values['flags']),
      tables=tables,
    )


def write_summary(
  folder: str | os.PathLike[str], summary: Summary[Any]
) -> None:
  """Writes `summary.json`, a line for each record of a table.

  A number that is not finite becomes null.
  """
  values = dataclasses.asdict(summary)
  tables = values.pop('tables')
  head = json.dumps({'schema': storage.SCHEMA, **values}, allow_nan=False)
  parts = []
  for name, rows in tables.items():
    lines = ',\n'.join(
      json.dumps(fit_record.plain(row), allow_nan=False) for row in rows
    )
    parts.append(f'"{name}": [\n{lines}\n]' if rows else f'"{name}": []')
  body = ',\n'.join(parts)
  storage.write_text(
    pathlib.Path(folder) / SUMMARY,
    f'{head[:-1]},\n"tables": {{\n{body}\n}}}}\n',
  )


def flags_of(results: Results) -> Iterator[str]:
  """Yields what may make a study's runs unreliable, a flag each."""
  for status in ('diverged', 'running', 'not run'):
    cells = [run.cell for run in results.runs if run.status == status]
    if cells:
      yield (
        f'{len(cells)} of {len(results.runs)} runs {status}, in no figure and no '
        f'fit: {text.some(cells)}'
      )
  repeated = [
    r.cell for r in results.finished if r.epochs > plan_lib.MAX_EPOCHS
  ]
  if repeated:
    yield (
      f'more than {plan_lib.MAX_EPOCHS:g} epochs, where repeated text counts '
      f'less: {text.some(repeated)}'
    )


def cost_of(results: Results) -> Cost:
  """Returns the cost of the runs of a folder."""
  status = [run.status for run in results.runs]
  return Cost(
    flops=sum(_own_flops(results.folder, run) for run in results.finished),
    seconds=_seconds(results.run_folders()),
    finished=len(results.finished),
    diverged=status.count('diverged'),
    missing=len(status) - status.count('finished') - status.count('diverged'),
  )


def _own_flops(folder: pathlib.Path, run: Run) -> float:
  """Returns a run's FLOPs without those that its parent counts already."""
  path = sweep.folder(folder, run.cell) / 'lineage.json'
  lineage = storage.read_json(path) if path.exists() else {}
  return float(run.flops - lineage.get('inherited_flops', 0.0))


def _seconds(folders: Iterable[pathlib.Path]) -> float | None:
  total = 0.0
  for folder in folders:
    progress = storage.read_rows(folder / run_folder.PROGRESS)
    rows = storage.read_rows(folder / run_folder.ROWS)
    if rows and progress:
      # Absent where a run could not tell its part of a population's time.
      if 'seconds_per_step' not in progress[-1]:
        return None
      total += rows[-1]['step'] * progress[-1]['seconds_per_step']
  return total


def machine() -> dict[str, str]:
  """Returns command, commit, devices, cores and versions of this process."""
  import jax

  devices = jax.devices()
  return {
    'command': shlex.join(sys.argv),
    'commit': _commit(),
    'devices': f'{len(devices)} x {devices[0].device_kind}',
    'cores': str(os.cpu_count()),
    'system': f'{platform.system()} {platform.machine()}',
    'python': platform.python_version(),
    'jax': jax.__version__,
  }


def _commit() -> str:
  """Returns the commit of this package's checkout, else its version."""
  folder = pathlib.Path(__file__).parent
  try:
    found = subprocess.run(
      ['git', 'rev-parse', 'HEAD'],
      cwd=folder,
      capture_output=True,
      text=True,
      check=True,
    )
    return found.stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return metadata.version('familial')
