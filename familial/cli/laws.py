"""`familial fit`."""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import json
import pathlib
import sys
from typing import Annotated
from typing import Any

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
  import numpy as np
  import polars as pl

  from familial.core import estimate
  from familial.laws import approaches
  from familial.laws import fit_record
  from familial.laws import forecast
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
      FLOP,loss=loss'; an empty name unmaps a column; a comma in a name is
      preceded by a backslash; may be repeated.
    wide: pattern of the columns of a table that has one for each run, as wandb
      exports it: 'loss=* - val_loss', where * stands for the run; or one for
      each number: 'loss={flops} FLOPs'.
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
    resamples: number of bootstrap resamples; 0 for none, without intervals.
    bootstrap_starts: number of initialisations for each resample; 0 for one at
      the optimum.
    profiles: constants whose likelihood is profiled: all, some (those for which 0
      is a question) or none.
    fix: constants that keep a given value, 'E=1.6,alpha=0.5'; may be repeated.
    by: column of the table, text or numbers: each of its values is fitted by
      itself into a folder of its own, and constants.csv has all constants.
    approach: approaches of Hoffmann et al. (2022) to the optimal N and D: 1
      (envelope of training curves), 2 (IsoFLOP curves), 3 (the fitted law); each
      that the table allows, by default.
    compute: FLOPs at which the optimal N and D are derived; the largest of the
      table by default.
    seed: seed of the initialisations and the bootstrap.
    label: name of the loss on axes and tooltips; that of its column by default.
    unit: of the loss on figures; nats per token by default, where it is called loss.
    draw: write figures and a page beside fit.json.
    overwrite: replace another result in the folder.
    json: write fit.json to the standard output too, or of several forms
      selection.json and each fit.json, and the summary to the standard error.
  """

  table: str
  out: Folder
  columns: Repeated = ()
  units: Repeated = ()
  wide: Repeated = ()
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
  resamples: schema.Index = 1000
  bootstrap_starts: schema.Index = 0
  profiles: Annotated[str, schema.one_of('all', 'some', 'none')] = 'all'
  fix: Repeated = ()
  by: str = ''
  approach: tuple[Annotated[int, schema.within(1, 3)], ...] = (1, 2, 3)
  compute: Annotated[tuple[float, ...], schema.above(0), schema.FINITE] = ()
  seed: schema.Index = 0
  label: str = ''
  unit: str = ''
  draw: bool = True
  overwrite: bool = False
  json: bool = False
  given: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class Predict:
  """Flags of `familial predict`.

  Attributes:
    fit: fit.json of a fitted law; may be repeated: several laws are also averaged,
      weighted by 1 / rms^2 on their held-out rows.
    at: columns of the point, 'params=7e9,tokens=2e12', or a budget,
      'flops=1e22,exits=4', for the compute optimum there.
    serve_tokens: tokens processed after training, which a budget pays too, at 2 N
      FLOPs each.
    json: write the predictions to the standard output as JSON, one a line.
  """

  fit: Repeated
  at: Repeated
  serve_tokens: schema.NonNegative = 0.0
  json: bool = False


def _predict(given: Predict) -> str:
  laws = [fit_record.load(path) for path in given.fit]
  columns = command.numbers('at', given.at)
  needed = {
    parametric.LONG_NAMES.get(name, name)
    for law in laws
    for name in law.form.columns
  }
  optimum = 'flops' in columns and not needed & {'C', 'flops'}
  if given.serve_tokens and not optimum:
    raise errors.UserError(
      f'--serve_tokens={given.serve_tokens:g}: of the optimum at a budget'
      " (--at='flops=1e22')"
    )
  if optimum:
    flops = columns.pop('flops')
    forecasts = [
      forecast.at_flops(law, flops, columns, given.serve_tokens) for law in laws
    ]
  else:
    forecasts = forecast.at_columns(laws, columns)
  if given.json:
    rows = [fit_record.plain(dataclasses.asdict(f)) for f in forecasts]
    return '\n'.join(map(json.dumps, rows))
  return '\n'.join(_forecast_line(f, laws[0].record.level) for f in forecasts)


def _forecast_line(f: forecast.Forecast, level: float) -> str:
  """One line: the point, the loss there and both intervals."""
  at = ', '.join(f'{name} {text.number(v)}' for name, v in f.columns.items())
  if f.flops is not None and f.params and f.tokens:
    others = {
      name: value
      for name, value in f.columns.items()
      if name not in ('params', 'tokens')
    }
    at = ', '.join(
      [
        f'optimum at {text.number(f.flops)} FLOPs: N {_number(f.params)}',
        f'D {_number(f.tokens)}',
        f'tokens a parameter {text.number(f.tokens.value / f.params.value)}',
        *(f'{name} {text.number(value)}' for name, value in others.items()),
      ]
    )
  weights = ', '.join(f'{name} {w:.0%}' for name, w in f.weights.items())
  name = f'average ({weights})' if weights else f.form
  ends = [f.loss.lo, f.loss.hi, f.run.lo, f.run.hi]
  shown = [f'{end:.4f}' for end in ends if end is not None]
  intervals = (
    f' [{shown[0]}, {shown[1]}] of the mean, [{shown[2]}, {shown[3]}] of one run'
    f' ({level:.0%} intervals)'
    if len(shown) == len(ends)
    else ' (no interval)'
  )
  return f'{name}, {at}: loss {f.loss.value:.4f}{intervals}'


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
    wide=command.mapping(given.wide, 'wide'),
  )
  if rows.mapping:
    rows = _foreign(given, rows)
  with output_folder.claimed(given.out, 'fit', given) as out:
    if given.by:
      return _by_group(given, rows, out)
    fits = _compared(given, rows, out)
  line = _report(given, fits)
  name = 'fit.json' if fits.selection is None else 'selection.json'
  line = f'{line} -> {out / name}'
  if not given.json:
    return line
  print(line, file=sys.stderr)
  return json.dumps(_json(fits, out))


def _json(fits: selection.Comparison, out: pathlib.Path) -> dict[str, Any]:
  """Returns what --json prints: the content of the files that were written."""
  if fits.selection is None:
    return dict(storage.read_json(out / 'fit.json'))
  found = {
    folder.name: storage.read_json(folder / 'fit.json')
    for folder in fits.results
  }
  return {**storage.read_json(out / 'selection.json'), 'fits': found}


def _by_group(given: Fit, rows: table.Table, out: pathlib.Path) -> str:
  """Fits each group of rows by itself; returns the summary lines of all.

  Raises:
    UserError: if the column does not exist or no group can be fitted.
  """
  columns = {**rows.labels, **rows.columns}
  if given.by not in columns:
    raise errors.UserError(
      f'--by={given.by!r}: {given.table} has no such column'
      f'{errors.nearest(given.by, columns)}; there are {", ".join(columns)}'
    )
  labels = np.array([str(value).strip() for value in columns[given.by]])
  groups = list(dict.fromkeys(labels.tolist()))
  lines, constants, refused, found = [], [], [], {}
  for group, name in zip(groups, selection.folder_names(groups), strict=True):
    part = rows.take(labels == group, by={given.by: group})
    try:
      fits = _compared(given, part, out / name)
    except errors.UserError as error:
      refused.append(f'{given.by}={group} not fitted: {error}')
      continue
    lines.append(f'{given.by}={group}: {_report(given, fits)}')
    found[group] = _json(fits, out / name)
    for result in fits.results.values():
      own = {given.by: group, 'form': result.fit.form.name}
      frame = result.tables()['constants']
      constants.append(
        frame.select(*(pl.lit(v).alias(k) for k, v in own.items()), pl.all())
      )
  if not constants:
    raise errors.UserError('; '.join(refused))
  frame = pl.concat(constants, how='vertical_relaxed')
  storage.write_text(out / 'constants.csv', frame.write_csv())
  line = '\n'.join([*lines, *refused, f'-> {out / "constants.csv"}'])
  if not given.json:
    return line
  print(line, file=sys.stderr)
  return json.dumps(found)


def _compared(
  given: Fit, rows: table.Table, out: pathlib.Path
) -> selection.Comparison:
  """Fits the forms to rows and writes results and pages."""
  options = command.fill(
    inference.Options, given, fixed=command.numbers('fix', given.fix),
    approaches=tuple(approaches.APPROACHES[i - 1] for i in given.approach),
  )  # fmt: skip
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
    from familial.laws import wide as wide_lib

    pattern = command.mapping(given.wide, 'wide').get('loss', '')
    label = given.label or wide_lib.label(pattern)
    fit_page.write(fits, out, label, given.unit)
  return fits


def _report(given: Fit, fits: selection.Comparison) -> str:
  """Prints the table of candidates, if any; returns the line of all fits."""
  lines = [summary(result) for result in fits.results.values()]
  if fits.selection is not None:
    shown = sys.stderr if given.json else sys.stdout
    print(_candidates(fits.selection), file=shown)
    lines.insert(0, _preferred(fits.selection))
  return ' | '.join(lines)


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
    f'{name} {_with_interval(result.interval(name))}' for name in names
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
    if held.covered is not None and held.covered_run is not None:
      notes.append(
        f'{held.covered:.0%} of them within the intervals of the mean,'
        f' {held.covered_run:.0%} within those of a run'
      )
  return (
    f'{fit.form.name}, {loss}, {fit.rows} rows:'
    f' {numbers} ({_intervals(result)}){_reading(result.table)}; flags:'
    f' {"; ".join([*result.flags, *notes]) or "none"}'
  )


def _with_interval(e: estimate.Estimate) -> str:
  """Returns a number with its interval, if any; an open end is infinite."""
  if e.lo is None and e.hi is None:
    return f'{e.value:.4g}'
  low = '-inf' if e.lo is None else f'{e.lo:.4g}'
  high = 'inf' if e.hi is None else f'{e.hi:.4g}'
  return f'{e.value:.4g} [{low}, {high}]'


def _intervals(result: inference.Result) -> str:
  """Returns what the intervals of the constants are."""
  level = f'{result.bootstrap.level:.0%}'
  if result.bootstrap.resamples:
    return f'{level} bootstrap intervals by {result.bootstrap.unit}'
  return f'{level} profile intervals' if result.profiles else 'no intervals'


def _reading(rows: table.Table) -> str:
  """Returns what a foreign table's columns and rows were taken for."""
  filters, mapping = rows.filters, rows.mapping
  notes = [
    f'{theirs} read as {ours}'
    for ours, theirs in mapping.items()
    if parametric.SYMBOLS.get(ours) == theirs
  ]
  if mapping.get('run', 'run') != 'run':
    notes.append(f'rows of one {mapping["run"]} resampled together')
  if 'units' in filters:
    notes += [f'{name} x {unit:g}' for name, unit in filters['units'].items()]
  if 'tokens' in filters:
    notes.append(f'tokens = {filters["tokens"]}')
  if 'weight' in mapping:
    notes.append(f'rows weighted by {mapping["weight"]}')
  notes += [filters[key] for key in ('dialect', 'wide') if key in filters]
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
      f'{words} {_number(e)}'
      for quantity, words in shown.items()
      if (e := result.derived.get(f'{quantity}({at}'))
    ]
    yield f'optimum at {at.removesuffix(")")}: {", ".join(parts)}'
  if result.approaches is None:
    return
  first = [o for o in result.approaches.optima if o.flops == result.compute[0]]
  for label in dict.fromkeys(o.label for o in first):
    runs = f' of {label}' if len({o.label for o in first}) > 1 else ''
    exponents = ', '.join(
      f'{o.approach} {_number(o.exponent)}' for o in first if o.label == label
    )
    yield f'exponent of N{runs}: {exponents}'


def _number(e: estimate.Estimate) -> str:
  shown = text.number(e.value)
  return f'{shown} {text.interval(e.lo, e.hi)}' if e.bounded else shown


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


COMMANDS = {
  'fit': Command(Fit, _fit),
  'predict': Command(Predict, _predict),
}
