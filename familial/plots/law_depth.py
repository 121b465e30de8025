"""Figures of a law of width and depth: its curves, its rivals, its cut-offs."""

from collections.abc import Mapping
from typing import Any
from typing import Protocol

import matplotlib
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from familial.core import text as text_lib
from familial.laws import diagnostics
from familial.laws import table as tables
from familial.plots import law_parts as parts
from familial.plots import style

Figure = mpl_figure.Figure
_TICKS = 8  # values of a column, beyond which its axis has round ones
_NAME_HEIGHT = 0.045  # of a panel


class Law(Protocol):
  """What predicts losses: a result, or a law that was read back."""

  def predict(self, columns: Mapping[str, Any]) -> np.ndarray:
    """The loss at these columns, one a row."""


@style.drawn
def shapes(law: Law, table: tables.Table, title: str) -> Figure:
  """Loss by depth at each width and by width at each depth, with the law.

  Args:
    law: of any form.
    table: with width and depth; of each run the last row is drawn.
    title: of the figure.
  """
  ends = table.take(diagnostics.last_rows(table)).columns
  law_loss = law.predict(ends)
  figure, axes = style.panels(2, title, height=3.9)
  for ax, (along, per) in zip(
    axes, (('depth', 'width'), ('width', 'depth')), strict=True
  ):
    values = np.unique(ends[per])
    names: list[tuple[float, float, str, Any]] = []
    shades = matplotlib.colormaps['viridis'](np.linspace(0, 0.88, len(values)))
    for value, shade in zip(values, shades, strict=True):
      here = np.flatnonzero(ends[per] == value)
      here = here[np.argsort(ends[along][here], kind='stable')]
      x = ends[along][here]
      ax.plot(x, ends['loss'][here], 'o', color=shade, ms=5)
      ax.plot(x, law_loss[here], '-', color=shade, lw=1.3)
      names.append((law_loss[here][-1], x[-1], f'{value:g}', shade))
    _name_lines(ax, names)
    style.log_axis(ax.xaxis, ends[along], lambda v: f'{v:g}')
    ticks = np.unique(ends[along])
    if len(ticks) <= _TICKS:
      ax.xaxis.set_major_locator(ticker.FixedLocator(list(ticks)))
    ax.set_xlabel({'depth': 'depth, layers', 'width': 'width'}[along])
    ax.set_title(f'a line for each {per}')
    # The legend says what is what; which is which stands at the lines.
    ax.plot([], [], 'o', color=style.MUTED, label='last evaluation of a run')
    ax.plot([], [], '-', color=style.MUTED, label='the law there')
  style.label_y(axes, 'loss, nats per token')
  return parts.finish(
    figure, axes, 'The law is evaluated where the runs are, and joined by lines'
  )


def _name_lines(
  ax: mpl_axes.Axes, names: list[tuple[float, float, str, Any]]
) -> None:
  """Writes names (y, x, text, colour) at the right of a panel, none over another."""
  low, high = ax.get_ylim()
  ax.set_ylim(low, high)
  names = sorted(names, key=lambda name: name[0])
  places = np.array([(name[0] - low) / (high - low) for name in names])
  for i in range(1, len(places)):
    places[i] = max(places[i], places[i - 1] + _NAME_HEIGHT)
  places -= max(places[-1] - 1, 0)
  for place, (y, x, text, shade) in zip(places, names, strict=True):
    ax.annotate(
      text, (x, y), xycoords='data', xytext=(1.03, place),
      textcoords='axes fraction', va='center', fontsize=8, color=shade,
      arrowprops={'arrowstyle': '-', 'color': shade, 'lw': 0.5, 'alpha': 0.6},
    )  # fmt: skip


@style.drawn
def forms(selection: Mapping[str, Any]) -> Figure:
  """How far each form is behind by AIC, and how it predicts models held out.

  Args:
    selection: the content of selection.json.
  """
  candidates = selection['candidates'][::-1]  # the best on top
  tried = [c for c in candidates if c['by_model']]
  figure, axes = style.panels(
    2 if tried else 1, 'Which form the data prefer', height=3.2
  )
  y = range(len(candidates))
  behind = [c['aic_behind'] for c in candidates]
  axes[0].barh(y, behind, color=parts.BAND, alpha=0.75, height=0.5)
  for place, value in zip(y, behind, strict=True):
    axes[0].annotate(
      text_lib.number(value), (value, place), xytext=(4, 0),
      textcoords='offset points', va='center', fontsize=8,
    )  # fmt: skip
  axes[0].set_xlim(0, 1.18 * max([*behind, 1]))
  axes[0].set_xlabel('AIC behind the lowest')
  if tried:
    _held_out(axes[1], candidates)
  for ax in axes:
    ax.set_yticks(y, [c['form'] for c in candidates])
    ax.set_ylim(-0.6, len(candidates) - 0.4)
    ax.grid(axis='y', visible=False)
  if tried:
    axes[1].set_yticklabels([])
  return figure


def _held_out(ax: mpl_axes.Axes, candidates: list[Mapping[str, Any]]) -> None:
  for place, candidate in enumerate(candidates):
    if not candidate['by_model']:
      continue
    each = 100 * np.array(candidate['by_model']['errors'])
    ax.scatter(
      each, np.full(len(each), place), s=10, color=style.MUTED, alpha=0.5, lw=0
    )
    error = candidate['by_model']['error']
    if error['lo'] is not None:
      span = [100 * error['lo'], 100 * error['hi']]
      ax.plot(span, [place] * 2, color=parts.POINT, lw=3)
    ax.plot(100 * error['value'], place, 'o', color=parts.POINT)
  ax.set_xlim(0, None)
  ax.set_xlabel('relative error on models held out, %')
  ax.set_title('grey: each; their mean, 95 % interval', fontweight='normal')


@style.drawn
def cutoffs(scan: Mapping[str, Any]) -> Figure:
  """Exponents over the number of rows of highest loss that are left out.

  Args:
    scan: the content of scan.json.
  """
  rows = scan['cutoffs']
  names = [n for n in rows[0]['params'] if n.startswith('a_')]
  names = names or [*rows[0]['params']]
  figure, axes = style.panels(
    len(names), f'Exponents as rows of high loss leave: {scan["form"]}'
  )
  x = [row['dropped'] for row in rows]
  for ax, name in zip(axes, names, strict=True):
    found = [row['params'][name] for row in rows]
    values = [each['value'] for each in found]
    low, high = (
      [np.nan if each[end] is None else each[end] for each in found]
      for end in ('lo', 'hi')
    )
    ax.fill_between(
      x, low, high, color=parts.BAND, alpha=0.2, lw=0, label='95 % interval'
    )
    ax.plot(x, values, 'o-', color=parts.BAND, label='fit')
    ax.axhline(values[0], color=style.MUTED, lw=0.9, ls='--', label='first fit')
    ax.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    ax.set_xlabel('rows left out')
    ax.set_title(parts.symbol(name))
  style.legend(figure, axes)
  return figure
