"""Figures of what lies beside the law: twins, leverage and the controls."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
import numpy as np

from familial.core import text
from familial.plots import style

Figure = mpl_figure.Figure
Rows = Sequence[Mapping[str, Any]]
_MANY_LINES = 6  # beyond which lines go without a name


@style.drawn
def paired(ratios: Rows, blocks: Rows) -> Figure:
  """Draws loss over that of the dense model of the same shape, by budget.

  Args:
    ratios: means over the shapes of a budget, with their intervals.
    blocks: each shape's own.
  """
  titles = {'final': 'Last exit', 'mean': 'Mean over exits'}
  figure, axes = style.panels(
    len(titles),
    'Families against dense models of the same shape, at equal FLOPs',
    height=3.0,
  )
  granularities = sorted({row['exits'] for row in ratios})
  budgets = [row['budget'] for row in blocks]
  for ax, (loss, title) in zip(axes, titles.items(), strict=True):
    for place, g in enumerate(granularities):
      shift = 1.13 ** (place - (len(granularities) - 1) / 2)
      of_g = [r for r in blocks if (r['loss'], r['exits']) == (loss, g)]
      ax.scatter(
        [row['budget'] * shift * 1.04 for row in of_g],
        [100 * np.expm1(row['value']) for row in of_g],
        color=style.colour(g),
        s=12,
        alpha=0.4,
        linewidths=0,
        label='small: one shape',
      )
      means = [
        row
        for row in ratios
        if (row['loss'], row['exits']) == (loss, g) and row['budget']
      ]
      ax.plot(
        [row['budget'] * shift for row in means],
        [100 * np.expm1(row['value']) for row in means],
        color=style.colour(g),
        marker=style.marker(g),
        lw=1.2,
        label=style.name_of(g),
      )
      for row in means:
        if row['lo'] is not None:
          ends = [100 * np.expm1(row[key]) for key in ('lo', 'hi')]
          ax.plot([row['budget'] * shift] * 2, ends, color=style.colour(g))
    ax.axhline(0, color='black', lw=1)
    ax.set_title(title)
    style.log_axis(ax.xaxis, budgets, text.scientific, pad=0.1)
    ax.set_xlabel('compute C, FLOPs')
  style.label_y(axes, "loss over the dense model's, %")
  style.legend(figure, axes)
  return figure


@style.drawn
def twins(rows: Rows, depths: Rows) -> Figure:
  """Draws each exit's loss over its dense twin's, along the relative depth.

  Args:
    rows: each exit.
    depths: means over the shapes, with their intervals.
  """
  figure, (ax,) = style.panels(
    1,
    'Each exit against a dense model of its exact shape, at equal FLOPs',
    height=2.9,
  )
  for g in sorted({row['exits'] for row in rows}):
    here = [row for row in rows if row['exits'] == g]
    ax.scatter(
      [row['layer'] / row['depth'] for row in here],
      [100 * np.expm1(row['log_ratio']) for row in here],
      color=style.colour(g),
      s=12,
      alpha=0.5,
      linewidths=0,
      label='small: one shape',
    )
    means = [row for row in depths if row['exits'] == g]
    places = [row['layer'] / row['depth'] for row in means]
    shift = 0.004 * np.log2(g)
    ax.plot(
      [place + shift for place in places],
      [100 * np.expm1(row['value']) for row in means],
      color=style.colour(g),
      marker=style.marker(g),
      lw=1.2,
      label=style.name_of(g),
    )
    for row, place in zip(means, places, strict=True):
      if row['lo'] is not None:
        ends = [100 * np.expm1(row[key]) for key in ('lo', 'hi')]
        ax.plot([place + shift] * 2, ends, color=style.colour(g))
  ax.axhline(0, color='black', lw=1)
  ax.set_xlim(0, 1.05)
  ax.set_xlabel('layer of the exit / depth of the backbone')
  ax.set_ylabel("loss over the twin's, %")
  style.legend(figure, [ax])
  return figure


@style.drawn
def leverage(rows: Rows) -> Figure:
  """Draws Efficiency Leverage against budget by G; infinite ones as arrows.

  Args:
    rows: with `run`, `budget`, `exits`, `leverage` (None where `infinite`), and
      its interval, `lo` and `hi`.
  """
  figure, (ax,) = style.panels(
    1,
    'Efficiency Leverage: what separate dense models would cost / C',
    height=3.0,
  )
  finite = [r['leverage'] for r in rows if r['leverage'] is not None] or [1.0]
  # An interval that goes far beyond all points leaves the figure.
  ends = [r[key] for r in rows for key in ('lo', 'hi') if r[key] is not None]
  within = np.clip([*finite, *ends, 1.0], min(finite) / 3, 3 * max(finite))
  low, high = float(within.min()), float(within.max())
  has_infinite = any(row['infinite'] for row in rows)
  top = high * (high / low) ** 0.2 * 1.25
  granularities = sorted({row['exits'] for row in rows})
  for place, g in enumerate(granularities):
    shift = 1.3 ** (place - (len(granularities) - 1) / 2)
    here = [r for r in rows if r['exits'] == g and r['leverage'] is not None]
    budgets = sorted({row['budget'] for row in here})
    medians = [
      np.median([r['leverage'] for r in here if r['budget'] == budget])
      for budget in budgets
    ]
    ax.plot(np.array(budgets) * shift, medians, color=style.colour(g), lw=1.2)
    # Side by side within a budget, so that their intervals can be told apart.
    rank = {
      row['run']: 1.035 ** (number - (len(of) - 1) / 2)
      for budget in budgets
      for of in [[r for r in here if r['budget'] == budget]]
      for number, row in enumerate(of)
    }
    for row in here:
      if row['lo'] is not None:
        high_end = 2 * top if row['hi'] is None else row['hi']
        x = row['budget'] * shift * rank[row['run']]
        ax.plot([x, x], [row['lo'], high_end], color=style.colour(g), lw=1)
    ax.scatter(
      [row['budget'] * shift * rank[row['run']] for row in here],
      [row['leverage'] for row in here],
      color=style.colour(g),
      marker=style.marker(g),
      s=30,
      alpha=0.85,
      linewidths=0,
      label=style.name_of(g),
    )
    endless = sorted(
      {r['budget'] for r in rows if r['exits'] == g and r['infinite']}
    )
    for budget in endless:
      count = sum(
        r['infinite'] for r in rows if r['exits'] == g and r['budget'] == budget
      )
      ax.text(
        budget * shift,
        top,
        f'↑ {count}',
        color=style.colour(g),
        ha='center',
        va='center',
        fontweight='bold',
      )
  ax.axhline(1, color='black', lw=1)
  style.log_axis(
    ax.yaxis, [low, top] if has_infinite else [low, high], text.number
  )
  budgets = [row['budget'] for row in rows]
  style.log_axis(
    ax.xaxis, [min(budgets) / 1.4, max(budgets) * 1.4], text.scientific
  )
  ax.set_xlabel('compute C, FLOPs')
  ax.set_ylabel('leverage')
  if has_infinite:
    ax.set_xlabel('compute C, FLOPs (↑ n: n cells that no dense model reaches)')
  style.legend(figure, [ax])
  return figure


@style.drawn
def weighting(rows: Rows) -> Figure:
  """Draws loss by layer for each weighting of the exits, a panel a shape."""
  shapes = _by_shape(rows, 'budget')
  figure, axes = style.panels(
    len(shapes), "Weights of the exits' losses", height=3.0
  )
  names = sorted({row['weighting'] for row in rows})
  shades = dict(zip(names, style.CYCLE * 2, strict=False))
  for ax, (shape, here) in zip(axes, shapes.items(), strict=True):
    for name in dict.fromkeys(row['weighting'] for row in here):
      of_name = [row for row in here if row['weighting'] == name]
      ax.plot(
        [row['layer'] for row in of_name],
        [row['loss'] for row in of_name],
        color=shades[name],
        marker='o',
        label=name.replace('_', ' '),
      )
    _shape_axes(ax, shape, f'C = {text.scientific(shape[0])}')
  style.label_y(axes, 'loss, nats per token')
  style.legend(figure, axes)
  return figure


@style.drawn
def frozen(rows: Rows) -> Figure:
  """Draws exits trained on a frozen dense trunk against joint training."""
  shapes = _by_shape(rows, 'flops')
  figure, axes = style.panels(
    len(shapes),
    'Exits on a frozen dense trunk, and trained jointly',
    height=3.0,
  )
  for ax, (shape, here) in zip(axes, shapes.items(), strict=True):
    joint = [row for row in here if row.get('loss_joint') is not None]
    ax.plot(
      [row['layer'] for row in joint],
      [row['loss_joint'] for row in joint],
      color=style.CYCLE[0],
      marker='o',
      label='trained jointly',
    )
    ax.plot(
      [row['layer'] for row in here],
      [row['loss'] for row in here],
      color=style.CYCLE[1],
      marker='o',
      markerfacecolor='white',
      ls='--',
      label='on a frozen trunk',
    )
    compute = f'C = {text.scientific(shape[0])}'
    if joint:
      compute += f' (jointly {text.scientific(joint[0]["budget_joint"])})'
    _shape_axes(ax, shape, compute)
  style.label_y(axes, 'loss, nats per token')
  style.legend(figure, axes)
  return figure


@style.drawn
def gradients(rows: Rows) -> Figure:
  """Draws the cosine between two exits' gradients over training.

  Averaged over the shared layers that were measured; a line a pair of exits.
  """
  figure, (ax,) = style.panels(
    1,
    "Cosine between the exits' gradients in the layers they share",
    height=2.9,
  )
  pairs = sorted({(row['exit_a'], row['exit_b']) for row in rows})
  for place, pair in enumerate(pairs):
    here = [row for row in rows if (row['exit_a'], row['exit_b']) == pair]
    steps = sorted({row['step'] for row in here})
    means = [
      np.mean([row['cosine'] for row in here if row['step'] == step])
      for step in steps
    ]
    few = len(pairs) <= _MANY_LINES
    ax.plot(
      steps,
      means,
      marker='o',
      ms=3.5,
      color=style.CYCLE[place % len(style.CYCLE)] if few else style.MUTED,
      label=f'exits {pair[0]} and {pair[1]}' if few else None,
    )
  ax.axhline(0, color='black', lw=1)
  ax.set_xlabel('step')
  ax.set_ylabel('cosine')
  style.legend(figure, [ax])
  return figure


def _by_shape(
  rows: Rows, compute: str
) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
  """Returns rows by (compute, width, depth, exits, kind), each by layer."""
  shapes: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
  for row in sorted(rows, key=lambda row: row['layer']):
    keys = (compute, 'width', 'depth', 'exits')
    shape = (*(row[key] for key in keys), row.get('exit_kind', ''))
    shapes.setdefault(shape, []).append(row)
  return dict(sorted(shapes.items()))


def _shape_axes(
  ax: mpl_axes.Axes, shape: tuple[Any, ...], compute: str
) -> None:
  _, width, depth, exits, kind = shape
  title = f'{width} wide, {depth} deep, G = {exits}'
  kind = f', {kind}' if kind else ''
  ax.set_title(f'{compute}{kind}\n{title}')
  style.layer_axis(ax, depth)
