"""Set-up of a process before JAX runs: memory, compilation cache, processes."""

import ctypes
import sys

import jax

from familial.core import errors
from familial.core import storage
from familial.data import config as data_config
from familial.training import jax_internals
from familial.training import processes

# Parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def prepare(
  data: data_config.DataConfig | None = None, *, several: bool = False
) -> None:
  """Keeps freed memory, and compiled programs on disk for later processes.

  Args:
    data: the config whose cache holds the programs; None for the default cache.
    several: whether the command supports several processes.

  Raises:
    UserError: if JAX runs as several processes, as on a pod, and the command does
      not support it or the processes are not connected.
  """
  keep_freed_memory()
  jax_internals.write_programs_with(storage.write_bytes)
  folder = data_config.cache_folder(data or data_config.DataConfig()) / 'xla'
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
  count = jax.process_count()
  if count > 1 and not several:
    raise errors.UserError(
      f'{count} JAX processes: familial train alone is done by several; a study, '
      'a population of runs and what serves a model keep to one'
    )
  if count != processes.count():
    raise errors.UserError(
      f'{count} JAX processes that have not met: set {processes.COUNT}=auto for '
      'familial train'
    )


def keep_freed_memory() -> None:
  """Makes glibc keep freed blocks of up to 1 GiB; call it before JAX runs.

  XLA allocates a step's temporaries as one block and frees it when the step ends.
  glibc returns blocks above 32 MiB to the system, so that every step maps and
  zeroes its pages anew, which is a quarter of its time on CPU. One arena, because
  the arenas of further threads hold no block above 64 MiB. Does nothing without
  glibc.
  """
  if sys.platform != 'linux':
    return
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
  if mallopt is not None:
    mallopt(_ARENA_MAX, 1)
    mallopt(_MMAP_THRESHOLD, 2**30)
    mallopt(_TRIM_THRESHOLD, 2**31 - 1)
