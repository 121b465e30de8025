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
import itertools
import math
import os
import pathlib
from typing import Any

import numpy as np

from familial.core import estimate as estimate_lib
from familial.core import storage
from familial.core import text
from familial.studies import depth_toys_config as config_lib
from familial.studies import summary

_SHARES = np.concatenate([[0.0], np.linspace(0.01, 0.99, 99)])


def write(
  asked: config_lib.ToysConfig,
  workdir: str | os.PathLike[str],
  results: Mapping[str, storage.Row],
  regimes: Sequence[storage.Row],
) -> str:
  """Writes `summary.json`; returns its table as lines.

  Args:
    asked: what was asked.
    workdir: of it.
    results: of each study.
    regimes: rows of `depth_toys_regimes` with `study`, `teacher`, `temperature`.
  """
  curves = [
    curve
    for name, study in asked.studies.items()
    for curve in _curves(name, study, results[name])
  ]
  found = {
    'schema': storage.SCHEMA,
    'title': asked.title,
    'machine': summary.machine(),
    'level': estimate_lib.LEVEL,
    'teachers': asked.replicates,
    'seconds': {
      key: sum(row['seconds'][key] for row in results.values())
      for key in ('compile', 'train')
    },
    'curves': curves,
    'pairs': list(_pairs(curves)),
    'regimes': list(regimes),
  }
  storage.write_json(pathlib.Path(workdir) / 'summary.json', found)
  rows = table(found)
  wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return '\n'.join(
    '  '.join(map(str.ljust, row, wide)).rstrip() for row in rows
  )


def table(found: storage.Row) -> list[list[str]]:
  """Returns a summary as a table of words, its first row the heads."""
  rows = [
    ['study', 'teachers', 'T', 'depths', 'exponent', 'of averaging', 'regime']
  ]
  for curve in found['curves']:
    which = {key: curve[key] for key in ('study', 'teacher', 'temperature')}
    said = [
      row['text'] for row in found['regimes'] if which.items() <= row.items()
    ]
    rows.append(
      [
        which['study'],
        which['teacher'],
        _temperature(curve),
        ', '.join(map(str, curve['depths'])),
        _words(curve['exponent']),
        text.number(curve['averaging']),
        said[0] if said else text.number(None),
      ]
    )
  for row in found['pairs']:
    rows.append(
      [
        f'{row["study"]} - {row["base"]}',
        row['teacher'],
        _temperature(row),
        ', '.join(map(str, row['depths'])),
        _words(row['difference']),
        '',
        f'at equal {row["equal"]}',
      ]
    )
  return rows


def exponents(depths: Sequence[int], loss_TxL: np.ndarray) -> storage.Row:
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
  floors = np.array(
    [_with_floor(x[k], y[k]) for k, y in zip(known, y_TxL, strict=True)]
  )
  of: dict[str, Sequence[float]] = {
    'exponent': [_slope(x, y) for y in y_TxL],
    'shallow': [_slope(x[:half], y[:half]) for y in y_TxL],
    'deep': [_slope(x[-half:], y[-half:]) for y in y_TxL],
    'curvature': [
      2 * np.polyfit(x[k], y[k], 2)[0] if k.sum() > 2 else math.nan
      for k, y in zip(known, y_TxL, strict=True)
    ],
    'floor': list(floors[:, 0]),
  }
  found: storage.Row = {key: estimate(values) for key, values in of.items()}
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


def estimate(values: Sequence[float] | np.ndarray) -> storage.Row:
  """Returns the mean over teachers, its interval, and each one's value."""
  values = np.asarray(values, np.float64)
  known = values[np.isfinite(values)]
  found = estimate_lib.Estimate.of(known) if len(known) else None
  return {
    'value': found.value if found else None,
    'lo': found.lo if found else None,
    'hi': found.hi if found else None,
    'by_teacher': [_number(value) for value in values],
  }


def _curves(
  name: str, study: config_lib.Study, result: storage.Row
) -> Iterator[storage.Row]:
  """Yields a study's findings, a record for each kind and temperature."""
  order = np.argsort(study.depths)
  depths = [study.depths[i] for i in order]
  losses_CxLxM, errors_CxLxM = (
    np.array(result[key], np.float64)[:, order] for key in ('loss', 'error')
  )
  for kind in study.teachers:
    for temperature in study.temperatures or (None,):
      mine = [
        i
        for i, member in enumerate(result['members'])
        if (member['teacher'], member['temperature']) == (kind, temperature)
      ]
      loss_CxTxL = losses_CxLxM[..., mine].transpose(0, 2, 1)
      error_TxL = errors_CxLxM[-1][:, mine].T
      yield {
        'study': name,
        'teacher': kind,
        'temperature': temperature,
        'head': study.head,
        'stages': study.stages,
        'one_layer': study.one_layer,
        'steps': study.steps,
        'teacher_depth': study.teacher_depth,
        'depths': depths,
        **exponents(depths, loss_CxTxL[-1]),
        'averaging': averaging(depths, study.teacher_depth),
        'evolution': [
          {'steps': steps, **exponents(depths, loss_TxL)['exponent']}
          for steps, loss_TxL in zip(result['steps'], loss_CxTxL, strict=True)
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


def _pairs(curves: Sequence[storage.Row]) -> Iterator[storage.Row]:
  """Yields studies beside others of the same teachers, heads and steps: layers of
  two stages beside those of one, and layers beside a single one as wide."""
  same = 'teacher', 'temperature', 'head', 'teacher_depth', 'steps'
  for this, base in itertools.permutations(curves, 2):
    if any(this[key] != base[key] for key in same):
      continue
    kinds = [(c['stages'], c['one_layer']) for c in (this, base)]
    if kinds == [(2, False), (1, False)]:
      yield _beside(this, base, 'cost', 2)
      yield _beside(this, base, 'depth', 1)
    elif kinds == [(1, False), (1, True)]:
      yield _beside(this, base, 'units', 1)


def _beside(
  this: storage.Row, base: storage.Row, equal: str, cost: int
) -> storage.Row:
  """Returns the exponents of two curves over the depths that both have, their
  difference, and the mean logarithm of the ratio of their losses.

  Args:
    this: whose depths are named.
    base: the other.
    equal: what is equal between them.
    cost: layers of `base` that count as one of `this`.
  """
  depths = [depth for depth in this['depths'] if cost * depth in base['depths']]
  logs_TxL = [
    np.log(np.array(curve['loss'][-1], np.float64)[:, np.isin(
      curve['depths'], np.multiply(layers, depths)
    )])
    for curve, layers in ((this, 1), (base, cost))
  ]  # fmt: skip
  slopes = [
    np.array([_slope(np.log(depths), log_L) for log_L in log_TxL])
    for log_TxL in logs_TxL
  ]
  return {
    'study': this['study'],
    'base': base['study'],
    'teacher': this['teacher'],
    'temperature': this['temperature'],
    'equal': equal,
    'depths': depths,
    'exponent': estimate(slopes[0]),
    'base_exponent': estimate(slopes[1]),
    'difference': estimate(slopes[0] - slopes[1]),
    'log_ratio': estimate((logs_TxL[0] - logs_TxL[1]).mean(axis=1)),
  }


def _slope(x: np.ndarray, y: np.ndarray) -> float:
  """Returns minus the slope of a line through the points that are there."""
  some = np.isfinite(y)
  if some.sum() < 2:
    return math.nan
  return float(-np.polyfit(x[some], y[some], 1)[0])


def _temperature(row: storage.Row) -> str:
  cold = row['temperature']
  return '' if cold is None else f'{cold:g}'


def _words(row: storage.Row) -> str:
  return text.estimate(row['value'], row['lo'], row['hi'])


def _numbers(values: np.ndarray) -> list[float | None]:
  return [_number(value) for value in values]


def _number(value: Any) -> float | None:
  return float(value) if math.isfinite(value) else None
