"""What `familial fit` does: forms fitted to one table, and a line on each."""

from collections.abc import Sequence
import pathlib
import re

from familial.core import errors
from familial.laws import forms
from familial.laws import record
from familial.laws import result as results
from familial.laws import scan as scans
from familial.laws import selection as selections
from familial.laws import table as tables

_TOGETHER = 0.9  # correlation of columns that is said


def run(
  table: tables.Table,
  form_names: Sequence[str],
  out: str | pathlib.Path,
  options: results.Options | None = None,
  *,
  loss_definition: str = 'final',
  hold_out: Sequence[str] = (),
  scan: Sequence[int] = (),
  draw: bool = False,
  progress: bool = True,
) -> str:
  """Fits the forms to the table, writes the files, returns the summary line.

  One form writes OUT/fit.json; several write OUT/FORM/fit.json each and
  OUT/selection.json.

  Args:
    table: the rows.
    form_names: as forms.get takes them.
    out: folder.
    options: of every fit.
    loss_definition: mean, final or exit: what the table's loss is.
    hold_out: conditions of rows that are predicted, not fitted.
    scan: numbers of rows of highest loss to leave out, for a fit of each form
      to what is left: scan.json beside its fit.json.
    draw: figures beside each fit.json.
    progress: bars on stderr, and how several forms compare on stdout.
  """
  chosen = [forms.get(name) for name in dict.fromkeys(form_names)]
  if not chosen:
    raise errors.UserError(
      f'no form was asked for; there are {", ".join(forms.FORMS)}'
    )
  out = pathlib.Path(out)
  found = [
    results.fit(
      form, table, options, loss_definition=loss_definition,
      hold_out=hold_out, progress=progress,
    )
    for form in chosen
  ]  # fmt: skip
  for result in found:
    name = _folder(result.fit.form.name)
    folder = out if len(chosen) == 1 else out / name
    result.save(folder / 'fit.json')
    if scan:
      _scan(result, scan, options, folder, draw)
    if draw:
      result.draw(folder)
  lines = [summary(result) for result in found]
  if len(chosen) == 1:
    return f'{lines[0]} -> {out / "fit.json"}'
  fits = [result.fit for result in found]
  selection = selections.select(fits, found[0].table)
  compared = selections.to_json(selection)
  record.write_json(out / 'selection.json', compared)
  if draw:
    from familial.plots import law
    from familial.plots import law_depth

    law.save({'selection': law_depth.forms(compared)}, out)
  if progress:
    print(selections.text(selection))
  lines = [selections.summary(selection), *lines]
  return f'{" | ".join(lines)} -> {out / "selection.json"}'


def _scan(
  result: results.Result,
  dropped: Sequence[int],
  options: results.Options | None,
  folder: pathlib.Path,
  draw: bool,
) -> None:
  """Writes scan.json, and draws it."""
  form = result.fit.form
  scanned = scans.to_json(
    form, scans.scan(form, result.table, dropped, options)
  )
  record.write_json(folder / 'scan.json', scanned)
  if draw:
    from familial.plots import law
    from familial.plots import law_depth

    law.save({'scan': law_depth.cutoffs(scanned)}, folder)


def summary(result: results.Result) -> str:
  """One line: the constants with their intervals, and every flag."""
  fit = result.fit
  first = [p.name for p in fit.form.parameters if p.null is not None]
  asked = [*first, *(n for n in fit.form.names if n not in first)]
  numbers = ', '.join(
    f'{name} {fit.params[name]:.4g} {_bracket(*result.interval(name))}'
    for name in asked
  )
  level = (
    f'{result.bootstrap.level:.0%} bootstrap intervals by'
    f' {result.bootstrap.unit}'
  )
  go_together = [
    f'{" and ".join(pair["columns"])} correlate by {pair["value"]:.2f} over'
    f' {result.design["runs"]} runs'
    for pair in result.design['correlations']
    if abs(pair['value']) > _TOGETHER
  ]
  derived_tokens = result.table.filters.get('tokens')
  notes = [
    *go_together,
    *([f'tokens = {derived_tokens}'] if derived_tokens else []),
  ]
  if result.held_out:
    held = result.held_out
    notes.append(
      f'{held.rows} held-out rows predicted with an rms log error of'
      f' {held.rms:.4f}'
    )
  flags = '; '.join([*result.flags, *notes]) or 'none'
  return (
    f'{fit.form.name}, {result.loss_definition} loss, {fit.rows} rows:'
    f' {numbers} ({level}); flags: {flags}'
  )


def _folder(name: str) -> str:
  """A form's name as a folder's: a file's path and operators are no names."""
  return re.sub(r'[^\w.-]+', '_', name).strip('_')


def _bracket(lo: float | None, hi: float | None) -> str:
  ends = (
    '-inf' if lo is None else f'{lo:.4g}',
    'inf' if hi is None else f'{hi:.4g}',
  )
  return f'[{ends[0]}, {ends[1]}]'
