"""Figures of loss and compute: IsoFLOP curves, frontier, optimal N and D.

Symbols as in the literature: N parameters, D tokens, G exits, C FLOPs.
"""

from collections.abc import Sequence
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import colors
from matplotlib import figure as mpl_figure
import numpy as np

from familial.core import text
from familial.laws import inference
from familial.laws import levenberg_marquardt
from familial.plots import law_families as families
from familial.plots import law_parts as parts
from familial.plots import style

Figure = mpl_figure.Figure
_RANGE = 3.0  # how far past the sampled sizes an optimum is still drawn


@style.drawn
def isoflop(
  found: inference.Result, drawn: Sequence[families.Family]
) -> Figure:
  """Loss against N, a colour a budget, a panel a granularity."""
  figure, axes = style.panels(
    len(drawn),
    parts.heading(found, 'IsoFLOP curves'),
    height=4.2 if len(drawn) == 1 else 3.2,
  )
  # What is one budget to the reader has one colour, whatever its G.
  shades = style.budget_colours({b.name for f in drawn for b in f.budgets})
  for ax, family in zip(axes, drawn, strict=True):
    sizes = [
      _isoflop_curve(ax, found, family, i, shades[budget.name])
      for i, budget in enumerate(family.budgets)
    ]
    parts.axis(ax.xaxis, np.concatenate(sizes))
    ax.set_xlabel('parameters N')
    if len(drawn) > 1:
      ax.set_title(family.label)
  low, high = zip(*(ax.get_ylim() for ax in axes), strict=True)
  for ax in axes:
    ax.set_ylim(min(low), max(high))
  _mark(axes[-1], [], [], '*', style.MUTED, "law's optimum")
  if any(b.minimum for f in drawn for b in f.budgets):
    _mark(axes[-1], [], [], 'D', style.MUTED, "parabola's minimum")
  style.label_y(axes, 'loss, nats per token')
  most = max(len(b.rows) for family in drawn for b in family.budgets)
  return parts.finish(
    figure,
    axes,
    ''
    if 'budget' in found.table.columns
    else f'Runs whose C is within a factor {families.NEAR:g}, at their mean C; others '
    'are left out',
    "A parabola's minimum is biased (arXiv 2603.22339); it is shown where it lies "
    'inside the runs',
    parts.intervals(found),
    parts.thinned(most, ' of a budget'),
  )


@style.drawn
def loss_frontier(
  found: inference.Result, drawn: Sequence[families.Family]
) -> Figure:
  """Loss against compute: the runs, and the law's best at each C."""
  figure, (ax,) = style.panels(
    1, parts.heading(found, 'Loss against compute'), height=4.2
  )
  columns, cost = found.table.columns, found.table.cost
  assert cost is not None
  seen = [columns['loss'].min(), columns['loss'].max()]
  for family in drawn:
    shade = _shade(family, drawn)
    rows = parts.some(family.rows)
    if len(drawn) == 1 and np.ptp(columns['N']) > 0:
      dots = ax.scatter(
        cost[rows], columns['loss'][rows], s=16, c=columns['N'][rows],
        norm=colors.LogNorm(), cmap='viridis', linewidths=0, label='run',
      )  # fmt: skip
      bar = figure.colorbar(dots, ax=ax, pad=0.01, aspect=30)
      style.log_axis(bar.ax.yaxis, columns['N'][rows], pad=0.0)
      bar.ax.grid(visible=False)
      bar.set_label('parameters N')
    else:
      ax.scatter(
        cost[rows], columns['loss'][rows], s=16, color=shade, alpha=0.6,
        marker=style.marker(family.exits), linewidths=0,
      )  # fmt: skip
    line = family.along(family.optimum.loss, found.bootstrap.level)
    name = (
      f'{family.label}: best loss' if len(drawn) > 1 else 'best loss by law'
    )
    _band(ax, family.grid, line, shade, cost.max(), name, len(drawn) > 1)
    seen += [*_seen(line, 1.5)]
  _extrapolation(ax, cost.max())
  parts.axis(ax.xaxis, drawn[0].grid, parts.compute)
  parts.axis(ax.yaxis, seen, lambda x: f'{x:g}')
  ax.set_xlabel('training FLOPs C')
  ax.set_ylabel('loss, nats per token')
  most = max(len(family.rows) for family in drawn)
  return parts.finish(
    figure,
    [ax],
    'Points: runs. ' + parts.intervals(found),
    parts.thinned(most),
  )


@style.drawn
def optimum(
  found: inference.Result, drawn: Sequence[families.Family]
) -> Figure:
  """Compute-optimal N, D and D / N against C, with parabolas' minima."""
  figure, axes = style.panels(
    3, parts.heading(found, 'Compute-optimal N and D'), height=3.4
  )
  cost = found.table.cost
  assert cost is not None
  seen: list[list[float]] = [[], [], []]
  for family in drawn:
    shade = _shade(family, drawn)
    grid, best = family.grid, family.optimum
    share = found.bootstrap.level
    last = int(np.searchsorted(grid, cost.max() * (1 - 1e-9)))
    a, low, high = (x[last] for x in family.along(best.exponent, share))
    name = f'{family.label}: a = ' if len(drawn) > 1 else 'law: a = '
    name += text.estimate(a, _known(low), _known(high))
    lines = [
      family.along(values, share)
      for values in (best.params, best.tokens, best.tokens / best.params)
    ]
    minima = [
      (b.cost, b.minimum.n_opt) for b in family.budgets if b.minimum is not None
    ]
    x, n = np.array(minima).reshape(-1, 2).T
    d = x / family.cost(n)
    for ax, line, points, values in zip(
      axes, lines, (n, d, d / n), seen, strict=True
    ):
      _band(ax, grid, line, shade, cost.max(), name, len(drawn) > 1)
      if len(points):
        _mark(ax, x, points, 'D', shade, "parabola's minimum")
      values += [*points, *_seen(line, 10)]
  for ax, values, label in zip(
    axes, seen, ('optimal parameters N', 'optimal tokens D',
    'tokens per parameter D / N'), strict=True
  ):  # fmt: skip
    _extrapolation(ax, cost.max())
    parts.axis(ax.xaxis, drawn[0].grid, parts.compute)
    parts.axis(ax.yaxis, values)
    ax.set_xlabel('training FLOPs C')
    ax.set_ylabel(label)
  return parts.finish(
    figure,
    axes,
    'a: exponent of the optimal N in C, at the largest run',
    parts.intervals(found),
  )


def _isoflop_curve(
  ax: mpl_axes.Axes,
  found: inference.Result,
  family: families.Family,
  i: int,
  shade: Any,
) -> np.ndarray:
  """The runs of a budget, the law through them, its optimum, the parabola's.

  Returns the sizes along which the law is drawn.
  """
  budget, share = family.budgets[i], found.bootstrap.level
  table, rows = found.table.columns, parts.some(budget.rows)
  sizes = table['N'][budget.rows]
  best, loss = family.optimum.params[:, i], family.optimum.loss[0, i]
  low, high = sizes.min(), sizes.max()
  shown = low / _RANGE < best[0] < high * _RANGE  # NaN is not
  if shown:
    low, high = min(low, best[0] / 1.2), max(high, best[0] * 1.2)
  along = np.geomspace(low, high, 60)
  columns = family.columns(along, budget.cost)
  band = parts.ends(
    np.exp(
      levenberg_marquardt.predict(found.fit.form, columns, parts.theta(found))
    ),
    share,
  )
  ax.fill_between(along, *band, color=shade, alpha=0.2, lw=0)
  ax.plot(
    along, found.predict(columns), color=shade, lw=1.3,
    label=f'C = {text.scientific(budget.name, 2)}',
  )  # fmt: skip
  ax.scatter(table['N'][rows], table['loss'][rows], s=14, color=shade, lw=0)
  if shown:
    ax.plot(parts.ends(best[1:], share), [loss, loss], color=shade, lw=2.6)
    _mark(ax, [best[0]], [loss], '*', shade)
  if budget.minimum is not None:
    _mark(ax, [budget.minimum.n_opt], [budget.minimum.loss], 'D', shade)
  return along


def _mark(
  ax: mpl_axes.Axes, x: Any, y: Any, marker: str, shade: Any, label: str = ''
) -> None:
  """A star, filled, or a diamond, hollow."""
  star = marker == '*'
  ax.plot(
    x, y, marker=marker, ls='none', ms=11 if star else 5.5, zorder=5 - star,
    markerfacecolor=shade if star else 'white', label=label or None,
    markeredgecolor='white' if star else shade,
    markeredgewidth=0.7 if star else 1.3,
  )  # fmt: skip


def _band(
  ax: mpl_axes.Axes,
  x: np.ndarray,
  line: tuple[np.ndarray, np.ndarray, np.ndarray],
  shade: Any,
  last: float,
  label: str,
  crowded: bool,
) -> None:
  """A curve with its band, dashed beyond the last run."""
  middle, low, high = line
  ax.fill_between(
    x, low, high, color=shade, alpha=0.06 if crowded else 0.2, lw=0
  )
  if crowded:
    for end in (low, high):
      ax.plot(x, end, color=shade, lw=0.6, alpha=0.7)
  split = int(np.searchsorted(x, last * (1 - 1e-9)))
  ax.plot(x[: split + 1], middle[: split + 1], color=shade, label=label)
  ax.plot(x[split:], middle[split:], color=shade, ls=(0, (4, 2)))


def _seen(
  line: tuple[np.ndarray, np.ndarray, np.ndarray], factor: float
) -> np.ndarray:
  """What an axis must hold: a band that spans all numbers may not flatten it."""
  middle = line[0][np.isfinite(line[0])]
  ends = np.concatenate(line[1:])
  ends = np.clip(
    ends[np.isfinite(ends)], middle.min() / factor, middle.max() * factor
  )
  return np.append(middle, ends)


def _extrapolation(ax: mpl_axes.Axes, last: float) -> None:
  ax.axvline(
    last, color=style.MUTED, lw=1, ls=':', label='largest run; dashed: beyond'
  )


def _shade(family: families.Family, drawn: Sequence[families.Family]) -> Any:
  return style.colour(family.exits) if len(drawn) > 1 else parts.POINT


def _known(value: float) -> float | None:
  return float(value) if np.isfinite(value) else None
