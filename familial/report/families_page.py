"""The page of a study of families: which way to one costs how much loss."""

from collections.abc import Iterator

from familial.core import text as text_lib
from familial.report import families_record
from familial.report import families_results
from familial.report import families_sections
from familial.report import html
from familial.report import record_sections
from familial.report import results as results_lib

Families = families_results.Families
Row = families_results.Row
SUBTITLE = (
  'A family is one kind of model in several deployable sizes. This study comes'
  ' by the same sizes in several ways and compares what they lose and cost.'
)
_MAX_EPOCHS = 4.0
_TILES = 6
_FEW = 4  # ways, beyond which all of them go without their names
_WARNINGS = 3
_VERDICTS = {
  'lower': ' (lower)',
  'higher': ' (higher)',
  'cannot be told apart': ' (includes 0)',
  '': '',
}


def sections(
  results: results_lib.Results, gallery: html.Gallery
) -> list[html.Section]:
  """Returns the page's sections in order."""
  families = families_results.read(results)
  parts = (
    families_sections.compared(families, gallery),
    families_sections.losses(families),
    families_sections.agreement(families, gallery),
    families_sections.compute(families),
    families_record.ledger(families),
    families_record.serving(families),
  )
  return [
    _answer(families),
    *html.with_unmeasured(parts),
    families_record.runs(families),
    record_sections.provenance(results),
    families_record.definitions(),
  ]


def _answer(families: Families) -> html.Section:
  """Returns what was found, in a few sentences, and what to doubt."""
  overall = families.part('overall')
  body = html.paragraph(_headline(families, overall), 'lede')
  body += html.paragraph(_asked(families))
  if overall:
    body += html.bullets(_of_way(families, row) for row in overall)
    body += ''.join(map(html.paragraph, _ledgers(families)))
    body += html.paragraph(
      '"Log loss over" another is the mean of log(loss / the other\'s loss) over'
      ' pairs of one seed, budget and size; it is shown as exp(mean) − 1 in per'
      ' cent, and what is negative is better.'
      + (
        " Intervals are of 95 %, Student's, the scatter between seeds pooled over"
        ' all pairs of the study; where one includes 0, the two cannot be told'
        ' apart.'
        if any(row['lo'] is not None for row in overall)
        else ''
      )
    )
  body += html.tiles(_tiles(families, overall))
  doubts = ''.join(_doubts(families))
  if doubts:
    body += f'<aside><h3>Before believing it</h3>{doubts}</aside>'
  return html.Section('answer', 'The answer', body)


def _headline(families: Families, overall: list[Row]) -> str:
  """Returns which ways have a lower loss, a higher one, or neither."""
  if not families.results.summary:
    runs = families.results.runs
    done = sum(run.finished for run in runs)
    return (
      f'Not finished: {done} of {text_lib.count(len(runs), "run")} have a result.'
      ' Losses are compared when the study ends; what there is follows.'
    )
  if not overall:
    return (
      'No way is compared with another here: no pair of members has a result.'
    )
  found: dict[str, list[str]] = {'lower': [], 'higher': [], '': []}
  unknown = all(row['lo'] is None for row in overall)
  for row in overall:
    side = families_results.verdict(row)
    if unknown and row['value']:
      side = 'lower' if row['value'] < 0 else 'higher'
    against = row['against']
    usual = against == families.against(row['way'])
    name = row['way'] if usual else f'{row["way"]} over {against}'
    found[side if side in found else ''].append(name)
  parts = [
    f'is {side} in {_named(found[side], overall)}'
    for side in ('lower', 'higher')
    if found[side]
  ]
  if found['']:
    parts.append(f'cannot be told apart in {_named(found[""], overall, "any")}')
  text = (
    'Against the way that each is compared with, the loss over'
    f' {_all(families)} {"; it ".join(parts)}.'
  )
  if unknown:
    why = (
      'There is one seed'
      if len(families.seeds) == 1
      else 'No pair has two seeds'
    )
    text += (
      f' {why}, so there is no interval: none of this can be told from luck.'
    )
  return text


def _named(ways: list[str], overall: list[Row], every: str = 'each') -> str:
  """Returns the names of some ways, or `every` one of them where all are."""
  if len(ways) == len(overall) > _FEW:
    return f'{every} of the {len(ways)} ways'
  return text_lib.listing(ways)


def _all(families: Families) -> str:
  """Returns what an overall mean is of."""
  return 'all sizes' + (' and budgets' if families.budgets[1:] else '')


def _asked(families: Families) -> str:
  """Returns sizes, budgets and seeds in one or two sentences."""
  params = [n for way in families.ways for n in families.params(way).values()]
  sizes = text_lib.count(families.sizes, 'size')
  if params:
    low, high = text_lib.amount(min(params)), text_lib.amount(max(params))
    sizes += f' of {low} to {high} parameters'
  budgets = text_lib.listing([text_lib.scientific(c) for c in families.budgets])
  return (
    f'{sizes} in {text_lib.count(len(families.ways), "way")}, at C = {budgets}'
    f' FLOPs, {text_lib.count(len(families.seeds), "seed")}.{_equal(families)}'
  )


def _equal(families: Families) -> str:
  """Returns what costs C in every way."""
  if families.results.plan.get('equal') == 'total':
    return ' C is what all training of a family costs, in every way.'
  return (
    ' C is what the largest member has cost in every way, and the others have'
    ' their shares of it.'
  )


def _of_way(families: Families, row: Row) -> str:
  """Returns what one way loses and saves."""
  way, budget = row['way'], families.budgets[-1]
  ends = {
    r['size']: r
    for r in families.part(
      'compared', way=way, budget=budget, against=row['against']
    )
  }
  parts = [
    f'{_told(ends[size])} for the {name}'
    for name, size in (('smallest size', 1), ('largest', families.sizes))
    if size in ends
  ]
  text = f'{way} over {row["against"]}: {_told(row)} over {_all(families)}'
  if parts:
    at = (
      f' at C = {text_lib.scientific(budget)}' if families.budgets[1:] else ''
    )
    text += f'; {text_lib.listing(parts)}{at}'
  saved = families.part(
    'saving', way=way, budget=budget, against=row['against']
  )
  return f'{text}.{f" {_saved(saved[0])}" if saved else ""}'


def _told(row: Row) -> str:
  verdict = _VERDICTS[families_results.verdict(row)]
  return f'{families_results.over(row)}{verdict}'


def _saved(row: Row) -> str:
  """Returns what a chain saves by its ledger and at its losses."""
  against = row['against']
  text = (
    f'By its ledger it trains with {_fewer(row["ledger"])} than {against}; at'
    f' its losses it saves {families_results.share(row)}'
  )
  if row['lo'] is not None and row['lo'] <= 0 <= row['hi']:
    return (
      f'{text}; the interval includes 0: cannot be told apart from nothing.'
    )
  if row['value'] < 0:
    return f'{text}: nothing, {against} would have needed less for them.'
  return f'{text} of what {against} would have needed for them.'


def _ledgers(families: Families) -> Iterator[str]:
  """Yields what chains save by their ledgers where that is all there is."""
  budget = families.budgets[-1]
  alike: dict[tuple[str, str], list[str]] = {}
  for row in families.counterparts('overall'):
    way, against = row['way'], row['against']
    cost, alone = (families.cost(w, budget) for w in (way, against))
    measured = families.part('saving', way=way, budget=budget)
    if families.kinds[way] == 'chain' and not measured and cost and alone:
      alike.setdefault((_fewer(1 - cost / alone), against), []).append(way)
  why = (
    'that takes two budgets'
    if len(families.budgets) < 2
    else 'a member is missing, or a loss does not fall with compute'
  )
  for (fewer, against), ways in alike.items():
    chains = ways[0] if len(ways) == 1 else f'each of {text_lib.listing(ways)}'
    yield (
      f'By its ledger {chains} trains with {fewer} than'
      f' {against} at C = {text_lib.scientific(budget)}. What it saves at its'
      f' losses was not measured: {why}.'
    )


def _fewer(share: float) -> str:
  """Returns a saving of FLOPs in words."""
  side = 'fewer' if share >= 0 else 'more'
  return f'{text_lib.number(100 * abs(share))} % {side} FLOPs'


def _tiles(
  families: Families, overall: list[Row]
) -> Iterator[tuple[str, str, str]]:
  for row in overall[:_TILES]:
    value, _, span = families_results.over(row).partition(' [')
    yield (
      value if not span else f'{value} %',
      f'[{span}' if span else '',
      f'loss of {row["way"]} over {row["against"]}',
    )
  runs = families.results.runs
  done = sum(run.finished for run in runs)
  name = f'runs finished, {text_lib.count(len(families.seeds), "seed")}'
  yield str(done), f'of {len(runs)}', name
  cost = families.results.summary.get('cost') or {}
  if cost.get('seconds') is not None:
    flops = text_lib.scientific(cost.get('flops'))
    yield text_lib.duration(cost['seconds']), '', f'of training, {flops} FLOPs'


def _doubts(families: Families) -> Iterator[str]:
  """Yields what a reader must know before believing the numbers, as HTML."""
  runs, plan = families.results.runs, families.results.plan
  found = [
    'Nothing was tuned for any way: one base rate, one weighting of exits, a'
    ' warm-up and a decay of its own for every stage of a chain.'
  ]
  if plan.get('equal') == 'total':
    found.append(
      'Separate models share C with tokens in proportion to parameters: the'
      ' smallest gets a small part of it, while a model with exits trains all'
      ' its members on all of its tokens. Another split moves losses from size'
      ' to size.'
    )
  for status in ('diverged', 'running', 'not run'):
    cells = [run.cell for run in runs if run.status == status]
    if cells:
      found.append(
        f'{text_lib.count(len(cells), "run")} {status}: {text_lib.some(cells)}.'
      )
  missing = families.missing()
  if missing and families.results.summary:
    found.append(
      f'{text_lib.count(len(missing), "member")} missing, in no mean:'
      f' {"; ".join(missing[:3])}{"; and others" if missing[3:] else ""}.'
    )
  if len(families.seeds) == 1 and families.results.summary:
    found.append(
      'One seed: what differs between seeds is not known, and a difference may'
      ' be one of seeds.'
    )
  told = [
    side
    for row in families.part('compared')
    if (side := families_results.verdict(row))
  ]
  if told:
    clear = len(told) - told.count('cannot be told apart')
    found.append(
      f'Of {text_lib.count(len(told), "interval")} of single sizes {clear} exclude'
      ' 0; of 95 % intervals one in twenty does by chance, and ways that are'
      ' compared with the same runs share the luck of those.'
    )
  repeated = [run.cell for run in runs if run.epochs > _MAX_EPOCHS]
  if repeated:
    found.append(
      f'{text_lib.count(len(repeated), "run")} beyond {_MAX_EPOCHS:.0f} epochs,'
      f' where a repeated token is worth less than a new one:'
      f' {text_lib.some(repeated)}.'
    )
  warnings = [str(warning) for warning in plan.get('warnings') or []]
  few = len(warnings) <= _WARNINGS
  if found or (warnings and few):
    yield html.bullets([*found, *(warnings if few else [])])
  if not few:
    number = text_lib.count(len(warnings), 'warning')
    yield html.folded(f'{number} of the plan', html.bullets(warnings))
