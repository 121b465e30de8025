"""Run folders: the contract between training and everything that reads runs.

A run folder holds `config.json` (what was asked), `lineage.json` (what the run
started from), `metrics.jsonl` (one row per exit and evaluation) and
`progress.jsonl` (training loss and speed, which no result depends on);
`gradients.jsonl` if a run compares its exits' gradients. Rows hold no clock, so
an undisturbed run and a resumed one write the same bytes.
"""

from collections.abc import Collection
from collections.abc import Iterator
import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

from familial.core import errors
from familial.core import schema
from familial.core import storage

ROWS = 'metrics.jsonl'
PROGRESS = 'progress.jsonl'
GRADIENTS = 'gradients.jsonl'
TOKENIZER = 'tokenizer.json'  # Not there for bytes.
# Final states of a run; such a run is never trained again.
DONE = ('finished', 'diverged')


def open_folder(
  folder: str | os.PathLike[str],
  config: Any,
  lineage: storage.Row | None = None,
  *,
  free: Collection[str] = (),
) -> pathlib.Path:
  """Makes the folder of a run or study, or opens the one of the same config.

  Args:
    folder: of the run or study.
    config: a dataclass; compared with the folder's `config.json`.
    lineage: of a run: its parent and the FLOPs inherited from it.
    free: keys and sections of the config that may differ, since no stored result
      depends on them.

  Raises:
    UserError: if the folder was made with another config.
  """
  folder = pathlib.Path(folder)
  check_folder(folder, config, free)
  if lineage and not (folder / 'config.json').exists():
    storage.write_json(folder / 'lineage.json', lineage)
  write_config(folder, config)
  return folder


def write_config(folder: pathlib.Path, config: Any) -> None:
  """Writes `config.json`, unless it holds this config already."""
  path = folder / 'config.json'
  if not path.exists() or any(differences(folder, config)):
    storage.write_json(path, _as_json(config))


def check_folder(
  folder: str | os.PathLike[str], config: Any, free: Collection[str] = ()
) -> None:
  """Raises a UserError if a folder was made with another config.

  Args:
    folder: of a run or study; it may be missing.
    config: a dataclass.
    free: as of `open_folder`.
  """
  storage.check_writable(folder)
  if not (pathlib.Path(folder) / 'config.json').exists():
    return
  for key, was, now in differences(folder, config, free):
    raise errors.UserError(
      f'{folder} was made with {key} = {was!r}, not {now!r}; use another '
      'workdir, or that value'
    )


def differences(
  folder: str | os.PathLike[str], config: Any, free: Collection[str] = ()
) -> Iterator[tuple[str, Any, Any]]:
  """Yields (key, was, now) where a config differs from a folder's.

  A key that an earlier version did not have has its default there.

  Args:
    folder: of a run or study.
    config: a dataclass.
    free: keys and sections that are left out.

  Raises:
    UserError: if the folder is of another schema.
  """
  path = pathlib.Path(folder) / 'config.json'
  known = _filled(storage.read_own(path), schema.defaults(type(config)))
  for key, was, now in _differences(known, _as_json(config)):
    if not is_free(key, free):
      yield key, was, now


def is_of(folder: str | os.PathLike[str], config: Any) -> bool:
  """Whether a folder has no config, or one of the same class."""
  path = pathlib.Path(folder) / 'config.json'
  names = {'schema', *(field.name for field in dataclasses.fields(config))}
  return not path.exists() or storage.read_own(path).keys() <= names


def compare(
  was: Any, now: Any, free: Collection[str] = ()
) -> Iterator[tuple[str, Any, Any]]:
  """Yields (key, was, now) where two configs differ, but for the keys `free`."""
  for key, before, after in _differences(_as_json(was), _as_json(now)):
    if not is_free(key, free):
      yield key, before, after


def is_free(key: str, free: Collection[str]) -> bool:
  """Whether a dotted key is one of some keys, or of one of their sections."""
  return any(key == name or key.startswith(f'{name}.') for name in free)


def truncate(path: str | os.PathLike[str], step: int, **values: Any) -> None:
  """Drops rows after a step: a run resumes there and writes them again.

  Args:
    path: file of rows.
    step: the last step whose rows stay.
    **values: fields that the rows which stay get, where they have them.
  """
  path = pathlib.Path(path)
  if not path.exists():
    return
  rows, cut_off = storage.read_whole_rows(path)
  if cut_off:
    print(
      f'familial: {path}: its last line was cut off and is dropped',
      file=sys.stderr,
    )
  kept = [
    {key: values.get(key, value) for key, value in row.items()}
    for row in rows
    if row['step'] <= step
  ]
  storage.write_text(path, storage.json_lines(kept))


def status(folder: str | os.PathLike[str]) -> str:
  """Returns `finished`, `diverged`, `running`, or `new` for a run folder.

  An evaluation whose rows were cut short leaves a run `running`.
  """
  rows = storage.read_rows(pathlib.Path(folder) / ROWS)
  if not rows:
    return 'new'
  last = rows[-1]
  return last['status'] if last['exit'] == last['exits'] else 'running'


def outcome(folder: str | os.PathLike[str]) -> str:
  """Returns one line on how a run ended and its held-out loss by exit."""
  rows = storage.read_rows(pathlib.Path(folder) / ROWS)
  step = rows[-1]['step']
  losses = [row['loss'] for row in rows if row['step'] == step]
  text = ', '.join('none' if x is None else f'{x:.4f}' for x in losses)
  return f'{rows[-1]["status"]} after {step} steps; loss by exit: {text}'


def rows_of(workdir: str | os.PathLike[str]) -> Iterator[storage.Row]:
  """Yields the rows of every run below a folder, by path."""
  for path in sorted(pathlib.Path(workdir).rglob(ROWS)):
    yield from storage.read_rows(path)


def _as_json(config: Any) -> storage.Row:
  """Returns a config as `config.json` holds it."""
  values = {'schema': storage.SCHEMA, **dataclasses.asdict(config)}
  return json.loads(json.dumps(values))


def _filled(known: Any, defaults: Any) -> Any:
  """Returns a JSON value with the defaults of keys that its sections lack."""
  if not isinstance(known, dict) or not isinstance(defaults, dict):
    return known
  missing = {key: item for key, item in defaults.items() if key not in known}
  return {
    **{key: _filled(item, defaults.get(key)) for key, item in known.items()},
    **json.loads(json.dumps(missing)),
  }


def _differences(
  known: Any, asked: Any, key: str = ''
) -> Iterator[tuple[str, Any, Any]]:
  """Yields (key, was, now) where two JSON values differ."""
  if isinstance(known, dict) and isinstance(asked, dict):
    for name in sorted(known.keys() | asked.keys()):
      yield from _differences(
        known.get(name), asked.get(name), f'{key}.{name}' if key else name
      )
  elif known != asked:
    yield key, known, asked
