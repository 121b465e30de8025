"""One page on depth: its law, the layers' regimes, toys, and whether they agree."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
import pathlib
from typing import Any

from familial.core import errors
from familial.core import text
from familial.core.estimate import Estimate
from familial.report import page
from familial.report import render
from familial.studies import depth_law
from familial.studies import depth_regimes
from familial.studies import depth_toys
from familial.studies import registry
from familial.studies import study

# Kind of study by the flag that names its folder.
KINDS = {'law': 'depth', 'regimes': 'depth_regimes', 'toys': 'depth_toys'}
# Power of depth by which loss falls, by regime (arXiv 2602.05970).
EXPONENTS = {'ensemble': 1.0, 'smooth': 3.0}
# Regime of toy students by the layers of their teachers.
TEACHERS = {'independent': 'ensemble', 'tied': 'smooth'}
# Constants of the law that its exponent of depth depends on.
_NEEDED = ('E', 'c_depth', 'a_depth')


@dataclasses.dataclass(frozen=True)
class Finding:
  """An exponent of depth, from one part of the page.

  Attributes:
    part: `law`, `layers`, `exits` or `toys`.
    of: what was fitted or trained.
    says: the regime, or what the exponent depends on.
    exponent: measured exponent of depth.
    expected: exponent of the regime that it is compared with.
    agrees: `yes` if the interval contains the expected exponent, else `no`;
      `open` if there is no interval, nothing to compare, or a constant that is
      not identified; '' where no exponent is measured.
  """

  part: str
  of: str
  says: str
  exponent: Estimate | None = None
  expected: float | None = None
  agrees: str = ''


@dataclasses.dataclass(frozen=True)
class Span:
  """Range of the intervals of all toys with one kind of teacher.

  `meets_law`: whether the law's interval overlaps it; `open` as in `Finding`.
  """

  teacher: str
  regime: str
  lo: float
  hi: float
  meets_law: str


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The findings of all studies of depth, compared.

  Attributes:
    agrees: whether the law's exponent is that of the layers' regime.
    findings: of each part.
    spans: of the toys.
    overlap: whether the spans of both teachers overlap, so that an exponent does
      not tell the regime; `open` without both.
  """

  agrees: str
  findings: tuple[Finding, ...]
  spans: tuple[Span, ...]
  overlap: str


def write(folders: Mapping[str, str], out: str | os.PathLike[str]) -> str:
  """Writes OUT/index.html and OUT/figures; returns the verdict and the path.

  Args:
    folders: folder of each study by the names of KINDS; '' for none.
    out: folder of the page.

  Raises:
    UserError: if no folder is given, or one does not hold a summary of its kind.
  """
  given = {name: folder for name, folder in folders.items() if folder}
  if not given:
    flags = ', '.join(f'--{name}' for name in KINDS)
    raise errors.UserError(f'{flags}: at least one of them is needed')
  tables: dict[str, Any] = dict.fromkeys(KINDS)
  rows: tuple[Mapping[str, Any], ...] = ()
  for name, folder in given.items():
    try:
      kind = registry.STUDIES[KINDS[name]]
      tables[name] = page.summary_of(kind, pathlib.Path(folder)).tables
      if name == 'law':
        rows = study.read(folder).rows
    except errors.UserError as error:
      raise errors.UserError(f'--{name}: {error}') from None
  found = verdict(**tables)
  path = render.write(
    out,
    'depth_story',
    title='Depth',
    verdict=found,
    rows=rows,
    plots=page.PLOTS,
    **tables,
  )
  return f'law and layers agree: {found.agrees} -> {path}'


def verdict(
  law: depth_law.Tables | None = None,
  regimes: depth_regimes.Tables | None = None,
  toys: depth_toys.Tables | None = None,
) -> Verdict:
  """Compares the findings of the studies.

  The law is compared with the deepest dense models.
  """
  dense = [g for g in regimes.groups if g.exits == 1] if regimes else []
  deepest = max(dense, key=lambda group: group.depth, default=None)
  expected = EXPONENTS.get(deepest.regime) if deepest else None
  constants = law.constants_of() if law else {}
  open_ = [
    name for name in _NEEDED if constants and not constants[name].identified
  ]
  exponent = constants['a_depth'].value if constants and not open_ else None
  agrees = _agrees(exponent, expected)
  findings: list[Finding] = []
  if constants:
    findings.append(
      Finding(
        'law',
        f'term of depth, E = {text.number(constants["E"].value.value)}',
        f'not identified: {", ".join(open_)}' if open_ else 'identified',
        constants['a_depth'].value,
        expected,
        agrees,
      )
    )
  findings += [
    Finding(
      'layers',
      f'dense, {group.depth} layers',
      f'{group.regime} ({group.same} of {group.seeds} seeds alone)',
      expected=EXPONENTS.get(group.regime),
    )
    for group in dense
  ]
  findings += [
    Finding(
      'exits',
      f'G = {row.exits}, {row.depth} layers',
      f'towards composition: {row.composition}',
    )
    for row in (regimes.towards if regimes else ())
  ]
  curves = toys.curves if toys else ()
  findings += map(_toy, curves)
  spans = tuple(_spans(curves, exponent))
  return Verdict(agrees, tuple(findings), spans, _overlap(spans))


def _agrees(exponent: Estimate | None, expected: float | None) -> str:
  if exponent is None or expected is None or not exponent.bounded:
    return 'open'
  return 'yes' if expected in exponent else 'no'


def _shows_regime(curve: depth_toys.Curve) -> bool:
  """Returns whether the teacher alone decides the regime of the students.

  They have several layers of one stage and a deeper teacher.
  """
  return (
    curve.stages == 1
    and not curve.one_layer
    and max(curve.depths) < curve.teacher_depth
  )


def _toy(curve: depth_toys.Curve) -> Finding:
  name = f'{curve.study.replace("_", " ")}, {curve.teacher} layers'
  if curve.temperature is not None:
    name += f', T = {curve.temperature:g}'
  regime, expected = 'control', None
  if _shows_regime(curve):
    regime = TEACHERS[curve.teacher]
    expected = EXPONENTS[regime]
  return Finding(
    'toys',
    name,
    regime + (', not a power law' if curve.bent else ''),
    curve.exponent,
    expected,
    '' if expected is None else _agrees(curve.exponent, expected),
  )


def _spans(
  curves: Sequence[depth_toys.Curve], exponent: Estimate | None
) -> Iterator[Span]:
  for teacher, regime in TEACHERS.items():
    ends = [
      end
      for curve in curves
      if curve.teacher == teacher and _shows_regime(curve) and curve.exponent
      for end in (curve.exponent.value, curve.exponent.lo, curve.exponent.hi)
      if end is not None
    ]
    if ends:
      lo, hi = min(ends), max(ends)
      meets = 'open'
      if exponent and exponent.lo is not None and exponent.hi is not None:
        meets = 'yes' if exponent.lo <= hi and exponent.hi >= lo else 'no'
      yield Span(teacher, regime, lo, hi, meets)


def _overlap(spans: Sequence[Span]) -> str:
  if len(spans) < len(TEACHERS):
    return 'open'
  low, high = max(span.lo for span in spans), min(span.hi for span in spans)
  return 'yes' if low <= high else 'no'
