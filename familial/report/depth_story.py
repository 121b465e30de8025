"""One page on depth: its law, what the layers do, toys of known regime, verdict."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import math
import pathlib
import tempfile
from typing import Any

from familial.core import errors
from familial.core import storage
from familial.core import text
from familial.plots import toys
from familial.report import depth_checks
from familial.report import depth_page
from familial.report import depth_regimes_page
from familial.report import html
from familial.report import results as results_lib
from familial.studies import depth_regimes_summary
from familial.studies import depth_toys_summary

# By kind of study: its experiment, and a key that only its summary has.
KINDS = {
  'law': ('depth_law', 'scan'),
  'regimes': ('depth_regimes', 'groups'),
  'toys': ('depth_toys', 'curves'),
}
# The power of depth by which loss falls, by regime (arXiv 2602.05970), and the
# toys' teachers whose students are in it by construction.
EXPONENTS = {'ensemble': 1.0, 'smooth': 3.0}
_TEACHERS = {'independent': 'ensemble', 'tied': 'smooth'}
_SUBTITLE = (
  'Loss falls with depth. How fast, what the layers do, what networks whose regime'
  ' is known by construction do, and whether the three agree.'
)
_FORM = 'width_depth'
# What the exponent of depth hangs on: if one of them is open, so is it.
_NEEDED = ('E', 'c_depth', 'a_depth')
_NOTHING = 1e-6  # nats below which an E is as good as 0
Row = Mapping[str, Any]


def write(studies: Mapping[str, str], out: str | pathlib.Path) -> str:
  """Writes OUT/index.html and OUT/figures; returns the verdict and the path.

  Args:
    studies: folder of each study, of some of KINDS; '' for none.
    out: folder.

  Raises:
    UserError: if there is no study, a folder holds another one, or a summary
      lacks what the page reads; nothing is written then.
  """
  folders = {kind: folder for kind, folder in studies.items() if folder}
  if not folders:
    flags = ', '.join(f'--{kind}' for kind in KINDS)
    raise errors.UserError(f'{flags}: at least one of them is needed')
  found = {kind: _summary(kind, folder) for kind, folder in folders.items()}
  law = (
    results_lib.read(pathlib.Path(folders['law'])) if 'law' in found else None
  )
  out = pathlib.Path(out)
  # Figures are kept aside until the page stands, so that none is left of half.
  with tempfile.TemporaryDirectory() as aside:
    gallery = html.Gallery(pathlib.Path(aside))
    said, sections = _sections(found, law, gallery)
    for figure in sorted(gallery.shown):
      storage.write_bytes(out / 'figures' / figure.name, figure.read_bytes())
  path = out / 'index.html'
  storage.write_text(
    path, html.page('Depth', html.paragraph(_SUBTITLE), sections)
  )
  return f'{said} -> {path}'


def _sections(
  found: Mapping[str, Row],
  law: results_lib.Results | None,
  gallery: html.Gallery,
) -> tuple[str, list[html.Section]]:
  """Returns the verdict in a line, and the page's sections in order."""
  *lines, said = verdict(found)
  body = html.paragraph(said, 'lede') + html.bullets(lines)
  if law:
    body += html.doubts(depth_page.doubts(law.summary))
  sections = [html.Section('verdict', 'Verdict', body)]
  if law:
    sections += depth_page.findings(law, gallery)
  if 'regimes' in found:
    sections += depth_regimes_page.findings(found['regimes'], gallery)
  if 'toys' in found:
    sections.append(_toys(found['toys'], gallery))
  if 'regimes' in found:
    sections.append(depth_regimes_page.terms(found['regimes']))
  return said, sections


def _summary(kind: str, folder: str) -> Row:
  path = pathlib.Path(folder) / 'summary.json'
  experiment, key = KINDS[kind]
  found: Row = storage.read_own(path) if path.exists() else {}
  if key not in found:
    raise errors.UserError(
      f'--{kind}: {folder} is not the folder of a finished study of'
      f' experiments/{experiment}.py'
    )
  depth_checks.check(kind, path, found)
  return found


def verdict(found: Mapping[str, Row]) -> Iterator[str]:
  """Yields what each study says, and last whether they agree."""
  law = ((found.get('law') or {}).get('laws') or {}).get(_FORM)
  dense = None
  if 'law' in found:
    yield from _law(found['law'], law)
  if 'regimes' in found:
    dense = _dense(found['regimes']['groups'])
    yield from _layers(found['regimes'], dense)
  if 'toys' in found:
    yield from _toy_exponents(found['toys']['curves'], law)
    yield from _depth_or_width(found['toys']['pairs'])
  yield _agreement(law, dense)


def _law(summary: Row, law: Row | None) -> Iterator[str]:
  """Yields the law's exponent of depth and what it hangs on."""
  if law is None:
    yield 'Law: none could be fitted.'
    return
  selection = summary.get('selection')
  best = (
    f' Of the forms, {selection["candidates"][0]["form"]} has the lowest AIC.'
    if selection
    else ''
  )
  yield (
    'Law: the loss is a sum, and one of its terms is c_depth / depth^a_depth, with'
    f' a_depth {_estimate(law["params"]["a_depth"])}: the exponent of that term, not'
    f' of the loss.{best}'
  )
  open_ = _open(law)
  if open_:
    yield (
      f'The exponent of that term is conditional on {_condition(law)}:'
      f' the points do not pin down {text.listing(open_)}, so it settles nothing.'
    )
  over = (summary.get('over_E') or {}).get('rows') or []
  if over:
    yield 'With E held: ' + '; '.join(
      f'at {_nats(row["value"])}, a_depth {text.number(row["params"]["a_depth"])}'
      f' (AIC {text.number(row["aic_behind"], 2)} behind)'
      for row in over
    )  # fmt: skip


def _layers(summary: Row, dense: Row | None) -> Iterator[str]:
  """Yields the regime of each dense model, and what exits do to it."""
  for group in summary['groups']:
    if group['exits'] == 1:
      alone = group['regimes'].count(group['regime'])
      held = (
        ', the deepest, which the law is held against'
        if group is dense and _count_dense(summary) > 1
        else ''
      )
      yield (
        f'Layers: dense models of {group["depth"]} layers are'
        f' {_named(group["regime"])} ({alone} of {len(group["regimes"])} seeds'
        f' alone){held}.'
      )
  moved = ', '.join(
    f'G = {each["exits"]} {depth_regimes_summary.towards_composition(each["rows"])}'
    for each in summary['differences']
  )
  if moved:
    yield f'Exits: do they push the layers towards composition? {moved}.'


def _toy_exponents(curves: Sequence[Row], law: Row | None) -> Iterator[str]:
  """Yields the toys' exponents by teachers, and what follows from them."""
  spans = {}
  for teacher, regime in _TEACHERS.items():
    mine = [c for c in curves if c['teacher'] == teacher and _is_test(c)]
    if not mine:
      continue
    expected = EXPONENTS[regime]
    hold = sum(_holds(curve['exponent'], expected) for curve in mine)
    yield (
      f'Toys, {teacher} layers, which are {_named(regime)} by construction: '
      f'{_listed(mine)}. {hold} of {len(mine)} intervals hold {expected:g}.'
    )
    ends = [
      end for c in mine for end in _ends(c['exponent']) if end is not None
    ]
    if ends:
      spans[teacher] = (min(ends), max(ends))
  others = [curve for curve in curves if not _is_test(curve)]
  if others:
    yield (
      'Toys whose teachers are no deeper than their students, whose layers have two'
      f' stages, or that have but one layer: {_listed(others, named=True)}.'
    )
  if len(spans) < len(_TEACHERS):
    yield (
      'What follows from the toys: nothing for the law, without exponents of both'
      ' independent and tied layers.'
    )
    return
  independent, tied = spans['independent'], spans['tied']
  low, high = max(independent[0], tied[0]), min(independent[1], tied[1])
  reach = (
    f'with their intervals, exponents reach from {text.number(independent[0])} to'
    f' {text.number(independent[1])} for independent layers and from'
    f' {text.number(tied[0])} to {text.number(tied[1])} for tied ones'
  )
  yield (
    f'What follows from the toys: {reach}. '
    + (
      'They overlap, so an exponent from'
      f' {text.number(low)} to {text.number(high)} tells no regime.'
      if low <= high
      else 'They do not overlap, so there an exponent tells the regime.'
    )
    + _law_among(spans, law)
    + ' Toys are no language models: what carries over is whether an exponent can'
    ' tell, not its value.'
  )


def _depth_or_width(pairs: Sequence[Row]) -> Iterator[str]:
  """Yields what depth does that a single layer of as many units does not."""
  for pair in pairs:
    if pair['equal'] != 'units':
      continue
    ratio = [
      None if end is None else math.exp(end) for end in _ends(pair['log_ratio'])
    ]
    yield (
      f'Depth or width, {pair["teacher"]} layers: students of l layers have'
      f' {text.estimate(*ratio)} of the loss of a single layer of as many hidden'
      f' units, and an exponent of {_estimate(pair["exponent"])} where that has'
      f' {_estimate(pair["base_exponent"])}.'
    )


def _law_among(
  spans: Mapping[str, tuple[float, float]], law: Row | None
) -> str:
  """Returns which toys have exponents that the law's interval meets."""
  if law is None:
    return ''
  power = law['params']['a_depth']
  if _open(law) or None in _ends(power):
    return " The law's exponent, which is open, cannot be laid beside them."
  met = [
    teacher
    for teacher, (low, high) in spans.items()
    if power['lo'] <= high and power['hi'] >= low
  ]
  return (
    f" The law's, {_estimate(power)}, meets those of"
    f' {text.listing(met) or "neither kind"}{" layers" if met else ""}.'
  )


def _agreement(law: Row | None, dense: Row | None) -> str:
  """Returns whether the law's exponent is that of the layers' regime."""
  if law is None or dense is None or dense['regime'] not in EXPONENTS:
    return 'Law and layers cannot be held against each other here.'
  power, expected = law['params']['a_depth'], EXPONENTS[dense['regime']]
  said = (
    f'Layers that are {_named(dense["regime"])}, as in the dense models of'
    f' {dense["depth"]} layers, predict an exponent of {expected:g}: that of the'
    f" law's term of depth, {_estimate(power)},"
  )
  open_ = _open(law)
  if open_:
    return (
      f'{said} is conditional on {_condition(law)}, for the points do not pin down'
      f' {text.listing(open_)}, and settles nothing.'
    )
  if None in _ends(power):
    return f'{said} has no interval, and settles nothing.'
  return f'{said} {"agrees" if _holds(power, expected) else "does not agree"}.'


def _dense(groups: Sequence[Row]) -> Row | None:
  """Returns the deepest dense models: the law is of many layers."""
  found = [group for group in groups if group['exits'] == 1]
  return max(found, key=lambda group: group['depth'], default=None)


def _count_dense(summary: Row) -> int:
  return sum(group['exits'] == 1 for group in summary['groups'])


def _open(law: Row) -> list[str]:
  """Returns what the points do not pin down of what the exponent hangs on."""
  return [name for name in _NEEDED if not law['params'][name]['identified']]


def _condition(law: Row) -> str:
  return f'E = {_nats(law["params"]["E"]["value"])}'


def _nats(value: float | None) -> str:
  return '0' if value is not None and value < _NOTHING else text.number(value)


def _is_test(curve: Row) -> bool:
  """Returns whether a toy can show its regime: layers of one stage, several of
  them, and a deeper teacher."""
  return (
    curve['stages'] == 1
    and not curve['one_layer']
    and max(curve['depths']) < curve['teacher_depth']
  )


def _holds(row: Row, expected: float) -> bool:
  if None in _ends(row):
    return False
  return bool(row['lo'] <= expected <= row['hi'])


def _listed(curves: Sequence[Row], named: bool = False) -> str:
  """Returns exponents by study and, if they are to be named, teachers."""
  return '; '.join(
    f'{curve["study"].replace("_", " ")}{", " + curve["teacher"] if named else ""}'
    + (
      f', T = {curve["temperature"]:g}'
      if curve['temperature'] is not None
      else ''
    )
    + f': {_estimate(curve["exponent"])}'
    + (', no power law' if toys.bent(curve) else '')
    for curve in curves
  )


def _toys(summary: Row, gallery: html.Gallery) -> html.Section:
  curves = summary['curves']
  body = html.paragraph(
    'Students of several depths learn from deeper teachers of random weights. Of'
    ' layers of their own, students can only average, and the exponent should be 1;'
    ' of one layer repeated, they follow a smooth path, and it should be 3, more'
    ' with layers of two stages.'
  )
  for name, figure, alt in (
    ('toys_loss', toys.losses(curves), 'Test loss by depth'),
    (
      'toys_steps',
      toys.evolution(curves),
      'Exponents of depth along training',
    ),
  ):
    body += gallery.show(name, figure, f'{alt}, a panel a study', f'{alt}.')
  head, *rows = depth_toys_summary.table(dict(summary))
  body += html.table(
    head,
    rows,
    f'Exponents, mean over {summary["teachers"]} teachers and its interval of'
    f' {100 * summary["level"]:g} %; what averaging over a teacher of that many'
    ' layers would give; and the regime that the students’ states tell.',
    align='lllllll',
  )
  return html.Section('toys', 'Toys of known regime', body)


def _named(regime: str) -> str:
  return {
    'ensemble': 'averaging (ensemble)',
    'smooth': 'smooth dynamics',
    'compositional': 'compositional',
  }.get(regime, 'of no regime that could be named')


def _estimate(row: Row) -> str:
  return text.estimate(*_ends(row))


def _ends(row: Row) -> list[float | None]:
  return [row[key] for key in ('value', 'lo', 'hi')]
