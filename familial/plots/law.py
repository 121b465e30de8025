"""The figures of a fit, as PNG: what the law says and how far to trust it."""

from __future__ import annotations

from collections.abc import Mapping
import pathlib
import warnings

from matplotlib import axes as mpl_axes
from matplotlib import figure as mpl_figure
from matplotlib import ticker
import numpy as np

from familial.core import storage
from familial.core import text as text_lib
from familial.laws import fit_record
from familial.laws import inference
from familial.plots import law_compute
from familial.plots import law_depth
from familial.plots import law_families
from familial.plots import law_parts as parts
from familial.plots import style

Figure = mpl_figure.Figure
_DPI = 150
_CENTRE = 0.99  # share of the resamples that an axis of a pair plot holds
_PAIRS = 400  # resamples in a panel of a pair plot
_LARGE = 1e3  # a parameter that is read on a logarithmic axis
_BINS = 8  # of the medians along residuals


def draw(found: inference.Result, folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the figures as PNG; returns their paths.

  IsoFLOP curves, frontier and optima for forms of N and D, predicted against
  observed for others, loss over width and depth for forms of those; residuals,
  profiles and pairs for all. What a table or a form has nothing to show for is
  left out.
  """
  of_g = law_families.families(found)
  several = [family for family in of_g if len(family.budgets) > 1]
  known = [family for family in of_g if family.known]
  figures = {'residuals': residuals(found)}
  if several:
    figures['isoflop'] = law_compute.isoflop(found, several)
  if known:
    figures['frontier'] = law_compute.loss_frontier(found, known)
    figures['optimum'] = law_compute.optimum(found, known)
  if not of_g:
    figures['predicted'] = predicted(found)
  if {'width', 'depth'} <= set(found.fit.form.columns):
    figures['shapes'] = law_depth.shapes(
      found, found.table, parts.heading(found, 'Loss over width and depth')
    )
  if _free(found):
    figures['profiles'] = profile_curves(found)
  if len(_free(found)) > 1 and len(_cloud(found)) > 1:
    figures['pairs'] = pairs(found)
  return save(figures, folder)


def save(
  figures: Mapping[str, Figure], folder: pathlib.Path
) -> list[pathlib.Path]:
  """Writes figures as PNG under their names; returns their paths."""
  with storage.writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  paths = []
  for name, figure in figures.items():
    paths.append(folder / f'{name}.png')
    with warnings.catch_warnings():  # of a column's name that no font has
      warnings.filterwarnings('ignore', 'Glyph')
      with storage.writing(paths[-1]):
        figure.savefig(paths[-1], dpi=_DPI)
  return paths


@style.drawn
def residuals(found: inference.Result) -> Figure:
  """Log residuals against each column of the form, and the predicted loss."""
  columns, prediction = found.table.columns, found.predict(found.table.columns)
  left = 100 * np.log(columns['loss'] / prediction)
  x_of = {
    parts.label_of(name): columns[name]
    for name in found.fit.form.columns
    if np.ptp(columns[name]) > 0
  }
  x_of['predicted loss, nats per token'] = prediction
  figure, axes = style.panels(
    len(x_of), parts.heading(found, 'Residuals of log loss'), height=2.9
  )
  rows = parts.some(np.arange(found.table.rows))
  scale = 100 * found.fit.scale
  for ax, (label, x) in zip(axes, x_of.items(), strict=True):
    ax.axhspan(
      -scale, scale, color='#e2e2e2', lw=0, zorder=0,
      label=f'± robust scale, {text_lib.number(scale, 2)} %',
    )  # fmt: skip
    ax.axhline(0, color='black', lw=0.9)
    ax.scatter(
      x[rows], left[rows], s=11, color=parts.BAND, alpha=0.55, lw=0, label='row'
    )
    ax.plot(
      *_medians(x, left), color=parts.POINT, marker='o', ms=4,
      label='median of neighbours',
    )  # fmt: skip
    if label == parts.label_of('G'):
      style.g_axis(ax, x)
    else:
      plain = label.startswith('predicted')
      parts.axis(
        ax.xaxis, x, (lambda v: f'{v:g}') if plain else text_lib.amount
      )
    ax.set_xlabel(label)
  style.label_y(axes, 'log loss − log law, %')
  return parts.finish(
    figure,
    axes,
    'Robust scale: 1.48 times the median absolute residual, over the degrees of '
    'freedom',
    parts.thinned(found.table.rows),
  )


@style.drawn
def predicted(found: inference.Result) -> Figure:
  """The law's loss against the one observed."""
  figure, (ax,) = style.panels(
    1, parts.heading(found, 'Predicted against observed loss'), height=4.6
  )
  loss, law = found.table.columns['loss'], found.predict(found.table.columns)
  rows = parts.some(np.arange(found.table.rows))
  both = np.append(loss, law)
  ends = np.array([both.min(), both.max()])
  scale = found.fit.scale
  ax.fill_between(
    ends, ends * np.exp(-scale), ends * np.exp(scale), color='#e2e2e2', lw=0,
    label=f'± robust scale of log loss, {text_lib.number(100 * scale, 2)} %',
  )  # fmt: skip
  ax.plot(ends, ends, color='black', lw=0.9, label='equal')
  ax.scatter(
    loss[rows], law[rows], s=14, color=parts.BAND, alpha=0.6, lw=0, label='row'
  )
  figure.set_size_inches(6.4, 6.2)
  for axis in (ax.xaxis, ax.yaxis):
    parts.axis(axis, both, lambda v: f'{v:g}')
  ax.set_aspect('equal')
  ax.set_xlabel('observed loss, nats per token')
  ax.set_ylabel('predicted loss, nats per token')
  return parts.finish(figure, [ax], parts.thinned(found.table.rows))


@style.drawn
def profile_curves(found: inference.Result) -> Figure:
  """The deviance of each parameter, with its intervals."""
  drawn = [found.profiles[name] for name in _free(found)]
  figure, axes = style.panels(
    len(drawn), parts.heading(found, 'Profile of each parameter'), height=2.6
  )
  for ax, profile in zip(axes, drawn, strict=True):
    _profile(ax, found, profile)
  style.label_y(axes, 'deviance')
  return parts.finish(
    figure,
    axes,
    'Deviance: how much worse the best fit is with the parameter held there, in '
    f'squared standard errors; intervals at {parts.level(found)}, by bootstrap '
    f'over {found.bootstrap.resamples:,} resamples by {found.bootstrap.unit}. '
    "Above each: the profile's. An arrow: no end was found",
  )


@style.drawn
def pairs(found: inference.Result) -> Figure:
  """Every pair of coordinates over the resamples, with the optimum."""
  form = found.fit.form
  kept = np.flatnonzero(found.fit.free)
  cloud, count = _cloud(found), len(kept)
  labels = [
    f'{form.parameters[i].transform.prefix.replace("_", " ")}'
    f'{parts.symbol(form.names[i])}'
    for i in kept
  ]
  at = found.fit.theta[kept]
  side = max(1.15, min(2.2, style.WIDTH / count))
  figure = mpl_figure.Figure(
    figsize=(max(side * count, 7.0), side * count + 1.0), layout='constrained'
  )
  figure.suptitle(
    parts.heading(found, 'Resampled parameters, pair by pair'),
    x=0.008,
    ha='left',
  )
  grid = figure.subplots(count, count, squeeze=False, sharex='col')
  ranges = [_range(cloud[:, i], at[i]) for i in range(count)]
  ranks = np.argsort(np.argsort(cloud, axis=0), axis=0)
  some = np.linspace(0, len(cloud) - 1, min(len(cloud), _PAIRS)).astype(int)
  for i in range(count):
    for j in range(count):
      ax = grid[i, j]
      if j > i:
        r = float(np.corrcoef(ranks[:, i], ranks[:, j])[0, 1])
        _number(ax, r)
        continue
      ax.set_xlim(*ranges[j])
      ax.axvline(at[j], color=parts.POINT, lw=0.9, label='optimum')
      if i == j:
        ax.hist(cloud[:, i], 24, range=ranges[i], color=parts.BAND, alpha=0.55)
        ax.set_yticks([])
      else:
        ax.set_ylim(*ranges[i])
        ax.axhline(at[i], color=parts.POINT, lw=0.9)
        ax.scatter(
          cloud[some, j], cloud[some, i], s=5, color=parts.BAND, alpha=0.4,
          lw=0, label='resample',
        )  # fmt: skip
        ax.yaxis.set_major_locator(ticker.MaxNLocator(3))
      ax.xaxis.set_major_locator(ticker.MaxNLocator(3))
      ax.grid(visible=False)
      ax.tick_params(
        labelsize=7.5, labelleft=j == 0 and i > 0, labelbottom=i == count - 1
      )
      if i == count - 1:
        ax.set_xlabel(labels[j])
      if j == 0:
        ax.set_ylabel(labels[i])
  figure.align_ylabels(list(grid[:, 0]))
  lost = found.bootstrap.resamples - found.bootstrap.failed - len(cloud)
  return parts.finish(
    figure,
    [grid[1, 0]],
    'Above the diagonal: rank correlation. log: natural logarithm. Axes hold the '
    f'central {100 * _CENTRE:g} % of {len(cloud):,} resamples by '
    f'{found.bootstrap.unit}',
    f'{len(some):,} are drawn' if len(some) < len(cloud) else '',
    f'{lost:,} with a parameter of 0 (log −∞) are left out' if lost else '',
  )


def _free(found: inference.Result) -> list[str]:
  return [
    name
    for name, free in zip(found.fit.form.names, found.fit.free, strict=True)
    if free
  ]


def _cloud(found: inference.Result) -> np.ndarray:
  """Fitted coordinates of the resamples that have them all, [s, fitted]."""
  theta = found.bootstrap.theta(found.fit.form)[:, found.fit.free]
  return theta[np.isfinite(theta).all(1)]


def _medians(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[float]]:
  """Medians of y along x: at each value of few, else in bins of equal count."""
  values = np.unique(x)
  if len(values) <= _BINS:
    parts_ = [np.flatnonzero(x == value) for value in values]
  else:
    parts_ = np.array_split(np.argsort(x, kind='stable'), min(_BINS, len(x)))
  return (
    [float(np.median(x[part])) for part in parts_],
    [float(np.median(y[part])) for part in parts_],
  )


def _profile(
  ax: mpl_axes.Axes, found: inference.Result, profile: fit_record.Profile
) -> None:
  """One curve, with the profile's interval at the cut-off and the bootstrap's."""
  name, cutoff = profile.name, profile.cutoff
  at, spread = found.fit.params[name], found.bootstrap.intervals[name]
  parameter = found.fit.form.parameters[found.fit.form.names.index(name)]
  logged = parameter.transform.prefix == 'log_'
  usable = np.isfinite(profile.values)
  x = profile.values[usable]
  deviance = np.minimum(profile.deviance[usable], 1e3 * cutoff)
  ends = [e for e in (spread.lo, spread.hi) if e is not None and np.isfinite(e)]
  seen = np.array([*x[deviance <= 4.5 * cutoff], *ends])
  if np.ptp(seen) == 0:
    seen = x
  # Towards 0 a logarithm has no end: there the axis is linear.
  logged = parameter.transform.prefix == 'log_'
  logged &= profile.lo is not None or seen.max() > _LARGE
  if logged:
    seen = seen[(1e-100 < seen) & (seen < 1e100)]
  ax.plot(x, deviance, color=parts.BAND, marker='.', ms=4, label='deviance')
  ax.axhline(cutoff, color=style.MUTED, lw=1, ls='--', label='cut-off')
  ax.axvline(at, color='black', lw=0.9, label='estimate')
  low, high = seen.min(), seen.max()
  if logged and high > low:
    parts.axis(ax.xaxis, seen, _short)
  elif high > low:
    ax.set_xlim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    ax.xaxis.set_major_locator(ticker.MaxNLocator(4))
  _bar(
    ax, profile.lo, profile.hi, cutoff, parts.BAND, 'interval by the profile'
  )
  if len(ends) == 2:
    low_end, high_end = ends
    _bar(
      ax, low_end, high_end, cutoff / 2, parts.POINT,
      'interval by the bootstrap',
    )  # fmt: skip
  ax.set_ylim(0, 4 * cutoff)
  if profile.null is not None:
    ax.axvline(
      profile.null, color=style.MUTED, lw=1.2, ls=':', label='no effect'
    )
  if profile.lo is None or profile.hi is None or high > _LARGE:
    least = (
      '0' if parameter.transform.prefix == 'log_' else f'{text_lib.MINUS}∞'
    )
    text = (
      f'{_short(at)} [{least if profile.lo is None else _short(profile.lo)}, '
      f'{"∞" if profile.hi is None else _short(profile.hi)}]'
    )
  else:
    text = text_lib.estimate(at, profile.lo, profile.hi)
  ax.set_title(f'{parts.symbol(name)} = {text}', fontsize=8.5)


def _bar(
  ax: mpl_axes.Axes,
  low: float | None,
  high: float | None,
  y: float,
  shade: str,
  label: str,
) -> None:
  """A bar from low to high; to the panel's edge, with an arrow, where None."""
  edges = ax.get_xlim()
  x = [
    edges[0] if low is None else low,
    edges[1] if high is None else high,
  ]
  ax.plot(
    x, [y, y], color=shade, lw=4, solid_capstyle='butt', alpha=0.85, label=label
  )
  for end, edge, mark in ((low, edges[0], '<'), (high, edges[1], '>')):
    if end is None:
      ax.plot(edge, y, marker=mark, ms=9, color=shade, clip_on=False)


def _range(values: np.ndarray, at: float) -> tuple[float, float]:
  """An axis that holds the centre of the values and the optimum."""
  low, high = map(float, parts.ends(values, _CENTRE))
  if np.isfinite(at):
    low, high = min(low, at), max(high, at)
  room = 0.06 * (high - low) or 1e-9 * max(abs(low), 1.0)
  return float(low - room), float(high + room)


def _number(ax: mpl_axes.Axes, r: float) -> None:
  """A correlation in an empty panel, bolder where it is strong."""
  ax.axis('off')
  text = f'{r:+.2f}'.replace('-', text_lib.MINUS)
  strong = abs(r) > 0.9
  ax.text(
    0.5, 0.5, text, ha='center', va='center', transform=ax.transAxes,
    fontsize=10, fontweight='bold' if strong else 'normal',
    color='black' if strong else '#777777',
  )  # fmt: skip


def _short(value: float) -> str:
  """A parameter of any size."""
  plain = value == 0 or 1e-3 <= abs(value) < 1e4
  return text_lib.trimmed(value) if plain else parts.compute(value)
