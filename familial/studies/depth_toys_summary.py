"""How the loss of toy students falls with their depth, with intervals.

An exponent is minus the slope of log test loss on log depth, by least squares
over all depths of a study, for each teacher (with its student, inputs and test);
its value is their mean and its interval Student's over them. Teachers are few, so
intervals are wide, and what all teachers share (the depths, the steps) is not in
them.

A power law is a straight line. What a floor or a lack of training does shows as a
curvature, the second derivative of log loss in log depth: positive, the line
flattens towards deep students. `shallow` and `deep` are the slopes over either
half of the depths, `floor` the fit of c / l^a + L0.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import math
import os
import pathlib
from typing import Any

import numpy as np
from scipy import stats

from familial import records
from familial.report import words
from familial.studies import depth_toys_config as config_lib
from familial.studies import summary

LEVEL = 0.95
_SHARES = np.concatenate([[0.0], np.linspace(0.01, 0.99, 99)])


def write(
  asked: config_lib.ToysConfig,
  workdir: str | os.PathLike[str],
  results: Mapping[str, Mapping[int, records.Row]],
) -> str:
  """Writes `summary.json`; returns the main exponents in one line.

  Args:
    asked: what was asked.
    workdir: of it.
    results: of each study's depths.
  """
  curves = [
    curve
    for name, study in asked.studies.items()
    for curve in _curves(name, study, results[name])
  ]
  rows = [row for depths in results.values() for row in depths.values()]
  records.write_json(
    pathlib.Path(workdir) / 'summary.json',
    {
      'schema': records.SCHEMA,
      'title': asked.title,
      'machine': summary.machine(),
      'level': LEVEL,
      'teachers': asked.replicates,
      'seconds': {
        key: sum(row['seconds'][key] for row in rows)
        for key in ('compile', 'train')
      },
      'curves': curves,
    },
  )
  return '; '.join(_line(asked, curves))


def exponents(depths: Sequence[int], loss_TxL: np.ndarray) -> records.Row:
  """Returns what one study says of depth, for one teacher kind and temperature.

  Args:
    depths: of the students [L].
    loss_TxL: test losses of each teacher's students; NaN where there is none.

  Returns:
    `exponent`, `shallow`, `deep`, `curvature` and `floor` (see the module), each
    as `estimate` gives it; `floor` is of the exponent with a floor, and has the
    floor's mean `share` of the deepest students' loss.
  """
  x = np.log(depths)
  half = (len(x) + 1) // 2
  with np.errstate(invalid='ignore', divide='ignore'):
    y_TxL = np.log(loss_TxL)
  known = [np.isfinite(y) for y in y_TxL]
  slope = lambda x, y: -np.polyfit(x, y, 1)[0] if len(x) > 1 else math.nan
  floors = np.array(
    [_with_floor(x[k], y[k]) for k, y in zip(known, y_TxL, strict=True)]
  )
  of: dict[str, Sequence[float]] = {
    'exponent': [slope(x[k], y[k]) for k, y in zip(known, y_TxL, strict=True)],
    'shallow': [slope(x[:half], y[:half]) for y in y_TxL],
    'deep': [slope(x[-half:], y[-half:]) for y in y_TxL],
    'curvature': [
      2 * np.polyfit(x[k], y[k], 2)[0] if k.sum() > 2 else math.nan
      for k, y in zip(known, y_TxL, strict=True)
    ],
    'floor': list(floors[:, 0]),
  }
  found: records.Row = {key: estimate(values) for key, values in of.items()}
  found['floor']['share'] = _number(np.mean(floors[:, 1]))
  return found


def averaging(depths: Sequence[int], teacher_depth: int) -> float | None:
  """Returns the exponent of what averaging leaves: 1 / l - 1 / n.

  A student of l layers each of which stands for n / l of its teacher's n
  independent ones keeps none of their scatter at l = n, so over depths that come
  near n the exponent is above 1. None where they reach it.
  """
  if max(depths) >= teacher_depth:
    return None
  left = [1 / depth - 1 / teacher_depth for depth in depths]
  return float(-np.polyfit(np.log(depths), np.log(left), 1)[0])


def estimate(values: Sequence[float] | np.ndarray) -> records.Row:
  """Returns the mean over teachers, its interval, and each one's value."""
  values = np.asarray(values, np.float64)
  known = values[np.isfinite(values)]
  lo = hi = None
  if len(known) > 1:
    quantile = stats.t.ppf((1 + LEVEL) / 2, len(known) - 1)
    reach = float(quantile * known.std(ddof=1) / math.sqrt(len(known)))
    lo, hi = float(known.mean()) - reach, float(known.mean()) + reach
  return {
    'value': float(known.mean()) if len(known) else None,
    'lo': lo,
    'hi': hi,
    'by_teacher': [_number(value) for value in values],
  }


def _curves(
  name: str, study: config_lib.Study, results: Mapping[int, records.Row]
) -> Iterator[records.Row]:
  """Yields a study's findings, a record for each kind and temperature."""
  depths = sorted(study.depths)
  first = results[depths[0]]
  losses_LxCxM, errors_LxCxM = (
    np.array([results[depth][key] for depth in depths], np.float64)
    for key in ('loss', 'error')
  )
  for kind in study.teachers:
    for temperature in study.temperatures or (None,):
      mine = [
        i
        for i, member in enumerate(first['members'])
        if (member['teacher'], member['temperature']) == (kind, temperature)
      ]
      loss_CxTxL = losses_LxCxM[..., mine].transpose(1, 2, 0)
      error_TxL = errors_LxCxM[:, -1, mine].T
      yield {
        'study': name,
        'teacher': kind,
        'temperature': temperature,
        'head': study.head,
        'stages': study.stages,
        'teacher_depth': study.teacher_depth,
        'depths': depths,
        **exponents(depths, loss_CxTxL[-1]),
        'averaging': averaging(depths, study.teacher_depth),
        'evolution': [
          {'steps': steps, **exponents(depths, loss_TxL)['exponent']}
          for steps, loss_TxL in zip(first['steps'], loss_CxTxL, strict=True)
        ],
        # By checkpoint, teacher and depth.
        'loss': [[_numbers(row) for row in table] for table in loss_CxTxL],
        # Standard errors of the last ones over the test's batches.
        'error': [_numbers(row) for row in error_TxL],
      }


def _with_floor(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
  """Returns a and the floor's share of the least loss, in c / l^a + L0.

  For each share the line through what is above the floor is that of log losses'
  least squares, to first order: the share with the least wins.
  """
  if len(x) < 4:
    return math.nan, math.nan
  loss, best = np.exp(y), (math.inf, math.nan, math.nan)
  for share in _SHARES:
    floor = share * loss.min()
    above = loss - floor
    slope, level = np.polyfit(x, np.log(above), 1, w=above / loss)
    wrong = np.sum((y - np.log(np.exp(level + slope * x) + floor)) ** 2)
    if wrong < best[0]:
      best = (float(wrong), float(-slope), float(share))
  return best[1:]


def _line(
  asked: config_lib.ToysConfig, curves: list[records.Row]
) -> Iterator[str]:
  """Yields each study's exponents: one, or those of its extreme temperatures."""
  for name, study in asked.studies.items():
    ends = (study.temperatures or (None,))[
      :: max(1, len(study.temperatures) - 1)
    ]
    for curve in curves:
      if curve['study'] == name and curve['temperature'] in ends:
        cold = curve['temperature']
        at = '' if cold is None else f' at T = {cold:g}'
        found = curve['exponent']
        text = words.estimate(found['value'], found['lo'], found['hi'])
        yield f'{name} {curve["teacher"]}{at}: {text}'


def _numbers(values: np.ndarray) -> list[float | None]:
  return [_number(value) for value in values]


def _number(value: Any) -> float | None:
  return float(value) if math.isfinite(value) else None
