"""`familial fit`."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING

from absl import flags

from familial.cli import command
from familial.core import errors

if TYPE_CHECKING:
  from familial.core import estimate
  from familial.laws import inference as inference_lib
  from familial.laws import selection as selection_lib

_COLLINEAR = 0.9  # correlation of columns that the summary names


def _define_fit(values: flags.FlagValues) -> None:
  flags.DEFINE_string(
    'table',
    None,
    "CSV or JSONL of runs, or a folder of this project's runs.",
    required=True,
    flag_values=values,
  )
  flags.DEFINE_multi_string(
    'columns',
    [],
    'Column mapping of a foreign table, '
    "'params=Model Size,flops=Training FLOP,loss=loss'; may be repeated.",
    flag_values=values,
  )
  flags.DEFINE_multi_string(
    'form',
    ['familial_total'],
    'Law to fit; may be repeated. A name, columns joined by * and + '
    '(width*depth+tokens), or FILE.py:FUNCTION.',
    flag_values=values,
  )
  flags.DEFINE_enum(
    'loss',
    'final',
    ['mean', 'final', 'exit'],
    'Which loss of a familial run.',
    flag_values=values,
  )
  flags.DEFINE_enum(
    'rows', 'last', ['last', 'all'], 'Evaluations used.', flag_values=values
  )
  flags.DEFINE_string(
    'cluster',
    'run',
    'Column whose equal values are resampled together, or row.',
    flag_values=values,
  )
  flags.DEFINE_multi_string(
    'where',
    [],
    "Condition of rows that are used, as 'tokens>=1e9'; may be repeated.",
    flag_values=values,
  )
  flags.DEFINE_multi_string(
    'hold_out',
    [],
    "Condition of rows that are predicted, not fitted, as 'flops>1e21'; may be "
    'repeated.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'drop_highest',
    0,
    'Rows of highest loss left out.',
    lower_bound=0,
    flag_values=values,
  )
  flags.DEFINE_list(
    'scan',
    [],
    'Numbers of rows of highest loss, as 0,10,20,40: scan.json has the fit '
    'without each of them.',
    flag_values=values,
  )
  flags.DEFINE_float(
    'delta',
    1e-3,
    'Of the Huber loss on log loss; inf for least squares.',
    flag_values=values,
  )
  flags.DEFINE_float(
    'asymmetry',
    1.0,
    'Weight of a row that the law overpredicts, over one it underpredicts.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'starts', 256, 'Of the multi-start.', lower_bound=1, flag_values=values
  )
  flags.DEFINE_enum(
    'sampling',
    'grid',
    ['grid', 'latin'],
    'Of the starts: points of a grid, or Latin hypercubes over its range.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'resamples',
    1000,
    'Of the bootstrap.',
    lower_bound=2,
    flag_values=values,
  )
  flags.DEFINE_integer(
    'bootstrap_starts',
    0,
    'Of a multi-start for each resample; 0 for a start at the optimum.',
    lower_bound=0,
    flag_values=values,
  )
  flags.DEFINE_list(
    'compute',
    [],
    'FLOPs at which the optimal N and D are derived; by default the largest of '
    'the table.',
    flag_values=values,
  )
  flags.DEFINE_integer(
    'seed',
    0,
    'Of the starts and the bootstrap.',
    lower_bound=0,
    flag_values=values,
  )
  flags.DEFINE_bool(
    'draw', True, 'Write figures beside fit.json.', flag_values=values
  )
  command.define_folder('out', 'Folder of the result.', values)


def _fit(values: flags.FlagValues) -> str:
  from familial.laws import forms
  from familial.laws import inference
  from familial.laws import selection
  from familial.laws import table
  from familial.training import compilation

  compilation.prepare()
  needs = [c for name in values.form for c in forms.get(name).columns]
  rows = table.read(
    values.table,
    command.mapping(','.join(values.columns)),
    loss=values.loss,
    rows_used=values.rows,
    cluster=values.cluster,
    needs=needs,
  )
  for condition in values.where:
    rows = rows.take(rows.where(condition), where=list(values.where))
  out = pathlib.Path(values.out)
  fits = selection.compare(
    rows.drop_highest(values.drop_highest),
    values.form,
    out,
    inference.Options(
      delta=values.delta,
      asymmetry=values.asymmetry,
      starts=values.starts,
      sampling=values.sampling,
      resamples=values.resamples,
      bootstrap_starts=values.bootstrap_starts,
      compute=numbers('compute', values.compute),
      seed=values.seed,
    ),
    loss_definition=values.loss,
    hold_out=values.hold_out,
    scan=command.integers('scan', values.scan),
  )
  if values.draw:
    _draw(fits, out)
  lines = [summary(result) for result in fits.results.values()]
  if fits.selection is None:
    return f'{lines[0]} -> {out / "fit.json"}'
  print(_candidates(fits.selection))
  lines = [_preferred(fits.selection), *lines]
  return f'{" | ".join(lines)} -> {out / "selection.json"}'


def _draw(fits: selection_lib.Comparison, out: pathlib.Path) -> None:
  from familial.plots import law
  from familial.plots import law_depth

  for folder, result in fits.results.items():
    law.draw(result, folder)
  for folder, scan in fits.scans.items():
    cutoffs = law_depth.cutoffs(dataclasses.asdict(scan))
    law.save({'scan': cutoffs}, folder)
  if fits.selection is not None:
    candidates = law_depth.forms(dataclasses.asdict(fits.selection))
    law.save({'selection': candidates}, out)


def summary(result: inference_lib.Result) -> str:
  """One line: the constants with their intervals, and every flag."""
  fit, design, held = result.fit, result.design, result.held_out
  first = [p.name for p in fit.form.parameters if p.null is not None]
  names = [*first, *(n for n in fit.form.names if n not in first)]
  numbers = ', '.join(
    f'{name} {e.value:.4g}'
    f' [{"-inf" if e.lo is None else format(e.lo, ".4g")},'
    f' {"inf" if e.hi is None else format(e.hi, ".4g")}]'
    for name in names
    for e in [result.interval(name)]
  )
  notes = [
    f'{" and ".join(pair.columns)} correlate by {pair.value:.2f} over'
    f' {design.runs} runs'
    for pair in design.correlations
    if pair.value is not None and abs(pair.value) > _COLLINEAR
  ]
  if 'tokens' in result.table.filters:
    notes.append(f'tokens = {result.table.filters["tokens"]}')
  if held is not None:
    notes.append(
      f'{held.rows} held-out rows predicted with an rms log error of'
      f' {held.rms:.4f}'
    )
  return (
    f'{fit.form.name}, {result.loss_definition} loss, {fit.rows} rows:'
    f' {numbers} ({result.bootstrap.level:.0%} bootstrap intervals by'
    f' {result.bootstrap.unit}); flags:'
    f' {"; ".join([*result.flags, *notes]) or "none"}'
  )


def _preferred(selection: selection_lib.Selection) -> str:
  """One line: the form of lowest AIC, and those that predict best."""
  first, *rest = selection.candidates
  line = f'preferred: {first.form}'
  if rest:
    line += f' (AIC lower by {rest[0].aic_behind:.1f} than {rest[0].form})'
  if selection.by_hold_out is not None:
    rms = ', '.join(
      f'{c.form} {c.hold_out.rms:.4f}'
      for c in selection.candidates
      if c.hold_out
    )
    line += (
      f'; held-out budget best predicted by {selection.by_hold_out}'
      f' (rms log error {rms})'
    )
  if selection.by_model is not None:
    relative = ', '.join(
      f'{c.form} {_percent(c.by_model.error)}'
      for c in selection.candidates
      if c.by_model
    )
    line += (
      f'; held-out models best predicted by {selection.by_model}'
      f' (mean relative error {relative})'
    )
  return line


def _candidates(selection: selection_lib.Selection) -> str:
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
    for c in selection.candidates
  ]  # fmt: skip
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return '\n'.join(
    '  '.join(
      cell.ljust(w) for cell, w in zip(line, widths, strict=True)
    ).rstrip()
    for line in lines
  )


def _percent(error: estimate.Estimate) -> str:
  text = f'{100 * error.value:.2f} %'
  if error.lo is None or error.hi is None:
    return text
  return f'{text} [{100 * error.lo:.2f}, {100 * error.hi:.2f}]'


def numbers(flag: str, texts: list[str]) -> tuple[float, ...]:
  """The numbers above 0 in a list flag."""
  try:
    values = tuple(map(float, texts))
  except ValueError:
    values = (0.0,)
  if not all(0 < value < float('inf') for value in values):
    raise errors.UserError(
      f'--{flag}={",".join(texts)!r}: numbers above 0, joined by commas'
    )
  return values


COMMANDS = {
  'fit': command.Command(
    'a law from a table of runs, with intervals', _define_fit, _fit
  ),
}
