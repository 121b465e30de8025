"""What the page says first: gamma, what it costs, and what to doubt."""

from collections.abc import Iterator
from collections.abc import Mapping
import math
from typing import Any

from familial.core import text as text_lib
from familial.report import html
from familial.report import results as results_lib

Gamma = results_lib.Gamma
Results = results_lib.Results
SHOWN = (2, 4, 8)  # the granularities that G^gamma is spelled out for
MAX_EPOCHS = 4.0
SAME_AIC = 2.0  # a smaller difference says nothing
LOSS_NAMES = {
  'final': 'the last exit at equal N and D',
  'mean': 'the mean over exits',
  'exit': 'each exit against a dense model of its own size at equal FLOPs',
}
LOSS_TITLES = {
  'final': 'Last exit',
  'mean': 'Mean over exits',
  'exit': 'Each exit',
}


def section(results: Results) -> html.Section:
  """Returns the answer, the key numbers and the warnings."""
  found = {
    loss: gamma
    for loss in results_lib.LOSSES
    if (gamma := results.headline(loss)) is not None
  }
  body = ''.join(
    html.paragraph(text, 'lede') for text in _measured(results) if text
  )
  body += html.paragraph(headline(results, found), '' if body else 'lede')
  if len(found) > 1:
    body += html.paragraph(_other_losses(found))
  preferences = [text for loss in found if (text := preferred(results, loss))]
  if preferences:
    body += html.paragraph('Which form the data prefer:', 'tight')
    body += html.bullets(preferences)
  body += _tiles(results, found)
  warnings = list(_doubts(results))
  if warnings:
    body += (
      f'<aside><h3>Before believing it</h3>{html.bullets(warnings)}</aside>'
    )
  return html.Section('answer', 'The answer', body)


def headline(results: Results, found: dict[str, Gamma]) -> str:
  """Returns the law's first exponent of G, in a few sentences."""
  if not found:
    done = text_lib.count(len(results.arm('grid')), 'run')
    return (
      f'No exponent of G was fitted: {done} of the grid finished. What there is'
      ' follows.'
    )
  gamma = next(iter(found.values()))
  parts = [
    f'By the law, γ = {estimate(gamma)} for {LOSS_NAMES[gamma.loss]}'
    f' ({name_of(gamma.form)} form, {percent(level(results))} interval by'
    ' bootstrap over runs).',
    "The other heads' FLOPs come on top." if gamma.loss == 'final' else '',
    _includes_zero(gamma),
    _costs(results, gamma),
  ]
  beyond = [str(g) for g in SHOWN if g > max(results.granularities, default=0)]
  if beyond:
    verb = 'was' if len(beyond) == 1 else 'were'
    parts.append(
      f'G = {text_lib.listing(beyond)} {verb} not trained: that is extrapolated.'
    )
  return ' '.join(part for part in parts if part)


def preferred(results: Results, loss: str) -> str:
  """Returns which form the data prefer for one loss and by how much, or ''."""
  ranked = sorted(
    sorted(results.scores(loss).items(), reverse=True),
    key=lambda item: item[1],
  )
  if len(ranked) < 2:
    return ''
  (best, lowest), (second, next_), *_ = ranked
  behind = [
    f'{name_of(form)} +{text_lib.number(aic - lowest, 2)}'
    for form, aic in ranked[1:]
  ]
  verdict = f'{name_of(best)} is preferred'
  if next_ - lowest < SAME_AIC:
    verdict = f'{name_of(best)} and {name_of(second)} cannot be told apart'
  text = f'{LOSS_TITLES[loss]}: {verdict} (AIC: {", ".join(behind)}).'
  table = results.table(loss, best)
  clusters = len(set(table.run))
  if clusters < table.rows:
    text += (
      f' AIC takes {table.rows} rows of {clusters} runs as independent, which'
      ' they are not: its differences are far too large.'
    )
  selection = results.selections.get(loss) or {}
  unseen = [
    f'{name_of(row["form"])} {percent(row["hold_out"]["rms"])}'
    for row in selection.get('candidates') or []
    if (row.get('hold_out') or {}).get('rms') is not None
  ]
  if unseen:
    text += (
      ' Error in predicting the largest budget from the others:'
      f' {", ".join(unseen)}.'
    )
  if selection.get('by_hold_out') == 'dense_null':
    text += ' γ = 0 predicts it best.'
  return text


def level(results: Results) -> float:
  """Returns the level of the fits' intervals."""
  return next(
    (law.record.level for law in results.fits.values() if law.record.level),
    0.95,
  )


def penalty(
  results: Results, gamma: Gamma, exits: int
) -> tuple[float, float | None, float | None] | None:
  """Returns what G exits add to the observed dense loss, in nats.

  The estimate, then what it is at both ends of gamma's interval, the other
  constants held; None where no dense run finished.
  """
  dense = results.dense_loss()
  if dense is None:
    return None
  scaled = dense - _floor(results, gamma)

  def added(exponent: float) -> float:
    return scaled * math.expm1(exponent * math.log(exits))

  return (
    added(gamma.gamma),
    None if gamma.lo is None else added(gamma.lo),
    None if gamma.hi is None else added(gamma.hi),
  )


def over(row: Mapping[str, Any]) -> str:
  """Returns a log ratio with its interval as a percentage above 1."""
  ends = (row[key] for key in ('value', 'lo', 'hi'))
  values = [None if x is None else 100 * math.expm1(x) for x in ends]
  return f'{text_lib.estimate(*values)} %'


def estimate(gamma: Gamma) -> str:
  """Returns gamma with its interval."""
  return text_lib.estimate(gamma.gamma, gamma.lo, gamma.hi)


def name_of(form: str) -> str:
  """Returns how the page calls a form."""
  return {'dense_null': 'null (γ = 0)'}.get(
    form, form.removeprefix('familial_').replace('_', ' ')
  )


def percent(fraction: float) -> str:
  """Returns a fraction as a percentage without a sign."""
  return f'{float(f"{100 * fraction:.2g}"):g} %'


def _measured(results: Results) -> Iterator[str]:
  """Yields what was measured without a law, last exit first."""
  ratios = [
    row
    for row in results.paired('ratios')
    if row['loss'] == 'final' and row['budget'] is None
  ]
  if ratios:
    parts = [f'{over(row)} with G = {row["exits"]}' for row in ratios]
    blocks = text_lib.count(max(row['blocks'] for row in ratios), 'pair')
    yield (
      "At equal FLOPs the last exit's loss is above that of a dense model of the"
      f' same shape by {text_lib.listing(parts)} ({blocks} of shape and budget;'
      f' {percent(level(results))} intervals).'
    )
  depths = (results.summary.get('twins') or {}).get('depths') or []
  if depths:
    top = [row for row in depths if row['exits'] == depths[-1]['exits']]
    yield (
      'Against dense twins of their exact shapes, at equal FLOPs, the first of'
      f' {top[0]["exits"]} exits is above by {over(top[0])}, the last by'
      f' {over(top[-1])} (mean of {text_lib.count(top[0]["shapes"], "shape")};'
      ' intervals of the noise between seeds alone).'
    )


def _spread(row: Mapping[str, Any]) -> str:
  return text_lib.estimate(row['value'], row['lo'], row['hi'])


def _includes_zero(gamma: Gamma) -> str:
  if gamma.lo is None or gamma.hi is None:
    return ''
  if gamma.lo <= 0 <= gamma.hi:
    return 'The interval includes 0: the law cannot tell it from no penalty.'
  return 'The interval excludes 0.'


def _costs(results: Results, gamma: Gamma) -> str:
  """Returns what G^gamma means for the observed loss."""
  part = 'loss above E' if gamma.form == 'familial_reducible' else 'loss'
  factors = {g: text_lib.percent(g**gamma.gamma - 1) for g in SHOWN}
  costs = {g: penalty(results, gamma, g) for g in SHOWN}
  text = f'G exits on one backbone multiply its {part} by G^γ: '
  parts = []
  for g, cost in costs.items():
    if cost is None:
      parts.append(f'{factors[g]} at G = {g}')
    else:
      nats = text_lib.estimate(*cost)
      parts.append(f'{nats} nats at G = {g} ({factors[g]})')
  dense = results.dense_loss()
  if dense is not None:
    text += (
      f'on the observed dense loss of {text_lib.number(dense)} nats this adds '
    )
  return f'{text}{text_lib.listing(parts)}.'


def _other_losses(found: dict[str, Gamma]) -> str:
  others = list(found)[1:]
  text = text_lib.listing(
    [f'for {LOSS_NAMES[loss]} γ = {estimate(found[loss])}' for loss in others]
  )
  text = f'{text[0].upper()}{text[1:]}.'
  if 'mean' in found:
    text += (
      ' The mean rises with G also because shallow exits are smaller models; the'
      " last exit's γ and each exit's say what sharing costs."
    )
  return text


def _doubts(results: Results) -> Iterator[str]:
  """Yields what a reader must know before believing the numbers."""
  for status in ('diverged', 'running', 'not run'):
    cells = [run.cell for run in results.runs if run.status == status]
    if cells:
      yield (
        f'{text_lib.count(len(cells), "cell")} {status}, in no figure and no fit:'
        f' {text_lib.some(cells)}.'
      )
  for row in results.paired('trend'):
    if row['equal'] == 'tokens' and row['lo'] * row['hi'] > 0:
      by_budget = [
        g
        for g in results.paired('gamma')
        if (g['loss'], g['equal']) == (row['loss'], 'tokens') and g['budget']
      ]
      ends = [
        f'{_spread(g)} at C = {text_lib.scientific(g["budget"])}'
        for g in (by_budget[0], by_budget[-1])
      ]
      yield (
        f'γ, {LOSS_TITLES[row["loss"]].lower()}, changes with the budget: beside'
        ' dense models of the same shape, at equal N and D, it is'
        f' {text_lib.listing(ends)}, {_spread(row)} more with every tenfold budget.'
        " The law's one γ is an average over these budgets."
      )
  repeated = [run.cell for run in results.runs if run.epochs > MAX_EPOCHS]
  if repeated:
    yield (
      f'{text_lib.count(len(repeated), "cell")} beyond {MAX_EPOCHS:.0f} epochs,'
      f' where a repeated token is worth less than a new one:'
      f' {text_lib.some(repeated)}.'
    )
  edges: dict[tuple[str, ...], list[str]] = {}
  for loss in ('final', 'mean'):
    edge = [
      f'C = {text_lib.scientific(budget)} with G = {g}'
      for (budget, g), low in results.minima(loss).items()
      if not low.interior
    ]
    if edge:
      edges.setdefault(tuple(edge), []).append(LOSS_TITLES[loss].lower())
  for edge_cells, losses in edges.items():
    yield (
      f'{text_lib.count(len(edge_cells), "IsoFLOP minimum", "IsoFLOP minima")} of'
      f' the {text_lib.listing(losses)} not inside the sampled sizes, and not'
      f' fitted: {text_lib.some(list(edge_cells), most=4)}.'
    )
  flags: dict[str, list[str]] = {}
  for (loss, form), law in results.fits.items():
    for flag in law.record.flags:
      flags.setdefault(str(flag), []).append(f'{loss} loss, {name_of(form)}')
  for flag, fits in flags.items():
    yield f'{flag} (fit of {text_lib.listing(fits)}).'
  yield from map(str, results.plan.get('warnings') or [])


def _floor(results: Results, gamma: Gamma) -> float:
  """Returns the part of the loss that the exponent leaves alone."""
  law = results.fits.get((gamma.loss, gamma.form))
  if gamma.form != 'familial_reducible' or law is None:
    return 0.0
  return law.params['E']


def _tiles(results: Results, found: dict[str, Gamma]) -> str:
  """Returns the key numbers as cards."""
  summary: dict[str, Any] = results.summary
  tiles = []
  for gamma in results.measured():
    if gamma.form != 'same shape, equal N and D':
      value, _, spread = estimate(gamma).partition(' ')
      name = f'γ measured, {LOSS_TITLES[gamma.loss].lower()} ({gamma.form})'
      tiles.append((value, spread, name))
  for loss, gamma in found.items():
    value, _, spread = estimate(gamma).partition(' ')
    tiles.append((value, spread, f'γ by the law, {LOSS_TITLES[loss].lower()}'))
  finished = sum(run.finished for run in results.runs)
  name = 'runs finished'
  budgets = results.budgets
  if budgets:
    name += (
      f', {text_lib.count(len(budgets), "budget")} up to'
      f' {text_lib.scientific(budgets[-1], 2)} FLOPs'
    )
  tiles.append((str(finished), f'of {len(results.runs)}', name))
  noise = results.noise('final')
  if noise is not None:
    tiles.append((percent(noise), '', 'sd of log loss between seeds'))
  cost = summary.get('cost') or {}
  if cost.get('seconds') is not None:
    tiles.append(
      (
        text_lib.duration(cost['seconds']),
        '',
        f'of training, {text_lib.scientific(cost.get("flops"))} FLOPs',
      )
    )
  return html.tiles(tiles)
