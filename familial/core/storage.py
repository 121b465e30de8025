"""Files that are written whole or not at all: JSON, JSON lines, and locks."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import errno
import fcntl
import itertools
import json
import os
import pathlib
import sys
from typing import Any
import uuid

from familial.core import errors

# Version of every JSON file, row and checkpoint that this project writes.
SCHEMA = 1
_LINKS = 40  # followed from a path; Linux's own limit
Row = dict[str, Any]
_ATTEMPTS = 100  # To make a folder that others remove.


def write_json(path: str | os.PathLike[str], value: Any) -> None:
  """Writes JSON atomically: a reader sees the old file or the new one."""
  write_text(path, json.dumps(value, indent=1, allow_nan=False) + '\n')


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a UTF-8 text file atomically."""
  write_bytes(path, text.encode('utf-8'))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
  """Writes a file; its folder is made if missing.

  A regular file is written atomically; where the path is a link, the file that it
  leads to is replaced, and the link stays. Pipes, devices and the standard
  output are written to.

  Raises:
    UserError: if the disk is full or the folder cannot be written.
  """
  with writing(path):
    target, stream = _resolve(pathlib.Path(path))
    if stream is not None:
      sys.stdout.flush()  # What was printed before comes before.
      with open(os.dup(stream), 'wb') as file:
        file.write(content)
    elif target.exists() and not target.is_file():
      with open(target, 'wb') as file:
        file.write(content)
    else:
      _replace(target, content)


def _resolve(path: pathlib.Path) -> tuple[pathlib.Path, int | None]:
  """Follows links; returns the file, and its number if it is an open one.

  /dev/stdout leads to such a number, and what stands behind it, perhaps a file
  that a shell has opened, must be neither replaced nor begun anew.
  """
  own = pathlib.Path(f'/proc/{os.getpid()}/fd')
  for _ in range(_LINKS):
    path = pathlib.Path(os.path.realpath(path.parent), path.name)
    if path.parent == own and path.name.isdigit():
      return path, int(path.name)
    if not path.is_symlink():
      return path, None
    path = path.parent / os.readlink(path)
  raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _replace(path: pathlib.Path, content: bytes) -> None:
  temporary = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.tmp')
  path.parent.mkdir(parents=True, exist_ok=True)
  try:
    with open(temporary, 'wb') as file:
      file.write(content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
  """Converts an OSError raised while writing `path` into a UserError."""
  try:
    yield
  except OSError as error:
    raise unwritten(path, error.strerror or str(error)) from None


def unwritten(path: str | os.PathLike[str], why: str) -> errors.UserError:
  """Returns the error for a file or folder that could not be written."""
  return errors.UserError(
    f'{path}: cannot be written: {why}; what was there stays, and the same '
    'command goes on once it can be'
  )


def read_json(path: str | os.PathLike[str]) -> Any:
  """Returns the value of a JSON file.

  Raises:
    UserError: if the file is not valid JSON.
  """
  try:
    with open(path, encoding='utf-8') as file:
      return json.load(file)
  except ValueError as error:
    raise errors.UserError(f'{path}: not valid JSON ({error})') from None


def read_own(path: str | os.PathLike[str]) -> Row:
  """Returns the object in a JSON file that this project wrote.

  Raises:
    UserError: if the file is damaged, not an object, or of another schema.
  """
  value = read_json(path)
  if not isinstance(value, dict):
    raise errors.UserError(f'{path}: not a JSON object')
  check_schema(path, value)
  return value


def check_schema(
  where: str | os.PathLike[str], value: Mapping[str, Any]
) -> None:
  """Raises a UserError for a value of another schema.

  A missing `schema` counts as 1: some files of schema 1 leave it out.
  """
  was = value.get('schema', 1)
  if was != SCHEMA:
    raise errors.UserError(
      f'{where}: schema {was!r} is not {SCHEMA}, the one that this version '
      'reads and writes'
    )


def append(path: str | os.PathLike[str], rows: Iterable[Row]) -> None:
  """Appends rows to a JSON-lines file in one write.

  Raises:
    UserError: if the disk is full or the file cannot be written.
  """
  lines = json_lines(rows)
  with writing(path), open(path, 'a', encoding='utf-8') as file:
    file.write(lines)
    file.flush()
    os.fsync(file.fileno())


def json_lines(rows: Iterable[Row]) -> str:
  """Returns rows as the text of a JSON-lines file."""
  return ''.join(json.dumps(row, allow_nan=False) + '\n' for row in rows)


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
  """Returns the whole rows of a JSON-lines file; [] if it does not exist.

  A last line that was cut off is left out.

  Raises:
    UserError: if another line is not JSON, or a row is of another schema.
  """
  return read_whole_rows(path)[0]


def read_whole_rows(path: str | os.PathLike[str]) -> tuple[list[Row], bool]:
  """Returns the rows as `read_rows` does, and whether a cut-off line follows."""
  path = pathlib.Path(path)
  if not path.exists():
    return [], False
  lines = path.read_text(encoding='utf-8', errors='replace').split('\n')
  rows: list[Row] = []
  for number, line in enumerate(lines, start=1):
    if not line:
      continue
    try:
      row = json.loads(line)
    except ValueError:
      if number == len(lines):  # The last line has no newline behind it.
        return rows, True
      raise errors.UserError(f'{path}:{number}: not valid JSON') from None
    if not isinstance(row, dict):
      raise errors.UserError(f'{path}:{number}: not a JSON object')
    check_schema(f'{path}:{number}', row)
    rows.append(row)
  return rows, False


@contextlib.contextmanager
def lock(
  folder: str | os.PathLike[str], *, wait: bool = False
) -> Iterator[bool]:
  """Locks a folder for this process; yields whether the lock was obtained.

  The operating system releases the lock when the process ends. A folder that was
  made for the lock and holds nothing else at the end is removed again; where
  several processes wait for it, it may stay, empty.

  Args:
    folder: made if missing; the lock is its file `lock`.
    wait: whether to wait for another process to release it.
  """
  path = pathlib.Path(folder).absolute() / 'lock'
  for attempt in itertools.count(1):
    made = list(itertools.takewhile(lambda p: not p.exists(), path.parents))
    with writing(path):
      try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, 'w', encoding='utf-8')
      except FileNotFoundError:  # Removed by its last owner between the two.
        if attempt == _ATTEMPTS:
          raise
        continue
    with file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
      except BlockingIOError:
        yield False
        return
      # Its last owner may have removed the file meanwhile.
      try:
        current = os.path.samestat(os.fstat(file.fileno()), path.stat())
      except FileNotFoundError:
        current = False
      if not current:
        continue
      try:
        yield True
      finally:
        _remove_empty(path, made)
      return


def _remove_empty(path: pathlib.Path, made: Iterable[pathlib.Path]) -> None:
  """Removes a lock with its new folders, if these hold nothing else."""
  with contextlib.suppress(OSError):
    if path.parent in made and os.listdir(path.parent) == [path.name]:
      path.unlink()
      for folder in made:
        folder.rmdir()


def check_writable(folder: str | os.PathLike[str]) -> None:
  """Raises a UserError unless a folder, which may be missing, can be written.

  Nothing is written. A command calls it before work whose result is written at
  the end.
  """
  path = pathlib.Path(folder).absolute()
  while not path.exists() and path != path.parent:
    path = path.parent
  if not path.is_dir():
    raise unwritten(folder, f'{path} is not a folder')
  if not os.access(path, os.W_OK | os.X_OK):
    read_only = os.statvfs(path).f_flag & os.ST_RDONLY
    number = errno.EROFS if read_only else errno.EACCES
    raise unwritten(folder, os.strerror(number))
