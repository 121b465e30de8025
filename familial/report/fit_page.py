"""Pages of `familial fit`: one for each law, and one that compares several."""

import pathlib
import shlex
import sys
from typing import Any

from familial.laws import inference
from familial.laws import selection as selection_lib
from familial.plots import depth_law
from familial.plots import law
from familial.plots import theme
from familial.report import render

_MOST_ROWS = 2000  # of the table on a page


def write(
  comparison: selection_lib.Comparison,
  out: pathlib.Path,
  label: str = '',
  unit: str = '',
) -> None:
  """Writes pages and figures beside each `fit.json` and `selection.json`.

  Args:
    comparison: the fits.
    out: folder of the result.
    label: what the loss is; '' for the name of its column in the table.
    unit: of it, as of `theme.loss_as`.
  """
  source = next(iter(comparison.results.values())).table
  with theme.loss_as(label or source.mapping.get('loss', ''), unit):
    _write(comparison, out)


def _write(comparison: selection_lib.Comparison, out: pathlib.Path) -> None:
  for folder, result in comparison.results.items():
    charts = law.figures(result)
    if {'width', 'depth'} <= set(result.fit.form.columns):
      charts['shapes'] = depth_law.shapes(
        result, result.table, 'Loss over width and depth'
      )
    if folder in comparison.scans:
      charts['scan'] = depth_law.cutoffs(
        result.fit.form.name, comparison.scans[folder].cutoffs
      )
    _law(result, charts, folder)
  if comparison.selection is not None:
    render.write(
      out,
      'selection',
      figures='',
      title='Laws compared',
      selection=comparison.selection,
      chart=depth_law.forms(comparison.selection.candidates),
      links=[folder.name for folder in comparison.results],
    )


def _law(
  result: inference.Result, charts: dict[str, Any], folder: pathlib.Path
) -> None:
  columns = result.table.columns
  prediction = result.predict(columns)
  names = list(columns)
  rows = [
    {
      'run': str(result.table.run[i]),
      **{name: float(columns[name][i]) for name in names},
      'prediction': float(prediction[i]),
      'error': float(columns['loss'][i] / prediction[i] - 1),
    }
    for i in range(min(result.table.rows, _MOST_ROWS))
  ]
  shown: dict[str, Any] = {'run': 'run', **{name: name for name in names}}
  shown |= {'prediction': 'prediction', 'error': ('over it', 'percent')}
  render.write(
    folder,
    'fit',
    figures='',
    title=f'Law {pathlib.PurePath(result.fit.form.name).name}',
    result=result,
    constants=law.constants(result),
    derived=[
      {'name': name, 'value': value} for name, value in result.derived.items()
    ],
    rows=rows,
    row_columns=shown,
    command=shlex.join(sys.argv),
    links=sorted(path.name for path in folder.glob('*.json')),
    charts=charts,
  )
