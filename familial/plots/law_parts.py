"""What the figures of a fit share: titles, notes, labels, samples."""

from collections.abc import Callable
from collections.abc import Sequence
import pathlib
import textwrap
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from familial.core import text as text_lib
from familial.laws import inference
from familial.plots import style

POINTS = 2000  # drawn in a panel, at most
RESAMPLES = 500  # that a band or a cloud rests on, at most
BAND, POINT = '#0072B2', '#D55E00'
_SYMBOLS = {
  'alpha': 'α', 'beta': 'β', 'gamma': 'γ', 'gamma_up': 'γ_up',
  'gamma_down': 'γ_down', 'alpha_N': 'α_N', 'alpha_D': 'α_D',
}  # fmt: skip
_LETTERS = 132  # in a line of a note


def heading(found: inference.Result, what: str) -> str:
  """A figure's title: what it shows, of which law, on which table."""
  form = pathlib.PurePath(found.fit.form.name).name
  source = pathlib.PurePath(found.table.source).name
  on = f' on {source}' if source else ''
  return f'{what}: {form}{on}, {found.fit.rows:,} rows'


def finish(
  figure: mpl_figure.Figure, axes: Sequence[mpl_axes.Axes], *notes: str
) -> mpl_figure.Figure:
  """Puts a legend below the panels, and above it what must be said of them."""
  style.legend(figure, axes)
  if not figure.legends:
    figure.legend([], [], loc='outside lower left')
  text = '\n'.join(textwrap.fill(note, _LETTERS) for note in notes if note)
  legend = figure.legends[0]
  legend.set_alignment('left')
  legend.set_title(text)
  legend.get_title().set_fontsize(8)
  legend.get_title().set_color('#555555')
  return figure


def intervals(found: inference.Result) -> str:
  """What the bands are, in words."""
  done = len(theta(found))
  kept = found.bootstrap.resamples - found.bootstrap.failed
  some = f'{done:,} of {kept:,}' if done < kept else f'{done:,}'
  return (
    f'Intervals at {level(found)}: of the law, without the noise of a run, from'
    f' {some} resamples by {found.bootstrap.unit}'
  )


def level(found: inference.Result) -> str:
  """The level of the intervals, as 95 %."""
  return f'{100 * found.bootstrap.level:g} %'


def theta(found: inference.Result) -> np.ndarray:
  """Coordinates of resamples, evenly picked, [at most RESAMPLES, parameters]."""
  every = found.bootstrap.theta(found.fit.form)
  picked = np.linspace(0, len(every) - 1, min(len(every), RESAMPLES))
  return every[picked.astype(int)]


def ends(values: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
  """Both ends of the central share of values [n, ...]; NaN where unknown."""
  if len(values) < 2:
    return np.full(values.shape[1:], np.nan), np.full(values.shape[1:], np.nan)
  with np.errstate(invalid='ignore'):  # of infinite values
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2], axis=0)
  return low, high


def some(rows: np.ndarray) -> np.ndarray:
  """At most POINTS of the rows' indices, the same ones every time."""
  if len(rows) <= POINTS:
    return rows
  return np.sort(np.random.default_rng(0).choice(rows, POINTS, replace=False))


def thinned(rows: int, of: str = '') -> str:
  """What is said of rows that are not drawn; '' where all are."""
  if rows <= POINTS:
    return ''
  return f'{POINTS:,} of {rows:,} rows{of} are drawn, at random'


def axis(
  axis: Any, values: Any, label: Callable[[float], str] = text_lib.amount
) -> None:
  """Makes an axis (`ax.xaxis`) logarithmic where its values allow it.

  Over less than a factor of four its ticks are evenly spaced numbers; a panel
  beside two others has room for four.
  """
  values = np.asarray(values)
  low, high = values.min(), values.max()
  if not (low > 0 and 1 + 1e-6 < high / low < 1e200):
    return
  style.log_axis(axis, values, label)
  low, high = axis.get_view_interval()
  ticks = axis.get_majorticklocs()
  if high / low < 4:
    ticks = ticker.MaxNLocator(5).tick_values(low, high)
    axis.set_major_formatter(
      ticker.FuncFormatter(lambda x, _: _plain(x, label))
    )
  narrow = axis.axes.get_gridspec().ncols > 2 and axis.axis_name == 'x'
  ticks = [tick for tick in ticks if low <= tick <= high]
  if narrow and len(ticks) > 4:
    ticks = ticks[::2]
  axis.set_major_locator(ticker.FixedLocator(ticks))


def compute(value: float) -> str:
  """A tick of FLOPs, or of a parameter of any size."""
  return text_lib.scientific(value).removeprefix('1×')


def _plain(value: float, label: Callable[[float], str]) -> str:
  return label(value) if value >= 1000 else f'{value:.4g}'


def label_of(column: str) -> str:
  """An axis label of a column."""
  return {'N': 'parameters N', 'D': 'tokens D', 'G': 'exits G',
          'C': 'training FLOPs C'}.get(column, column)  # fmt: skip


def symbol(name: str) -> str:
  """How a figure writes a parameter."""
  return _SYMBOLS.get(name, name)
