"""Figures of the exponent of G: its estimates and its profiles."""

from collections.abc import Mapping
from collections.abc import Sequence

from matplotlib import figure as mpl_figure
import numpy as np

from familial.core import text
from familial.plots import style
from familial.report import results as results_lib

Figure = mpl_figure.Figure
PUBLISHED = 0.033


@style.drawn
def forest(
  gammas: Sequence[results_lib.Gamma], names: Sequence[str], level: str
) -> Figure:
  """Draws gamma and its interval under every definition and form.

  Args:
    gammas: in the order of the rows, at least one.
    names: of the rows.
    level: of the intervals, in words.
  """
  figure, (ax,) = style.panels(
    1,
    'γ under every definition of the loss and every form',
    height=0.36 * len(gammas) + 0.8,
  )
  losses = list(dict.fromkeys(g.loss for g in gammas))
  colours = dict(zip(losses, style.CYCLE * 2, strict=False))
  rows = -np.arange(len(gammas), dtype=float)
  for y, g in zip(rows, gammas, strict=True):
    shade = colours[g.loss]
    if g.profile_lo is not None and g.profile_hi is not None:
      ax.plot(
        [g.profile_lo, g.profile_hi],
        [y, y],
        color=shade,
        lw=7,
        alpha=0.22,
        solid_capstyle='butt',
      )
    if g.lo is not None and g.hi is not None:
      ax.plot([g.lo, g.hi], [y, y], color=shade, lw=2)
    ax.plot(
      [g.gamma],
      [y],
      marker='o',
      ms=7,
      color=shade,
      markerfacecolor='white' if g.flags else shade,
      markeredgewidth=1.6,
    )
    ax.annotate(
      text.estimate(g.gamma, g.lo, g.hi),
      (1.01, y),
      xycoords=('axes fraction', 'data'),
      va='center',
      color='#333333',
    )
  ax.axvline(0, color='black', lw=1)
  ax.axvline(PUBLISHED, color=style.MUTED, lw=1.2, ls='--')
  ax.annotate(
    'published 0.033 (one summary of the paper)',
    (PUBLISHED, 1.0),
    xycoords=('data', 'axes fraction'),
    xytext=(4, 3),
    textcoords='offset points',
    color='#666666',
    fontsize=8.5,
  )
  ax.set_yticks(rows, names)
  ax.set_ylim(rows[-1] - 0.6, 0.6)
  ax.grid(axis='y', visible=False)
  ax.set_xlabel(
    f'γ, {level} interval: line over pairs or by bootstrap over runs,'
    ' band by profile; hollow: flagged'
  )
  return figure


@style.drawn
def profiles(
  curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
  cutoff: float,
) -> Figure:
  """Draws how much worse the best fit becomes as gamma is held elsewhere.

  Args:
    curves: by name, the values of gamma and the deviance at each.
    cutoff: of the deviance, at the ends of the interval.
  """
  figure, (ax,) = style.panels(1, 'Profile of γ', height=2.9)
  for (name, (values, deviance)), shade in zip(
    curves.items(), style.CYCLE * 2, strict=False
  ):
    ax.plot(values, deviance, color=shade, label=name)
  ax.axhline(cutoff, color=style.MUTED, lw=1.2, ls='--')
  ax.axvline(0, color='black', lw=1)
  ax.set_ylim(0, 4 * cutoff)
  ax.set_xlabel('γ, held; all other constants refitted')
  ax.set_ylabel('deviance')
  style.legend(figure, [ax])
  return figure
