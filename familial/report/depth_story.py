"""One page on depth: its law, what the layers do, toys of known regime, verdict."""

from collections.abc import Iterator
from collections.abc import Mapping
import pathlib
from typing import Any

from familial import errors
from familial import records
from familial.analysis import figures_toys
from familial.report import depth_page
from familial.report import depth_regimes_page
from familial.report import html
from familial.report import results as results_lib
from familial.report import words
from familial.studies import depth_regimes_summary
from familial.studies import depth_toys_summary

# By kind of study: its experiment, and a key that only its summary has.
KINDS = {
  'law': ('depth_law', 'scan'),
  'regimes': ('depth_regimes', 'groups'),
  'toys': ('depth_toys', 'curves'),
}
# The power of depth by which loss falls, by regime (arXiv 2602.05970).
EXPONENTS = {'ensemble': 1.0, 'smooth': 3.0}
_SUBTITLE = (
  'Loss falls with depth. How fast, what the layers do, what networks whose regime'
  ' is known by construction do, and whether the three agree.'
)
_FORM = 'width_depth'
Row = Mapping[str, Any]


def write(studies: Mapping[str, str], out: str | pathlib.Path) -> str:
  """Writes OUT/index.html and OUT/figures; returns the verdict and the path.

  Args:
    studies: folder of each study, of some of KINDS; '' for none.
    out: folder.

  Raises:
    UserError: if there is no study, or a folder holds another one.
  """
  folders = {kind: folder for kind, folder in studies.items() if folder}
  if not folders:
    flags = ', '.join(f'--{kind}' for kind in KINDS)
    raise errors.UserError(f'{flags}: at least one of them is needed')
  found = {kind: _summary(kind, folder) for kind, folder in folders.items()}
  out = pathlib.Path(out)
  gallery = html.Gallery(out / 'figures')
  said = list(verdict(found))
  sections = [
    html.Section(
      'verdict',
      'Verdict',
      html.paragraph(said[-1], 'lede') + html.bullets(said[:-1]),
    )
  ]
  if 'law' in found:
    results = results_lib.read(pathlib.Path(folders['law']))
    sections += depth_page.findings(results, gallery)
  if 'regimes' in found:
    sections += depth_regimes_page.findings(found['regimes'], gallery)
  if 'toys' in found:
    sections.append(_toys(found['toys'], gallery))
  if 'regimes' in found:
    sections.append(depth_regimes_page.terms(found['regimes']))
  path = out / 'index.html'
  records.write_text(
    path, html.page('Depth', html.paragraph(_SUBTITLE), sections)
  )
  return f'{said[-1]} -> {path}'


def _summary(kind: str, folder: str) -> Row:
  path = pathlib.Path(folder) / 'summary.json'
  experiment, key = KINDS[kind]
  found: Row = records.read_own(path) if path.exists() else {}
  if key not in found:
    raise errors.UserError(
      f'--{kind}: {folder} is not the folder of a finished study of'
      f' experiments/{experiment}.py'
    )
  return found


def verdict(found: Mapping[str, Row]) -> Iterator[str]:
  """Yields what each study says, and last whether they agree."""
  power = dense = None
  if 'law' in found:
    law = (found['law'].get('laws') or {}).get(_FORM)
    if law:
      power = law['params']['a_depth']
      best = found['law']['selection']['candidates'][0]['form']
      yield (
        'Law: loss falls as depth to the power of'
        f' {words.estimate(power["value"], power["lo"], power["hi"])}'
        f'{"" if power["identified"] else ", which the points do not pin down"};'
        f' of the forms, {best} has the lowest AIC.'
      )
    else:
      yield 'Law: none could be fitted.'
  if 'regimes' in found:
    for group in found['regimes']['groups']:
      if group['exits'] == 1:
        dense = group
        yield (
          f'Layers: dense models of {group["depth"]} layers are'
          f' {_named(group["regime"])}'
          f' ({group["regimes"].count(group["regime"])} of'
          f' {len(group["regimes"])} seeds alone).'
        )
    moved = ', '.join(
      f'G = {each["exits"]} {depth_regimes_summary.towards_composition(each["rows"])}'
      for each in found['regimes']['differences']
    )
    if moved:
      yield f'Exits: do they push the layers towards composition? {moved}.'
  if 'toys' in found:
    parts = [
      f'{curve["study"].replace("_", " ")}, {curve["teacher"]}'
      + (
        f', T = {curve["temperature"]:g}'
        if curve['temperature'] is not None
        else ''
      )
      + f': {_estimate(curve["exponent"])}'
      for curve in found['toys']['curves']
    ]
    yield f'Toys, exponents of depth: {"; ".join(parts)}.'
  if power is None or dense is None or dense['regime'] not in EXPONENTS:
    yield 'Law and layers cannot be held against each other here.'
    return
  expected = EXPONENTS[dense['regime']]
  inside = power['lo'] <= expected <= power['hi']
  yield (
    f'Layers that are {_named(dense["regime"])} predict an exponent of'
    f' {expected:g}: the law, {words.estimate(*_ends(power))},'
    f' {"agrees" if inside else "does not"}.'
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
    ('toys_loss', figures_toys.losses(curves), 'Test loss by depth'),
    (
      'toys_steps',
      figures_toys.evolution(curves),
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
  return words.estimate(*_ends(row))


def _ends(row: Row) -> list[float | None]:
  return [row[key] for key in ('value', 'lo', 'hi')]
