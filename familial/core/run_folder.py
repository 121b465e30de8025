"""Run folders: the contract between training and everything that reads runs.

A run folder holds `config.json` (what was asked), `lineage.json` (what the run
started from), `metrics.jsonl` (one row per exit and evaluation) and
`progress.jsonl` (training loss and speed, which no result depends on);
`gradients.jsonl` if a run compares its exits' gradients. Rows hold no clock, so
an undisturbed run and a resumed one write the same bytes.
"""

from collections.abc import Iterator
import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

from familial.core import errors
from familial.core import storage

ROWS = 'metrics.jsonl'
PROGRESS = 'progress.jsonl'
GRADIENTS = 'gradients.jsonl'
# Final states of a run; such a run is never trained again.
DONE = ('finished', 'diverged')


def open_folder(
  folder: str | os.PathLike[str],
  config: Any,
  lineage: storage.Row | None = None,
  *,
  free: tuple[str, ...] = (),
) -> pathlib.Path:
  """Makes the folder of a run or study, or opens the one of the same config.

  Args:
    folder: of the run or study.
    config: a dataclass; compared with the folder's `config.json`.
    lineage: of a run: its parent and the FLOPs inherited from it.
    free: sections of the config that may differ, since no stored result depends
      on them.

  Raises:
    UserError: if the folder was made with another config.
  """
  folder = pathlib.Path(folder)
  path = folder / 'config.json'
  if path.exists():
    changed = False
    for key, was, now in differences(folder, config):
      if key.partition('.')[0] in free:
        changed = True
        continue
      raise errors.UserError(
        f'{folder} was made with {key} = {was!r}, not {now!r}; use another '
        'workdir, or that value'
      )
    if changed:
      storage.write_json(path, _as_json(config))
    return folder
  with storage.writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
  if lineage:
    storage.write_json(folder / 'lineage.json', lineage)
  storage.write_json(path, _as_json(config))
  return folder


def differences(
  folder: str | os.PathLike[str], config: Any
) -> Iterator[tuple[str, Any, Any]]:
  """Yields (key, was, now) where a config differs from a folder's.

  Raises:
    UserError: if the folder is of another schema.
  """
  path = pathlib.Path(folder) / 'config.json'
  yield from _differences(storage.read_own(path), _as_json(config))


def truncate(path: str | os.PathLike[str], step: int) -> None:
  """Drops rows after a step: a run resumes there and writes them again."""
  path = pathlib.Path(path)
  if not path.exists():
    return
  rows, cut_off = storage.read_whole_rows(path)
  if cut_off:
    print(
      f'familial: {path}: its last line was cut off and is dropped',
      file=sys.stderr,
    )
  storage.write_text(
    path, storage.json_lines(row for row in rows if row['step'] <= step)
  )


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


def _differences(
  known: Any, asked: Any, key: str = ''
) -> Iterator[tuple[str, Any, Any]]:
  """Yields (key, was, now) where two JSON values differ."""
  if isinstance(known, dict) and isinstance(asked, dict):
    for name in sorted(known.keys() | asked.keys()):
      if name not in known and asked[name] == '':
        continue  # A key that is newer than the folder, at its default.
      yield from _differences(
        known.get(name), asked.get(name), f'{key}.{name}' if key else name
      )
  elif known != asked:
    yield key, known, asked
