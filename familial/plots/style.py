"""What the figures share: size, fonts, colours by G and by budget, axes."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import functools
import math
from typing import Any
from typing import ParamSpec

import matplotlib
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import layout_engine
from matplotlib import ticker
import numpy as np

from familial.core import text

P = ParamSpec('P')
WIDTH = 8.8  # inches, shown about 100 pixels each
PANEL_HEIGHT = 2.75
COLUMNS = 3  # panels side by side, at most
_LEGEND_LETTERS = 120  # in a line
_HANDLE_LETTERS = 7  # as wide as a handle and what is around it
_RC: dict[Any, Any] = {
  'font.family': 'DejaVu Sans',
  'font.size': 9.5,
  'axes.titlesize': 9.5,
  'axes.titleweight': 'bold',
  'axes.titlelocation': 'left',
  'axes.labelcolor': '#333333',
  'axes.edgecolor': '#888888',
  'axes.linewidth': 0.8,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.color': '#e6e6e6',
  'grid.linewidth': 0.7,
  'xtick.color': '#888888',
  'ytick.color': '#888888',
  'xtick.labelcolor': '#333333',
  'ytick.labelcolor': '#333333',
  'legend.frameon': False,
  'legend.handletextpad': 0.4,
  'legend.columnspacing': 1.6,
  'lines.linewidth': 1.6,
  'lines.markersize': 5.5,
  'figure.titlesize': 11,
  'figure.titleweight': 'bold',
  'figure.facecolor': 'white',
  'text.parse_math': False,  # a `$` in a name is a `$`
}
# Okabe and Ito's colours, which colour-blind readers tell apart.
_BY_G = {
  1: ('#333333', 'o'),
  2: ('#0072B2', 's'),
  3: ('#56B4E9', 'P'),
  4: ('#D55E00', '^'),
  6: ('#E69F00', 'X'),
  8: ('#009E73', 'D'),
  16: ('#CC79A7', 'v'),
}
OTHER = ('#7570B3', 'p')
CYCLE = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
MUTED = '#8a8a8a'


def drawn(
  function: Callable[P, mpl_figure.Figure],
) -> Callable[P, mpl_figure.Figure]:
  """Returns the drawing function with the shared style in force."""

  @functools.wraps(function)
  def styled(*args: P.args, **kwargs: P.kwargs) -> mpl_figure.Figure:
    with matplotlib.rc_context(_RC):
      return function(*args, **kwargs)

  return styled


def panels(
  count: int, title: str, height: float = PANEL_HEIGHT
) -> tuple[mpl_figure.Figure, list[mpl_axes.Axes]]:
  """Returns a figure with `count` panels, three in a row."""
  columns = 2 if count == 4 else min(count, COLUMNS)
  rows = math.ceil(count / columns)
  figure = mpl_figure.Figure(
    figsize=(WIDTH, rows * height + 0.75),
    layout=layout_engine.ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08),
  )
  figure.suptitle(title, x=0.008, ha='left')
  grid = figure.subplots(rows, columns, squeeze=False).ravel()
  for spare in grid[count:]:
    spare.remove()
  return figure, list(grid[:count])


def label_y(axes: Sequence[mpl_axes.Axes], label: str) -> None:
  """Labels y of the panels at the left."""
  for ax in axes:
    if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
      ax.set_ylabel(label)


def colour(granularity: float) -> str:
  """Returns the colour that stands for G everywhere."""
  return _BY_G.get(int(granularity), OTHER)[0]


def marker(granularity: float) -> str:
  """Returns the marker that stands for G everywhere."""
  return _BY_G.get(int(granularity), OTHER)[1]


def name_of(granularity: float) -> str:
  """Returns how a legend names G."""
  return 'G = 1 (dense)' if granularity == 1 else f'G = {int(granularity)}'


def budget_colours(budgets: Iterable[float]) -> dict[float, Any]:
  """Returns a colour for each budget, darkest for the smallest."""
  ordered = sorted(set(budgets))
  shades = matplotlib.colormaps['viridis'](
    np.linspace(0.0, 0.85, max(len(ordered), 2))
  )
  return dict(zip(ordered, shades, strict=False))


def log_axis(
  axis: Any,
  values: Sequence[float] | np.ndarray,
  label: Callable[[float], str] = text.amount,
  pad: float = 0.06,
) -> None:
  """Makes an axis (`ax.xaxis`) logarithmic, with few and round ticks."""
  low, high = float(np.min(values)), float(np.max(values))
  room = pad * max(math.log(high / low), 0.3)
  low, high = low * math.exp(-room), high * math.exp(room)
  ax, along = axis.axes, axis.axis_name
  getattr(ax, f'set_{along}scale')('log')
  getattr(ax, f'set_{along}lim')(low, high)
  axis.set_major_locator(ticker.FixedLocator(_round_ticks(low, high)))
  axis.set_minor_locator(ticker.NullLocator())
  axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: label(x)))


def g_axis(ax: mpl_axes.Axes, granularities: Iterable[float]) -> None:
  """Makes x a logarithmic axis of G with a tick at each G."""
  ordered = sorted(set(granularities))
  ax.set_xscale('log', base=2)
  ax.set_xlim(ordered[0] / 1.35, ordered[-1] * 1.35)
  ax.xaxis.set_major_locator(ticker.FixedLocator(ordered))
  ax.xaxis.set_minor_locator(ticker.NullLocator())
  ax.xaxis.set_major_formatter(
    ticker.FuncFormatter(lambda x, _: f'{round(x):d}')
  )
  ax.set_xlabel('exits G')


def layer_axis(ax: mpl_axes.Axes, depth: int) -> None:
  """Makes x an axis of layers from 0 to `depth`."""
  ax.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
  ax.set_xlim(0, depth * 1.06)
  ax.set_xlabel('layer of the exit')


def legend(figure: mpl_figure.Figure, axes: Sequence[mpl_axes.Axes]) -> None:
  """Puts one legend of all panels, each name once, below them."""
  entries: dict[str, Any] = {}
  for ax in axes:
    for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
      entries.setdefault(name, handle)
  if entries:
    # A stable sort: the G first, then what else there is.
    names = sorted(entries, key=lambda name: not name.startswith('G = '))
    columns = next(
      (
        count
        for count in range(len(names), 1, -1)
        if sum(
          max(map(len, names[first::count])) + _HANDLE_LETTERS
          for first in range(count)
        )
        <= _LEGEND_LETTERS
      ),
      1,
    )
    # As few lines as that takes, and all of about one length.
    columns = math.ceil(len(names) / math.ceil(len(names) / columns))
    # matplotlib fills column by column; people read line by line.
    names = [name for first in range(columns) for name in names[first::columns]]
    figure.legend(
      [entries[name] for name in names],
      names,
      loc='outside lower left',
      ncols=columns,
    )


def _round_ticks(low: float, high: float) -> list[float]:
  """Returns at most about five ticks of 1, 2, 5 x 10^k within two values."""
  decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  for steps in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3)):
    ticks = [step * 10.0**k for k in decades for step in steps]
    ticks = [tick for tick in ticks if low <= tick <= high]
    if len(ticks) <= 5:
      return ticks
  ticks = [10.0**k for k in decades if low <= 10.0**k <= high]
  return ticks[:: math.ceil(len(ticks) / 5)]
