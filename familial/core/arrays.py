"""Files of named arrays (npz): written at once, and read only as expected."""

from collections.abc import Mapping
import io
import math
import os
import pathlib
from typing import Any
import zipfile
import zlib

import numpy as np

from familial.core import errors
from familial.core import storage

_NUMBERS = 2**30  # in a file, at most
_HEADERS = 2**16  # bytes that a file has beside its numbers
_DAMAGED = (zipfile.BadZipFile, zlib.error)


def save(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
  """Writes arrays by their names; a reader sees the old file or the new one."""
  named: dict[str, Any] = {k: np.asarray(v) for k, v in arrays.items()}
  content = io.BytesIO()
  np.savez(content, **named)
  storage.write_bytes(path, content.getvalue())


def load(
  path: str | os.PathLike[str], like: Mapping[str, Any]
) -> dict[str, np.ndarray]:
  """Returns the arrays of a file.

  Args:
    path: of the file, which nobody vouches for.
    like: has, by name, the shape and type that each array must have.

  Raises:
    UserError: if the file is not there, is larger, or has others.
  """
  path = pathlib.Path(path)
  count = sum(math.prod(leaf.shape) for leaf in like.values())
  size = sum(
    math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
    for leaf in like.values()
  )
  try:
    if count > _NUMBERS or path.stat().st_size > size + _HEADERS:
      raise ValueError('too large')
    with zipfile.ZipFile(path) as parts:
      if sum(part.file_size for part in parts.infolist()) > size + _HEADERS:
        raise ValueError('too large')
    with np.load(path, allow_pickle=False) as stored:
      arrays = {key: stored[key] for key in like}
  except (OSError, ValueError, KeyError, EOFError, *_DAMAGED) as error:
    raise errors.UserError(f'{path}: cannot be read ({error})') from None
  for key, leaf in like.items():
    if (arrays[key].shape, arrays[key].dtype) != (leaf.shape, leaf.dtype):
      raise errors.UserError(
        f'{path}: {key} is {arrays[key].dtype} {arrays[key].shape}, not '
        f'{leaf.dtype} {leaf.shape}'
      )
  return arrays
