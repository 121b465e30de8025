"""The report: one page without scripts that needs nothing else to be read."""

import os
import pathlib

from familial.core import errors
from familial.core import storage
from familial.report import allocation_page
from familial.report import answer
from familial.report import control_sections
from familial.report import depth_page
from familial.report import depth_regimes_page
from familial.report import families_page
from familial.report import gamma_sections
from familial.report import html
from familial.report import law_sections
from familial.report import record_sections
from familial.report import results as results_lib

_SUBTITLE = (
  'A familial model is one backbone with G exits, each a model of its own.'
  ' L(N, D, G) says what its members lose for sharing it.'
)


def write(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes `report/index.html` and `report/figures/*.png`; returns the page.

  Args:
    workdir: a study's folder with plan.json or rows; fits and summary.json may
      be missing, and the page then says what was not measured.

  Raises:
    UserError: if the folder holds neither a plan nor a row.
  """
  workdir = pathlib.Path(workdir)
  results = results_lib.read(workdir)
  if not results.runs:
    raise errors.UserError(
      f'workdir={str(workdir)!r} holds neither a plan.json with cells nor rows'
      ' below cells/; it must be a folder that `familial run` made'
    )
  gallery = html.Gallery(workdir / 'report' / 'figures')
  if results.plan.get('study') == 'families':
    subtitle = families_page.SUBTITLE
    sections = families_page.sections(results, gallery)
  elif results.plan.get('study') == 'allocation':
    subtitle = allocation_page.SUBTITLE
    sections = allocation_page.sections(results, gallery, workdir)
  elif results.plan.get('study') == 'depth':
    subtitle = depth_page.SUBTITLE
    sections = depth_page.sections(results, gallery)
  elif results.plan.get('study') == 'depth_regimes':
    subtitle = depth_regimes_page.SUBTITLE
    sections = depth_regimes_page.sections(results, gallery)
  else:
    subtitle, sections = _SUBTITLE, _sections(results, gallery)
  title = str(results.plan.get('title') or 'A familial study')
  path = workdir / 'report' / 'index.html'
  storage.write_text(path, html.page(title, html.paragraph(subtitle), sections))
  for old in gallery.folder.glob('*.png'):
    if old not in gallery.shown:
      old.unlink(missing_ok=True)
  return path


def _sections(
  results: results_lib.Results, gallery: html.Gallery
) -> list[html.Section]:
  """Returns the page's sections in order, those with nothing to say left out."""
  makers = (
    control_sections.paired,
    control_sections.twins,
    law_sections.exits,
    law_sections.isoflop,
    gamma_sections.gamma,
    law_sections.law,
    gamma_sections.profile,
    control_sections.leverage,
    control_sections.branch,
    control_sections.weighting,
    control_sections.frozen,
    control_sections.gradients,
  )
  parts = [make(results, gallery) for make in makers]
  return [
    answer.section(results),
    *html.with_unmeasured(part for part in parts if part is not None),
    record_sections.runs(results),
    record_sections.provenance(results),
    record_sections.definitions(results),
  ]
