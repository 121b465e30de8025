"""Figures of allocations: who was trained how far, and what it gave."""

from collections.abc import Mapping
from collections.abc import Sequence
import math
from typing import Any
from typing import NamedTuple

import matplotlib
from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from familial.allocation import curves as curves_lib
from familial.allocation import frontier
from familial.allocation import rounds as rounds_lib
from familial.allocation import surrogate
from familial.core import text
from familial.plots import law_parts as parts
from familial.plots import style

Figure = mpl_figure.Figure
WHOLE = 'the whole grid'
_KEPT, _UNTRAINED = '#D55E00', '#c9c9c9'
_LOOKS = {
  WHOLE: ('#000000', 'o'),
  'oracle': ('#8a8a8a', '*'),
  'sh': ('#333333', 'o'),
  'uniform': ('#56B4E9', 's'),
  'sh_lmc': ('#0072B2', 'D'),
  'sh_ensemble_power_law': ('#D55E00', '^'),
  'sh_ensemble_exponential': ('#E69F00', 'v'),
  'sh_ensemble_mmf': ('#CC79A7', 'P'),
  'law': ('#009E73', 'p'),
}
PERCENT = 100.0
_TALL = 1.1  # times the highest of candidates' lowest losses: a panel's top


class Course(NamedTuple):
  """How one allocation went.

  Attributes:
    title: of its panel.
    whole: of each candidate all that is known, trained by the allocation or not.
    known: what the allocation trained of it.
    rounds: in order.
  """

  title: str
  whole: Sequence[curves_lib.Curve]
  known: Sequence[curves_lib.Curve]
  rounds: Sequence[rounds_lib.Round]


def pruned(rounds: Sequence[rounds_lib.Round]) -> dict[int, int]:
  """The round, from 1, after which candidates left; others are not in it."""
  found: dict[int, int] = {}
  for number, made in enumerate(rounds, 1):
    for candidate in set(made.alive) - set(made.kept):
      found.setdefault(candidate, number)
  return found


def predictions(
  rounds: Sequence[rounds_lib.Round],
) -> dict[int, tuple[float, float, float, float, float]]:
  """The last prediction of each candidate that has one.

  Returns:
    By candidate: the FLOPs it is for, mean, lo, hi, and the lowest loss seen.
  """
  found = {}
  for made in rounds:
    for i, end, seen, predicted in zip(
      made.alive, made.end, made.seen, made.predicted or (), strict=False
    ):
      if predicted is not None and seen is not None:
        found[i] = (end, *predicted, seen)
  return found


@style.drawn
def courses(shown: Sequence[Course]) -> Figure:
  """Curves of one to two allocations, pruned when; predictions of the last.

  Args:
    shown: of them; one of a round at least has a loss.
  """
  foretold = predictions(shown[-1].rounds)
  figure, axes = style.panels(
    len(shown) + bool(foretold),
    'What was trained how far, and what was pruned when',
    height=3.6,
  )
  for ax, course in zip(axes, shown, strict=False):
    _course(ax, course)
  style.label_y(axes, 'loss, nats per token')
  notes = ['Points: evaluations; a cross where training stopped for good']
  if foretold:
    _foretold(axes[-1], shown[-1], foretold)
    notes.append(
      f'Right: the last prediction of each candidate of {shown[-1].title}, with'
      f' its interval of {PERCENT * surrogate.LEVEL:g} %, in order'
    )
  return parts.finish(figure, axes, '. '.join(notes))


def _course(ax: mpl_axes.Axes, course: Course) -> None:
  """One allocation's curves."""
  left = pruned(course.rounds)
  colours = _colours(max((r for r in left.values()), default=0))
  kept = 'not pruned' if left else 'trained'
  tops, ends, firsts = [], [], []
  order = sorted(range(len(course.whole)), key=lambda i: -left.get(i, 99))
  for i in reversed(order):
    whole, known = course.whole[i], course.known[i]
    if len(whole.flops) > len(known.flops) or whole.end > known.end:
      ax.plot(
        whole.flops, whole.loss, color=_UNTRAINED, lw=0.8, zorder=1,
        label='not trained by it',
      )  # fmt: skip
    ends.append(whole.end)
    if not len(known.flops):
      continue
    stop = left.get(i)
    colour = _KEPT if stop is None else colours[stop]
    ax.plot(
      known.flops, known.loss, color=colour, lw=1.5, marker='.', ms=3.5,
      zorder=3 if stop is None else 2,
      label=f'pruned after round {stop}' if stop else kept,
    )  # fmt: skip
    if stop is not None or known.diverged:
      ax.plot(
        known.flops[-1], known.loss[-1], color=colour, marker='X', ms=6.5,
        mec='white', mew=0.6, ls='', zorder=4,
      )  # fmt: skip
    tops.append(known.best)
    firsts.append(known)
  losses = [c.best for c in course.whole if math.isfinite(c.best)]
  if tops:
    top = _TALL * max(tops)
    begin = min(
      float(c.flops[c.loss <= top][0]) for c in firsts if (c.loss <= top).any()
    )
    parts.axis(ax.xaxis, [begin, max(ends)], parts.compute)
    parts.axis(ax.yaxis, [min(losses), top], text.trimmed)
  ax.set_xlabel('FLOPs of a candidate')
  ax.set_title(course.title)


def _foretold(
  ax: mpl_axes.Axes,
  course: Course,
  found: Mapping[int, tuple[float, float, float, float, float]],
) -> None:
  """Predictions of candidates side by side, with what came true."""
  left = pruned(course.rounds)
  colours = _colours(max((r for r in left.values()), default=0))
  order = sorted(found, key=lambda i: found[i][1])
  for place, i in enumerate(order):
    end, mean, lo, hi, seen = found[i]
    colour = _KEPT if i not in left else colours[left[i]]
    ax.plot([place, place], [lo, hi], color=colour, lw=1.3)
    ax.plot(
      place, mean, color=colour, marker='s', ms=4, ls='',
      label='predicted',
    )  # fmt: skip
    ax.plot(
      place, seen, color=style.MUTED, marker='_', ms=8, ls='',
      label='lowest loss when predicted',
    )  # fmt: skip
    whole = course.whole[i]
    if whole.end >= end:
      ax.plot(
        place, float(whole.at(end)), color='black', marker='o', mfc='none',
        ms=5.5, mew=1, ls='', label='what it came to',
      )  # fmt: skip
  ax.set_xticks([])
  ends = [each[0] for each in found.values()]
  most = 'at' if max(ends) <= 1.1 * min(ends) else 'at up to'
  ax.set_xlabel(f'{most} {text.scientific(max(ends), 2)} FLOPs each')
  ax.set_title('Predictions')
  ax.yaxis.set_major_locator(ticker.MaxNLocator(5))


@style.drawn
def frontiers(
  whole: Sequence[curves_lib.Curve],
  trained: Mapping[str, Sequence[curves_lib.Curve]],
  far: float,
  name: str = WHOLE,
) -> Figure:
  """Compute frontiers with their lines, and how far they are from the grid's.

  Args:
    whole: the whole grid's curves.
    trained: what each policy trained of them.
    far: FLOPs up to which lines are drawn.
    name: of `whole`.
  """
  low, high = frontier.span(whole)
  full = frontier.line(whole, low, high)
  figure, axes = style.panels(
    2, 'Compute frontiers, and lines through them', height=3.7
  )
  left = low / frontier.WIDTH  # Before, a frontier is one of transients.
  beyond = np.geomspace(left, far, frontier.POINTS)
  seen, starts = [], []
  for who, curves in {name: whole, **trained}.items():
    begin, end = (
      frontier.span(curves) if any(len(c.flops) for c in curves) else (0, 0)
    )
    if not end:
      continue
    colour, _ = look(who)
    wide = 2.4 if who == name else 1.5
    flops = np.geomspace(begin, end, frontier.POINTS)
    loss = frontier.frontier(curves, flops)
    line = frontier.line(curves, begin, end)
    known = np.isfinite(loss) & (flops >= left)
    ax, apart = axes
    ax.plot(flops[known], loss[known], color=colour, lw=wide, label=who)
    ahead = beyond[beyond >= begin]
    ax.plot(ahead, line(ahead), color=colour, lw=0.9, ls='--')
    apart.plot(
      flops[known], _off(loss[known], full(flops[known])), color=colour, lw=wide
    )
    apart.plot(
      ahead, _off(line(ahead), full(ahead)), color=colour, lw=0.9, ls='--'
    )
    seen += [*loss[known], *line(ahead[-1:])]
    starts += [*flops[known][:1]]
  for ax in axes:
    ax.axvline(high, color=style.MUTED, lw=0.8, ls=':', zorder=0)
    ax.set_xlabel('training FLOPs')
    parts.axis(ax.xaxis, [min(starts, default=left), far], parts.compute)
  seen = [loss for loss in seen if math.isfinite(loss)]
  parts.axis(axes[0].yaxis, seen, text.trimmed)
  axes[0].set_title('Best loss, nats per token')
  axes[1].set_title(f'Over the line of {name}, %')
  return parts.finish(
    figure,
    axes,
    'Solid: the best loss over curves. Dashed: straight lines through the last'
    f' factor of {frontier.WIDTH:g} of compute of each, and beyond. Dotted: the'
    " whole grid's largest compute",
  )


def _off(loss: np.ndarray, over: np.ndarray) -> np.ndarray:
  return PERCENT * (loss / over - 1)


def look(name: str) -> tuple[str, str]:
  """The colour and the marker that stand for a policy everywhere."""
  return _LOOKS.get(name, style.OTHER)


def _colours(rounds: int) -> dict[int, Any]:
  """A colour for those pruned after each round, darker the later."""
  shades = matplotlib.colormaps['Blues'](np.linspace(0.4, 0.95, max(rounds, 1)))
  return dict(enumerate(shades, 1))
