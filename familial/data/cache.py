"""Folders of the cache: complete or absent, made again where damaged.

A folder is filled under a temporary name and renamed. Of several processes that
need the same folder, the first makes it and the others wait for its lock. On a
file system without locks each makes one, and the first to finish wins.
"""

from collections.abc import Callable
import contextlib
import fcntl
import hashlib
import json
import pathlib
import shutil
from typing import Any
from typing import TypeVar
import uuid

from absl import logging

from familial.core import errors

T = TypeVar('T')


class DamagedError(errors.UserError):
  """Prepared data that cannot be read back."""


def use(
  folder: pathlib.Path,
  make: Callable[[pathlib.Path], None],
  read: Callable[[pathlib.Path], T],
) -> T:
  """Reads a folder, and makes it first if it is missing.

  A damaged folder is reported, removed and made again, once.

  Args:
    folder: CACHE/KIND/NAME; its lock is CACHE/locks/NAME.
    make: fills an empty folder.
    read: raises DamagedError where the folder cannot be used.

  Raises:
    UserError: if the folder cannot be written, or is damaged again.
  """
  for _ in range(2):
    try:
      _publish(folder, make)
    except OSError as error:
      raise errors.UserError(
        f'{folder}: cannot be written: {error.strerror or error}'
      ) from None
    try:
      return read(folder)
    except DamagedError as damage:
      logging.warning('%s is damaged (%s): made again', folder, damage)
      _discard(folder)
  raise errors.UserError(f'{folder} is damaged again once made: a bad disk?')


def digest(*parts: Any) -> str:
  """Returns 16 hex digits of the SHA-256 of values that JSON can hold."""
  text = json.dumps(parts, sort_keys=True)
  return hashlib.sha256(text.encode('utf-8')).hexdigest()[:16]


def file_digest(file: str | pathlib.Path) -> str:
  """Returns the SHA-256 of a file's content, in hex."""
  with open(file, 'rb') as opened:
    return hashlib.file_digest(opened, 'sha256').hexdigest()


def _publish(
  folder: pathlib.Path, make: Callable[[pathlib.Path], None]
) -> None:
  """Makes a folder unless it exists: fills another and renames it."""
  if folder.exists():
    return
  temporary = _temporary(folder)
  temporary.parent.mkdir(parents=True, exist_ok=True)
  locks = folder.parents[1] / 'locks'
  locks.mkdir(parents=True, exist_ok=True)
  with open(locks / folder.name, 'w') as lock:
    with contextlib.suppress(OSError):  # This file system has no locks.
      fcntl.flock(lock, fcntl.LOCK_EX)
    if folder.exists():
      return
    temporary.mkdir()
    try:
      make(temporary)
      try:
        temporary.rename(folder)
      except OSError:
        # A folder that is not empty cannot be replaced: another process won.
        if not folder.exists():
          raise
    finally:
      shutil.rmtree(temporary, ignore_errors=True)


def _discard(folder: pathlib.Path) -> None:
  """Removes a folder that other processes may be removing too."""
  doomed = _temporary(folder)
  # Renamed first, so that no process reads it half removed.
  with contextlib.suppress(FileNotFoundError):
    folder.rename(doomed)
  shutil.rmtree(doomed, ignore_errors=True)


def _temporary(folder: pathlib.Path) -> pathlib.Path:
  return folder.with_name(f'.{folder.name}-{uuid.uuid4().hex[:12]}')
