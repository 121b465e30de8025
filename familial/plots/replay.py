"""Figures of a replay: policy beside policy, cell by cell.

Cells are those of `allocation.json`.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import ticker

from familial.allocation import comparison
from familial.allocation import surrogate
from familial.core import text
from familial.plots import allocation
from familial.plots import law_parts as parts
from familial.plots import style

Figure = mpl_figure.Figure
Cells = Sequence[Mapping[str, Any]]
_EDGE = 0.03  # of a panel, within which a marker would be cut
_LEAST = 0.3  # % either way that an axis of gains shows


@style.drawn
def gains(cells: Cells) -> Figure:
  """Gain over sh of every policy, a panel a cell, with the oracle's as bound."""
  figure, axes = _of_cells(cells, 'Loss gained over Successive Halving, %')
  names = [n for n in _names(cells) if n != comparison.BASE]
  names = [n for n in names if n != comparison.BOUND] + [comparison.BOUND]
  for ax, cell in zip(axes, cells, strict=True):
    rows = {n: cell['policies'][n]['gain'] for n in names}
    known = [r['value'] for r in rows.values() if r['value'] is not None]
    right = max(
      [_LEAST, *(allocation.PERCENT * (r['hi'] or 0) for r in rows.values())]
    )
    right = 1.12 * max(
      [right, *(allocation.PERCENT * value for value in known)]
    )
    lows = [r['value'] if r['lo'] is None else r['lo'] for r in rows.values()]
    lows = [allocation.PERCENT * low for low in lows if low is not None]
    left = min([-_LEAST, *lows])
    ax.set_xlim(max(1.15 * left, -2 * right), right)
    bound = rows[comparison.BOUND]['value']
    if bound is not None:
      ax.axvspan(0, allocation.PERCENT * bound, color='#eeeeee', lw=0, zorder=0)
    ax.axvline(0, color='black', lw=0.9)
    for place, (name, row) in enumerate(rows.items()):
      _gain(ax, len(rows) - 1 - place, name, row)
    ax.set_yticks(range(len(rows)))
    first = ax.get_subplotspec().is_first_col()  # type: ignore[union-attr]
    ax.set_yticklabels(list(reversed(rows)) if first else [])
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.xaxis.set_major_locator(ticker.MaxNLocator(4))
    ax.grid(axis='y', visible=False)
  return parts.finish(
    figure,
    axes,
    f'Bars: intervals of {allocation.PERCENT * comparison.LEVEL:g} % of the mean over draws.'
    " Grey: from 0 to the oracle's gain, which no policy of the same rounds can"
    ' pass by best loss. An arrow: beyond the panel, at the value beside it',
  )


def _gain(
  ax: mpl_axes.Axes, place: int, name: str, row: Mapping[str, Any]
) -> None:
  """One policy's gain with its interval; an arrow where the panel ends first."""
  if row['value'] is None:
    return
  colour, marker = allocation.look(name)
  value, (low, high) = allocation.PERCENT * row['value'], ax.get_xlim()
  if value < low + _EDGE * (high - low):
    ax.annotate(
      f'{text.number(value)} %', (low, place), xytext=(11, 0),
      textcoords='offset points', va='center', fontsize=8, color='#333333',
    )  # fmt: skip
    ax.plot(low, place, marker='<', color=colour, ls='', clip_on=False)
    return
  if row['lo'] is not None:
    ends = [allocation.PERCENT * row[end] for end in ('lo', 'hi')]
    ax.plot(ends, [place, place], color=colour, lw=2)
  ax.plot(value, place, marker=marker, color=colour, ms=6.5)


def families(cells: Cells) -> list[list[Mapping[str, Any]]]:
  """Cells of one table and number of candidates at several budgets."""
  found: dict[Any, dict[float, Mapping[str, Any]]] = {}
  for cell in cells:
    key = cell['table'], cell['candidates']
    found.setdefault(key, {})[cell['budget']] = cell
  return [
    [by_budget[budget] for budget in sorted(by_budget)]
    for by_budget in found.values()
    if len(by_budget) > 1
  ]


@style.drawn
def law_errors(cells: Cells, beyond: float) -> Figure:
  """Errors of extrapolated law and line against what was spent of the grid.

  Args:
    cells: of one table and number of candidates, by budget.
    beyond: times the grid's largest compute at which losses are compared.
  """
  panels = {'law_error': 'Law', 'line_error': "Frontier's line"}
  panels = {
    key: title
    for key, title in panels.items()
    if any(_known(cell, key) for cell in cells)
  }
  figure, axes = style.panels(
    len(panels),
    f'Error of the loss at {beyond:g} times the largest compute,'
    f' {cells[0]["candidates"]} candidates: {cells[0]["table"]}',
    height=3.4,
  )
  for ax, (key, title) in zip(axes, panels.items(), strict=True):
    spent: list[float] = []
    errors: list[float] = []
    names = _names(cells)
    for place, name in enumerate(names):
      mine = [c for c in cells if _error(c, name, key)]
      rows = [c['policies'][name] for c in mine]
      # Side by side, so that bars do not hide one another.
      shift = math.exp(0.08 * (place / max(len(names) - 1, 1) - 0.5))
      x = [
        allocation.PERCENT
        * (1 - row['saving']['value'])
        * (row['spent']['value'] / cell['budget'])
        * shift
        for cell, row in zip(mine, rows, strict=True)
      ]
      y = [allocation.PERCENT * row[key]['value'] for row in rows]
      colour, marker = allocation.look(name)
      ax.plot(x, y, color=colour, marker=marker, lw=1.2, label=name)
      for at, row in zip(x, rows, strict=True):
        if row[key]['lo'] and math.isfinite(row[key]['hi'] or math.inf):
          ends = [allocation.PERCENT * row[key][end] for end in ('lo', 'hi')]
          ax.plot([at, at], ends, color=colour, lw=1, alpha=0.6)
          errors.append(ends[1])
      spent, errors = spent + x, errors + y
    parts.axis(ax.xaxis, spent, text.trimmed)
    parts.axis(ax.yaxis, [min(errors) / 1.3, max(errors) * 1.3], text.trimmed)
    ax.set_xlabel('spent, % of training all to their ends')
    ax.set_title(title)
  style.label_y(axes, 'median error, %')
  return parts.finish(
    figure,
    axes,
    'Against the whole grid, or the law that curves obey; medians over draws with'
    f' intervals of {allocation.PERCENT * comparison.LEVEL:g} %. What is not spent is saved.'
    ' Errors of 0 are left out',
  )


def _error(cell: Any, name: str, key: str) -> float | None:
  row = cell['policies'].get(name)
  return row[key]['value'] if row else None


@style.drawn
def coverage(cells: Cells) -> Figure:
  """Share of losses within their predictions' intervals, by round."""
  figure, axes = _of_cells(
    cells, 'Share of losses within the predicted interval, %', 2.6
  )
  for ax, cell in zip(axes, cells, strict=True):
    ax.axhline(
      allocation.PERCENT * surrogate.LEVEL,
      color='black',
      lw=1,
      ls='--',
      label='nominal',
    )
    for name, rows in cell['calibration'].items():
      colour, marker = allocation.look(name)
      ax.plot(
        [row['round'] for row in rows],
        [allocation.PERCENT * row['coverage']['value'] for row in rows],
        color=colour, marker=marker, lw=1.2, label=name,
      )  # fmt: skip
    ax.set_ylim(-4, 104)
    _round_axis(ax, cell)
  style.label_y(axes, 'covered, %')
  return parts.finish(figure, axes)


@style.drawn
def prediction_errors(cells: Cells) -> Figure:
  """Median errors of predictions beside those of the last loss held."""
  figure, axes = _of_cells(
    cells, 'Median error of what is predicted for the end, %', 2.6
  )
  for ax, cell in zip(axes, cells, strict=True):
    values = []
    for name, rows in cell['calibration'].items():
      colour, marker = allocation.look(name)
      rounds = [row['round'] for row in rows]
      for key, how in (
        ('error', {'lw': 1.4, 'label': name}),
        ('held_error', {'lw': 1, 'ls': ':', 'mfc': 'white'}),
      ):
        y = [allocation.PERCENT * row[key] for row in rows]
        ax.plot(rounds, y, color=colour, marker=marker, **how)
        values += [each for each in y if each > 0]
    if values:
      parts.axis(ax.yaxis, [min(values), max(values)], text.trimmed)
    _round_axis(ax, cell)
  style.label_y(axes, 'median error, %')
  return parts.finish(
    figure,
    axes,
    "Solid: the surrogate's mean. Dotted, hollow: the last loss held, of the same"
    ' candidates',
  )


def label(cell: Mapping[str, Any]) -> str:
  """How a cell is named beside others of its table."""
  budget = parts.compute(cell['budget'])
  return f'{cell["candidates"]} candidates, {budget} FLOPs'


def _of_cells(
  cells: Cells, title: str, height: float = 2.4
) -> tuple[Figure, list[mpl_axes.Axes]]:
  """A figure with a panel for each cell of one table."""
  figure, axes = style.panels(
    len(cells), f'{title}: {cells[0]["table"]}', height
  )
  for ax, cell in zip(axes, cells, strict=True):
    ax.set_title(label(cell))
  return figure, axes


def _names(cells: Cells) -> list[str]:
  return list(
    dict.fromkeys(name for cell in cells for name in cell['policies'])
  )


def _known(cell: Mapping[str, Any], key: str) -> bool:
  return any(row[key]['value'] for row in cell['policies'].values())


def _round_axis(ax: mpl_axes.Axes, cell: Mapping[str, Any]) -> None:
  last = max(len(cell['rounds']) - 1, 1)
  ax.set_xlim(0.7, last + 0.3)
  ax.set_xticks(range(1, last + 1))
  ax.set_xlabel('round')
