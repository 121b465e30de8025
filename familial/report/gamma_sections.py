"""The page's sections on the exponent of G."""

from familial.core import text as text_lib
from familial.plots import gamma as gamma_lib
from familial.report import answer
from familial.report import html
from familial.report import results as results_lib

Results = results_lib.Results


def gamma(results: Results, gallery: html.Gallery) -> html.Section | None:
  """Returns gamma under every definition of the loss and every form."""
  found = results.gammas()
  shown = [*results.measured(), *found]
  if not shown:
    return None
  level = answer.level(results)
  clear = [
    g
    for g in shown
    if g.lo is not None and g.hi is not None and not g.lo <= 0 <= g.hi
  ]
  published = [
    g
    for g in shown
    if g.lo is not None
    and g.hi is not None
    and g.lo <= gamma_lib.PUBLISHED <= g.hi
  ]
  seen = (
    f'Intervals that exclude 0: {len(clear)} of {len(shown)}. That contain'
    f' {gamma_lib.PUBLISHED}, which one summary of the paper gives for the'
    f' mean over exits at far larger compute: {len(published)} of {len(shown)}.'
    " An interval by bootstrap is of the runs' scatter under its law; how far"
    ' the law itself is off is in none, so what was measured comes first.'
  )
  body = gallery.show(
    'gamma',
    gamma_lib.forest(
      shown,
      [
        f'{answer.LOSS_TITLES.get(g.loss, g.loss)} · {answer.name_of(g.form)}'
        for g in shown
      ],
      answer.percent(level),
    ),
    'Estimates of gamma with intervals: '
    + '; '.join(
      f'{g.loss} {answer.name_of(g.form)} {text_lib.estimate(g.gamma, g.lo, g.hi)}'
      for g in shown
    ),
    seen,
  )
  if not found:
    return html.Section('gamma', 'γ under every definition', body)
  body += html.table(
    [
      'Loss',
      'Form',
      'ΔAIC',
      'γ [interval]',
      'by profile',
      *(f'nats at G = {g}' for g in answer.SHOWN),
      'Flags',
    ],
    [_gamma_row(results, g) for g in found],
    f'γ with its {answer.percent(level)} intervals by bootstrap and by profile,'
    ' and what G exits add to the observed dense loss.',
    align='ll' + 'r' * (len(answer.SHOWN) + 3) + 'l',
  )
  return html.Section('gamma', 'γ under every definition', body)


def profile(results: Results, gallery: html.Gallery) -> html.Section | None:
  """Returns the profiles of gamma under the preferred forms."""
  curves, said = {}, []
  for loss in results_lib.LOSSES:
    form = results.preferred(loss)
    found = form and results.fits[loss, form].record.profile.get('gamma')
    if not found or not len(found.values):
      continue
    name = f'{answer.LOSS_TITLES[loss]}, {answer.name_of(str(form))}'
    curves[name] = (
      found.values.tolist(),
      found.deviance.tolist(),
    )
    text = f'{name}: {text_lib.interval(found.lo, found.hi)}'
    if found.p_value is not None:
      p = found.p_value
      small = 'p < 0.0001' if p < 1e-4 else f'p = {text_lib.number(p, 2)}'
      text += f', {small} for γ = 0'
    said.append((text, found.cutoff))
  if not curves:
    return None
  cutoff = max(cut for _, cut in said)
  return html.Section(
    'profile',
    'Profile of γ',
    gallery.show(
      'profile',
      gamma_lib.profiles(curves, cutoff),
      'Deviance of the refitted law against the value that gamma is held at',
      'The interval by profile is where the deviance stays below the dashed line. '
      + '; '.join(text for text, _ in said)
      + '.',
    ),
  )


def _gamma_row(results: Results, g: results_lib.Gamma) -> list[str]:
  costs = [answer.penalty(results, g, exits_) for exits_ in answer.SHOWN]
  scores = results.scores(g.loss)
  gap = scores.get(g.form)
  return [
    answer.LOSS_TITLES.get(g.loss, g.loss),
    answer.name_of(g.form),
    '–' if gap is None else text_lib.number(gap - min(scores.values()), 2),
    answer.estimate(g),
    '–'
    if g.profile_lo is None and g.profile_hi is None
    else text_lib.interval(g.profile_lo, g.profile_hi),
    *('–' if cost is None else text_lib.estimate(*cost) for cost in costs),
    '; '.join(g.flags) or 'none',
  ]
