"""The figures of a probe, as PNG: by layer, and of several models by depth."""

from collections.abc import Sequence
import math
import pathlib
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from familial.analysis import middle
from familial.analysis import trajectories
from familial.core import estimate
from familial.core import storage
from familial.plots import style

Figure = mpl_figure.Figure
_DPI = 150
_BAND = '90 % of tokens'


def draw(record: storage.Row, folder: pathlib.Path) -> None:
  """Writes trajectory.png and layers.png of a probe's record."""
  _save(trajectory(record), folder / 'trajectory.png')
  _save(layers(record), folder / 'layers.png')


def draw_depths(
  found: Sequence[storage.Row],
  slope: estimate.Estimate | None,
  folder: pathlib.Path,
) -> None:
  """Writes depth.png of several probes' records."""
  _save(depths(found, slope), folder / 'depth.png')


@style.drawn
def trajectory(record: storage.Row) -> Figure:
  """How the states of a model move, layer by layer."""
  figure, axes = style.panels(6, f'{_name(record)}: how its states move')
  right = math.pi / 2
  _quantity(axes[0], record, 'turn', 'turn of the state, rad')
  _quantity(axes[1], record, 'bend', 'turn of the update, rad')
  random = record['random']['cosine_sd']
  axes[1].axhspan(
    right - 1.96 * random, right + 1.96 * random, color=style.MUTED,
    alpha=0.15, lw=0, label='95 % of random pairs',
  )  # fmt: skip
  _quantity(axes[2], record, 'to_last', 'angle to the last, rad')
  for ax in axes[:3]:
    ax.axhline(right, color=style.MUTED, ls=':', label='π / 2')
  _quantity(axes[3], record, 'norm', 'length of the state')
  _quantity(axes[4], record, 'update', 'length of the update')
  for ax in axes[3:5]:
    _log(ax.yaxis)
  axes[5].set_title('tokens that have settled')
  axes[5].step(
    range(len(record['settled'])), 100 * np.array(record['settled']),
    where='post', color=style.CYCLE[1],
  )  # fmt: skip
  axes[5].axvline(
    trajectories.EARLY * record['model']['depth'], color=style.MUTED, ls='--',
    label='settled by here: stopped early',
  )  # fmt: skip
  axes[5].set_ylabel('%')
  axes[5].set_ylim(-2, 102)
  for ax in axes:
    _layers(ax, record)
  style.legend(figure, axes)
  return figure


@style.drawn
def layers(record: storage.Row) -> Figure:
  """The loss that each layer has reached, and what it costs to change layers."""
  figure, axes = style.panels(
    3, f'{_name(record)}: what its layers are worth', height=3.1
  )
  axes[0].set_title('loss through the last head')
  _line(axes[0], record['quantities']['loss'], style.CYCLE[0], '')
  exits = record['quantities']['exit_loss']
  axes[0].plot(
    [row['layer'] for row in exits], [row['mean'] for row in exits], ls='',
    marker='o', color=style.CYCLE[1], label="through an exit's own head",
  )  # fmt: skip
  axes[0].set_ylabel('nats per token')
  axes[1].set_title('loss that a change costs')
  for place, (name, label) in enumerate(
    (('skip', 'layer left out'), ('swap', 'exchanged with the next'))
  ):
    rows = record['quantities'][name]
    axes[1].errorbar(
      [row['layer'] + 0.5 * place for row in rows],
      [row['mean'] for row in rows],
      [1.96 * (row['error'] or 0) for row in rows],
      color=style.CYCLE[2 + place], marker='o', ms=4, label=label,
    )  # fmt: skip
  axes[1].set_yscale('symlog', linthresh=1e-2)
  _plain(axes[1].yaxis)
  for ax in axes[:2]:
    _layers(ax, record)
  axes[2].set_title('stopped early, by position')
  for place, (name, label) in enumerate(
    (('by_position', 'in the window'), ('by_place', 'since a separator'))
  ):
    axes[2].plot(
      [1 + row['from'] for row in record[name]],
      [100 * row['early'] for row in record[name]],
      color=style.CYCLE[4 + place], marker='o', ms=4, label=label,
    )  # fmt: skip
  axes[2].set_xscale('log', base=2)
  _plain(axes[2].xaxis)
  axes[2].set_xlabel('position from 1, in doublings')
  axes[2].set_ylabel('% of tokens')
  axes[2].set_ylim(bottom=0)
  style.legend(figure, axes)
  return figure


@style.drawn
def depths(
  found: Sequence[storage.Row], slope: estimate.Estimate | None
) -> Figure:
  """What the layers of several models do, by their depth."""
  figure, axes = style.panels(3, 'layers by depth of the model', height=3.1)
  networks = [middle.of_record(record) for record in found]
  every = sorted({network.depth for network in networks})
  shades = style.budget_colours(every)
  for record, network in zip(found, networks, strict=True):
    depth, colour = network.depth, shades[network.depth]
    rows = record['quantities']['turn']
    axes[0].plot(
      [(row['layer'] - 0.5) / depth for row in rows],
      [depth * row['mean'] for row in rows],
      color=colour, label=f'{depth} layers',
    )  # fmt: skip
    if depth >= middle.LEAST_DEPTH:
      values = middle.statistics(network)
      for place, name in enumerate(('alignment', 'early')):
        axes[2].plot(
          depth, values[name], ls='', marker='os'[place],
          color=style.CYCLE[place], label=_STATISTICS[name],
        )  # fmt: skip
  axes[0].set_title('turn times depth')
  axes[0].set_xlabel('layer / depth')
  axes[0].set_ylabel('rad')
  _log(axes[0].yaxis)
  axes[1].set_title('turn of a middle layer')
  points = [(n.depth, middle.turn(n)) for n in networks if n.depth > 2]
  if points:
    x, y = np.array(points, float).T
    axes[1].plot(x, y, ls='', marker='o', color=style.CYCLE[0])
    if slope:
      centre = np.exp(np.log(x).mean()), np.exp(np.log(y).mean())
      ends = np.array([x.min(), x.max()])
      interval = f' [{slope.lo:.2f}, {slope.hi:.2f}]'
      axes[1].plot(
        ends, centre[1] * (ends / centre[0]) ** slope.value,
        color=style.CYCLE[1], label=f'depth^{slope.value:.2f}{interval}',
      )  # fmt: skip
  axes[1].set_ylabel('rad')
  _log(axes[1].yaxis)
  for ax in axes[1:]:
    ax.set_xscale('log')
    ax.set_xlabel('depth')
    ax.xaxis.set_major_locator(ticker.FixedLocator(every))
    _plain(ax.xaxis)
  axes[2].set_title('what tells regimes apart')
  axes[2].set_ylim(-0.35, 1.05)
  style.legend(figure, axes)
  return figure


_STATISTICS = {
  'alignment': 'alignment of neighbouring updates',
  'early': 'tokens that stop early',
}


def _quantity(
  ax: mpl_axes.Axes, record: storage.Row, name: str, title: str
) -> None:
  ax.set_title(title)
  rows = [r for r in record['quantities'][name] if r['mean'] is not None]
  if rows:
    _line(ax, rows, style.CYCLE[0], 'mean')
    x = [row['layer'] for row in rows]
    low, high = np.array([[r['quantiles'][i] for i in (0, -1)] for r in rows]).T
    ax.fill_between(
      x, low, high, color=style.CYCLE[0], alpha=0.15, lw=0, label=_BAND
    )


def _line(ax: mpl_axes.Axes, rows: list[Any], colour: str, label: str) -> None:
  ax.plot(
    [row['layer'] for row in rows],
    [row['mean'] for row in rows],
    color=colour, marker='o', ms=3, label=label or '_',
  )  # fmt: skip


def _layers(ax: mpl_axes.Axes, record: storage.Row) -> None:
  depth = record['model']['depth']
  ax.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
  ax.set_xlim(-0.03 * depth, 1.03 * depth)
  ax.set_xlabel('layer')


def _log(axis: Any) -> None:
  """Makes y logarithmic, with ticks that are numbers: math is not parsed."""
  axis.axes.set_yscale('log')
  axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  _plain(axis)


def _plain(axis: Any) -> None:
  axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f'{x:g}'))
  axis.set_minor_locator(ticker.NullLocator())


def _name(record: storage.Row) -> str:
  model = record['model']
  exits = len(model['exits'])
  return (
    f'{model["run"]}, {model["depth"]} layers'
    f'{f", {exits} exits" if exits > 1 else ""}'
  )


def _save(figure: Figure, path: pathlib.Path) -> None:
  with storage.writing(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
