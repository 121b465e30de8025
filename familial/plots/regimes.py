"""The figures of a study of layers and exits: what exits change, and where."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from familial.core import estimate
from familial.plots import style

Group = Mapping[str, Any]
STATISTICS = {
  'alignment': 'alignment of updates',
  'departure': 'departure',
  'middle_turn': 'turn of a middle layer, rad',
  'step_spread': 'spread of steps',
  'early': 'tokens that stop early',
  'stop_spread': 'spread of stops',
}
LAYERS = {
  'turn': 'turn of the state, rad',
  'cosine': 'cosine of neighbouring updates',
  'loss': 'loss through the last head, nats',
  'skip': 'loss that leaving a layer out costs, nats',
}
_STRAIGHT = 1e-3  # nats around 0, where the axis of a cost is no logarithm


@style.drawn
def statistics(groups: Sequence[Group]) -> mpl_figure.Figure:
  """What tells regimes apart, by G: each seed, the mean and its interval.

  Args:
    groups: of one depth.
  """
  title = f'What tells regimes apart, {groups[0]["depth"]} layers'
  figure, axes = style.panels(len(STATISTICS), title)
  for ax, (name, label) in zip(axes, STATISTICS.items(), strict=True):
    ax.set_title(label)
    for group in groups:
      exits = group['exits']
      values = np.array([row[name] for row in group['statistics']], np.float64)
      values = values[np.isfinite(values)]
      if not len(values):
        continue
      ax.plot(
        np.full(len(values), exits), values, ls='', marker='o', ms=4,
        alpha=0.35, color=style.colour(exits),
      )  # fmt: skip
      found = estimate.Estimate.of(values)
      reach = 0.0 if found.hi is None else found.hi - found.value
      ax.errorbar(
        exits, found.value, reach, marker=style.marker(exits), capsize=3,
        color=style.colour(exits), label=style.name_of(exits),
      )  # fmt: skip
    style.g_axis(ax, [group['exits'] for group in groups])
  style.legend(figure, axes)
  return figure


@style.drawn
def layers(groups: Sequence[Group]) -> mpl_figure.Figure:
  """What each layer does, by G: means over seeds.

  Args:
    groups: of one depth.
  """
  title = f'Layer by layer, {groups[0]["depth"]} layers'
  figure, axes = style.panels(len(LAYERS), title)
  for ax, (name, label) in zip(axes, LAYERS.items(), strict=True):
    ax.set_title(label)
    for group in groups:
      rows = group['layers'][name]
      ax.plot(
        [row['layer'] for row in rows],
        [row['mean'] for row in rows],
        color=style.colour(group['exits']),
        marker=style.marker(group['exits']),
        ms=4,
        label=style.name_of(group['exits']),
      )
    ax.set_xlabel('layer')
    ax.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
    if name == 'skip':
      _from_zero(ax)
  style.legend(figure, axes)
  return figure


def _from_zero(ax: mpl_axes.Axes) -> None:
  """Makes y logarithmic but for a straight stretch around 0, all of it in view.

  There are ticks at 0 and at powers of ten from the end of that stretch on.
  """
  low, high = ax.dataLim.intervaly
  if not low <= high:  # Nothing is drawn.
    return
  ticks = _STRAIGHT * 10.0 ** np.arange(7)
  ax.set_yscale('symlog', linthresh=_STRAIGHT)
  ax.set_ylim(1.3 * min(low, 0) - 0.1 * _STRAIGHT, 1.3 * max(high, ticks[2]))
  ax.yaxis.set_major_locator(ticker.FixedLocator([*-ticks[::-1], 0, *ticks]))
  # Math is not parsed.
  ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f'{x:g}'))
