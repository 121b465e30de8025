"""Figures of a study of families: relative losses, and how members agree."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
import numpy as np

from familial.core import text
from familial.plots import style

Figure = mpl_figure.Figure
Rows = Sequence[Mapping[str, Any]]
_MARKERS = 'osD^vPX'  # not as many as colours: the pair is a way's own
_LABEL_HEIGHT = 13.0  # points, of a line
_HEIGHT = 4.2
_LOG_FROM = 10.0  # the largest over the smallest of an axis that is logarithmic
_MEASURES = {
  'kl': 'KL(smaller ‖ larger), nats',
  'kl_back': 'KL(larger ‖ smaller), nats',
  'top1': 'top-1 agreement, %',
}


def looks(ways: Sequence[str]) -> dict[str, dict[str, Any]]:
  """Returns how lines and markers of each way look everywhere."""
  colours = style.CYCLE
  return {
    way: {
      'color': colours[number % len(colours)],
      'marker': _MARKERS[number % len(_MARKERS)],
      # The second of a colour is dashed and hollow.
      **({'ls': '--', 'mfc': 'white'} if number // len(colours) % 2 else {}),
    }
    for number, way in enumerate(ways)
  }


@style.drawn
def compared(
  rows: Rows, params: Mapping[tuple[str, int], float], ways: Sequence[str]
) -> Figure:
  """Draws loss over that of the way it is compared with, a panel a budget.

  Args:
    rows: log ratios by way, budget and size, with their intervals.
    params: of each way's sizes.
    ways: all of the study, in order.
  """
  budgets = sorted({row['budget'] for row in rows})
  shown = [way for way in ways if any(row['way'] == way for row in rows)]
  others = [row['against'] for row in rows]
  usual = max(dict.fromkeys(others), key=others.count)
  unless = ', unless said otherwise' if len(set(others)) > 1 else ''
  figure, axes = style.panels(
    len(budgets), f'Loss over that of {usual}{unless}', height=_HEIGHT
  )
  direct = len(budgets) < style.COLUMNS  # There is room beside few panels.
  sizes = sorted(params.values())
  for ax, budget in zip(axes, budgets, strict=True):
    ends, across = {}, list(sizes)
    for place, way in enumerate(shown):
      here = [r for r in rows if (r['way'], r['budget']) == (way, budget)]
      if not here:
        continue
      shift = _shift(place, len(shown), sizes)
      x = [params[way, row['size']] * shift for row in here]
      y = [100 * math.expm1(row['value']) for row in here]
      across += x
      look = looks(ways)[way]
      name = way if here[0]['against'] == usual else _over(here[0], direct)
      ax.plot(x, y, lw=1.1, label=name, **look)
      for row, at in zip(here, x, strict=True):
        if row['lo'] is not None:
          span = [100 * math.expm1(row[key]) for key in ('lo', 'hi')]
          ax.plot([at, at], span, color=look['color'], lw=1.6)
      ends[name] = (x[-1], y[-1], look)
    ax.axhline(0, color='black', lw=1)
    style.log_axis(ax.xaxis, across)
    ax.margins(y=0.08)
    ax.set_xlabel('parameters of the member')
    ax.set_title(f'C = {text.scientific(budget)} FLOPs')
    if direct:
      _label_ends(ax, ends)
  style.label_y(axes, 'relative loss, %')
  if not direct:
    style.legend(figure, axes)
  return figure


@style.drawn
def agreement(rows: Rows, scale: Rows, ways: Sequence[str]) -> Figure:
  """Draws how adjacent sizes agree, a panel a measure.

  Args:
    rows: means over seeds by way and size, of one budget.
    scale: the same for two seeds of one size; empty for none.
    ways: all of the study, in order.
  """
  figure, axes = style.panels(
    len(_MEASURES), 'Adjacent sizes of a family: how far they agree', height=3.4
  )
  shown = [way for way in ways if any(row['way'] == way for row in rows)]
  pairs = sorted({(row['size'], row['other_size']) for row in rows})
  for ax, (key, label) in zip(axes, _MEASURES.items(), strict=True):
    unit = 100 if key == 'top1' else 1
    if scale:
      span = [unit * row[key] for row in scale]
      ax.axhspan(
        min(span),
        max(span),
        color='#d5d5d5',
        lw=0,
        zorder=0,
        label='two seeds of one size',
      )
      # A band may be as thin as a line.
      ax.axhline(np.mean(span), color=style.MUTED, ls='--', lw=1, zorder=0)
    for place, way in enumerate(shown):
      here = [row for row in rows if row['way'] == way]
      across = 0.5 * (place / max(len(shown) - 1, 1) - 0.5)
      ax.plot(
        [pairs.index((r['size'], r['other_size'])) + across for r in here],
        [unit * row[key] for row in here],
        lw=1,
        label=way,
        **looks(ways)[way],
      )
    ax.set_xticks(range(len(pairs)), [f'{a} and {b}' for a, b in pairs])
    ax.set_xlim(-0.45, len(pairs) - 0.55)
    ax.grid(axis='x', visible=False)
    values = [row[key] for row in [*rows, *scale]]
    if key != 'top1' and max(values) > _LOG_FROM * min(values) > 0:
      style.log_axis(ax.yaxis, values, text.trimmed)
    ax.set_xlabel('sizes')
    ax.set_title(label)
  style.legend(figure, axes)
  return figure


def _shift(place: int, count: int, sizes: Sequence[float]) -> float:
  """Returns the factor on x by which ways stand side by side at a size."""
  if count < 2:
    return 1.0
  steps = np.diff(np.log(sizes))
  gap = min(steps[steps > 0.2], default=0.7)  # closer ones are one size
  return math.exp(0.5 * gap * (place / (count - 1) - 0.5))


def _over(row: Mapping[str, Any], direct: bool) -> str:
  return f'{row["way"]}{chr(10) if direct else " "}over {row["against"]}'


def _label_ends(
  ax: mpl_axes.Axes, ends: Mapping[str, tuple[float, float, dict[str, Any]]]
) -> None:
  """Names lines at the right of their panel, none over another.

  Args:
    ax: the panel, its limits final.
    ends: by name, the last point of a line and how it looks.
  """
  low, high = ax.get_ylim()
  ax.set_ylim(low, high)
  points = 72 * (_HEIGHT - 0.9)  # height of the panel within its labels
  names = sorted(ends, key=lambda name: ends[name][1])
  wanted = [(ends[name][1] - low) / (high - low) for name in names]
  heights = [_LABEL_HEIGHT * (name.count('\n') + 1) / points for name in names]
  for name, y in zip(names, spread(wanted, heights), strict=True):
    at, value, look = ends[name]
    ax.annotate(
      '',
      (at, value),
      xycoords='data',
      xytext=(1.03, y),
      textcoords='axes fraction',
      arrowprops={
        'arrowstyle': '-',
        'color': look['color'],
        'lw': 0.6,
        'alpha': 0.6,
        'shrinkA': 0,
        'shrinkB': 0,
      },
    )
    ax.plot([1.03], [y], transform=ax.transAxes, clip_on=False, **look)
    ax.annotate(
      name,
      (1.03, y),
      xycoords='axes fraction',
      xytext=(6, 0),
      textcoords='offset points',
      va='center',
      fontsize=8.5,
      linespacing=1.05,
      color='#333333',
    )


def spread(wanted: Sequence[float], heights: Sequence[float]) -> list[float]:
  """Returns places as near to those wanted, in order, as heights allow.

  Places that would overlap are pushed apart about their common middle, and all
  stay within 0 to 1 where that has room for them.
  """
  groups: list[list[int]] = []
  offsets = np.cumsum(heights) - np.array(heights) / 2
  room = max(1 - sum(heights), 0.0)

  def middle(group: list[int]) -> float:
    mean = float(np.mean([wanted[i] - offsets[i] for i in group]))
    return min(max(mean, 0.0), room)

  for number in range(len(wanted)):
    groups.append([number])
    while len(groups) > 1 and middle(groups[-2]) > middle(groups[-1]):
      groups[-2:] = [groups[-2] + groups[-1]]
  return [middle(group) + float(offsets[i]) for group in groups for i in group]
