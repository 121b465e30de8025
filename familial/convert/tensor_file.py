"""Files of tensors (safetensors) that are written one tensor at a time."""

from collections.abc import Callable
from collections.abc import Mapping
import hashlib
import json
import math
import os
from typing import Any
from typing import NamedTuple

import ml_dtypes
import numpy as np

from familial.core import storage

_KINDS = {
  np.dtype(np.float32): 'F32', np.dtype(ml_dtypes.bfloat16): 'BF16',
}  # fmt: skip


class Tensor(NamedTuple):
  """A tensor that is read when it is written.

  Attributes:
    shape: its shape.
    read: returns it.
  """

  shape: tuple[int, ...]
  read: Callable[[], Any]


def write(
  path: str | os.PathLike[str],
  tensors: Mapping[str, Tensor],
  dtype: Any = np.float32,
  metadata: Mapping[str, str] | None = None,
) -> str:
  """Writes tensors in a type; returns the SHA-256 of the file.

  Memory holds one tensor at a time.

  Raises:
    UserError: if the file cannot be written.
  """
  dtype, at = np.dtype(dtype), 0
  header: dict[str, Any] = {'__metadata__': dict(metadata)} if metadata else {}
  for name, tensor in tensors.items():
    end = at + nbytes(tensor, dtype)
    header[name] = {
      'dtype': _KINDS[dtype],
      'shape': list(tensor.shape),
      'data_offsets': [at, end],
    }
    at = end
  head = json.dumps(header, separators=(',', ':')).encode()
  head += b' ' * (-len(head) % 8)
  digest = hashlib.sha256()
  with storage.writing(path), open(path, 'wb') as file:
    for part in (len(head).to_bytes(8, 'little'), head):
      digest.update(part)
      file.write(part)
    for tensor in tensors.values():
      array = np.ascontiguousarray(tensor.read(), dtype)
      assert array.shape == tuple(tensor.shape)
      content = array.reshape(-1).view(np.uint8).data
      digest.update(content)
      file.write(content)
    file.flush()
    os.fsync(file.fileno())
  return digest.hexdigest()


def nbytes(tensor: Tensor, dtype: Any) -> int:
  """Returns the bytes of a tensor in a type."""
  return math.prod(tensor.shape) * np.dtype(dtype).itemsize
