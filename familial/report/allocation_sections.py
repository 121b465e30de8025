"""The sections of a live allocation's page: rounds, curves, laws, replays."""

import dataclasses
import math

from familial.allocation import comparison
from familial.core import text
from familial.plots import allocation
from familial.report import allocation_results
from familial.report import html
from familial.report import record_sections

Live = allocation_results.Live
# A section, or the sentence that says what was not measured.
Part = html.Section | str
_ALLOCATED, _FULL = allocation_results.ALLOCATED, allocation_results.FULL


def laws(live: Live, gallery: html.Gallery) -> Part:
  """Both laws side by side, and the frontiers that they rest on."""
  mine, full = live.law(_ALLOCATED), live.law(_FULL)
  if not mine:
    return 'No law of what the allocation trained was fitted.'
  apart = live.summary.get('apart') or {}
  rows = [
    [
      allocation_results.name_of(key),
      allocation_results.interval(mine['extrapolated'][key]),
      *_beside(full, 'extrapolated', key),
      text.percent((apart.get('extrapolated') or {}).get(key)),
      '',
    ]
    for key in live.losses()
  ] + [
    [
      html.GREEK.get(key, key),
      allocation_results.interval(row),
      *_beside(full, 'params', key),
      text.signed((apart.get('params') or {}).get(key)),
      _identified(mine, full, key),
    ]
    for key, row in mine['params'].items()
  ]
  head = ['', 'allocation', 'whole grid', 'difference', 'not identified in']
  if not full:
    rows = [[*row[:2], row[-1]] for row in rows]
    head = ['', 'allocation', 'not identified in']
  about = f'The law of the allocation rests on {mine["rows"]} rows'
  if full:
    about += f', that of the whole grid on {full["rows"]}'
  body = html.table(
    head,
    rows,
    f'{about}; with intervals over resampled runs. Differences of losses are'
    ' relative, of constants absolute.',
    align='lrrrl' if full else 'lrl',
  )
  if any(len(curve.flops) for curve in live.known):
    trained = {live.policy: live.known} if full else {}
    whole = list(live.curves) if full else live.known
    body += gallery.show(
      'frontiers',
      allocation.frontiers(
        whole,
        trained,
        live.summary['extrapolated_to'],
        allocation.WHOLE if full else live.policy,
      ),
      'Compute frontier of the allocation and of the whole grid, with straight'
      ' lines extrapolated',
      'The lines are straight in log-log and know of no irreducible loss; the'
      ' laws in the table above do.',
    )
  return html.Section('laws', 'The law, and that of the whole grid', body)


def curves(live: Live, gallery: html.Gallery) -> Part:
  """Curves of all candidates, with what was pruned when and predictions."""
  if not any(len(curve.flops) for curve in live.curves):
    return 'No candidate has been trained.'
  course = allocation.Course(live.policy, live.curves, live.known, live.rounds)
  held, count = live.covered()
  seen = (
    f'Of {text.count(count, "prediction")} that can be checked, {held} held'
    ' within their intervals.'
    if count
    else 'Losses as they were evaluated; the lowest so far is what counts.'
  )
  return html.Section(
    'curves',
    'Curves',
    gallery.show(
      'curves',
      allocation.courses([course]),
      'Loss of each candidate by FLOPs, coloured by the round after which it was'
      ' pruned, with predictions',
      seen,
    ),
  )


def rounds(live: Live) -> Part:
  """Who trained, who was pruned when, and why."""
  if not live.rounds:
    return 'No round has been decided on.'
  names = live.names
  rows, tables, total = [], '', 0.0
  before = [0.0] * len(names)
  for number, made in enumerate(live.rounds, 1):
    for i, flops in zip(made.alive, made.spent, strict=True):
      total += flops - before[i]
      before[i] = flops
    left = [names[i] for i in made.alive if i not in made.kept]
    seen = [loss for loss in made.seen if loss is not None]
    rows.append(
      [
        str(number),
        str(len(made.alive)),
        text.scientific(made.share),
        text.scientific(total),
        text.number(min(seen, default=None), 4),
        ', '.join(left) or '–',
      ]
    )
    tables += html.folded(
      f'Round {number}, candidate by candidate', _round(live, number)
    )
  body = html.table(
    [
      'round',
      'trained',
      'share, FLOPs',
      'spent so far',
      'lowest loss',
      'pruned',
    ],
    rows,
    'Rounds that were decided on. Share: what'
    f' {"each of them" if live.plan["survivors"] else "all of them together"} was'
    ' offered.',
    align='rrrrrl',
  )
  return html.Section('rounds', 'Round by round', body + tables)


def _round(live: Live, number: int) -> str:
  """One round's candidates, in the order of their scores."""
  made = live.rounds[number - 1]
  ranked = any(score is not None for score in made.score)
  scores = [math.inf if score is None else score for score in made.score]
  order = sorted(range(len(scores)), key=scores.__getitem__)
  rows = []
  for k in order:
    i = made.alive[k]
    predicted = (made.predicted or (None,) * len(made.alive))[k]
    curve, end = live.curves[i], made.end[k]
    rows.append(
      [
        live.names[i],
        text.scientific(made.spent[k]),
        text.number(made.seen[k], 4),
        text.scientific(end),
        '–' if predicted is None else text.estimate(*predicted),
        text.number(float(curve.at(end)), 4) if curve.end >= end else '–',
        text.number(made.score[k], 4),
        'stays'
        if i in made.kept
        else 'diverged'
        if curve.diverged
        else 'pruned',
      ]
    )
  why = (
    'In the order of their scores: the lowest stay.'
    if ranked
    else 'The last round ranks nobody.'
    if live.plan['survivors']
    else 'Nobody is ranked or pruned.'
  )
  return html.table(
    [
      'candidate',
      'FLOPs',
      'lowest loss',
      'end, FLOPs',
      'predicted there',
      'came to',
      'score',
      '',
    ],
    rows,
    f'{why} End: the FLOPs it has if it survives to the last round; came to: its'
    ' true loss there, where it was trained so far after all.',
    align='lrrrrrrl',
  )


def candidates(live: Live) -> Part:
  """Each candidate: what it took, what it showed, when it left."""
  left, spent, known = live.pruned, live.spent, live.known
  rows = []
  for i, cell in enumerate(live.plan['cells']):
    whole = live.curves[i]
    further = whole.end > known[i].end
    rows.append(
      [
        cell['cell'],
        text.amount(cell['params_full']),
        str(cell['exits']),
        text.scientific(spent[i]),
        f'{text.number(100 * spent[i] / cell["flops"])} %',
        _loss(known[i].best),
        _fate(live, i, left),
        _loss(whole.best) if further else '–',
      ]
    )
  body = html.table(
    [
      'candidate',
      'N',
      'G',
      'FLOPs by the allocation',
      'of the horizon',
      'lowest loss',
      'left',
      'lowest in all',
    ],
    rows,
    'Lowest loss: as far as the allocation trained it; in all: with what was'
    ' trained afterwards.',
    align='lrrrrrlr',
  )
  return html.Section('candidates', 'Candidates', body)


def _fate(live: Live, candidate: int, left: dict[int, int]) -> str:
  diverged = live.known[candidate].diverged
  if candidate in left:
    return f'after round {left[candidate]}{", diverged" if diverged else ""}'
  if diverged:
    return 'diverged'
  if not live.spent[candidate]:
    return 'not trained'
  return 'never' if live.over else 'not yet'


def replays(live: Live) -> Part:
  """What other policies would have made of the same budget."""
  found = live.summary.get('replays')
  if not found:
    return (
      'What other policies would have done is told only where the whole grid was'
      ' trained.'
    )
  rows = [
    [
      name,
      text.number(row['best'], 4),
      text.percent(row['gain']),
      text.scientific(row['spent']),
      text.percent(row['regret']),
      text.percent(row['law']),
      text.percent(row['line']),
      text.number(row['area']),
    ]
    for name, row in found.items()
  ]
  body = html.paragraph(
    'The same budget on the same curves, replayed: one allocation of each policy,'
    f' so that nothing here has an interval. {live.policy} is what was run.'
  ) + html.table(
    [
      'policy',
      'loss',
      f'gain over {comparison.BASE}',
      'spent, FLOPs',
      'regret',
      'law off by',
      'line off by',
      'area (AbC)',
    ],
    rows,
    "Errors are of the extrapolated loss, against the whole grid's; above 0 it is"
    ' too high.',
    align='lrrrrrrr',
  )
  return html.Section('replays', 'What other policies would have done', body)


def runs(live: Live) -> html.Section:
  """The table of all runs; one that was left is not said to be running."""
  results = dataclasses.replace(
    live.results,
    runs=tuple(
      dataclasses.replace(run, status='part trained')
      if run.status == 'running'
      else run
      for run in live.results.runs
    ),
  )
  return record_sections.runs(results)


def _beside(full: allocation_results.Row, part: str, key: str) -> list[str]:
  """The whole grid's value, where there is one."""
  return [allocation_results.interval(full[part][key])] if full else ['–']


def _identified(
  mine: allocation_results.Row, full: allocation_results.Row, key: str
) -> str:
  """Which laws leave a constant open."""
  names = [
    name
    for name, law in (('allocation', mine), ('grid', full))
    if not (law.get('identified') or {}).get(key, True)
  ]
  return 'both' if len(names) == 2 else ''.join(names)


def _loss(value: float) -> str:
  return text.number(value if math.isfinite(value) else None, 4)
