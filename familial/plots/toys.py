"""The figures of the toys, as PNG: loss by depth, exponents and what moves them."""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from familial.core import storage
from familial.core import text
from familial.plots import law_parts as parts
from familial.plots import style

Figure = mpl_figure.Figure
Curves = Sequence[storage.Row]
_DPI = 150
_COLOURS = dict(zip(('independent', 'tied'), style.CYCLE, strict=False))
_NAMES = {'independent': 'independent layers', 'tied': 'tied layers'}
_BEND = 1.0  # of a curve beyond which its exponent is not shown
_LINE = 0.1  # of a number in a panel, of its height
_EXPECTED = (1.0, 3.0)  # of ensemble averaging and of smooth dynamics


def draw(found: storage.Row, folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the figures of a summary to FOLDER/figures; returns their paths.

  `toys_loss`: of each study and kind of teacher, test loss by depth; `toys_steps`:
  its exponent along training; `toys_temperature`: the exponent by temperature,
  where a study has several.
  """
  curves = found['curves']
  figures = {'loss': losses(curves), 'steps': evolution(curves)}
  warm = [curve for curve in curves if curve['temperature'] is not None]
  if len({curve['temperature'] for curve in warm}) > 1:
    figures['temperature'] = temperatures(warm)
  folder = folder / 'figures'
  with storage.writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  paths = []
  for name, figure in figures.items():
    paths.append(folder / f'toys_{name}.png')
    with storage.writing(paths[-1]):
      figure.savefig(paths[-1], dpi=_DPI)
  return paths


@style.drawn
def losses(curves: Curves) -> Figure:
  """Test loss against depth: every teacher, the fitted line, its exponent."""
  groups = _groups(curves)
  figure, axes = style.panels(len(groups), 'Test loss by depth of the students')
  for ax, ((study, kind), group) in zip(axes, groups.items(), strict=True):
    shades = style.budget_colours(curve['temperature'] or 1 for curve in group)
    named = [
      curve for curve in group[:: max(1, len(group) - 1)] if not bent(curve)
    ]
    for curve in group:
      loss_TxL = np.array(curve['loss'][-1], np.float64)
      cold = curve['temperature']
      colour = _COLOURS[kind] if cold is None else shades[cold]
      name = '' if cold is None else f'T = {cold:g}'
      x = np.array(curve['depths'])
      for number, loss_L in enumerate(loss_TxL):
        ax.plot(
          x,
          loss_L,
          'o',
          color=colour,
          alpha=0.6,
          label=name if not number else '',
        )
      straight = not bent(curve)
      _draw_line(ax, x, loss_TxL, colour if straight else style.MUTED, straight)
      if curve in named:
        ax.text(
          0.03,
          0.03 + _LINE * named.index(curve),
          _estimate(curve['exponent']),
          transform=ax.transAxes,
          color=colour,
          fontsize=8.5,
        )
    ax.set_title(_title(study, kind), fontsize='small')
    ax.set_xlabel('layers l')
    if len(_all(group)):
      parts.axis(ax.yaxis, _all(group), text.number)
      _room(ax, _all(group), _LINE * len(named) + 0.04)
    _depths(ax, group[0]['depths'])
  style.label_y(axes, 'test loss')
  return parts.finish(
    figure,
    axes,
    'A point is a teacher with its student. Numbers: minus the slope of the line, '
    'the mean over teachers and its 95 % interval. Dashed, without a number: no power '
    'law, for it bends by more than 1 beyond doubt or rises with depth. Losses: KL in '
    'nats where there are temperatures T, else the mean squared error of the normed '
    'last state',
  )


@style.drawn
def temperatures(curves: Curves) -> Figure:
  """Depth exponent against temperature, with intervals over teachers."""
  studies = sorted({curve['study'] for curve in curves})
  figure, axes = style.panels(len(studies), 'Depth exponent by temperature')
  for ax, study in zip(axes, studies, strict=True):
    mine = [curve for curve in curves if curve['study'] == study]
    for kind, colour in _COLOURS.items():
      group = [curve for curve in mine if curve['teacher'] == kind]
      x = [curve['temperature'] for curve in group]
      _with_intervals(
        ax, x, [curve['exponent'] for curve in group], kind, colour
      )
    ax.set_title(study.replace('_', ' '))
    ax.set_xlabel('temperature T')
    parts.axis(ax.xaxis, [curve['temperature'] for curve in mine], text.trimmed)
    _expected(ax)
  _same_height(axes)
  style.label_y(axes, 'exponent a_l')
  return parts.finish(figure, axes, _REGIMES)


@style.drawn
def evolution(curves: Curves) -> Figure:
  """Depth exponent along training, of each study and kind of teacher."""
  groups = _groups(curves)
  figure, axes = style.panels(len(groups), 'Depth exponent along training')
  for ax, ((study, kind), group) in zip(axes, groups.items(), strict=True):
    shades = style.budget_colours(curve['temperature'] or 1 for curve in group)
    for curve in group:
      cold = curve['temperature']
      colour = _COLOURS[kind] if cold is None else shades[cold]
      name = '' if cold is None else f'T = {cold:g}'
      rows = curve['evolution']
      x = [row['steps'] for row in rows]
      _with_intervals(ax, x, rows, name, colour)
    ax.set_title(_title(study, kind), fontsize='small')
    ax.set_xlabel('steps')
    parts.axis(ax.xaxis, [row['steps'] for row in group[0]['evolution']])
    _expected(ax)
  _same_height(axes)
  style.label_y(axes, 'exponent a_l')
  note = ' Rates fall to their end: an earlier point is no shorter training.'
  return parts.finish(figure, axes, _REGIMES + note)


_REGIMES = (
  'Bars: 95 % intervals over teachers. Dotted: 1, of ensemble averaging, and 3, of '
  'smooth dynamics.'
)


def bent(curve: Mapping[str, Any]) -> bool:
  """Returns whether a curve is no power law, so that its exponent says little.

  It bends by more than 1 (the second derivative of log loss in log depth) and the
  interval of that leaves out 0, or its deeper half rises.
  """
  curvature, deep = curve['curvature'], curve['deep']['value']
  value, lo, hi = (curvature[key] for key in ('value', 'lo', 'hi'))
  sure = None not in (value, lo, hi) and (lo > 0 or hi < 0)
  return (sure and abs(value) > _BEND) or (deep is not None and deep < 0)


def _draw_line(
  ax: mpl_axes.Axes,
  x: np.ndarray,
  loss_TxL: np.ndarray,
  colour: Any,
  straight: bool,
) -> None:
  """Draws the line of least squares through the geometric mean over teachers."""
  loss_TxL = loss_TxL[(loss_TxL > 0).all(axis=1)]  # NaN is not.
  if len(loss_TxL):
    slope, level = np.polyfit(np.log(x), np.log(loss_TxL).mean(axis=0), 1)
    ax.plot(
      x,
      np.exp(level) * x**slope,
      color=colour,
      linestyle='-' if straight else '--',
    )


def _same_height(axes: Sequence[mpl_axes.Axes]) -> None:
  """Gives panels one range of y: what lies side by side is compared."""
  ends = [ax.get_ylim() for ax in axes]
  for ax in axes:
    ax.set_ylim(min(low for low, _ in ends), max(high for _, high in ends))


def _groups(curves: Curves) -> dict[tuple[str, str], list[storage.Row]]:
  """Returns the curves of a panel: of one study and kind of teacher."""
  groups: dict[tuple[str, str], list[storage.Row]] = {}
  for curve in curves:
    groups.setdefault((curve['study'], curve['teacher']), []).append(curve)
  return groups


def _with_intervals(
  ax: mpl_axes.Axes,
  x: Sequence[float],
  rows: Sequence[storage.Row],
  name: str,
  colour: str,
) -> None:
  """Draws estimates, with a bar where there is an interval."""
  value, lo, hi = (
    np.array([row[key] for row in rows], np.float64)
    for key in ('value', 'lo', 'hi')
  )
  ax.errorbar(
    x,
    value,
    yerr=np.nan_to_num([value - lo, hi - value]),
    color=colour,
    marker='o',
    # Between two points alone a line says more than is known.
    linestyle='-' if len(x) > 2 else '',
    capsize=2,
    elinewidth=0.8,
    label=_NAMES.get(name, name),
  )


def _expected(ax: mpl_axes.Axes) -> None:
  for exponent in _EXPECTED:
    ax.axhline(exponent, color=style.MUTED, linestyle=':', linewidth=1)


def _depths(ax: mpl_axes.Axes, depths: Sequence[int]) -> None:
  style.log_axis(ax.xaxis, depths)
  ax.xaxis.set_major_locator(ticker.FixedLocator(depths))


def _room(ax: mpl_axes.Axes, values: np.ndarray, below: float) -> None:
  """Leaves a share of a panel's height free below the values, and some above."""
  low, high = np.log(values.min()), np.log(values.max())
  reach = (high - low) / (0.94 - below)
  ax.set_ylim(np.exp(low - below * reach), np.exp(high + 0.06 * reach))


def _all(group: Curves) -> np.ndarray:
  values = np.concatenate([np.ravel(curve['loss'][-1]) for curve in group])
  values = values.astype(np.float64)
  return values[np.isfinite(values) & (values > 0)]


def _title(study: str, kind: str) -> str:
  return f'{study.replace("_", " ")}, {kind}'


def _estimate(row: storage.Row) -> str:
  return text.estimate(row['value'], row['lo'], row['hi'])
