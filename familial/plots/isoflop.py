"""Figures of the law: IsoFLOP curves, slices, residuals, exits."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from familial.core import text
from familial.laws import frontier
from familial.laws import table as tables
from familial.plots import style
from familial.report import results as results_lib

Figure = mpl_figure.Figure
Predict = Callable[[Mapping[str, np.ndarray]], np.ndarray]
LOSS_NAMES = {
  'final': "last exit's loss",
  'mean': 'mean loss over exits',
  'exit': 'loss of each exit',
}


@dataclasses.dataclass(frozen=True)
class ExitCurves:
  """Losses along the layers of one shape at one budget.

  Attributes:
    by_g: (layers, losses) of the exits, by G.
    twins: (layer, loss) of dense models of an exit's exact shape.
  """

  budget: float
  width: int
  depth: int
  by_g: Mapping[int, tuple[Sequence[int], Sequence[float]]]
  twins: Sequence[tuple[int, float]] = ()


@style.drawn
def isoflop(
  runs: Sequence[results_lib.Run],
  minima: Mapping[tuple[float, int], frontier.Minimum],
  loss: str,
) -> Figure:
  """Draws loss against size by G, a panel a budget, with fitted minima.

  Args:
    runs: finished ones, of the grid and its repeats with other seeds.
    minima: by (budget, G).
    loss: `final` or `mean`.
  """
  budgets = sorted({budget for budget, _ in minima})
  figure, axes = style.panels(
    len(budgets), f'IsoFLOP curves: {LOSS_NAMES[loss]}'
  )
  for ax, budget in zip(axes, budgets, strict=True):
    here = [run for run in runs if run.budget == budget]
    for (at, g), low in minima.items():
      if at == budget:
        _isoflop_curve(
          ax, [run for run in here if run.exits == g], low, loss, g
        )
    style.log_axis(ax.xaxis, [run.params_full for run in here], pad=0.1)
    ax.set_xlabel('parameters N')
    ax.set_title(f'C = {text.scientific(budget)} FLOPs')
    _pad_y(ax)
  style.label_y(axes, 'loss, nats per token')
  style.legend(figure, axes)
  return figure


@style.drawn
def slices(
  points: tables.Table,
  predict: Predict,
  band: tuple[Predict, Predict] | None,
  title: str,
) -> Figure:
  """Draws loss against N, D and G with the law through the points.

  Each point is moved along the law to the panel's reference values of the other
  two columns, so its distance from the line is its own residual.

  Args:
    points: what the law was fitted to.
    predict: the law: columns to loss.
    band: the law at both ends of gamma's interval; None for none.
    title: of the figure.
  """
  columns = points.columns
  middle = {
    'N': float(np.exp(np.mean(np.log(columns['N'])))),
    'D': float(np.exp(np.mean(np.log(columns['D'])))),
    'G': float(columns['G'].min()),
  }
  ratio = columns['loss'] / predict(columns)
  figure, axes = style.panels(3, title, height=3.0)
  for ax, name in zip(axes, ('N', 'D', 'G'), strict=True):
    held = {
      key: columns[key] if key == name else np.full_like(columns[key], value)
      for key, value in middle.items()
    }
    moved = ratio * predict(held)
    x = columns[name]
    if name == 'G':  # side by side, so that no point hides another
      x = x * np.exp(np.linspace(-0.12, 0.12, len(x)))
    for g in np.unique(columns['G']):
      of_g = columns['G'] == g
      ax.scatter(
        x[of_g],
        moved[of_g],
        s=20,
        color=style.colour(g),
        marker=style.marker(g),
        alpha=0.8,
        linewidths=0,
        label=style.name_of(g),
      )
    along = np.geomspace(columns[name].min(), columns[name].max(), 100)
    line = {
      key: along if key == name else np.full_like(along, value)
      for key, value in middle.items()
    }
    ax.plot(along, predict(line), color='black', lw=1.4, label='fitted law')
    if band is not None and name == 'G':
      low, high = (end(line) for end in band)
      ax.fill_between(
        along, low, high, color='black', alpha=0.12, lw=0, label='interval of γ'
      )
    others = [
      f'{key} = {text.amount(value)}'
      for key, value in middle.items()
      if key != name
    ]
    ax.set_title(f'at {", ".join(others)}', fontweight='normal')
    if name == 'G':
      style.g_axis(ax, columns['G'])
    else:
      style.log_axis(ax.xaxis, columns[name])
      ax.set_xlabel('parameters N' if name == 'N' else 'tokens D')
  axes[0].set_ylabel('loss, nats per token')
  style.legend(figure, axes)
  return figure


@style.drawn
def exits(curves: Sequence[ExitCurves]) -> Figure:
  """Draws loss against the exit's layer by G, a panel a shape."""
  figure, axes = style.panels(len(curves), 'Loss at every exit', height=3.0)
  for ax, curve in zip(axes, curves, strict=True):
    for g, (layers, losses) in sorted(curve.by_g.items()):
      if g == 1:
        ax.axhline(losses[-1], color=style.colour(1), ls=':', lw=1)
      ax.plot(
        layers,
        losses,
        color=style.colour(g),
        marker=style.marker(g),
        label=style.name_of(g),
      )
    if curve.twins:
      layers, losses = zip(*sorted(curve.twins), strict=True)
      ax.scatter(
        layers,
        losses,
        marker='d',
        s=42,
        facecolors='white',
        edgecolors='black',
        linewidths=1.2,
        zorder=3,
        label='dense twin: the same shape and budget, alone',
      )
    style.layer_axis(ax, curve.depth)
    ax.set_title(
      f'C = {text.scientific(curve.budget)}\n'
      f'{curve.width} wide, {curve.depth} deep'
    )
  style.label_y(axes, 'loss, nats per token')
  style.legend(figure, axes)
  return figure


@style.drawn
def residuals(
  points: tables.Table,
  predict: Predict,
  noise: float | None,
  title: str,
) -> Figure:
  """Draws residuals of log loss against N, D and G, coloured by budget.

  And against the layer, where the table has several.

  Args:
    points: what the law was fitted to.
    predict: the law.
    noise: standard deviation of log loss between seeds, None if not measured.
    title: of the figure.
  """
  columns = points.columns
  left = 100 * np.log(columns['loss'] / predict(columns))
  shades = style.budget_colours(columns['budget'])
  labels = {'N': 'parameters N', 'D': 'tokens D', 'G': 'exits G'}
  if len(np.unique(columns['layer'])) > 1:
    labels['layer'] = "layer of the exit, or a dense model's depth"
  figure, axes = style.panels(len(labels), title)
  for ax, (name, label) in zip(axes, labels.items(), strict=True):
    if noise is not None:
      ax.axhspan(
        -100 * noise,
        100 * noise,
        color='#dddddd',
        lw=0,
        label='± noise between seeds',
        zorder=0,
      )
    ax.axhline(0, color='black', lw=1)
    x = columns[name]
    if name in ('G', 'layer'):
      x = x * np.exp(np.linspace(-0.12, 0.12, len(x)))
    dense = columns['G'] == 1
    for budget, shade in shades.items():
      here = columns['budget'] == budget
      ax.scatter(
        x[here & ~dense],
        left[here & ~dense],
        s=20,
        color=shade,
        linewidths=0,
        alpha=0.85,
        label=f'C = {text.scientific(budget)}',
      )
    ax.scatter(
      x[dense],
      left[dense],
      s=22,
      facecolors='white',
      edgecolors=[shades[budget] for budget in columns['budget'][dense]],
      linewidths=1.2,
      label='hollow: dense',
      zorder=3,
    )
    if name in ('G', 'layer'):
      style.g_axis(ax, columns[name])
    else:
      style.log_axis(ax.xaxis, columns[name])
    ax.set_xlabel(label)
  style.label_y(axes, 'residual of log loss, %')
  style.legend(figure, axes)
  return figure


def _isoflop_curve(
  ax: mpl_axes.Axes,
  runs: Sequence[results_lib.Run],
  low: frontier.Minimum,
  loss: str,
  g: int,
) -> None:
  shade = style.colour(g)
  grid = sorted(
    (run for run in runs if run.arm == 'grid'), key=lambda run: run.params_full
  )
  sizes = np.array([run.params_full for run in grid])
  ax.plot(
    sizes,
    [getattr(run, loss) for run in grid],
    color=shade,
    marker=style.marker(g),
    ls='none' if low.interior else ':',
    lw=1,
    label=style.name_of(g),
  )
  repeats = [run for run in runs if run.arm != 'grid']
  if repeats:
    ax.scatter(
      [run.params_full for run in repeats],
      [getattr(run, loss) for run in repeats],
      s=16,
      facecolors='none',
      edgecolors=shade,
      linewidths=0.8,
      alpha=0.7,
      label='other seeds',
    )
  if low.interior:
    along = np.geomspace(sizes.min(), sizes.max(), 100)
    ax.plot(along, low.curve(along), color=shade, lw=1.4)
    ax.plot(
      [low.n_opt],
      [low.loss],
      marker='*',
      ms=13,
      color=shade,
      ls='none',
      markeredgecolor='white',
      markeredgewidth=0.9,
      zorder=4,
      label='fitted minimum',
    )
  else:
    ax.plot(
      [low.n_opt],
      [low.loss],
      marker='o',
      ms=12,
      ls='none',
      markerfacecolor='none',
      markeredgecolor=shade,
      zorder=4,
      label='lowest run, no minimum inside',
    )


def _pad_y(ax: mpl_axes.Axes) -> None:
  ax.margins(y=0.12)
  ax.yaxis.set_major_locator(ticker.MaxNLocator(5))
