"""The figures of a study of layers and exits: what exits change, and where."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from familial import student
from familial.report import style

Group = Mapping[str, Any]
_STATISTICS = {
  'alignment': 'alignment of updates',
  'departure': 'departure',
  'middle_turn': 'turn of a middle layer, rad',
  'step_spread': 'spread of steps',
  'early': 'tokens that stop early',
  'stop_spread': 'spread of stops',
}
_LAYERS = {
  'turn': 'turn of the state, rad',
  'cosine': 'cosine of neighbouring updates',
  'loss': 'loss through the last head, nats',
  'skip': 'loss that leaving a layer out costs',
}


@style.drawn
def statistics(groups: Sequence[Group]) -> mpl_figure.Figure:
  """What tells regimes apart, by G: each seed, the mean and its interval.

  Args:
    groups: of one depth.
  """
  title = f'What tells regimes apart, {groups[0]["depth"]} layers'
  figure, axes = style.panels(len(_STATISTICS), title)
  for ax, (name, label) in zip(axes, _STATISTICS.items(), strict=True):
    ax.set_title(label)
    for group in groups:
      exits = group['exits']
      values = np.array([row[name] for row in group['statistics']])
      ax.plot(
        np.full(len(values), exits), values, ls='', marker='o', ms=4,
        alpha=0.35, color=style.colour(exits),
      )  # fmt: skip
      found = student.mean(values)
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
  figure, axes = style.panels(len(_LAYERS), title)
  for ax, (name, label) in zip(axes, _LAYERS.items(), strict=True):
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
      ax.set_yscale('symlog', linthresh=1e-2)
      # Math is not parsed.
      ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f'{x:g}'))
  style.legend(figure, axes)
  return figure
