"""The kinds of studies: a new one is a module, and a line here."""

from collections.abc import Mapping
from typing import Any

from familial.core import errors
from familial.studies import depth_law
from familial.studies import depth_regimes
from familial.studies import depth_toys
from familial.studies import families
from familial.studies import isoflop
from familial.studies import live_allocation
from familial.studies import study as study_lib

STUDIES: Mapping[str, study_lib.Study[Any, Any]] = {
  study.kind: study
  for study in (
    isoflop.ISOFLOP,
    families.FAMILIES,
    depth_law.DEPTH,
    depth_regimes.REGIMES,
    live_allocation.LIVE,
    depth_toys.TOYS,
  )
}


def of_config(config: Mapping[str, Any]) -> study_lib.Study[Any, Any] | None:
  """Returns the kind of study that a config asks for; None for another config.

  Raises:
    UserError: if its `kind` is unknown.
  """
  return _get(config['kind'], 'kind') if 'kind' in config else None


def of_plan(plan: Mapping[str, Any]) -> study_lib.Study[Any, Any]:
  """Returns the kind of study that a `plan.json` was made for."""
  if 'study' not in plan:
    # Rows that were kept without a plan; toys name no kind in schema 1.
    return STUDIES['depth_toys' if 'studies' in plan else 'isoflop']
  return _get(plan['study'], 'study')


def _get(kind: str, key: str) -> study_lib.Study[Any, Any]:
  errors.require_one_of(key, kind, STUDIES)
  return STUDIES[kind]
