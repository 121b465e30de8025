"""Output folders: a result is replaced by the same command, or by --overwrite.

A folder's `command.json` names the command and the flags that differ from their
defaults. The same flags again may replace the result, as for a table that has
grown.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
from typing import Any

from familial.core import errors
from familial.core import schema
from familial.core import storage

RECORD = 'command.json'
# What folders of results, runs and studies hold, one of these at least.
_RESULTS = (
  'allocation.json', 'config.json', 'depth.json', 'evaluation.json',
  'fit.json', 'plan.json', 'probe.json', 'segment.json', 'selection.json',
  'summary.json',
)  # fmt: skip
# Flags that change how a result is shown or found, and not what it is.
_FREE = ('out', 'overwrite', 'json', 'draw', 'label', 'unit', 'decode', 'workers', 'given',
         'config_file')  # fmt: skip


@contextlib.contextmanager
def claimed(
  folder: str | os.PathLike[str],
  command: str,
  given: Any,
  **resolved: Any,
) -> Iterator[pathlib.Path]:
  """Yields the folder of a command's result, which is recorded in the end.

  Folders that this makes are removed again if nothing is written into them.

  Args:
    folder: of the result.
    command: its name.
    given: its flags, `overwrite` among them.
    **resolved: flags whose values stand for others, such as `last`.

  Raises:
    UserError: if the folder holds the result of another command or other flags,
      and is not to be overwritten.
  """
  folder = pathlib.Path(folder)
  asked = _asked(command, given, resolved)
  if not given.overwrite:
    _check(folder, asked)
  missing = [path for path in (folder, *folder.parents) if not path.exists()]
  before = _state(folder)
  try:
    yield folder
  finally:
    if _state(folder) != before:
      storage.write_json(folder / RECORD, {'schema': storage.SCHEMA, **asked})
    else:
      with contextlib.suppress(OSError):  # Not there, or not empty.
        for path in missing:
          path.rmdir()


def _check(folder: pathlib.Path, asked: dict[str, Any]) -> None:
  if not _state(folder):
    return
  remedy = 'use another folder, or --overwrite'
  path = folder / RECORD
  if not path.exists():
    raise errors.UserError(
      f'{folder}: holds a result, and no {RECORD} that says of what; {remedy}'
    )
  known = storage.read_own(path)
  if known['command'] != asked['command']:
    raise errors.UserError(
      f'{folder}: holds the result of familial {known["command"]}; {remedy}'
    )
  was, now = known['flags'], asked['flags']
  for flag in sorted(was.keys() | now.keys()):
    if was.get(flag) != now.get(flag):
      shown = (
        ''
        if flag in ('config', 'to')
        else (
          f' ({was.get(flag, "the default")!r}, not '
          f'{now.get(flag, "the default")!r})'
        )
      )
      raise errors.UserError(
        f'{folder}: holds a result with another --{flag}{shown}; {remedy}'
      )


def _asked(
  command: str, given: Any, resolved: dict[str, Any]
) -> dict[str, Any]:
  """Returns what `command.json` holds."""
  flags: dict[str, Any] = {}
  for field in schema.describe(type(given)):
    value = resolved.get(field.name, getattr(given, field.name))
    if field.name not in _FREE and value != field.default:
      flags[field.name] = _plain(value)
  return json.loads(json.dumps({'command': command, 'flags': flags}))


def _plain(value: Any) -> Any:
  """Returns a flag's value as JSON has it; of a file or folder its whole path."""
  if hasattr(value, 'to_dict'):
    return value.to_dict()
  if isinstance(value, tuple):
    return [_plain(item) for item in value]
  if isinstance(value, str) and value and os.path.exists(value):
    return os.path.abspath(value)
  return value


def _state(folder: pathlib.Path) -> dict[str, tuple[int, int]]:
  """Returns the results in a folder, each with what changes when it is written."""
  paths = [folder / name for name in _RESULTS]
  return {
    path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
    for path in paths
    if path.exists()
  }
