"""What the page on depth reads of summaries, held against files from outside."""

from collections.abc import Mapping
import dataclasses
import math
import pathlib
from typing import Any

from familial.core import errors
from familial.laws import forms
from familial.plots import regimes

_NUMBER, _TEXT, _TRUTH = 'a number', 'a text', 'true or false'


@dataclasses.dataclass(frozen=True)
class _Maybe:
  """What may be null; `absent`: or left out."""

  of: Any
  absent: bool = False


@dataclasses.dataclass(frozen=True)
class _Many:
  """A list of so many at least."""

  of: Any
  least: int = 1


@dataclasses.dataclass(frozen=True)
class _Named:
  """An object of any keys."""

  of: Any


_REAL = _Maybe(_NUMBER)
_ESTIMATE = {'value': _REAL, 'lo': _REAL, 'hi': _REAL}
_MEAN = {**_ESTIMATE, 'value': _NUMBER}
_CONSTANT = {**_ESTIMATE, 'identified': _TRUTH}
_FLAGS = _Maybe(_Many(_TEXT, 0), absent=True)
_LAW = {'params': _Named(_CONSTANT), 'flags': _FLAGS}
_SPECS: dict[str, dict[str, Any]] = {
  'law': {
    'laws': _Maybe(_Named(_LAW), absent=True),
    'notes': _FLAGS,
    'design': _Maybe(
      {
        'runs': _NUMBER,
        'correlations': _Many({'columns': _Many(_TEXT), 'value': _REAL}, 0),
        'condition_number': _REAL,
      },
      absent=True,
    ),
    'selection': _Maybe(
      {
        'candidates': _Many(
          {
            'form': _TEXT,
            'parameters': _NUMBER,
            'aic_behind': _NUMBER,
            'by_model': _Maybe({'error': _MEAN, 'errors': _Many(_NUMBER, 0)}),
            'model_error_behind': _Maybe(_MEAN),
          }
        )
      },
      absent=True,
    ),
    'scan': _Maybe(
      {
        'form': _TEXT,
        'cutoffs': _Many(
          {
            'dropped': _NUMBER,
            'rows': _NUMBER,
            'below': _REAL,
            'params': _Named(_ESTIMATE),
            'flags': _FLAGS,
          }
        ),
      }
    ),
    'over_E': _Maybe(
      {
        'form': _TEXT,
        'rows': _Many(
          {
            'value': _NUMBER,
            'params': _Named(_REAL),
            'aic_behind': _REAL,
            'flags': _FLAGS,
          }
        ),
      },
      absent=True,
    ),
    'rates': _Maybe(
      _Many(
        {
          'width': _NUMBER,
          'depth': _NUMBER,
          'base_lr': _NUMBER,
          'loss': _REAL,
          'over': _REAL,
        },
        0,
      ),
      absent=True,
    ),
  },
  'regimes': {
    'level': _NUMBER,
    'definitions': _Named(_TEXT),
    'groups': _Many(
      {
        'depth': _NUMBER,
        'exits': _NUMBER,
        'loss': _Many(_NUMBER),
        'regime': _TEXT,
        'strength': _REAL,
        'scores': _Named(_REAL),
        'notes': _Many(_TEXT, 0),
        'regimes': _Many(_TEXT),
        'early_at': _Many({'remaining': _NUMBER, **_ESTIMATE}),
        'statistics': _Many(dict.fromkeys(regimes.STATISTICS, _REAL)),
        'layers': dict.fromkeys(
          regimes.LAYERS,
          _Many({'layer': _NUMBER, 'mean': _REAL}, 0),
        ),
      }
    ),
    'differences': _Many(
      {
        'depth': _NUMBER,
        'exits': _NUMBER,
        'rows': _Many(
          {
            'name': _TEXT,
            'pairs': _NUMBER,
            **dict.fromkeys(
              ('layer', 'one', 'other', 'difference', 'low', 'high'), _REAL
            ),
          }
        ),
      },
      0,
    ),
  },
  'toys': {
    'level': _NUMBER,
    'teachers': _NUMBER,
    'curves': _Many(
      {
        'study': _TEXT,
        'teacher': ('independent', 'tied'),
        'temperature': _REAL,
        'teacher_depth': _NUMBER,
        'stages': _NUMBER,
        'one_layer': _TRUTH,
        'depths': _Many(_NUMBER, 2),
        'exponent': _ESTIMATE,
        'deep': _ESTIMATE,
        'curvature': _ESTIMATE,
        'averaging': _REAL,
        'evolution': _Many({'steps': _NUMBER, **_ESTIMATE}),
        'loss': _Many(_Many(_Many(_REAL))),
      }
    ),
    'pairs': _Many(
      {
        'study': _TEXT,
        'base': _TEXT,
        'teacher': _TEXT,
        'temperature': _REAL,
        'equal': _TEXT,
        'depths': _Many(_NUMBER, 0),
        'exponent': _ESTIMATE,
        'base_exponent': _ESTIMATE,
        'difference': _ESTIMATE,
        'log_ratio': _ESTIMATE,
      },
      0,
    ),
    'regimes': _Many(
      {
        'study': _TEXT,
        'teacher': _TEXT,
        'temperature': _REAL,
        'text': _TEXT,
      },
      0,
    ),
  },
}


def check(kind: str, path: pathlib.Path, found: Mapping[str, Any]) -> None:
  """Refuses a summary that lacks what the page reads, by file and key.

  Args:
    kind: of study, one of depth_story.KINDS.
    path: of the summary.
    found: its content.

  Raises:
    UserError: if something is missing, or is not what it must be.
  """
  _check(str(path), found, _SPECS[kind], '')
  if kind == 'law':
    _law(str(path), found)
  if kind == 'toys':
    for number, curve in enumerate(found['curves']):
      for losses in (row for table in curve['loss'] for row in table):
        if len(losses) != len(curve['depths']):
          raise errors.UserError(
            f'{path}: curves[{number}].loss does not have a loss for each of'
            f' its {len(curve["depths"])} depths'
          )


def _law(path: str, found: Mapping[str, Any]) -> None:
  """Every constant of the law is there, in each of its fits."""
  parts: list[tuple[str, str, Any, Any]] = [
    (f'laws.{name}', name, law, _CONSTANT)
    for name, law in (found.get('laws') or {}).items()
  ]
  held: list[tuple[str, str, Any]] = [
    ('scan', 'cutoffs', _ESTIMATE),
    ('over_E', 'rows', _REAL),
  ]
  for key, rows, of in held:
    part = found.get(key) or {rows: ()}
    parts += [
      (f'{key}.{rows}[{number}]', part['form'], row, of)
      for number, row in enumerate(part[rows])
    ]
  for at, form, part, of in parts:
    if form in forms.FORMS:  # A name from outside is not to load a file.
      spec = dict.fromkeys(forms.FORMS[form].names, of)
      _check(path, part['params'], spec, f'{at}.params')


def _check(path: str, value: Any, spec: Any, at: str) -> None:
  if isinstance(spec, _Maybe):
    if value is not None:
      _check(path, value, spec.of, at)
  elif isinstance(spec, _Many):
    _require(path, isinstance(value, list), at, 'a list')
    if len(value) < spec.least:
      raise errors.UserError(
        f'{path}: {at} has {len(value)} entries; at least {spec.least} needed'
      )
    for number, each in enumerate(value):
      _check(path, each, spec.of, f'{at}[{number}]')
  elif isinstance(spec, _Named | dict):
    _require(path, isinstance(value, dict), at, 'an object')
    parts = (
      spec if isinstance(spec, dict) else dict.fromkeys(value, spec.of)
    ).items()
    for key, of in parts:
      name = f'{at}.{key}' if at else str(key)
      if key in value:
        _check(path, value[key], of, name)
      elif not (isinstance(of, _Maybe) and of.absent):
        raise errors.UserError(f'{path}: {name} is missing')
  elif isinstance(spec, tuple):
    _require(path, value in spec, at, f'one of {", ".join(spec)}')
  else:
    _require(path, _is(value, spec), at, spec)


def _is(value: Any, spec: str) -> bool:
  if spec == _NUMBER:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(value)
  return isinstance(value, str if spec == _TEXT else bool)


def _require(path: str, holds: bool, at: str, what: str) -> None:
  if not holds:
    raise errors.UserError(f'{path}: {at} must be {what}')
