"""`familial fit`."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import json
import sys
from typing import Annotated

from etils import epy

from familial.cli import command
from familial.cli import output_folder
from familial.cli.command import Command
from familial.cli.command import Folder
from familial.cli.command import Repeated
from familial.core import errors
from familial.core import schema
from familial.core import storage
from familial.core import text

# Imported when a command runs, not when its flags are read.
with epy.lazy_imports():
  from familial.core import estimate
  from familial.laws import forms
  from familial.laws import inference
  from familial.laws import parametric
  from familial.laws import selection
  from familial.laws import table
  from familial.report import fit_page
  from familial.training import compilation

_COLLINEAR = 0.9  # correlation of columns that the summary names


@dataclasses.dataclass(frozen=True)
class Fit:
  """Flags of `familial fit`.

  Attributes:
    table: CSV, JSONL or Parquet file of runs, or a folder of this project's runs.
    out: folder of the result.
    columns: column mapping of a foreign table, 'params=Model Size,flops=Training
      FLOP,loss=loss'; an empty name unmaps a column; may be repeated.
    form: law to fit: a name, columns joined by * and + (width*depth+tokens), or
      FILE.py:FUNCTION; may be repeated.
    loss: loss of a familial run.
    rows: evaluations used.
    cluster: column whose equal values are resampled together, or row.
    units: what one in the file stands for, 'params=1e9,tokens=1e9,flops=8.64e19'.
    where: condition on the rows that are used, as 'tokens>=1e9' or
      'State==finished', on any column of the table; may be repeated.
    hold_out: condition on rows that are predicted, not fitted, as 'flops>1e21';
      may be repeated.
    drop_highest: number of rows of highest loss left out.
    scan: numbers of rows of highest loss, as 0,10,20,40: scan.json has the fit
      without each of them.
    delta: threshold of the Huber loss on log loss; inf for least squares.
    asymmetry: weight of a row that the law overpredicts, over one that it
      underpredicts.
    starts: number of multi-start initialisations.
    sampling: initialisations at points of a grid, or by Latin hypercubes over its
      range.
    resamples: number of bootstrap resamples.
    bootstrap_starts: number of initialisations for each resample; 0 for one at
      the optimum.
    compute: FLOPs at which the optimal N and D are derived; the largest of the
      table by default.
    seed: seed of the initialisations and the bootstrap.
    draw: write figures and a page beside fit.json.
    overwrite: replace another result in the folder.
    json: write fit.json to the standard output too, or of several forms
      selection.json and each fit.json, and the summary to the standard error.
  """

  table: str
  out: Folder
  columns: Repeated = ()
  units: Repeated = ()
  form: Repeated = ('familial_total',)
  loss: Annotated[str, schema.one_of('mean', 'final', 'exit')] = 'final'
  rows: Annotated[str, schema.one_of('last', 'all')] = 'last'
  cluster: str = 'run'
  where: Repeated = ()
  hold_out: Repeated = ()
  drop_highest: schema.Index = 0
  scan: tuple[int, ...] = ()
  delta: float = 1e-3
  asymmetry: float = 1.0
  starts: schema.Count = 256
  sampling: Annotated[str, schema.one_of('grid', 'latin')] = 'grid'
  resamples: Annotated[int, schema.at_least(2)] = 1000
  bootstrap_starts: schema.Index = 0
  compute: Annotated[tuple[float, ...], schema.above(0), schema.FINITE] = ()
  seed: schema.Index = 0
  draw: bool = True
  overwrite: bool = False
  json: bool = False
  given: frozenset[str] = frozenset()


def _fit(given: Fit) -> str:
  compilation.prepare()
  rows = table.read(
    given.table,
    command.mapping(given.columns),
    loss=given.loss,
    rows_used=given.rows,
    cluster=given.cluster,
    needs=[c for name in given.form for c in forms.get(name).columns],
    where=given.where,
    units=command.numbers('units', given.units),
  )
  if rows.mapping:
    rows = _foreign(given, rows)
  options = command.fill(inference.Options, given)
  with output_folder.claimed(given.out, 'fit', given) as out:
    fits = selection.compare(
      rows.drop_highest(given.drop_highest),
      given.form,
      out,
      options,
      loss_definition=given.loss,
      hold_out=given.hold_out,
      scan=given.scan,
    )
    if given.draw:
      fit_page.write(fits, out)
  shown = sys.stderr if given.json else sys.stdout
  lines = [summary(result) for result in fits.results.values()]
  name = 'fit.json'
  if fits.selection is not None:
    print(_candidates(fits.selection), file=shown)
    lines.insert(0, _preferred(fits.selection))
    name = 'selection.json'
  line = f'{" | ".join(lines)} -> {out / name}'
  if not given.json:
    return line
  print(line, file=shown)
  found = storage.read_json(out / name)
  if fits.selection is not None:
    found['fits'] = {
      folder.name: storage.read_json(folder / 'fit.json')
      for folder in fits.results
    }
  return json.dumps(found)


def _foreign(given: Fit, rows: table.Table) -> table.Table:
  """Returns the rows of a table that is not of this project's runs.

  Raises:
    UserError: for --loss, or for --rows=last without a column run.
  """
  if 'loss' in given.given:
    raise errors.UserError(
      f"--loss={given.loss}: of this project's runs; the loss of {given.table} is"
      f' its column {rows.mapping["loss"]!r} (--columns=loss=...)'
    )
  if 'rows' not in given.given or given.rows == 'all':
    return rows
  if rows.unit != 'run':
    raise errors.UserError(
      '--rows=last: the last row of each run; the table has no column run with'
      ' several rows of one (--columns=run=..., --cluster=...)'
    )
  return rows.last()


def summary(result: inference.Result) -> str:
  """One line: the constants with their intervals, and every flag."""
  fit, design, held = result.fit, result.design, result.held_out
  of_file = result.table.mapping.get('loss')
  loss = f'column {of_file}' if of_file else f'{result.loss_definition} loss'
  first = [p.name for p in fit.form.parameters if p.null is not None]
  names = [*first, *(n for n in fit.form.names if n not in first)]
  numbers = ', '.join(
    f'{name} {e.value:.4g}'
    f' [{"-inf" if e.lo is None else format(e.lo, ".4g")},'
    f' {"inf" if e.hi is None else format(e.hi, ".4g")}]'
    for name in names
    for e in [result.interval(name)]
  )
  numbers = '; '.join([numbers, *_optima(result)])
  notes = [
    f'{" and ".join(pair.columns)} correlate by {pair.value:.2f} over'
    f' {design.runs} runs'
    for pair in design.correlations
    if pair.value is not None and abs(pair.value) > _COLLINEAR
  ]
  if held is not None:
    notes.append(
      f'{held.rows} held-out rows predicted with an rms log error of'
      f' {held.rms:.4f}'
    )
  return (
    f'{fit.form.name}, {loss}, {fit.rows} rows:'
    f' {numbers} ({result.bootstrap.level:.0%} bootstrap intervals by'
    f' {result.bootstrap.unit}){_reading(result.table)}; flags:'
    f' {"; ".join([*result.flags, *notes]) or "none"}'
  )


def _reading(rows: table.Table) -> str:
  """Returns what a foreign table's columns and rows were taken for."""
  filters, mapping = rows.filters, rows.mapping
  notes = [
    f'{theirs} read as {ours}'
    for ours, theirs in mapping.items()
    if parametric.SYMBOLS.get(ours) == theirs
  ]
  if 'units' in filters:
    notes += [f'{name} x {unit:g}' for name, unit in filters['units'].items()]
  if 'tokens' in filters:
    notes.append(f'tokens = {filters["tokens"]}')
  if 'weight' in mapping:
    notes.append(f'rows weighted by {mapping["weight"]}')
  if 'dialect' in filters:
    notes.append(filters['dialect'])
  for name, numbers in filters.get('left_out', {}).items():
    notes.append(
      f'{len(numbers)} rows left out without a number in {name} (rows'
      f' {text.some([str(number) for number in numbers])})'
    )
  for name in filters.get('unused', ()):
    notes.append(f'{name} not used: some of its rows have no number')
  return f'; {", ".join(notes)}' if notes else ''


def _optima(result: inference.Result) -> Iterator[str]:
  """Yields the compute-optimal model at each C, of a law that has one."""
  shown = {'N_opt': 'N', 'D_opt': 'D', 'tokens_per_param': 'tokens a parameter'}
  for key in result.derived:
    name, _, at = key.partition('(')
    if name != 'N_opt' or not at:
      continue
    parts = [
      f'{words} {text.number(e.value)} {text.interval(e.lo, e.hi)}'
      for quantity, words in shown.items()
      if (e := result.derived.get(f'{quantity}({at}'))
    ]
    yield f'optimum at {at.removesuffix(")")}: {", ".join(parts)}'


def _preferred(chosen: selection.Selection) -> str:
  """One line: the form of lowest AIC, and those that predict best."""
  first, *rest = chosen.candidates
  line = f'preferred: {first.form}'
  if rest:
    line += f' (AIC lower by {rest[0].aic_behind:.1f} than {rest[0].form})'
  if chosen.by_hold_out is not None:
    rms = ', '.join(
      f'{c.form} {c.hold_out.rms:.4f}' for c in chosen.candidates if c.hold_out
    )
    line += (
      f'; held-out budget best predicted by {chosen.by_hold_out}'
      f' (rms log error {rms})'
    )
  if chosen.by_model is not None:
    relative = ', '.join(
      f'{c.form} {_percent(c.by_model.error)}'
      for c in chosen.candidates
      if c.by_model
    )
    line += (
      f'; held-out models best predicted by {chosen.by_model}'
      f' (mean relative error {relative})'
    )
  return line


def _candidates(chosen: selection.Selection) -> str:
  """A table of the candidates, lowest AIC first; rms are of the log error."""
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
    for c in chosen.candidates
  ]  # fmt: skip
  return text.table(lines[0], lines[1:], align='l' * len(heads))


def _percent(error: estimate.Estimate) -> str:
  """Returns an error in per cent with two decimals."""
  shown = f'{100 * error.value:.2f} %'
  if error.lo is None or error.hi is None:
    return shown
  return f'{shown} [{100 * error.lo:.2f}, {100 * error.hi:.2f}]'


COMMANDS = {'fit': Command(Fit, _fit)}
