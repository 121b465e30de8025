"""What a study of width and depth found: the law, its rivals, its cut-offs."""

from collections.abc import Iterator
from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

from familial.core import errors
from familial.core import estimate
from familial.core import run_folder
from familial.core import storage
from familial.laws import fit_record
from familial.laws import forms
from familial.laws import inference
from familial.laws import selection as selections
from familial.laws import sensitivity
from familial.laws import table as tables
from familial.studies import depth_config
from familial.studies import paired_comparison
from familial.studies import summary as summaries

LOSS = 'final'
# The sum is the law in question; the others are its rivals.
FORMS = (
  'width_depth',
  'width_depth_product',
  'width_depth_inverse',
  'chinchilla',
)
# At which E is held, of the lowest loss of all points.
HELD = (0.0, 0.25, 0.5, 0.75, 0.9)


def write(
  study: depth_config.DepthConfig,
  workdir: pathlib.Path,
  failed: Sequence[str],
) -> str:
  """Fits the laws, writes `fits/` and `summary.json`; returns one line.

  Args:
    study: what was asked.
    workdir: of the study.
    failed: cells that have no result.
  """
  rows = list(run_folder.rows_of(workdir / 'cells'))
  last = summaries.last_of(rows)
  if not last:
    raise errors.UserError(f'{workdir}: no run has finished; nothing to fit')
  folder = workdir / 'fits' / LOSS
  found: dict[str, Any] = {
    'schema': storage.SCHEMA,
    'machine': summaries.machine(),
    'cost': {
      'flops': sum(exits[-1]['flops'] for exits in last.values()),
      'seconds': summaries.seconds(workdir),
      'finished': len(last),
      'missing': len(failed),
    },
    'design': None,
    'laws': {},
    'selection': None,
    'scan': None,
    'over_E': None,
    'noise': paired_comparison.noise(last),
    'rates': list(_rates(last)),
    'notes': [],
  }
  try:
    table = _table(study, rows)
    options = inference.Options(
      delta=study.fit.delta,
      starts=study.fit.starts,
      resamples=study.fit.resamples,
      profile_all=False,
    )
    selections.compare(table, FORMS, folder, options, loss_definition=LOSS)
    fits = {
      form: storage.read_json(folder / form / 'fit.json') for form in FORMS
    }
    found['design'] = fits[FORMS[0]]['design']
    found['laws'] = {form: _law(fit) for form, fit in fits.items()}
    found['selection'] = storage.read_json(folder / 'selection.json')
    found['scan'] = _scan(study, table, options)
    found['over_E'] = over_e(table, options, found['laws'][FORMS[0]]['aic'])
  except errors.UserError as error:
    found['notes'].append(str(error))
  found['summary_line'] = _line(found)
  fit_record.write_json(workdir / 'summary.json', found)
  return str(found['summary_line'])


def _table(
  study: depth_config.DepthConfig, rows: Sequence[storage.Row]
) -> tables.Table:
  """Every evaluation of the grid from its first tokens on."""
  table = tables.from_rows(rows, LOSS, 'all', source='cells')
  condition = f'tokens>={study.first_tokens}'
  return table.take(table.where(condition), where=[condition])


def _law(fit: dict[str, Any]) -> dict[str, Any]:
  """A law's constants with their intervals, and what to know of them."""
  return {
    'equation': fit['equation'],
    'params': {
      name: {
        'value': value,
        **{end: fit['bootstrap'][name][end] for end in ('lo', 'hi')},
        'identified': fit['identified'][name],
      }
      for name, value in fit['params'].items()
    },
    **{
      key: fit[key]
      for key in ('rows', 'objective', 'aic', 'condition_number', 'flags')
    },
  }


def _scan(
  study: depth_config.DepthConfig,
  table: tables.Table,
  options: inference.Options,
) -> dict[str, Any]:
  form = forms.get(FORMS[0])
  dropped = sorted({round(share * table.rows) for share in study.cutoffs})
  scan = sensitivity.scan(form, table, dropped, options)
  return fit_record.plain(dataclasses.asdict(scan))


def over_e(
  table: tables.Table, options: inference.Options, aic: float
) -> dict[str, Any]:
  """The law with E held at shares of the lowest loss, from 0 on.

  Args:
    table: the points.
    options: of every fit.
    aic: of the fit that leaves E free.

  Returns:
    `form` and `rows`: `value` of E, `params`, `objective`, `flags`, and
    `aic_behind` the lowest, E counted as a constant in all.
  """
  form = forms.get(FORMS[0])
  lowest = float(table.columns['loss'].min())
  values = [share * lowest for share in HELD]
  found = sensitivity.hold(form, table, 'E', values, options)
  best = min(aic, *(held.aic for held in found))
  return fit_record.plain({
    'form': form.name,
    'rows': [
      {
        'value': held.value,
        'params': held.params,
        'aic_behind': held.aic - best,
        'objective': held.objective,
        'flags': held.flags,
      }
      for held in found
    ],
  })  # fmt: skip


def _rates(last: paired_comparison.Runs) -> Iterator[dict[str, Any]]:
  """Yields the corners' losses by base rate; `over` that of the grid."""
  grid = {
    (row['width'], row['depth']): row
    for [row] in last.values()
    if row['arm'] == 'grid'
  }
  for [row] in last.values():
    shape = (row['width'], row['depth'])
    if row['arm'] == 'rate' and shape in grid:
      yield {
        'width': row['width'],
        'depth': row['depth'],
        'base_lr': row['base_lr'],
        'loss': row['loss'],
        'over': row['loss'] / grid[shape]['loss'] - 1,
      }


def _line(found: dict[str, Any]) -> str:
  cost = found['cost']
  runs = f'{cost["finished"]} runs, {cost["flops"]:.3g} FLOPs'
  if not found['selection']:
    return f'no law was fitted: {"; ".join(found["notes"])}; {runs}'
  law, selection = found['laws'][FORMS[0]], found['selection']
  exponents = ', '.join(
    f'{name} {constant["value"]:.3f} {_bracket(constant)}'
    f'{"" if constant["identified"] else " (not identified)"}'
    for name, constant in law['params'].items()
    if name.startswith('a_')
  )
  flags = f' ({"; ".join(law["flags"])})' if law['flags'] else ''
  best = f'AIC prefers {selection["by_aic"]}'
  if selection['by_model']:
    best += f', shapes held out {selection["by_model"]}'
  return (
    f'{FORMS[0]}, {100 * estimate.LEVEL:.0f} % bootstrap by run: {exponents}'
    f'{flags}; {best}; {runs}'
  )


def _bracket(constant: dict[str, Any]) -> str:
  if constant['lo'] is None or constant['hi'] is None:
    return '[no interval]'
  return f'[{constant["lo"]:.3f}, {constant["hi"]:.3f}]'
