"""The page of a replay: which policy gained how much, and what its law is worth."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import html as html_lib
import pathlib
from typing import Any

from familial.allocation import comparison
from familial.allocation import curves as curves_lib
from familial.allocation import rounds as rounds_lib
from familial.allocation import surrogate
from familial.core import storage
from familial.core import text as text_lib
from familial.report import allocation_words
from familial.report import html
from familial.report import replay_sections

Cell = Mapping[str, Any]
# Of each cell the first draw: its curves, and what every policy made of them.
Example = tuple[Sequence[curves_lib.Curve], Mapping[str, rounds_lib.Allocation]]
_SUBTITLE = (
  'Learning curves that are known are trained again as if they were not: each'
  ' policy spends one budget on a random choice of them, and is held against'
  ' Successive Halving (sh), against an oracle that knows the future, and'
  ' against the whole grid.'
)
_FEW_DRAWS = 20
_FITTED = (
  0.9  # of the draws, from which a median of a law's error is told first
)
_COVERED_LESS = 0.05  # below nominal, from which a reader is warned


def write(
  result: Mapping[str, Any],
  examples: Sequence[Example],
  out: pathlib.Path,
) -> pathlib.Path:
  """Writes OUT/index.html and OUT/figures/*.png; returns the page.

  Args:
    result: as `allocation.json` holds it.
    examples: of each of its cells.
    out: folder.
  """
  gallery = html.Gallery(out / 'figures')
  sections = [
    html.Section('answer', 'The answer', _answer(result)),
    replay_sections.gains(result, gallery),
    *html.with_unmeasured(
      (
        replay_sections.law(result, gallery),
        replay_sections.calibration(result, gallery),
      )
    ),
    replay_sections.draws(result, examples, gallery),
    _record(result),
    allocation_words.definitions(allocation_words.REPLAYED),
  ]
  path = out / 'index.html'
  title = result['title'] or 'Replayed allocation'
  storage.write_text(
    path, html.page(title, html.paragraph(_SUBTITLE), sections)
  )
  for old in gallery.folder.glob('*.png'):
    if old not in gallery.shown:
      old.unlink(missing_ok=True)
  return path


def _answer(result: Mapping[str, Any]) -> str:
  """What was found, cell by cell, and what to doubt."""
  cells = result['cells']
  body = html.paragraph(_headline(cells), 'lede')
  body += html.bullets(_of_cell(cells, cell) for cell in cells)
  body += html.paragraph(
    'Gain: how much lower the loss of the best model is than that of Successive'
    ' Halving on the same draw; the mean over draws. Off by: the median error of'
    ' the extrapolated loss of the law fitted to what was trained, against that of'
    ' the whole grid or, of synthetic curves, the law they obey.'
    f' Intervals are of {100 * result["level"]:g} %.'
  )
  body += html.tiles(_tiles(cells))
  doubts = list(_doubts(result))
  if doubts:
    body += f'<aside><h3>Before believing it</h3>{html.bullets(doubts)}</aside>'
  return body


def _headline(cells: Sequence[Cell]) -> str:
  """Which policies gained clearly, how often; and the bound."""
  parts = []
  for name in replay_sections.contenders(cells):
    rows = [c['policies'][name]['gain'] for c in cells]
    better = sum(row['lo'] is not None and row['lo'] > 0 for row in rows)
    worse = sum(row['hi'] is not None and row['hi'] < 0 for row in rows)
    said = f'{name} is better in {better or "none"}'
    said += f' and worse in {worse}' if worse else ''
    parts.append((better - worse, said))
  parts.sort(key=lambda part: -part[0])
  bounds = [
    value
    for c in cells
    if (value := c['policies'][comparison.BOUND]['gain']['value']) is not None
  ]
  text = (
    f'Against Successive Halving, in {text_lib.count(len(cells), "comparison")}:'
    f' {"; ".join(said for _, said in parts)}; otherwise the interval includes 0.'
  )
  if bounds:
    span = ' to '.join(
      dict.fromkeys(text_lib.percent(b) for b in (min(bounds), max(bounds)))
    )
    text += (
      f' An oracle that knows the future gains {span}, and no'
      ' policy of the same rounds more.'
    )
  return text


def _of_cell(cells: Sequence[Cell], cell: Cell) -> str:
  """The best policy of one cell, and what its law is worth."""
  rows = {n: cell['policies'][n] for n in replay_sections.contenders([cell])}
  rows = {n: r for n, r in rows.items() if r['gain']['value'] is not None}
  where = replay_sections.name_of(cells, cell)
  saving = cell['policies'][comparison.BASE]['saving']['value']
  text = f'{where} ({_saved(saving)})'
  if not rows:
    return f'{text}: no policy but sh and the oracle has a result.'
  best = max(rows, key=lambda n: rows[n]['gain']['value'])
  text += f': best is {best}, {allocation_words.gain(rows[best]["gain"])}'
  share, bound = (
    rows[best]['share_of_bound'],
    cell['policies'][comparison.BOUND],
  )
  if (bound['gain']['lo'] or 0) > 0 and share['value'] is not None:
    text += (
      f", {text_lib.number(100 * share['value'], 2)} % of the oracle's"
      f' {text_lib.percent(bound["gain"]["value"])}'
    )
  else:
    text += (
      f'; the oracle {allocation_words.gain(bound["gain"])}, so that no share of'
      ' its gain is told'
    )
  laws = {
    name: row['law_error']
    for name, row in cell['policies'].items()
    if name != comparison.BOUND and row['law_fits'] >= _FITTED * cell['draws']
  }
  if laws:
    least = min(laws, key=lambda n: laws[n]['value'])
    text += (
      f'. The law of {least} extrapolates best, off by'
      f' {allocation_words.error(laws[least])}'
    )
  return f'{text}.'


def _saved(saving: float | None) -> str:
  if saving is None:
    return 'saving unknown'
  if saving < 0:
    return 'a budget above what all would cost'
  return f'{text_lib.number(100 * saving)} % saved'


def _tiles(cells: Sequence[Cell]) -> Iterator[tuple[str, str, str]]:
  """The best gain of each of the first cells."""
  for cell in cells[:6]:
    rows = {n: cell['policies'][n] for n in replay_sections.contenders([cell])}
    known = {
      n: r['gain'] for n, r in rows.items() if r['gain']['value'] is not None
    }
    if not known:
      continue
    best = max(known, key=lambda n: known[n]['value'])
    value, _, span = allocation_words.gain(known[best]).partition(' [')
    name = f'gain of {best}, {replay_sections.name_of(cells, cell)}'
    yield value, f'[{span}' if span else '', name


def _doubts(result: Mapping[str, Any]) -> Iterator[str]:
  """What a reader must know before believing the numbers."""
  cells = result['cells']
  flags = dict.fromkeys(
    f'{cell["table"]}: {flag}.' for cell in cells for flag in cell['flags']
  )
  yield from flags
  beaten = [
    replay_sections.name_of(cells, cell)
    for cell in cells
    if 'uniform' in cell['policies']
    and (cell['policies']['uniform']['gain']['lo'] or 0) > 0
  ]
  if beaten:
    yield (
      'Equal shares for all (uniform) did better than Successive Halving at'
      f' {text_lib.listing(beaten)}: where candidates reach their ends within the'
      ' budget, pruning saves nothing.'
    )
  rich = [
    replay_sections.name_of(cells, cell)
    for cell in cells
    if (cell['policies'][comparison.BASE]['saving']['value'] or 0) < 0
  ]
  if rich:
    yield (
      'The budget is above what training all candidates to their ends costs at'
      f' {text_lib.listing(rich)}: nothing can be saved there.'
    )
  nominal = surrogate.LEVEL
  for name in dict.fromkeys(n for c in cells for n in c['calibration']):
    rows = [row for c in cells for row in c['calibration'].get(name, [])]
    count = sum(row['predictions'] for row in rows)
    if not count:
      continue
    covered = (
      sum(row['coverage']['value'] * row['predictions'] for row in rows) / count
    )
    if covered < nominal - _COVERED_LESS:
      yield (
        f'{name}: its intervals of {100 * nominal:g} % held'
        f' {text_lib.number(100 * covered, 2)} % of'
        f' {text_lib.count(count, "prediction")}; it is surer than it may be.'
      )
  without = {
    name: draws - fits
    for cell in cells
    for name, row in cell['policies'].items()
    if result['config']['law']['form']
    and (fits := row['law_fits']) < (draws := cell['draws'])
  }
  if without:
    yield (
      'No law, or none with a minimum, could be fitted in some draws of'
      f' {text_lib.listing(list(without))}; in its median those are infinitely wrong.'
    )
  draws = min(cell['draws'] for cell in cells)
  if draws < _FEW_DRAWS:
    yield (
      f'{text_lib.count(draws, "draw")}: the intervals themselves are uncertain.'
    )
  yield (
    'Draws share curves, so that an interval says how sure the mean over draws'
    ' of these curves is, not how other curves would do.'
  )


def _record(result: Mapping[str, Any]) -> html.Section:
  """What was replayed, with what settings, from which files."""
  config = result['config']
  law = config['law']
  items = {
    'Draws': f'{config["draws"]}, seed {config["seed"]}',
    'One in so many stays (eta)': str(config['eta']),
    'Law': (
      f'{law["form"] or "none"}'
      f'{", of rows with " + " and ".join(law["where"]) if law["where"] else ""}'
      f', compared at {law["beyond"]:g} times the largest compute'
    ),
  }
  for cell in result['cells']:
    source = cell['source']
    items[f'Curves: {cell["table"]}'] = f'{cell["curves"]} of {source["path"]}'
    if source['sha256']:
      items[f'SHA-256 of {cell["table"]}'] = source['sha256']
  seconds: dict[str, float] = {}
  for cell in result['cells']:
    for name, taken in cell['seconds'].items():
      seconds[name] = seconds.get(name, 0.0) + taken
  items['Time'] = (
    f'{text_lib.duration(result["seconds"])} in all; '
    + ', '.join(
      f'{name} {text_lib.duration(taken)}' for name, taken in seconds.items()
    )
  )
  for name, version in result['versions'].items():
    if version:
      items[f'Version of {name}'] = version
  return html.Section(
    'record',
    'What was run',
    html.terms(items)
    + f'<pre class="scroll">{html_lib.escape(result["summary_line"])}</pre>',
  )
