"""The page of a live allocation: what it spent, and what its law is worth."""

from collections.abc import Iterator
import pathlib

from familial.allocation import surrogate
from familial.core import text as text_lib
from familial.laws import forms
from familial.report import allocation_results
from familial.report import allocation_sections
from familial.report import allocation_words
from familial.report import html
from familial.report import record_sections
from familial.report import results as results_lib

Live = allocation_results.Live
SUBTITLE = (
  'A budget for a whole grid of candidates, spent round by round: all train a'
  ' little, the promising ones train on. The question is how near the law of'
  ' what was trained is to the law of the whole grid.'
)
_ALLOCATED, _FULL = allocation_results.ALLOCATED, allocation_results.FULL
_DEFINITIONS = {
  'Horizon': 'FLOPs after which a candidate takes no more.',
  'Whole grid': 'All candidates, each trained to the horizon.',
  'Saving': '1 − FLOPs spent / cost of the whole grid.',
  'Extrapolated loss': (
    'The lowest loss that a law has at so many FLOPs, at its own best size. Far'
    ' is so many times the horizon, the same compute for both laws.'
  ),
  'Interval of a law': (
    'Percentiles (95 %) over refits of resampled runs. It leaves out what the'
    ' form of the law errs by, and of few runs it is too narrow. None where a'
    ' resample has no such value.'
  ),
  'Replay': (
    'What another policy would have made of the same budget on the curves of the'
    ' whole grid; between two evaluations the loss is interpolated, so that a'
    ' replay of the policy that was run may differ a little from it.'
  ),
}


def sections(
  results: results_lib.Results, gallery: html.Gallery, workdir: pathlib.Path
) -> list[html.Section]:
  """Returns the page's sections in order."""
  live = allocation_results.read(results, workdir)
  parts = (
    allocation_sections.laws(live, gallery),
    allocation_sections.curves(live, gallery),
    allocation_sections.rounds(live),
    allocation_sections.candidates(live),
    allocation_sections.replays(live),
  )
  return [
    html.Section('answer', 'The answer', _answer(live)),
    *html.with_unmeasured(parts),
    allocation_sections.runs(live),
    _asked_for(live),
    record_sections.provenance(results),
    allocation_words.definitions(_DEFINITIONS),
  ]


def _answer(live: Live) -> str:
  body = html.paragraph(_headline(live), 'lede')
  body += html.paragraph(_asked(live))
  found = list(_apart(live))
  if found:
    body += html.bullets(found)
  body += html.tiles(_tiles(live))
  doubts = list(_doubts(live))
  if doubts:
    body += f'<aside><h3>Before believing it</h3>{html.bullets(doubts)}</aside>'
  return body


def _headline(live: Live) -> str:
  summary = live.summary
  if not summary:
    return _under_way(live)
  text = (
    f'{live.policy} spent {text_lib.scientific(summary["spent"])} FLOPs, and saved'
    f' {text_lib.number(100 * summary["saving"])} % of what the whole grid costs.'
  )
  apart = (summary.get('apart') or {}).get('extrapolated') or {}
  far = f'{text_lib.scientific(summary["extrapolated_to"])} FLOPs'
  if apart:
    worst = max(apart, key=lambda key: abs(apart[key]))
    side = 'below' if apart[worst] < 0 else 'above'
    inside = [
      allocation_results.within(
        live.law(_ALLOCATED)['extrapolated'][key]['value'],
        live.law(_FULL)['extrapolated'][key],
      )
      for key in apart
    ]
    text += (
      f' Extrapolated to {far}, the best loss of its law is'
      f' {text_lib.number(100 * abs(apart[worst]), 2)} % {side} that of the whole'
      f" grid's law{' at worst' if len(apart) > 1 else ''}"
    )
    if None not in inside:
      text += (
        f', {"within" if all(inside) else "outside"} the interval of the latter'
      )
    return f'{text}.'
  if not live.law(_ALLOCATED):
    return f'{text} No law could be fitted to what it trained.'
  if summary.get('apart') is None and _FULL not in summary['laws']:
    return (
      f'{text} The whole grid was not trained, so that how far its law is from'
      ' that of the grid is not known.'
    )
  return f'{text} Its law cannot be compared with that of the whole grid.'


def _under_way(live: Live) -> str:
  """What is known before the end."""
  total = sum(live.spent)
  if not live.rounds:
    begun = any(run.rows for run in live.results.runs)
    return (
      'Not finished: the first round is under way.'
      if begun
      else 'Planned: nothing has been trained yet.'
    )
  text = (
    f'Not finished: {len(live.rounds)} of {text_lib.count(live.planned, "round")}'
    f' decided on, {text_lib.scientific(total)} of'
    f' {text_lib.scientific(live.plan["budget"])} FLOPs spent.'
  )
  if live.over:
    more = ', and the rest of the grid is trained' if live.plan['full'] else ''
    return f'{text} The law is fitted when the study ends{more}.'
  return f'{text} {text_lib.count(len(live.alive), "candidate")} may train on.'


def _asked(live: Live) -> str:
  plan = live.plan
  text = (
    f'{text_lib.count(len(live.curves), "candidate")}, a budget of'
    f' {text_lib.scientific(plan["budget"])} FLOPs, which is'
    f' {text_lib.number(100 * plan["budget"] / plan["flops"])} % of what the whole'
    f' grid costs ({text_lib.scientific(plan["flops"])}). '
  )
  if plan['survivors']:
    return text + (
      f'{live.policy} trains {text_lib.listing(list(map(str, plan["survivors"])))}'
      ' of them, round by round.'
    )
  return text + (
    f'{live.policy} prunes nobody: in each of {live.planned} rounds it trains'
    ' those that tell most about the extrapolated loss.'
  )


def _apart(live: Live) -> Iterator[str]:
  """Each extrapolated loss and constant of both laws."""
  mine, full = live.law(_ALLOCATED), live.law(_FULL)
  if not mine:
    return
  for part in ('extrapolated', 'params'):
    keys = live.losses() if part == 'extrapolated' else list(mine['params'])
    for key in keys:
      name = (
        allocation_results.name_of(key)
        if part == 'extrapolated'
        else html.GREEK.get(key, key)
      )
      text = f'{name}: {allocation_results.interval(mine[part][key])}'
      if not full:
        yield f'{text}.'
        continue
      theirs = full[part][key]
      text += f'; whole grid {allocation_results.interval(theirs)}'
      inside = allocation_results.within(mine[part][key]['value'], theirs)
      if not full['identified'].get(key, True):
        text += ', which does not identify it'
      elif inside is not None:
        text += f' ({"within" if inside else "outside"} its interval)'
      yield f'{text}.'


def _tiles(live: Live) -> Iterator[tuple[str, str, str]]:
  plan, summary = live.plan, live.summary
  if summary:
    saved = f'{text_lib.number(100 * summary["saving"])}{text_lib.SPACE}%'
    yield saved, '', 'of the whole grid saved'
    for key, off in (
      (summary.get('apart') or {}).get('extrapolated') or {}
    ).items():
      yield (
        text_lib.percent(off),
        '',
        f"{allocation_results.name_of(key)}, off the whole grid's",
      )
  yield (
    f'{len(live.rounds)}',
    f'of {live.planned}',
    'rounds decided on',
  )
  yield (
    text_lib.scientific(sum(live.spent)),
    f'of {text_lib.scientific(plan["budget"])}',
    'FLOPs spent by the allocation',
  )
  best = min((curve.best for curve in live.known), default=float('inf'))
  if best < float('inf'):
    yield text_lib.number(best, 4), 'nats', 'lowest loss it has seen'
  cost = summary.get('cost') or {}
  if cost.get('seconds'):
    yield (
      text_lib.duration(cost['seconds']),
      '',
      'of training, the grid included',
    )


def _doubts(live: Live) -> Iterator[str]:
  plan, summary = live.plan, live.summary
  diverged = [curve.name for curve in live.curves if curve.diverged]
  if diverged:
    yield (
      f'{text_lib.count(len(diverged), "candidate")} diverged, and can survive no'
      f' round: {text_lib.some(diverged)}.'
    )
  for which, name in (
    (_ALLOCATED, 'the allocation'),
    (_FULL, 'the whole grid'),
  ):
    found = (summary.get('laws') or {}).get(which) or {}
    if 'error' in found:
      yield f'No law of {name}: {found["error"]}.'
    elif found.get('flags'):
      yield f'The law of {name}: {"; ".join(found["flags"])}.'
  form = (live.config.get('law') or {}).get('form')
  exits = {cell['exits'] for cell in plan['cells']}
  if form and len(exits) > 1 and 'G' not in forms.get(form).columns:
    yield (
      f'The law {form} does not know of exits, and candidates have'
      f' {text_lib.listing(list(map(str, sorted(exits))))} of them.'
    )
  held, count = live.covered()
  if count and held < surrogate.LEVEL * count:
    yield (
      f'Of {text_lib.count(count, "prediction")} that can be checked {held} held'
      f' within their intervals of {100 * surrogate.LEVEL:g} %.'
    )
  missing = (summary.get('cost') or {}).get('missing')
  if missing:
    yield (
      f'{text_lib.count(missing, "candidate")} of the whole grid failed: it is not'
      ' compared with.'
    )
  if summary:
    yield (
      'One allocation: how another seed or another choice of candidates would'
      ' have gone is not known.'
    )
  yield from (
    f'{str(warning).rstrip(".")}.' for warning in plan.get('warnings') or []
  )


def _asked_for(live: Live) -> html.Section:
  """Policy, budget, law: the settings."""
  config, plan = live.config, live.plan
  law = config.get('law') or {}
  items = {
    'Policy': live.policy,
    'Budget': f'{text_lib.scientific(plan["budget"])} FLOPs',
  }
  if config:
    items |= {
      'Horizon': f'{text_lib.scientific(config["horizon"])} FLOPs a candidate',
      'One in so many stays (eta)': str(config['eta']),
      'Loss that counts': {
        'final': 'of the last exit', 'mean': 'the mean over exits'
      }[config['loss']],
      'Learning rate': f'{config["train"]["schedule"]}, from'
      f' {text_lib.number(config["train"]["base_lr"])}',
      'Seed': str(config['train'].get('seed', 0)),
      'Law': (
        f'{law["form"]}'
        f'{", of rows with " + " and ".join(law["where"]) if law["where"] else ""}'
      ),
      'Law asked at': f'{law["beyond"]:g} times the horizon',
    }  # fmt: skip
  items['Whole grid trained'] = (
    'yes' if live.law(_FULL) else 'asked for' if plan['full'] else 'no'
  )
  return html.Section('asked', 'What was asked', html.terms(items))
