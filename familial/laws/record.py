"""The files a fit leaves: fit.json, and bootstrap.npz beside it."""

from collections.abc import Mapping
import dataclasses
import json
import math
import pathlib
from typing import Any

import numpy as np

from familial.core import arrays
from familial.core import errors
from familial.core import storage
from familial.laws import forms
from familial.laws import parametric

SAMPLES = 'bootstrap.npz'
_LAW = ('form', 'params', 'objective', 'bootstrap', 'flags')


@dataclasses.dataclass(frozen=True)
class Law:
  """A law read back from fit.json; `record` holds all that the file does.

  `samples` holds the constants of the bootstrap's resamples, each [resamples],
  or is None where bootstrap.npz does not lie beside the file.
  """

  form: parametric.Form
  params: dict[str, float]
  record: dict[str, Any]
  samples: dict[str, np.ndarray] | None = None

  def predict(self, columns: Mapping[str, Any]) -> np.ndarray:
    """The loss at these columns, one a row."""
    return self.form.predict(self.params, columns)


def load(path: str | pathlib.Path) -> Law:
  """Reads fit.json back.

  Raises:
    UserError: where there is no such file, or one of the two is not ours.
  """
  try:
    record = json.loads(pathlib.Path(path).read_text('utf-8'))
  except (OSError, json.JSONDecodeError) as error:
    raise errors.UserError(f'cannot read {str(path)!r}: {error}') from error
  missing = [k for k in _LAW if not isinstance(record, dict) or k not in record]
  if missing:
    raise errors.UserError(
      f'{str(path)!r} is no fit.json: it lacks {", ".join(missing)}'
    )
  storage.check_schema(path, record)
  name = record['form']
  if '.py' in str(name):
    raise errors.UserError(
      f'{str(path)!r} is a law of the file {name!r}, which is not run to read '
      'it; load that form and use its predict'
    )
  samples = None
  beside = pathlib.Path(path).with_name(SAMPLES)
  if beside.exists():
    kept = np.broadcast_to(0.0, _kept(path, record))
    samples = arrays.load(beside, dict.fromkeys(record['params'], kept))
  return Law(forms.get(name), record['params'], record, samples)


def _kept(path: str | pathlib.Path, record: Mapping[str, Any]) -> int:
  """Returns how many resamples bootstrap.npz holds."""
  drawn, failed = record.get('resamples'), record.get('resamples_failed')
  if not (isinstance(drawn, int) and isinstance(failed, int)):
    raise errors.UserError(
      f'{str(path)!r} does not count its resamples, which {SAMPLES} holds'
    )
  return max(drawn - failed, 0)


def write_json(path: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Writes JSON at once or not at all; NaN and infinity become null."""
  text = json.dumps(plain(record), indent=2, allow_nan=False) + '\n'
  storage.write_text(path, text)


def plain(value: Any) -> Any:
  """Returns a value as JSON has it; NaN and infinity become null."""
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(v) for v in value]
  if isinstance(value, (np.ndarray, np.generic)):
    return plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
