"""The page's sections on the law: IsoFLOP, exits, slices, residuals."""

from collections.abc import Mapping

import numpy as np

from familial.core import text as text_lib
from familial.laws import definitions
from familial.laws import fit_record
from familial.laws import frontier
from familial.plots import isoflop as isoflop_lib
from familial.report import answer
from familial.report import html
from familial.report import results as results_lib

Results = results_lib.Results
_MOST_SHAPES = 3  # panels of the exits' figure


def isoflop(results: Results, gallery: html.Gallery) -> html.Section | None:
  """Returns the IsoFLOP curves of the last exit's and the mean loss."""
  if not results.budgets:
    return None
  runs = results.arm(*definitions.GRID)
  body = ''
  for loss in ('final', 'mean'):
    minima = results.minima(loss)
    body += gallery.show(
      f'isoflop_{loss}',
      isoflop_lib.isoflop(runs, minima, loss),
      f'IsoFLOP curves of {isoflop_lib.LOSS_NAMES[loss]} against parameters, a'
      ' panel for each budget, a colour for each G',
      _isoflop_seen(results, loss, minima),
    )
  minima = results.minima('final')
  body += html.folded(
    'Table of the minima (last exit)',
    html.table(
      ['C, FLOPs', 'G', 'best N', 'loss', 'fitted'],
      [
        [
          text_lib.scientific(budget),
          str(g),
          text_lib.amount(low.n_opt),
          text_lib.number(low.loss),
          'yes' if low.interior else low.flag,
        ]
        for (budget, g), low in minima.items()
      ],
      'Minimum of a parabola in log N of log loss; where none is fitted, the'
      ' best size that was run.',
      align='rrrrl',
    ),
  )
  return html.Section('isoflop', 'IsoFLOP curves', body)


def law(results: Results, gallery: html.Gallery) -> html.Section | None:
  """Returns loss against N, D and G with the law through, and residuals."""
  parts = []
  for loss in results_lib.LOSSES:
    form = results.preferred(loss)
    if form is None:
      continue
    part = _constants(results, loss, form)
    part += _slices(results, gallery, loss, form)
    part += _residuals(results, gallery, loss, form)
    parts.append((loss, part))
  if not parts:
    return None
  body = html.paragraph(
    'Each point is a run, moved along the law to the values of the other two'
    " variables that the panel's title gives, so that its distance from the"
    ' line is its own residual.'
  )
  body += parts[0][1] + ''.join(
    html.folded(f'The same for {answer.LOSS_NAMES[loss]}', part)
    for loss, part in parts[1:]
  )
  return html.Section('law', 'The law through the data', body)


def exits(results: Results, gallery: html.Gallery) -> html.Section | None:
  """Returns the loss at every exit of one shape a budget."""
  curves = exit_curves(results)
  if not curves:
    return None
  curve = curves[-1]
  top = max(curve.by_g)
  layers, losses = curve.by_g[top]
  seen = (
    f'At the largest budget shown, G = {top}: the first exit (layer'
    f' {layers[0]} of {curve.depth}) is at {text_lib.number(losses[0])} nats, the'
    f' last at {text_lib.number(losses[-1])}'
  )
  if 1 in curve.by_g and top > 1:
    dense = curve.by_g[1][1][-1]
    seen += (
      f', {text_lib.percent(losses[-1] / dense - 1)} from the dense model of the'
      f' same shape ({text_lib.number(dense)})'
    )
  seen += '.'
  if not any(c.twins for c in curves):
    seen += ' No dense twins of the exits were trained for these shapes.'
  return html.Section(
    'exits',
    'Loss at every exit',
    gallery.show(
      'exits',
      isoflop_lib.exits(curves),
      'Loss of each exit against its layer, a panel for each shape, a colour'
      ' for each G',
      seen,
    ),
  )


def exit_curves(results: Results) -> list[isoflop_lib.ExitCurves]:
  """Returns the exits' losses of one shape for each of up to three budgets.

  Budgets with dense twins come first. Of a budget's shapes, one with dense
  twins; then one with every G; then the one of the lowest last loss.
  """
  twins: dict[tuple[float, int, int], dict[int, float]] = {}
  for row in (results.summary.get('twins') or {}).get('rows') or []:
    key = (row['budget'], row['width'], row['depth'])
    twins.setdefault(key, {})[row['layer']] = row['loss_twin']
  chosen = []
  for budget in results.budgets:
    shapes: dict[tuple[int, int], dict[int, results_lib.Run]] = {}
    for run in results.arm('grid'):
      if run.budget == budget:
        shapes.setdefault((run.width, run.depth), {})[run.exits] = run
    (width, depth), by_g = min(
      shapes.items(),
      key=lambda item: (
        (budget, *item[0]) not in twins,
        -len(item[1]),
        min(run.final for run in item[1].values()),
      ),
    )
    chosen.append(
      isoflop_lib.ExitCurves(
        budget,
        width,
        depth,
        {
          g: (
            [row['layer'] for row in run.rows],
            [row['loss'] for row in run.rows],
          )
          for g, run in by_g.items()
        },
        tuple(twins.get((budget, width, depth), {}).items()),
      )
    )
  twinned = _evenly([c for c in chosen if c.twins], _MOST_SHAPES)
  others = [c for c in chosen if not c.twins]
  shown = twinned + _evenly(others, _MOST_SHAPES - len(twinned))
  return sorted(shown, key=lambda curve: curve.budget)


def _evenly(
  curves: list[isoflop_lib.ExitCurves], most: int
) -> list[isoflop_lib.ExitCurves]:
  """Returns at most so many, from the first to the last."""
  picks = np.linspace(0, len(curves) - 1, min(len(curves), most))
  return [curves[round(pick)] for pick in picks]


def _isoflop_seen(
  results: Results,
  loss: str,
  minima: Mapping[tuple[float, int], frontier.Minimum],
) -> str:
  interior = {key: low for key, low in minima.items() if low.interior}
  text = (
    f'{len(interior)} of {text_lib.count(len(minima), "minimum", "minima")} lie'
    ' inside the sampled sizes (★).'
  )
  if len(interior) < len(minima):
    text += (
      ' Elsewhere the best size that was run is circled, and no curve is fitted'
      ' through it.'
    )
  budgets = sorted({budget for budget, _ in interior})
  if not budgets:
    return text
  top = budgets[-1]
  here = {g: low for (budget, g), low in interior.items() if budget == top}
  sizes = [
    f'{text_lib.amount(low.n_opt)} at G = {g}' for g, low in here.items()
  ]
  text += f' At C = {text_lib.scientific(top)} the best size is {text_lib.listing(sizes)}'
  ratios = [
    f'{answer.over(row)} at G = {row["exits"]}'
    for row in results.summary.get('minima') or []
    if (row['loss'], row['budget']) == (loss, top)
  ]
  if ratios:
    text += (
      f', and the loss there is above the dense minimum by'
      f' {text_lib.listing(ratios)} (intervals of the noise between seeds alone:'
      ' a parabola through a few sizes amplifies it)'
    )
  return f'{text}.'


def _constants(results: Results, loss: str, form: str) -> str:
  """Returns the law and its constants as a table of one row."""
  law = results.fits[loss, form]
  known = law.record.identified
  return html.table(
    [
      f'{html.GREEK.get(name, name)}'
      f'{"" if known.get(name, True) else " (not identified)"}'
      for name in law.params
    ],
    [
      [
        text_lib.estimate(value, *results_lib.interval(law, name))
        for name, value in law.params.items()
      ]
    ],
    f'{answer.LOSS_TITLES[loss]}: {html.formula(law.form.equation)}',
    align='l' * len(law.params),
  )


def _slices(
  results: Results, gallery: html.Gallery, loss: str, form: str
) -> str:
  law, table = results.fits[loss, form], results.table(loss, form)
  low, high = results_lib.interval(law, 'gamma')
  band = None
  if low is not None and high is not None:
    band = (_at_gamma(law, low), _at_gamma(law, high))
  left = np.log(table.columns['loss'] / law.predict(table.columns))
  return gallery.show(
    f'law_{loss}',
    isoflop_lib.slices(
      table,
      law.predict,
      band,
      f'{answer.LOSS_TITLES[loss]}: loss against N, D and G'
      f' ({answer.name_of(form)} form)',
    ),
    f'Loss against N, D and G with the {answer.name_of(form)} law through it',
    f'{text_lib.count(table.rows, "point")}; half of them lie within'
    f' {text_lib.number(100 * float(np.median(np.abs(left))), 2)} % of the law,'
    f' the farthest {text_lib.number(100 * float(np.abs(left).max()), 2)} % off.',
  )


def _at_gamma(law: fit_record.Law, gamma_: float) -> isoflop_lib.Predict:
  changed = {**law.params, 'gamma': gamma_}
  return lambda columns: law.form.predict(changed, columns)


def _residuals(
  results: Results, gallery: html.Gallery, loss: str, form: str
) -> str:
  law, table = results.fits[loss, form], results.table(loss, form)
  left = 100 * np.log(table.columns['loss'] / law.predict(table.columns))
  noise = results.noise(loss)
  by_g = [
    f'{text_lib.signed(float(left[table.columns["G"] == g].mean()), 2)} % at'
    f' G = {g:.0f}'
    for g in np.unique(table.columns['G'])
  ]
  seen = (
    f'Their standard deviation is {text_lib.number(float(left.std()), 2)} %'
    + (
      ''
      if noise is None
      else f', against {text_lib.number(100 * noise, 2)} % between seeds'
    )
    + f'; their mean is {text_lib.listing(by_g)}.'
  )
  dense = table.columns['G'] == 1
  layers = table.columns['layer']
  if len(np.unique(layers[dense])) > 1:
    by_layer = [
      f'{text_lib.signed(float(left[dense & (layers == layer)].mean()), 2)} % at'
      f' {text_lib.count(int(layer), "layer")}'
      for layer in (layers[dense].min(), layers[dense].max())
    ]
    seen += (
      f' Of dense models alone it is {text_lib.listing(by_layer)}: where the law'
      ' errs along depth, what it calls the price of exits is off by as much,'
      ' and its intervals leave that out.'
    )
  return gallery.show(
    f'residuals_{loss}',
    isoflop_lib.residuals(
      table,
      law.predict,
      noise,
      f'{answer.LOSS_TITLES[loss]}: residuals ({answer.name_of(form)} form)',
    ),
    'Residuals of log loss against N, D and G, a colour for each budget',
    seen,
  )
