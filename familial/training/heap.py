"""The process's heap, kept from step to step."""

import ctypes
import sys

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def keep() -> None:
  """Has glibc keep what is freed, up to 1 GiB a block; call it before JAX runs.

  XLA takes a step's temporaries as one block and frees it when the step ends.
  glibc hands blocks above 32 MiB back to the system, so each step had its pages
  mapped and zeroed anew: a quarter of its time on CPU. One arena, because
  those of further threads hold no block above 64 MiB. Elsewhere it does
  nothing.
  """
  if sys.platform != 'linux':
    return
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is not None:
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, 2**30)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
